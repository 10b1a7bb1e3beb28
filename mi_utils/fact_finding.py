"""Tests of how names are turned into facts, as functions of numbers alone: the same for planted worlds and a model.

Two accounts are put to the test. *Single-step detokenisation*: each neuron is an AND of tokens and writes facts by
itself. Then layers need not build on each other, a neuron before its activation function is a sum over the tokens, and
what helps one fact of a name helps its other facts. *Hash and lookup*: early layers scramble every name alike, and a
later one looks the scramble up. Then nothing can be read from a name that was not in training until the lookup, and
known names look like strangers until then. `examine` runs every test on a memoriser whose mechanism was planted.

Paper: Nanda, Rajamanoharan, Kramar and Shah 2023, "Fact Finding: Attempting to Reverse-Engineer Factual Recall on the
Neuron Level", posts 1, 3 and 4. Taught in `10_fact_finding`.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.class_probes import balanced_accuracy, fit
from mi_utils.memorisers import Memoriser, Names, Trace
from mi_utils.probes import auroc, split_rows

N_SPLITS = 5

EXPECTED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "AND": (("additive",), ("single step", "hash and lookup", "distributed")),
    "needs composition": (("single step", "additive"), ("hash and lookup", "distributed")),
    "facts agree": (("distributed",), ("single step",)),
    "pre-activation AND": (("single step", "additive"), ("hash and lookup", "distributed")),
    "readable early": (("hash and lookup",), ("single step", "additive")),
    "known early": (("hash and lookup",), ("single step",)),
}
"""For each test, the mechanisms that must come out low, and those that must come out high; others may be anywhere."""


class Square(NamedTuple):
    """A quantity of names, and of what becomes of them when a token is swapped with another name's."""

    name: Float[Tensor, "name *rest"]
    """Of first token a, last token b."""
    other_last: Float[Tensor, "name *rest"]
    """Of a with the last token of another name."""
    other_first: Float[Tensor, "name *rest"]
    """Of b with the first token of that other name."""
    other: Float[Tensor, "name *rest"]
    """Of the other name."""

    def interaction(self) -> Float[Tensor, "name *rest"]:
        """What is not a sum of a part for the first token and a part for the last."""
        return self.name - self.other_last - self.other_first + self.other

    def additive(self) -> Float[Tensor, "name *rest"]:
        """What a sum of parts predicts for the name from the three others."""
        return self.other_last + self.other_first - self.other


def and_share(margins: Square) -> float:
    """Share of a name's margin over a stranger that neither token explains alone: 1 is an AND, 0 a sum.

    Args:
        margins: for the name's right answer, of each name; all four.
    Raises:
        ValueError: the right answer is not favoured for its own name, so that there is nothing to share out.
    """
    gained = float((margins.name - margins.other).mean())
    if gained <= 0:
        raise ValueError(f"the margin of names over strangers is {gained:.3g}; expected names that are known")
    return float(margins.interaction().mean()) / gained


def interaction_share(values: Square) -> float:
    """Share of the variance within squares that is interaction: 0 for sums of parts, 1/3 where parts mean nothing."""
    cells = torch.stack(list(values)).flatten(2) if values.name.ndim > 1 else torch.stack(list(values))[..., None]
    total = (cells - cells.mean(0)).pow(2).sum()
    return float(values.interaction().pow(2).sum() / 4 / total) if total > 0 else 0.0


def agreement(effects: Float[Tensor, "fact name neuron"]) -> Float[Tensor, " name"]:
    """For each name, the correlation over neurons of their effects on its right answers, mean over pairs of facts.

    Neurons that are silent everywhere say nothing. NaN where one fact's effects are all alike.
    """
    active = effects.abs().amax((0, 1)) > 0
    centred = effects[..., active] - effects[..., active].mean(-1, keepdim=True)
    unit = torch.nn.functional.normalize(centred, dim=-1)
    products = torch.einsum("f n u, g n u -> f g n", unit, unit)
    upper = torch.triu_indices(len(effects), len(effects), offset=1)
    return products[upper[0], upper[1]].mean(0)


def partners(first: Int[Tensor, " name"], last: Int[Tensor, " name"], seed: int = 0) -> Int[Tensor, " name"]:
    """For each name another one that shares neither token with it, at random.

    Raises:
        ValueError: a name shares a token with every other.
    """
    apart = (first[:, None] != first) & (last[:, None] != last)
    if not apart.any(1).all():
        raise ValueError("a name shares a token with every other name; give more names")
    return torch.multinomial(apart.float(), 1, generator=torch.Generator().manual_seed(seed))[:, 0]


def examine(memoriser: Memoriser, seed: int = 0) -> dict[str, float]:
    """Every test on a planted memoriser.

    - `AND`: share of the margin that is interaction.
    - `needs composition`: share of the accuracy above chance that is lost when no layer may read another one.
    - `facts agree`: correlation of neurons' effects across facts of a name, minus that across names.
    - `pre-activation AND`: interaction in what neurons read, as a share of the interaction in what they write.
    - `readable early`: accuracy of a probe on held-out names before the last layer, as a share of that after it.
    - `known early`: how well the length of what the first layer writes tells known names from strangers, 0 to 1.
    """
    square, names = _square(memoriser, seed), memoriser.names
    signs = memoriser.signs
    whole, cut = (memoriser.accuracy(cut=cut) - 0.5 for cut in (False, True))
    facts = Square(*(trace.facts * signs for trace in square))
    widths = range(len(memoriser.layers))
    pre = max(interaction_share(Square(*(trace.pre_acts[n] for trace in square))) for n in widths)
    post = max(interaction_share(Square(*(trace.acts[n] for trace in square))) for n in widths)
    reached = [_readable(memoriser, state, seed) for state in memoriser.run(names).states]
    return {
        "AND": and_share(facts),
        "needs composition": 1 - cut / whole,
        "facts agree": _facts_agree(memoriser, seed),
        "pre-activation AND": pre / post if post > 0 else 0.0,
        "readable early": (reached[-2] - 0.5) / max(reached[-1] - 0.5, 0.05),
        "known early": _known_early(memoriser),
    }


def errors(examined: pd.DataFrame, calibrated_on: Collection[int]) -> pd.DataFrame:
    """How often each test takes a planted mechanism for the other kind, a row per test.

    The boundary lies half-way between the means of both kinds on the seeds that are for calibration; errors are counted
    on the others.

    Args:
        examined: what `examine` says, with `mechanism` and `seed`.
    Returns:
        `low` and `high` (means over the other seeds), `boundary`, `errors` and `of`, how many were judged.
    Raises:
        ValueError: no seeds on one of the sides.
    """
    known = examined.seed.isin(list(calibrated_on))
    if not known.any() or known.all():
        raise ValueError("some seeds must be for calibration and some for the count of errors; give more seeds")
    rows = {}
    for test, kinds in EXPECTED.items():
        sides = [examined.mechanism.isin(kind) for kind in kinds]
        boundary = np.mean([examined[test][side & known].mean() for side in sides])
        low, high = (examined[test][side & ~known] for side in sides)
        wrong = int((low > boundary).sum() + (high <= boundary).sum())
        rows[test] = {
            "low": low.mean(),
            "high": high.mean(),
            "boundary": boundary,
            "errors": wrong,
            "of": len(low) + len(high),
        }
    return pd.DataFrame(rows).T.astype({"errors": int, "of": int})


def neuron_effects(memoriser: Memoriser) -> Float[Tensor, "fact name neuron"]:
    """How far each neuron of each layer moves each fact of each known name towards its right answer."""
    acts = memoriser.run(memoriser.names).acts
    writes = torch.cat(
        [
            (act - act.mean(0))[:, :, None] * (layer.W_out @ memoriser.W_read)
            for act, layer in zip(acts, memoriser.layers, strict=True)
        ],
        dim=1,
    )
    return (writes * memoriser.signs[:, None]).permute(2, 0, 1)


def _square(memoriser: Memoriser, seed: int) -> list[Trace]:
    """The runs of known names and of their recombinations, in the order of `Square`."""
    names = memoriser.names
    other = partners(names.first, names.last, seed)
    pairs = [
        names,
        Names(names.first, names.last[other]),
        Names(names.first[other], names.last),
        Names(names.first[other], names.last[other]),
    ]
    return [memoriser.run(pair) for pair in pairs]


def _facts_agree(memoriser: Memoriser, seed: int) -> float:
    effects = neuron_effects(memoriser)
    strangers = torch.randperm(effects.shape[1], generator=torch.Generator().manual_seed(seed))
    mixed = torch.cat([effects[:1], effects[1:, strangers]])[:2]
    return float(agreement(effects).nanmean() - agreement(mixed).nanmean())


def _readable(memoriser: Memoriser, state: Float[Tensor, "name d_model"], seed: int) -> float:
    """Mean balanced accuracy of a probe for each fact on names that were held out."""
    x, reached = state.numpy(), []
    for split in (split_rows(len(x), seed * N_SPLITS + n) for n in range(N_SPLITS)):
        for signs in memoriser.signs.T.numpy():
            y = (signs > 0).astype(int)
            reached.append(balanced_accuracy(fit(x, y, split).scores(x[split.test]), y[split.test]))
    return float(np.mean(reached))


def _known_early(memoriser: Memoriser) -> float:
    written = [memoriser.run(names).states for names in (memoriser.names, memoriser.strangers())]
    lengths = [(states[1] - states[0]).norm(dim=1).numpy() for states in written]
    labels = np.repeat([1, 0], list(map(len, lengths)))
    return 2 * abs(auroc(np.concatenate(lengths), labels) - 0.5)
