"""Small worlds whose answer is known: a method is scored here before anyone believes it on a model.

A superposition world is a list of true feature directions, more than the space has dimensions, and a rule for which of
them fire together. A dictionary trained on its activations should find the directions. How it fails is as instructive:
features that imply each other get *split* or *absorbed*, features that merely fire together get *hedged*.

Read: Chanin et al. (2024), A is for Absorption, arXiv 2409.14507; Chanin et al. (2025), Feature Hedging, 2505.11756.
Taught in `01_train_an_sae`; sums and rings in `03_meta_saes`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from mi_utils.metrics import max_cosine, recovered
from mi_utils.sae import build, initialise_from_data
from mi_utils.training import to_inference, train

NO_PARENT = -1
ALONG = 0.5  # a latent for parent and child together has a cosine of 0.7 to each; unrelated rows stay below this
ALIVE = 0.002  # rows used less often are leftovers of training, not second rows for a feature


class Sample(NamedTuple):
    """Activations and what caused them."""

    x: Float[Tensor, "token d_in"]
    codes: Float[Tensor, "token feature"]
    """How strongly each true feature is present; 0 where it is absent."""


@dataclass(frozen=True)
class SuperpositionWorld:
    """True features, when they fire, and in which direction each of them points."""

    directions: Float[Tensor, "feature d_in"]
    """Unit rows: what a perfect dictionary would have as its decoder."""
    firing_probability: Float[Tensor, " feature"]
    """Of a feature without a parent: how often it fires; of a child: how often it fires when its parent does."""
    parent: Int[Tensor, " feature"]
    """Index of the feature that must be present for this one to be; `NO_PARENT` for most."""
    group: Int[Tensor, " feature"]
    """Features of one group tend to fire together."""
    correlation: float
    """Correlation, in [0, 1), of the hidden Gaussians that decide whether two features of a group fire."""
    noise: float
    """Standard deviation per dimension."""

    def sample(self, n: int, generator: torch.Generator) -> Sample:
        """Draw `n` tokens: features present with strength uniform in [0.5, 1.5], plus noise."""
        shared = torch.randn(n, int(self.group.max()) + 1, generator=generator)[:, self.group]
        own = torch.randn(n, len(self.group), generator=generator)
        hidden = self.correlation**0.5 * shared + (1 - self.correlation) ** 0.5 * own
        fires = torch.special.ndtr(hidden) < self.firing_probability
        has_parent = self.parent != NO_PARENT
        fires[:, has_parent] &= fires[:, self.parent[has_parent]]
        codes = fires * (0.5 + torch.rand(fires.shape, generator=generator))
        x = codes @ self.directions
        return Sample(x + self.noise * torch.randn(x.shape, generator=generator), codes)

    def batches(self, batch_size: int, seed: int = 0) -> Iterator[Float[Tensor, "token d_in"]]:
        """Endless fresh batches of activations, for `training.train`."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.sample(batch_size, generator).x


def superposition(
    n_features: int = 64,
    d_in: int = 32,
    *,
    density: float = 0.05,
    correlation: float = 0.0,
    group_size: int = 2,
    n_children: int = 0,
    noise: float = 0.02,
    seed: int = 0,
) -> SuperpositionWorld:
    """A world of random directions; the three knobs turn independence into correlation or hierarchy.

    Args:
        n_features: true features; more than `d_in` puts them in superposition.
        density: share of tokens on which a feature without a parent fires.
        correlation: of features within a group of `group_size`, in [0, 1); 0 makes all features independent.
        n_children: features that each of the first features has as children. A child fires on half of its parent's
            tokens if it is the only one, on a third if there are two, and so on.
    Raises:
        ValueError: a share or correlation outside its range, or more children than features.
    """
    if not (0 < density < 1 and 0 <= correlation < 1):
        raise ValueError(f"need 0 < density < 1 and 0 <= correlation < 1, got {density} and {correlation}")
    if n_features < 1 or d_in < 1 or not 0 <= n_children < n_features:
        raise ValueError(
            f"need at least one feature and dimension and fewer children than features, "
            f"got {n_features} features in {d_in} dimensions, {n_children} children"
        )
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(n_features, d_in, generator=generator), dim=1)
    probability = torch.full((n_features,), float(density))
    parent = torch.full((n_features,), NO_PARENT)
    if n_children:
        n_parents = n_features // (1 + n_children)
        children = torch.arange(n_parents, n_parents * (1 + n_children))
        parent[children] = (children - n_parents) % n_parents
        probability[children] = 1 / (1 + n_children)
    group = torch.arange(n_features) // group_size
    return SuperpositionWorld(directions, probability, parent, group, correlation, noise)


class Composed(NamedTuple):
    """A world whose features are sums of attributes, as Tokyo is a city and Japanese."""

    world: SuperpositionWorld
    attributes: Float[Tensor, "attribute d_in"]
    """Unit rows: the atoms that a meta-SAE should find."""
    has: Bool[Tensor, "feature attribute"]
    """Which attributes each feature is made of."""


def composed(
    n_features: int = 256, d_in: int = 64, *, n_attributes: int = 24, n_each: int = 2, own: float = 1.0, seed: int = 0
) -> Composed:
    """Features that are sums of `n_each` attributes and a part of their own, as long as an attribute times `own`.

    Features fire independently, three on a token, so a dictionary that finds them has found the sparsest account of
    the activations, and yet its rows have structure.

    Raises:
        ValueError: fewer attributes than a feature has.
    """
    if not 1 <= n_each <= n_attributes:
        raise ValueError(f"a feature cannot have {n_each} of {n_attributes} attributes; give at least as many")
    base = superposition(n_features, d_in, density=3 / n_features, seed=seed)
    generator = torch.Generator().manual_seed(seed + 4_000_037)
    attributes = torch.nn.functional.normalize(torch.randn(n_attributes, d_in, generator=generator), dim=1)
    chosen = torch.multinomial(torch.ones(n_features, n_attributes), n_each, generator=generator)
    has = torch.zeros(n_features, n_attributes, dtype=torch.bool).scatter(1, chosen, value=True)
    directions = torch.nn.functional.normalize(has.float() @ attributes + own * base.directions, dim=1)
    return Composed(replace(base, directions=directions), attributes, has)


def on_rings(n_features: int = 256, d_in: int = 64, *, n_each: int = 16, seed: int = 0) -> SuperpositionWorld:
    """Features spread evenly over circles, as months are: every circle is a plane, none of its points is special.

    Raises:
        ValueError: the features do not fill whole circles.
    Source: Engels et al. (2025), Not all language model features are one-dimensionally linear.
    """
    if n_features % n_each:
        raise ValueError(f"{n_features} features do not fill circles of {n_each}; give a multiple")
    generator = torch.Generator().manual_seed(seed + 5_000_011)
    angle = torch.arange(n_each) * 2 * torch.pi / n_each
    circle = torch.stack([angle.cos(), angle.sin()], 1)
    planes = torch.linalg.qr(torch.randn(n_features // n_each, d_in, 2, generator=generator)).Q
    base = superposition(n_features, d_in, density=3 / n_features, seed=seed)
    return replace(base, directions=torch.cat([circle @ plane.T for plane in planes]))


def orthogonal_dictionary(d_sae: int, d_in: int, seed: int = 0) -> Float[Tensor, "d_sae d_in"]:
    """Random bases below one another: rows as unlike each other as can be, which recover nothing."""
    generator = torch.Generator().manual_seed(seed + 6_000_011)
    bases = torch.linalg.qr(torch.randn(-(-d_sae // d_in), d_in, d_in, generator=generator)).Q
    return bases.flatten(0, 1)[:d_sae]


class Recovery(NamedTuple):
    """How well a dictionary found the true features."""

    cosines: Float[Tensor, "feature latent"]
    """Cosine of every true feature to every decoder row."""
    best: Float[Tensor, " feature"]
    """Cosine of each feature to its nearest row."""
    share: float
    """Share of features with a row within the threshold: the score."""


def recovery(directions: Float[Tensor, "feature d_in"], W_dec: Float[Tensor, "d_sae d_in"], above: float = 0.9):
    """Compare true directions with decoder rows. The score is the share of features found at cosine > `above`.

    Raises:
        ValueError: a row of zeros.
    """
    best = max_cosine(directions, W_dec)
    cosines = torch.nn.functional.normalize(directions, dim=1) @ torch.nn.functional.normalize(W_dec, dim=1).T
    return Recovery(cosines, best, recovered(best, above).float().mean().item())


def random_dictionary(d_sae: int, d_in: int, seed: int = 0) -> Float[Tensor, "d_sae d_in"]:
    """Random unit rows: what every recovery score has to be compared with. Never those of a world of the same seed."""
    rows = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(seed + 1_000_003))
    return torch.nn.functional.normalize(rows, dim=1)


def train_on(
    world: SuperpositionWorld,
    d_sae: int,
    k: int | float,
    *,
    n_steps: int = 500,
    lr: float = 1e-2,
    architecture: str = "batchtopk",
    seed: int = 0,
) -> SAE:
    """Train a dictionary on fresh samples of a world, about two seconds of work, and return it ready to use."""
    sae = build(architecture, world.directions.shape[1], d_sae, k, seed=seed)
    batches = world.batches(512, seed)
    with one_thread():
        initialise_from_data(sae, torch.cat([next(batches) for _ in range(8)]), seed)
        train(sae, batches, n_steps, lr=lr)
    return to_inference(sae)


@contextmanager
def one_thread() -> Iterator[None]:
    """Steps of a millisecond gain nothing from a second thread, and wait long for it on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Failures(NamedTuple):
    """Three ways in which a dictionary misrepresents features that are related."""

    splitting: float
    """Mean number of rows in use, beyond the first, that point along a parent's direction (cosine above 0.5)."""
    absorption: float
    """How much rarer a parent's latent fires when a child is present beside it than when none is, in [-1, 1]."""
    hedging: float
    """How much of its group mates' directions a feature's row has taken on, as a cosine in excess of the true one."""


def failures(
    world: SuperpositionWorld, sample: Sample, W_dec: Float[Tensor, "d_sae d_in"], acts: Float[Tensor, "token d_sae"]
) -> Failures:
    """Measure splitting, absorption and hedging of a dictionary on a sample whose causes are known.

    `world` says which features are parents and mates. For a control, pass the labels of a world with the relation and
    a sample and dictionary of one of the same directions without it.

    Args:
        acts: activations of the dictionary's latents on `sample.x`.
    """
    cosines = recovery(world.directions, W_dec).cosines
    own_latent = cosines.argmax(1)
    in_use = (acts > 0).float().mean(0) > ALIVE
    return Failures(
        splitting=_splitting(world, cosines[:, in_use]),
        absorption=_absorption(world, sample, acts, own_latent),
        hedging=_hedging(world, cosines, own_latent),
    )


def _splitting(world: SuperpositionWorld, cosines: Tensor) -> float:
    parents = world.parent[world.parent != NO_PARENT].unique()
    if len(parents) == 0:
        return 0.0
    return ((cosines[parents] > ALONG).sum(1) - 1).clamp(min=0).float().mean().item()


def _absorption(world: SuperpositionWorld, sample: Sample, acts: Tensor, own_latent: Tensor) -> float:
    drops = []
    for parent in world.parent[world.parent != NO_PARENT].unique():
        fires = acts[:, own_latent[parent]] > 0
        present = sample.codes[:, parent] > 0
        with_child = present & (sample.codes[:, world.parent == parent] > 0).any(1)
        if with_child.any() and (present & ~with_child).any():
            drops.append(fires[present & ~with_child].float().mean() - fires[with_child].float().mean())
    return torch.stack(drops).mean().item() if drops else 0.0


def _hedging(world: SuperpositionWorld, cosines: Tensor, own_latent: Tensor) -> float:
    mates = (world.group[:, None] == world.group) & ~torch.eye(len(world.group), dtype=torch.bool)
    true = world.directions @ world.directions.T
    learned = cosines[:, own_latent].T  # row f: cosines of feature f's latent to every true direction
    return (learned - true)[mates].mean().item() if mates.any() else 0.0
