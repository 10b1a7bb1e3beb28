"""Facts as cases for the audit, and the scoreboard: a row for each edited fact and method, a column for each criterion.

`Bench` prepares facts of one relation once; `score` audits one edit. No column is a summary of the others.

Papers: Cohen et al. 2023, "Evaluating the Ripple Effects of Knowledge Editing", arXiv:2307.12976; loud facts,
Hoelscher-Obermaier et al. 2023, arXiv:2305.17553; edits read off weights, Youssef et al. 2025, arXiv:2505.20819. Taught
in `09_edit_a_fact`.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils import auditing, facts
from mi_utils.auditing import Background, Case, Question, Reading
from mi_utils.edits import Edit, Request, plain_of, prefixes, request
from mi_utils.facts import FOLDER, Asked, Fact, answer_token, answer_tokens, encode, subject_positions
from mi_utils.models import unembedding

if TYPE_CHECKING:
    from sae_lens import SAE
    from transformer_lens.model_bridge import TransformerBridge

WINDOW = 5  # layers that are silenced together
N_BACKGROUND = 40
N_ASKED = 2  # prompts of each kind
DISTANCES = {"near": "", "far": " It has been raining since the early morning."}
"""What stands between the mention of the subject and a question about something else."""
FOLLOWS = {"city_country": "country_language", "capital_country": "country_language"}
"""The relation whose answer follows from the edited one's, for ripples."""
PREFIX_LENGTHS = (5, 5)
SWEEP, SCORES, PLANTED = "edit_sweep.csv", "edit_scores.csv", "planted_edits.csv"


class Bench:
    """Facts of one relation that a model knows, with what is usual for their subjects.

    Args:
        known: at least two facts with answers of one token; the first forty are the background.
    Raises:
        ValueError: fewer than two facts, several relations, or an answer of several tokens.
    """

    def __init__(self, model: "TransformerBridge", known: Sequence[Fact]) -> None:
        if len({fact.relation for fact in known}) != 1 or len(known) < 2:
            raise ValueError(f"got {len(known)} facts; expected two or more, all of one relation")
        self.model, self.known = model, list(known)
        tokenizer = model.tokenizer
        answers = {answer_token(tokenizer, a) for fact in known for a in (fact.target_true, fact.target_false)}
        self.objects = torch.tensor(sorted(answers))
        self._before: dict[str, Reading] = {}
        self._gaps: dict[str, Tensor] = {}

    @cached_property
    def usual(self) -> Background:
        """Means, and what probes are made from; an edited fact is left out when its own probe is made."""
        kept = self.known[:N_BACKGROUND]
        return auditing.background(self.model, [_plain_case(self.model, fact, self.objects) for fact in kept])

    @cached_property
    def before(self) -> list[str]:
        """Texts that stand before the prompt while an edit is sought."""
        return prefixes(self.model, PREFIX_LENGTHS)

    def request(self, fact: Fact) -> Request:
        """What an edit of the fact is asked to do; raises as `rome.request`."""
        return request(self.model, fact, self.before)

    def case(self, fact: Fact) -> Case:
        """What an edit of the fact is judged by."""
        plain = _plain_case(self.model, fact, self.objects)
        return Case(plain.tokens, plain.position, plain.old, plain.new, self.objects, questions(self.model, fact))

    def clean(self, fact: Fact) -> Reading:
        """The reading of the model as it is, made once for each fact."""
        if fact.subject not in self._before:
            self._before[fact.subject] = auditing.read(self.model, self.case(fact), self.usual, WINDOW)
        return self._before[fact.subject]

    def edited(self, fact: Fact, edit: Edit) -> Reading:
        """The reading with an edit in force."""
        with edit.applied(self.model):
            return auditing.read(self.model, self.case(fact), self.usual, WINDOW)

    def score(self, fact: Fact, edit: Edit) -> dict[str, float]:
        """One row of the scoreboard: the audit, the split of the votes, and what the weights show."""
        before, after, case = self.clean(fact), self.edited(fact, edit), self.case(fact)
        split = auditing.split_votes(self.model, before, after, case)
        return auditing.scores(before, after, case) | split | in_the_weights(self.model, edit, case, self.gaps)

    def gaps(self, part: str) -> Float[Tensor, " layer"]:
        """How far the first singular value of one matrix stands out in every layer, without an edit."""
        if part not in self._gaps:
            layers = plain_of(self.model).model.layers
            self._gaps[part] = torch.stack([_gap(layer.get_submodule(part).weight) for layer in layers])
        return self._gaps[part]


def questions(model: "TransformerBridge", fact: Fact) -> dict[str, list[Question]]:
    """Prompts beside the edited one, by criterion.

    `paraphrase`; `neighbourhood` and `siblings`, other subjects of the relation with the same and with other answers;
    `near` and `far`, other relations after a mention of the subject; `reverse`, from the new answer back to the
    subject; `ripple`, what follows from the new answer. The last two only where the relation has them.
    """
    tokenizer = model.tokenizer
    old, new = (answer_token(tokenizer, answer) for answer in (fact.target_true, fact.target_false))

    def first(answer: str) -> int:
        return int(answer_tokens(tokenizer, answer)[0])

    def elsewhere(asked: Sequence[Asked], before: str = "") -> list[Question]:
        return [Question(encode(tokenizer, before + text), first(answer), new) for text, answer in asked]

    found = {
        "paraphrase": [Question(encode(tokenizer, text), new, old) for text in fact.paraphrases],
        "neighbourhood": elsewhere(fact.neighbourhood[:N_ASKED]),
        "siblings": elsewhere([asked for asked in fact.siblings if first(asked.answer) != new][:N_ASKED]),
    }
    for name, between in DISTANCES.items():
        found[name] = elsewhere(fact.far[:N_ASKED], f"{fact.subject} is well known.{between} ")
    backwards = [text.replace(fact.target_true, fact.target_false) for text, _ in fact.reverse]
    usual = _subjects(fact.relation).get(fact.target_false, "")
    if backwards and usual:
        found["reverse"] = [Question(encode(tokenizer, text), first(fact.subject), first(usual)) for text in backwards]
    implied = _implied(fact)
    if implied and first(implied[1]) != first(implied[2]):
        found["ripple"] = [Question(encode(tokenizer, implied[0]), first(implied[1]), first(implied[2]))]
    return {name: group for name, group in found.items() if group}


@torch.no_grad()
def in_the_weights(
    model: "TransformerBridge", edit: Edit, case: Case, gaps: Callable[[str], Float[Tensor, " layer"]]
) -> dict[str, float]:
    """What the weights show of an edit, the largest over its matrices; nothing for one that is added to activations.

    Keys: `change`, the length of the change in lengths of the matrix; `rank one`, the share of its square that one
    direction has; `outlier`, for one who does not have the original, how far the first singular value of the edited
    matrix stands out from the second, in standard deviations over the same matrices of all layers; `named`, the new
    answer's lead when the direction of the change is read as words.

    Args:
        gaps: from the name of a matrix to how far its first singular value stands out in each layer: `Bench.gaps`.
    """
    plain, rows = plain_of(model), []
    words = unembedding(model)[:, case.objects]
    for name, change in edit.changes(plain).items():
        weight = plain.get_submodule(name).weight
        left, values, _ = torch.svd_lowrank(change, q=4)
        usual, here = gaps(name.split(".", 3)[-1]), _gap(weight + change)
        lens = left[:, 0] @ words if len(left) == model.cfg.d_model else None
        rows.append(
            {
                "change": float(change.norm() / weight.norm()),
                "rank one": float(values[0] ** 2 / change.square().sum()),
                "outlier": float((here - usual.mean()) / usual.std()),
                "named": float("nan") if lens is None else float(auditing.lead(lens, case, case.new).abs()),
            }
        )
    return pd.DataFrame(rows).max().to_dict() if rows else {}


@torch.no_grad()
def in_latents(sae: "SAE", before: Reading, after: Reading, layer: int) -> dict[str, float]:
    """How a dictionary of the residual stream sees the subject's state after an edit at or below its layer.

    Keys: `new` and `lost`, the latents that came and went; `move`, the length of the change in lengths of the state;
    `explained`, the share of the change's square that the dictionary's reconstructions have; `error`, the
    reconstruction error after, in errors before.
    """
    states = torch.stack([reading.states[layer, auditing.SUBJECT] for reading in (before, after)])
    acts, rebuilt = sae.encode(states), sae(states)
    move, seen = states[1] - states[0], rebuilt[1] - rebuilt[0]
    errors = (states - rebuilt).norm(dim=-1)
    return {
        "new": float(((acts[1] > 0) & (acts[0] <= 0)).sum()),
        "lost": float(((acts[0] > 0) & (acts[1] <= 0)).sum()),
        "move": float(move.norm() / states[0].norm()),
        "explained": float(1 - (move - seen).square().sum() / move.square().sum()),
        "error": float(errors[1] / errors[0]),
    }


def measured(name: str) -> pd.DataFrame:
    """A table on record, made by `data/facts/edits.py`: `SWEEP`, `SCORES` or `PLANTED`."""
    return pd.read_csv(FOLDER / name)


def explained(table: pd.DataFrame, n_resamples: int = 500, seed: int = 0) -> pd.DataFrame:
    """How much of edit success the layer explains, tracing explains, and both, as R^2 with intervals over facts.

    Least squares with a constant for each layer and a slope for the tracing effect. Rows: `layer`, `tracing`, `both`,
    and `gain`, both less the layer alone; columns `value`, `low`, `high`.

    Args:
        table: `fact`, `layer`, `success`, `effect`.
    Source: Hase et al. 2023, "Does Localization Inform Editing?", arXiv:2301.04213, section 5.
    """
    groups = [group for _, group in table.groupby("fact")]
    rng = np.random.default_rng(seed)
    draws = [
        _shares(pd.concat([groups[i] for i in rng.integers(0, len(groups), len(groups))])) for _ in range(n_resamples)
    ]
    low, high = np.quantile(pd.DataFrame(draws), [0.025, 0.975], axis=0)
    return pd.DataFrame({"value": _shares(table), "low": low, "high": high})


def _shares(table: pd.DataFrame) -> pd.Series:
    layers = pd.get_dummies(table.layer).to_numpy(float)
    effect = np.column_stack([np.ones(len(table)), table.effect])
    y = table.success.to_numpy()

    def r2(x: np.ndarray) -> float:
        left = y - x @ np.linalg.lstsq(x, y, rcond=None)[0]
        return 1 - float(left @ left) / float(np.square(y - y.mean()).sum())

    shares = {"layer": r2(layers), "tracing": r2(effect), "both": r2(np.column_stack([layers, effect[:, 1:]]))}
    return pd.Series(shares | {"gain": shares["both"] - shares["layer"]})


def _plain_case(model: "TransformerBridge", fact: Fact, objects: Int[Tensor, " object"]) -> Case:
    tokenizer = model.tokenizer
    old, new = (answer_token(tokenizer, answer) for answer in (fact.target_true, fact.target_false))
    position = subject_positions(tokenizer, fact.text, fact.subject)[-1]
    return Case(encode(tokenizer, fact.text), position, old, new, objects)


def _implied(fact: Fact) -> tuple[str, str, str] | None:
    """A prompt about the subject, its answer if the edit were true, and its answer now."""
    relation = FOLLOWS.get(fact.relation)
    if relation is None:
        return None
    follows = _answers(relation)
    new, old = follows.get(fact.target_false), follows.get(fact.target_true)
    return (f"The main language spoken in {fact.subject} is", new, old) if new and old else None


@cache
def _answers(relation: str) -> Mapping[str, str]:
    rows = facts.table(relation)
    return dict(zip(rows.subject, rows.answer, strict=True))


@cache
def _subjects(relation: str) -> Mapping[str, str]:
    return {answer: subject for subject, answer in _answers(relation).items()}


def _gap(weight: Tensor) -> Tensor:
    """Logarithm of the first singular value over the second."""
    values = torch.linalg.svdvals(weight @ weight.T if weight.shape[0] < weight.shape[1] else weight.T @ weight)
    return 0.5 * (values[0] / values[1]).log()
