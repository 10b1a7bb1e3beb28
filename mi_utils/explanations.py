"""Test an explanation of a latent: does it say, on text nobody has looked at, where the latent fires and where not?

An explanation is worth what it predicts. Half of a latent's firings may be read; then come questions from the other
half, from text where the latent is silent, and from near misses: the very tokens it fires on, in places where it does
not. A person answers by reading; a rule, which is a function of a snippet, answers by itself.

Read: Paulo et al. (2024), Automatically interpreting millions of features in large language models, on scoring by
detection. Taught in `02_inspect_latents`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse
from jaxtyping import Bool, Int
from torch import Tensor

from mi_utils.activations import Exclusion
from mi_utils.cards import Snippet
from mi_utils.corpus import token_texts
from mi_utils.indexing import fired
from mi_utils.latents import LatentIndex
from mi_utils.metrics import Interval
from mi_utils.sae import Dictionary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Rule = Callable[[Snippet], bool]
FIRES, NEAR_MISS, SILENT = "fires", "near miss", "silent"


@dataclass(frozen=True)
class Observed:
    """A text on which every activation of a dictionary is known."""

    tokens: Int[Tensor, "context pos"]
    acts: scipy.sparse.csc_array
    """`[token latent]`, tokens counted through all contexts."""
    kept: Bool[np.ndarray, " token"]
    """Tokens that were read; the others were left out by the rule of the store."""


def observe(
    model: "TransformerBridge",
    dictionary: Dictionary,
    tokens: Int[Tensor, "context pos"],
    hook_name: str,
    exclusion: Exclusion = Exclusion(),
) -> Observed:
    """Read a text and keep all activations: some 100 bytes a token, so meant for thousands of tokens."""
    parts = list(fired(model, dictionary, tokens, hook_name, exclusion))
    latent, where, act = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("latent", "where", "act")
    )
    acts = scipy.sparse.csc_array((act, (where, latent)), shape=(tokens.numel(), len(dictionary.W_dec)))
    return Observed(tokens, acts, np.concatenate([part.kept.ravel() for part in parts]))


@dataclass(frozen=True)
class Question:
    """Does the latent fire on the marked token? `snippet` shows neither activations nor the source, a giveaway."""

    snippet: Snippet
    kind: str
    """`FIRES`, `NEAR_MISS` (a token it fires on elsewhere) or `SILENT` (a random token)."""

    @property
    def fires(self) -> bool:
        return self.kind == FIRES


@dataclass(frozen=True)
class Score:
    """How well answers tell firings from silence."""

    sensitivity: float
    """Share of the firings that were called so."""
    near_misses_told: float
    """Share of near misses called silent; NaN if there were none."""
    silences_told: float
    """Share of random silent tokens called silent."""
    accuracy: float
    """Mean of the sensitivity and the mean of the two others: 0.5 is guessing, 1 is perfect."""
    interval: Interval
    """Of the accuracy, over questions within each kind."""


@dataclass(frozen=True)
class Quiz:
    """What may be read of a latent, and the questions about what was held back."""

    latent: int
    shown: list[Snippet]
    questions: list[Question]

    def score(self, answers: Sequence[bool]) -> Score:
        """Mark the answers, one for each question: does the latent fire there?

        Raises:
            ValueError: too few or too many answers.
        """
        if len(answers) != len(self.questions):
            raise ValueError(f"{len(answers)} answers for {len(self.questions)} questions; give one for each")
        right = {
            kind: np.array(
                [
                    float(bool(answer) == question.fires)
                    for answer, question in zip(answers, self.questions, strict=True)
                    if question.kind == kind
                ]
            )
            for kind in (FIRES, NEAR_MISS, SILENT)
        }
        shares = {kind: float(marks.mean()) if len(marks) else float("nan") for kind, marks in right.items()}
        silent = [right[kind] for kind in (NEAR_MISS, SILENT) if len(right[kind])]
        rng = np.random.default_rng(0)
        draws = [_accuracy(right[FIRES], silent, rng) for _ in range(1000)]
        low, high = np.quantile(draws, [0.025, 0.975])
        return Score(*shares.values(), _accuracy(right[FIRES], silent), Interval(float(low), float(high)))

    def answer_with(self, rule: Rule) -> Score:
        """The score of a rule."""
        return self.score([rule(question.snippet) for question in self.questions])


def _accuracy(fires: np.ndarray, silent: list[np.ndarray], rng: np.random.Generator | None = None) -> float:
    def mean(marks: np.ndarray) -> float:
        return float((marks if rng is None else rng.choice(marks, len(marks))).mean())

    return (mean(fires) + sum(map(mean, silent)) / len(silent)) / 2


def quiz(
    index: LatentIndex, observed: Observed, latent: int, *, n_each: int = 6, top_only: bool = False, seed: int = 0
) -> Quiz:
    """Split what is known of a latent into what is shown and what is asked.

    Half of the index's random sample of firings is shown, or, with `top_only`, the strongest examples in their place.
    The questions are the same either way: firings come from the other half, and are in no context that may be shown.

    Args:
        observed: text the index was not made of; near misses and silences come from it.
        n_each: questions of each kind, at most.
    Raises:
        ValueError: the latent fires too rarely for a quiz.
    """
    rng, sample = np.random.default_rng((seed, latent)), index.sample(latent)
    half = len(sample) // 2
    if half < 2:
        raise ValueError(f"latent {latent} fired {len(sample)} times on the index's text; a quiz needs at least 4")
    top = index.top(latent)
    shown = top if top_only else sample[:half]
    texts = {"".join(snippet.tokens) for snippet in [*top, *sample[:half]]}
    held_back = [snippet for snippet in sample[half:] if "".join(snippet.tokens) not in texts]
    if not held_back:
        raise ValueError(f"latent {latent} fires on one repeated text only, so nothing is left to ask about")
    acts = observed.acts[:, [latent]].toarray()[:, 0]
    silent = observed.kept & (acts == 0)
    ids = observed.tokens.flatten().numpy()
    fired_on = [snippet.tokens[snippet.mark] for snippet in sample]
    wanted = {i for text in set(fired_on) for i in index.tokenizer.encode(text, add_special_tokens=False)[:1]}
    near = np.flatnonzero(silent & np.isin(ids, list(wanted)))
    far = np.flatnonzero(silent)
    questions = [Question(_hidden(snippet), FIRES) for snippet in held_back[:n_each]]
    for kind, places in ((NEAR_MISS, near), (SILENT, far)):
        chosen = rng.choice(places, min(n_each, len(places)), replace=False)
        questions += [Question(_observed_snippet(index, observed, place), kind) for place in chosen.tolist()]
    return Quiz(latent, shown, [questions[i] for i in rng.permutation(len(questions))])


def _hidden(snippet: Snippet) -> Snippet:
    return Snippet("question", snippet.tokens, np.zeros_like(snippet.acts), snippet.mark)


def _observed_snippet(index: LatentIndex, observed: Observed, place: int) -> Snippet:
    context, position = divmod(place, observed.tokens.shape[1])
    first = max(0, position - index.settings.before)
    ids = observed.tokens[context, first : position + index.settings.after + 1].tolist()
    texts = tuple(token_texts(index.tokenizer, ids))
    return Snippet("question", texts, np.zeros(len(ids), dtype=np.float32), position - first)


def token_rule(shown: Sequence[Snippet]) -> Rule:
    """The plainest explanation: the latent fires on the tokens it was seen to fire on, whatever stands around them."""
    seen = {_plain(snippet.tokens[snippet.mark]) for snippet in shown}
    return lambda snippet: _plain(snippet.tokens[snippet.mark]) in seen


def token_rules(index: LatentIndex, observed: Observed, latents: Sequence[int], seed: int = 0) -> pd.DataFrame:
    """Two token rules for each latent, asked the same questions: read off the top examples or off a random sample.

    Columns: `accuracy` and `sensitivity` of each, as `top accuracy`, `sample accuracy` and so on. Latents that fire too
    rarely for a quiz are left out.
    """
    rows = {}
    for latent in latents:
        try:
            asked = quiz(index, observed, latent, seed=seed)
        except ValueError:
            continue
        scores = {"top": asked.answer_with(token_rule(index.top(latent)))}
        scores["sample"] = asked.answer_with(token_rule(asked.shown))
        rows[latent] = {
            f"{name} {measure}": getattr(score, measure)
            for name, score in scores.items()
            for measure in ("accuracy", "sensitivity")
        }
    return pd.DataFrame(rows).T.rename_axis("latent")


def _plain(token: str) -> str:
    return token.strip().lower()


def majority_rule(fires: bool) -> Rule:
    """The control: the same answer to every question."""
    return lambda _snippet: fires
