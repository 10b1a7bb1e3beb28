"""Insert latents of a big dictionary into a small one: which bring news, and which say again what is there?

The error of a small dictionary falls when a *novel* latent is added to it, one whose direction it lacks, and rises when
the new latent repeats what several of the small one's latents say together. The largest cosine of its row to the
small dictionary's rows is said to tell the two apart.

Read: Leask et al. (2025), Sparse autoencoders do not find canonical units of analysis, arXiv 2502.04878. Taught in
`04_dictionaries_in_dictionaries`.
"""

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from mi_utils.metrics import max_cosine
from mi_utils.sae import active, csr

CHUNK = 2048  # tokens at a time


@torch.no_grad()
def insertions(small: SAE, large: SAE, x: Float[Tensor, "token d_in"], rows: Tensor | None = None) -> pd.DataFrame:
    """What adding each latent of `large` to `small`, alone, does to the reconstruction of `x`.

    Columns, by latent: `change`, of the FVU, negative where the latent helps; `cosine`, the largest of its row to rows
    of `small`; `firings`. Exact: a latent's share of the squared error is known without decoding again.

    Args:
        rows: directions to insert in place of the latents' own, for a control.
    Raises:
        ValueError: the dictionaries read activations of different width.
    """
    _check_pair(small, large)
    rows = large.W_dec if rows is None else rows
    change = torch.zeros(len(rows), dtype=torch.float64)
    firings = torch.zeros(len(rows), dtype=torch.long)
    length = rows.pow(2).sum(1)
    for chunk in x.split(CHUNK):
        fires, rest = active(large, chunk), chunk - small(chunk)
        pattern = csr(fires.tokens, fires.latents, torch.zeros_like(fires.acts), (len(chunk), len(rows)))
        fit = torch.sparse.sampled_addmm(pattern, rest, rows.T).values()
        effect = fires.acts.pow(2) * length[fires.latents] - 2 * fires.acts * fit
        change.index_add_(0, fires.latents, effect.double())
        firings += torch.bincount(fires.latents, minlength=len(rows))
    variance = (x - x.mean(0)).double().pow(2).sum()
    return pd.DataFrame(
        {"change": (change / variance).numpy(), "cosine": max_cosine(rows, small.W_dec).numpy(), "firings": firings}
    ).rename_axis("latent")


@torch.no_grad()
def stitched(small: SAE, large: SAE, latents: Int[Tensor, " latent"]) -> SAE:
    """A dictionary with all latents of `small` and the chosen ones of `large`, each firing as it did.

    Raises:
        ValueError: dictionaries of different width, or without fixed thresholds.
    """
    _check_pair(small, large)
    config = small.cfg.to_dict() | {"d_sae": small.cfg.d_sae + len(latents)}
    both = SAE.from_dict(config)
    moved = (small.b_dec - large.b_dec) @ large.W_enc[:, latents]  # each encoder takes off its own dictionary's bias
    both.W_enc.copy_(torch.cat([small.W_enc, large.W_enc[:, latents]], 1))
    both.W_dec.copy_(torch.cat([small.W_dec, large.W_dec[latents]]))
    both.b_enc.copy_(torch.cat([small.b_enc, large.b_enc[latents] + moved]))
    both.threshold.copy_(torch.cat([small.threshold, large.threshold[latents]]))
    both.b_dec.copy_(small.b_dec)
    return both.eval().requires_grad_(False)


@torch.no_grad()
def at_l0(dictionary: SAE, x: Float[Tensor, "token d_in"], l0: float) -> SAE:
    """The same dictionary with every threshold raised by one amount, so that `l0` latents fire on a token of `x`.

    Stitching adds latents and so makes codes denser; only dictionaries of equal L0 can be compared.

    Raises:
        ValueError: fewer fire already.
    """
    fires = active(dictionary, x)
    over = (fires.acts - dictionary.threshold[fires.latents]).numpy()
    n_drop = len(over) - round(l0 * len(x))
    if n_drop < 0:
        raise ValueError(f"only {len(over) / len(x):.1f} latents fire on a token; ask for an l0 of at most that")
    raised = SAE.from_dict(dictionary.cfg.to_dict())
    raised.load_state_dict(dictionary.state_dict())
    if n_drop:
        raised.threshold.add_(float(np.partition(over, n_drop - 1)[n_drop - 1]))
    return raised.eval().requires_grad_(False)


def _check_pair(small: SAE, large: SAE) -> None:
    if small.cfg.d_in != large.cfg.d_in:
        raise ValueError(
            f"the dictionaries read activations of width {small.cfg.d_in} and {large.cfg.d_in}; "
            "only dictionaries of the same hook point can be stitched"
        )
    if not (hasattr(small, "threshold") and hasattr(large, "threshold")):
        raise ValueError("both dictionaries need fixed thresholds; turn a training SAE with training.to_inference")
