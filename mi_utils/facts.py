"""Facts a model may know: subject, relation, answer, a wrong answer, and the prompts that test one fact and its kin.

`load` gives every fact of the shipped table, `known` keeps those that a loaded model knows. Prompts are tokenised by
`encode`, which puts the beginning-of-text token first: without it the first token of the subject would be the one that
attention parks on, and corrupting it would break more than the fact. Positions count that token as 0.

Paper: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv:2202.05262, whose CounterFact has the
same parts. Taught in `08_locate_a_fact`.
"""

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Int
from torch import Tensor

from mi_utils.concepts import batches

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).resolve().parent.parent / "data" / "facts"
TABLES = "facts.jsonl.xz", "facts_sa.jsonl.xz"
RECORD = FOLDER / "known.csv.gz"
THRESHOLD = 0.3
N_SHOTS = 5
N_KIN = 5  # prompts of each kind beside a fact
BATCH = 16


class Asked(NamedTuple):
    """A prompt and its right answer."""

    text: str
    answer: str


@dataclass(frozen=True)
class Fact:
    """One fact, and the prompts that show what an edit of it does elsewhere."""

    relation: str
    subject: str
    prompt: str
    """Template with `{}` for the subject; examples, if any were asked for, stand before it."""
    target_true: str
    target_false: str
    """A wrong answer of the same kind that begins with another token."""
    paraphrases: tuple[str, ...]
    """Other ways to ask for the same, the subject filled in."""
    neighbourhood: tuple[Asked, ...]
    """Other subjects with the same answer; where an answer has one subject, other subjects with theirs."""
    siblings: tuple[Asked, ...]
    """Other subjects of the relation with another answer."""
    far: tuple[Asked, ...]
    """Other relations."""
    reverse: tuple[Asked, ...]
    """Prompts that name the answer and ask for the subject; empty where an answer has many subjects."""
    source: str

    @property
    def text(self) -> str:
        """The prompt with the subject filled in."""
        return self.prompt.replace("{}", self.subject)


def relations() -> list[str]:
    """The relations there are templates for."""
    return list(_templates())


def table(relation: str | None = None) -> pd.DataFrame:
    """Every shipped fact, known or not: `relation`, `subject`, `answer`, `false`, `source`.

    Raises:
        ValueError: no such relation.
    """
    rows = _table()
    return (rows if relation is None else rows[rows.relation == _checked(relation)]).reset_index(drop=True)


def load(relation: str | None = None, *, shots: int = 0) -> list[Fact]:
    """All facts of a relation, or of all relations, known or not.

    The prompts about *other* facts ask only what the default model is on record as knowing, so that a change there
    means something; which ones is fixed by the fact.

    Args:
        shots: how many examples stand before the prompt, at most five; their subjects are left out.
    Raises:
        ValueError: no such relation, or not so many examples.
    """
    if not 0 <= shots <= N_SHOTS:
        raise ValueError(f"{shots} examples were asked for; there are 0 to {N_SHOTS}")
    names = relations() if relation is None else [_checked(relation)]
    return [fact for name in names for fact in _facts(name, shots)]


def recorded(shots: int = 0) -> pd.DataFrame:
    """What the default model knows, from the record in `data/facts/`: the columns of `measure`.

    Raises:
        ValueError: a number of examples that was not recorded.
    """
    record = _record()
    if shots not in set(record.shots):
        raise ValueError(f"nothing is on record for {shots} examples; there is {sorted(set(record.shots))}")
    return record[record.shots == shots].drop(columns="shots").reset_index(drop=True)


def load_known(relation: str | None = None, *, shots: int = 0) -> list[Fact]:
    """The facts that the default model is on record as knowing. For any other model: `known(model, load(...))`.

    Raises:
        ValueError: as `load` and `recorded`.
    """
    record = recorded(shots)
    kept = set(zip(record.relation[record.known], record.subject[record.known], strict=True))
    return [fact for fact in load(relation, shots=shots) if (fact.relation, fact.subject) in kept]


def known(model: "TransformerBridge", facts: Sequence[Fact], threshold: float = THRESHOLD) -> list[Fact]:
    """The facts a model knows: the answer's first token is the likeliest and above the threshold, and the whole answer
    is what the model would write, the likeliest token each time.

    Args:
        threshold: the least probability of the first token.
    """
    measured = measure(model, facts, threshold)
    return [fact for fact, keep in zip(facts, measured.known, strict=True) if keep]


@torch.no_grad()
def measure(model: "TransformerBridge", facts: Sequence[Fact], threshold: float = THRESHOLD) -> pd.DataFrame:
    """What a model makes of each fact's prompt, a row per fact in their order.

    Columns: `relation`, `subject`, `p_true` and `p_false` (probabilities of the first tokens), `argmax` (the answer's
    first token is the likeliest), `whole` (so are the rest in turn), `tokens` (of the answer) and `known`.

    Raises:
        ValueError: no facts.
    """
    if not facts:
        raise ValueError("no facts were given; expected some, such as facts.load('country_capital')")
    prompts = [encode(model.tokenizer, fact.text) for fact in facts]
    answers = [answer_tokens(model.tokenizer, fact.target_true) for fact in facts]
    false = [int(answer_tokens(model.tokenizer, fact.target_false)[0]) for fact in facts]
    inputs = [torch.cat([prompt, answer[:-1]]) for prompt, answer in zip(prompts, answers, strict=True)]
    found: list[Any] = [None] * len(facts)
    for rows in batches([len(tokens) for tokens in inputs], BATCH):
        logits = model(torch.stack([inputs[i] for i in rows]).to(model.cfg.device)).cpu()
        for i, row in zip(rows, logits, strict=True):
            p, right = row[len(prompts[i]) - 1].softmax(-1), row[len(prompts[i]) - 1 :].argmax(-1) == answers[i]
            found[i] = float(p[answers[i][0]]), float(p[false[i]]), bool(right[0]), bool(right.all()), len(answers[i])
    measured = pd.DataFrame(found, columns=["p_true", "p_false", "argmax", "whole", "tokens"])
    measured.insert(0, "relation", [fact.relation for fact in facts])
    measured.insert(1, "subject", [fact.subject for fact in facts])
    return measured.assign(known=measured.whole & (measured.p_true > threshold))


def counts(measured: pd.DataFrame, threshold: float = THRESHOLD) -> pd.DataFrame:
    """How many facts of each relation are known, a row per relation, from what `measure` or `recorded` gave."""
    grouped = measured.assign(above=measured.p_true > threshold, single=measured.known & (measured.tokens == 1))
    columns = {
        "facts": ("known", "size"),
        "likeliest": ("argmax", "sum"),
        f"p > {threshold:g}": ("above", "sum"),
        "known": ("known", "sum"),
        "known, one token": ("single", "sum"),
    }
    return grouped.groupby("relation", sort=False).agg(**columns).sort_values("known", ascending=False)


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> Int[Tensor, " pos"]:
    """The tokens of a text after the beginning-of-text token, if the tokenizer has one.

    Raises:
        ValueError: an empty text.
    """
    if not text:
        raise ValueError("the prompt is empty; expected some text")
    return torch.tensor(_beginning(tokenizer) + tokenizer.encode(text, add_special_tokens=False))


def subject_positions(tokenizer: "PreTrainedTokenizerBase", prompt: str, subject: str) -> range:
    """Where the subject's tokens stand in `encode(tokenizer, prompt)`; `[-1]` is the last of them.

    The tokens are found by the characters they cover, so that it makes no difference how the subject would be split by
    itself, without the blank before it. Of several occurrences the last counts: examples come before the question.

    Raises:
        ValueError: the prompt does not name the subject, or no tokens cover just the subject, as where it is part of a
            longer word.

    """
    if not subject.strip() or subject not in prompt:
        raise ValueError(
            f"the subject {subject!r} does not occur in the prompt {prompt!r}; spell it as the prompt does"
        )
    offsets = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    n_before, begin = len(_beginning(tokenizer)), prompt.rfind(subject)
    while begin >= 0:
        end = begin + len(subject)
        covering = [i for i, (low, high) in enumerate(offsets) if low < end and high > begin]
        outside = prompt[offsets[covering[0]][0] : begin] + prompt[end : offsets[covering[-1]][1]]
        if not outside.strip():
            return range(n_before + covering[0], n_before + covering[-1] + 1)
        begin = prompt.rfind(subject, 0, end - 1)
    pieces = [prompt[low:high] for low, high in offsets]
    raise ValueError(
        f"no tokens of {prompt!r} cover just the subject {subject!r}: they are {pieces}; name all of a word"
    )


def answer_tokens(tokenizer: "PreTrainedTokenizerBase", answer: str) -> Int[Tensor, " token"]:
    """The tokens of an answer as it follows a prompt, after a blank.

    Raises:
        ValueError: an empty answer.
    """
    if not answer.strip():
        raise ValueError("the answer is empty; expected some text")
    return torch.tensor(tokenizer.encode(f" {answer.strip()}", add_special_tokens=False))


def answer_token(tokenizer: "PreTrainedTokenizerBase", answer: str) -> int:
    """The one token of an answer as it follows a prompt.

    Raises:
        ValueError: the answer is empty or is several tokens.
    """
    tokens = answer_tokens(tokenizer, answer)
    if len(tokens) > 1:
        pieces = [tokenizer.decode([token]) for token in tokens.tolist()]
        raise ValueError(
            f"the answer {answer!r} is {len(tokens)} tokens, {pieces}; take `answer_tokens`, or keep to facts whose "
            "answers are one token: `facts.one_token`"
        )
    return int(tokens[0])


def one_token(tokenizer: "PreTrainedTokenizerBase", facts: Iterable[Fact]) -> list[Fact]:
    """The facts whose true and false answers are one token each, and not the same."""
    kept = []
    for fact in facts:
        true, false = (answer_tokens(tokenizer, answer) for answer in (fact.target_true, fact.target_false))
        if len(true) == len(false) == 1 and true != false:
            kept.append(fact)
    return kept


def _beginning(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def _checked(relation: str) -> str:
    if relation not in _templates():
        raise ValueError(f"no relation {relation!r}; there are {', '.join(relations())}")
    return relation


@cache
def _templates() -> dict[str, dict[str, Any]]:
    return tomllib.loads((FOLDER / "relations.toml").read_text(encoding="utf8"))


@cache
def _table() -> pd.DataFrame:
    rows = pd.concat([pd.read_json(FOLDER / name, lines=True, dtype=False) for name in TABLES])
    order = {name: i for i, name in enumerate(_templates())}
    return rows.sort_values("relation", key=lambda names: names.map(order), kind="stable", ignore_index=True)


@cache
def _record() -> pd.DataFrame:
    if not RECORD.exists():  # while it is being made: no fact has kin yet
        return pd.DataFrame(columns=["relation", "subject", "known", "shots"]).astype({"known": bool})
    return pd.read_csv(RECORD, keep_default_na=False)


@cache
def _facts(relation: str, shots: int) -> tuple[Fact, ...]:
    template, examples = _asking(relation, shots)
    shown = {subject for subject, _ in _templates()[relation]["shots"][:shots]}
    kin = _kin(relation, shots)
    return tuple(
        _fact(row, examples + template, kin, shown) for row in table(relation).itertuples() if row.subject not in shown
    )


def _asking(relation: str, shots: int) -> tuple[str, str]:
    """The template, and the examples before it."""
    written = _templates()[relation]
    if not shots:
        return written["prompt"], ""
    template = written.get("shown", written["prompt"])
    examples = [f"{template.replace('{}', subject)} {answer}.\n" for subject, answer in written["shots"][:shots]]
    return template, "".join(examples)


def _fact(row: Any, prompt: str, kin: Sequence[Any], shown: set[str]) -> Fact:
    written, rng = _templates()[row.relation], Random(f"{row.relation}/{row.subject}")
    others = [other for other in kin if other.relation == row.relation and other.subject not in shown | {row.subject}]
    same = [other for other in others if other.answer == row.answer]

    def ask(rows: Sequence[Any], template: str | None = None) -> tuple[Asked, ...]:
        return tuple(
            Asked((template or _templates()[other.relation]["prompt"]).replace("{}", other.subject), other.answer)
            for other in rng.sample(rows, min(N_KIN, len(rows)))
        )

    return Fact(
        row.relation,
        row.subject,
        prompt,
        row.answer,
        row.false,
        tuple(text.replace("{}", row.subject) for text in written["paraphrases"]),
        ask(same or others, prompt),
        ask([other for other in others if other.answer != row.answer], prompt),
        ask([other for other in kin if other.relation != row.relation]),
        tuple(Asked(text.replace("{}", row.answer), row.subject) for text in written.get("reverse", [])),
        row.source,
    )


@cache
def _kin(relation: str, shots: int) -> list[Any]:
    """Facts on record as known: of this relation as it is asked here, of the others without examples."""
    record = _record()
    shown = N_SHOTS if shots and (record.shots == N_SHOTS).any() else 0
    asked = record[record.known & (record.shots == shown * (record.relation == relation))]
    return list(asked[["relation", "subject"]].merge(table(), on=["relation", "subject"]).itertuples())
