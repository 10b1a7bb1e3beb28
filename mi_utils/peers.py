"""Sums and selections over the processes that train one dictionary together, each on its rows of every batch.

In a process that trains alone, which is the usual case, each of these gives what it was given.

Taught nowhere: `cluster` starts the processes, `training` and `sae` need not know.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.distributed as dist
from jaxtyping import Float, Num
from torch import Tensor


def count() -> int:
    """How many processes share each batch."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if count() > 1 else 0


def own(rows: Num[Tensor, "token ..."]) -> Num[Tensor, "own_token ..."]:
    """This process's rows of a batch: every `count()`-th, so that the first rows of a batch are shared as well."""
    return rows[rank() :: count()]


def total(values: Num[Tensor, "*shape"]) -> Num[Tensor, "*shape"]:
    """The sum over processes, in place."""
    if count() > 1:
        dist.all_reduce(values)
    return values


def average(tensors: Iterable[Float[Tensor, "..."]]) -> None:
    """Replace each tensor by its mean over processes."""
    if count() > 1:
        for values in tensors:
            dist.all_reduce(values)
            values.div_(count())


class Gathered(NamedTuple):
    """What all processes hold, in the order of their ranks."""

    values: Float[Tensor, " all"]
    start: int
    """Where this process's own begin."""


def gathered(values: Float[Tensor, " own"]) -> Gathered:
    """The values of all processes, which may differ in number."""
    if count() == 1:
        return Gathered(values, 0)
    sizes = torch.zeros(count(), dtype=torch.long)
    sizes[rank()] = len(values)
    dist.all_reduce(sizes)
    padded = values.new_zeros(int(sizes.max()))
    padded[: len(values)] = values
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    parts = [part[:n] for part, n in zip(parts, sizes.tolist(), strict=True)]
    return Gathered(torch.cat(parts), int(sizes[: rank()].sum()))
