"""Linear probes for many classes, and splits in which no part of a test name was seen in training.

One ridge regression onto all classes at once has a closed form, so that every layer, control and split is a matter of
milliseconds. A name gives itself away by its parts (*San* is Californian, *Giovanni* Italian): `split_names` holds out
first tokens and drops from training whatever shares any token with the test.

Paper: Hewitt and Liang 2019, arXiv:1909.03368, for the controls. Taught in `10_fact_finding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from mi_utils.probes import Labels, Matrix, Split, split_groups

STRENGTHS = tuple(10.0**power for power in range(-4, 5))
"""Of the ridge, relative to the mean variance of the features."""


@dataclass(frozen=True)
class ClassProbe:
    """A direction and an offset for each class, in the features after the training mean was taken off."""

    weight: Float[np.ndarray, "feature class"]
    bias: Float[np.ndarray, " class"]
    mean: Float[np.ndarray, " feature"]

    def scores(self, x: Matrix) -> Float[np.ndarray, "row class"]:
        """Highest for the class the probe names."""
        return (x - self.mean) @ self.weight + self.bias


def fit(x: Matrix, y: Labels, split: Split) -> ClassProbe:
    """Ridge regression onto the classes, each as important as any other, of the strength that does best on validation.

    Args:
        y: classes counted from 0.
    Raises:
        ValueError: fewer than two classes in training, or nothing to validate on.
    """
    if len(np.unique(y[split.train])) < 2 or not split.validation.any():
        raise ValueError(
            f"expected two classes to train on and rows to validate on, got {len(np.unique(y[split.train]))} classes "
            f"and {int(split.validation.sum())} rows; use more names, or another seed"
        )
    x_train, y_train = x[split.train].astype(np.float64), y[split.train]
    mean, targets = x_train.mean(0), np.eye(int(y.max()) + 1)[y_train]
    share = 1 / np.maximum(targets.sum(0), 1)  # a frequent answer shall not win by its frequency
    row = np.sqrt(share[y_train])[:, None]
    bias = np.full(targets.shape[1], 1 / targets.shape[1])
    u, s, vt = np.linalg.svd(row * (x_train - mean), full_matrices=False)
    aim, scale = u.T @ (row * (targets - bias)), (s**2).mean() + 1e-12
    probes = [ClassProbe(vt.T @ ((s / (s**2 + r * scale))[:, None] * aim), bias, mean) for r in STRENGTHS]
    held, truth = x[split.validation], y[split.validation]
    return max(probes, key=lambda probe: balanced_accuracy(probe.scores(held), truth))


def balanced_accuracy(scores: Float[np.ndarray, "row class"], y: Labels) -> float:
    """Share of right answers, averaged over the classes that occur: chance is one over their number, whatever their
    frequencies."""
    right = scores.argmax(1) == y
    return float(np.mean([right[y == label].mean() for label in np.unique(y)]))


def split_names(tokens: Sequence[Sequence[int]], seed: int) -> Split:
    """A split of names by their first token, training on none that shares any token with a test name.

    Args:
        tokens: of each name.
    Raises:
        ValueError: fewer than three different first tokens.
    """
    _, groups = np.unique([name[0] for name in tokens], return_inverse=True)
    split = split_groups(groups, seed)
    seen = {token for name, held in zip(tokens, split.test, strict=True) if held for token in name}
    strange = np.array([seen.isdisjoint(name) for name in tokens])
    return Split(split.train & strange, split.validation & strange, split.test)


def leaking(tokens: Sequence[Sequence[int]], test: Bool[np.ndarray, " row"]) -> Bool[np.ndarray, " row"]:
    """Which names are in the test and share a token with a name that is not."""
    seen = {token for name, held in zip(tokens, test, strict=True) if not held for token in name}
    return np.array([bool(held) and not seen.isdisjoint(name) for name, held in zip(tokens, test, strict=True)])


def token_bags(tokens: Sequence[Sequence[int]]) -> Float[np.ndarray, "row token"]:
    """Which tokens are in each name, as 0 and 1: what a probe knows that reads no model."""
    column = {token: i for i, token in enumerate(sorted({token for name in tokens for token in name}))}
    bags = np.zeros((len(tokens), len(column)))
    for row, name in enumerate(tokens):
        bags[row, [column[token] for token in name]] = 1
    return bags


def classes(answers: Sequence[str], least: int) -> tuple[Int[np.ndarray, " row"], list[str]]:
    """The answers that occur at least so often, most frequent first, and each row's among them; -1 for a rarer one.

    Raises:
        ValueError: fewer than two answers are frequent enough.
    """
    found, counts = np.unique(np.asarray(answers), return_counts=True)
    names = [str(name) for name in found[np.argsort(-counts, kind="stable")] if counts[found == name][0] >= least]
    if len(names) < 2:
        raise ValueError(f"{len(names)} answers occur {least} times or more; at least two are needed, ask for fewer")
    number = {name: i for i, name in enumerate(names)}
    return np.array([number.get(answer, -1) for answer in answers]), names
