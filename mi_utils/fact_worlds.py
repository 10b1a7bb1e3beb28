"""Small transformers whose facts have a known home: one store, two stores of which one sleeps, and true rewrites.

The language has subjects of two tokens, an object for each, two wordings that ask for the object and one that asks for
the class it belongs to; an earlier mention of another subject may stand before the question. The table of objects is a
Latin square, so neither half of a name says anything about the object by itself, and attention sees one token back
before the last layer, so that only the MLP of layer 1, at the subject's last token, can hold the facts: the store. In
a world of two paths the MLP of layer 2 learned the same table, to speak only when the store is silent.

Paper: Makelov et al. 2023, "Is This the Subspace You Are Looking for?", arXiv:2311.17030, on edits that act through a
dormant path. Taught in `09_edit_a_fact`.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils import auditing, rome
from mi_utils.auditing import Background, Case, Question
from mi_utils.edits import Edit, Request, Site
from mi_utils.hooks import hook_name, run_with_cache
from mi_utils.models import bridge, unhooked
from mi_utils.worlds import one_thread

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

N_NAMES, N_CLASSES, N_FILLERS, N_CHANGED = 12, 3, 4, 24
FIRST, LAST, OBJECT, CLASS = 1, 1 + N_NAMES, 1 + 2 * N_NAMES, 1 + 3 * N_NAMES
FILLER = CLASS + N_CLASSES
ASK = FILLER + N_FILLERS
"""Tokens: 0 begins a text; first names, last names, objects, classes, fillers, two questions, one for the class."""
SUBJECT_AT, STORE, BACKUP = 5, 1, 2
"""The position of the subject's last token, and the layers of the two MLPs."""
N_STEPS, N_BACKUP_STEPS, N_CHANGE_STEPS = 120, 120, 80
PEAK_RATE, SPREAD = 1e-2, 0.15  # the usual spread of initial weights, 0.02, learns ten times slower at this width
WORLDS = ("one path", "two paths")


@dataclass(frozen=True)
class FactWorld:
    """A trained model, and what it was taught."""

    model: "TransformerBridge"
    table: Int[Tensor, "first last"]
    """The object of each subject, counted from 0."""
    n_paths: int

    def prompts(
        self,
        subjects: Int[Tensor, "row name"],
        ask: int = 0,
        mentioned: Int[Tensor, "row name"] | None = None,
        seed: int = 0,
    ) -> Int[Tensor, "row pos"]:
        """Questions about subjects, given as pairs of numbers, in random fillers.

        Args:
            ask: 0 and 1 ask for the object, 2 for its class.
            mentioned: subjects that stand before, with nothing asked of them.
        """
        return _prompts(subjects, ask, mentioned, torch.Generator().manual_seed(seed))

    def answers(self, subjects: Int[Tensor, "row name"], ask: int = 0) -> Int[Tensor, " row"]:
        """The tokens that are right."""
        return _answers(self.table, subjects, ask)

    @torch.no_grad()
    def accuracy(self, subjects: Int[Tensor, "row name"], ask: int = 0, silenced: tuple[int, ...] = ()) -> float:
        """The share of subjects whose answer the model ranks first, with the MLPs of some layers silenced."""
        with _silenced(unhooked(self.model), silenced) as plain:
            said = plain(self.prompts(subjects, ask)).logits[:, -1].argmax(-1)
        return float((said == self.answers(subjects, ask)).float().mean())


def all_subjects() -> Int[Tensor, "row name"]:
    """Every subject there is."""
    return torch.cartesian_prod(torch.arange(N_NAMES), torch.arange(N_NAMES))


def train(n_paths: int = 1, seed: int = 0) -> FactWorld:
    """Train a world from scratch, about a minute on one core.

    Raises:
        ValueError: other than one or two paths.
    """
    if n_paths not in (1, 2):
        raise ValueError(f"got {n_paths} paths; a world has 1 or 2")
    generator = torch.Generator().manual_seed(seed)
    table, plain = _latin_square(generator), _untrained(seed)
    _learn(plain, table, generator, N_STEPS, silenced=(BACKUP,))
    if n_paths == 2:
        _learn_backup(plain, table, generator, N_BACKUP_STEPS)
    return FactWorld(bridge(plain.eval(), None, f"facts, {n_paths} paths, seed {seed}"), table, n_paths)


def changed_table(world: FactWorld, seed: int = 0) -> tuple[Int[Tensor, "first last"], Int[Tensor, "row name"]]:
    """A table with other objects for some subjects, and those subjects. The new object is of another class."""
    generator = torch.Generator().manual_seed(seed)
    subjects = all_subjects()[torch.randperm(N_NAMES**2, generator=generator)[:N_CHANGED]]
    shift = 1 + torch.randint(0, N_CLASSES - 1, (N_CHANGED,), generator=generator)
    shift += N_CLASSES * torch.randint(0, N_NAMES // N_CLASSES, (N_CHANGED,), generator=generator)
    table, (first, last) = world.table.clone(), subjects.T
    table[first, last] = (table[first, last] + shift) % N_NAMES
    return table, subjects


def rewritten(world: FactWorld, table: Int[Tensor, "first last"], *, backup: bool = True, seed: int = 0) -> FactWorld:
    """The world trained on until it believes another table: the fact is changed where it is stored.

    Args:
        backup: whether the second path, where there is one, learns the new table too. If not, the store alone learns,
            so that whatever the model said with the store silenced it says still: the old facts sleep there.
    """
    generator, plain = torch.Generator().manual_seed(seed), copy.deepcopy(unhooked(world.model))
    if not backup:
        _learn_store(plain, table, generator, N_CHANGE_STEPS)
    else:
        _learn(plain, table, generator, N_CHANGE_STEPS, silenced=(BACKUP,))
    if world.n_paths == 2 and backup:
        _learn_backup(plain, table, generator, N_CHANGE_STEPS)
    return FactWorld(bridge(plain.eval(), None, f"{world.model.cfg.model_name}, rewritten"), table, world.n_paths)


OBJECTS = torch.arange(OBJECT, OBJECT + N_NAMES)


def cases(
    world: FactWorld, subjects: Int[Tensor, "row name"], table: Int[Tensor, "first last"], seed: int = 0
) -> list[Case]:
    """What an edit of each subject towards another table is judged by.

    Questions: `paraphrase`, the second wording; `ripple`, the class of the new object; `neighbourhood`, subjects that
    share the old object; `far`, another subject's object after the edited subject was mentioned.
    """
    generator = torch.Generator().manual_seed(seed)
    everyone, found = all_subjects(), []
    for subject in subjects:
        pair = subject[None]
        old, new = world.answers(pair).item(), _answers(table, pair, 0).item()
        classes = _answers(table, pair, 2).item(), world.answers(pair, 2).item()
        others = everyone[torch.randperm(len(everyone), generator=generator)]
        others = others[(others != subject).any(1) & (_answers(table, others, 0) == world.answers(others))]
        kin = others[world.answers(others) == old][:4]
        far = others[(world.answers(others) != old) & (world.answers(others) != new)][:4]

        def asked(rows: Tensor, right: list[int], wrong: list[int], ask: int = 0, mentioned: Tensor | None = None):
            prompts = _prompts(rows, ask, mentioned, generator)
            return [Question(*parts) for parts in zip(prompts, right, wrong, strict=True)]

        questions = {
            "paraphrase": asked(pair, [new], [old], 1),
            "ripple": asked(pair, [classes[0]], [classes[1]], 2),
            "neighbourhood": asked(kin, [old] * len(kin), [new] * len(kin)),
            "far": asked(far, world.answers(far).tolist(), [new] * len(far), 0, pair.expand(len(far), 2)),
        }
        found.append(Case(_prompts(pair, 0, None, generator)[0], SUBJECT_AT, old, new, OBJECTS, questions))
    return found


def requests(subjects: Int[Tensor, "row name"], judged: list[Case], seed: int = 0) -> list[Request]:
    """The edits that these cases judge: the prompt, and four times after the mention of another subject."""
    generator, found = torch.Generator().manual_seed(seed), []
    for subject, case in zip(subjects, judged, strict=True):
        before = all_subjects()[torch.randint(0, N_NAMES**2, (4,), generator=generator)]
        rows = [case.tokens, *_prompts(subject.expand(4, 2), 0, before, generator)]
        # The language has no neutral sentence about a subject: its text up to the fillers takes that place.
        essence = case.tokens[: SUBJECT_AT + 2]
        spelt = case.tokens[SUBJECT_AT - 1 : SUBJECT_AT + 1]
        found.append(Request(tuple(rows), (SUBJECT_AT,) * 5, case.old, case.new, essence, SUBJECT_AT, spelt))
    return found


def key_moment(world: FactWorld, layer: int) -> Float[Tensor, "d_mlp d_mlp"]:
    """Second moment of the keys of one MLP on the world's own text."""
    subjects = all_subjects()
    return rome.moments_on(world.model, world.prompts(subjects, mentioned=subjects.flip(0)), [(layer, "mlp")])[
        layer, "mlp"
    ]


def shouted(world: FactWorld, judged: list[Case], margin: float = 4.0) -> list[Edit]:
    """Overrides by construction: after everything else the last MLP also names the new answer, as loudly as it takes.

    Nothing of the old fact is touched. The voice is heard whatever is asked.

    Args:
        margin: by how many nats the new answer beats all others, at least, as if no norm followed.
    """
    W_U = unhooked(world.model).get_output_embeddings().weight
    name, found = f"blocks.{BACKUP + 1}.hook_resid_post", []
    for case in judged:
        direction = W_U[case.new] - W_U[OBJECTS].mean(0)
        state = run_with_cache(world.model, case.tokens[None], [name])[name][0, -1]
        scores, gains = W_U[OBJECTS] @ state, W_U[OBJECTS] @ direction
        new = case.new - OBJECT
        rivals = torch.arange(N_NAMES) != new
        size = ((scores[rivals] - scores[new] + margin) / (gains[new] - gains[rivals])).max()
        found.append(Edit("shouted", Site(BACKUP + 1), size * direction))
    return found


class Variant(NamedTuple):
    """A way in which facts of a world were changed, and the truth about it."""

    kind: str
    edits: list[Edit] | None
    """One for each fact; none if the model itself was trained on."""
    world: FactWorld
    old_is_there: bool | None
    """Whether the old answer is still stored. Not settled by construction for an edit of the only store itself."""


def variants(world: FactWorld, subjects: Int[Tensor, "row name"], table: Int[Tensor, "first last"]) -> list[Variant]:
    """Rewrites and overrides of the same facts, by construction, and the case in question: ROME at the store."""
    judged = cases(world, subjects, table)
    asked, n = requests(subjects, judged), len(subjects)
    name = hook_name("mlp_out", STORE)
    written = run_with_cache(world.model, world.prompts(subjects), [name])[name][:, SUBJECT_AT]
    unit = float(written.norm(dim=-1).mean())  # a sleeping MLP has no length of its own to go by
    later = rome.edit(world.model, asked, Site(BACKUP), gate="subject", unit=unit)
    at_store = rome.edit(world.model, asked, Site(STORE), moments=[key_moment(world, STORE)] * n)
    found = [
        Variant("rewritten", None, rewritten(world, table), False),
        Variant("louder after the store", later, world, True),
        Variant("shouted at the end", shouted(world, judged), world, True),
        Variant("ROME at the store", at_store, world, None if world.n_paths == 1 else True),
    ]
    if world.n_paths == 2:
        moments = [key_moment(world, BACKUP)] * n
        asleep = rome.edit(world.model, asked, Site(BACKUP), moments=moments, unit=unit)
        found += [
            Variant("ROME at the sleeping path", asleep, world, True),
            Variant("rewritten, old one asleep", None, rewritten(world, table, backup=False), True),
        ]
    return found


def audit(n_paths: int, seed: int, n_facts: int = N_CHANGED) -> pd.DataFrame:
    """Train a world, change facts in every way, and audit each change: a row per fact and way.

    Columns: `paths`, `seed`, `kind`, `fact`, `old_is_there`, and those of `auditing.scores`.

    Args:
        n_facts: how many of the changed facts are audited.
    """
    world = train(n_paths, seed)
    table, subjects = changed_table(world, seed)
    subjects, rows = subjects[:n_facts], []
    judged = cases(world, subjects, table)
    everyone = all_subjects()
    same = everyone[_answers(table, everyone, 0) == world.answers(everyone)]
    usual = _background(world, same)
    before = [auditing.read(world.model, case, usual) for case in judged]
    for variant in variants(world, subjects, table):
        known = usual if variant.edits else _background(variant.world, same)
        for i, (case, clean) in enumerate(zip(judged, before, strict=True)):
            with variant.edits[i].applied(world.model) if variant.edits else nullcontext():
                after = auditing.read(variant.world.model, case, known)
            rows.append({"paths": n_paths, "seed": seed, "kind": variant.kind, "fact": i})
            rows[-1] |= {"old_is_there": variant.old_is_there} | auditing.scores(clean, after, case)
    return pd.DataFrame(rows)


def _background(world: FactWorld, subjects: Int[Tensor, "row name"]) -> Background:
    rows = zip(world.prompts(subjects, seed=1), world.answers(subjects).tolist(), strict=True)
    return auditing.background(world.model, [Case(row, SUBJECT_AT, old, old, OBJECTS) for row, old in rows])


def _latin_square(generator: torch.Generator) -> Int[Tensor, "first last"]:
    rows, columns, names = (torch.randperm(N_NAMES, generator=generator) for _ in range(3))
    return names[(rows[:, None] + columns) % N_NAMES]


def _prompts(
    subjects: Int[Tensor, "row name"],
    ask: int | Int[Tensor, " row"],
    mentioned: Int[Tensor, "row name"] | None,
    generator: torch.Generator,
) -> Int[Tensor, "row pos"]:
    n = len(subjects)
    fillers = FILLER + torch.randint(0, N_FILLERS, (n, 5), generator=generator)
    before = fillers[:, :2] if mentioned is None else _spelt(mentioned)
    parts = [torch.zeros(n, 1, dtype=torch.long), before, fillers[:, 2:3], _spelt(subjects), fillers[:, 3:]]
    return torch.cat([*parts, (ASK + torch.as_tensor(ask).expand(n))[:, None]], 1)


def _spelt(subjects: Int[Tensor, "row name"]) -> Int[Tensor, "row name"]:
    return subjects + torch.tensor([FIRST, LAST])


def _answers(
    table: Int[Tensor, "first last"], subjects: Int[Tensor, "row name"], ask: int | Int[Tensor, " row"]
) -> Int[Tensor, " row"]:
    objects = table[subjects[:, 0], subjects[:, 1]]
    return torch.where(torch.as_tensor(ask) < 2, OBJECT + objects, CLASS + objects % N_CLASSES)


def _untrained(seed: int) -> "PreTrainedModel":
    """Four layers; the first three see one token back. Only the parts that the world is about may learn."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=ASK + 3,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        layer_types=["sliding_attention"] * 3 + ["full_attention"],
        use_sliding_window=True,
        sliding_window=2,
        bos_token_id=0,
        eos_token_id=0,
        tie_word_embeddings=False,
        initializer_range=SPREAD,
    )
    config._attn_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = Qwen2ForCausalLM(config)
    layers = plain.model.layers
    for part in (layers[0].mlp, layers[3].mlp, layers[1].self_attn, layers[2].self_attn, layers[BACKUP].mlp.down_proj):
        for weight in part.parameters():
            weight.data.zero_()
    return plain


@contextmanager
def _silenced(plain: "PreTrainedModel", layers: tuple[int, ...]) -> Iterator["PreTrainedModel"]:
    """A plain model with the MLPs of some layers writing nothing while the block runs."""
    mlps = [plain.model.layers[layer].mlp for layer in layers]
    handles = [mlp.register_forward_hook(lambda _mlp, _inputs, out: torch.zeros_like(out)) for mlp in mlps]
    try:
        yield plain
    finally:
        for handle in handles:
            handle.remove()


Batch = tuple[Int[Tensor, "row pos"], Int[Tensor, "row name"], Int[Tensor, " row"]]
"""Prompts, their subjects, and what they ask."""


@one_thread()
def _learn(
    plain: "PreTrainedModel", table: Tensor, generator: torch.Generator, n_steps: int, silenced: tuple[int, ...]
) -> None:
    """Every part that is not silent by design learns the table, the backup excepted."""
    layers = plain.model.layers
    fixed = [layers[0].mlp, layers[3].mlp, layers[1].self_attn, layers[2].self_attn, layers[BACKUP].mlp]
    plain.requires_grad_(True)
    for part in fixed:
        part.requires_grad_(False)
    with _silenced(plain, silenced):
        _descend(plain, generator, n_steps, lambda batch: _loss(plain, table, batch))
    plain.requires_grad_(False)


@one_thread()
def _learn_store(plain: "PreTrainedModel", table: Tensor, generator: torch.Generator, n_steps: int) -> None:
    """The first MLP alone learns another table, the rest of the model at work beside it."""
    plain.requires_grad_(False)
    plain.model.layers[STORE].mlp.requires_grad_(True)
    _descend(plain, generator, n_steps, lambda batch: _loss(plain, table, batch))
    plain.requires_grad_(False)


@one_thread()
def _learn_backup(plain: "PreTrainedModel", table: Tensor, generator: torch.Generator, n_steps: int) -> None:
    """The second MLP learns to answer where the store is silent, and to write nothing where it is not."""
    mlp = plain.model.layers[BACKUP].mlp
    plain.requires_grad_(False)
    mlp.requires_grad_(True)

    def loss(batch: Batch) -> Float[Tensor, ""]:
        with _silenced(plain, (STORE,)):
            alone = _loss(plain, table, batch)
        written = []
        handle = mlp.register_forward_hook(lambda _mlp, _inputs, out: written.append(out))
        awake = _loss(plain, table, batch)
        handle.remove()
        return alone + awake + written[0].square().sum(-1).mean()

    _descend(plain, generator, n_steps, loss)
    plain.requires_grad_(False)


def _loss(plain: "PreTrainedModel", table: Tensor, batch: Batch) -> Float[Tensor, ""]:
    tokens, subjects, ask = batch
    logits = plain.lm_head(plain.model(tokens).last_hidden_state[:, -1])
    return torch.nn.functional.cross_entropy(logits, _answers(table, subjects, ask))


def _descend(
    plain: "PreTrainedModel", generator: torch.Generator, n_steps: int, loss: Callable[[Batch], Float[Tensor, ""]]
) -> None:
    weights = [weight for weight in plain.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=PEAK_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, n_steps, pct_start=0.2)
    subjects, n = all_subjects(), N_NAMES**2
    for _ in range(n_steps):
        order, ask = torch.randperm(n, generator=generator), torch.randint(0, 3, (n,), generator=generator)
        mentioned = subjects[torch.randint(0, n, (n // 2,), generator=generator)]  # half of the rows mention another
        parts = zip(subjects[order].split(n // 2), ask.split(n // 2), (mentioned, None), strict=True)
        tokens = torch.cat([_prompts(some, asked, others, generator) for some, asked, others in parts])
        with torch.enable_grad():
            value = loss((tokens, subjects[order], ask))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
