"""Attribution patching: a guess at what every patch would do, from one gradient instead of a pass per site.

The guess is the first order of the patch's effect,

    (donor's activation - base's activation) . gradient of the metric at the base

It is right where the model is straight between the two runs, and nobody knows where that is without exact patches
beside it: `compare` puts them side by side.

Paper: Nanda 2023, "Attribution Patching", neelnanda.io; Syed et al. 2023, arXiv:2310.10348. Taught in
`08_locate_a_fact`.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import spearmanr
from torch import Tensor

from mi_utils.metrics import ratio_of_sums
from mi_utils.patching import KINDS, Metric, Run, Stack, with_rows


class Agreement(NamedTuple):
    """How well guesses match exact effects over a set of sites."""

    error: float
    """Sum of squared differences over the sum of squared exact effects: 0 is perfect, 1 no better than guessing 0."""
    rank: float
    """Spearman's correlation: whether the order of sites is right."""
    same_peak: bool
    """Whether both name the same site as the strongest."""


def attribution(
    stack: Stack, base: Run, donor: Run, metric: Metric, kinds: Sequence[str] = KINDS
) -> dict[str, Float[Tensor, "layer row pos"]]:
    """The guessed change of a metric for every layer and position of each kind, by kind.

    Args:
        metric: one number a row; `log_odds` is less curved than `probability`.
    Raises:
        ValueError: runs of prompts of different length.
    """
    if base.embeds.shape[1] != donor.embeds.shape[1]:
        raise ValueError(f"prompts of {base.embeds.shape[1]} and {donor.embeds.shape[1]} tokens; they must be as long")
    n_rows = max(len(base.embeds), len(donor.embeds))
    base, donor = with_rows(base, n_rows), with_rows(donor, n_rows)
    places = [(kind, layer) for kind in kinds for layer in range(stack.n_layers)]
    kept: dict[tuple[str, int], Tensor] = {}
    with torch.enable_grad(), ExitStack() as hooks:
        for place in places:
            hooks.enter_context(stack.edited(place, lambda act, place=place: kept.setdefault(place, act)))
        embeds = base.embeds.clone().requires_grad_()
        value = metric(stack.plain(inputs_embeds=embeds, use_cache=False, logits_to_keep=1).logits[:, -1]).sum()
        gradients = dict(zip(places, torch.autograd.grad(value, [kept[place] for place in places]), strict=True))
    return {
        kind: torch.stack(
            [
                ((donor.outputs[kind][layer] - base.outputs[kind][layer]) * gradients[kind, layer]).sum(-1)
                for layer in range(stack.n_layers)
            ]
        )
        for kind in kinds
    }


def agreement(guessed: Float[Tensor, "*site"], exact: Float[Tensor, "*site"]) -> Agreement:
    """Compare guessed with exact changes of the same sites.

    Raises:
        ValueError: no exact effect at all.
    """
    if not exact.any():
        raise ValueError("no patch has an effect, so that there is nothing to compare a guess with")
    a, b = guessed.flatten().double().numpy(), exact.flatten().double().numpy()
    rank = spearmanr(a, b).statistic if np.ptp(a) and np.ptp(b) else 0.0
    return Agreement(ratio_of_sums((a - b) ** 2, b**2), float(rank), bool(a.argmax() == b.argmax()))
