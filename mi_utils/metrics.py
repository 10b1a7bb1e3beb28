"""Every number the suite reports, defined once.

"Explained variance" has at least three meanings in released code: on the same data they give 0.90, 0.95 and 1.02.
Here `fvu` is squared error over variance about the mean, so a constant error is seen and the unit does not matter.
Means over a data set are taken over the whole set: averages of batch averages depend on the batches.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from numpy.typing import ArrayLike
from torch import Tensor


class Interval(NamedTuple):
    """A percentile bootstrap interval."""

    low: float
    high: float


def fvu(x: Float[Tensor, "token d_in"], x_hat: Float[Tensor, "token d_in"]) -> Float[Tensor, ""]:
    """Fraction of variance unexplained: what a reconstruction leaves of the activations' variance.

        fvu = sum |x - x_hat|^2 / sum |x - mean_over_tokens(x)|^2

    0 is perfect, 1 no better than the mean, above 1 worse. Unitless.

    Args:
        x: activations of the whole evaluation set: the mean is taken over the tokens given.
    Raises:
        ValueError: fewer than two tokens, or `x` is constant.
    Source: one minus the coefficient of determination.

    >>> x = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    >>> round(fvu(x, torch.tensor([[1.0, 1.0], [3.0, 4.0]])).item(), 3)
    0.1
    """
    errors, deviations = squared_errors(x, x_hat)
    return errors.sum() / deviations.sum()


def squared_errors(
    x: Float[Tensor, "token d_in"], x_hat: Float[Tensor, "token d_in"]
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """Numerator and denominator of `fvu` per token, for intervals and for sums over parts of a data set.

    Raises:
        ValueError: fewer than two tokens, or `x` is constant.
    """
    deviations = (x - x.mean(0)).pow(2).sum(-1)
    if len(x) < 2 or not deviations.sum() > 0:
        raise ValueError(f"fvu needs at least two different activations, got {len(x)} tokens with no variance")
    return (x - x_hat).pow(2).sum(-1), deviations


def l0(feature_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, " token"]:
    """Latents active on each token: the count of activations above 0. The mean over tokens is *the* L0."""
    return (feature_acts > 0).sum(-1).to(feature_acts.dtype)


def density(feature_acts: Float[Tensor, "token d_sae"]) -> Float[Tensor, " d_sae"]:
    """Share of tokens on which each latent fires, in [0, 1]. A latent with density 0 over the set is dead on it."""
    return (feature_acts > 0).to(feature_acts.dtype).mean(0)


def cross_entropy(
    logits: Float[Tensor, "batch pos d_vocab"], tokens: Int[Tensor, "batch pos"]
) -> Float[Tensor, "batch next"]:
    """Loss of each next-token prediction in nats; position `i` of the result predicts token `i + 1`."""
    return torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), tokens[:, 1:].long(), reduction="none")


def ce_recovered(ce_sae: float, ce_clean: float, ce_ablated: float) -> float:
    """Share of the loss that ablation costs which the reconstruction wins back.

        (ce_ablated - ce_sae) / (ce_ablated - ce_clean)

    1 is as good as the untouched model, 0 as bad as the ablation, negative worse. Always name the ablation: zero
    ablation is the easier comparison, mean ablation the honest one.

    Raises:
        ValueError: the ablation costs nothing, so there is nothing to recover.
    """
    if not ce_ablated > ce_clean:
        raise ValueError(f"ablation must raise the loss: clean {ce_clean:.4f}, ablated {ce_ablated:.4f} nats")
    return (ce_ablated - ce_sae) / (ce_ablated - ce_clean)


def kl_divergence(
    clean_logits: Float[Tensor, "*batch d_vocab"], new_logits: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """KL(clean || new) in nats per prediction; 0 where the two predictions agree."""
    clean, new = clean_logits.log_softmax(-1), new_logits.log_softmax(-1)
    return (clean.exp() * (clean - new)).sum(-1)


def logit_diff(
    logits: Float[Tensor, "*batch d_vocab"], correct: Int[Tensor, "*batch"], incorrect: Int[Tensor, "*batch"]
) -> Float[Tensor, "*batch"]:
    """Logit of the correct token minus that of the incorrect one, in nats; positive favours the correct answer."""
    return (logits.gather(-1, correct[..., None]) - logits.gather(-1, incorrect[..., None])).squeeze(-1)


def max_cosine(rows: Float[Tensor, "row d_in"], others: Float[Tensor, "other d_in"]) -> Float[Tensor, " row"]:
    """For each row the cosine to the nearest of the other rows, in [-1, 1]. Between random sets it is not 0: show it.

    Raises:
        ValueError: a row of length zero has no direction.
    """
    if not (rows.norm(dim=-1).all() and others.norm(dim=-1).all()):
        raise ValueError("a row of zeros has no direction; drop dead latents first")
    return (torch.nn.functional.normalize(rows, dim=-1) @ torch.nn.functional.normalize(others, dim=-1).T).amax(1)


def recovered(cosines: Float[Tensor, " feature"], above: float = 0.9) -> Bool[Tensor, " feature"]:
    """Whether each true feature has a latent within the given cosine. Its mean is the share of features recovered."""
    return cosines > above


def bootstrap_interval(
    *samples: ArrayLike,
    statistic: Callable[..., float] = np.mean,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap interval of a statistic; several samples are resampled together, as pairs.

    Resample what is independent: whole contexts, seeds or subjects, never the tokens of one context.

    Raises:
        ValueError: fewer than two observations, or samples of different lengths.
    Source: scipy.stats.bootstrap.
    """
    from scipy.stats import bootstrap

    arrays = [np.asarray(sample, dtype=float) for sample in samples]
    if len({len(array) for array in arrays}) != 1 or len(arrays[0]) < 2:
        raise ValueError(f"need equally many observations, at least two each; got {[len(a) for a in arrays]}")
    if all(np.ptp(array) == 0 for array in arrays):
        value = float(statistic(*arrays))
        return Interval(value, value)
    found = bootstrap(
        arrays,
        statistic,
        n_resamples=n_resamples,
        confidence_level=level,
        method="percentile",
        paired=len(arrays) > 1,
        vectorized=False,
        rng=np.random.default_rng(seed),
    )
    return Interval(float(found.confidence_interval.low), float(found.confidence_interval.high))


def difference_interval(sample: ArrayLike, other: ArrayLike, *, n_resamples: int = 1000, seed: int = 0) -> Interval:
    """Percentile bootstrap interval, at 95 %, of the difference of two means of unpaired samples.

    Raises:
        ValueError: fewer than two observations in either.
    """
    arrays = [np.asarray(values, dtype=float) for values in (sample, other)]
    if min(map(len, arrays)) < 2:
        raise ValueError(f"need at least two observations in each sample; got {[len(a) for a in arrays]}")
    rng = np.random.default_rng(seed)
    means = [rng.choice(array, (n_resamples, len(array))).mean(1) for array in arrays]
    return Interval(*map(float, np.quantile(means[0] - means[1], [0.025, 0.975])))


def ratio_of_sums(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """Sum of the first over sum of the second: the statistic behind an interval of `fvu`."""
    return float(np.sum(numerators) / np.sum(denominators))


def mean_interval(sample: ArrayLike, *, level: float = 0.95) -> Interval:
    """Student's interval of a mean, for the few values that seeds give: a bootstrap of three values is far too narrow.

    Raises:
        ValueError: fewer than two values.
    Source: scipy.stats.t.
    """
    from scipy.stats import t

    values = np.asarray(sample, dtype=float)
    if len(values) < 2:
        raise ValueError(f"one value says nothing of its spread; got {len(values)}, use more seeds")
    half = t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(float(values.mean() - half), float(values.mean() + half))
