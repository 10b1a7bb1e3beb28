"""Two small models whose difference is known: what is shared, what one has alone, what only seems to differ.

A feature of the pair has a direction and a code in each model. Five kinds: `shared`; `base only` and `tuned only`;
`other frequency`, the same direction in both, but one model has it on tokens where the other has not; `faint`, the same
feature with a quarter of the strength in one of the models; `rotated`, the same tokens, another direction. Only the
second and third kinds are exclusive. A method that calls any of the others so has been deceived.

Paper: Minder et al. 2025, "Overcoming Sparsity Artifacts in Crosscoders to Interpret Chat-Tuning", arXiv:2504.02922.
Taught in `07_model_diffing`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from mi_utils.crosscoders import train_pair
from mi_utils.worlds import one_thread

KINDS = ("shared", "base only", "tuned only", "other frequency", "faint", "rotated")
COUNTS = {"shared": 32, "base only": 6, "tuned only": 6, "other frequency": 6, "faint": 6, "rotated": 6}
FAINT = 0.25
BASE_CHANCE, TUNED_CHANCE = 0.6, 0.8


class PairSample(NamedTuple):
    """Activations of both models on the same tokens, and what caused them."""

    x: Float[Tensor, "token two_d_model"]
    """Base and tuned side by side."""
    base_codes: Float[Tensor, "token feature"]
    tuned_codes: Float[Tensor, "token feature"]


@dataclass(frozen=True)
class PairWorld:
    """The features of a pair of models."""

    base: Float[Tensor, "feature d_model"]
    """Directions of unit length; a row of zeros where the base model has no such feature."""
    tuned: Float[Tensor, "feature d_model"]
    kinds: tuple[str, ...]
    """One of `KINDS` for each feature."""
    density: float
    noise: float

    def sample(self, n: int, generator: torch.Generator) -> PairSample:
        """Draw `n` tokens: features present with strength uniform in [0.5, 1.5], plus each model's own noise.

        On its tokens a feature of `other frequency` is there in the base model by a chance of 0.6 and in the tuned one
        by a chance of 0.8, drawn apart. Of the faint ones, every second is faint in the tuned model, the rest in the
        base.
        """
        shape = (n, len(self.kinds))
        codes = (torch.rand(shape, generator=generator) < self.density) * (0.5 + torch.rand(shape, generator=generator))
        base_codes, tuned_codes = codes.clone(), codes.clone()
        seldom = torch.tensor([kind == "other frequency" for kind in self.kinds])
        for own, chance in ((base_codes, BASE_CHANCE), (tuned_codes, TUNED_CHANCE)):
            own[:, seldom] *= torch.rand(n, int(seldom.sum()), generator=generator) < chance
        faint = torch.tensor([kind == "faint" for kind in self.kinds]).nonzero()[:, 0]
        base_codes[:, faint[::2]] *= FAINT
        tuned_codes[:, faint[1::2]] *= FAINT
        x = torch.cat([base_codes @ self.base, tuned_codes @ self.tuned], 1)
        return PairSample(x + self.noise * torch.randn(x.shape, generator=generator), base_codes, tuned_codes)

    def batches(self, batch_size: int, seed: int = 0) -> Iterator[Float[Tensor, "token two_d_model"]]:
        """Endless fresh batches."""
        generator = torch.Generator().manual_seed(seed)
        while True:
            yield self.sample(batch_size, generator).x


def pair_world(
    counts: Mapping[str, int] = COUNTS, d_model: int = 32, *, density: float = 0.05, noise: float = 0.02, seed: int = 0
) -> PairWorld:
    """A world of random directions; `self_pair` makes its null.

    Args:
        counts: how many features of each kind.
    Raises:
        ValueError: an unknown kind, no features, or a density outside (0, 1).
    """
    if unknown := set(counts) - set(KINDS):
        raise ValueError(f"unknown kinds {sorted(unknown)}; expected some of {', '.join(KINDS)}")
    if sum(counts.values()) < 1 or min(counts.values()) < 0 or not 0 < density < 1:
        raise ValueError(f"need at least one feature and 0 < density < 1, got {dict(counts)} and {density}")
    kinds = tuple(kind for kind in KINDS for _ in range(counts.get(kind, 0)))
    generator = torch.Generator().manual_seed(seed)
    base, other = torch.nn.functional.normalize(torch.randn(2, len(kinds), d_model, generator=generator), dim=2)
    is_kind = {kind: torch.tensor([own == kind for own in kinds])[:, None] for kind in KINDS}
    tuned = torch.where(is_kind["rotated"], other, base)
    return PairWorld(base * ~is_kind["tuned only"], tuned * ~is_kind["base only"], kinds, density, noise)


def self_pair(world: PairWorld) -> PairWorld:
    """The null: a model beside itself, both with the world's tuned features, differing in noise alone."""
    has_feature = world.tuned.any(1)
    kinds = tuple("shared" for kind in has_feature.nonzero())
    return PairWorld(world.tuned[has_feature], world.tuned[has_feature], kinds, world.density, world.noise)


def train_on(world: PairWorld, d_sae: int = 80, *, n_steps: int = 1000, lr: float = 1e-2, seed: int = 0, **loss) -> SAE:
    """Train a pair dictionary on fresh samples of a world, two seconds of work.

    Args:
        loss: of `crosscoders.train_pair`.
    """
    with one_thread():
        return train_pair(world.batches(256, seed), d_sae, n_steps=n_steps, lr=lr, seed=seed, **loss)


class Scores(NamedTuple):
    """How well latents that were called exclusive to one model match the features that are."""

    precision: float
    """Of the latents so called: the share that belong to such a feature; NaN where none was so called."""
    recall: float
    """Of such features: the share that a latent so called belongs to; NaN where the world has none."""


def owners(sample: PairSample, acts: Float[Tensor, "token latent"], least: float = 0.5) -> np.ndarray:
    """For each latent, the feature whose strength (the larger of both models') it follows best; -1 if none.

    Args:
        least: correlation over tokens below which a latent belongs to no feature.
    """
    codes = torch.maximum(sample.base_codes, sample.tuned_codes)
    standard = [(x - x.mean(0)) / x.std(0, correction=0).clamp_min(1e-9) for x in (acts, codes)]
    correlation = standard[0].T @ standard[1] / len(codes)
    best = correlation.max(1)
    return torch.where(best.values >= least, best.indices, -1).numpy()


def score(world: PairWorld, owner: np.ndarray, called: np.ndarray, kind: str = "tuned only") -> Scores:
    """Precision and recall of a call such as "tuned only".

    Args:
        owner: as `owners` gives it.
        called: bool, one for each latent.
    """
    has_kind = np.array(world.kinds) == kind
    right = called & (owner >= 0) & has_kind[owner]
    found = np.isin(has_kind.nonzero()[0], owner[right])
    return Scores(
        float(right.sum() / called.sum()) if called.any() else float("nan"),
        float(found.mean()) if has_kind.any() else float("nan"),
    )
