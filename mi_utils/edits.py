"""One fact to be changed, and a change of a model: where it is made, what it writes, and a `with` block to have it in.

An edit is kept apart from the model. `with edit.applied(model):` puts it in force, as a change of weights or as an
addition to activations, and afterwards the weights are what they were, bit for bit.

Paper: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv:2202.05262. Taught in
`09_edit_a_fact`.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.facts import Fact, answer_token, encode, subject_positions
from mi_utils.hooks import hook_name, intervene
from mi_utils.models import unhooked
from mi_utils.steering import generate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

PREFIX_LENGTHS = (5,) * 10 + (10,) * 10
"""Tokens of the texts that are put before the prompt while an edit is sought, as in the released code of ROME."""


@dataclass(frozen=True)
class Request:
    """One fact to be changed, in tokens."""

    rows: tuple[Int[Tensor, "_"], ...]
    """The prompt, then the same prompt after other text. The answer follows each."""
    positions: tuple[int, ...]
    """Where the subject's last token stands in each."""
    old: int
    new: int
    essence: Int[Tensor, "_"]
    """A text about the subject whose continuation should stay: "{subject} is a"."""
    essence_position: int
    subject: Int[Tensor, "_"]
    """The subject's tokens as they stand in the prompt."""


@dataclass(frozen=True)
class Site:
    """A sublayer that writes to the residual stream at the subject's last token."""

    layer: int
    head: int | None = None
    """One attention head; the MLP if not given."""

    @property
    def kind(self) -> str:
        """ "mlp" or "attn"."""
        return "mlp" if self.head is None else "attn"

    def module(self, plain: "PreTrainedModel") -> torch.nn.Linear:
        """The matrix that writes."""
        layer = plain.model.layers[self.layer]
        return layer.mlp.down_proj if self.head is None else layer.self_attn.o_proj

    def columns(self, plain: "PreTrainedModel") -> slice:
        """The part of what the matrix reads that belongs to the site."""
        if self.head is None:
            return slice(None)
        width = plain.config.hidden_size // plain.config.num_attention_heads
        return slice(self.head * width, (self.head + 1) * width)


@dataclass(frozen=True)
class Edit:
    """A change of a model, in force inside `with edit.applied(model):`."""

    method: str
    site: Site | None = None
    delta: Float[Tensor, " d_model"] | None = None
    """What is written in addition, if it is one vector."""
    key: Float[Tensor, " d_key"] | None = None
    """Read by a rank-one change: 1 at the subject's key."""
    weights: Mapping[str, Tensor] | None = None
    """Changes of whole matrices, by their names in the plain model."""
    subject: Int[Tensor, " token"] | None = None
    """After these tokens the vector is written; everywhere, where neither they nor a key are given."""

    def changes(self, plain: "PreTrainedModel") -> dict[str, Tensor]:
        """What is added to each matrix of the plain model; nothing for a vector that is added to activations."""
        if self.weights is not None:
            return dict(self.weights)
        if self.key is None:
            return {}
        module = self.site.module(plain)
        change = torch.zeros_like(module.weight)
        change[:, self.site.columns(plain)] = torch.outer(self.delta, self.key)
        return {next(name for name, other in plain.named_modules() if other is module): change}

    @contextmanager
    def applied(self, model: "TransformerBridge") -> Iterator[None]:
        """The model with the edit, while the block runs; afterwards its weights are what they were, bit for bit."""
        plain = plain_of(model)
        modules = {plain.get_submodule(name): change for name, change in self.changes(plain).items()}
        kept = {module: module.weight.clone() for module in modules}
        try:
            with torch.no_grad():
                for module, change in modules.items():
                    module.weight.add_(change)
            with _written(model, self) if self.delta is not None and self.key is None else nullcontext():
                yield
        finally:
            with torch.no_grad():
                for module, weight in kept.items():
                    module.weight.copy_(weight)


@lru_cache(maxsize=4)
def plain_of(model: "TransformerBridge") -> "PreTrainedModel":
    """The plain model on the same weights, made once for each of the models that were used last."""
    return unhooked(model)


def prefixes(model: "TransformerBridge", lengths: Sequence[int] = PREFIX_LENGTHS, seed: int = 0) -> list[str]:
    """Texts of so many tokens each that the model makes up, to put before a prompt."""
    texts = generate(model, [model.tokenizer.bos_token] * len(lengths), n_tokens=max(lengths), seed=seed).tokens
    return [model.tokenizer.decode(row[:n]).strip() + ". " for row, n in zip(texts, lengths, strict=True)]


def request(model: "TransformerBridge", fact: Fact, before: Sequence[str] = ()) -> Request:
    """The tokens of an edit that makes the model give the fact's false answer.

    Args:
        before: texts that are put before the prompt, as `prefixes` makes them.
    Raises:
        ValueError: the prompt does not name the subject, an answer is several tokens, or the model does not give the
            true answer, so that there is nothing to change.
    """
    tokenizer = model.tokenizer
    texts = [fact.text, *(text + fact.text for text in before)]
    rows = tuple(encode(tokenizer, text) for text in texts)
    spans = [subject_positions(tokenizer, text, fact.subject) for text in texts]
    old, new = answer_token(tokenizer, fact.target_true), answer_token(tokenizer, fact.target_false)
    with torch.no_grad():
        said = int(model(rows[0][None].to(model.cfg.device))[0, -1].argmax())
    if said != old:
        raise ValueError(
            f"the model does not know that {fact.text!r} goes on with {fact.target_true!r}: it says "
            f"{tokenizer.decode([said])!r}; take a fact that it knows, see facts.known"
        )
    essence = f"{fact.subject} is a"
    return Request(
        rows,
        tuple(span[-1] for span in spans),
        old,
        new,
        encode(tokenizer, essence),
        subject_positions(tokenizer, essence, fact.subject)[-1],
        rows[0][spans[0].start : spans[0].stop],
    )


@contextmanager
def _written(model: "TransformerBridge", edit: Edit) -> Iterator[None]:
    """An activation addition: the vector after the subject's tokens, or at every token."""
    seen: list[Tensor] = []
    place = hook_name("mlp_out" if edit.site.head is None else "attn_out", edit.site.layer)

    def look(_module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[:] = inputs

    def add(out: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        return out + _ends(seen[0], edit.subject)[..., None] * edit.delta

    handle = model.original_model.get_input_embeddings().register_forward_pre_hook(look)
    try:
        with intervene(model, {place: add}):
            yield
    finally:
        handle.remove()


def _ends(tokens: Int[Tensor, "batch pos"], subject: Int[Tensor, " token"] | None) -> Float[Tensor, "batch pos"]:
    """1 where the subject's last token stands; everywhere if there is no subject."""
    ends = torch.ones(tokens.shape)
    if subject is not None:
        for back, token in enumerate(reversed(subject.tolist())):
            ends *= torch.nn.functional.pad(tokens == token, (back, 0))[:, : tokens.shape[1]].float()
    return ends
