"""The rules against a naive player without bits, against published counts, and against a packaged engine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_utils import othello_games
from mi_utils.othello_games import (
    BLACK,
    WHITE,
    believable,
    check_board,
    legal_moves,
    middle,
    n_moves,
    play_random,
    playable,
    replay,
    square_name,
    tokens_of,
)


class Naive:
    """Othello on a dictionary of discs, one step at a time."""

    def __init__(self, size):
        self.size, half = size, size // 2
        self.discs = {(half - 1, half): 1, (half, half - 1): 1, (half - 1, half - 1): -1, (half, half): -1}
        self.mover = 1

    def turned(self, place, mover):
        found = []
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                line, (row, column) = [], place
                while (down, right) != (0, 0):
                    row, column = row + down, column + right
                    if self.discs.get((row, column), 0) != -mover:
                        found += line if self.discs.get((row, column)) == mover else []
                        break
                    line.append((row, column))
        return found

    def legal(self, mover):
        every = [(row, column) for row in range(self.size) for column in range(self.size)]
        return {place for place in every if place not in self.discs and self.turned(place, mover)}

    def play(self, place):
        turned = self.turned(place, self.mover)
        assert place not in self.discs
        assert turned
        self.discs |= dict.fromkeys([place, *turned], self.mover)
        self.mover = -self.mover if self.legal(-self.mover) else self.mover if self.legal(self.mover) else 0
        return set(turned)

    def number(self, places):
        return {row * self.size + column for row, column in places}


@pytest.mark.parametrize("size", othello_games.SIZES)
@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_random_games_and_their_replay_agree_with_the_naive_player(size, seed):
    tokens = play_random(3, size, seed)
    games = replay(tokens, size)
    for game in range(3):
        naive = Naive(size)
        for move, token in enumerate(tokens[game]):
            if token == 0:
                assert naive.mover == 0
                assert games.to_move[game, move] == 0
                continue
            place = divmod(int(playable(size)[token - 1]), size)
            turned = naive.play(place)
            assert set(np.flatnonzero(games.flipped[game, move])) == naive.number(turned)
            assert games.to_move[game, move] == naive.mover
            board = games.boards[game, move]
            assert {divmod(int(square), size): int(board[square]) for square in board.nonzero()[0]} == naive.discs
            allowed = naive.legal(naive.mover) if naive.mover else set()
            assert set(np.flatnonzero(games.legal[game, move])) == naive.number(allowed)
        assert naive.mover == 0


@pytest.mark.parametrize(("depth", "count"), [(1, 4), (2, 12), (3, 56), (4, 244), (5, 1396)])
def test_as_many_games_as_published_on_eight_squares(depth, count):
    games = np.array([[token] for token in (1 + playable(8).searchsorted([19, 26, 37, 44]))])
    for _ in range(depth - 1):
        found = replay(games, 8)
        rows, squares = np.nonzero(found.legal[:, -1])
        games = np.column_stack([games[rows], 1 + playable(8).searchsorted(squares)])
    assert len(games) == count


def test_a_packaged_engine_plays_by_the_same_rules():
    engine = pytest.importorskip("rust_reversi")
    tokens = play_random(50, 8, seed=3)
    games = replay(tokens, 8)
    for game in range(50):
        board = engine.Board()
        for move, token in enumerate(tokens[game][tokens[game] > 0]):
            if board.is_pass():
                board.do_pass()
            board.do_move(int(playable(8)[token - 1]))
            if not board.is_game_over():
                if board.is_pass():
                    board.do_pass()
                assert sorted(board.get_legal_moves_vec()) == np.flatnonzero(games.legal[game, move]).tolist()


def test_the_first_move_of_a_game_by_hand():
    games = replay(tokens_of(["d3"], 8), 8)
    board = games.boards[0, 0]
    discs = {square_name(int(square), 8): int(board[square]) for square in board.nonzero()[0]}
    assert discs == {"d3": BLACK, "d4": BLACK, "e4": BLACK, "d5": BLACK, "e5": WHITE}
    assert games.to_move[0, 0] == WHITE
    assert {square_name(int(s), 8) for s in np.flatnonzero(games.legal[0, 0])} == {"c3", "e3", "c5"}
    assert [square_name(int(s), 8) for s in np.flatnonzero(games.flipped[0, 0])] == ["d4"]
    assert (games.relative()[0, 0] == -games.boards[0, 0]).all()


def test_moves_are_drawn_evenly_from_the_legal_ones_and_fixed_by_the_seed():
    first = play_random(4000, 6, seed=1)[:, 0]
    counts = np.unique_counts(first)
    assert len(counts.values) == 4
    assert (abs(counts.counts / 4000 - 0.25) < 0.03).all()
    assert (play_random(5, 6, seed=1) == play_random(5, 6, seed=1)).all()
    assert (play_random(50, 6, seed=1) != play_random(50, 6, seed=2)).any()


def test_games_begin_with_the_opening_that_was_asked_for():
    opening = tokens_of(["d3", "c3"], 8)[0]
    games = play_random(20, 8, seed=1, opening=opening)
    assert (games[:, :2] == opening).all()
    assert len(np.unique(games[:, 2])) > 1
    replay(games, 8)
    with pytest.raises(ValueError, match="move 1: a1 is illegal"):
        play_random(1, 8, opening=tokens_of(["a1"], 8)[0])


def test_illegal_moves_are_named_with_what_is_legal():
    with pytest.raises(ValueError, match="game 0, move 2: h8 is illegal; legal are c3, e3, c5"):
        replay(tokens_of(["d3", "h8"], 8), 8)
    with pytest.raises(ValueError, match="move 2 is padding, but moves follow"):
        replay(np.array([[*tokens_of(["d3"], 8)[0], 0, 5]]), 8)
    with pytest.raises(ValueError, match="'d4' cannot be played"):
        tokens_of(["d4"], 8)


def test_a_move_after_the_end_is_illegal():
    finished = next(game for seed in range(50) for game in play_random(50, 4, seed) if game[-1] == 0)
    left = np.setdiff1d(np.arange(1, 13), finished)
    finished[np.argmin(finished)] = left[0]
    with pytest.raises(ValueError, match="the game is over"):
        replay(finished[None], 4)


def test_wrong_sizes_are_told():
    with pytest.raises(ValueError, match=r"5 × 5 squares is not supported; choose one of \(4, 6, 8\)"):
        play_random(1, 5)
    with pytest.raises(ValueError, match="games of 60 moves do not fit on 6 × 6"):
        replay(play_random(1, 8), 6)
    with pytest.raises(ValueError, match="tokens run from"):
        replay(np.array([[40]]), 6)
    with pytest.raises(ValueError, match="boards have 36 squares; expected 8 × 8"):
        legal_moves(np.zeros((1, 36), dtype=np.int8), 8)
    with pytest.raises(ValueError, match="expected -1, 0 and 1"):
        legal_moves(np.full((1, 36), 2, dtype=np.int8), 6)


class TestBelievable:
    def board(self, *more):
        board = np.zeros(36, dtype=np.int8)
        board[list(middle(6))] = [1, -1, -1, 1]
        board[list(more)] = 1
        return board

    def test_every_board_of_a_game_is(self):
        boards = replay(play_random(20, 6), 6).boards.reshape(-1, 36)
        assert believable(boards, 6).all()

    def test_an_empty_middle_is_not(self):
        board = self.board(8)
        board[middle(6)[0]] = 0
        with pytest.raises(ValueError, match="the middle square c3 is empty"):
            check_board(board, 6)

    def test_discs_apart_from_the_others_are_not(self):
        with pytest.raises(ValueError, match="do not hang together"):
            check_board(self.board(0), 6)
        check_board(self.board(0, 7), 6)

    def test_the_start_is_not(self):
        with pytest.raises(ValueError, match="no move was made"):
            check_board(self.board(), 6)

    def test_a_board_of_another_size_is_told(self):
        with pytest.raises(ValueError, match="expected 8 × 8"):
            check_board(self.board(8), 8)


def test_a_full_game_has_a_move_for_each_square_but_four():
    assert [n_moves(size) for size in othello_games.SIZES] == [12, 32, 60]
    assert playable(8)[[0, 26, 27, 59]].tolist() == [0, 26, 29, 63]
