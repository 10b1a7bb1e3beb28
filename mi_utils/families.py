"""Which latents of a big dictionary are children of one latent of a small one, judged by when they fire.

Decoder rows are left out of the judgement on purpose: if siblings then turn out to share something in their rows, that
is a finding and not a repetition.

Read: Bricken et al. (2023), Towards monosemanticity, on feature splitting. Taught in `03_meta_saes`.
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.sae import Dictionary, active

NO_PARENT = -1
LEAST_FIRINGS = 10


def firings(dictionary: Dictionary, x: Float[Tensor, "token d_in"]) -> scipy.sparse.csc_matrix:
    """Activations as a sparse matrix `[token, latent]`."""
    fires = active(dictionary, x)
    where = (fires.tokens.numpy(), fires.latents.numpy())
    return scipy.sparse.csc_matrix((fires.acts.numpy(), where), (len(x), len(dictionary.W_dec)))


def parents(
    children: scipy.sparse.csc_matrix, candidates: scipy.sparse.csc_matrix, *, above: float = 0.5, densest: float = 0.05
) -> Int[np.ndarray, " child"]:
    """For each child the candidate that fires on the largest share of its firings; `NO_PARENT` if there is none.

    Args:
        children, candidates: activations `[token, latent]` on the same tokens, from `firings`.
        above: how much larger that share must be than the candidate's density.
        densest: candidates that fire on a larger share of all tokens are nobody's parents.
    """
    fires = children > 0
    count = np.asarray(fires.sum(0)).ravel()
    density = np.asarray((candidates > 0).sum(0)).ravel() / candidates.shape[0]
    together = (fires.T.astype(np.float32) @ (candidates > 0).astype(np.float32)).toarray()
    lift = together / np.maximum(count, 1)[:, None] - density
    lift[:, density > densest] = -1
    return np.where((count >= LEAST_FIRINGS) & (lift.max(1) > above), lift.argmax(1), NO_PARENT)


class Pairs(NamedTuple):
    """Siblings, and beside each pair one that is as similar but has two parents."""

    siblings: Int[Tensor, "pair 2"]
    matched: Int[Tensor, "pair 2"]
    """The first of each sibling pair, with a latent of another parent at the nearest cosine."""
    family: Int[np.ndarray, " pair"]
    """The siblings' parent: what intervals resample."""


def pairs(
    parent: Int[np.ndarray, " child"], rows: Float[Tensor, "child d_in"], *, most: int = 10, seed: int = 0
) -> Pairs:
    """Up to `most` random pairs of siblings a family, and their matches.

    Raises:
        ValueError: no family has two children.
    """
    rng, found = np.random.default_rng(seed), []
    children = np.flatnonzero(parent != NO_PARENT)
    for family in np.unique(parent[children]):
        own = children[parent[children] == family]
        first, second = np.triu_indices(len(own), 1)
        drawn = rng.permutation(len(first))[:most]
        found += [(own[first[i]], own[second[i]], family) for i in drawn]
    if not found:
        raise ValueError("no parent has two children; give more tokens or a lower share")
    one, other, family = np.array(found).T
    cosine = (rows[one] * rows[other]).sum(1)
    gap = (rows[one] @ rows[children].T - cosine[:, None]).abs()
    gap[torch.from_numpy(parent[one][:, None] == parent[children])] = torch.inf
    match = children[gap.argmin(1).numpy()]
    return Pairs(*(torch.from_numpy(np.stack([one, second], 1)) for second in (other, match)), family)
