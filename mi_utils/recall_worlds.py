"""Small transformers with a fact store at a known place, built by hand: does a method of localisation name that place?

A name is two tokens. The first layer's attention brings the first to the last; one MLP, the *store*, knows which pair
belongs to which answer; one later attention layer, the *hand-over*, carries the answer to the prompt's end. Another
MLP, the *decoy*, writes the answer too, three times as loudly, along directions that nothing reads. What a method
ought to say is known to the layer and the token.

Paper: Hase et al. 2023, "Does Localization Inform Editing?", arXiv:2301.04213. Taught in `08_locate_a_fact`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from mi_utils.facts import Fact
from mi_utils.language_worlds import BLANK, CONSTANT, tiny_model
from mi_utils.models import unhooked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FIRST = ["Ada", "Ben", "Cleo", "Dan", "Eve", "Finn"]
LAST = ["Reed", "Stone", "Hill", "Brook", "Field", "Marsh"]
ANSWERS = ["Paris", "London", "Rome", "Cairo"]
OTHERS = ["the", "person", "comes", "from"]
D_MODEL, D_HEAD, N_FACTS = 64, 16, 12
STEEP = 20.0  # how sharply a neuron tells a pair of names from half a pair
LOUD = 3.0  # how much louder the decoy is
SLOW = D_HEAD // 2 - 1  # the coordinate of a head that rotates least with position

Store = Literal["one", "backup", "split"]


@dataclass(frozen=True)
class RecallWorld:
    """A model that looks facts up where we planted them."""

    model: "TransformerBridge"
    facts: list[Fact]
    store: tuple[int, ...]
    """Layers of the MLPs that hold the facts: one, or two that hold half of each answer's strength."""
    backup: int | None
    """Layer of an MLP that answers if, and only if, the store did not."""
    decoy: int
    handover: int
    """Layer whose attention carries the answer from the name to the end."""


@dataclass(frozen=True)
class _Space:
    """Orthogonal directions of the residual stream, by what they stand for."""

    first: Float[Tensor, "name d_model"]
    last: Float[Tensor, "name d_model"]
    copied: Float[Tensor, "name d_model"]
    found: Float[Tensor, "answer d_model"]
    unread: Float[Tensor, "answer d_model"]
    said: Float[Tensor, "answer d_model"]
    is_first: Float[Tensor, " d_model"]
    is_last: Float[Tensor, " d_model"]
    is_end: Float[Tensor, " d_model"]
    constant: Float[Tensor, " d_model"]


@torch.no_grad()
def recall_world(seed: int = 0, store: Store = "one", n_layers: int = 8) -> RecallWorld:
    """Plant twelve facts; where store, decoy and hand-over are is drawn from the seed.

    Args:
        store: `one` MLP; `backup`, with a second that keeps silent while the first one answers; or `split` over two
            neighbouring layers.
    Raises:
        ValueError: too few layers for all of it.
    """
    if n_layers < 6:
        raise ValueError(f"{n_layers} layers cannot hold a store, its backup, a decoy and a hand-over; give 6 or more")
    generator = torch.Generator().manual_seed(seed)
    layer = int(torch.randint(1, n_layers - 4, (1,), generator=generator))
    layers = (layer, layer + 1) if store == "split" else (layer,)
    handover = int(torch.randint(layer + 3, n_layers, (1,), generator=generator))
    free = [other for other in range(1, n_layers) if other not in (layer, layer + 1, layer + 2)]
    decoy = free[int(torch.randint(len(free), (1,), generator=generator))]
    backup = layer + 2 if store == "backup" else None

    model = tiny_model(FIRST + LAST + ANSWERS + OTHERS, D_MODEL, seed, num_hidden_layers=n_layers)
    plain, space = unhooked(model), _space(generator)
    pairs, answers = _drawn_facts(generator)
    for weight in plain.parameters():
        if weight.ndim == 2:
            weight.copy_(0.003 * torch.randn(weight.shape, generator=generator))
    _write_vocabulary(plain, model.tokenizer.get_vocab(), space)
    blocks = plain.model.layers
    _plant_attention(blocks[0].self_attn, space.is_last, space.is_first, space.first, space.copied)
    _plant_attention(blocks[handover].self_attn, space.is_end, space.is_last, space.found, space.said)
    keys = space.copied[pairs[:, 0]] + space.last[pairs[:, 1]]
    for held in layers:
        _plant_lookup(blocks[held].mlp, keys, space.found[answers] / len(layers), space.constant)
    if backup is not None:
        _plant_lookup(blocks[backup].mlp, keys - space.found[answers], space.found[answers], space.constant)
    _plant_lookup(blocks[decoy].mlp, keys, LOUD * space.unread[answers], space.constant)
    return RecallWorld(model, _facts(pairs, answers), layers, backup, decoy, handover)


def _space(generator: torch.Generator) -> _Space:
    rows = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=generator)).Q
    groups = rows[:30].split([len(FIRST), len(LAST), len(FIRST), len(ANSWERS), len(ANSWERS), len(ANSWERS)])
    return _Space(*groups, *rows[30:34])


def _drawn_facts(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pairs of names, each name of which occurs with several answers, so that no half of a name gives it away."""
    every = torch.cartesian_prod(torch.arange(len(FIRST)), torch.arange(len(LAST)))
    pairs = every[torch.randperm(len(every), generator=generator)[:N_FACTS]]
    return pairs, torch.arange(N_FACTS) % len(ANSWERS)


def _facts(pairs: Tensor, answers: Tensor) -> list[Fact]:
    facts = []
    for (first, last), answer in zip(pairs.tolist(), answers.tolist(), strict=True):
        true, false = ANSWERS[answer], ANSWERS[(answer + 1) % len(ANSWERS)]
        subject = f"{FIRST[first]} {LAST[last]}"
        facts.append(Fact("home", subject, "the person {} comes from", true, false, (), (), (), (), (), "planted"))
    return facts


def _write_vocabulary(plain: torch.nn.Module, vocabulary: dict[str, int], space: _Space) -> None:
    embedding, W_U = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
    embedding += CONSTANT * space.constant
    for n, word in enumerate(FIRST):
        embedding[vocabulary[BLANK + word]] += space.first[n] + 2 * space.is_first
    for n, word in enumerate(LAST):
        embedding[vocabulary[BLANK + word]] += space.last[n] + 2 * space.is_last
    embedding[vocabulary[BLANK + "from"]] += 2 * space.is_end
    for n, word in enumerate(ANSWERS):
        W_U[vocabulary[BLANK + word]] = 8 * space.said[n]


def _plant_attention(attention: torch.nn.Module, dest: Tensor, src: Tensor, read: Tensor, written: Tensor) -> None:
    """One head: tokens along `dest` attend to tokens along `src`, and what lies along `read` there is written anew."""
    attention.q_proj.weight[SLOW] += 4 * dest
    attention.k_proj.weight[SLOW] += 4 * src
    attention.v_proj.weight[: len(read)] += read
    attention.o_proj.weight[:, : len(read)] += written.T


def _plant_lookup(mlp: torch.nn.Module, keys: Tensor, answers: Tensor, constant: Tensor) -> None:
    """A neuron per fact, which fires where all of its key is there and writes the answer."""
    n, unit = len(keys), constant / CONSTANT
    mlp.gate_proj.weight[:n] += STEEP * (keys - 1.5 * unit)
    mlp.up_proj.weight[:n] += unit
    mlp.down_proj.weight[:, :n] += answers.T / (0.5 * STEEP)
