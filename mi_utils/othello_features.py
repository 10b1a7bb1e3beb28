"""Dictionaries and neurons scored against the true board: the one place where every right answer is known.

*Coverage*: for each property of the board, such as "d3 is mine", the best F1 that a single latent reaches as its
detector, over latents and thresholds; then the mean over properties. *Reconstruction*: keep the detectors that are
almost never wrong on other positions, let them together say what is on the board, and take the F1 of that.
*Rules*: a small decision tree on the board that says how active a neuron is.

Papers: Karvonen et al. 2024, "Measuring Progress in Dictionary Learning", arXiv:2408.00113; rules: arXiv:2511.00059.
Taught in `11_othello`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from sklearn.tree import DecisionTreeRegressor, export_text
from torch import Tensor

from mi_utils.hooks import hook_name, intervene, run_with_cache
from mi_utils.metrics import kl_divergence
from mi_utils.othello_games import Replay, middle, square_name
from mi_utils.othello_model import ModelPlayer
from mi_utils.othello_probes import EMPTY, RELATIVE, Positions, positions
from mi_utils.sae import build
from mi_utils.training import calibrate_threshold, to_inference

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


@torch.no_grad()
def ablation_effects(
    player: ModelPlayer, games: Replay, layer: int, neurons: Sequence[int]
) -> Float[Tensor, "neuron row"]:
    """How far the prediction at each position moves when a neuron is held at its mean, as a KL divergence in nats."""
    rows = positions(games)
    name = hook_name("mlp_post", layer)
    tokens = torch.from_numpy(games.tokens[:, : rows.size**2 - 5])
    means = rows.take(run_with_cache(player.model, tokens, [name])[name]).mean(0)
    clean = rows.take(player.model(tokens))
    found = []
    for neuron in neurons:

        def hold(acts: Float[Tensor, "game move neuron"], neuron: int = neuron) -> Tensor:
            return acts.index_fill(-1, torch.tensor(neuron), float(means[neuron]))

        with intervene(player.model, {name: hold}):
            found.append(kl_divergence(clean, rows.take(player.model(tokens))))
    return torch.stack(found)


def random_dictionary(x: Float[Tensor, "row d_in"], d_sae: int, k: float, seed: int = 0) -> SAE:
    """The control for training: random unit rows that read and write alike, with `k` latents active on average."""
    mean, scale = x.mean(0), float((x - x.mean(0)).norm(dim=1).mean() / x.shape[1] ** 0.5)
    random = build("batchtopk", x.shape[1], d_sae, k, seed=seed)
    rows = torch.randn(d_sae, x.shape[1], generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        random.W_dec.copy_(torch.nn.functional.normalize(rows, dim=1))
        random.W_enc.copy_(random.W_dec.T)
    calibrate_threshold(random, (x - mean) / scale)
    return to_inference(random, mean, scale)


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
