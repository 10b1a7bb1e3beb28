"""Are latents atoms? Train an SAE on another SAE's decoder rows, and on rows without structure beside them.

A meta-SAE explains part of any set of directions, random ones included: it can store rows outright, and sums of a few
atoms come near anything. This floor is most of the score that is usually reported. What says something about the
dictionary is the *excess* over the floor, on rows the meta-SAE was not trained on.

Read: Bussmann et al. (2024), Showing SAE latents are not atomic using meta-SAEs. Taught in `03_meta_saes`.
"""

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from mi_utils.metrics import fvu, mean_interval
from mi_utils.sae import SHIPPED, Dictionary, build, initialise_from_data
from mi_utils.sparse_coding import Codes, omp
from mi_utils.training import to_inference, train

BATCH_SIZE, N_STEPS, LR = 4096, 300, 3e-3  # converged on the widest shipped decoder; bench/meta.py shows it
HELD_OUT = 0.2


def unit_rows(dictionary: Dictionary | Tensor) -> Float[Tensor, "latent d_in"]:
    """The decoder rows at length 1: the data set of a meta-SAE.

    Raises:
        ValueError: rows of zeros, NaN or infinity.
    """
    rows = dictionary if isinstance(dictionary, Tensor) else dictionary.W_dec
    rows = rows.detach().float()
    if rows.ndim != 2 or not torch.isfinite(rows).all():
        raise ValueError(f"decoder of shape {tuple(rows.shape)} holds NaN or infinity; load or train it again")
    if not rows.any(1).all():
        n_zero = int((~rows.any(1)).sum())
        raise ValueError(f"{n_zero} decoder rows are zeros and have no direction; drop dead latents first")
    return torch.nn.functional.normalize(rows, dim=1)


# ------------------------------------------------------------------------------------------------------------ nulls
def random_rows(rows: Float[Tensor, "latent d_in"], seed: int = 0) -> Float[Tensor, "latent d_in"]:
    """As many directions, uniform on the sphere."""
    return _unit(torch.randn(rows.shape, generator=_generator("random", seed)))


def gaussian_rows(rows: Float[Tensor, "latent d_in"], seed: int = 0) -> Float[Tensor, "latent d_in"]:
    """Gaussian directions with the mean and the covariance of the rows: all that is left of them is which dimensions
    matter.

    The covariance is shrunk, because the sample covariance of few rows holds structure that is noise.

    Source: Ledoit and Wolf (2004), A well-conditioned estimator for large-dimensional covariance matrices.
    """
    from sklearn.covariance import ledoit_wolf

    covariance = torch.from_numpy(ledoit_wolf(rows.double().numpy())[0])
    noise = torch.randn(rows.shape, generator=_generator("gaussian", seed), dtype=torch.float64)
    return _unit((rows.double().mean(0) + noise @ torch.linalg.cholesky(covariance).T).float())


def shuffled_rows(rows: Float[Tensor, "latent d_in"], seed: int = 0) -> Float[Tensor, "latent d_in"]:
    """Each coordinate shuffled among the rows: every coordinate keeps its values, rows keep nothing."""
    generator = _generator("shuffled", seed)
    return _unit(torch.stack([column[torch.randperm(len(rows), generator=generator)] for column in rows.T], 1))


def rotated_rows(rows: Float[Tensor, "latent d_in"], seed: int = 0) -> Float[Tensor, "latent d_in"]:
    """All rows turned by one random rotation: what they are to each other stays, what they are to other things goes.

    The null for a comparison with another dictionary. A meta-SAE trained on the rows themselves sees no difference.
    """
    d_in = rows.shape[1]
    rotation = torch.linalg.qr(torch.randn(d_in, d_in, generator=_generator("rotated", seed))).Q
    return rows @ rotation


NULLS: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian_rows,
    "shuffled": shuffled_rows,
    "random": random_rows,
}
"""Rows without structure. The floor of a headline is "gaussian"."""


def rows_of_kind(rows: Float[Tensor, "latent d_in"], kind: str, seed: int = 0) -> Float[Tensor, "latent d_in"]:
    """The rows themselves if the kind is "real", else a null of them."""
    return rows if kind == "real" else NULLS[kind](rows, seed)


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def _generator(purpose: str, seed: int) -> torch.Generator:
    """A stream of its own for each purpose: a control must not draw what the thing it controls for has drawn."""
    return torch.Generator().manual_seed(1000 * zlib.crc32(purpose.encode()) + seed)


# --------------------------------------------------------------------------------------------------------- training
class Split(NamedTuple):
    """Rows to train on and rows to be judged on."""

    train: Float[Tensor, "row d_in"]
    held_out: Float[Tensor, "other d_in"]
    held_out_latents: Int[Tensor, " other"]
    """Whose rows the held-out ones are."""


def split_rows(rows: Float[Tensor, "latent d_in"], seed: int = 0) -> Split:
    """A random fifth of the rows is held out."""
    order = torch.randperm(len(rows), generator=_generator("split", seed))
    n_held_out = round(HELD_OUT * len(rows))
    return Split(rows[order[n_held_out:]], rows[order[:n_held_out]], order[:n_held_out])


def train_meta(
    rows: Float[Tensor, "latent d_in"],
    n_meta: int,
    k: int = 4,
    *,
    weights: Tensor | None = None,
    seed: int = 0,
    n_steps: int = N_STEPS,
    on_log: Callable[[pd.DataFrame], None] | None = None,
) -> SAE:
    """A meta-SAE: a BatchTopK SAE on decoder rows, in the sae-lens format.

    Args:
        rows: unit rows, from `unit_rows`.
        n_meta: meta-latents.
        k: active meta-latents a row, on average.
        weights: `[latent]`, how often each row is drawn, for instance its latent's density; by default all alike, which
            gives rare latents as much say as common ones.
        on_log: called with the curves so far.
    Raises:
        ValueError: fewer rows than meta-latents, or `k` beyond their number; negative weights or none above 0.
    """
    if not 1 <= k <= n_meta <= len(rows):
        raise ValueError(
            f"got {len(rows)} rows, {n_meta} meta-latents, k {k}; expected 1 <= k <= meta-latents <= rows: a meta-SAE "
            "as wide as its data would store every row"
        )
    if weights is not None and (weights.shape != rows.shape[:1] or not (weights >= 0).all() or not weights.any()):
        raise ValueError(f"expected a weight of at least 0 for each of {len(rows)} rows, got {tuple(weights.shape)}")
    sae = build("batchtopk", rows.shape[1], n_meta, k, seed=seed)
    initialise_from_data(sae, rows, seed)
    batches = _batches(rows, min(BATCH_SIZE, len(rows)), weights, _generator("batches", seed))
    train(sae, batches, n_steps, lr=LR, dead_after=50, on_log=on_log)
    return to_inference(sae)


def _batches(rows: Tensor, batch_size: int, weights: Tensor | None, generator: torch.Generator) -> Iterator[Tensor]:
    while True:
        if weights is None:
            yield rows[torch.randint(len(rows), (batch_size,), generator=generator)]
        else:
            yield rows[torch.multinomial(weights, batch_size, replacement=True, generator=generator)]


# ---------------------------------------------------------------------------------------------------------- scoring
def explained(
    x: Float[Tensor, "row d_in"], atoms: Float[Tensor, "atom d_in"], k: int, centre: Float[Tensor, " d_in"]
) -> pd.Series:
    """Share of the rows' variance, about their mean, that sums of 1, 2, ... `k` atoms explain.

    Codes are non-negative and found by matching pursuit, for every dictionary alike.

    Args:
        centre: added to each sum, as `b_dec` is; for a dictionary without one, the mean of the training rows.
    """
    return decompose(x, atoms, k, centre).curve()


@dataclass(frozen=True)
class Score:
    """How much of a set of rows a meta-SAE explains."""

    meta: SAE
    own: float
    """On the rows it was trained on, by its own encoder and threshold: the number that is usually reported."""
    in_sample: float
    """On the rows it was trained on, with exactly `k` atoms a row."""
    held_out: float
    """On rows it has not seen, with exactly `k` atoms a row: the number to trust."""
    curve: pd.Series
    """`held_out` with 1, 2, ... atoms."""


def score(
    rows: Float[Tensor, "latent d_in"],
    n_meta: int,
    k: int = 4,
    *,
    seed: int = 0,
    n_steps: int = N_STEPS,
    n_atoms: int | None = None,
) -> Score:
    """Train a meta-SAE on four fifths of the rows and judge it on all of them.

    Args:
        n_atoms: how far the curve goes; default `k`.
    """
    split = split_rows(rows, seed)
    meta = train_meta(split.train, n_meta, k, seed=seed, n_steps=n_steps)
    curve = explained(split.held_out, meta.W_dec, max(k, n_atoms or k), meta.b_dec)
    return Score(
        meta,
        own=1 - fvu(split.train, meta(split.train)).item(),
        in_sample=decompose(split.train, meta.W_dec, k, meta.b_dec).explained,
        held_out=float(curve[k]),
        curve=curve,
    )


def against_nulls(
    rows: Float[Tensor, "latent d_in"],
    n_meta: int,
    k: int = 4,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    nulls: Sequence[str] = tuple(NULLS),
    n_steps: int = N_STEPS,
) -> pd.DataFrame:
    """The same meta-SAE on the rows and on each null: a row per seed and kind, the columns those of `Score`.

    A seed decides the held-out rows, the start of the training and the draw of the null.
    """
    found = []
    for seed in seeds:
        for kind in ("real", *nulls):
            result = score(rows_of_kind(rows, kind, seed), n_meta, k, seed=seed, n_steps=n_steps)
            found.append((kind, seed, result.own, result.in_sample, result.held_out))
    return pd.DataFrame(found, columns=["rows", "seed", "own", "in_sample", "held_out"])


def excess_by_seed(table: pd.DataFrame, floor: str = "gaussian", column: str = "held_out") -> pd.Series:
    """Real minus floor for each seed, in explained variance; `table` is that of `against_nulls`."""
    by_seed = table.pivot(index="seed", columns="rows", values=column)
    return by_seed["real"] - by_seed[floor]


def excess(table: pd.DataFrame, floor: str = "gaussian", column: str = "held_out") -> pd.Series:
    """Real minus floor, by seed, in explained variance: `value`, `floor`, `excess` and its interval over seeds."""
    by_seed = table.pivot(index="seed", columns="rows", values=column)
    difference = excess_by_seed(table, floor, column)
    low, high = mean_interval(difference.to_numpy())
    return pd.Series(
        {
            "value": by_seed["real"].mean(),
            "floor": by_seed[floor].mean(),
            "excess": difference.mean(),
            "low": low,
            "high": high,
        }
    )


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean of each column over the rows, one a seed, as `value`, and its interval `low` to `high`."""
    intervals = {name: mean_interval(column.to_numpy()) for name, column in table.items()}
    return pd.DataFrame({"value": table.mean()} | pd.DataFrame(intervals, index=["low", "high"]).T.to_dict("series"))


def measured() -> pd.DataFrame:
    """`against_nulls` of every shipped dictionary and of ones trained for less, from `data/saes/meta_table.py`.

    Further columns: `dictionary`, `ratio` of rows to meta-latents, `k`, `one_atom` (held out, one atom a row),
    `seconds`.
    """
    return pd.read_csv(SHIPPED / "meta_table.csv")


def predicted_floor(n_rows: int, n_meta: int, one_row: float) -> float:
    """In-sample explained variance of rows without structure: some are stored, the rest get what anything gets.

    Args:
        one_row: share of a random direction's variance that `k` random atoms explain.
    """
    stored = n_meta / n_rows
    return stored + (1 - stored) * one_row


READINGS = (
    "neither beats the floor",
    "same structure",
    "the meta-SAE finds more",
    "regression on the smaller SAE finds more",
)
"""What a comparison of a meta-SAE with sparse regression can say: three readings of the debate, and what is left."""


def reading(meta: float, regression: float, floor: float, margin: float) -> str:
    """Which of `READINGS` three shares of explained variance support, if a difference counts from `margin` on."""
    if max(meta, regression) - floor <= margin:
        return READINGS[0]
    if abs(meta - regression) <= margin:
        return READINGS[1]
    return READINGS[2] if meta > regression else READINGS[3]


# ------------------------------------------------------------------------------------------- other sets of atoms
def kmeans_centres(rows: Float[Tensor, "latent d_in"], n: int, seed: int = 0) -> Float[Tensor, "centre d_in"]:
    """Centres of `n` clusters of rows: what one atom per row can do.

    Source: sklearn.cluster.MiniBatchKMeans.
    """
    from sklearn.cluster import MiniBatchKMeans

    found = MiniBatchKMeans(n, random_state=seed, n_init=1, batch_size=4096, max_iter=50).fit(rows.numpy())
    return torch.from_numpy(found.cluster_centers_).float()


def centred_atoms(dictionary: Float[Tensor, "atom d_in"]) -> Float[Tensor, "atom d_in"]:
    """Unit rows about their own mean: two dictionaries that share no more than a mean direction then look unrelated.

    Raises:
        ValueError: a row of zeros.
    """
    unit = unit_rows(dictionary)
    return unit_rows(unit - unit.mean(0))


# --------------------------------------------------------------------------------------- taking every row apart
@dataclass(frozen=True)
class Decomposition:
    """Every latent of a dictionary as a centre plus a sum of a few atoms."""

    rows: Float[Tensor, "latent d_in"]
    atoms: Float[Tensor, "atom d_in"]
    """Directions at unit length."""
    centre: Float[Tensor, " d_in"]
    codes: Codes

    @property
    def k(self) -> int:
        return self.codes.atoms.shape[1]

    @cached_property
    def x_hat(self) -> Float[Tensor, "latent d_in"]:
        """The rows as their sums say they are."""
        return self.centre + self.codes.reconstruct(self.atoms)

    @property
    def explained(self) -> float:
        """Share of the rows' variance, about their mean, that the sums explain."""
        return 1 - fvu(self.rows, self.x_hat).item()

    def first(self, k: int) -> "Decomposition":
        """With the first `k` atoms of each row alone, at the weights that are then best."""
        codes = self.codes if k == self.k else self.codes.first(k, self.rows - self.centre, self.atoms)
        return replace(self, codes=codes)

    def curve(self) -> pd.Series:
        """`explained` with 1, 2, ... atoms."""
        shares = {k: self.first(k).explained for k in range(1, self.k + 1)}
        return pd.Series(shares, name="explained").rename_axis("k")

    @cached_property
    def cosine(self) -> Float[Tensor, " latent"]:
        """Of each row to its sum."""
        return torch.nn.functional.cosine_similarity(self.rows, self.x_hat, dim=1)

    @cached_property
    def members(self) -> list[Int[np.ndarray, " member"]]:
        """For each atom the latents that use it, heaviest first."""
        rows, places = (self.codes.weights > 0).nonzero(as_tuple=True)
        atoms, weights = self.codes.atoms[rows, places].numpy(), self.codes.weights[rows, places].numpy()
        order = np.lexsort((-weights, atoms))
        return np.split(rows.numpy()[order], np.searchsorted(atoms[order], np.arange(1, len(self.atoms))))

    def parts(self, latent: int) -> dict[int, float]:
        """The atoms of a latent and their weights, heaviest first."""
        pairs = zip(self.codes.atoms[latent].tolist(), self.codes.weights[latent].tolist(), strict=True)
        return dict(sorted(((atom, weight) for atom, weight in pairs if weight > 0), key=lambda pair: -pair[1]))

    def share_an_atom(self, pairs: Int[Tensor, "pair 2"]) -> Bool[Tensor, " pair"]:
        """Whether the two latents of each pair have an atom in common."""
        used = self.codes.weights > 0
        one, other = (self.codes.atoms.where(used, -1 - n)[pairs[:, n]] for n in (0, 1))
        return (one[:, :, None] == other[:, None, :]).any(2).any(1)

    def exchanged(self, latent: int, other: int) -> Float[Tensor, " d_in"]:
        """A latent's row with the atoms only it has taken out and those only `other` has put in, at unit length.

        Nothing is scaled up: an edit that replaces the row would prove little.

        Source: Bussmann et al. (2024), on editing; they search all subsets and scale by 100, this does neither.
        """
        own, theirs = self.parts(latent), self.parts(other)
        change = torch.zeros(self.rows.shape[1])
        for atom in own.keys() - theirs.keys():
            change -= own[atom] * self.atoms[atom]
        for atom in theirs.keys() - own.keys():
            change += theirs[atom] * self.atoms[atom]
        return torch.nn.functional.normalize(self.rows[latent] + change, dim=0)


def decompose(
    rows: Float[Tensor, "latent d_in"], atoms: Float[Tensor, "atom d_in"], k: int, centre: Float[Tensor, " d_in"]
) -> Decomposition:
    """Code every row with at most `k` atoms, by non-negative matching pursuit.

    Args:
        centre: `b_dec` of a meta-SAE; for other atoms the mean of the rows.
    """
    unit = unit_rows(atoms)
    return Decomposition(rows, unit, centre, omp(rows - centre, unit, k))
