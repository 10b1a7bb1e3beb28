"""The audit of an edited fact: what the model says now, and whether the old answer is still in there.

A rewritten fact leaves no trace of the old answer. One that was shouted over is still looked up, and is outvoted. Four
readings could tell them apart, none of which needs to know the edit: how far the old answer leads the bystanders, the
objects of its relation that are neither old nor new, in the logit lens and in a probe, by layer; how likely it gets
when one part of the model is silenced; and its vote, the logit above the bystanders' mean, that is left.
The control is a bystander in the old answer's place.

Papers: Patil et al. 2023, "Can Sensitive Information Be Deleted From LLMs?", arXiv:2309.17410; Makelov et al. 2023,
arXiv:2311.17030. Taught in `09_edit_a_fact`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.concepts import batches
from mi_utils.hooks import hook_name, intervene, run_with_cache

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

SUBJECT, LAST = 0, 1
PLACES = ("subject", "last")
KINDS = ("mlp_out", "attn_out")
N_ROWS = 16  # prompts that run at once
RIDGE = 0.1  # of the mean squared length of a state


class Question(NamedTuple):
    """A prompt that shows what an edit does beside its own prompt."""

    tokens: Int[Tensor, " pos"]
    right: int
    """The token that should win: the new answer for another wording, the usual answer elsewhere."""
    wrong: int
    """The token that should lose."""


@dataclass(frozen=True)
class Case:
    """One fact, and what its edit is judged by, in tokens."""

    tokens: Int[Tensor, " pos"]
    position: int
    """Where the subject's last token stands."""
    old: int
    new: int
    objects: Int[Tensor, " object"]
    """Answers of the relation, the old and the new one among them."""
    questions: dict[str, list[Question]] = field(default_factory=dict)
    """By criterion."""

    def bystanders(self) -> Int[Tensor, " object"]:
        """The objects that are neither old nor new."""
        return self.objects[(self.objects != self.old) & (self.objects != self.new)]


@dataclass(frozen=True)
class Background:
    """What is usual at the two places for subjects of a relation that are not edited."""

    cases: Sequence[Case]
    """Their true answer is `old`."""
    objects: Int[Tensor, " object"]
    means: dict[str, Float[Tensor, "place d_model"]]
    """By hook name: what attention and MLP write on average."""
    states: Float[Tensor, "row layer place d_model"]
    """The residual stream, each state at unit length."""

    def probe(
        self, case: Case
    ) -> tuple[Float[Tensor, "layer place d_model object"], Float[Tensor, "layer place object"]]:
        """Weights and offset that read the object off a state, learned from every other fact than this one."""
        others = [i for i, other in enumerate(self.cases) if not torch.equal(other.tokens, case.tokens)]
        labels = torch.tensor([self.cases[i].old for i in others])[:, None] == self.objects
        weights, offset = _ridge(self.states[others].flatten(1, 2).transpose(0, 1), labels.float())
        shape = self.states.shape[1:3]
        return weights.unflatten(0, shape), offset.unflatten(0, shape)


@dataclass(frozen=True)
class Reading:
    """What one model, edited or not, shows of one case."""

    said: Float[Tensor, " object"]
    """Log-probability of each object after the prompt."""
    lens: Float[Tensor, "layer place object"]
    """Logits of each object, the final norm applied to each layer's state."""
    probed: Float[Tensor, "layer place object"]
    questions: dict[str, Float[Tensor, "question answer"]]
    """Log-probabilities of the right and of the wrong answer."""
    silenced: Float[Tensor, "part object"]
    """Logits of the objects with one part silenced, as `silenced` gives them."""
    states: Float[Tensor, "layer place d_model"]


def places(case: Case) -> Int[Tensor, " place"]:
    """The subject's last token and the last token."""
    return torch.tensor([case.position, len(case.tokens) - 1])


@torch.no_grad()
def background(
    model: "TransformerBridge", cases: Sequence[Case], objects: Int[Tensor, " object"] | None = None
) -> Background:
    """What probes and means are made from: facts of one relation, of which a case that is read is left out.

    Args:
        cases: their true answer is `old`; prompts, positions and answers are all that is used.
        objects: what the probes tell apart; those of the first case if not given.
    Raises:
        ValueError: fewer than two facts, or an answer that is none of the objects.
    """
    objects = cases[0].objects if objects is None and cases else objects
    if len(cases) < 2 or not all(case.old in objects for case in cases):
        raise ValueError(f"got {len(cases)} facts; expected two or more, whose answers are among the objects")
    layers = range(model.cfg.n_layers)
    names = [hook_name(kind, layer) for kind in KINDS for layer in layers]
    states = [hook_name("resid_post", layer) for layer in layers]
    tokens, at = _padded([case.tokens for case in cases]), torch.stack([places(case) for case in cases])
    found = run_with_cache(model, tokens, names + states)
    rows = torch.arange(len(cases))[:, None]
    means = {name: found[name][rows, at].mean(0) for name in names}
    read = torch.stack([found[name][rows, at] for name in states], 1)
    read /= read.norm(dim=-1, keepdim=True)
    return Background(list(cases), objects, means, read)


@torch.no_grad()
def read(model: "TransformerBridge", case: Case, usual: Background, window: int = 1) -> Reading:
    """Everything the audit looks at, from the model as it is now: call it inside `with edit.applied(model):`.

    Args:
        window: how many neighbouring layers are silenced together.
    """
    asked = [(name, question) for name, group in case.questions.items() for question in group]
    rows = [case.tokens, *(question.tokens for _, question in asked)]
    names = [hook_name("resid_post", layer) for layer in range(model.cfg.n_layers)]
    found = run_with_cache(model, case.tokens[None], names)
    states = torch.stack([found[name][0, places(case)] for name in names])
    weights, offset = usual.probe(case)
    probed = torch.einsum("lpd,lpdo->lpo", states / states.norm(dim=-1, keepdim=True), weights) + offset
    logits = torch.empty(len(rows), model.cfg.d_vocab)
    for batch in batches([len(row) for row in rows], N_ROWS):
        logits[batch] = model(torch.stack([rows[i] for i in batch]), logits_to_keep=1)[:, -1].log_softmax(-1)
    answers = {name: [] for name in case.questions}
    for (name, question), row in zip(asked, logits[1:], strict=True):
        answers[name].append(row[[question.right, question.wrong]])
    return Reading(
        logits[0, case.objects],
        _unembed(model, states, case.objects),
        probed,
        {name: torch.stack(pairs) for name, pairs in answers.items() if pairs},
        silenced(model, case, usual.means, window),
        states,
    )


@torch.no_grad()
def silenced(
    model: "TransformerBridge", case: Case, means: dict[str, Float[Tensor, "place d_model"]], window: int = 1
) -> Float[Tensor, "part object"]:
    """Logits of the objects with one part at a time replaced by its mean over other subjects, or by nothing at all.

    A part is the MLPs or the attention of `window` layers at the subject or at the last token, in the order of
    `parts`. The mean is what the model is used to; but a copy that sleeps as long as another part speaks wakes up only
    when that part says nothing.
    """
    listed = parts(model.cfg.n_layers, window)
    tokens = case.tokens.expand(len(listed), -1)
    at, is_mean = places(case), torch.tensor([float(part.by_mean) for part in listed])

    def replaced(name: str, kind: str, layer: int):
        touched = [i for i, part in enumerate(listed) if part.kind == kind and layer in part.layers]
        where = torch.tensor([listed[i].place for i in touched])

        def edit(out: Float[Tensor, "row pos d_model"]) -> Float[Tensor, "row pos d_model"]:
            out = out.clone()
            out[torch.tensor(touched), at[where]] = means[name][where] * is_mean[touched, None]
            return out

        return edit

    edits = {
        hook_name(kind, layer): replaced(hook_name(kind, layer), kind, layer)
        for kind in KINDS
        for layer in range(model.cfg.n_layers)
    }
    last = hook_name("resid_post", model.cfg.n_layers - 1)
    with intervene(model, edits):
        state = run_with_cache(model, tokens, [last])[last][:, -1]
    return _unembed(model, state, case.objects)


class Part(NamedTuple):
    """What is silenced together."""

    kind: str
    layers: range
    place: int
    by_mean: bool
    """Whether its mean takes its place; nothing, otherwise."""


def parts(n_layers: int, window: int = 1) -> list[Part]:
    """The parts of a model, in the order in which `silenced` tries them."""
    spans = [range(start, min(start + window, n_layers)) for start in range(0, n_layers, window)]
    return [Part(*part) for part in product(KINDS, spans, (SUBJECT, LAST), (True, False))]


def lead(scores: Float[Tensor, "*rest object"], case: Case, token: int) -> Float[Tensor, "*rest"]:
    """How far a token's score is above the mean of the bystanders', in their standard deviations."""
    others = torch.isin(case.objects, case.bystanders()) & (case.objects != token)
    return vote(scores, case, token) / scores[..., others].std(-1).clamp(min=1e-6)


def vote(scores: Float[Tensor, "*rest object"], case: Case, token: int) -> Float[Tensor, "*rest"]:
    """A token's score above the mean of the bystanders', in nats."""
    others = torch.isin(case.objects, case.bystanders()) & (case.objects != token)
    return scores[..., case.objects == token][..., 0] - scores[..., others].mean(-1)


TRACES = ("lens", "probe", "removal", "vote")


def traces(reading: Reading, case: Case, token: int | None = None) -> dict[str, float]:
    """Where the old answer is still found in one model; neither the edit nor the model before it is known.

    Keys: `lens` and `probe`, its largest lead over layers at the subject and at the last token, in standard deviations;
    `removal`, its largest probability among the objects when one part is silenced; `vote`, in nats.

    Args:
        token: for the control, a bystander to look for instead of the old answer.
    """
    token = case.old if token is None else token
    said = reading.silenced.softmax(-1)[:, case.objects == token]
    return {
        "lens": float(lead(reading.lens, case, token).max()),
        "probe": float(lead(reading.probed, case, token).max()),
        "removal": float(said.max()),
        "vote": float(vote(reading.said, case, token)),
    }


def by_layer(reading: Reading, case: Case) -> Float[Tensor, "method place layer"]:
    """The old answer's lead in the lens and in the probe."""
    return torch.stack([lead(scores, case, case.old).T for scores in (reading.lens, reading.probed)])


def compare(before: Reading, after: Reading, case: Case) -> dict[str, float]:
    """The criteria that need the unedited model too.

    Keys: `P(new)`; `efficacy`, whether the new answer beats the old one; `kept`, the share of the old answer's vote
    that is left; `added`, what the new one gained, in nats; `powered`, whether some part takes the new answer away and
    would leave the old one in the unedited model, so that `removal` could show it; for each group of questions the
    share that come out right, and as `... louder` the rise of the wrong answer's log-probability, in nats.
    """
    old, new = (case.objects == token for token in (case.old, case.new))
    first = [case.objects[reading.silenced.argmax(-1)] for reading in (before, after)]
    result = {
        "P(new)": float(after.said[new].exp()),
        "efficacy": float(after.said[new] > after.said[old]),
        "kept": float(vote(after.said, case, case.old) / vote(before.said, case, case.old)),
        "added": float(vote(after.said, case, case.new) - vote(before.said, case, case.new)),
        "powered": float(((first[0] == case.old) & (first[1] != case.new)).any()),
    }
    for name, answers in after.questions.items():
        result[name] = float((answers[:, 0] > answers[:, 1]).float().mean())
        result[f"{name} louder"] = float((answers[:, 1] - before.questions[name][:, 1]).mean())
    return result


def scores(before: Reading, after: Reading, case: Case) -> dict[str, float]:
    """The whole audit of one edit: `traces`, the same of a bystander as `control ...`, and `compare`.

    `arrived` is the probe's largest lead at the last token alone. At the subject a probe may read the old answer off
    states that no edit could change, because they lie below it.
    """
    bystander = int(case.bystanders()[case.old % len(case.bystanders())])
    found: dict[str, float] = {}
    for token, prefix in ((case.old, ""), (bystander, "control ")):
        found |= {f"{prefix}{name}": value for name, value in traces(after, case, token).items()}
        found[f"{prefix}arrived"] = float(lead(after.probed[:, LAST], case, token).max())
    return found | compare(before, after, case)


def split_votes(model: "TransformerBridge", before: Reading, after: Reading, case: Case) -> dict[str, float]:
    """The two answers' votes at the last token, from what the edit changed there and from everything else, in nats.

    The final norm's scale is that of the edited run, so that the parts add up to its votes. Only for a model whose
    unembedding the edit left alone.
    """
    weights = model.original_model.get_output_embeddings().weight[case.objects].T
    gain = model.ln_final.original_component.weight
    state = after.states[-1, LAST]
    scale = gain / state.square().mean().sqrt()
    rest = (before.states[-1, LAST] * scale) @ weights
    own = ((state - before.states[-1, LAST]) * scale) @ weights
    return {
        f"{part}: {name}": float(vote(scores, case, token))
        for part, scores in (("own", own), ("rest", rest))
        for name, token in (("old", case.old), ("new", case.new))
    }


def auroc(scores: Sequence[float], still_there: Sequence[bool]) -> float:
    """How often a case that still holds the old answer scores above one that does not; ties count half."""
    scores, labels = np.asarray(scores, dtype=float), np.asarray(still_there, dtype=bool)
    gaps = scores[labels][:, None] - scores[~labels]
    return float(((gaps > 0) + 0.5 * (gaps == 0)).mean())


def threshold(scores: Sequence[float], still_there: Sequence[bool]) -> float:
    """The cut with the fewest errors when what is above it is taken to hold the old answer still.

    Of several, the middle one. Choose it on some worlds and count errors on others.
    """
    values, labels = np.asarray(scores, dtype=float), np.asarray(still_there, dtype=bool)
    cuts = np.unique(values)
    cuts = np.concatenate([cuts[:1] - 1, (cuts[1:] + cuts[:-1]) / 2, cuts[-1:] + 1])
    # Both kinds of error count alike, however many cases there are of each.
    wrong = [(values[labels] <= cut).mean() + (values[~labels] > cut).mean() for cut in cuts]
    best = cuts[np.isclose(wrong, min(wrong))]
    return float(best[len(best) // 2])


def _ridge(
    states: Float[Tensor, "place row d_model"], labels: Float[Tensor, "row object"]
) -> tuple[Float[Tensor, "place d_model object"], Float[Tensor, "place object"]]:
    """Ridge regression onto indicators, in its dual form: there are fewer facts than dimensions."""
    centre, base = states.mean(1, keepdim=True), labels.mean(0)
    x = states - centre
    gram = x @ x.transpose(1, 2)
    size = gram.diagonal(dim1=1, dim2=2).mean(-1)[:, None, None]
    weights = x.transpose(1, 2) @ torch.linalg.solve(gram + RIDGE * size * torch.eye(len(labels)), labels - base)
    return weights, base - (centre @ weights)[:, 0]


def _unembed(
    model: "TransformerBridge",
    states: Float[Tensor, "*rest d_model"],
    tokens: Int[Tensor, " token"] | slice = slice(None),
) -> Float[Tensor, "*rest answer"]:
    """Logits of some tokens, or of all, for states of the residual stream, as if they were the last layer's."""
    weight = model.original_model.get_output_embeddings().weight
    return model.ln_final.original_component(states) @ weight[tokens].T


def _padded(rows: Sequence[Int[Tensor, " pos"]]) -> Int[Tensor, "row pos"]:
    """Filled up on the right, where nothing that is read can see it."""
    return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
