"""Activations on disk, read back in shuffled batches, in order, or by index.

A store is a folder that `activations.harvest` fills. `plan.json` says what is harvested; shard files, each written
whole, hold the rows; and `manifest.json`, written last, holds checksums, row counts, means and scales.

Paper: Bricken et al. 2023, "Towards Monosemanticity", on shuffled activation buffers. Taught in notebook 01.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor

from mi_utils.files import sha256

PLAN, MANIFEST = "plan.json", "manifest.json"


@dataclass(frozen=True)
class Statistics:
    """What centres and scales one hook's rows: (x - mean) / scale has mean zero and mean squared norm d_in."""

    mean: Float[Tensor, "d_in"]
    """Mean over all rows of the store, in the model's own scale; computed in float64."""
    scale: float
    """Root mean square, over rows and dimensions, of the centred activations; computed in float64."""
    largest_norm: float
    """Rows longer than this were left out."""


@dataclass(frozen=True)
class Origin:
    """Where rows of a store come from."""

    context: Int[Tensor, "token"]
    """Index of the context among the harvested ones."""
    position: Int[Tensor, "token"]
    """Position in that context, from 0."""


class ActivationStore:
    """A finished store: its rows in shuffled batches, in order, or by index.

    Files are memory-mapped, so memory does not grow with the store. Each file's checksum is compared when it is
    first read.

    Raises:
        ValueError: there is no finished store in `folder`, or its files are damaged.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).exists():
            state = "is unfinished: call harvest again to go on" if (self.folder / PLAN).exists() else "holds no store"
            raise ValueError(f"{self.folder} {state}")
        self.plan = read_json(self.folder / PLAN, "hook_names")
        self.manifest = read_json(self.folder / MANIFEST, "shards", "hooks")
        self._checked: set[int] = set()
        self._ends = np.cumsum([shard["rows"] for shard in self.manifest["shards"]])

    @property
    def hook_names(self) -> list[str]:
        """The hooks whose activations are stored."""
        return self.plan["hook_names"]

    @property
    def n_rows(self) -> int:
        """Rows per hook, after exclusion."""
        return int(self._ends[-1])

    @property
    def excluded(self) -> dict[str, int]:
        """How many tokens were left out, by reason."""
        return self.manifest["excluded"]

    def d_in(self, hook_name: str) -> int:
        """Width of a hook's rows."""
        return len(self._hook(hook_name)["mean"])

    def statistics(self, hook_name: str) -> Statistics:
        """Mean, scale and norm limit of a hook's rows."""
        hook = self._hook(hook_name)
        return Statistics(torch.tensor(hook["mean"]), hook["scale"], hook["largest_norm"])

    def batches(
        self,
        hook_name: str,
        batch_size: int,
        seed: int = 0,
        *,
        epochs: int | None = 1,
        scaled: bool = True,
        shards_mixed: int = 8,
    ) -> Iterator[Float[Tensor, "token d_in"]]:
        """Shuffled float32 batches of exactly `batch_size` rows; the same seed gives the same batches.

        Each epoch visits every row once, except fewer than `batch_size` at its end. Shards come in random order and
        rows are shuffled within `shards_mixed` of them held in memory at once, so a store of no more shards is
        shuffled perfectly, and of a larger one each batch draws on that many shards' contexts.

        Args:
            epochs: how often to go through the store; `None` never ends.
            scaled: centre and scale the rows; otherwise they keep the model's own scale.
        Raises:
            ValueError: an unknown hook, or a batch larger than the store.
        """
        if not 1 <= batch_size <= self.n_rows:
            raise ValueError(f"batch_size is {batch_size}; expected between 1 and the store's {self.n_rows} rows")
        statistics = self.statistics(hook_name)
        mean, factor = (statistics.mean, 1 / statistics.scale) if scaled else (0.0, 1.0)
        return (
            rows.float().sub_(mean).mul_(factor)
            for epoch in (count() if epochs is None else range(epochs))
            for rows in self._mixed(hook_name, batch_size, np.random.default_rng((seed, epoch)), shards_mixed)
        )

    def _mixed(
        self, hook_name: str, batch_size: int, rng: np.random.Generator, shards_mixed: int
    ) -> Iterator[Float[Tensor, "token d_in"]]:
        order = rng.permutation(len(self._ends)).tolist()
        left: list[Tensor] = []
        for start in range(0, len(order), shards_mixed):
            pool = torch.cat([*left, *(self._tensor(k, hook_name) for k in order[start : start + shards_mixed])])
            rows = torch.from_numpy(rng.permutation(len(pool)))
            whole = len(rows) // batch_size * batch_size
            for batch in rows[:whole].split(batch_size) if whole else ():
                yield pool.index_select(0, batch)  # six times as fast as pool[batch]
            left = [pool.index_select(0, rows[whole:])]
            del pool

    def read(self, hook_name: str, batch_size: int = 4096) -> Iterator[Float[Tensor, "token d_in"]]:
        """All rows in the order of the contexts, as float32 in the model's own scale; the last batch may be short."""
        for start in range(0, self.n_rows, batch_size):
            yield self.rows(hook_name, torch.arange(start, min(start + batch_size, self.n_rows)))

    def rows(self, hook_name: str, indices: Int[Tensor, "token"]) -> Float[Tensor, "token d_in"]:
        """The rows with these indices, as float32 in the model's own scale."""
        return self._gather(hook_name, indices).float()

    def origin(self, indices: Int[Tensor, "token"]) -> Origin:
        """Context and position of the rows with these indices; `contexts` has the text around them."""
        return Origin(self._gather("context", indices), self._gather("position", indices))

    def contexts(self, indices: Int[Tensor, "context"]) -> Int[Tensor, "context pos"]:
        """The tokens of the contexts with these indices."""
        self._check_indices(indices, self.plan["n_contexts"])
        per_shard = self.plan["shard_contexts"]
        return torch.stack([self._tensor(int(i) // per_shard, "tokens")[int(i) % per_shard] for i in indices])

    def _gather(self, name: str, indices: Int[Tensor, "token"]) -> Tensor:
        self._check_indices(indices, self.n_rows)
        shard = np.searchsorted(self._ends, indices.numpy(), side="right")
        first = torch.from_numpy(np.concatenate([[0], self._ends]))
        example = self._tensor(0, name)
        gathered = example.new_empty(len(indices), *example.shape[1:])
        for k in np.unique(shard):
            here = torch.from_numpy(shard == k)
            gathered[here] = self._tensor(int(k), name)[indices[here] - first[k]]
        return gathered

    def _check_indices(self, indices: Int[Tensor, "index"], n: int) -> None:
        if len(indices) and (indices.min() < 0 or indices.max() >= n):
            raise ValueError(f"indices run from {int(indices.min())} to {int(indices.max())}; expected 0 to {n - 1}")

    def _hook(self, hook_name: str) -> dict:
        if hook_name not in self.manifest["hooks"]:
            raise ValueError(f"the store in {self.folder} has no hook {hook_name!r}; it has {self.hook_names}")
        return self.manifest["hooks"][hook_name]

    def _tensor(self, k: int, name: str) -> Tensor:
        path = shard_path(self.folder, k)
        if k not in self._checked:
            if not path.exists() or sha256(path) != self.manifest["shards"][k]["sha256"]:
                raise ValueError(
                    f"{path} is missing, truncated or altered: delete it and {self.folder / MANIFEST}, "
                    "then call harvest again, which makes only that shard anew"
                )
            self._checked.add(k)
        with safe_open(path, "pt") as shard:
            return shard.get_tensor(name)


def shard_path(folder: Path, k: int) -> Path:
    """The file of one shard."""
    return folder / f"shard-{k:05d}.safetensors"


def read_json(path: Path, *names: str) -> dict:
    """The object in a file, which has at least these names."""
    try:
        found = json.loads(path.read_text(encoding="utf8"))
        if not isinstance(found, dict) or (missing := set(names) - set(found)):
            raise ValueError(f"it lacks {sorted(missing)}" if isinstance(found, dict) else "it is no object")
        return found
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged: delete the folder {path.parent} and harvest again") from error
