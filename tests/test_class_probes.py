import numpy as np
import pytest

from mi_utils.class_probes import balanced_accuracy, classes, fit, leaking, split_names, token_bags
from mi_utils.probes import split_rows

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 10))


def sample(n_rows, noise=0.3):
    y = np.arange(n_rows) % 3
    return CENTRES[y] + noise * RNG.normal(size=(n_rows, 10)), y


def test_a_probe_finds_classes_that_are_there_and_none_in_shuffled_labels():
    x, y = sample(300)
    split = split_rows(300, 0)
    probe = fit(x, y, split)
    assert balanced_accuracy(probe.scores(x[split.test]), y[split.test]) > 0.95
    shuffled = RNG.permutation(y)
    assert abs(balanced_accuracy(fit(x, shuffled, split).scores(x[split.test]), shuffled[split.test]) - 1 / 3) < 0.15


def test_a_frequent_class_does_not_win_by_its_frequency():
    y = np.repeat([0, 0, 0, 0, 0, 0, 0, 0, 1, 2], 30)
    x = CENTRES[y] + 0.8 * RNG.normal(size=(300, 10))
    split = split_rows(300, 1)
    scores = fit(x, y, split).scores(x[split.test])
    assert balanced_accuracy(scores, y[split.test]) > 0.8


def test_balanced_accuracy_by_hand():
    scores = np.array([[2.0, 1.0], [2.0, 1.0], [2.0, 1.0], [1.0, 2.0]])
    assert balanced_accuracy(scores, np.array([0, 0, 0, 1])) == 1
    assert balanced_accuracy(scores[[0, 0, 0, 0]], np.array([0, 0, 0, 1])) == 0.5


def test_one_class_alone_is_refused():
    x, _ = sample(9)
    with pytest.raises(ValueError, match="two classes"):
        fit(x, np.zeros(9, dtype=int), split_rows(9, 0))


def test_no_test_name_shares_a_token_with_training():
    names = [[n % 7, 100 + n % 5, 200 + n] for n in range(60)]
    split = split_names(names, 0)
    seen = {token for name, kept in zip(names, split.train | split.validation, strict=True) if kept for token in name}
    tested = {token for name, kept in zip(names, split.test, strict=True) if kept for token in name}
    assert split.test.any()
    assert not seen & tested


def test_leaking_names_by_hand():
    assert leaking([[1, 2], [2, 3], [4]], np.array([True, False, True])).tolist() == [True, False, False]


def test_bags_and_classes_by_hand():
    assert token_bags([[5, 9], [9, 9]]).tolist() == [[1, 1], [0, 1]]
    y, names = classes(["b", "a", "a", "c", "b", "a"], 2)
    assert (y.tolist(), names) == ([1, 0, 0, -1, 1, 0], ["a", "b"])
    with pytest.raises(ValueError, match="at least two"):
        classes(["a", "a", "b"], 2)
