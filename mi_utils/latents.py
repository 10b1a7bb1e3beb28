"""Look a latent up: its card, what fires on a prompt, searches, and a reader's own notes, all from an index on disk.

`indexing.build` makes an index in one pass over a text. It holds each latent's strongest examples and a uniform sample
of all its firings. The sample is what keeps it honest: sorted by activation it shows the middle and the bottom of what
a latent does, and shares counted on it are unbiased.

Read: Templeton et al. (2024), Scaling monosemanticity, on specificity and sensitivity. Taught in `02_inspect_latents`.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pyarrow.feather
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.cards import Card, Histogram, Snippet
from mi_utils.corpus import token_texts
from mi_utils.files import sha256, write_json
from mi_utils.hooks import fast_reader
from mi_utils.sae import Dictionary, active, shipped

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
ABOUT, LATENTS, EXAMPLES, TEXT, NOTES = (
    "index.json",
    "latents.feather",
    "examples.feather",
    "text.feather",
    "notes.json",
)
EDGES = 2.0 ** np.arange(-10, 18, 0.5)
"""Edges of the histograms, in activation units; what lies beyond counts for the first or last bin."""
BANDS = ("upper quarter", "third quarter", "second quarter", "lower quarter")
N_RANDOM = 5


@dataclass(frozen=True)
class Settings:
    """What an index keeps of each latent."""

    n_top: int = 10
    """Contexts in which it fires most strongly."""
    n_sample: int = 20
    """Firings drawn at random from all."""
    before: int = 24
    """Tokens shown before the chosen one."""
    after: int = 8
    """Tokens shown after it."""


class LatentIndex:
    """A finished index: cards, searches and the reader's own notes.

    Args:
        folder: where `indexing.build` put it.
        tokenizer: of the model that was indexed.
    Raises:
        ValueError: no index there, a damaged one, or one of another dictionary than `dictionary`.
    """

    def __init__(
        self, folder: str | Path, tokenizer: "PreTrainedTokenizerBase", dictionary: Dictionary | None = None
    ) -> None:
        self.folder, self.tokenizer = Path(folder), tokenizer
        if not (self.folder / ABOUT).is_file():
            raise ValueError(f"no index of latents in {self.folder}; build one with indexing.build")
        try:
            self.about = dict(json.loads((self.folder / ABOUT).read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{self.folder / ABOUT} is damaged ({error}); build the index again") from error
        if self.about.get("format") != FORMAT:
            raise ValueError(f"{self.folder} has format {self.about.get('format')}; expected {FORMAT}: build it again")
        for name, recorded in self.about["sha256"].items():
            if not (self.folder / name).is_file() or sha256(self.folder / name) != recorded:
                raise ValueError(f"{self.folder / name} is missing, truncated or altered; build the index again")
        if dictionary is not None and digest(dictionary) != self.about["dictionary"]:
            raise ValueError(
                f"{self.folder} indexes another dictionary than the one given; build an index of this one, or load the "
                f"one it was made of ({self.about['d_sae']} latents)"
            )
        self.settings = Settings(**self.about["settings"])

    @property
    def d_sae(self) -> int:
        return self.about["d_sae"]

    @property
    def n_tokens(self) -> int:
        """Tokens the latents were watched on."""
        return self.about["n_tokens"]

    @cached_property
    def _latents(self) -> dict[str, np.ndarray]:
        return read_columns(self.folder / LATENTS, self.d_sae)

    @cached_property
    def _examples(self) -> dict[str, np.ndarray]:
        return read_columns(self.folder / EXAMPLES, self.d_sae)

    @cached_property
    def _text(self) -> dict[str, np.ndarray]:
        return read_columns(self.folder / TEXT, self.about["n_contexts"])

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row per latent: `density` (share of tokens), `mean_act` where it fires, `max_act`."""
        count = self._latents["count"]
        return pd.DataFrame(
            {
                "density": count / self.n_tokens,
                "mean_act": self._latents["sum"] / np.maximum(count, 1),
                "max_act": self._latents["max"],
            }
        ).rename_axis("latent")

    def ordinary(self, least_firings: int = 40, densest: float = 0.01) -> Int[np.ndarray, " latent"]:
        """Latents that are neither too rare to judge nor dense, in their order."""
        density = self.table.density
        return density.index[(density * self.n_tokens > least_firings) & (density < densest)].to_numpy()

    # -------------------------------------------------------------------------------------------------- notes
    @cached_property
    def notes(self) -> dict[int, dict[str, str]]:
        """The reader's labels and notes by latent, as saved beside the index."""
        path = self.folder / NOTES
        if not path.exists():
            return {}
        try:
            return {int(latent): dict(note) for latent, note in json.loads(path.read_text(encoding="utf8")).items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error}); mend or move it, nothing was changed") from error

    def annotate(self, latent: int, label: str = "", note: str = "") -> None:
        """Save a label and a note on a latent; empty ones remove it."""
        self.check(latent)
        notes = self.notes | {latent: {"label": label, "note": note}}
        if not (label or note):
            del notes[latent]
        write_json(self.folder / NOTES, {str(key): notes[key] for key in sorted(notes)})
        self.notes = notes

    @property
    def labels(self) -> dict[int, str]:
        return {latent: note["label"] for latent, note in self.notes.items() if note["label"]}

    # -------------------------------------------------------------------------------------------------- one latent
    def card(self, latent: int) -> Card:
        """Everything the index knows about a latent.

        Raises:
            ValueError: there is no such latent.
        """
        self.check(latent)
        row = {name: values[latent] for name, values in self._latents.items()}
        about, density = self.about, row["count"] / self.n_tokens
        note = self.notes.get(latent, {})
        tokens_of_source = np.maximum(np.array(about["tokens_of_source"]), 1)
        rates = sorted(
            zip(about["sources"], (row["source_counts"] / tokens_of_source).tolist(), strict=True), key=lambda r: -r[1]
        )
        return Card(
            title=f"latent {latent}",
            facts={
                "fires on": f"{density:.4%} of tokens" if row["count"] else "no token of this text",
                "mean when active": f"{row['sum'] / max(1, row['count']):.2f}",
                "largest": f"{row['max']:.2f}",
                "read at": about["hook_name"],
                "text": f"{self.n_tokens:,} tokens",
            },
            snippets=self.examples(latent),
            histogram=Histogram(EDGES, row["histogram"]),
            promoted=self._tokens_with(row["promoted"], row["promoted_effect"]),
            suppressed=self._tokens_with(row["suppressed"], row["suppressed_effect"]),
            effect_of_chance=about["random_effect"],
            neighbours=_pairs(row["neighbours"], row["neighbour_cosine"]),
            cosine_of_chance=about["random_cosine"],
            co_firing=_pairs(row["co_firing"], row["co_firing_phi"]),
            sources=rates[:6],
            label=note.get("label", ""),
            note=note.get("note", ""),
            names=self.labels,
        )

    def examples(self, latent: int) -> list[Snippet]:
        """Top examples, then random firings sorted into quarters by activation, then random firings as drawn."""
        drawn = self.sample(latent)
        by_act = sorted(drawn, key=lambda snippet: -snippet.acts[snippet.mark])
        out, quarters = self.top(latent), np.array_split(np.arange(len(by_act)), len(BANDS))
        for band, places in zip(BANDS, quarters, strict=True):
            out += [replace(by_act[place], band=band) for place in places]
        return out + drawn[:N_RANDOM]

    def top(self, latent: int) -> list[Snippet]:
        """The contexts in which the latent fires most strongly, strongest first."""
        return self._snippets("top", latent, slice(0, self.settings.n_top))

    def sample(self, latent: int) -> list[Snippet]:
        """The uniform sample of the latent's firings, in random order: what shares should be counted on."""
        return self._snippets("random", latent, slice(self.settings.n_top, None))

    def _snippets(self, band: str, latent: int, places: slice) -> list[Snippet]:
        where, acts = (self._examples[name][self.check(latent), places] for name in ("where", "acts"))
        return [self._snippet(band, place, row) for place, row in zip(where.tolist(), acts, strict=True) if place >= 0]

    def _snippet(self, band: str, where: int, acts: Float[np.ndarray, " window"]) -> Snippet:
        context, position = divmod(where, self.about["n_ctx"])
        first = max(0, position - self.settings.before)
        last = min(self.about["n_ctx"], position + self.settings.after + 1)
        ids = self._text["tokens"][context, first:last]
        inside = slice(first - position + self.settings.before, last - position + self.settings.before)
        source = self.about["sources"][self._text["source"][context]]
        texts = tuple(token_texts(self.tokenizer, ids.tolist()))
        return Snippet(band, texts, acts[inside].astype(np.float32), position - first, source)

    def _tokens_with(self, ids: np.ndarray, effects: np.ndarray) -> list[tuple[str, float]]:
        listed = ids >= 0
        return list(zip(token_texts(self.tokenizer, ids[listed].tolist()), effects[listed].tolist(), strict=True))

    # -------------------------------------------------------------------------------------------------- searching
    def find_token(self, token: str, n: int = 20) -> pd.DataFrame:
        """Latents that fire on a token, by the share of their sampled firings that fall on it, `share`.

        Raises:
            ValueError: the text is not exactly one token.
        """
        ids = self.tokenizer.encode(token, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(f"{token!r} is {len(ids)} tokens, {token_texts(self.tokenizer, ids)}; give one of them")
        where = self._examples["where"][:, self.settings.n_top :]
        on_token = (self._text["tokens"].reshape(-1)[where] == ids[0]) & (where >= 0)
        share = on_token.sum(1) / np.maximum((where >= 0).sum(1), 1)
        return self._ranked(share, "share", n)

    def find_density(self, low: float, high: float, n: int = 20) -> pd.DataFrame:
        """Latents that fire on a share of tokens between `low` and `high`, densest first."""
        density = self.table.density.to_numpy()
        return self._ranked(np.where((density >= low) & (density <= high), density, 0), "density", n, twice=False)

    def find_similar(self, dictionary: Dictionary, direction: Float[Tensor, " d_in"], n: int = 20) -> pd.DataFrame:
        """Latents whose decoder rows point most nearly the same way as `direction`, by `cosine`."""
        rows = torch.nn.functional.normalize(dictionary.W_dec, dim=1)
        cosine = rows @ torch.nn.functional.normalize(direction, dim=0)
        return self._ranked(cosine.numpy(), "cosine", n)

    def find_note(self, text: str) -> pd.DataFrame:
        """Latents whose label or note contains a text, in any case."""
        wanted = text.casefold()
        return self._rows([k for k, note in self.notes.items() if wanted in " ".join(note.values()).casefold()])

    def neighbours(self, latent: int) -> pd.DataFrame:
        """The latents whose decoder rows are most similar to this one's, by `cosine`."""
        row = {name: self._latents[name][self.check(latent)] for name in ("neighbours", "neighbour_cosine")}
        pairs = _pairs(*row.values())
        found = self._rows([other for other, _ in pairs])
        found.insert(0, "cosine", [cosine for _, cosine in pairs])
        return found

    def _rows(self, latents: Sequence[int] | np.ndarray) -> pd.DataFrame:
        chosen = [int(i) for i in latents]
        return self.table.iloc[chosen].assign(
            strongest_on=[self.strongest_token(i) for i in chosen], label=[self.labels.get(i, "") for i in chosen]
        )

    def strongest_token(self, latent: int) -> str:
        """The token on which the latent was most active; empty if it never fired."""
        where = int(self._examples["where"][latent, 0])
        return "" if where < 0 else token_texts(self.tokenizer, [int(self._text["tokens"].reshape(-1)[where])])[0]

    def _ranked(self, score: np.ndarray, name: str, n: int, *, twice: bool = True) -> pd.DataFrame:
        best = np.argsort(-score, kind="stable")[:n]
        best = best[score[best] > 0]
        found = self._rows(best)
        if twice:
            found.insert(0, name, score[best])
        return found

    def surprisal(self, latents: Int[np.ndarray, " active"], acts: Float[np.ndarray, " active"]) -> np.ndarray:
        """How specific each activation is, in bits: -log2 of the share of tokens on which the latent is as active.

        Resolved to the bins of the histogram. An activation that was never reached counts as once.
        """
        bins = bins_of(acts)
        return -np.log2(np.maximum(self._tails[latents, bins], 1) / self.n_tokens)

    @cached_property
    def _tails(self) -> np.ndarray:
        return self._latents["histogram"][:, ::-1].cumsum(1)[:, ::-1]

    def check(self, latent: int) -> int:
        """The latent itself.

        Raises:
            ValueError: there is no such latent.
        """
        if not 0 <= latent < self.d_sae:
            raise ValueError(f"there is no latent {latent}; this dictionary has 0 to {self.d_sae - 1}")
        return latent


def shipped_index(name: str, tokenizer: "PreTrainedTokenizerBase") -> LatentIndex:
    """The index of a shipped dictionary.

    Raises:
        ValueError: no such dictionary, or it has no index.
    """
    if name not in shipped():
        raise ValueError(f"no dictionary {name!r} is shipped; there are {', '.join(shipped()) or 'none'}")
    return LatentIndex(shipped()[name] / "index", tokenizer)


@dataclass(frozen=True)
class Prompt:
    """A prompt as latents see it."""

    tokens: list[str]
    latents: list[list[int]]
    """Per token, the latents that fire there."""
    acts: list[list[float]]
    bits: list[list[float]]
    """How specific each activation is, see `LatentIndex.surprisal`."""

    def most_specific(self, n: int = 20) -> pd.DataFrame:
        """The latents that fire, most specific first: `bits`, `act`, `token`, `position` of each latent's best."""
        rows = [
            (latent, bits, act, self.tokens[place], place)
            for place, triples in enumerate(zip(self.latents, self.acts, self.bits, strict=True))
            for latent, act, bits in zip(*triples, strict=True)
        ]
        table = pd.DataFrame(rows, columns=["latent", "bits", "act", "token", "position"])
        table = table.sort_values(["bits", "act"], ascending=False).drop_duplicates("latent")
        return table.set_index("latent").head(n)


@torch.no_grad()
def read_prompt(
    model: "TransformerBridge", dictionary: Dictionary, index: LatentIndex, text: str, *, read: Callable | None = None
) -> Prompt:
    """Which latents fire on which tokens of a text.

    The text starts after a separator, as the contexts of the index do; the separator itself is not shown.

    Raises:
        ValueError: the text is empty or longer than the contexts of the index.
    """
    tokenizer, n_ctx = index.tokenizer, index.about["n_ctx"]
    ids = tokenizer.encode(text, add_special_tokens=False) if text else []
    if not 0 < len(ids) < n_ctx:
        raise ValueError(
            f"the text has {len(ids)} tokens; expected 1 to {n_ctx - 1}, the length of the index's contexts"
        )
    tokens = torch.tensor([[index.about["separator"], *ids]])
    hook_name = index.about["hook_name"]
    read = read or fast_reader(model, [hook_name], tokens)
    x = read(tokens)[hook_name][0, 1:].flatten(1).float()
    fires = active(dictionary, x)
    latents, acts = fires.latents.numpy(), fires.acts.numpy()
    bits = index.surprisal(latents, acts)
    starts = np.searchsorted(fires.tokens.numpy(), np.arange(1, len(ids)))
    split = [[part.tolist() for part in np.split(values, starts)] for values in (latents, acts.round(4), bits.round(2))]
    return Prompt(token_texts(tokenizer, ids), *split)


def digest(dictionary: Dictionary) -> str:
    """A short name of a dictionary's directions: equal for equal weights."""
    rows = dictionary.W_dec.detach().half().contiguous()
    return hashlib.sha256(rows.numpy()).hexdigest()[:16]


def bins_of(acts: Float[np.ndarray, " active"]) -> Int[np.ndarray, " active"]:
    return np.clip(np.searchsorted(EDGES, acts, side="right") - 1, 0, len(EDGES) - 2)


def _pairs(ids: np.ndarray, values: np.ndarray) -> list[tuple[int, float]]:
    return [(int(i), float(value)) for i, value in zip(ids, values, strict=True) if i >= 0]


def read_columns(path: Path, n_rows: int) -> dict[str, np.ndarray]:
    table = pyarrow.feather.read_table(path, memory_map=False)
    shapes = {name.decode(): json.loads(shape) for name, shape in table.schema.metadata.items()}
    out = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        values = column if not shapes[name] else column.flatten()
        out[name] = values.to_numpy(zero_copy_only=False).reshape(n_rows, *shapes[name])
    return out


def clamp(dictionary: Dictionary, latent: int, value: float) -> Callable[[Tensor], Tensor]:
    """An edit for `hooks.intervene` that sets one latent's activation everywhere: 0 ablates it, more boosts it.

    Only the latent's own contribution changes; what the dictionary fails to reconstruct stays as it was.
    """
    row = dictionary.W_dec[latent]

    def edit(activation: Float[Tensor, "batch pos d_model"]) -> Float[Tensor, "batch pos d_model"]:
        acts = dictionary.encode(activation)[..., latent]
        return activation + (value - acts)[..., None] * row

    return edit
