"""Add directions to the residual stream while a model runs, and read off what that does, without any judge.

A `Gauge` reads the *effect*: by how much the log-odds of a concept's words against their opposites move at the end of a
prompt. `cost` is *fluency*: what the unsteered model pays per token for what the steered one wrote.

Paper: Turner et al. 2023, "Steering Language Models With Activation Engineering", arXiv:2308.10248. Taught in
`05_steering`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.concepts import Concept, token_ids
from mi_utils.hooks import Edit, intervene, run_with_cache
from mi_utils.metrics import cross_entropy

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_LOGIT_ROWS = 24  # rows whose logits at every position are held at once


class Addition(NamedTuple):
    """A vector that is added to the activation at one place."""

    hook_name: str
    vector: Float[Tensor, "*row d_model"]
    """In the activation's own units: one for all rows of a batch, or one for each."""
    where: Literal["all", "generated"] | tuple[int, ...] = "all"
    """All positions but the beginning-of-text token; from the prompt's last on; or positions of the prompt alone."""


class Continuations(NamedTuple):
    """What a model wrote after each prompt."""

    tokens: Int[Tensor, "row token"]
    texts: list[str]


@contextmanager
def steered(
    model: "TransformerBridge", additions: Sequence[Addition], *, n_before: Int[Tensor, " row"] | int = 1
) -> Iterator[None]:
    """Add vectors while the block runs; a pass over a single position counts as a step of generation.

    Additions whose vector is zero attach nothing, so that a dose of zero leaves the outputs as they are, bit by bit.

    Args:
        n_before: positions at the start that nothing is added to: padding and the beginning-of-text token.
    Raises:
        ValueError: an unknown hook, a vector of another width, or a position beyond the prompt.
    """
    by_place: dict[str, list[Addition]] = {}
    for addition in additions:
        if addition.vector.shape[-1] != model.cfg.d_model:
            raise ValueError(
                f"the vector for {addition.hook_name} has width {addition.vector.shape[-1]}, the model's residual "
                f"stream {model.cfg.d_model}; directions belong to the model they were found in"
            )
        if addition.vector.any():
            by_place.setdefault(addition.hook_name, []).append(addition)
    if not by_place:
        yield
        return
    with intervene(model, {name: _edit(group, torch.as_tensor(n_before)) for name, group in by_place.items()}):
        yield


@torch.no_grad()
def generate(
    model: "TransformerBridge",
    prompts: Sequence[str],
    additions: Sequence[Addition] = (),
    *,
    n_tokens: int = 20,
    temperature: float = 1.0,
    seed: int = 0,
) -> Continuations:
    """Continue prompts in one batch with a key-value cache; the same seed draws the same random numbers.

    Args:
        temperature: 0 takes the likeliest token each time.
    Raises:
        ValueError: no prompts, an empty one, or as `steered`.
    """
    tokens, attention_mask = _padded(model, prompts)
    n_before = 1 + (attention_mask == 0).sum(1)
    with steered(model, additions, n_before=n_before), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        written = model.generate(
            tokens,
            attention_mask=attention_mask,
            max_new_tokens=n_tokens,
            do_sample=temperature > 0,
            temperature=temperature or 1.0,
            stop_at_eos=False,
            return_type="tokens",
            verbose=False,
        )[:, tokens.shape[1] :]
    return Continuations(written, [model.tokenizer.decode(row) for row in written])


@torch.no_grad()
def stream(
    model: "TransformerBridge", prompt: str, additions: Sequence[Addition] = (), *, n_tokens: int = 20
) -> Iterator[Int[Tensor, " token"]]:
    """The likeliest continuation, a token at a time: yields what has been written so far.

    The additions are in force while a token is computed and at no other time, so whoever asks for the next token may
    use the model in between.

    Raises:
        ValueError: an empty prompt, or as `steered`.
    """
    fed, _ = _padded(model, [prompt])
    written, cache = fed.new_empty(0), None
    for _ in range(n_tokens):
        with steered(model, additions):
            output = model.original_model(fed, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        fed = output.logits[:, -1].argmax(-1, keepdim=True)
        written = torch.cat([written, fed[0]])
        yield written


@torch.no_grad()
def next_logits(
    model: "TransformerBridge", prompts: Sequence[str], additions: Sequence[Addition] = ()
) -> Float[Tensor, "row d_vocab"]:
    """Logits of the token after each prompt.

    Raises:
        ValueError: no prompts, an empty one, or as `steered`.
    """
    tokens, attention_mask = _padded(model, prompts)
    with steered(model, additions, n_before=1 + (attention_mask == 0).sum(1)):
        return model(tokens, attention_mask=attention_mask, logits_to_keep=1)[:, -1]


@torch.no_grad()
def cost(
    model: "TransformerBridge", prompts: Sequence[str], continuations: Int[Tensor, "row token"]
) -> Float[Tensor, " row"]:
    """What the model, as it is, pays per token for each continuation, in nats."""
    tokens, attention_mask = _padded(model, prompts)
    tokens = torch.cat([tokens, continuations], 1)
    attention_mask = torch.cat([attention_mask, torch.ones_like(continuations)], 1)
    n = continuations.shape[1]
    paid = []
    for rows, mask in zip(tokens.split(N_LOGIT_ROWS), attention_mask.split(N_LOGIT_ROWS), strict=True):
        logits = model(rows, attention_mask=mask, logits_to_keep=n + 1)
        paid.append(cross_entropy(logits, rows[:, -n - 1 :]).mean(1))
    return torch.cat(paid)


def repeats(continuations: Int[Tensor, "row token"]) -> Float[Tensor, " row"]:
    """The share of a row's bigrams that it has already used: near 1 for a model caught in a loop."""
    pairs = torch.stack([continuations[:, :-1], continuations[:, 1:]], -1)
    return torch.tensor([1 - len(row.unique(dim=0)) / len(row) for row in pairs])


def typical_norm(model: "TransformerBridge", hook_name: str, tokens: Int[Tensor, "context pos"]) -> float:
    """The median length of the activation vector at a place, the first position of each context left out."""
    with torch.no_grad():
        acts = run_with_cache(model, tokens, [hook_name])[hook_name]
    return float(acts[:, 1:].norm(dim=-1).median())


class Gauge:
    """Reads a concept off the model: log-odds of its words against their opposites after each of its prompts.

    Args:
        prompts: others than the concept's own.
    Raises:
        ValueError: none of the concept's words is one token of this tokenizer.
    """

    def __init__(self, model: "TransformerBridge", concept: Concept, prompts: Sequence[str] | None = None) -> None:
        self.model, self.concept = model, concept
        self.prompts = list(concept.prompts if prompts is None else prompts)
        self._positive = token_ids(concept.positive_words, model.tokenizer)
        self._negative = token_ids(concept.negative_words, model.tokenizer)
        self.at_rest = self.log_odds(self.prompts)
        """Log-odds of the unsteered model."""

    def __call__(self, additions: Sequence[Addition]) -> Float[Tensor, " prompt"]:
        """The effect of additions on each prompt: gain in log-odds, in nats."""
        return self.log_odds(self.prompts, additions) - self.at_rest

    def prompted(self) -> Float[Tensor, " prompt"]:
        """The effect of the concept's instruction put before each prompt: the baseline."""
        return self.log_odds([self.concept.instruction + prompt for prompt in self.prompts]) - self.at_rest

    def read(self, logits: Float[Tensor, "row d_vocab"]) -> Float[Tensor, " row"]:
        """The log-odds in next-token logits."""
        return logits[:, self._positive].logsumexp(1) - logits[:, self._negative].logsumexp(1)

    def log_odds(self, prompts: Sequence[str], additions: Sequence[Addition] = ()) -> Float[Tensor, " prompt"]:
        """The concept's log-odds after each of any prompts."""
        return self.read(next_logits(self.model, prompts, additions))


def _edit(additions: Sequence[Addition], n_before: Int[Tensor, ""] | Int[Tensor, " row"]) -> Edit:
    def edit(activation: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
        for addition in additions:
            vector = addition.vector if addition.vector.ndim == 1 else addition.vector[:, None]
            activation = activation + _reached(addition.where, activation, n_before)[..., None] * vector
        return activation

    return edit


def _reached(
    where: Literal["all", "generated"] | tuple[int, ...], activation: Tensor, n_before: Tensor
) -> Float[Tensor, "#row pos"]:
    """1 at the positions of this pass that an addition reaches."""
    n = activation.shape[1]
    if n == 1:
        return torch.full((1, 1), float(isinstance(where, str)))
    positions = torch.arange(n)
    if where == "all":
        return (positions >= n_before.view(-1, 1)).float()
    if where == "generated":
        return (positions == n - 1).float()[None]
    shortest = n + 1 - int(n_before.max())
    if not all(-shortest <= position < shortest for position in where):
        raise ValueError(f"positions {where} are not all in a prompt of {shortest} tokens; -1 counts from the end")
    begins = n_before.view(-1, 1) - 1
    chosen = [positions == (begins + position if position >= 0 else n + position) for position in where]
    return torch.stack(torch.broadcast_tensors(*chosen)).any(0).float().view(-1, n)


def _padded(model: "TransformerBridge", prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens, padded on the left, and the mask of what is not padding, both [row pos]."""
    if not prompts or not all(prompts):
        raise ValueError(f"expected prompts, none empty; got {len(prompts)}, of which {list(prompts).count('')} empty")
    ids = [model.to_tokens(prompt, prepend_bos=True)[0] for prompt in prompts]
    longest = max(map(len, ids))
    tokens = torch.full((len(ids), longest), model.tokenizer.pad_token_id)
    mask = torch.zeros_like(tokens)
    for row, known, own in zip(tokens, mask, ids, strict=True):
        row[longest - len(own) :] = own
        known[longest - len(own) :] = 1
    return tokens, mask
