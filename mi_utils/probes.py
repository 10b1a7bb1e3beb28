"""Probes: what a linear classifier can read off activations, and the plainer things it has to beat.

Every probe here is fitted by one function of training and validation rows and gives one score per row. Rows of a group
(the same city, the same verb) never stand on both sides of a split, except in a control task, which asks how much a
probe can learn by heart.

Papers: control tasks, Hewitt and Liang 2019, arXiv:1909.03368; sparse probes on SAE latents, Kantamneni et al. 2025,
arXiv:2502.16681. Taught in `06_probes`.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

Matrix = Float[np.ndarray, "row feature"]
Labels = Int[np.ndarray, " row"]
HeldMatrix, HeldLabels = Float[np.ndarray, "held feature"], Int[np.ndarray, " held"]
GRID = tuple(10.0**power for power in range(-5, 6))
"""Inverse regularisation strengths that are tried, strongest first."""


class Split(NamedTuple):
    """Which rows are for what."""

    train: Bool[np.ndarray, " row"]
    validation: Bool[np.ndarray, " row"]
    test: Bool[np.ndarray, " row"]


@dataclass(frozen=True)
class Probe:
    """A direction and an offset in the features, after they were standardised."""

    weight: Float[np.ndarray, " feature"]
    bias: float
    mean: Float[np.ndarray, " feature"]
    scale: Float[np.ndarray, " feature"]

    def scores(self, x: Matrix) -> Float[np.ndarray, " row"]:
        """Positive for the positive class; log-odds where the probe was fitted as such."""
        return (x - self.mean) / self.scale @ self.weight + self.bias


Fit = Callable[[Matrix, Labels, HeldMatrix, HeldLabels], Probe]


def split_groups(groups: Int[np.ndarray, " row"], seed: int, shares: Sequence[float] = (0.6, 0.2)) -> Split:
    """A random split in which all rows of a group stay together.

    Args:
        shares: of the groups, for training and for validation; the rest is for the test.
    Raises:
        ValueError: fewer than three groups.
    """
    names = np.random.default_rng(seed).permutation(np.unique(groups))
    if len(names) < 3:
        raise ValueError(f"expected at least three groups, one for each part of the split, got {len(names)}")
    n_train = min(max(1, round(shares[0] * len(names))), len(names) - 2)
    n_validation = min(max(1, round(shares[1] * len(names))), len(names) - n_train - 1)
    parts = np.split(names, [n_train, n_train + n_validation])
    return Split(*(np.isin(groups, part) for part in parts))


def split_rows(n_rows: int, seed: int, shares: Sequence[float] = (0.6, 0.2)) -> Split:
    """A random split that ignores groups, so that what was learnt by heart pays: the one for control tasks."""
    return split_groups(np.arange(n_rows), seed, shares)


def control_labels(groups: Int[np.ndarray, " row"], seed: int) -> Labels:
    """A label at random for each group, half of each: nothing to generalise, only something to remember."""
    names, index = np.unique(groups, return_inverse=True)
    labels = np.arange(len(names)) % 2
    return np.random.default_rng(seed).permutation(labels)[index]


def logistic(x: Matrix, y: Labels, x_validation: HeldMatrix, y_validation: HeldLabels) -> Probe:
    """Logistic regression on standardised features, of the strength with the least loss on validation.

    Not the highest AUROC: a much too strong regularisation may rank well and still put every row on one side.

    Raises:
        ValueError: one class alone.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _check(y)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    probes = []
    with warnings.catch_warnings():
        # Rows that can be separated have no best weight without regularisation: the weakest fits end at the limit.
        warnings.simplefilter("ignore", ConvergenceWarning)
        for C in GRID:
            fitted = LogisticRegression(C=C, max_iter=300, tol=1e-3).fit((x - mean) / scale, y)
            probes.append(Probe(fitted.coef_[0], float(fitted.intercept_[0]), mean, scale))
    return min(probes, key=lambda probe: loss(probe.scores(x_validation), y_validation))


def mean_difference(x: Matrix, y: Labels, *_validation: np.ndarray) -> Probe:
    """The difference of the class means as the weight, half-way between them as the threshold; nothing to choose."""
    _check(y)
    positive, negative = x[y == 1].mean(0), x[y == 0].mean(0)
    weight = positive - negative
    zeros = np.zeros_like(weight)
    return Probe(weight, float(-weight @ (positive + negative) / 2), zeros, zeros + 1)


def sparse(x: Matrix, y: Labels, x_validation: HeldMatrix, y_validation: HeldLabels, *, k: int) -> Probe:
    """Logistic regression on the `k` features whose class means differ most, all other weights zero."""
    _check(y)
    kept = ranked(x, y)[:k]
    inner = logistic(x[:, kept], y, x_validation[:, kept], y_validation)
    spread = [np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.ones(x.shape[1])]
    for whole, part in zip(spread, (inner.weight, inner.mean, inner.scale), strict=True):
        whole[kept] = part
    return Probe(spread[0], inner.bias, spread[1], spread[2])


def ranked(x: Matrix, y: Labels) -> Int[np.ndarray, " feature"]:
    """Features by how far apart their class means are, farthest first."""
    return np.argsort(-np.abs(x[y == 1].mean(0) - x[y == 0].mean(0)), kind="stable")


def loss(scores: Float[np.ndarray, " row"], y: Labels) -> float:
    """Mean cross-entropy of scores that are log-odds, in nats."""
    return float(np.logaddexp(0, np.where(y == 1, -scores, scores)).mean())


def auroc(scores: Float[np.ndarray, " row"], y: Labels) -> float:
    """How often a positive row scores above a negative one; ties count half. NaN with one class alone."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(y, scores)) if 0 < y.sum() < len(y) else float("nan")


def accuracy(scores: Float[np.ndarray, " row"], y: Labels) -> float:
    """Share of rows on their side of zero."""
    return float(((scores > 0) == (y == 1)).mean())


METHODS: dict[str, tuple[str, Fit]] = {
    "dense": ("states", logistic),
    "DiffMean": ("states", mean_difference),
    "1 latent": ("latents", partial(sparse, k=1)),
    "16 latents": ("latents", partial(sparse, k=16)),
    "SAE reconstruction": ("reconstruction", logistic),
    "bag of words": ("words", logistic),
    "random model": ("random model", logistic),
}
"""By name: what is read (see `probing.Features`) and how it is fitted."""


def _check(y: Labels) -> None:
    if not 0 < y.sum() < len(y):
        raise ValueError(f"expected labels of both classes, got {len(y)}, of which {int(y.sum())} are positive")
