import numpy as np
import pytest
import torch

from mi_utils import metrics

X = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
X_HAT = torch.tensor([[1.0, 1.0], [3.0, 4.0]])


def test_fvu_by_hand():
    # error 1; the mean is (2, 2), each token 1 + 4 away from it
    assert metrics.fvu(X, X_HAT).item() == pytest.approx(1 / 10)


def test_fvu_of_perfect_and_of_the_mean():
    assert metrics.fvu(X, X).item() == 0
    assert metrics.fvu(X, X.mean(0).expand_as(X)).item() == 1


def test_fvu_ignores_scale_and_order_but_sees_a_constant_error():
    assert metrics.fvu(10 * X, 10 * X_HAT).item() == pytest.approx(0.1)
    assert metrics.fvu(X.flip(0), X_HAT.flip(0)).item() == pytest.approx(0.1)
    assert metrics.fvu(X, X + 1).item() == pytest.approx(4 / 10)


def test_fvu_from_parts_equals_fvu_of_the_whole():
    errors, deviations = metrics.squared_errors(X, X_HAT)
    assert metrics.ratio_of_sums(errors.numpy(), deviations.numpy()) == pytest.approx(metrics.fvu(X, X_HAT).item())


@pytest.mark.parametrize("x", [torch.ones(1, 3), torch.ones(5, 3)])
def test_fvu_refuses_data_without_variance(x):
    with pytest.raises(ValueError, match="at least two different"):
        metrics.fvu(x, x)


def test_l0_and_density():
    acts = torch.tensor([[0.0, 2.0, 1.0], [0.0, 0.5, 0.0]])
    assert metrics.l0(acts).tolist() == [2, 1]
    assert metrics.density(acts).tolist() == [0, 1, 0.5]


def test_cross_entropy_predicts_the_next_token():
    logits = torch.tensor([[[0.0, np.log(3.0)], [5.0, 5.0]]])
    assert metrics.cross_entropy(logits, torch.tensor([[0, 1]])).item() == pytest.approx(np.log(4 / 3))


def test_ce_recovered_ends_and_middle():
    assert metrics.ce_recovered(ce_sae=3.0, ce_clean=3.0, ce_ablated=5.0) == 1
    assert metrics.ce_recovered(ce_sae=5.0, ce_clean=3.0, ce_ablated=5.0) == 0
    assert metrics.ce_recovered(ce_sae=3.5, ce_clean=3.0, ce_ablated=5.0) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="must raise the loss"):
        metrics.ce_recovered(3.0, 3.0, 3.0)


def test_kl_is_zero_for_shifted_logits_and_known_for_a_coin():
    logits = torch.tensor([0.3, -1.0, 2.0])
    assert metrics.kl_divergence(logits, logits + 7).item() == pytest.approx(0, abs=1e-6)
    fair, loaded = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.75, 0.25]).log()
    assert metrics.kl_divergence(fair, loaded).item() == pytest.approx(0.5 * np.log(2 / 3) + 0.5 * np.log(2))
    assert metrics.kl_divergence(fair, loaded) != metrics.kl_divergence(loaded, fair)


def test_logit_diff():
    assert metrics.logit_diff(torch.tensor([[1.0, 4.0, 2.0]]), torch.tensor([1]), torch.tensor([2])).tolist() == [2]


def test_max_cosine_and_recovery():
    true = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    cosines = metrics.max_cosine(true, torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
    assert cosines.tolist() == pytest.approx([1.0, 0.5**0.5])
    assert metrics.recovered(cosines).tolist() == [True, False]
    with pytest.raises(ValueError, match="no direction"):
        metrics.max_cosine(true, torch.zeros(1, 2))


def test_bootstrap_interval_covers_and_narrows():
    rng = np.random.default_rng(1)
    few, many = rng.normal(size=50), rng.normal(size=5000)
    wide, narrow = metrics.bootstrap_interval(few), metrics.bootstrap_interval(many)
    assert wide.low < few.mean() < wide.high
    assert narrow.high - narrow.low < (wide.high - wide.low) / 5
    assert metrics.bootstrap_interval(few) == wide
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 / 5000**0.5, rel=0.15)


def test_bootstrap_interval_keeps_pairs_together():
    numerators = np.arange(1.0, 40.0)
    interval = metrics.bootstrap_interval(numerators, 2 * numerators, statistic=metrics.ratio_of_sums)
    assert interval == pytest.approx((0.5, 0.5))


@pytest.mark.parametrize("samples", [([1.0],), ([1.0, 2.0], [1.0])])
def test_bootstrap_interval_refuses_too_little(samples):
    with pytest.raises(ValueError, match="at least two"):
        metrics.bootstrap_interval(*samples)


def test_difference_interval_covers_the_true_difference_and_refuses_one_observation():
    rng = np.random.default_rng(0)
    one, other = rng.normal(2, 1, 400), rng.normal(1, 1, 300)
    low, high = metrics.difference_interval(one, other)
    assert low < one.mean() - other.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(1 / 400 + 1 / 300), rel=0.15)
    with pytest.raises(ValueError, match="at least two"):
        metrics.difference_interval([1.0], [1.0, 2.0])
