"""Read the board off a player's residual stream: three classes for each square, with and without a hidden layer.

What the classes are is a choice that decides what is found: mine and yours, as the side to move sees it, or black and
white. Accuracy alone flatters, since most squares are empty early on: the majority for each square and move is the
floor, and numbers come by move and by how often a disc was turned.

Paper: Nanda et al. 2023, "Emergent Linear Representations in World Models", arXiv:2309.00941. Taught in `11_othello`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Int8
from safetensors.torch import load_file, save_file
from torch import Tensor

from mi_utils.files import atomic_path
from mi_utils.metrics import bootstrap_interval, ratio_of_sums
from mi_utils.othello_games import Replay

RELATIVE, ABSOLUTE = "mine/yours", "black/white"
EMPTY, MINE, YOURS = 0, 1, 2
"""Classes of the relative target; of the absolute one 1 is black and 2 is white."""
BATCH = 1024


@dataclass(frozen=True)
class Positions:
    """All positions of some games after which a move follows, one a row, without the last of full games."""

    size: int
    game: Int[np.ndarray, " row"]
    move: Int[np.ndarray, " row"]
    """Counted from 0: how many moves were played before the last one."""
    targets: dict[str, Int[np.ndarray, "row square"]]
    """Classes by target: `RELATIVE` and `ABSOLUTE`."""
    n_flips: Int[np.ndarray, "row square"]
    """How often the disc on each square was turned so far."""
    turned: Bool[np.ndarray, "row square"]
    """Which discs the last move turned."""
    legal: Bool[np.ndarray, "row square"]

    def take(self, states: Float[Tensor, "game move d_model"]) -> Float[Tensor, "row d_model"]:
        """The states at these positions."""
        return states[torch.from_numpy(self.game), torch.from_numpy(self.move)]

    def boards(self) -> Int8[np.ndarray, "row square"]:
        """As the side to move sees them: 1 mine, -1 yours, 0 empty."""
        return np.array([0, 1, -1], dtype=np.int8)[self.targets[RELATIVE]]


def positions(games: Replay) -> Positions:
    """The positions of games that a player can read."""
    n_readable = games.size**2 - 5
    game, move = np.nonzero(games.open()[:, :n_readable])
    at = (game, move)
    return Positions(
        games.size,
        game,
        move,
        {RELATIVE: games.relative()[at] % 3 + 0, ABSOLUTE: games.boards[at] % 3 + 0},
        games.flipped.cumsum(1)[at],
        games.flipped[at],
        games.legal[at],
    )


class BoardProbe(torch.nn.Module):
    """Logits of three classes for each square, linear in the state, or with one hidden layer of rectified units."""

    def __init__(self, d_model: int, n_squares: int, n_hidden: int = 0):
        super().__init__()
        self.n_squares = n_squares
        self.hidden = torch.nn.Linear(d_model, n_hidden) if n_hidden else None
        self.out = torch.nn.Linear(n_hidden or d_model, 3 * n_squares)
        self.register_buffer("mean", torch.zeros(d_model))
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch square 3"]:
        x = (x - self.mean) / self.scale
        if self.hidden is not None:
            x = self.hidden(x).relu()
        return self.out(x).unflatten(-1, (self.n_squares, 3))

    @torch.no_grad()
    def predict(self, x: Float[Tensor, "*batch d_model"]) -> Int[np.ndarray, "*batch square"]:
        """The likeliest class of each square."""
        return self(x).argmax(-1).numpy()

    @torch.no_grad()
    def direction(self, square: int, now: int, wanted: int) -> Float[Tensor, " d_model"]:
        """The unit vector along which the log-odds of one class of a square over another rise fastest.

        Raises:
            ValueError: the probe is not linear, so that it has no one direction.
        """
        if self.hidden is not None:
            raise ValueError("a probe with a hidden layer has no one direction; fit one with n_hidden=0")
        rows = self.out.weight.unflatten(0, (self.n_squares, 3))[square]
        return torch.nn.functional.normalize(rows[wanted] - rows[now], dim=0)


def fit(
    x: Float[Tensor, "row d_model"],
    classes: Int[np.ndarray, "board square"],
    *,
    n_hidden: int = 0,
    n_steps: int = 600,
    seed: int = 0,
) -> BoardProbe:
    """Fit a probe by cross-entropy: Adam on batches of 1,024 rows, with a learning rate that falls to zero.

    Raises:
        ValueError: states and boards do not belong together.
    """
    if len(x) != len(classes):
        raise ValueError(f"got {len(x)} states and {len(classes)} boards; take both from the same positions")
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        probe = BoardProbe(x.shape[1], classes.shape[1], n_hidden)
    probe.mean, probe.scale = x.mean(0), x.std()
    target = torch.from_numpy(classes).long()
    optimiser = torch.optim.Adam(probe.parameters(), lr=1e-2 if not n_hidden else 3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: 1 - step / n_steps)
    for _ in range(n_steps):
        rows = torch.randint(len(x), (min(BATCH, len(x)),), generator=generator)
        loss = torch.nn.functional.cross_entropy(probe(x[rows]).flatten(0, 1), target[rows].flatten())
        loss.backward()
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return probe.eval().requires_grad_(False)


def majority(train: Positions, test: Positions, target: str = RELATIVE) -> Int[np.ndarray, "row square"]:
    """The guess that sees no state: for each square and move the class that is most frequent in training."""
    n_moves = int(max(train.move.max(), test.move.max())) + 1
    counts = np.zeros((n_moves, train.size**2, 3), dtype=np.int64)
    squares = np.broadcast_to(np.arange(train.size**2), train.targets[target].shape)
    np.add.at(counts, (train.move[:, None], squares, train.targets[target]), 1)
    return counts.argmax(-1)[test.move]


def accuracy(
    right: Bool[np.ndarray, "row square"],
    game: Int[np.ndarray, " row"],
    where: Bool[np.ndarray, "row square"] | None = None,
) -> dict[str, float]:
    """Share of squares that are right, with a bootstrap interval over games: `value`, `low`, `high`.

    Args:
        where: which squares count; all if None.
    Raises:
        ValueError: fewer than two games with squares that count.
    """
    where = np.ones_like(right) if where is None else where
    hits = np.bincount(game, (right & where).sum(1))
    tries = np.bincount(game, where.sum(1))
    hits, tries = hits[tries > 0], tries[tries > 0]
    interval = bootstrap_interval(hits, tries, statistic=ratio_of_sums, n_resamples=300)
    return {"value": ratio_of_sums(hits, tries), **interval._asdict()}


def accuracy_by(
    right: Bool[np.ndarray, "row square"],
    game: Int[np.ndarray, " row"],
    groups: Int[np.ndarray, "row square"],
    where: Bool[np.ndarray, "row square"] | None = None,
    least_games: int = 20,
) -> pd.DataFrame:
    """Accuracy for each group of squares, such as the number of past flips; groups in too few games are left out."""
    where = np.ones_like(right) if where is None else where
    rows = {}
    for group in np.unique(groups[where]):
        chosen = where & (groups == group)
        if len(np.unique(game[chosen.any(1)])) >= least_games:
            rows[int(group)] = accuracy(right, game, chosen)
    return pd.DataFrame(rows).T


def f1(
    predicted: Bool[np.ndarray, "row square"], truth: Bool[np.ndarray, "row square"], game: Int[np.ndarray, " row"]
) -> dict[str, float]:
    """F1 over all squares, with a bootstrap interval over games: `value`, `low`, `high`."""
    both, either = _overlap(predicted, truth, game)
    interval = bootstrap_interval(2 * both, either, statistic=ratio_of_sums, n_resamples=300)
    return {"value": ratio_of_sums(2 * both, either), **interval._asdict()}


def f1_of_games(
    predicted: Bool[np.ndarray, "row square"], truth: Bool[np.ndarray, "row square"], game: Int[np.ndarray, " row"]
) -> Float[np.ndarray, " game"]:
    """F1 over the squares of each game."""
    both, either = _overlap(predicted, truth, game)
    return 2 * both / np.maximum(either, 1)


def _overlap(predicted: np.ndarray, truth: np.ndarray, game: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each game, squares on which both say yes, and on which either does, counted twice where both do."""
    return np.bincount(game, (predicted & truth).sum(1)), np.bincount(game, predicted.sum(1) + truth.sum(1))


def save(probes: Mapping[str, BoardProbe], path: Path) -> None:
    """Write probes into one file, in half precision."""
    tensors = {
        f"{name}/{key}": value.half().contiguous()
        for name, probe in probes.items()
        for key, value in probe.state_dict().items()
    }
    with atomic_path(path) as part:
        save_file(tensors, part)


def load(path: Path) -> dict[str, BoardProbe]:
    """Read what `save` wrote."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, value in load_file(path).items():
        name, _, part = key.rpartition("/")
        states.setdefault(name, {})[part] = value.float()
    found = {}
    for name, state in states.items():
        n_hidden = len(state["hidden.weight"]) if "hidden.weight" in state else 0
        found[name] = BoardProbe(len(state["mean"]), len(state["out.bias"]) // 3, n_hidden)
        found[name].load_state_dict(state)
        found[name].eval().requires_grad_(False)
    return found
