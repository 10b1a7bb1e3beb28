"""The harvest of a model's activations into a store on disk, resumed after any interruption.

A store (`stores`) without a manifest is unfinished: the same call goes on where it stopped and ends, with the same
libraries, byte for byte where an uninterrupted one would.

Taught in notebook 01.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mi_utils.files import atomic_path, cache_dir, locked, remove_leftovers, sha256, write_json
from mi_utils.hooks import fast_reader
from mi_utils.stores import MANIFEST, PLAN, ActivationStore, read_json, shard_path

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FORMAT = 2
LOCK = ".lock"


@dataclass(frozen=True)
class Exclusion:
    """Which tokens' rows are left out of a store. A row is left out at all hooks or at none.

    Attention sinks carry next to no information and would drown the rest: in SmolLM2 between layers 11 and 25 the
    first position, every separator and some punctuation at positions 1 and 2 have 60 to 170 times the median norm,
    all else at most twice. In layers 2 to 8 the words "the" reach 12 times and are ordinary; the default multiple
    keeps nearly all of those.
    """

    first_positions: int = 1
    """This many positions at the start of each context."""
    token_ids: tuple[int, ...] | None = None
    """Separators, wherever they stand; `None` means the tokenizer's beginning-of-text token."""
    norm_multiple: float = 10.0
    """Rows longer than this many times the median norm of the first shard's other rows, at any of the hooks."""


def harvest(
    model: "TransformerBridge",
    tokens: Int[Tensor, "context pos"],
    hook_names: Sequence[str],
    folder: str | Path | None = None,
    *,
    batch_size: int = 16,
    shard_contexts: int = 256,
    dtype: torch.dtype = torch.float16,
    products: torch.dtype = torch.float32,
    exclusion: Exclusion = Exclusion(),
    progress: bool = True,
) -> ActivationStore:
    """Run the model over all contexts, no deeper than the deepest hook, and keep the activations in `folder`.

    Interrupted at any moment, the same call goes on where it was; called again on a finished store it returns that
    store. Memory does not depend on the number of contexts. Rows are [d_in] vectors in the model's own scale;
    rounding them to float16 costs a fraction of variance below 1e-6 at layer 12 of the default model.

    Args:
        tokens: contexts of equal length. Give them in random order: the reader mixes rows within several shards.
        folder: where the store goes; when not given, a folder of the cache that is named by all the other arguments,
            so that the same call finds the same store.
        hook_names: one or more hooks with activations [batch pos d_in]; heads are flattened into d_in.
        batch_size: contexts in one forward pass; on a processor every core runs a pass of its own where it can.
        shard_contexts: contexts in one file; work since the last whole file is lost when interrupted.
        dtype: of the stored rows.
        products: number format in which matrices are multiplied. `torch.bfloat16` is three times as fast on processors
            with matrix units and costs 0.0005 of the variance at layer 12: good enough to train on, not to judge on.
        progress: show a bar with tokens per second and the time left.
    Raises:
        ValueError: bad tokens or hooks, activations that are not finite, or a folder that holds something else.
        OSError: the disk is too small, said before the start where it can be known.
    """
    job = Job(
        model,
        tokens,
        list(hook_names),
        folder and Path(folder),
        batch_size,
        shard_contexts,
        dtype,
        products,
        exclusion,
    )
    with job.begun() as missing, job.bar(missing, progress) as bar:
        for k in missing:
            job.write_shard(k, bar.update)
    return ActivationStore(job.folder)


def rows_to_keep(
    model: "TransformerBridge", exclusion: Exclusion = Exclusion()
) -> Callable[[Int[Tensor, "context pos"], Float[Tensor, "context pos"]], Bool[Tensor, "context pos"]]:
    """The rule of `harvest` for activations that are read without a store: which tokens to keep.

    Returns a function of tokens and norms; its first call settles the norm beyond which a row is left out.
    """
    separators = torch.tensor(_separators(model, exclusion), dtype=torch.long)
    limit: list[float] = []

    def choose(tokens: Tensor, norms: Tensor) -> Tensor:
        keep = ~torch.isin(tokens.cpu().long(), separators)
        keep[:, : exclusion.first_positions] = False
        if not limit and keep.any():
            limit.append(exclusion.norm_multiple * norms[keep].median().item())
        return keep & (norms <= limit[0]) if limit else keep

    return choose


@dataclass
class Job:
    """One harvest: what was asked for, and the steps that carry it out. Shards may be written in any order but for the
    first, which decides the norm limits; and by several processes, each with a job of its own.

    Raises:
        ValueError: as `harvest`.
    """

    model: "TransformerBridge"
    tokens: Tensor
    """[context pos]"""
    hook_names: list[str]
    folder: Path | None
    batch_size: int
    shard_contexts: int
    dtype: torch.dtype
    products: torch.dtype
    exclusion: Exclusion
    plan: dict = field(init=False)

    @torch.no_grad()
    def __post_init__(self) -> None:
        _check_tokens(self.tokens, self.model, self.exclusion)
        sample = self.tokens[:2].to(self.model.cfg.device).long()
        self.read = fast_reader(self.model, self.hook_names, sample)
        self.parallel = self.read.in_threads and self.model.cfg.device == "cpu"
        self.widths = {name: _width(name, activation, sample) for name, activation in self.read(sample).items()}
        self.separators = torch.tensor(_separators(self.model, self.exclusion), dtype=torch.long)
        self.plan = {
            "format": FORMAT,
            "model": self.model.cfg.model_name,
            "weights": _fingerprint(self.model),
            "hook_names": self.hook_names,
            "n_contexts": self.tokens.shape[0],
            "n_ctx": self.tokens.shape[1],
            "tokens": _token_digest(self.tokens),
            "dtype": str(self.dtype).removeprefix("torch."),
            "products": str(self.products).removeprefix("torch."),
            "batch_size": self.batch_size,
            "shard_contexts": self.shard_contexts,
            "exclusion": asdict(self.exclusion) | {"token_ids": self.separators.tolist()},
            "computed_by": [f"{self.threads_per_pass} threads a pass", self.model.cfg.device]
            + [f"{library} {version(library)}" for library in ("torch", "transformers", "transformer-lens")],
        }
        if self.folder is None:
            name = hashlib.sha256(json.dumps(self.plan, sort_keys=True).encode()).hexdigest()[:16]
            self.folder = cache_dir() / "activations" / name

    @property
    def threads_per_pass(self) -> int:
        return 1 if self.parallel else torch.get_num_threads()

    def check_folder(self) -> None:
        """Refuse a folder that holds anything but this store or its beginning."""
        remove_leftovers(self.folder)
        if (self.folder / PLAN).exists():
            _compare_plans(self.plan, read_json(self.folder / PLAN), self.folder)
        elif others := sorted(path.name for path in self.folder.iterdir() if path.name != LOCK):
            raise ValueError(f"{self.folder} is no store of activations but holds {others[:3]}; give an empty folder")

    @contextmanager
    def begun(self) -> Iterator[list[int]]:
        """Hold the store's lock, give the shards that are not there yet, and finish the store when the block ends.

        Raises:
            ValueError: the folder holds something else.
            OSError: the disk is too small.
        """
        with locked(self.folder / LOCK):
            self.check_folder()
            if (self.folder / MANIFEST).exists():
                yield []
                return
            missing = [k for k in range(self.n_shards) if not shard_path(self.folder, k).exists()]
            self._check_disk(self._n_tokens(missing))
            yield missing
            self.write_manifest()

    def bar(self, missing: Sequence[int], progress: bool = True) -> tqdm:
        """Tokens per second and the time left for these shards."""
        n_done = self.tokens.numel() - self._n_tokens(missing)
        names = {"desc": "harvest", "unit": " tokens", "unit_scale": True}
        return tqdm(total=self.tokens.numel(), initial=n_done, disable=not (progress and missing), **names)

    def _n_tokens(self, shards: Sequence[int]) -> int:
        return sum(self._contexts(k).numel() for k in shards)

    def _check_disk(self, n_tokens: int) -> None:
        needed = n_tokens * (sum(self.widths.values()) * self.dtype.itemsize + 12)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OSError(
                f"the store needs {needed / 1e9:.3g} GB more and {self.folder} has {free / 1e9:.3g} GB free: "
                "give fewer tokens or hooks, or a folder on a larger disk"
            )

    @cached_property
    def _buffers(self) -> dict[str, Tensor]:
        n_rows = min(self.shard_contexts, len(self.tokens)) * self.tokens.shape[1]
        return {name: torch.empty(n_rows, width, dtype=self.dtype) for name, width in self.widths.items()}

    @torch.no_grad()
    def write_shard(self, k: int, on_tokens: Callable[[int], object] | None = None) -> None:
        """Run the model over one shard's contexts and write what is kept, whole or not at all.

        Args:
            on_tokens: called after each batch with how many tokens it had.
        """
        contexts, buffers = self._contexts(k), self._buffers
        norms = self._fill(k, contexts, buffers, on_tokens)
        kept, notes = self._select(contexts, norms, self._notes(0)["largest_norm"] if k else None)
        rows = {name: self._storable(name, buffer[: kept.numel()][kept.flatten()]) for name, buffer in buffers.items()}
        context, position = kept.nonzero(as_tuple=True)
        arrays = (
            rows
            | {f"{name}|sum": _sums(values) for name, values in rows.items()}
            | {
                "tokens": contexts.int().contiguous(),
                "position": position.int(),
                "context": (context + k * self.shard_contexts).int(),
            }
        )
        if not (self.folder / PLAN).exists():
            write_json(self.folder / PLAN, self.plan)
        with atomic_path(shard_path(self.folder, k)) as part:
            save_file(arrays, part, {"notes": json.dumps(notes)})

    def _fill(
        self, k: int, contexts: Tensor, buffers: dict[str, Tensor], on_tokens: Callable[[int], object] | None
    ) -> dict[str, Tensor]:
        """Run the model over one shard's contexts; returns the norm of every row."""
        norms = {name: torch.empty(contexts.numel()) for name in buffers}

        @torch.no_grad()
        def run(start: int) -> int:
            batch = contexts[start : start + self.batch_size]
            here = slice(start * contexts.shape[1], start * contexts.shape[1] + batch.numel())
            with rounded(self.products, self.model.cfg.device):
                activations = self.read(batch.to(self.model.cfg.device).long())
            for name, activation in activations.items():
                rows = activation.flatten(2).flatten(0, 1)
                norms[name][here] = rows.norm(dim=-1)
                buffers[name][here] = rows
            return batch.numel()

        with workers(self.parallel) as pool:
            for n_done in pool.map(run, range(0, len(contexts), self.batch_size)):
                if on_tokens is not None:
                    on_tokens(n_done)
        for name, length in norms.items():
            if not length.isfinite().all():
                bad = k * self.shard_contexts + int((~length.isfinite()).nonzero()[0]) // contexts.shape[1]
                raise ValueError(
                    f"activations at {name!r} in context {bad} are not finite (NaN or infinite): "
                    "look at that context and at the model's weights"
                )
        return norms

    def _select(
        self, contexts: Tensor, norms: dict[str, Tensor], limits: dict | None
    ) -> tuple[Bool[Tensor, "context pos"], dict]:
        """Which rows to keep, and what to note about them in the shard."""
        early = torch.zeros_like(contexts, dtype=torch.bool)
        early[:, : self.exclusion.first_positions] = True
        separator = torch.isin(contexts.cpu().long(), self.separators) & ~early
        ordinary = ~early & ~separator
        if limits is None:
            if not ordinary.any():
                raise ValueError(
                    f"no token of the first {len(contexts)} contexts is left to keep: all are separators "
                    "or at excluded positions; give other text, or another exclusion"
                )
            limits = {
                name: self.exclusion.norm_multiple * length[ordinary.flatten()].median().item()
                for name, length in norms.items()
            }
        long = torch.stack([length.view(contexts.shape) > limits[name] for name, length in norms.items()]).any(0)
        kept = ordinary & ~long
        return kept, {
            "rows": int(kept.sum()),
            "largest_norm": limits,
            "excluded": {
                "first positions": int(early.sum()),
                "separators": int(separator.sum()),
                "long": int((ordinary & long).sum()),
            },
        }

    def _storable(self, name: str, rows: Tensor) -> Tensor:
        if not rows.isfinite().all():
            raise ValueError(
                f"activations at {name!r} exceed the range of {self.dtype}; harvest with dtype=torch.float32"
            )
        return rows

    @property
    def n_shards(self) -> int:
        return -(-len(self.tokens) // self.shard_contexts)

    def _contexts(self, k: int) -> Tensor:
        return self.tokens[k * self.shard_contexts : (k + 1) * self.shard_contexts].cpu()

    def _notes(self, k: int) -> dict:
        path = shard_path(self.folder, k)
        try:
            with safe_open(path, "pt") as shard:
                return json.loads(shard.metadata()["notes"])
        except (SafetensorError, KeyError, TypeError) as error:
            raise ValueError(f"{path} is truncated or altered: delete it and call harvest again") from error

    def write_manifest(self) -> None:
        """Add up the shards' sums and finish the store."""
        notes = [self._notes(k) for k in range(self.n_shards)]
        n_rows = sum(note["rows"] for note in notes)
        hooks = {}
        for name in self.hook_names:
            sums = torch.zeros(self.widths[name] + 1, dtype=torch.float64)
            for k in range(len(notes)):
                with safe_open(shard_path(self.folder, k), "pt") as shard:
                    sums += shard.get_tensor(f"{name}|sum")
            hooks[name] = _moments(sums, n_rows, name) | {"largest_norm": notes[0]["largest_norm"][name]}
        write_json(
            self.folder / MANIFEST,
            {
                "hooks": hooks,
                "excluded": {
                    reason: sum(note["excluded"][reason] for note in notes) for reason in notes[0]["excluded"]
                },
                "shards": [
                    {"rows": note["rows"], "sha256": sha256(shard_path(self.folder, k))} for k, note in enumerate(notes)
                ],
            },
        )


def rounded(products: torch.dtype, device: str | torch.device) -> torch.autocast:
    """Multiply matrices in another number format; autocast holds for one thread, so every pass enters its own."""
    return torch.autocast(torch.device(device).type, products, enabled=products != torch.float32)


@contextmanager
def workers(parallel: bool) -> Iterator[ThreadPoolExecutor]:
    """A pool for passes of the model: one pass at a time on all threads, or as many passes, each on one thread.

    One thread a pass wastes no time on waiting for the others after every operation, and its result does not depend
    on how many there are.
    """
    n_threads = torch.get_num_threads()
    n_workers, per_worker = (n_threads, 1) if parallel else (1, n_threads)
    try:
        with ThreadPoolExecutor(n_workers, initializer=torch.set_num_threads, initargs=(per_worker,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(n_threads)


def _check_tokens(tokens: Tensor, model: "TransformerBridge", exclusion: Exclusion) -> None:
    if tokens.ndim != 2 or tokens.is_floating_point() or tokens.numel() == 0:
        raise ValueError(
            f"tokens have shape {tuple(tokens.shape)} and type {tokens.dtype}; expected whole numbers of "
            "shape [context pos], at least one context"
        )
    if tokens.shape[1] <= exclusion.first_positions:
        raise ValueError(
            f"contexts of {tokens.shape[1]} tokens leave nothing after the {exclusion.first_positions} "
            "excluded first positions; give longer contexts"
        )
    if tokens.min() < 0 or tokens.max() >= model.cfg.d_vocab:
        raise ValueError(
            f"tokens run from {int(tokens.min())} to {int(tokens.max())}; expected 0 to "
            f"{model.cfg.d_vocab - 1}: were they made with another model's tokenizer?"
        )


def _width(name: str, activation: Tensor, sample: Tensor) -> int:
    if activation.shape[:2] != sample.shape or name.endswith(("pattern", "attn_scores")):
        raise ValueError(
            f"activations at {name!r} have shape {tuple(activation.shape)}, not one vector per token; "
            "choose a hook with shape [batch pos d_in]"
        )
    return activation[0, 0].numel()


def _separators(model: "TransformerBridge", exclusion: Exclusion) -> list[int]:
    if exclusion.token_ids is not None:
        return list(exclusion.token_ids)
    token_id = getattr(model.tokenizer, "bos_token_id", None)
    return [] if token_id is None else [token_id]


def _sums(rows: Float[Tensor, "token d_in"]) -> Float[Tensor, "d_in_and_one"]:
    """The sum of the rows and, last, of their squared norms, in float64."""
    total = torch.zeros(rows.shape[1] + 1, dtype=torch.float64)
    for part in rows.split(4096):
        total[:-1] += part.double().sum(0)
        total[-1] += part.double().square().sum()
    return total


def _moments(sums: Tensor, n_rows: int, name: str) -> dict:
    mean, mean_square = sums[:-1] / n_rows, sums[-1] / n_rows
    variance = float(mean_square - mean.square().sum()) / len(mean)
    if variance <= 0:
        raise ValueError(f"activations at {name!r} are all the same, so they have no scale; choose another hook")
    return {"mean": mean.tolist(), "scale": variance**0.5}


def _fingerprint(model: "TransformerBridge") -> str:
    """A digest of a sample of every weight, so that a fine-tuned or edited model counts as another one."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        sample = weight.flatten()[:: max(1, weight.numel() // 1024)]
        digest.update(f"{name} {tuple(weight.shape)}".encode() + sample.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _token_digest(tokens: Tensor) -> str:
    return hashlib.sha256(tokens.cpu().int().contiguous().numpy()).hexdigest()


def _compare_plans(new: dict, old: dict, folder: Path) -> None:
    finished = (folder / MANIFEST).exists()
    different = [key for key in new if new[key] != old.get(key) and not (finished and key == "computed_by")]
    if different:
        details = "; ".join(f"{key}: {str(old.get(key))[:60]} there, {str(new[key])[:60]} now" for key in different)
        raise ValueError(
            f"{folder} holds another harvest ({details}). Nothing was changed; give another folder, or delete this one"
        )
