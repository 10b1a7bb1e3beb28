"""What a pair dictionary says has changed between two models, and how far to believe it.

A latent's *relative norm* is the tuned model's share of its decoder's length: 0 for a latent of the base model alone,
1/2 for a shared one, 1 for one of the tuned model alone. An L1 penalty drives it to the ends where it should not go:
by *shrinkage* (a weak half is driven to nothing) and by *decoupling* (one concept becomes two latents, one for each
model). *Latent scaling* finds out: it asks, on data, whether the other model has the latent's direction after all, in
what the dictionary left over (shrinkage) or in what other latents say (decoupling).

Paper: Minder et al. 2025, "Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning", arXiv:2504.02922.
Taught in `07_model_diffing`.
"""

from collections.abc import Iterable

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from mi_utils.crosscoders import Halves, halves
from mi_utils.models import SHIPPED_ADAPTERS as ADAPTERS

BASE_ONLY, SHARED, TUNED_ONLY = 0.1, (0.4, 0.6), 0.9
NU_ERROR, NU_RECONSTRUCTION = 0.2, 0.5
"""A latent is confirmed as exclusive when both of its ratios are below these; from the paper."""
TWIN = 0.9


def relative_norm(sae: SAE) -> Float[Tensor, " latent"]:
    """The tuned model's share of each latent's decoder length, in [0, 1]."""
    base, tuned = (half.norm(dim=1) for half in halves(sae))
    return tuned / (base + tuned).clamp_min(1e-12)


def cosine(sae: SAE) -> Float[Tensor, " latent"]:
    """Between a latent's direction in the base and in the tuned model."""
    return torch.nn.functional.cosine_similarity(*halves(sae), dim=1)


def kind_of(relative_norm: float) -> str:
    """What the usual thresholds call a latent: `base only`, `tuned only`, `shared`, or `between`."""
    if relative_norm < BASE_ONLY:
        return "base only"
    if relative_norm > TUNED_ONLY:
        return "tuned only"
    return "shared" if SHARED[0] <= relative_norm <= SHARED[1] else "between"


@torch.no_grad()
def latent_table(sae: SAE, batches: Iterable[Float[Tensor, "token two_d_model"]]) -> pd.DataFrame:
    """One row per latent: how it is shared, how often it fires, and whether latent scaling confirms it.

    Columns: `relative_norm`; `cosine` of its two halves; `kind`; `density`, its share of tokens; `energy`, the mean
    square of what it adds to the tuned model beyond the base; `nu_error` and `nu_reconstruction`, how much of the
    latent's direction the *other* model shows on its tokens, relative to its own model, in the error and in the
    reconstruction; `kin`, the largest cosine of its direction with any latent's direction in the other model;
    `confirmed`: exclusive by norm and below both limits of latent scaling. Latents that never fire have `kind` "dead".

    Args:
        batches: pairs on which to judge, as `sae` reads them; not those it was trained on.

    Source: Minder et al. (2025), section 3.2, in closed form; for a latent without the other half, its own.
    """
    parts = halves(sae)
    own_is_tuned = parts.tuned.norm(dim=1) >= parts.base.norm(dim=1)
    direction = torch.where(own_is_tuned[:, None], parts.tuned, parts.base)
    zeros = torch.zeros(sae.cfg.d_sae, 2, dtype=torch.float64)
    on_error, on_reconstruction = zeros.clone(), zeros.clone()
    fired, squares, n = zeros[:, 0].clone(), zeros[:, 0].clone(), 0
    for x in batches:
        acts = sae.encode(x)
        x_hat = sae.decode(acts)
        for model, (true, rebuilt) in enumerate(zip(x.chunk(2, dim=1), x_hat.chunk(2, dim=1), strict=True)):
            on_error[:, model] += ((acts.T @ (true - rebuilt)) * direction).sum(1)
            on_reconstruction[:, model] += ((acts.T @ rebuilt) * direction).sum(1)
        fired += (acts > 0).sum(0)
        squares += acts.double().square().sum(0)
        n += len(x)
    for model, half in enumerate(parts):  # the latent's own part is no error: put it back
        on_error[:, model] += squares * (direction * half).sum(1)
    table = pd.DataFrame({"relative_norm": relative_norm(sae).numpy(), "cosine": cosine(sae).numpy()})
    table["kind"] = [kind_of(share) for share in table.relative_norm]
    table["density"] = (fired / n).numpy()
    table["energy"] = (squares / n * (parts.tuned - parts.base).square().sum(1)).numpy()
    table["nu_error"] = _other_by_own(on_error, own_is_tuned).numpy()
    table["nu_reconstruction"] = _other_by_own(on_reconstruction, own_is_tuned).numpy()
    table.loc[table.density == 0, "kind"] = "dead"
    table["kin"] = _kin(parts, own_is_tuned).numpy()
    is_exclusive = table.kind.isin(["base only", "tuned only"])
    table["confirmed"] = is_exclusive & (table.nu_error < NU_ERROR) & (table.nu_reconstruction < NU_RECONSTRUCTION)
    return table.rename_axis("latent")


def _other_by_own(projections: Float[Tensor, "latent 2"], own_is_tuned: Tensor) -> Float[Tensor, " latent"]:
    base, tuned = projections.T
    return torch.where(own_is_tuned, base / tuned, tuned / base)


def _kin(parts: Halves, own_is_tuned: Tensor) -> Float[Tensor, " latent"]:
    base, tuned = (torch.nn.functional.normalize(half, dim=1) for half in parts)
    cosines = (tuned @ base.T).fill_diagonal_(-1)
    return torch.where(own_is_tuned, cosines.max(1).values, cosines.max(0).values)


def twins(sae: SAE, above: float = TWIN) -> pd.DataFrame:
    """Pairs of a base-only and a tuned-only latent with nearly the same direction: one concept told twice.

    Columns: `base_latent`, `tuned_latent`, `cosine`.
    """
    parts, share = halves(sae), relative_norm(sae)
    base, tuned = (share < BASE_ONLY).nonzero()[:, 0], (share > TUNED_ONLY).nonzero()[:, 0]
    unit = [torch.nn.functional.normalize(rows, dim=1) for rows in (parts.base[base], parts.tuned[tuned])]
    cosines = unit[0] @ unit[1].T
    rows, columns = (cosines > above).nonzero(as_tuple=True)
    return pd.DataFrame(
        {
            "base_latent": base[rows].numpy(),
            "tuned_latent": tuned[columns].numpy(),
            "cosine": cosines[rows, columns].numpy(),
        }
    ).sort_values("cosine", ascending=False, ignore_index=True)


def recurrence(sae: SAE, others: Iterable[SAE], above: float = 0.7) -> pd.DataFrame:
    """For each latent and each other dictionary of the same pair, the best cosine of the whole rows; `recurs` if above.

    Columns: one per other dictionary, and `recurs`, the share of them in which the latent is found again.
    """
    unit = torch.nn.functional.normalize(sae.W_dec.detach(), dim=1)
    best = {
        n: (unit @ torch.nn.functional.normalize(other.W_dec.detach(), dim=1).T).max(1).values.numpy()
        for n, other in enumerate(others)
    }
    table = pd.DataFrame(best)
    return table.assign(recurs=(table > above).mean(axis=1)).rename_axis("latent")


def measured() -> pd.DataFrame:
    """The latents of every method, pair and seed by kind, as recorded; `data/adapters/diff.py` makes it."""
    return pd.read_csv(ADAPTERS / "diff_kinds.csv")
