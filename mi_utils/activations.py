"""Run a model once over text and keep what flows at chosen places, in a store that survives being killed.

A store is a folder of shards. Each shard holds a fixed range of contexts, is written whole or not at all, and carries
a checksum; a second call with the same arguments goes on where the first stopped and ends with the same bytes.

Left out are the first position of every context and tokens whose norm exceeds `NORM_LIMIT` times the median: the model
uses such positions as resting places for attention. In the default model separators reach 25 to 150 times the median
from layer 12 on, and hardly any other token exceeds twice the median there; kept in, a few tokens would own the error.

Read: Sun et al. (2024), Massive Activations in Large Language Models, arXiv 2402.17762. Taught in `01_train_an_sae`.
"""

import errno
import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from mi_utils.files import atomic_path, locked, remove_leftovers
from mi_utils.hooks import run_with_cache

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

FIRST_POSITION = 1  # positions before this one are left out
NORM_LIMIT = 4.0  # times the median norm of the first shard
MIX_ROWS = 131_072  # rows held in memory and shuffled together; a fixed 150 MB at width 576
MANIFEST = "manifest.json"


class Location(NamedTuple):
    """Where in the text each row of a store comes from."""

    context: Int[Tensor, " row"]
    position: Int[Tensor, " row"]


def harvest(
    model: "TransformerBridge",
    tokens: Int[Tensor, "context pos"],
    hook_names: Sequence[str],
    folder: str | Path,
    *,
    batch_size: int = 16,
    shard_contexts: int = 64,
    dtype: torch.dtype = torch.float16,
    progress: bool = True,
) -> "ActivationStore":
    """Keep the activations of all hooks on all tokens, in one pass no deeper than the deepest hook.

    Finished shards are not computed again. The pass over a shard never depends on where an earlier run stopped.

    Args:
        batch_size: contexts in one forward pass.
        shard_contexts: contexts in one file: what a kill can cost.
        dtype: of the stored values. Half precision costs a relative error of 0.0005 per value.
    Raises:
        ValueError: no tokens, an unknown hook, activations that are not finite, or a store of another run in `folder`.
        OSError: not enough disk space; nothing half-written is kept.
    """
    if tokens.numel() == 0 or tokens.shape[1] <= FIRST_POSITION:
        raise ValueError(f"need contexts of at least two tokens, got tokens of shape {tuple(tokens.shape)}")
    folder = Path(folder)
    with locked(folder / ".lock"):
        remove_leftovers(folder)
        manifest = _claim_folder(folder, model, tokens, hook_names, batch_size, shard_contexts, dtype)
        shards = list(enumerate(tokens.split(shard_contexts)))
        missing = [(number, rows) for number, rows in shards if not _path(folder, number).exists()]
        n_missing = sum(rows.numel() for _, rows in missing)
        _check_space(folder, model, n_missing * len(hook_names), dtype)
        limits = None if not shards or missing[:1] == shards[:1] else _header(_path(folder, 0))["limits"]
        with tqdm(total=n_missing, unit=" tokens", desc="harvest", disable=not progress) as bar:
            for number, rows in missing:
                acts = _run(model, rows, hook_names, batch_size, bar)
                limits = limits or _norm_limits(acts)
                _write(_path(folder, number), acts, limits, number * shard_contexts, dtype)
    return ActivationStore(folder)


def _claim_folder(folder, model, tokens, hook_names, batch_size, shard_contexts, dtype) -> dict:
    """The manifest of this run: written into an empty folder, or compared with the one that is there."""
    manifest = {
        "model": model.cfg.model_name,
        "weights": _fingerprint(model),
        "hook_names": list(hook_names),
        "tokens": hashlib.sha256(tokens.to(torch.int32).contiguous().numpy().tobytes()).hexdigest(),
        "shape": list(tokens.shape),
        "batch_size": batch_size,
        "shard_contexts": shard_contexts,
        "dtype": str(dtype).removeprefix("torch."),
        "rule": {"first_position": FIRST_POSITION, "norm_limit": NORM_LIMIT},
    }
    path = folder / MANIFEST
    if path.exists():
        there = _read_manifest(path)
        if different := [key for key in manifest if there.get(key) != manifest[key]]:
            raise ValueError(f"{folder} holds activations of another run: {', '.join(different)} differ. "
                             "Choose another folder; nothing was changed")
        return there
    with atomic_path(path) as part:
        part.write_text(json.dumps(manifest, indent=1))
    return manifest


def _fingerprint(model: "TransformerBridge") -> str:
    """A number that differs between models of one name: a random twin is not the model."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.double().sum().item():.9e}".encode())
    return digest.hexdigest()[:16]


def _check_space(folder: Path, model: "TransformerBridge", n_values: int, dtype: torch.dtype) -> None:
    needed, free = n_values * model.cfg.d_model * dtype.itemsize, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"the activations need {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB "
                      "free. Free some space, harvest fewer tokens, or choose another folder")


def _run(model: "TransformerBridge", tokens: Tensor, hook_names: Sequence[str], batch_size: int, bar: tqdm) -> dict:
    """Activations `[context pos d]` of one shard, hook by hook."""
    parts = {name: [] for name in hook_names}
    for rows in tokens.split(batch_size):
        with torch.no_grad():
            cache = run_with_cache(model, rows.to(model.cfg.device), hook_names)
        for name, act in cache.items():
            if not torch.isfinite(act.sum()):
                raise ValueError(f"activations at {name} are not finite; look at the model's weights and the tokens")
            parts[name].append(act.cpu())
        bar.update(rows.numel())
    return {name: torch.cat(acts) for name, acts in parts.items()}


def _norm_limits(acts: dict[str, Tensor]) -> dict[str, float]:
    """The largest norm that is kept at each hook."""
    return {name: NORM_LIMIT * act[:, FIRST_POSITION:].norm(dim=-1).median().item() for name, act in acts.items()}


def _write(path: Path, acts: dict[str, Tensor], limits: dict[str, float], first_context: int, dtype: torch.dtype):
    """One shard: the kept rows of every hook, where they come from, and their sums for the mean and the scale."""
    keep = torch.stack([act.norm(dim=-1) <= limits[name] for name, act in acts.items()]).all(0)
    keep[:, :FIRST_POSITION] = False
    context, position = keep.nonzero(as_tuple=True)
    shard = {"context": (context + first_context).int(), "position": position.int()}
    for name, act in acts.items():
        rows = act[keep].to(dtype)
        shard[name] = rows
        shard[f"{name}/sum"] = rows.double().sum(0)
        shard[f"{name}/sum_of_squares"] = rows.double().pow(2).sum()
    header = {"n_rows": len(context), "limits": limits, "sha256": _digest(shard)}
    with atomic_path(path) as part:
        save_file(shard, part, metadata={"mi_utils": json.dumps(header)})


def _digest(shard: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(shard):
        digest.update(shard[name].contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05d}.safetensors"


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is {what}. Delete this file and harvest again: only its tokens are computed anew")


def _header(path: Path) -> dict:
    try:
        with safe_open(path, "pt") as file:
            return json.loads(file.metadata()["mi_utils"])
    except (SafetensorError, TypeError, KeyError, json.JSONDecodeError, OSError) as error:
        raise _damaged(path, f"damaged or truncated ({error})") from error


def _read_manifest(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError, FileNotFoundError) as error:
        raise ValueError(f"no activation store in {path.parent}: {MANIFEST} is missing or damaged ({error})") from error


class ActivationStore:
    """What `harvest` kept. Rows of all hooks are aligned: row i of each comes from the same token.

    Raises:
        ValueError: not a store, an unfinished one, or a damaged shard.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder / MANIFEST)
        self.hook_names: list[str] = self.manifest["hook_names"]
        n_contexts, self.n_ctx = self.manifest["shape"]
        n_shards = math.ceil(n_contexts / self.manifest["shard_contexts"])
        self.paths = [_path(self.folder, number) for number in range(n_shards)]
        if absent := [path for path in self.paths if not path.exists()]:
            raise ValueError(f"{self.folder} has {n_shards - len(absent)} of {n_shards} shards: the harvest was "
                             "interrupted. Call harvest again with the same arguments; it goes on where it stopped")
        self._rows = [_header(path)["n_rows"] for path in self.paths]
        self._verified: set[Path] = set()

    def __len__(self) -> int:
        return sum(self._rows)

    @property
    def n_excluded(self) -> int:
        """Tokens that the rule left out."""
        return math.prod(self.manifest["shape"]) - len(self)

    @cached_property
    def location(self) -> Location:
        """Context and position of every row."""
        return Location(*(torch.cat([self._load(path, name) for path in self.paths]) for name in Location._fields))

    @cached_property
    def keep(self) -> Bool[Tensor, "context pos"]:
        """Which tokens of the harvested contexts are in the store."""
        keep = torch.zeros(self.manifest["shape"], dtype=torch.bool)
        keep[self.location.context.long(), self.location.position.long()] = True
        return keep

    def mean(self, hook_name: str) -> Float[Tensor, " d_in"]:
        """Mean over all rows, in the model's units."""
        return self._moments(hook_name)[0].float()

    def scale(self, hook_name: str) -> float:
        """What divides centred rows so that their mean squared norm is `d_in`."""
        mean, mean_square = self._moments(hook_name)
        return math.sqrt((mean_square - mean.pow(2).sum().item()) / len(mean))

    def _moments(self, hook_name: str) -> tuple[Tensor, float]:
        self._check(hook_name)
        sums = [self._load(path, f"{hook_name}/sum") for path in self.paths]
        squares = [self._load(path, f"{hook_name}/sum_of_squares") for path in self.paths]
        return torch.stack(sums).sum(0) / len(self), (torch.stack(squares).sum() / len(self)).item()

    def read(self, hook_name: str) -> Float[Tensor, "row d_in"]:
        """All rows of one hook in the model's units, in the order of the text. For sets that fit in memory."""
        self._check(hook_name)
        return torch.cat([self._load(path, hook_name) for path in self.paths]).float()

    def batches(
        self, hook_name: str, batch_size: int, *, seed: int = 0, epochs: int | None = None
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Shuffled batches, centred and scaled: the same for the same seed, endless unless `epochs` is given.

        Shards come in random order and rows are mixed within pools of `MIX_ROWS`, so memory does not grow with the
        store. Every row comes once per epoch, but for the last few, which would not fill a batch.

        Raises:
            ValueError: an unknown hook, or a batch larger than the store.
        """
        self._check(hook_name)
        if not 0 < batch_size <= len(self):
            raise ValueError(f"batch_size must be from 1 to the {len(self)} rows of the store, got {batch_size}")
        mean, scale = self.mean(hook_name), self.scale(hook_name)
        generator = torch.Generator().manual_seed(seed)
        return (
            (rows.float() - mean) / scale
            for _ in (itertools.count() if epochs is None else range(epochs))
            for rows in self._epoch(hook_name, batch_size, generator)
        )

    def _epoch(self, hook_name: str, batch_size: int, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(len(self.paths), generator=generator).tolist()
        pool = []
        for place, number in enumerate(order, start=1):
            pool.append(self._load(self.paths[number], hook_name))
            if sum(map(len, pool)) >= max(MIX_ROWS, batch_size) or place == len(order):
                rows = torch.cat(pool)
                *full, rest = rows[torch.randperm(len(rows), generator=generator)].split(batch_size)
                yield from full
                if len(rest) == batch_size:
                    yield rest
                    rest = rest[:0]
                pool = [rest]

    def _check(self, hook_name: str) -> None:
        if hook_name not in self.hook_names:
            raise ValueError(f"the store has no {hook_name!r}; it has {', '.join(self.hook_names)}")

    def _load(self, path: Path, name: str) -> Tensor:
        """One tensor of a shard, whose checksum is compared the first time."""
        if path not in self._verified:
            self._verify(path)
            self._verified.add(path)
        with safe_open(path, "pt") as file:
            return file.get_tensor(name)

    def _verify(self, path: Path) -> None:
        recorded = _header(path)["sha256"]
        with safe_open(path, "pt") as file:
            shard = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
        if _digest(shard) != recorded:
            raise _damaged(path, "altered: its checksum differs")
