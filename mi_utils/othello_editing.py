"""Change what a player believes about one tile, and score its moves against the board it should now believe in.

A case is a position from a game and one tile to flip or to erase, such that the changed board passes every test that a
real board must pass, and that its legal moves are some, and others than before. A player is scored on as many of its
likeliest squares as the changed board has legal moves: squares that should not be among them plus squares that are
missing. Doing nothing has such an error too, and so do a random push of the same length and a push meant for
another tile.

Papers: Li et al. 2023, arXiv:2210.13382 (gradient edits); Nanda et al. 2023, arXiv:2309.00941 (additions). The first
adds after every layer; the released script of the second adds to the attention's output of some. Here it is the
residual stream after the given layers, at the one position. Taught in `11_othello`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_utils.hooks import Edit
from mi_utils.othello_games import Replay, believable, legal_moves
from mi_utils.othello_model import Player, check_size
from mi_utils.othello_probes import EMPTY, MINE, RELATIVE, YOURS, BoardProbe, Positions, positions

FLIP, ERASE, TURN_BACK = "flip", "erase", "turn back"
KINDS = (FLIP, ERASE, TURN_BACK)
GRADIENT_STEPS = 20
NOTHING, RANDOM, OTHER, ADDITION = "nothing", "random direction", "another tile's direction", "addition"


@dataclass(frozen=True)
class Cases:
    """Positions with one tile to change each."""

    size: int
    tokens: Int[np.ndarray, "case move"]
    move: Int[np.ndarray, " case"]
    """The position in the game at which the change is made."""
    square: Int[np.ndarray, " case"]
    now: Int[np.ndarray, " case"]
    """The tile's class before: mine or yours."""
    wanted: Int[np.ndarray, " case"]
    classes: Int[np.ndarray, "case square"]
    """All classes of the changed board."""
    legal_before: Bool[np.ndarray, "case square"]
    legal: Bool[np.ndarray, "case square"]
    """Where the side to move may go on the changed board."""

    def __len__(self) -> int:
        return len(self.move)

    def take(self, chosen: slice | Int[np.ndarray, " chosen"] | Bool[np.ndarray, " case"]) -> "Cases":
        """Some of the cases."""
        parts = {name: value[chosen] for name, value in vars(self).items() if name != "size"}
        return replace(self, **parts)


def find_cases(games: Replay, n_cases: int, kind: str, *, first: int = 6, last: int = -8, seed: int = 0) -> Cases:
    """Random cases from games, one tile to a position, a uniform choice of what qualifies.

    Args:
        kind: `flip` a disc to the other colour; `erase` a disc; `turn back` a disc that the last move turned.
        first, last: moves of a full game between which positions are taken, the last counted from the end.
    Raises:
        ValueError: an unknown kind, or fewer cases than asked for in these games.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of edit {kind!r}; expected one of {', '.join(KINDS)}")
    found = positions(games)
    rng = np.random.default_rng(seed)
    eligible = (found.move >= first) & (found.move < games.tokens.shape[1] + last)
    rows = rng.permutation(np.flatnonzero(eligible))
    squares = np.array([_random_disc(found, row, kind, rng) for row in rows.tolist()], dtype=np.int64)
    rows, squares = rows[squares >= 0], squares[squares >= 0]
    cases = _cases(games, found, rows, squares, kind)
    boards = np.array([0, 1, -1], dtype=np.int8)[cases.classes]
    qualifies = cases.legal.any(1) & (cases.legal != cases.legal_before).any(1) & believable(boards, games.size)
    if qualifies.sum() < n_cases:
        raise ValueError(
            f"these games hold {qualifies.sum()} cases to {kind}, {n_cases} were asked for; play more games"
        )
    return cases.take(np.flatnonzero(qualifies)[:n_cases])


def errors(logits: Float[Tensor, "case square"], legal: Bool[np.ndarray, "case square"]) -> Int[np.ndarray, " case"]:
    """False positives plus false negatives of the N likeliest squares, where N squares are legal.

    Raises:
        ValueError: a case without legal squares.
    """
    if not legal.any(1).all():
        raise ValueError("a case has no legal square, so that nothing can be predicted; leave it out")
    order = logits.argsort(dim=-1, descending=True, stable=True).numpy()
    n_legal = legal.sum(1, keepdims=True)
    hits = np.take_along_axis(legal, order, axis=1) & (np.arange(legal.shape[1]) < n_legal)
    return 2 * (n_legal[:, 0] - hits.sum(1))


def score(player: Player, cases: Cases, edits: Mapping[int, Edit] | None = None) -> Int[np.ndarray, " case"]:
    """The error of each case under some edits; without edits, the error of doing nothing."""
    return errors(predictions(player, cases, edits), cases.legal)


def predictions(player: Player, cases: Cases, edits: Mapping[int, Edit] | None = None) -> Float[Tensor, "case square"]:
    """Logits of the next move at each case's position.

    Raises:
        ValueError: cases on another board.
    """
    check_size(player, cases.size)
    logits = player.logits(cases.tokens, edits)
    return logits[torch.arange(len(cases)), torch.from_numpy(cases.move)]


def pushes(
    probes: Mapping[int, BoardProbe], cases: Cases, lengths: Mapping[int, float]
) -> dict[int, Float[Tensor, "case d_model"]]:
    """For each layer, the vectors that move each case's tile from what it is to what it should be.

    Args:
        probes: linear ones, by layer.
        lengths: of the vectors, by layer, in units of the activation.
    """
    steps = list(zip(cases.square, cases.now, cases.wanted, strict=True))
    return {
        layer: length * torch.stack([probes[layer].direction(*map(int, step)) for step in steps])
        for layer, length in lengths.items()
    }


def arms(
    probes: Mapping[int, BoardProbe], cases: Cases, lengths: Mapping[int, float], seed: int = 0
) -> dict[str, dict[int, Edit]]:
    """An addition and the controls that it has to beat, all of one length.

    Args:
        probes: linear ones, by layer.
        lengths: of the vectors, by layer, in units of the activation.
    """
    vectors = pushes(probes, cases, lengths)
    return {
        NOTHING: {},
        RANDOM: adding(random_pushes(vectors, seed), cases),
        OTHER: adding(pushes(probes, elsewhere(cases, seed), lengths), cases),
        ADDITION: adding(vectors, cases),
    }


def random_pushes(vectors: Mapping[int, Float[Tensor, "case d_model"]], seed: int = 0) -> dict[int, Tensor]:
    """The control: random directions, one for each case at all layers, each as long as the vector it stands for."""
    shape = next(iter(vectors.values())).shape
    random = torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)
    return {layer: random * vector.norm(dim=-1, keepdim=True) for layer, vector in vectors.items()}


def elsewhere(cases: Cases, seed: int = 0) -> Cases:
    """The control: the same edits, aimed at another disc of the same colour. What they are scored on stays.

    Where there is no other such disc, any other square is taken.
    """
    rng = np.random.default_rng(seed)
    squares = []
    for square, now, classes in zip(cases.square, cases.now, cases.classes, strict=True):
        others = np.setdiff1d(np.flatnonzero(classes == now), square)
        squares.append(rng.choice(others if len(others) else np.setdiff1d(np.arange(len(classes)), square)))
    return replace(cases, square=np.array(squares))


def adding(vectors: Mapping[int, Float[Tensor, "case d_model"]], cases: Cases) -> dict[int, Edit]:
    """Edits that add a vector to each case's state, at its position only."""
    rows, columns = torch.arange(len(cases)), torch.from_numpy(cases.move)

    def edit_with(vector: Tensor) -> Edit:
        def edit(state: Float[Tensor, "case move d_model"]) -> Float[Tensor, "case move d_model"]:
            edited = state.clone()
            edited[rows, columns] += vector
            return edited

        return edit

    return {layer: edit_with(vector) for layer, vector in vectors.items()}


def descending(probes: Mapping[int, BoardProbe], cases: Cases, lengths: Mapping[int, float]) -> dict[int, Edit]:
    """Edits that go down the gradient of a probe's loss on the changed board, at each case's position.

    Args:
        probes: with or without a hidden layer, by layer.
        lengths: of the whole way, 20 equal steps, by layer, in units of the activation.
    Source: Li et al. 2023, section 4.1; here the way is no longer than an addition of the same dose.
    """
    rows, columns = torch.arange(len(cases)), torch.from_numpy(cases.move)
    target = torch.from_numpy(cases.classes).long().flatten()

    def edit_with(probe: BoardProbe, length: float) -> Edit:
        @torch.enable_grad()
        def edit(state: Float[Tensor, "case move d_model"]) -> Float[Tensor, "case move d_model"]:
            x = state[rows, columns].detach()
            for _ in range(GRADIENT_STEPS):
                x.requires_grad_(True)
                loss = torch.nn.functional.cross_entropy(probe(x).flatten(0, 1), target, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x)
                x = (x - length / GRADIENT_STEPS * torch.nn.functional.normalize(gradient, dim=-1)).detach()
            edited = state.detach().clone()
            edited[rows, columns] = x
            return edited

        return edit

    return {layer: edit_with(probes[layer], length) for layer, length in lengths.items()}


def typical_lengths(player: Player, games: Replay, layers: Sequence[int]) -> dict[int, float]:
    """The mean length of the state after each layer: what a dose of 1 is."""
    found = positions(games)
    return {layer: float(found.take(x).norm(dim=-1).mean()) for layer, x in player.states(games.tokens, layers).items()}


def _random_disc(found: Positions, row: int, kind: str, rng: np.random.Generator) -> int:
    """A disc of the wanted kind, or -1 if the position has none."""
    discs = found.turned[row] if kind == TURN_BACK else found.targets[RELATIVE][row] != EMPTY
    squares = np.flatnonzero(discs)
    return int(rng.choice(squares)) if len(squares) else -1


def _cases(games: Replay, found: Positions, rows: np.ndarray, squares: np.ndarray, kind: str) -> Cases:
    classes = found.targets[RELATIVE][rows].copy()
    at = (np.arange(len(rows)), squares)
    now = classes[at]
    wanted = np.full_like(now, EMPTY) if kind == ERASE else np.where(now == MINE, YOURS, MINE)
    classes[at] = wanted
    boards = np.array([0, 1, -1], dtype=np.int8)[classes]
    return Cases(
        games.size,
        games.tokens[found.game[rows]],
        found.move[rows],
        squares,
        now,
        wanted,
        classes,
        found.legal[rows],
        legal_moves(boards, games.size),
    )
