"""A world in which a cue gives the label away in training and means nothing later, and the same done to real text.

Activations are sums of sparse features in superposition, of which one carries the label faintly and another, the cue,
loudly. In training the cue agrees with the label nine times in ten; afterwards it has nothing to do with it. Whoever
reads activations is tempted. Whoever can list what differs between the classes sees both features, and can drop one.

Read: Geirhos et al. 2020, "Shortcut Learning in Deep Neural Networks", arXiv:2004.07780. Taught in `06_probes`.
"""

from dataclasses import dataclass
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.concepts import Rows

CONCEPT, CUE = 0, 1


class Sample(NamedTuple):
    """Rows of the world."""

    x: Float[np.ndarray, "row d_in"]
    acts: Float[np.ndarray, "row feature"]
    """How strongly each feature is in each row: what an ideal dictionary would say."""
    labels: Int[np.ndarray, " row"]


@dataclass(frozen=True)
class CueWorld:
    """Features in superposition; the first is the concept, the second the cue."""

    directions: Float[Tensor, "feature d_in"]

    def sample(self, n_rows: int, agreement: float, seed: int = 0) -> Sample:
        """Rows in which the cue agrees with the label in the given share of cases: 0.5 is no agreement."""
        generator = torch.Generator().manual_seed(seed)
        n_features, d_in = self.directions.shape
        fires = torch.rand(n_rows, n_features, generator=generator) < 8 / n_features
        acts = fires * (0.5 + torch.rand(n_rows, n_features, generator=generator))
        labels = torch.rand(n_rows, generator=generator) < 0.5
        agrees = torch.rand(n_rows, generator=generator) < agreement
        acts[:, CONCEPT] = labels * (0.5 + torch.rand(n_rows, generator=generator))
        acts[:, CUE] = (labels == agrees) * (2.0 + torch.rand(n_rows, generator=generator))
        x = acts @ self.directions + 0.1 * torch.randn(n_rows, d_in, generator=generator)
        return Sample(x.numpy(), acts.numpy(), labels.long().numpy())

    def without(self, x: Float[np.ndarray, "row d_in"], feature: int) -> Float[np.ndarray, "row d_in"]:
        """The rows with nothing left along one feature's direction."""
        return without(x, self.directions[feature].numpy())


def cue_world(n_features: int = 128, d_in: int = 64, seed: int = 0) -> CueWorld:
    """Random unit directions, twice as many as dimensions."""
    directions = torch.randn(n_features, d_in, generator=torch.Generator().manual_seed(seed))
    return CueWorld(directions / directions.norm(dim=1, keepdim=True))


def without(x: Float[np.ndarray, "row d_in"], direction: Float[np.ndarray, " d_in"]) -> Float[np.ndarray, "row d_in"]:
    """The rows with nothing left along a direction.

    Raises:
        ValueError: a direction of length zero.
    """
    if not (length := np.linalg.norm(direction)) > 0:
        raise ValueError("the direction has length zero; there is nothing to take away")
    unit = direction / length
    return x - np.outer(x @ unit, unit)


def plant_cue(rows: Rows, cue: str, agreement: float, seed: int = 0) -> Rows:
    """Texts with a cue in front, where it agrees with the label in the given share of cases: 0.5 is no agreement.

    Raises:
        ValueError: a share outside of 0 to 1.
    """
    if not 0 <= agreement <= 1:
        raise ValueError(f"expected an agreement from 0 to 1, got {agreement}")
    rng = Random(seed)
    shown = [(rng.random() < agreement) == bool(label) for label in rows.labels]
    return rows._replace(texts=[cue + text if there else text for text, there in zip(rows.texts, shown, strict=True)])
