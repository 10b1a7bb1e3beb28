"""Other ways to make a model say something else about a subject, with the budget of a rank-one edit.

All see the same prompts, take at most as many steps and stop at the same loss. What differs is what they may change: a
vector written by an MLP or an attention head found by no method, a vector added to activations, a bias, one matrix, or
the MLPs of the layers in which facts are looked up.

Papers: optimal edits at random heads, Li et al. 2025, arXiv:2502.11447; edits restricted to lookup layers, Guo et al.
2024, arXiv:2410.12949; constrained fine-tuning as in Meng et al. 2022, appendix E. Taught in `09_edit_a_fact`.
"""

from collections.abc import Sequence
from random import Random
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mi_utils.models import unhooked
from mi_utils.rome import ENOUGH, N_STEPS, Edit, Request, Site, edit

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

RATE, LARGEST_CHANGE = 5e-4, 5e-4  # of one weight, as in released runs of constrained fine-tuning
LOOKUP_LAYERS = range(1, 6)
METHODS = (
    "ROME",
    "ROME, random layer",
    "random head",
    "activation addition",
    "bias",
    "fine-tuning",
    "lookup layers",
)
"""ROME first, then what it must be compared with."""


def edited(
    model: "TransformerBridge", requests: Sequence[Request], method: str, layer: int, *, seed: int = 0
) -> list[Edit]:
    """One edit per request by one method.

    Args:
        layer: where; the two random methods draw their own place for each request from the layers before the last
            quarter, and `lookup layers` has its own.
    Raises:
        ValueError: an unknown method; or as `rome.edit`.
    """
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if method in ("ROME, random layer", "random head"):
        return _at_random(model, requests, method, seed)
    if method == "fine-tuning":
        return [fine_tuned(model, asked, [f"model.layers.{layer}.mlp.down_proj"], method) for asked in requests]
    if method == "lookup layers":
        names = [f"model.layers.{i}.mlp.{part}_proj" for i in LOOKUP_LAYERS for part in ("gate", "up", "down")]
        return [fine_tuned(model, asked, names, method) for asked in requests]
    gate = {"ROME": "key", "activation addition": "subject", "bias": "everywhere"}[method]
    return edit(model, requests, Site(layer), gate=gate, method=method)


def fine_tuned(
    model: "TransformerBridge", asked: Request, names: Sequence[str], method: str = "fine-tuning"
) -> Edit:
    """Gradient steps on whole matrices, no weight moved by more than 0.0005. The model is left as it was.

    Args:
        names: of linear modules of the plain model.
    Raises:
        ValueError: no such module.
    """
    plain = unhooked(model)
    modules = dict(plain.named_modules())
    if unknown := [name for name in names if not isinstance(modules.get(name), torch.nn.Linear)]:
        raise ValueError(f"no linear modules {unknown}; expected names such as 'model.layers.3.mlp.down_proj'")
    changes = {name: torch.zeros_like(modules[name].weight, requires_grad=True) for name in names}
    weights = {name: modules[name].weight for name in names}
    optimizer = torch.optim.Adam(list(changes.values()), lr=RATE)
    tokens = torch.nn.utils.rnn.pad_sequence(list(asked.rows), batch_first=True)
    ends = torch.tensor([len(row) - 1 for row in asked.rows])
    with torch.enable_grad():
        for _ in range(N_STEPS - 1):
            moved: dict[str, Tensor] = {f"{name}.weight": weights[name] + changes[name] for name in names}
            output = torch.func.functional_call(plain.model, _inside(moved), (tokens,), {"use_cache": False})
            state = output.last_hidden_state[torch.arange(len(tokens)), ends]
            loss = -plain.lm_head(state).log_softmax(-1)[:, asked.new].mean()
            if loss < ENOUGH:
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for change in changes.values():
                    change.clamp_(-LARGEST_CHANGE, LARGEST_CHANGE)
    return Edit(method, weights={name: change.detach() for name, change in changes.items()})


def _at_random(model: "TransformerBridge", requests: Sequence[Request], method: str, seed: int) -> list[Edit]:
    """A place of its own for each request, drawn from the layers before the last quarter."""
    rng, n_layers = Random(seed), model.cfg.n_layers * 3 // 4
    found = []
    for asked in requests:
        layer = rng.randrange(n_layers)
        head = rng.randrange(model.cfg.n_heads) if method == "random head" else None
        found += edit(model, [asked], Site(layer, head), method=method)
    return found


def _inside(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names as the model inside the one with the unembedding knows them."""
    return {name.removeprefix("model."): weight for name, weight in weights.items()}
