"""Causal tracing: corrupt the subject, put clean states back one site at a time, and see which bring the answer back.

Noise is Gaussian, in units of the standard deviation of the embedding's entries, as in the paper; a `twin` is another
subject of equally many tokens, which corrupts without leaving the model's habits. Effects are reported as probability
or log-odds, and as the share of the loss that is recovered: 0 as bad as the corrupted run, 1 as good as the clean one.

Paper: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv:2202.05262; on its choices: Zhang &
Nanda 2024, "Towards Best Practices of Activation Patching", arXiv:2309.16042. Taught in `08_locate_a_fact`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_utils.facts import FOLDER, Fact, answer_tokens, encode, subject_positions
from mi_utils.patching import Metric, Run, Stack, sweep

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOISE, N_DRAWS, RECORDED_DRAWS = 3.0, 8, 4
TRACED = (
    "city_country",
    "us_city_state",
    "country_language",
    "country_continent",
    "country_capital",
    "capital_country",
    "element_symbol",
)
"""Relations of which the default model knows enough facts without examples."""
TRACES, TRACED_FACTS = FOLDER / "traces.csv.gz", FOLDER / "traced_facts.csv"


class Question(NamedTuple):
    """A prompt, where its subject stands, and what to watch."""

    tokens: Int[Tensor, " pos"]
    subject: range
    true: int
    """The first token of the answer."""
    false: int
    """The first token of the wrong answer."""


def question(tokenizer: "PreTrainedTokenizerBase", fact: Fact) -> Question:
    """A fact as tokens. Of answers of several tokens the first counts, since the rest follows from it.

    Raises:
        ValueError: the subject cannot be found, or both answers begin with the same token.
    """
    true, false = (int(answer_tokens(tokenizer, answer)[0]) for answer in (fact.target_true, fact.target_false))
    if true == false:
        raise ValueError(
            f"{fact.target_true!r} and {fact.target_false!r} begin with the same token "
            f"{tokenizer.decode([true])!r}; choose another wrong answer"
        )
    span = subject_positions(tokenizer, fact.text, fact.subject)
    return Question(encode(tokenizer, fact.text), span, true, false)


def noised(
    stack: Stack,
    asked: Question,
    *,
    noise: float = NOISE,
    n_draws: int = N_DRAWS,
    positions: Sequence[int] | None = None,
    seed: int = 0,
) -> Float[Tensor, "draw pos d_model"]:
    """Embeddings of the prompt with noise on the subject's tokens, a row per draw.

    Args:
        noise: standard deviation, in units of that of the embedding matrix's entries.
        positions: corrupt these instead of the subject: the control.
    Raises:
        ValueError: no noise or no draws.
    """
    if not noise > 0 or n_draws < 1:
        raise ValueError(f"expected noise above 0 and at least one draw, got {noise} and {n_draws}")
    where = list(asked.subject if positions is None else positions)
    embeds = stack.embed(asked.tokens[None]).repeat(n_draws, 1, 1)
    size = noise * float(stack.plain.get_input_embeddings().weight.std())
    drawn = torch.randn(n_draws, len(where), embeds.shape[-1], generator=torch.Generator().manual_seed(seed))
    embeds[:, where] += size * drawn.to(embeds.device)
    return embeds


def twin(tokenizer: "PreTrainedTokenizerBase", fact: Fact, others: Sequence[Fact]) -> Question | None:
    """The first other fact with the same prompt, equally many subject tokens and another answer; `None` if none has.

    What it asks for is the other's answer: `true` is that answer, `false` the first fact's.
    """
    asked = question(tokenizer, fact)
    for other in others:
        if other.prompt != fact.prompt or other.subject == fact.subject:
            continue
        theirs = question(tokenizer, other)
        if theirs.subject == asked.subject and len(theirs.tokens) == len(asked.tokens) and theirs.true != asked.true:
            return theirs._replace(false=asked.true)
    return None


@dataclass(frozen=True)
class Pair:
    """A clean run and a corrupted one of the same length, and what is asked."""

    asked: Question
    clean: Run
    corrupted: Run


def corrupt(stack: Stack, asked: Question, **how: object) -> Pair:
    """The clean run beside runs with noise on the subject; arguments as `noised`."""
    return Pair(asked, stack.read(stack.embed(asked.tokens[None])), stack.read(noised(stack, asked, **how)))


def swap(stack: Stack, asked: Question, other: Question) -> Pair:
    """The clean run beside the run of a `twin`; the wrong answer is the twin's.

    Raises:
        ValueError: the prompts differ in length.
    """
    if len(asked.tokens) != len(other.tokens):
        raise ValueError(f"prompts of {len(asked.tokens)} and {len(other.tokens)} tokens; choose a twin with `twin`")
    clean, corrupted = (stack.read(stack.embed(question.tokens[None])) for question in (asked, other))
    return Pair(asked._replace(false=other.true), clean, corrupted)


def effects(
    stack: Stack,
    pair: Pair,
    metric: Metric,
    sites: Bool[Tensor, "site pos"],
    *,
    direction: Literal["denoise", "noise"] = "denoise",
    kind: str = "resid_post",
    width: int = 1,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "site layer"]:
    """How much of what the corruption costs each patch brings back, or costs by itself, mean over rows.

    Args:
        metric: one number a row.
        direction: `denoise` puts clean states into the corrupted run, `noise` corrupted ones into the clean run.
    Raises:
        ValueError: as `patching.sweep`, or the corruption cost nothing.
    """
    clean, corrupted = (float(metric(run.logits).mean()) for run in (pair.clean, pair.corrupted))
    base, donor = (pair.corrupted, pair.clean) if direction == "denoise" else (pair.clean, pair.corrupted)
    patched = sweep(stack, base, donor, metric, sites, kind=kind, width=width, layers=layers).mean(2)
    shares = share_recovered(patched, corrupted, clean)
    return shares if direction == "denoise" else 1 - shares


def share_recovered(values: Float[Tensor, "*shape"], corrupted: float, clean: float) -> Float[Tensor, "*shape"]:
    """Where a metric stands between the corrupted run, 0, and the clean one, 1.

    Raises:
        ValueError: the corruption changed nothing, so there is nothing to recover.
    """
    if abs(clean - corrupted) < 1e-6:
        raise ValueError(f"clean and corrupted runs both score {clean:.3g}; use more noise or another subject")
    return (values - corrupted) / (clean - corrupted)


def recorded_traces() -> pd.DataFrame:
    """What `data/facts/traces.py` measured in the default model, a row per fact, arm and layer.

    Columns: `relation`, `subject`, `kind`, `width` and `site` of the patch, `layer`, and the answer's probability `p`
    and `log_odds` against the wrong answer, both with the clean state put into the corrupted run, means over draws.
    Sites are the `subject`'s last token, the `last` token, a token `elsewhere`, and the subject's last token with the
    state of an `other prompt`.
    """
    return pd.read_csv(TRACES, keep_default_na=False)


def traced_facts() -> pd.DataFrame:
    """The facts of `recorded_traces`, with `p` and `log_odds` of the clean run, the corrupted one, and one in which as
    many tokens after the subject were corrupted instead."""
    return pd.read_csv(TRACED_FACTS, keep_default_na=False)
