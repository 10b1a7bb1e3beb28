"""Concepts with known labels: contrast pairs of texts, prompts to steer, and the words that would show an effect.

All of it is written by hand for this suite, in `data/concepts/concepts.toml`. The two texts of a pair differ in the
concept and share the rest. Pairs of one group share their contrast (the same verb, the same city), and must stay on
one side of any split, or a probe is asked what it was told. `shifts` hold another kind of text with the same labels.

Paper: Park et al. 2024, "The Linear Representation Hypothesis", arXiv:2311.03658. Taught in `05_steering` and
`06_probes`.
"""

import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.hooks import fast_reader
from mi_utils.sae import Dictionary

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

FILE = Path(__file__).resolve().parent.parent / "data" / "concepts" / "concepts.toml"
CYCLES = "cycles"
BATCH = 32


class Pair(NamedTuple):
    """Two texts that differ in the concept."""

    positive: str
    negative: str
    group: int
    """Pairs with the same number share their contrast."""


class Rows(NamedTuple):
    """Labelled texts, the two of a pair one after the other."""

    texts: list[str]
    labels: Int[np.ndarray, " row"]
    """1 for the positive side."""
    groups: Int[np.ndarray, " row"]


@dataclass(frozen=True)
class Concept:
    """One concept, its texts and its tokens."""

    name: str
    positive: str
    """What the positive side is called."""
    negative: str
    pairs: tuple[Pair, ...]
    """Contrast pairs to learn a direction or a probe from."""
    shifts: dict[str, tuple[Pair, ...]]
    """Other kinds of text with the same labels, by name."""
    prompts: tuple[str, ...]
    """Inputs to steer; none of them is in a pair."""
    instruction: str
    """Put before a prompt, it asks for the positive side: the baseline of prompting."""
    positive_words: tuple[str, ...]
    """Next words that show the positive side."""
    negative_words: tuple[str, ...]
    lexical: bool
    """Whether the words are kept out of the pairs. Where the concept *is* a few words, they cannot be."""

    def rows(self, shift: str | None = None, n_pairs: int | None = None, seed: int = 0) -> Rows:
        """Texts and labels of the training pairs, or of a shift; a random choice of pairs if `n_pairs` is given.

        Raises:
            ValueError: no such shift.
        """
        if shift is not None and shift not in self.shifts:
            raise ValueError(f"{self.name!r} has no shift {shift!r}; it has {', '.join(self.shifts)}")
        pairs = list(self.pairs if shift is None else self.shifts[shift])
        if n_pairs is not None and n_pairs < len(pairs):
            pairs = Random(seed).sample(pairs, n_pairs)
        return Rows(
            [text for pair in pairs for text in (pair.positive, pair.negative)],
            np.tile([1, 0], len(pairs)),
            np.repeat([pair.group for pair in pairs], 2),
        )


def load(names: Iterable[str] | None = None) -> dict[str, Concept]:
    """The shipped concepts by name, all if no names are given.

    Raises:
        ValueError: an unknown name.
    """
    written = tomllib.loads(FILE.read_text())
    del written[CYCLES]
    names = list(written) if names is None else list(names)
    if unknown := [name for name in names if name not in written]:
        raise ValueError(f"no concept named {', '.join(unknown)}; there are {', '.join(written)}")
    return {name: _concept(name, written[name]) for name in names}


def load_cycle(name: str) -> tuple[str, ...]:
    """Words that follow one another in a circle: `weekdays` or `months`.

    Raises:
        ValueError: an unknown name.
    """
    cycles = tomllib.loads(FILE.read_text())[CYCLES]
    if name not in cycles:
        raise ValueError(f"no cycle named {name!r}; there are {', '.join(cycles)}")
    return tuple(cycles[name])


def token_ids(words: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> Int[Tensor, " word"]:
    """The tokens of those words that are one token, with a blank in front where that is one; repeats are dropped.

    Raises:
        ValueError: none of the words is one token.
    """
    ids = []
    for word in words:
        spellings = [tokenizer.encode(text, add_special_tokens=False) for text in (f" {word.strip()}", word)]
        ids += next(([spelling[0]] for spelling in spellings if len(spelling) == 1), [])
    if not ids:
        raise ValueError(f"none of {list(words)} is one token of this tokenizer; give other words")
    return torch.tensor(sorted(set(ids)))


@torch.no_grad()
def read(
    model: "TransformerBridge", texts: Sequence[str], hook_names: Sequence[str], *, mean: bool = False
) -> dict[str, Float[Tensor, "text d_model"]]:
    """Activations of each text, by hook name: at its last token, or the mean over all its tokens.

    The beginning-of-text token is put in front of every text; it is never part of the mean.

    Raises:
        ValueError: no texts, an empty one, or an unknown hook.
    """
    pool = _mean if mean else _last
    return _read(model, texts, hook_names, pool)


@torch.no_grad()
def strongest_acts(
    model: "TransformerBridge", texts: Sequence[str], hook_name: str, dictionary: Dictionary
) -> Float[Tensor, "text d_sae"]:
    """Each latent's strongest activation on each text, the beginning-of-text token left out.

    Raises:
        ValueError: as `read`.
    """

    def strongest(acts: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_sae"]:
        return torch.stack([dictionary.encode(text[1:]).amax(0) for text in acts])

    return _read(model, texts, [hook_name], strongest)[hook_name]


def batches(lengths: Sequence[int], size: int = BATCH) -> list[list[int]]:
    """Row numbers in batches of equal length, so that no row is padded."""
    by_length: dict[int, list[int]] = {}
    for i, length in enumerate(lengths):
        by_length.setdefault(length, []).append(i)
    return [rows[n : n + size] for rows in by_length.values() for n in range(0, len(rows), size)]


def _last(acts: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
    return acts[:, -1]


def _mean(acts: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch d_model"]:
    return acts[:, 1:].mean(1)


def _read(
    model: "TransformerBridge",
    texts: Sequence[str],
    hook_names: Sequence[str],
    pool: Callable[[Float[Tensor, "batch pos d_model"]], Float[Tensor, "batch feature"]],
) -> dict[str, Float[Tensor, "text feature"]]:
    if not texts or not all(texts):
        raise ValueError(
            f"expected at least one text and none empty, got {len(texts)} with {list(texts).count('')} empty"
        )
    ids = [model.to_tokens(text, prepend_bos=True)[0] for text in texts]
    reader = fast_reader(model, hook_names, ids[0][None])
    found = {name: [None] * len(ids) for name in hook_names}
    for rows in batches([len(row) for row in ids]):
        for name, acts in reader(torch.stack([ids[i] for i in rows])).items():
            for i, state in zip(rows, pool(acts), strict=True):
                found[name][i] = state
    return {name: torch.stack(states) for name, states in found.items()}


def _concept(name: str, written: dict[str, Any]) -> Concept:
    if "relations" in written:
        pairs, *others = (_statements(written[relation], form) for relation, form in written["relations"].items())
        shifts = dict(zip(list(written["relations"])[1:], others, strict=True))
    else:
        pairs = _expanded(written["pairs"], written["templates"], written.get("contexts", [""]))
        shifts = {written["shift"]: tuple(Pair(*both, group) for group, both in enumerate(written["shifted"]))}
    return Concept(
        name,
        written["positive"],
        written["negative"],
        pairs,
        shifts,
        tuple(written["prompts"]),
        written["instruction"],
        tuple(written["positive_words"]),
        tuple(written["negative_words"]),
        written["lexical"],
    )


def _expanded(contrasts: Sequence[Sequence[str]], templates: Sequence[str], contexts: Sequence) -> tuple[Pair, ...]:
    """Each contrast in each template with each context, which may differ by side."""
    pairs = []
    for group, contrast in enumerate(contrasts):
        for template in templates:
            for context in contexts if "{c}" in template else [""]:
                both = (context, context) if isinstance(context, str) else context
                texts = [template.replace("{c}", c).replace("{x}", x) for c, x in zip(both, contrast, strict=True)]
                pairs.append(Pair(*texts, group))
    return tuple(pairs)


def _statements(subjects: dict[str, list[str]], form: str) -> tuple[Pair, ...]:
    """A true statement of each subject, and a false one whose object is true of another, as often as it is true."""
    rng = Random(0)
    facts = [(subject, true) for true, named in subjects.items() for subject in named]
    pairs = []
    for group, (subject, true) in enumerate(facts):
        false = rng.choice([other for _, other in facts if other != true])
        texts = [form.replace("{s}", subject).replace("{o}", value) for value in (true, false)]
        pairs.append(Pair(*texts, group))
    return tuple(pairs)
