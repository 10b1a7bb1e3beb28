"""Put probes side by side: the same rows, splits and labels for all, within a kind of text and beyond it.

`read` takes one concept off a model in every way a probe may want; `evaluate` fits and scores the probes on it, in one
regime of training labels. Everything is one row of a table with its data set, method, regime, seed and test set, so
that comparisons are joined by name and never by order.

Paper: Kantamneni et al. 2025, "Are Sparse Autoencoders Useful? A Case Study in Sparse Probing", arXiv:2502.16681.
Taught in `06_probes`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from mi_utils import concepts
from mi_utils.concepts import Concept, Rows
from mi_utils.metrics import Interval, mean_interval
from mi_utils.probes import METHODS, Labels, Matrix, accuracy, auroc, control_labels, split_groups, split_rows
from mi_utils.sae import Dictionary

if TYPE_CHECKING:
    from sklearn.feature_extraction.text import CountVectorizer
    from transformer_lens.model_bridge import TransformerBridge

HELD_OUT = "held out"


@dataclass(frozen=True)
class Features:
    """One set of labelled texts, read in every way."""

    views: dict[str, Matrix]
    """`states` at the last token, their `latents` and `reconstruction`, `words`, and a `random model`'s states."""
    rows: Rows


@dataclass(frozen=True)
class Dataset:
    """A concept as a probing task."""

    name: str
    within: Features
    """Texts to train and test on."""
    shifts: dict[str, Features]
    """Other kinds of text, for testing only."""


@dataclass(frozen=True)
class Regime:
    """What the training labels are like; validation has the same share of them."""

    n_labels: int | None = None
    """How many there are, all if None."""
    positive: float | None = None
    """Share of positive ones, as it comes if None."""
    flipped: float = 0.0
    """Share that is wrong."""


def read(
    model: "TransformerBridge",
    twin: "TransformerBridge",
    dictionary: Dictionary,
    hook_name: str,
    concept: Concept,
    *,
    n_pairs: int = 200,
    seed: int = 0,
) -> Dataset:
    """A concept's training pairs and shifts, read at one place of a model and of its randomly initialised twin."""
    from sklearn.feature_extraction.text import CountVectorizer

    within = concept.rows(n_pairs=n_pairs, seed=seed)
    words = CountVectorizer(token_pattern=r"\w+|[^\w\s]", binary=True).fit(within.texts)
    kinds = {None: within} | {name: concept.rows(name, n_pairs=n_pairs, seed=seed) for name in concept.shifts}
    found = {name: _features(model, twin, dictionary, hook_name, rows, words) for name, rows in kinds.items()}
    return Dataset(concept.name, found.pop(None), found)


def evaluate(
    data: Dataset,
    *,
    seed: int = 0,
    regime: Regime = Regime(),
    methods: Mapping[str, tuple] = METHODS,
) -> pd.DataFrame:
    """Fit each method on one split and score it on the held-out groups and on every shift.

    Returns:
        A row per method and test set: `data`, `method`, `seed`, `on`, `auroc`, `accuracy`, `n_labels`.
    """
    split = split_groups(data.within.rows.groups, seed)
    train, labels = _labelled(data.within.rows.labels, split.train | split.validation, regime, seed)
    fitted_on, chosen_on = train & split.train, train & split.validation
    found = []
    for name, (view, fit) in methods.items():
        x = data.within.views[view]
        probe = fit(x[fitted_on], labels[fitted_on], x[chosen_on], labels[chosen_on])
        tests = {HELD_OUT: (x[split.test], data.within.rows.labels[split.test])}
        tests |= {shift: (features.views[view], features.rows.labels) for shift, features in data.shifts.items()}
        for on, (x_test, y) in tests.items():
            scores = probe.scores(x_test)
            key = {"data": data.name, "method": name, "seed": seed, "on": on}
            found.append(key | {"auroc": auroc(scores, y), "accuracy": accuracy(scores, y)})
    return pd.DataFrame(found).assign(n_labels=int(train.sum()))


def selectivity(data: Dataset, *, seed: int = 0, methods: Mapping[str, tuple] = METHODS) -> pd.DataFrame:
    """Accuracy on the task, on the control task, and the difference, when rows of a group are on both sides.

    Returns:
        A row per method: `data`, `method`, `seed`, `task`, `control`, `selectivity`.
    """
    rows = data.within.rows
    split = split_rows(len(rows.labels), seed)
    found = []
    for name, (view, fit) in methods.items():
        x, reached = data.within.views[view], {}
        for kind, y in (("task", rows.labels), ("control", control_labels(rows.groups, seed))):
            probe = fit(x[split.train], y[split.train], x[split.validation], y[split.validation])
            reached[kind] = accuracy(probe.scores(x[split.test]), y[split.test])
        found.append({"data": data.name, "method": name, "seed": seed} | reached)
    return pd.DataFrame(found).assign(selectivity=lambda table: table.task - table.control)


def paired(table: pd.DataFrame, method: str, other: str, column: str = "auroc") -> pd.DataFrame:
    """The difference of two methods on each data set and test set, over seeds, joined by name.

    Returns:
        `value` with `low` and `high` for each (`data`, `on`): the mean over seeds and Student's interval of it.
    """
    wide = table.pivot(index=["data", "on", "seed"], columns="method", values=column)
    gaps = (wide[method] - wide[other]).groupby(level=["data", "on"], sort=False)
    rows = {key: {"value": gap.mean(), **_ends(gap)} for key, gap in gaps}
    return pd.DataFrame(rows.values(), index=pd.MultiIndex.from_tuples(rows, names=["data", "on"]))


def _ends(gap: pd.Series) -> dict[str, float]:
    if len(gap) < 2 or np.ptp(gap) == 0:
        return Interval(gap.mean(), gap.mean())._asdict()
    return mean_interval(gap)._asdict()


def _labelled(labels: Labels, known: np.ndarray, regime: Regime, seed: int) -> tuple[np.ndarray, Labels]:
    """Which rows have labels in a regime, and the labels as they are seen, some of them wrong."""
    rng = np.random.default_rng(seed)
    sides = [rng.permutation(np.flatnonzero(known & (labels == side))) for side in (0, 1)]
    n_labels = regime.n_labels or sum(map(len, sides))
    share = regime.positive if regime.positive is not None else len(sides[1]) / sum(map(len, sides))
    n_positive = round(n_labels * share)
    wanted = (n_labels - n_positive, n_positive)
    if min(wanted) < 2 or any(n > len(side) for n, side in zip(wanted, sides, strict=True)):
        raise ValueError(
            f"the regime asks for {wanted[1]} positive and {wanted[0]} negative labels; there are {len(sides[1])} and "
            f"{len(sides[0])}, and two of each are the least"
        )
    chosen = np.concatenate([side[:n] for n, side in zip(wanted, sides, strict=True)])
    train = np.zeros(len(labels), dtype=bool)
    train[chosen] = True
    seen = labels.copy()
    wrong = rng.choice(chosen, round(regime.flipped * len(chosen)), replace=False)
    seen[wrong] = 1 - seen[wrong]
    return train, seen


def _features(
    model: "TransformerBridge",
    twin: "TransformerBridge",
    dictionary: Dictionary,
    hook_name: str,
    rows: Rows,
    words: "CountVectorizer",
) -> Features:
    states = concepts.read(model, rows.texts, [hook_name])[hook_name]
    with torch.no_grad():
        latents = dictionary.encode(states)
        reconstruction = dictionary.decode(latents)
    views = {
        "states": states.numpy(),
        "latents": latents.numpy(),
        "reconstruction": reconstruction.numpy(),
        "words": words.transform(rows.texts).toarray().astype(np.float32),
        "random model": concepts.read(twin, rows.texts, [hook_name])[hook_name].numpy(),
    }
    return Features(views, rows)
