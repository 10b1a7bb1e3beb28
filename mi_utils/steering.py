"""Add directions to the residual stream while a model runs, and measure what that does, wanted and unwanted.

Doses are in units of the typical length of the residual vector where they are added, so that directions, layers and
models compare. Three numbers judge a steered model without any judge: the *effect*, by how much the log-odds of the
concept's words against their opposites move at the end of a prompt; *fluency*, what the unsteered model pays per token
for the steered continuation, in nats; and the *off-target* divergence of next-token distributions on neutral text.

Papers: Turner et al. 2023, arXiv:2308.10248; anti-steerable inputs, Tan et al. 2024, arXiv:2407.12404; strength chosen
on one half and scored on the other, Wu et al. 2025, arXiv:2501.17148. Taught in `05_steering`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.concepts import Concept, token_ids
from mi_utils.directions import orthogonalised
from mi_utils.hooks import Edit, intervene, run_with_cache
from mi_utils.metrics import Interval, bootstrap_interval, cross_entropy, kl_divergence

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

DOSES = (0.0, 0.05, 0.1, 0.2, 0.35, 0.6, 1.0)
"""In units of the typical length of the residual vector."""
CURVES = Path(__file__).resolve().parent.parent / "data" / "concepts" / "steering_curves.csv.gz"
LATENTS = CURVES.with_name("steering_latents.csv")
N_ROWS = 96  # rows run together: enough to keep two cores busy, few enough for their logits to fit in memory


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


@dataclass(frozen=True)
class Budget:
    """How much fluency may be lost."""

    cost: float = 1.0
    """Nats per token more than the unsteered model's own continuations cost it."""
    repeats: float = 0.1
    """Share of repeated bigrams more than in the unsteered model's own continuations."""


class AtBudget(NamedTuple):
    """A direction at the dose that half of the prompts chose, measured on the other half."""

    dose: float
    effect: float
    """Mean gain in log-odds, nats."""
    interval: Interval
    """Of the mean, over prompts."""
    wrong_way: float
    """Share of the prompts on which the effect is negative."""
    cost: float
    """Nats per token, over the unsteered continuations' own cost."""
    repeats: float
    off_target: float
    """Mean KL divergence on neutral text, nats per token."""


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
def cost(
    model: "TransformerBridge", prompts: Sequence[str], continuations: Int[Tensor, "row token"]
) -> Float[Tensor, " row"]:
    """What the model, as it is, pays per token for each continuation, in nats."""
    tokens, attention_mask = _padded(model, prompts)
    tokens = torch.cat([tokens, continuations], 1)
    attention_mask = torch.cat([attention_mask, torch.ones_like(continuations)], 1)
    n = continuations.shape[1]
    paid = []
    for rows, mask in zip(tokens.split(N_ROWS // 4), attention_mask.split(N_ROWS // 4), strict=True):
        logits = model(rows, attention_mask=mask)[:, -n - 1 :]
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

    @torch.no_grad()
    def log_odds(self, prompts: Sequence[str], additions: Sequence[Addition] = ()) -> Float[Tensor, " prompt"]:
        tokens, attention_mask = _padded(self.model, prompts)
        with steered(self.model, additions, n_before=1 + (attention_mask == 0).sum(1)):
            return self.read(self.model(tokens, attention_mask=attention_mask)[:, -1])


@dataclass(frozen=True)
class Bench:
    """Where and how directions are tried out: one place, one set of doses, one neutral text."""

    model: "TransformerBridge"
    hook_name: str
    neutral: Int[Tensor, "context pos"]
    """Contexts of ordinary text, on which nothing ought to change."""
    doses: tuple[float, ...] = DOSES
    n_tokens: int = 12
    """Length of the continuations that fluency is read from."""
    seed: int = 0

    @cached_property
    def unit(self) -> float:
        """The length of a dose of 1, in the activation's units."""
        return typical_norm(self.model, self.hook_name, self.neutral)

    @cached_property
    def _at_rest(self) -> Float[Tensor, "context pos d_vocab"]:
        with torch.no_grad():
            return self.model(self.neutral)[:, 1:]

    def dose_curve(self, gauge: Gauge, direction: Float[Tensor, " d_model"]) -> pd.DataFrame:
        """Effect, cost and repeats of each prompt at each dose, and the dose's divergence on neutral text.

        Returns:
            One row per dose and prompt: `dose`, `prompt` (its number), `effect`, `cost`, `repeats`, `off_target`.
        """
        amounts = self.unit * torch.tensor(self.doses)
        divergences = self.off_target([Addition(self.hook_name, amount * direction) for amount in amounts])
        n = len(gauge.prompts)
        additions = [Addition(self.hook_name, amounts.repeat_interleave(n)[:, None] * direction)]
        curve = self._measured(gauge, gauge.prompts * len(self.doses), additions)
        curve.insert(0, "dose", np.repeat(self.doses, n))
        return curve.assign(prompt=np.tile(np.arange(n), len(self.doses)), off_target=np.repeat(divergences, n))

    def prompted(self, gauge: Gauge) -> pd.DataFrame:
        """The same of the prompts alone (dose 0) and with the concept's instruction before them (dose 1).

        The instruction is not part of the text whose cost is taken, just as an added vector is not.
        """
        n = len(gauge.prompts)
        curves = [
            self._measured(gauge, gauge.prompts, [], prefix).assign(dose=dose, prompt=np.arange(n), off_target=0.0)
            for dose, prefix in ((0.0, ""), (1.0, gauge.concept.instruction))
        ]
        return pd.concat(curves, ignore_index=True)

    @torch.no_grad()
    def off_target(self, additions: Sequence[Addition]) -> list[float]:
        """Mean KL divergence from the unsteered to the steered model on the neutral text, for each addition alone."""
        found = []
        for addition in additions:
            with steered(self.model, [addition]):
                found.append(float(kl_divergence(self._at_rest, self.model(self.neutral)[:, 1:]).mean()))
        return found

    def _measured(
        self, gauge: Gauge, prompts: Sequence[str], additions: Sequence[Addition], prefix: str = ""
    ) -> pd.DataFrame:
        given = [prefix + prompt for prompt in prompts]
        written = [
            generate(self.model, given[rows], _rows_of(additions, rows), n_tokens=self.n_tokens, seed=self.seed).tokens
            for rows in _blocks(len(given))
        ]
        written = torch.cat(written)
        log_odds = [gauge.log_odds(given[rows], _rows_of(additions, rows)) for rows in _blocks(len(given))]
        effect = torch.cat(log_odds).view(-1, len(gauge.prompts)) - gauge.at_rest
        return pd.DataFrame(
            {
                "effect": effect.flatten().numpy(),
                "cost": cost(self.model, prompts, written).numpy(),
                "repeats": repeats(written).numpy(),
            }
        )


def together(first: Addition, second: Addition) -> list[Addition]:
    """Both as they are."""
    return [first, second]


def orthogonal(first: Addition, second: Addition) -> list[Addition]:
    """The second without what it has along the first, at the length it had."""
    return [first, second._replace(vector=second.vector.norm() * orthogonalised(second.vector, first.vector))]


def additivity(
    gauges: Mapping[str, Gauge],
    additions: Mapping[str, Addition],
    seconds: Mapping[str, Addition] | None = None,
    combine: Callable[[Addition, Addition], list[Addition]] = together,
) -> pd.DataFrame:
    """What every two concepts do together, against the sum of what each does alone, on the first one's prompts.

    Args:
        additions: by concept, the vector that steers towards it.
        seconds: the same for the second of a pair, when it is added elsewhere.
        combine: how two additions become one intervention.
    Returns:
        One row per ordered pair, with means over prompts in nats: `concept` whose log-odds are read, `other`, the
        effects `own`, `cross`, `predicted` (their sum) and `observed`, and `low`, `high` around observed - predicted.
    """
    seconds = additions if seconds is None else seconds
    rows = []
    for name, gauge in gauges.items():
        own = gauge([additions[name]])
        for other in additions:
            if other == name:
                continue
            cross, observed = gauge([seconds[other]]), gauge(combine(additions[name], seconds[other]))
            gap = bootstrap_interval((observed - own - cross).numpy())
            means = {"own": own, "cross": cross, "predicted": own + cross, "observed": observed}
            rows.append({"concept": name, "other": other} | {key: float(value.mean()) for key, value in means.items()})
            rows[-1] |= {"low": gap.low, "high": gap.high}
    return pd.DataFrame(rows)


def at_budget(curve: pd.DataFrame, budget: Budget = Budget()) -> AtBudget:
    """The dose with the largest effect within the budget on the first half of the prompts, measured on the second.

    A dose of zero is always within the budget, so a direction that only destroys is reported with an effect of zero.

    Raises:
        ValueError: fewer than four prompts, or no dose of zero to compare with.
    """
    n = curve["prompt"].nunique()
    if n < 4 or 0.0 not in set(curve["dose"]):
        raise ValueError(f"expected at least four prompts and a dose of 0, got {n} and {sorted(set(curve['dose']))}")
    rest = curve[curve["dose"] == 0].set_index("prompt")
    paid = curve.assign(
        cost=curve["cost"] - curve["prompt"].map(rest["cost"]),
        repeats=curve["repeats"] - curve["prompt"].map(rest["repeats"]),
    )
    chosen_on, reported_on = paid[paid["prompt"] < n // 2], paid[paid["prompt"] >= n // 2]
    means = chosen_on.groupby("dose")[["effect", "cost", "repeats"]].mean()
    allowed = means[(means["cost"] <= budget.cost) & (means["repeats"] <= budget.repeats)]
    dose = float(allowed["effect"].idxmax())
    reported = reported_on[reported_on["dose"] == dose]
    effects = reported["effect"].to_numpy()
    return AtBudget(
        dose,
        float(effects.mean()),
        bootstrap_interval(effects),
        float((effects < 0).mean()),
        float(reported["cost"].mean()),
        float(reported["repeats"].mean()),
        float(reported["off_target"].mean()),
    )


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


def _blocks(n_rows: int) -> list[slice]:
    return [slice(n, n + N_ROWS) for n in range(0, n_rows, N_ROWS)]


def _rows_of(additions: Sequence[Addition], rows: slice) -> list[Addition]:
    return [a if a.vector.ndim == 1 else a._replace(vector=a.vector[rows]) for a in additions]
