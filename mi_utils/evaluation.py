"""How good is a dictionary, and compared with what? Held-out reconstruction, loss when spliced in, and the baselines.

Everything with an `encode` and a `decode` is a dictionary here: a trained SAE, one with a frozen random decoder,
principal components. They are judged by the same functions on the same tokens. Intervals resample whole contexts,
because the tokens of one context are not independent.

Read: Korznikov et al. (2026), Sanity checks for sparse autoencoders, arXiv 2602.14111. Taught in `01_train_an_sae`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_utils import metrics
from mi_utils.hooks import intervene
from mi_utils.metrics import Interval, bootstrap_interval, ratio_of_sums
from mi_utils.sae import Dictionary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

CHUNK = 2048  # tokens encoded at a time: bounds memory to a few hundred MB for the widest dictionaries
DENSE = 0.1  # a latent active on more than this share of tokens is called dense


@dataclass(frozen=True)
class Reconstruction:
    """What a dictionary did on a set of held-out tokens."""

    errors: np.ndarray
    """Squared error summed over each context."""
    deviations: np.ndarray
    """Squared distance to the mean summed over each context: the denominator of `fvu`."""
    l0_per_token: np.ndarray
    """Active latents on each token."""
    density: np.ndarray
    """Share of tokens on which each latent fires."""

    @property
    def fvu(self) -> float:
        return ratio_of_sums(self.errors, self.deviations)

    @property
    def fvu_interval(self) -> Interval:
        return bootstrap_interval(self.errors, self.deviations, statistic=ratio_of_sums)

    @property
    def l0(self) -> float:
        return float(self.l0_per_token.mean())

    @property
    def dead_share(self) -> float:
        """Share of latents that never fire on these tokens."""
        return float((self.density == 0).mean())

    @property
    def dense_share(self) -> float:
        """Share of latents that fire on more than a tenth of these tokens."""
        return float((self.density > DENSE).mean())


@torch.no_grad()
def reconstruction(
    dictionary: Dictionary, x: Float[Tensor, "token d_in"], context: Int[Tensor, " token"]
) -> Reconstruction:
    """Encode and decode held-out activations.

    Args:
        x: activations in the scale the dictionary reads.
        context: which context each token belongs to; the unit that intervals resample.
    Raises:
        ValueError: fewer than two tokens, or constant activations.
    """
    x_hat, l0, fired = [], [], 0
    for chunk in x.split(CHUNK):
        acts = dictionary.encode(chunk)
        x_hat.append(dictionary.decode(acts))
        active = acts != 0
        l0.append(active.sum(1))
        fired = fired + active.sum(0)
    errors, deviations = metrics.squared_errors(x, torch.cat(x_hat))
    _, group = context.unique(return_inverse=True)
    per_context = torch.zeros(2, int(group.max()) + 1, dtype=torch.float64)
    per_context.index_add_(1, group, torch.stack([errors, deviations]).double())
    return Reconstruction(*per_context.numpy(), torch.cat(l0).numpy(), (fired / len(x)).numpy())


def comparison(reports: Mapping[str, Reconstruction]) -> pd.DataFrame:
    """A row per dictionary: FVU as `value`, its interval `low` to `high`, L0, shares of dead and dense latents."""
    rows = {
        name: {
            "value": report.fvu,
            "low": report.fvu_interval.low,
            "high": report.fvu_interval.high,
            "L0": report.l0,
            "dead": report.dead_share,
            "dense": report.dense_share,
        }
        for name, report in reports.items()
    }
    return pd.DataFrame(rows).T


def fvu_difference(a: Reconstruction, b: Reconstruction) -> Interval:
    """Interval of `a.fvu - b.fvu`, both measured on the same contexts."""
    return bootstrap_interval(
        a.errors, b.errors, a.deviations, statistic=lambda ours, theirs, whole: (ours - theirs).sum() / whole.sum()
    )


@torch.no_grad()
def spliced_losses(
    model: "TransformerBridge",
    tokens: Int[Tensor, "context pos"],
    hook_name: str,
    arms: Mapping[str, Callable[[Tensor], Tensor]],
    keep: Bool[Tensor, "context pos"],
    batch_size: int = 16,
) -> pd.DataFrame:
    """Next-token loss in nats of each context when an activation is replaced: a row per context, a column per arm.

    A column "clean" holds the untouched model. Each arm is a function from activations `[token d_model]` to what
    takes their place; positions outside `keep` are left alone in every arm, so that all are compared on equal terms.
    """
    losses = {name: [] for name in ("clean", *arms)}
    for rows, kept in zip(tokens.split(batch_size), keep.split(batch_size), strict=True):
        losses["clean"].append(_loss(model, rows))
        for name, replace in arms.items():
            with intervene(model, {hook_name: lambda act, kept=kept, f=replace: _replaced(act, kept, f)}):
                losses[name].append(_loss(model, rows))
    return pd.DataFrame({name: torch.cat(parts).numpy() for name, parts in losses.items()})


def _loss(model: "TransformerBridge", tokens: Tensor) -> Tensor:
    return metrics.cross_entropy(model(tokens), tokens).mean(1)


def _replaced(activation: Tensor, kept: Tensor, replace: Callable[[Tensor], Tensor]) -> Tensor:
    new = activation.clone()
    new[kept] = replace(activation[kept])
    return new


def ce_recovered(losses: pd.DataFrame, arm: str, ablation: str) -> tuple[float, Interval]:
    """`metrics.ce_recovered` of an arm against an ablation arm, with its interval over contexts."""
    columns = losses[arm].to_numpy(), losses["clean"].to_numpy(), losses[ablation].to_numpy()

    def statistic(sae: np.ndarray, clean: np.ndarray, ablated: np.ndarray) -> float:
        return metrics.ce_recovered(float(sae.mean()), float(clean.mean()), float(ablated.mean()))

    return statistic(*columns), bootstrap_interval(*columns, statistic=statistic)


def ce_recovered_table(losses: pd.DataFrame, arms: Sequence[str], ablations: Sequence[str]) -> pd.DataFrame:
    """A row per arm: the share recovered against the first ablation as `value`, its interval, then the others."""
    rows = {}
    for arm in arms:
        value, interval = ce_recovered(losses, arm, ablations[0])
        others = {f"against {name}": ce_recovered(losses, arm, name)[0] for name in ablations[1:]}
        rows[arm] = {"value": value, "low": interval.low, "high": interval.high, **others}
    return pd.DataFrame(rows).T


@dataclass(frozen=True)
class PCA:
    """The first `k` principal components as a dictionary: `k` numbers per token, always the same `k`."""

    mean: Float[Tensor, " d_in"]
    components: Float[Tensor, "k d_in"]
    """Orthonormal rows, largest variance first."""

    def encode(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token k"]:
        return (x - self.mean) @ self.components.T

    def decode(self, feature_acts: Float[Tensor, "token k"]) -> Float[Tensor, "token d_in"]:
        return feature_acts @ self.components + self.mean


def fit_pca(x: Float[Tensor, "token d_in"], k: int) -> PCA:
    """Principal components of the activations: the best any `k` fixed directions can do.

    Raises:
        ValueError: more components than dimensions.
    """
    if not 0 < k <= x.shape[1]:
        raise ValueError(f"need 0 < k <= d_in = {x.shape[1]}, got k = {k}")
    mean = x.mean(0)
    centred = (x - mean).double()
    _, vectors = torch.linalg.eigh(centred.T @ centred)
    return PCA(mean, vectors.flip(1)[:, :k].T.to(x.dtype).contiguous())


class Example(NamedTuple):
    """A stretch of text in which a latent fires."""

    latent: int
    """Column of the activations it was chosen from."""
    kind: str
    """Why it was chosen: "top" or "middle"."""
    tokens: Int[Tensor, " pos"]
    acts: Float[Tensor, " pos"]
    """The latent's activation on each token; 0 where tokens were left out of the store."""
    position: int
    """The token that was chosen, counted from the start of the stretch."""


def example_contexts(
    acts: Float[Tensor, "row latent"],
    context: Int[Tensor, " row"],
    position: Int[Tensor, " row"],
    tokens: Int[Tensor, "context pos"],
    *,
    n_each: int = 3,
    before: int = 14,
    after: int = 5,
) -> list[Example]:
    """Where each latent fires most, and where it fires as strongly as it usually does when it fires at all.

    "middle" examples lie evenly around the median of the positive activations; a latent with few activations has
    fewer examples.

    Args:
        context: of each row of `acts`, an index into `tokens`; `position` likewise.
    """
    examples = []
    for latent, column in enumerate(acts.T):
        ranked = column.argsort(descending=True)[: int((column > 0).sum())]
        middle = max(n_each, len(ranked) // 2 - n_each // 2)  # never the top ones again
        for kind, rows in {"top": ranked[:n_each], "middle": ranked[middle : middle + n_each]}.items():
            for row in rows.tolist():
                whole = torch.zeros(tokens.shape[1], dtype=acts.dtype)
                same = context == context[row]
                whole[position[same].long()] = column[same]
                start, place = max(0, int(position[row]) - before), int(position[row])
                shown = slice(start, place + after + 1)
                text = tokens[int(context[row]), shown]
                examples.append(Example(latent, kind, text, whole[shown], place - start))
    return examples
