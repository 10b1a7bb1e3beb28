"""Path patching for one question: which heads carry what, from one token to the last?

`reading` lets a single head of the last token look at another run's keys and values at some tokens, all else as in the
base. Whatever that changes went from those tokens through that head.

Paper: Goldowsky-Dill et al. 2023, "Localizing Model Behavior with Path Patching", arXiv:2304.05969. Taught in
`08_locate_a_fact`.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mi_utils.patching import Metric, Run, Stack, at, with_rows

PARTS = ("keys", "values")


@torch.no_grad()
def reading(
    stack: Stack,
    base: Run,
    donor: Run,
    metric: Metric,
    positions: Sequence[int],
    *,
    layers: Sequence[int] | None = None,
    parts: Sequence[str] = PARTS,
) -> Float[Tensor, "layer head row"]:
    """The metric when one head of the last token reads the donor's keys and values at `positions`.

    Args:
        positions: tokens before the last one.
        layers: only these; all if not given.
        parts: `keys` (where the head looks), `values` (what it takes), or both.
    Raises:
        ValueError: the last position is among the positions, one is beyond the prompt, or an unknown part.
    """
    n_pos = base.embeds.shape[1]
    site = at(positions, n_pos)
    if site[-1]:
        raise ValueError(f"the last token, {n_pos - 1}, is the one that reads; give positions before it")
    if not parts or set(parts) - set(PARTS):
        raise ValueError(f"got parts {list(parts)}; expected some of {', '.join(PARTS)}")
    n_rows = max(len(base.embeds), len(donor.embeds))
    base, donor = with_rows(base, n_rows), with_rows(donor, n_rows)
    found = []
    for layer in range(stack.n_layers) if layers is None else layers:
        last = base.resid_pre[layer][:, -1:]
        kept: list[Tensor] = []

        def keep(z: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(z)
            return z

        # Only this layer's attention may see the donor: what later layers read of these tokens is the base's.
        seen = replace(base, **{part: _mixed(getattr(base, part), getattr(donor, part), site, layer) for part in parts})
        stack.resume(last, layer, past=stack.past(seen, n_pos - 1), edits={("z", layer): keep})
        width = kept[0].shape[-1] // stack.n_heads
        heads = torch.eye(stack.n_heads, dtype=torch.bool).repeat_interleave(width, 1).repeat_interleave(n_rows, 0)
        given = kept[0].repeat(stack.n_heads, 1, 1)  # a pass with rows of its own for every head
        edit = {("z", layer): lambda z, heads=heads, given=given: torch.where(heads[:, None], given, z)}
        past = stack.past(base, n_pos - 1, stack.n_heads)
        logits = stack.resume(last.repeat(stack.n_heads, 1, 1), layer, past=past, edits=edit)
        found.append(torch.stack(metric(logits).split(n_rows)))
    return torch.stack(found)


def _mixed(base: Tensor, donor: Tensor, site: Bool[Tensor, " pos"], layer: int) -> Tensor:
    """The base's states, but at one layer and the site's positions the donor's."""
    states = base.clone()
    states[layer] = torch.where(site[:, None], donor[layer], base[layer])
    return states
