"""The board on a planted player: what clicks do, what is refused, and what the picture says."""

import numpy as np
import pytest

from mi_utils import othello_board, othello_editing, othello_probes
from mi_utils.markup import to_html
from mi_utils.othello_board import _Board
from mi_utils.othello_games import middle, play_random, replay
from mi_utils.othello_worlds import planted_player

SIZE = 4


@pytest.fixture(scope="module")
def parts():
    player = planted_player(SIZE, 40)
    games = replay(play_random(150, SIZE, seed=1), SIZE)
    rows = othello_probes.positions(games)
    x = rows.take(player.states(games.tokens)[0])
    probe = othello_probes.fit(x, rows.targets[othello_probes.RELATIVE], n_steps=200)
    return player, {0: probe}, othello_editing.typical_lengths(player, games, [0])


@pytest.fixture
def board(parts):
    return _Board(*parts, 0.3, (0, 0), 5, 0)


def disc(board):
    """A disc that can be turned and taken away."""
    for square in np.flatnonzero(board.truth()):
        if square not in middle(SIZE):
            try:
                board.change(int(square))
                board.change(int(square))
            except ValueError:
                board.restore()
                continue
            board.restore()
            return int(square)
    raise AssertionError


def test_a_click_turns_a_disc_another_takes_it_away_a_third_restores(board):
    square = disc(board)
    first = to_html(board.view.tree)
    was = int(board.truth()[square])
    for wanted in ({square: 3 - was}, {square: 0}, {}):
        board.view.clicked = {"row": f"change {square}", "n": len(wanted)}
        assert board.changed == wanted
        board.view.clicked = {"row": ""}
    assert to_html(board.view.tree) == first


def test_the_moves_follow_the_belief(board):
    square = disc(board)
    assert "Wrong squares: 0." in to_html(board.view.tree)
    board.change(square)
    assert "Wrong squares: 0 on that board" in to_html(board.view.tree)
    assert "mi-changed" in to_html(board.view.tree)
    board.dose.value = 0.0
    assert "Wrong squares: 0 on that board" not in to_html(board.view.tree) or not board.edits(board.truth())


def test_a_legal_square_is_played_and_an_illegal_one_refused(board):
    games = replay(board.game[None, : board.n_played], SIZE)
    square = int(np.flatnonzero(games.legal[0, -1])[0])
    board.clicked({"row": f"play {square}"})
    assert board.n_played == 6
    assert (replay(board.game[None], SIZE).tokens == board.game).all()
    with pytest.raises(ValueError, match="is illegal; legal are"):
        board.play(square)


def test_changes_that_no_game_leads_to_are_refused(board):
    with pytest.raises(ValueError, match="there is no disc"):
        board.change(int(np.flatnonzero(board.truth() == 0)[0]))
    board.change(middle(SIZE)[0])
    with pytest.raises(ValueError, match="no game leads to this board: the middle square b2 is empty"):
        board.change(middle(SIZE)[0])
    assert list(board.changed.values()) != [0]


def test_one_can_go_back_on_and_begin_anew(board):
    game = board.game.copy()
    board.back.click()
    assert board.n_played == 4
    board.forward.click()
    assert board.n_played == 5
    board.change(disc(board))
    board.reset.click()
    assert board.changed == {}
    board.new.click()
    assert (board.game != game).any()
    for _ in range(20):
        board.back.click()
    assert board.n_played == 1
    for _ in range(20):
        board.forward.click()
    assert board.n_played <= 11


def test_the_static_twin_shows_three_boards_and_one_for_each_layer(board):
    html = board.stack.static_html()
    assert html.count("<table") == 4
    assert "to move" in html
    assert "<script" not in html


def test_every_tile_can_be_reached_by_name(board):
    html = to_html(board.view.tree)
    assert html.count('data-row="change ') == SIZE**2
    assert 'aria-label="b2: ' in html


def test_missing_probes_and_layers_are_told(parts):
    player, probes, lengths = parts
    with pytest.raises(ValueError, match=r"expected a probe and a length for each of the layers \[0\]"):
        othello_board.othello_board(player, {}, lengths)
    with pytest.raises(ValueError, match="are not first and last"):
        othello_board.othello_board(player, probes, lengths, layers=(0, 3))
