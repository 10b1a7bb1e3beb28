"""Othello on boards of 4, 6 or 8 squares a side: rules, random games and replays, thousands of games at once.

A board is one 64-bit number per colour, bit `row * size + column`, so that a rule is a handful of shifts on an array
of games. Black begins; who cannot move passes, and a pass leaves no mark in the record, as in the papers.

A game is written in tokens: 0 is padding after the end, 1 and up are the squares in reading order without the four
in the middle, which nobody can play. That is the vocabulary of the published Othello-GPT.

Paper: Li et al. 2023, "Emergent World Representations", arXiv:2210.13382. Taught in `11_othello`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Int, Int8, UInt64
from numpy.typing import NDArray
from scipy.ndimage import label

SIZES = (4, 6, 8)
PAD = 0
BLACK, WHITE = 1, -1

U = np.uint64
Bits = UInt64[np.ndarray, " game"]


@dataclass(frozen=True)
class Replay:
    """Games with the board after each move. Squares are numbered in reading order."""

    size: int
    tokens: Int[np.ndarray, "game move"]
    boards: Int8[np.ndarray, "game move square"]
    """After the move: 1 black, -1 white, 0 empty."""
    to_move: Int8[np.ndarray, "game move"]
    """Who moves next: 1 black, -1 white, 0 once the game is over."""
    legal: Bool[np.ndarray, "game move square"]
    """Where the next move may go."""
    flipped: Bool[np.ndarray, "game move square"]
    """Which discs the move turned."""

    def relative(self) -> Int8[np.ndarray, "game move square"]:
        """Boards as the side to move sees them: 1 mine, -1 yours, 0 empty. All 0 once the game is over."""
        return self.boards * self.to_move[..., None]

    def open(self) -> Bool[np.ndarray, "game move"]:
        """After which moves the game goes on, so that there is a next move to predict."""
        return self.to_move != 0


def play_random(
    n_games: int, size: int = 8, seed: int = 0, *, opening: Int[np.ndarray, " move"] | None = None
) -> Int[np.ndarray, "game all_moves"]:
    """Games in which each move is drawn evenly from the legal ones, as tokens, padded with 0.

    Args:
        opening: moves, as tokens, with which all games begin.
    Raises:
        ValueError: a size that is not 4, 6 or 8, or an illegal opening.
    """
    rng = np.random.default_rng(seed)
    opening = np.empty(0, dtype=np.int64) if opening is None else opening
    if len(opening):
        replay(opening[None], size)
    tokens = np.full((n_games, n_moves(size)), PAD, dtype=np.int64)
    tokens[:, : len(opening)] = opening
    mine, yours = _start(n_games, size)
    for move in range(n_moves(size)):
        mine, yours, legal, _ = _pass_if_stuck(mine, yours, size)
        if move >= len(opening):
            tokens[:, move] = _token_of_bit(_random_bit(legal, rng), size)
        placed = _bit_of_token(tokens[:, move], size)
        flips = _flips(mine, yours, placed, size)
        mine, yours = yours & ~flips, mine | flips | placed
    return tokens


def replay(tokens: Int[np.ndarray, "game move"], size: int = 8) -> Replay:
    """The boards, legal moves and turned discs behind games given as tokens.

    Raises:
        ValueError: a wrong size, a token out of range, or an illegal move: says which game, which move, what is legal.
    """
    _check_tokens(tokens, size)
    mine, yours = _start(len(tokens), size)
    mover = np.full(len(tokens), BLACK, dtype=np.int8)
    boards, to_move, all_legal, flipped = [], [], [], []
    mine, yours, legal, _ = _pass_if_stuck(mine, yours, size)
    for move in range(tokens.shape[1]):
        placed = _bit_of_token(tokens[:, move], size)
        _check_moves(tokens, move, placed, legal, size)
        flips = _flips(mine, yours, placed, size)
        mine, yours = np.where(placed, yours & ~flips, mine), np.where(placed, mine | flips | placed, yours)
        mover = np.where(placed, -mover, mover)
        mine, yours, legal, passed = _pass_if_stuck(mine, yours, size)
        mover = np.where(passed, -mover, mover)
        boards.append((_spread(mine, size).astype(np.int8) - _spread(yours, size)) * mover[:, None])
        to_move.append(np.where(legal, mover, np.int8(0)))
        all_legal.append(_spread(legal, size))
        flipped.append(_spread(flips, size))
    stacked = [np.stack(parts, axis=1) for parts in (boards, to_move, all_legal, flipped)]
    return Replay(size, tokens, *stacked)


def legal_moves(relative: Int8[np.ndarray, "board square"], size: int) -> Bool[np.ndarray, "board square"]:
    """Where the side to move may go on boards it sees as 1 mine, -1 yours, 0 empty. No row is passed over.

    Raises:
        ValueError: boards of another size.
    """
    _check_boards(relative, size)
    return _spread(_legal(_gather(relative == 1), _gather(relative == -1), size), size)


def believable(boards: Int8[np.ndarray, "board square"], size: int) -> Bool[np.ndarray, " board"]:
    """Whether a board passes every test that a board from a real game must pass.

    The four middle squares hold discs, all discs hang together (diagonals count), and there are at least five. A
    board that fails was never reached; one that passes may still be out of reach.

    Raises:
        ValueError: boards of another size.
    """
    _check_boards(boards, size)
    return np.array([_problem(board, size) is None for board in boards], dtype=bool)


def check_board(board: Int8[np.ndarray, " square"], size: int) -> None:
    """Refuse a board that no game can lead to.

    Raises:
        ValueError: another size, an empty middle square, or discs that do not hang together.
    """
    _check_boards(board[None], size)
    if problem := _problem(board, size):
        raise ValueError(
            f"no game leads to this board: {problem}. Edit a board that a game reached, one tile at a time"
        )


def n_moves(size: int) -> int:
    """Moves of a full game: one for each square but the four in the middle.

    Raises:
        ValueError: a size that is not 4, 6 or 8.
    """
    if size not in SIZES:
        raise ValueError(f"a board of {size} × {size} squares is not supported; choose one of {SIZES}")
    return size * size - 4


@cache
def middle(size: int) -> tuple[int, ...]:
    """The four squares that are taken from the start."""
    half = size // 2
    return tuple(row * size + column for row in (half - 1, half) for column in (half - 1, half))


@cache
def playable(size: int) -> NDArray[np.int64]:
    """The square that each token stands for, beginning with token 1."""
    return np.array([square for square in range(n_moves(size) + 4) if square not in middle(size)])


def square_name(square: int, size: int) -> str:
    """The players' name of a square: column letter, then row from the top.

    >>> square_name(19, 8)
    'd3'
    """
    return f"{'abcdefgh'[square % size]}{square // size + 1}"


def tokens_of(moves: Sequence[str], size: int) -> Int[np.ndarray, "1 move"]:
    """One game from the players' names of its squares, such as `["d3", "c5"]`.

    Raises:
        ValueError: a name that is no playable square of this board.
    """
    names = {square_name(int(square), size): token for token, square in enumerate(playable(size), start=1)}
    if unknown := [move for move in moves if move not in names]:
        raise ValueError(f"{unknown[0]!r} cannot be played on {size} × {size}; expected one of {', '.join(names)}")
    return np.array([[names[move] for move in moves]], dtype=np.int64)


# --- bitboards ---


@cache
def _directions(size: int) -> tuple[tuple[int, np.uint64], ...]:
    """Eight shifts, each with the squares that it may land on without running over an edge."""
    every = range(size * size)
    full = sum(1 << square for square in every)
    not_left = sum(1 << square for square in every if square % size != 0)
    not_right = sum(1 << square for square in every if square % size != size - 1)
    masks = [not_left, not_right, full, full, not_left, not_right, not_right, not_left]
    shifts = [1, -1, size, -size, size + 1, -size - 1, size - 1, 1 - size]
    return tuple((shift, U(mask)) for shift, mask in zip(shifts, masks, strict=True))


def _shift(bits: Bits, shift: int, mask: np.uint64) -> Bits:
    return ((bits << U(shift)) if shift > 0 else (bits >> U(-shift))) & mask


def _runs(start: Bits, through: Bits, size: int) -> Iterator[tuple[Bits, Bits]]:
    """In each direction, the unbroken run of `through` that begins beside `start`, and the square after it."""
    for shift, mask in _directions(size):
        run = _shift(start, shift, mask) & through
        for _ in range(size - 3):
            run |= _shift(run, shift, mask) & through
        yield run, _shift(run, shift, mask)


def _legal(mine: Bits, yours: Bits, size: int) -> Bits:
    ends = np.zeros_like(mine)
    for _, after in _runs(mine, yours, size):
        ends |= after
    return ends & ~(mine | yours)


def _flips(mine: Bits, yours: Bits, placed: Bits, size: int) -> Bits:
    flips = np.zeros_like(mine)
    for run, after in _runs(placed, yours, size):
        flips |= np.where(after & mine, run, U(0))
    return flips


def _pass_if_stuck(mine: Bits, yours: Bits, size: int) -> tuple[Bits, Bits, Bits, Bool[np.ndarray, " game"]]:
    """Both sides, legal moves and who passed: sides change where only the other can move. Legal is 0 at the end."""
    legal, legal_after_pass = _legal(mine, yours, size), _legal(yours, mine, size)
    passes = (legal == 0) & (legal_after_pass != 0)
    return (
        np.where(passes, yours, mine),
        np.where(passes, mine, yours),
        np.where(passes, legal_after_pass, legal),
        passes,
    )


def _start(n_games: int, size: int) -> tuple[Bits, Bits]:
    """Black to move, with discs at the upper right and lower left of the middle."""
    n_moves(size)
    upper_left, upper_right, lower_left, lower_right = middle(size)
    black, white = (1 << upper_right) | (1 << lower_left), (1 << upper_left) | (1 << lower_right)
    return np.full(n_games, black, dtype=U), np.full(n_games, white, dtype=U)


def _random_bit(bits: Bits, rng: np.random.Generator) -> Bits:
    """One set bit of each number, all equally likely: drop the lowest a random number of times."""
    left = bits.copy()
    to_drop = (rng.random(len(bits)) * np.bitwise_count(bits)).astype(np.int64)
    for dropped in range(to_drop.max(initial=0)):
        left = np.where(to_drop > dropped, left & (left - U(1)), left)
    return left & (~left + U(1))


def _token_of_bit(bit: Bits, size: int) -> Int[np.ndarray, " game"]:
    square = np.bitwise_count(bit - U(1)).astype(np.int64)  # the zeros below the bit
    return np.where(bit, np.searchsorted(playable(size), square) + 1, PAD)


def _bit_of_token(tokens: Int[np.ndarray, " game"], size: int) -> Bits:
    bits = np.concatenate([[U(0)], U(1) << playable(size).astype(U)])
    return bits[tokens]


def _spread(bits: Bits, size: int) -> Bool[np.ndarray, "game square"]:
    return (bits[:, None] >> np.arange(size * size, dtype=U) & U(1)).astype(bool)


def _gather(squares: Bool[np.ndarray, "board square"]) -> Bits:
    return (squares.astype(U) << np.arange(squares.shape[1], dtype=U)).sum(1, dtype=U)


# --- what is refused ---


def _check_tokens(tokens: Int[np.ndarray, "game move"], size: int) -> None:
    if not 0 < tokens.shape[1] <= n_moves(size):
        raise ValueError(
            f"games of {tokens.shape[1]} moves do not fit on {size} × {size} squares, which have 1 to {n_moves(size)}; "
            "pass the size the games were played on"
        )
    if tokens.size and not (tokens.min() >= 0 and tokens.max() <= n_moves(size)):
        raise ValueError(
            f"tokens run from {tokens.min()} to {tokens.max()}; on {size} × {size} squares expected 0 (padding) to "
            f"{n_moves(size)}"
        )


def _check_moves(tokens: NDArray[np.int64], move: int, placed: Bits, legal: Bits, size: int) -> None:
    is_wrong = (placed & ~legal) != 0
    skipped = (placed == 0) & (legal != 0) & (tokens[:, move:] != PAD).any(1)
    if is_wrong.any():
        game = int(is_wrong.argmax())
        square, allowed = _names(placed[game], size)[0], ", ".join(_names(legal[game], size))
        raise ValueError(
            f"game {game}, move {move + 1}: {square} is illegal; "
            f"{f'legal are {allowed}' if allowed else 'the game is over'}"
        )
    if skipped.any():
        raise ValueError(f"game {int(skipped.argmax())}, move {move + 1} is padding, but moves follow; pad at the end")


def _names(bits: np.uint64, size: int) -> list[str]:
    return [square_name(square, size) for square in range(size * size) if int(bits) >> square & 1]


def _check_boards(boards: Int8[np.ndarray, "board square"], size: int) -> None:
    if boards.shape[1] != n_moves(size) + 4:
        raise ValueError(f"boards have {boards.shape[1]} squares; expected {size} × {size} = {size * size}")
    if not np.isin(boards, (-1, 0, 1)).all():
        raise ValueError(f"boards hold values {np.unique(boards)}; expected -1, 0 and 1")


def _problem(board: Int8[np.ndarray, " square"], size: int) -> str | None:
    taken = board != 0
    if empty := [square_name(square, size) for square in middle(size) if not taken[square]]:
        return f"the middle square {empty[0]} is empty, and discs never leave the board"
    if taken.sum() < 5:
        return "it has no more than the four first discs, and no move was made"
    if label(taken.reshape(size, size), structure=np.ones((3, 3)))[1] > 1:
        return "its discs do not hang together, and every disc was put next to another"
    return None
