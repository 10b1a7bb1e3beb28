import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_utils import probes
from mi_utils.probes import (
    accuracy,
    auroc,
    control_labels,
    logistic,
    loss,
    mean_difference,
    ranked,
    sparse,
    split_groups,
)


def separated(n=200, d=6, seed=0):
    """Rows whose first feature carries the label."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, d))
    x[:, 0] += 4.0 * y
    return x, y


@given(st.lists(st.integers(0, 9), min_size=12, max_size=60).filter(lambda g: len(set(g)) > 2), st.integers(0, 99))
def test_a_group_is_never_on_both_sides(groups, seed):
    groups = np.array(groups)
    split = split_groups(groups, seed)
    parts = [set(groups[part]) for part in split]
    assert all(parts)
    assert sum(map(len, parts)) == len(set(groups))
    assert (split.train.astype(int) + split.validation + split.test == 1).all()


def test_two_groups_cannot_be_split():
    with pytest.raises(ValueError, match="at least three groups"):
        split_groups(np.array([0, 0, 1, 1]), 0)


def test_control_labels_are_one_per_group_and_balanced():
    groups = np.repeat(np.arange(10), 3)
    labels = control_labels(groups, 0)
    assert all(len(set(labels[groups == group])) == 1 for group in range(10))
    assert labels[::3].sum() == 5
    assert not np.array_equal(labels, control_labels(groups, 1))


class TestFits:
    @pytest.mark.parametrize("fit", [logistic, mean_difference], ids=lambda fit: fit.__name__)
    def test_find_what_separates(self, fit):
        x, y = separated()
        probe = fit(x[:100], y[:100], x[100:150], y[100:150])
        assert auroc(probe.scores(x[150:]), y[150:]) > 0.95
        assert np.abs(probe.weight).argmax() == 0

    @pytest.mark.parametrize("fit", [logistic, mean_difference], ids=lambda fit: fit.__name__)
    def test_are_at_chance_where_there_is_nothing(self, fit):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(1200, 6)), np.arange(1200) % 2
        probe = fit(x[:200], y[:200], x[200:400], y[200:400])
        assert abs(auroc(probe.scores(x[400:]), y[400:]) - 0.5) < 0.06

    def test_mean_difference_by_hand(self):
        x, y = np.array([[2.0, 0.0], [4.0, 0.0], [0.0, 1.0], [0.0, 3.0]]), np.array([1, 1, 0, 0])
        probe = mean_difference(x, y, x, y)
        assert probe.weight.tolist() == [3.0, -2.0]
        assert probe.bias == -2.5  # half-way between (3, 0) and (0, 2): -(3 * 1.5 - 2 * 1)
        assert accuracy(probe.scores(x), y) == 1.0

    def test_sparse_uses_the_features_that_differ_most_and_no_other(self):
        x, y = separated()
        probe = sparse(x, y, x, y, k=2)
        assert np.flatnonzero(probe.weight).tolist() == sorted(ranked(x, y)[:2])
        assert auroc(probe.scores(x), y) > 0.95

    def test_standardised_features_make_units_irrelevant(self):
        x, y = separated()
        scaled = x * np.array([1e3, 1, 1, 1, 1, 1e-3])
        one, other = (logistic(z, y, z, y).scores(z) for z in (x, scaled))
        assert np.allclose(one, other, rtol=1e-2)

    def test_the_strength_is_that_of_the_least_loss_on_validation(self):
        rng = np.random.default_rng(0)
        x, y = rng.normal(size=(60, 50)), np.arange(60) % 2
        x[:, 0] += y  # faint, among many features to overfit
        held, y_held = rng.normal(size=(2000, 50)), np.arange(2000) % 2
        held[:, 0] += y_held
        chosen = logistic(x, y, held, y_held)
        assert loss(chosen.scores(held), y_held) < np.log(2)  # what no regularisation is far above
        assert np.abs(chosen.weight).max() < 1.0

    def test_puts_rows_on_the_right_side_and_not_only_in_order(self):
        x, y = separated()
        y = np.where(np.arange(200) < 20, 1 - y, y)
        assert accuracy(logistic(x, y, x, y).scores(x), y) > 0.8

    def test_refuse_labels_that_teach_nothing(self):
        x, y = separated()
        with pytest.raises(ValueError, match="both classes"):
            logistic(x, np.zeros_like(y), x, y)


def test_ranked_by_hand():
    x = np.array([[1.0, 5.0, 0.0], [1.0, 5.0, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert ranked(x, np.array([1, 1, 0, 0])).tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("scores", "expected"), [([1, 2, 3, 4], 1.0), ([4, 3, 2, 1], 0.0), ([1, 1, 1, 1], 0.5), ([1, 3, 2, 4], 0.75)]
)
def test_auroc_by_hand(scores, expected):
    assert auroc(np.array(scores, dtype=float), np.array([0, 0, 1, 1])) == expected


def test_every_method_reads_a_view_that_is_made():
    views = {"states", "latents", "reconstruction", "words", "random model"}
    assert {view for view, _ in probes.METHODS.values()} == views


def test_loss_by_hand():
    assert loss(np.array([0.0, 0.0]), np.array([0, 1])) == pytest.approx(np.log(2))
    assert loss(np.array([100.0, -100.0]), np.array([1, 0])) == pytest.approx(0.0)
