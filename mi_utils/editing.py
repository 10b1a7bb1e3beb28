"""Other ways to make a model say something else about a subject, with the budget of a rank-one edit.

All see the same prompts, take at most as many steps and stop at the same loss. What differs is what they may change: a
vector written by an MLP or an attention head found by no method, a vector added to activations, a bias, one matrix, or
the MLPs of the layers in which facts are looked up.

Papers: optimal edits at random heads, Li et al. 2025, arXiv:2502.11447; edits restricted to lookup layers, Guo et al.
2024, arXiv:2410.12949; constrained fine-tuning as in Meng et al. 2022, appendix E. Taught in `09_edit_a_fact`.
"""

from collections.abc import Generator, Sequence
from random import Random
from typing import TYPE_CHECKING

import torch

from mi_utils.edits import Edit, Request, Site, plain_of
from mi_utils.rome import ENOUGH, N_STEPS, finish, search

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
GATES = {"ROME": "key", "activation addition": "subject", "bias": "everywhere"}


def edited(
    model: "TransformerBridge", requests: Sequence[Request], method: str, layer: int, *, seed: int = 0
) -> list[Edit]:
    """One edit per request by one method.

    Args:
        layer: where; the two random methods draw their own place for each request from the layers before the last
            quarter, and `lookup layers` has its own.
    Raises:
        ValueError: an unknown method; or as `rome.search`.
    """
    return finish(attempt(model, requests, method, layer, seed=seed))


def attempt(
    model: "TransformerBridge", requests: Sequence[Request], method: str, layer: int, *, seed: int = 0
) -> Generator[float, None, list[Edit]]:
    """Like `edited`, a step at a time: yields a loss after each."""
    if method not in METHODS:
        raise ValueError(f"unknown method {method!r}; expected one of {', '.join(METHODS)}")
    if method in GATES:
        return (yield from search(model, requests, Site(layer), gate=GATES[method], method=method))
    rng, found = Random(seed), []
    for asked in requests:
        if method in ("ROME, random layer", "random head"):
            place = rng.randrange(model.cfg.n_layers * 3 // 4)
            head = rng.randrange(model.cfg.n_heads) if method == "random head" else None
            found += yield from search(model, [asked], Site(place, head), method=method)
        else:
            parts = ("gate", "up", "down") if method == "lookup layers" else ("down",)
            layers = LOOKUP_LAYERS if method == "lookup layers" else [layer]
            names = [f"model.layers.{i}.mlp.{part}_proj" for i in layers for part in parts]
            found.append((yield from fine_tune(model, asked, names, method)))
    return found


def fine_tune(
    model: "TransformerBridge", asked: Request, names: Sequence[str], method: str = "fine-tuning"
) -> Generator[float, None, Edit]:
    """Gradient steps on whole matrices, no weight moved by more than 0.0005. The model is left as it was.

    Args:
        names: of linear modules of the plain model.
    Raises:
        ValueError: no such module.
    """
    plain = plain_of(model)
    modules = dict(plain.named_modules())
    if unknown := [name for name in names if not isinstance(modules.get(name), torch.nn.Linear)]:
        raise ValueError(f"no linear modules {unknown}; expected names such as 'model.layers.3.mlp.down_proj'")
    changes = {name: torch.zeros_like(modules[name].weight, requires_grad=True) for name in names}
    optimizer = torch.optim.Adam(list(changes.values()), lr=RATE)
    tokens = torch.nn.utils.rnn.pad_sequence(list(asked.rows), batch_first=True)
    ends = torch.tensor([len(row) - 1 for row in asked.rows])
    for _ in range(N_STEPS - 1):
        with torch.enable_grad():
            # The model inside, without the unembedding, knows its parts by names without "model." before them.
            moved = {f"{name.removeprefix('model.')}.weight": modules[name].weight + changes[name] for name in names}
            output = torch.func.functional_call(plain.model, moved, (tokens,), {"use_cache": False})
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
        yield float(loss.detach())
    return Edit(method, weights={name: change.detach() for name, change in changes.items()})
