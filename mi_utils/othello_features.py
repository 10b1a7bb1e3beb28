"""Dictionaries and neurons scored against the true board: the one place where every right answer is known.

*Coverage*: for each property of the board, such as "d3 is mine", the best F1 that a single latent reaches as its
detector, over latents and thresholds; then the mean over properties. *Reconstruction*: keep the detectors that are
almost never wrong on other positions, let them together say what is on the board, and take the F1 of that.
*Rules*: a small decision tree on the board that says how active a neuron is.

Papers: Karvonen et al. 2024, "Measuring Progress in Dictionary Learning", arXiv:2408.00113; rules: arXiv:2511.00059.
Taught in `11_othello`.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.tree import DecisionTreeRegressor, export_text
from torch import Tensor

from mi_utils.othello_games import middle, square_name
from mi_utils.othello_probes import EMPTY, RELATIVE, Positions

THRESHOLDS = tuple(np.arange(10) / 10)
"""Shares of a latent's largest activation above which it says yes."""
PRECISE = 0.95
LEAST_SEEN = 50
"""Positions on which a detector must have said yes before its precision counts."""
WORDS = ("empty", "mine", "yours")


class Detectors(NamedTuple):
    """How good latents are as detectors of each property, one row a threshold."""

    f1: Float[Tensor, "threshold latent property"]
    precision: Float[Tensor, "threshold latent property"]
    n_yes: Float[Tensor, "threshold latent"]
    """Positions on which the latent says yes."""
    largest: Float[Tensor, " latent"]
    """Activation that the thresholds are shares of."""


class Rule(NamedTuple):
    """What a tree says of one neuron."""

    neuron: int
    r2: float
    """Share of the neuron's variance that the tree explains on other games."""
    shuffled_r2: float
    """The same for a tree that was given the boards of other games at the same move: what the move alone tells."""
    text: str
    """The tree, in words."""
    tree: DecisionTreeRegressor


def properties(rows: Positions) -> tuple[Bool[np.ndarray, "row property"], list[str]]:
    """Mine, yours or empty for each square, and their names; the four in the middle are never empty."""
    classes = rows.targets[RELATIVE]
    kept = [
        (square, kind)
        for square in range(rows.size**2)
        for kind in range(3)
        if not (kind == EMPTY and square in middle(rows.size))
    ]
    values = np.stack([classes[:, square] == kind for square, kind in kept], axis=1)
    return values, [f"{square_name(square, rows.size)} {WORDS[kind]}" for square, kind in kept]


def detectors(
    acts: Float[Tensor, "row latent"],
    truth: Bool[np.ndarray, "row property"],
    largest: Float[Tensor, " latent"] | None = None,
) -> Detectors:
    """F1 and precision of every latent for every property at every threshold.

    Args:
        largest: activations that the thresholds are shares of; the largest ones here if None.
    """
    wanted = torch.from_numpy(truth).float()
    largest = acts.amax(0).clamp(min=1e-9) if largest is None else largest
    f1, precision, n_yes = [], [], []
    for threshold in THRESHOLDS:
        says_yes = (acts > threshold * largest).float()
        hits, yes = says_yes.T @ wanted, says_yes.sum(0)
        f1.append(2 * hits / (yes[:, None] + wanted.sum(0)).clamp(min=1))
        precision.append(hits / yes[:, None].clamp(min=1))
        n_yes.append(yes)
    return Detectors(torch.stack(f1), torch.stack(precision), torch.stack(n_yes), largest)


def coverage(
    acts: Float[Tensor, "row latent"],
    truth: Bool[np.ndarray, "row property"],
    other_acts: Float[Tensor, "other latent"],
    other_truth: Bool[np.ndarray, "other property"],
) -> Float[np.ndarray, " property"]:
    """For each property, the F1 on the other positions of the latent and threshold that are best on the first."""
    found = detectors(acts, truth)
    best = found.f1.flatten(0, 1).argmax(0)
    return detectors(other_acts, other_truth, found.largest).f1.flatten(0, 1).gather(0, best[None])[0].numpy()


def board_reconstruction(
    acts: Float[Tensor, "row latent"],
    truth: Bool[np.ndarray, "row property"],
    other_acts: Float[Tensor, "other latent"],
    other_truth: Bool[np.ndarray, "other property"],
) -> Float[np.ndarray, " other"]:
    """F1 of the board that precise detectors say, for each of the other positions.

    A detector is precise if on the first positions it said yes 50 times or more, and was right 95 times in 100.
    """
    found = detectors(acts, truth)
    precise = (found.precision >= PRECISE) & (found.n_yes >= LEAST_SEEN)[..., None]
    said = torch.zeros(other_truth.shape, dtype=torch.bool)
    for threshold, trusted in zip(THRESHOLDS, precise, strict=True):
        says_yes = (other_acts > threshold * found.largest).float()
        said |= says_yes @ trusted.float() > 0
    wanted = torch.from_numpy(other_truth)
    return (2 * (said & wanted).sum(1) / (said.sum(1) + wanted.sum(1)).clamp(min=1)).numpy()


def rule(
    neuron: int,
    acts: Float[Tensor, " row"],
    rows: Positions,
    is_train: Bool[np.ndarray, " row"],
    *,
    depth: int = 4,
    seed: int = 0,
) -> Rule:
    """Fit a decision tree to a neuron on some games, and score it on the others.

    Args:
        acts: what the neuron's output weights read, at all positions.
        is_train: rows to fit on; no game may stand on both sides.
    Raises:
        ValueError: a game stands on both sides.
    """
    if np.intersect1d(rows.game[is_train], rows.game[~is_train]).size:
        raise ValueError("a game has rows on both sides of the split; split by game")
    truth, names = properties(rows)
    values = acts.numpy()
    tree = DecisionTreeRegressor(max_depth=depth, min_samples_leaf=30, random_state=seed)
    shuffled = truth[_other_game(rows.move, is_train, seed)]
    r2 = {}
    for kind, seen in (("shuffled", shuffled), ("true", truth)):
        tree.fit(seen[is_train], values[is_train])
        r2[kind] = _r2(tree.predict(seen[~is_train]), values[~is_train])
    text = export_text(tree, feature_names=names, decimals=2)
    return Rule(neuron, r2["true"], r2["shuffled"], _in_words(text), tree)


def fires(found: Rule, rows: Positions) -> Bool[np.ndarray, " row"]:
    """Where the rule says that its neuron is more than half as active as it ever says."""
    said = found.tree.predict(properties(rows)[0])
    return said > (said.min() + said.max()) / 2


def _other_game(
    move: Int[np.ndarray, " row"], is_train: Bool[np.ndarray, " row"], seed: int
) -> Int[np.ndarray, " row"]:
    """For each row another one at the same move, on the same side of the split."""
    rng = np.random.default_rng(seed)
    order = np.arange(len(move))
    for side in (is_train, ~is_train):
        for at in np.unique(move[side]):
            alike = np.flatnonzero(side & (move == at))
            order[alike] = rng.permutation(alike)
    return order


def _r2(predicted: np.ndarray, values: np.ndarray) -> float:
    spread = float(((values - values.mean()) ** 2).sum())
    return 1 - float(((predicted - values) ** 2).sum()) / spread if spread else 0.0


def _in_words(text: str) -> str:
    """sklearn's tree with its comparisons as yes and no."""
    return text.replace(" <= 0.50", ": no").replace(" >  0.50", ": yes").replace("value: ", "activation ")
