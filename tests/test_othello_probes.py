"""Probes find what was planted, edits change what is used, and scores are what a count by hand gives."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from mi_utils import othello_editing, othello_features, othello_probes
from mi_utils.othello_editing import ADDITION, ERASE, FLIP, NOTHING, OTHER, RANDOM, TURN_BACK
from mi_utils.othello_games import believable, legal_moves, play_random, replay
from mi_utils.othello_probes import ABSOLUTE, EMPTY, MINE, RELATIVE, YOURS, positions
from mi_utils.othello_worlds import planted_player

SIZE = 4


@pytest.fixture(scope="module")
def games():
    return replay(play_random(150, SIZE, seed=1), SIZE)


@pytest.fixture(scope="module")
def tests():
    return replay(play_random(60, SIZE, seed=2), SIZE)


@pytest.fixture(scope="module")
def player():
    return planted_player(SIZE, 128)


@pytest.fixture(scope="module")
def probe(player, games):
    return fitted(player, games, RELATIVE)


def fitted(player, games, target, **options):
    rows = positions(games)
    return othello_probes.fit(rows.take(player.states(games.tokens)[0]), rows.targets[target], n_steps=200, **options)


def reached(player, probe, tests, target):
    rows = positions(tests)
    return (probe.predict(rows.take(player.states(tests.tokens)[0])) == rows.targets[target]).mean()


class TestPositions:
    def test_are_those_after_which_a_move_follows(self, games):
        rows = positions(games)
        assert len(rows.move) == (games.to_move[:, :-1] != 0).sum()
        assert rows.legal.any(1).all()

    def test_classes_by_hand(self, games):
        rows = positions(games)
        black = games.boards[rows.game[7], rows.move[7]] == 1
        assert (rows.targets[ABSOLUTE][7] == 1).tolist() == black.tolist()
        mine = MINE if games.to_move[rows.game[7], rows.move[7]] == 1 else YOURS
        assert (rows.targets[RELATIVE][7] == mine).tolist() == black.tolist()
        assert (rows.boards()[7] == 1).tolist() == (rows.targets[RELATIVE][7] == MINE).tolist()

    def test_flips_are_counted(self, games):
        rows = positions(games)
        first = rows.game == 0
        assert rows.n_flips[first][3].sum() == games.flipped[0, :4].sum()


class TestProbes:
    def test_mine_and_yours_is_linear_and_black_and_white_is_not(self, player, probe, games, tests):
        assert reached(player, probe, tests, RELATIVE) > 0.99
        assert reached(player, fitted(player, games, ABSOLUTE), tests, ABSOLUTE) < 0.95

    def test_a_hidden_layer_fits_too_and_has_no_direction(self, player, games, tests):
        hidden = fitted(player, games, RELATIVE, n_hidden=64)
        assert reached(player, hidden, tests, RELATIVE) > 0.95
        with pytest.raises(ValueError, match="no one direction"):
            hidden.direction(0, EMPTY, MINE)

    def test_directions_are_the_planted_ones_up_to_the_other_squares(self, player, probe):
        mine, yours = player.directions[0]
        found = probe.direction(0, MINE, YOURS)
        assert found.norm() == pytest.approx(1, abs=1e-5)
        assert found @ yours > 0 > found @ mine

    def test_survive_the_disk_in_half_precision(self, player, probe, games, tests, tmp_path):
        hidden = fitted(player, games, ABSOLUTE, n_hidden=8)
        othello_probes.save({"a b 0": probe, "hidden/x 1": hidden}, tmp_path / "p.safetensors")
        read = othello_probes.load(tmp_path / "p.safetensors")
        x = player.states(tests.tokens)[0]
        torch.testing.assert_close(read["a b 0"](x), probe(x), rtol=0.02, atol=0.05)
        torch.testing.assert_close(read["hidden/x 1"](x), hidden(x), rtol=0.02, atol=0.05)

    def test_states_and_boards_that_do_not_belong_together_are_told(self, games):
        with pytest.raises(ValueError, match="3 states and 5 boards"):
            othello_probes.fit(torch.zeros(3, 4), np.zeros((5, 16), dtype=np.int64))

    def test_the_majority_by_hand(self, games):
        rows = positions(games)
        said = othello_probes.majority(rows, rows)
        at_first = rows.move == 0
        for square in range(16):
            counts = np.bincount(rows.targets[RELATIVE][at_first, square], minlength=3)
            assert (said[at_first, square] == counts.argmax()).all()

    def test_accuracy_counts_what_it_is_told_to(self):
        right = np.array([[True, False], [True, True], [False, False]])
        game, where = np.array([0, 0, 1]), np.array([[True, True], [True, False], [True, True]])
        assert othello_probes.accuracy(right, game)["value"] == pytest.approx(3 / 6)
        found = othello_probes.accuracy(right, game, where)
        assert found["value"] == pytest.approx(2 / 5)
        assert found["low"] <= found["value"] <= found["high"]
        table = othello_probes.accuracy_by(right, game, np.array([[0, 1]] * 3), least_games=2)
        assert table.value.tolist() == pytest.approx([2 / 3, 1 / 3])

    def test_f1_by_hand(self):
        predicted, truth = np.array([[True, True], [False, False]]), np.array([[True, False], [False, True]])
        assert othello_probes.f1(predicted, truth, np.array([0, 1]))["value"] == pytest.approx(0.5)
        assert othello_probes.f1_of_games(predicted, truth, np.array([0, 1])).tolist() == pytest.approx([2 / 3, 0])


class TestCases:
    @pytest.mark.parametrize("kind", [FLIP, ERASE, TURN_BACK])
    def test_change_one_disc_and_the_moves_and_could_be_real(self, tests, kind):
        cases = othello_editing.find_cases(tests, 20, kind, first=2, last=-3)
        rows = np.arange(20)
        before = cases.classes.copy()
        before[rows, cases.square] = cases.now
        boards = np.array([0, 1, -1], dtype=np.int8)
        assert (legal_moves(boards[before], SIZE) == cases.legal_before).all()
        assert (legal_moves(boards[cases.classes], SIZE) == cases.legal).all()
        assert (cases.legal != cases.legal_before).any(1).all()
        assert believable(boards[cases.classes], SIZE).all()
        assert (cases.now != EMPTY).all()
        assert (cases.wanted == (EMPTY if kind == ERASE else np.where(cases.now == MINE, YOURS, MINE))).all()
        if kind == TURN_BACK:
            games = replay(cases.tokens, SIZE)
            assert games.flipped[rows, cases.move, cases.square].all()

    def test_too_few_and_unknown_kinds_are_told(self, tests):
        with pytest.raises(ValueError, match="play more games"):
            othello_editing.find_cases(tests, 10_000, FLIP)
        with pytest.raises(ValueError, match="unknown kind of edit 'swap'"):
            othello_editing.find_cases(tests, 1, "swap")

    def test_errors_by_hand(self):
        logits = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
        legal = np.array([[True, False, True, False], [False, False, False, True]])
        assert othello_editing.errors(logits, legal).tolist() == [2, 2]
        assert othello_editing.errors(logits, np.array([[True, True, False, False]] * 2)).tolist() == [0, 0]
        with pytest.raises(ValueError, match="no legal square"):
            othello_editing.errors(logits, np.zeros((2, 4), dtype=bool))

    def test_of_another_board_are_refused(self, tests):
        cases = othello_editing.find_cases(tests, 2, FLIP, first=2, last=-3)
        with pytest.raises(ValueError, match="the player knows 6 × 6"):
            othello_editing.score(planted_player(6), cases)


class TestEdits:
    @pytest.fixture(scope="class")
    def cases(self, tests):
        return othello_editing.find_cases(tests, 30, FLIP, first=2, last=-3)

    def errors(self, player, probe, games, cases):
        length = othello_editing.typical_lengths(player, games, [0])[0]
        arms = othello_editing.arms({0: probe}, cases, {0: 0.4 * length})
        return {arm: othello_editing.score(player, cases, edits).mean() for arm, edits in arms.items()}

    def test_work_on_a_board_that_is_used_and_their_controls_do_not(self, player, probe, games, cases):
        found = self.errors(player, probe, games, cases)
        assert found[ADDITION] < 0.3 < 1 < found[NOTHING]
        assert found[RANDOM] > 1
        assert found[OTHER] > 1

    def test_do_nothing_to_a_board_that_is_not_used(self, player, probe, games, cases):
        found = self.errors(replace(player, is_used=False), probe, games, cases)
        assert len(set(found.values())) == 1

    def test_gradient_edits_work_without_a_direction(self, player, games, cases):
        hidden = fitted(player, games, RELATIVE, n_hidden=64)
        length = othello_editing.typical_lengths(player, games, [0])[0]
        edits = othello_editing.descending({0: hidden}, cases, {0: 0.6 * length})
        assert othello_editing.score(player, cases, edits).mean() < 0.6
        state = player.states(cases.tokens)[0]
        moved = (edits[0](state) - state).norm(dim=-1)
        rows = torch.arange(len(cases)), torch.from_numpy(cases.move)
        assert moved[rows].max() <= 0.6 * length * 1.001
        assert torch.count_nonzero(moved) == len(cases)

    def test_controls_are_as_long_and_aim_elsewhere(self, probe, cases):
        vectors = othello_editing.pushes({0: probe}, cases, {0: 2.0})
        random = othello_editing.random_pushes(vectors)
        torch.testing.assert_close(vectors[0].norm(dim=-1), torch.full((30,), 2.0))
        torch.testing.assert_close(random[0].norm(dim=-1), torch.full((30,), 2.0))
        other = othello_editing.elsewhere(cases)
        assert (other.square != cases.square).all()
        assert (other.classes == cases.classes).all()

    def test_additions_touch_each_case_at_its_own_position(self, cases):
        edit = othello_editing.adding({0: torch.ones(30, 5)}, cases)[0]
        changed = edit(torch.zeros(30, 11, 5)).any(-1)
        assert changed.sum(1).tolist() == [1] * 30
        assert changed.float().argmax(1).tolist() == cases.move.tolist()

    def test_a_planted_player_has_one_layer(self, player, tests):
        with pytest.raises(ValueError, match="layer 0 only"):
            player.states(tests.tokens, [0, 1])
        with pytest.raises(ValueError, match="need as many dimensions"):
            planted_player(SIZE, 10)


class TestFeatures:
    def test_perfect_detectors_cover_and_rebuild_everything(self, games, tests):
        truths = [othello_features.properties(positions(g))[0] for g in (games, tests)]
        acts = [torch.from_numpy(truth).float() for truth in truths]
        assert othello_features.coverage(acts[0], truths[0], acts[1], truths[1]) == pytest.approx(1)
        rebuilt = othello_features.board_reconstruction(acts[0], truths[0], acts[1], truths[1])
        assert rebuilt.mean() > 0.97  # a property on fewer than 50 positions is not trusted

    def test_names_say_what_the_columns_are(self, games):
        rows = positions(games)
        truth, names = othello_features.properties(rows)
        assert len(names) == truth.shape[1] == 3 * 16 - 4
        assert (truth[:, names.index("a1 mine")] == (rows.targets[RELATIVE][:, 0] == MINE)).all()
        assert "b2 empty" not in names

    def test_coverage_by_hand(self):
        truth = np.array([[True], [True], [False], [False]])
        acts = torch.tensor([[1.0, 0.2], [0.9, 0.0], [0.5, 0.0], [0.0, 0.0]])
        assert othello_features.coverage(acts, truth, acts, truth) == pytest.approx(1)  # the first one above 0.5
        other = torch.tensor([[1.0, 0.0], [0.4, 0.0], [0.8, 0.0], [0.0, 0.0]])
        assert othello_features.coverage(acts, truth, other, truth) == pytest.approx(0.5)

    def test_a_planted_rule_is_found_and_another_games_board_does_not_tell_it(self, games):
        rows = positions(games)
        truth, names = othello_features.properties(rows)
        acts = torch.from_numpy(2.0 * (truth[:, names.index("a1 mine")] & truth[:, names.index("d4 empty")])).float()
        found = othello_features.rule(3, acts, rows, rows.game < 100, depth=2)
        assert found.r2 > 0.95
        assert found.shuffled_r2 < 0.5
        assert "a1 mine: yes" in found.text
        assert (othello_features.fires(found, rows) == (acts.numpy() > 1)).mean() > 0.95

    def test_a_game_on_both_sides_is_told(self, games):
        rows = positions(games)
        with pytest.raises(ValueError, match="split by game"):
            othello_features.rule(0, torch.zeros(len(rows.move)), rows, np.arange(len(rows.move)) % 2 == 0)

    def test_holding_a_neuron_that_is_not_read_changes_nothing(self, tests, tmp_path):
        from test_othello_model import tiny_folder

        from mi_utils import othello_model

        player = othello_model.load(tiny_folder(tmp_path))
        plain = player.model.original_model
        effects = othello_features.ablation_effects(player, tests, 0, [0, 1])
        assert (effects.mean(1) > 0).all()
        with torch.no_grad():
            dict(plain.named_parameters())[_out_weight(plain)][0] = 0
        silent = othello_features.ablation_effects(player, tests, 0, [0, 1])
        assert silent[0].abs().max() < 1e-6 < silent[1].max()

    def test_random_dictionaries_are_as_active_as_asked(self):
        x = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
        random = othello_features.random_dictionary(x, 64, 5.0)
        active = (random.encode(x) > 0).sum(1).float().mean()
        assert active == pytest.approx(5, rel=0.02)
        torch.testing.assert_close(random.W_dec.norm(dim=1), torch.ones(64))


def _out_weight(plain):
    return next(name for name, _ in plain.named_parameters() if ".h.0." in name and "mlp" in name and "c_proj" in name)
