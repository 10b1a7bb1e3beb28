"""Build an index of every latent of a dictionary in one pass over a text.

Memory depends on the number of latents, not on the text: counts, the strongest examples of each latent and a uniform
sample of its firings are all that is kept. `latents` reads the result.

Read: Vitter (1985), Random sampling with a reservoir, for the sample. Taught in `02_inspect_latents`.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.feather
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from mi_utils.activations import Exclusion, rounded, rows_to_keep, workers
from mi_utils.corpus import Contexts
from mi_utils.files import atomic_path, sha256
from mi_utils.hooks import fast_reader
from mi_utils.latents import ABOUT, EDGES, EXAMPLES, FORMAT, LATENTS, TEXT, LatentIndex, Settings, bins_of, digest
from mi_utils.models import unembedding
from mi_utils.sae import Dictionary, active

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_LISTED = 10
CO_FIRING_TOKENS = 100_000
RANDOM_DIRECTIONS = 200


@torch.no_grad()
def build(
    model: "TransformerBridge",
    dictionary: Dictionary,
    text: Contexts,
    hook_name: str,
    folder: str | Path,
    *,
    settings: Settings = Settings(),
    exclusion: Exclusion = Exclusion(),
    products: torch.dtype = torch.float32,
    batch_size: int = 16,
    seed: int = 0,
    progress: bool = True,
) -> LatentIndex:
    """Watch every latent on a text and write what was seen to `folder`, whole or not at all.

    Args:
        dictionary: with `encode` and rows `W_dec` `[d_sae d_in]`.
        text: give its contexts in random order; the co-firing counts come from evenly spaced ones.
        exclusion: tokens to leave out, by the same rule as in a store of activations.
        products: number format of the model's matrix products, as in `activations.harvest`.
    Raises:
        ValueError: something is at `folder` already, or there is no text.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; load it with LatentIndex, or remove it first")
    if len(text) == 0:
        raise ValueError("there is no text to index: no contexts were given")
    n_latents, sources = len(dictionary.W_dec), sorted(set(text.sources))
    source = np.array([sources.index(name) for name in text.sources])
    watch = _Watch(n_latents, len(sources), text.tokens.shape, settings, seed)
    with tqdm(total=text.tokens.numel(), desc="index", unit=" tokens", unit_scale=True, disable=not progress) as bar:
        for batch in fired(model, dictionary, text.tokens, hook_name, exclusion, products, batch_size):
            watch.add(batch, source)
            bar.update(batch.n_contexts * text.tokens.shape[1])
    weights = _from_weights(model, dictionary, seed)
    about = {
        "format": FORMAT,
        "dictionary": digest(dictionary),
        "model": model.cfg.model_name,
        "hook_name": hook_name,
        "d_sae": n_latents,
        "n_contexts": len(text),
        "n_ctx": text.tokens.shape[1],
        "n_tokens": watch.n_tokens,
        "separator": int(text.tokens[0, 0]),
        "sources": sources,
        "tokens_of_source": watch.tokens_of_source.tolist(),
        "settings": asdict(settings),
        "random_effect": weights.pop("random_effect"),
        "random_cosine": weights.pop("random_cosine"),
    }
    with atomic_path(folder) as part:
        part.mkdir()
        _write_columns(part / LATENTS, watch.latent_columns() | weights)
        _write_columns(part / EXAMPLES, watch.example_columns())
        _write_columns(part / TEXT, {"tokens": _smallest(text.tokens.numpy()), "source": source.astype(np.uint8)})
        about["sha256"] = {name: sha256(part / name) for name in (LATENTS, EXAMPLES, TEXT)}
        (part / ABOUT).write_text(json.dumps(about, indent=1))
    return LatentIndex(folder, model.tokenizer, dictionary)


@dataclass(frozen=True)
class Fired:
    """What fired in one batch of contexts, ordered by latent, then place."""

    first_context: int
    n_contexts: int
    kept: Bool[np.ndarray, "context pos"]
    """Tokens that were read."""
    latent: Int[np.ndarray, " active"]
    where: Int[np.ndarray, " active"]
    """Context times its length plus position, over the whole text."""
    act: Float[np.ndarray, " active"]


def fired(
    model: "TransformerBridge",
    dictionary: Dictionary,
    tokens: Int[Tensor, "context pos"],
    hook_name: str,
    exclusion: Exclusion = Exclusion(),
    products: torch.dtype = torch.float32,
    batch_size: int = 16,
) -> Iterator[Fired]:
    """What fires in a text, a batch of contexts at a time; each core reads a batch of its own where it can."""
    n_ctx, device = tokens.shape[1], model.cfg.device
    read = fast_reader(model, [hook_name], tokens[:2].long().to(device))
    choose = rows_to_keep(model, exclusion)

    @torch.no_grad()
    def run(start: int) -> Fired:
        batch = tokens[start : start + batch_size].long()
        with rounded(products, device):
            x = read(batch.to(device))[hook_name].flatten(2).float()
        keep = choose(batch, x.norm(dim=-1).cpu())
        fires = active(dictionary, x[keep.to(x.device)])
        place = keep.flatten().nonzero()[:, 0][fires.tokens.cpu()] + start * n_ctx
        order = torch.argsort(fires.latents.cpu() * tokens.numel() + place)
        latent, act = fires.latents.cpu()[order], fires.acts.cpu()[order]
        return Fired(start, len(batch), keep.numpy(), latent.numpy(), place[order].numpy(), act.float().numpy())

    starts = range(0, len(tokens), batch_size)
    yield run(0)  # the first batch settles which norms count as outliers
    group = 4 * torch.get_num_threads()  # never more than a few batches wait in memory
    with workers(read.in_threads and device == "cpu") as pool:
        for first in range(1, len(starts), group):
            yield from pool.map(run, starts[first : first + group])


class _Watch:
    """Counts, strongest examples and random firings of every latent, batch by batch."""

    def __init__(self, n_latents: int, n_sources: int, shape: tuple[int, int], settings: Settings, seed: int) -> None:
        self.n_latents, self.n_sources, (self.n_contexts, self.n_ctx) = n_latents, n_sources, shape
        self.settings, self.rng = settings, np.random.default_rng(seed)
        self.n_tokens = 0
        self.tokens_of_source = np.zeros(n_sources, dtype=np.int64)
        self.count = np.zeros(n_latents, dtype=np.int64)
        self.sum, self.max = np.zeros(n_latents), np.zeros(n_latents, dtype=np.float32)
        self.histogram = np.zeros(n_latents * (len(EDGES) - 1), dtype=np.int64)
        self.source_counts = np.zeros(n_sources * n_latents, dtype=np.int64)
        window = settings.before + settings.after + 1
        self.top = _Best(n_latents, settings.n_top, window)
        self.drawn = _Best(n_latents, settings.n_sample, window)
        self.stride = max(1, -(-self.n_contexts * self.n_ctx // CO_FIRING_TOKENS))
        self.together: list[scipy.sparse.csr_matrix] = []

    def add(self, batch: Fired, source: Int[np.ndarray, " context"]) -> None:
        latent, act = batch.latent, batch.act
        self.n_tokens += int(batch.kept.sum())
        contexts = slice(batch.first_context, batch.first_context + batch.n_contexts)
        np.add.at(self.tokens_of_source, source[contexts], batch.kept.sum(1))
        self.count += np.bincount(latent, minlength=self.n_latents)
        self.sum += np.bincount(latent, act, self.n_latents)
        np.maximum.at(self.max, latent, act)
        n_bins = len(EDGES) - 1
        self.histogram += np.bincount(latent * n_bins + bins_of(act), minlength=len(self.histogram))
        context = batch.where // self.n_ctx
        self.source_counts += np.bincount(source[context] * self.n_latents + latent, minlength=len(self.source_counts))
        group = latent * self.n_contexts + context  # firings of one latent in one context stand together
        strongest = _group_argmax(group, act)
        self.top.offer(batch, strongest, act[strongest], group, self.settings)
        self.drawn.offer(batch, np.arange(len(act)), self.rng.random(len(act)), group, self.settings)
        self._count_together(batch, context)

    def _count_together(self, batch: Fired, context: np.ndarray) -> None:
        chosen = context % self.stride == 0
        if chosen.any():
            token = batch.where[chosen] - batch.first_context * self.n_ctx
            shape = (batch.n_contexts * self.n_ctx, self.n_latents)
            ones = np.ones(len(token), dtype=np.float32)
            matrix = scipy.sparse.csr_matrix((ones, (token, batch.latent[chosen])), shape=shape)
            self.together.append(matrix[np.unique(token)])

    def latent_columns(self) -> dict[str, np.ndarray]:
        co_firing, phi = _co_firing(self.together, self.n_latents)
        return {
            "count": self.count,
            "sum": self.sum.astype(np.float32),
            "max": self.max,
            "histogram": self.histogram.reshape(self.n_latents, -1).astype(np.uint32),
            "source_counts": self.source_counts.reshape(self.n_sources, -1).T.astype(np.uint32),
            "co_firing": co_firing,
            "co_firing_phi": phi,
        }

    def example_columns(self) -> dict[str, np.ndarray]:
        parts = [best.in_order() for best in (self.top, self.drawn)]
        return {
            "where": np.concatenate([where for where, _ in parts], 1).astype(np.int32),
            "acts": np.concatenate([acts for _, acts in parts], 1),
        }


class _Best:
    """For each latent the `n` firings of the highest keys offered so far, with the activations around them."""

    def __init__(self, n_latents: int, n: int, window: int) -> None:
        self.keys = np.full((n_latents, n), -np.inf)
        self.lowest = np.full(n_latents, -np.inf)
        self.where = np.full((n_latents, n), -1, dtype=np.int64)
        self.acts = np.zeros((n_latents, n, window), dtype=np.float16)

    def offer(self, batch: Fired, chosen: np.ndarray, keys: np.ndarray, group: np.ndarray, settings: Settings) -> None:
        good = keys > self.lowest[batch.latent[chosen]]
        chosen, keys = chosen[good], keys[good]
        if not len(chosen):
            return
        n = self.keys.shape[1]
        order = np.lexsort((-keys, batch.latent[chosen]))
        chosen, keys = chosen[order], keys[order]
        latents, start, row = np.unique(batch.latent[chosen], return_index=True, return_inverse=True)
        rank = np.arange(len(chosen)) - start[row]
        chosen, keys, row, rank = (values[rank < n] for values in (chosen, keys, row, rank))
        new = np.full((len(latents), n), -np.inf)
        new[row, rank] = keys
        both = np.concatenate([self.keys[latents], new], 1)
        best = np.argpartition(-both, n - 1, axis=1)[:, :n]
        where = np.full((len(latents), n), -1, dtype=np.int64)
        where[row, rank] = batch.where[chosen]
        acts = np.zeros((len(latents), n, self.acts.shape[2]), dtype=np.float16)
        acts[row, rank] = _windows(batch, chosen, group, settings)
        lines = np.arange(len(latents))[:, None]
        self.keys[latents] = both[lines, best]
        self.lowest[latents] = self.keys[latents].min(1)
        self.where[latents] = np.concatenate([self.where[latents], where], 1)[lines, best]
        self.acts[latents] = np.concatenate([self.acts[latents], acts], 1)[lines, best]

    def in_order(self) -> tuple[np.ndarray, np.ndarray]:
        """Places and activations, highest key first."""
        lines, order = np.arange(len(self.keys))[:, None], np.argsort(-self.keys, axis=1, kind="stable")
        return self.where[lines, order], self.acts[lines, order]


def _windows(
    batch: Fired, chosen: Int[np.ndarray, " example"], group: Int[np.ndarray, " active"], settings: Settings
) -> Float[np.ndarray, "example window"]:
    """The activations of each chosen firing's latent on the tokens around it."""
    out = np.zeros((len(chosen), settings.before + settings.after + 1), dtype=np.float16)
    out[:, settings.before] = batch.act[chosen]
    for direction, reach in ((-1, settings.before), (1, settings.after)):
        todo = np.arange(len(chosen))
        for step in range(1, reach + 1):
            other = chosen[todo] + direction * step
            inside = (other >= 0) & (other < len(group))
            todo, other = todo[inside], other[inside]
            distance = batch.where[other] - batch.where[chosen[todo]]
            near = (group[other] == group[chosen[todo]]) & (np.abs(distance) <= reach)
            todo, other, distance = todo[near], other[near], distance[near]
            if not len(todo):
                break
            out[todo, settings.before + distance] = batch.act[other]
    return out


def _group_argmax(group: Int[np.ndarray, " active"], values: Float[np.ndarray, " active"]) -> np.ndarray:
    """For each run of equal `group`, the index of its largest value."""
    if not len(group):
        return np.empty(0, dtype=int)
    order = np.lexsort((-values, group))
    first = np.concatenate([[True], np.diff(group[order]) > 0])
    return order[first]


def _co_firing(parts: list[scipy.sparse.csr_matrix], n_latents: int) -> tuple[np.ndarray, np.ndarray]:
    """For each latent those whose firing correlates most with its own (phi), and how much."""
    ids, values = np.full((n_latents, N_LISTED), -1, dtype=np.int32), np.zeros((n_latents, N_LISTED), dtype=np.float32)
    if not parts:
        return ids, values
    fires = scipy.sparse.vstack(parts).tocsc()
    n, rate = fires.shape[0], np.asarray(fires.mean(0)).ravel()
    spread = np.sqrt(np.maximum(rate * (1 - rate), 1e-12))
    for start in range(0, n_latents, 512):
        some = slice(start, min(start + 512, n_latents))
        joint = (fires[:, some].T @ fires).toarray() / n
        phi = (joint - rate[some, None] * rate) / (spread[some, None] * spread)
        phi[joint * n < 3] = 0  # two tokens in common are a coincidence
        phi[np.arange(len(phi)), np.arange(start, start + len(phi))] = 0
        ids[some], values[some] = _largest(phi)
    return ids, values


def _largest(scores: Float[np.ndarray, "row column"]) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the largest scores of each row, largest first, and the scores; -1 where none is positive."""
    n = min(N_LISTED, scores.shape[1])
    ids, values = np.full((len(scores), N_LISTED), -1, np.int32), np.zeros((len(scores), N_LISTED), np.float32)
    lines = np.arange(len(scores))[:, None]
    best = np.argpartition(-scores, n - 1, axis=1)[:, :n]
    best = best[lines, np.argsort(-scores[lines, best], axis=1)]
    ids[:, :n], values[:, :n] = best, scores[lines, best]
    ids[values <= 0] = -1
    return ids, values


def _from_weights(model: "TransformerBridge", dictionary: Dictionary, seed: int) -> dict:
    """What follows from the decoder rows alone, with what random directions reach beside it."""
    rows = torch.nn.functional.normalize(dictionary.W_dec.float(), dim=1)
    W_U = unembedding(model)
    random = torch.randn(RANDOM_DIRECTIONS, rows.shape[1], generator=torch.Generator().manual_seed(seed))
    random = torch.nn.functional.normalize(random, dim=1)
    parts: dict[str, list] = {}
    for start in range(0, len(rows), 512):
        some = rows[start : start + 512]
        effects = (some @ W_U).numpy()
        cosines = some @ rows.T
        cosines[torch.arange(len(some)), torch.arange(start, start + len(some))] = 0
        for name, (ids, values) in {
            "promoted": _largest(effects),
            "suppressed": _largest(-effects),
            "neighbours": _largest(cosines.numpy()),
        }.items():
            parts.setdefault(name, []).append(ids)
            parts.setdefault(f"{name}_value", []).append(values)
    columns = {name: np.concatenate(values) for name, values in parts.items()}
    return {
        "promoted": columns["promoted"],
        "promoted_effect": columns["promoted_value"],
        "suppressed": columns["suppressed"],
        "suppressed_effect": -columns["suppressed_value"],
        "neighbours": columns["neighbours"],
        "neighbour_cosine": columns["neighbours_value"],
        "random_effect": float((random @ W_U).max(1).values.median()),
        "random_cosine": float((random @ rows.T).max(1).values.median()),
    }


def _smallest(ids: np.ndarray) -> np.ndarray:
    return ids.astype(np.uint16 if ids.max() < 2**16 else np.int32)


def _write_columns(path: Path, columns: dict[str, np.ndarray]) -> None:
    """One row per first index; further axes are flattened into lists of equal length."""
    table = {}
    for name, values in columns.items():
        array = pa.array(values.reshape(-1))
        table[name] = array if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(array, values[0].size)
    shapes = {name: json.dumps(values.shape[1:]) for name, values in columns.items()}
    pa.feather.write_feather(
        pa.table(table).replace_schema_metadata(shapes), path, compression="zstd", compression_level=9
    )
