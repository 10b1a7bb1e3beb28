"""The residual streams of two models on the same tokens, row by row, harvested once and shuffled together.

Each model has a store of its own, made with the same rule for leaving tokens out by place; rows that are too long in
either model are left out of both. Each model's half is centred and scaled by itself, so that neither is louder.

Read: Lindsey et al. (2024), Sparse crosscoders for cross-layer features and model diffing. Taught in
`07_model_diffing`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_utils.activations import Exclusion, harvest
from mi_utils.models import ModelPair, check_pair
from mi_utils.stores import ActivationStore, Statistics

BLOCK = 8192


def harvest_pair(
    pair: ModelPair,
    tokens: Int[Tensor, "context pos"],
    hook_name: str,
    folder: str | Path | None = None,
    *,
    exclusion: Exclusion = Exclusion(),
    **options,
) -> "PairedStore":
    """Run both models over all contexts; interrupted, the same call goes on where it was.

    Args:
        folder: where `base` and `tuned` go; folders of the cache when not given.
        options: of `activations.harvest`.
    Raises:
        ValueError: models that cannot be compared, or as `activations.harvest`.
    """
    check_pair(pair)
    by_place = replace(exclusion, norm_multiple=float("inf"))
    stores = [
        harvest(model, tokens, [hook_name], folder and Path(folder) / name, exclusion=by_place, **options)
        for name, model in pair._asdict().items()
    ]
    return PairedStore(*stores, hook_name, norm_multiple=exclusion.norm_multiple)


class PairedStore:
    """Two finished stores of the same tokens, read together: rows are [base, tuned], 2 d_model wide.

    Args:
        norm_multiple: a row longer than this many times its model's median is left out of both.
    Raises:
        ValueError: the stores hold other tokens or widths, or were made with different exclusions.
    """

    def __init__(
        self, base: ActivationStore, tuned: ActivationStore, hook_name: str, *, norm_multiple: float = 10.0
    ) -> None:
        asked = [{key: store.plan[key] for key in ("tokens", "exclusion", "shard_contexts")} for store in (base, tuned)]
        widths = [store.d_in(hook_name) for store in (base, tuned)]
        if asked[0] != asked[1] or widths[0] != widths[1]:
            raise ValueError(
                f"the two stores do not pair up row by row: {asked[0]} of width {widths[0]} against {asked[1]} of "
                f"width {widths[1]}; make both with harvest_pair"
            )
        self.stores, self.hook_name = (base, tuned), hook_name
        norms = torch.stack([torch.cat([rows.norm(dim=1) for rows in self._read(k)]) for k in range(2)])
        self.limits = norm_multiple * norms.median(1).values
        self.kept = self._is_short(norms).nonzero()[:, 0]
        """Indices, in either store, of the rows that are used."""
        self.statistics = tuple(self._statistics(k) for k in range(2))
        """Mean and scale of each model's rows: base, tuned."""

    @property
    def d_model(self) -> int:
        """Width of one model's residual stream."""
        return len(self.statistics[0].mean)

    def __len__(self) -> int:
        return len(self.kept)

    def batches(
        self, batch_size: int, seed: int = 0, *, epochs: int | None = 1
    ) -> Iterator[Float[Tensor, "token two_d_model"]]:
        """Shuffled batches of exactly `batch_size` pairs, each half centred and scaled; shuffled as a store's are."""
        halves = [store.batches(self.hook_name, batch_size, seed, epochs=epochs, scaled=False) for store in self.stores]
        left = torch.empty(0, 2 * self.d_model)
        for base, tuned in zip(*halves, strict=True):
            short = self._is_short(torch.stack([base.norm(dim=1), tuned.norm(dim=1)]))
            left = torch.cat([left, self.scaled(base[short], tuned[short])])
            if len(left) >= batch_size:
                yield left[:batch_size]
                left = left[batch_size:]

    def rows(self, indices: Int[Tensor, "token"]) -> tuple[Float[Tensor, "token d_model"], ...]:
        """The base and the tuned model's rows at these places of `kept`, in the models' own scale."""
        return tuple(store.rows(self.hook_name, self.kept[indices]) for store in self.stores)

    def scaled(
        self, base: Float[Tensor, "token d_model"], tuned: Float[Tensor, "token d_model"]
    ) -> Float[Tensor, "token two_d_model"]:
        """Both halves centred and scaled, side by side."""
        return torch.cat([(x - own.mean) / own.scale for x, own in zip((base, tuned), self.statistics, strict=True)], 1)

    def _is_short(self, norms: Float[Tensor, "2 token"]) -> Bool[Tensor, " token"]:
        return (norms <= self.limits[:, None]).all(0)

    def _read(self, k: int) -> Iterator[Float[Tensor, "token d_model"]]:
        return self.stores[k].read(self.hook_name, BLOCK)

    def _statistics(self, k: int) -> Statistics:
        blocks: Sequence[Tensor] = self.kept.split(BLOCK)
        rows = (self.stores[k].rows(self.hook_name, block).double() for block in blocks)
        sums = sum(torch.cat([block.sum(0), block.square().sum()[None]]) for block in rows) / len(self.kept)
        mean = sums[:-1]
        variance = (sums[-1] - mean.square().sum()) / len(mean)
        return Statistics(mean.float(), float(variance.sqrt()), float(self.limits[k]))
