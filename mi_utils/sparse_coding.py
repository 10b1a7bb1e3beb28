"""Write vectors as sums of a few rows of a dictionary: the coders that judge every dictionary alike.

A meta-SAE has an encoder of its own, a smaller SAE's decoder has none for directions. So that two sets of atoms can be
compared, both are coded by the same method, with the same number of atoms and non-negative weights, as SAE codes have.

Read: Pati et al. (1993), Orthogonal matching pursuit; Efron et al. (2004), Least angle regression. Taught in
`04_dictionaries_in_dictionaries`.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

MAX_SWEEPS = 500  # coordinate descent on at most a few dozen weights; most rows need under twenty
TOLERANCE = 1e-6
BLOCK = 1024  # vectors coded at a time: bounds the matrix of their products with all atoms


class Codes(NamedTuple):
    """Which atoms make up each vector, and with which weight."""

    atoms: Int[Tensor, "vector k"]
    """Indices of atoms, in the order in which they were chosen."""
    weights: Float[Tensor, "vector k"]
    """Their weights; 0 where an atom turned out not to help."""

    def reconstruct(self, dictionary: Float[Tensor, "atom d_in"]) -> Float[Tensor, "vector d_in"]:
        """The weighted sums."""
        return torch.einsum("vk,vkd->vd", self.weights, dictionary[self.atoms])

    def first(self, k: int, x: Float[Tensor, "vector d_in"], dictionary: Float[Tensor, "atom d_in"]) -> "Codes":
        """The first `k` atoms alone, fitted anew: greedy codes of every smaller size come for free."""
        return Codes(self.atoms[:, :k], refit(x, dictionary, self.atoms[:, :k]))


def omp(
    x: Float[Tensor, "vector d_in"], dictionary: Float[Tensor, "atom d_atom"], k: int, *, signed: bool = False
) -> Codes:
    """Orthogonal matching pursuit: take the atom that fits the rest best, fit all weights again, `k` times.

    Args:
        signed: allow negative weights.
    Raises:
        ValueError: another width than the dictionary's, zeros or NaN among the atoms, `k` beyond their number.
    Source: Bruckstein et al. (2008), On the uniqueness of nonnegative sparse solutions, for weights of one sign.
    """
    check_atoms(x, dictionary, k)
    length = dictionary.norm(dim=1)
    blocks = [_omp(block, dictionary, length, k, signed=signed) for block in x.split(BLOCK)]
    return Codes(*map(torch.cat, zip(*blocks, strict=True)))


def _omp(x: Tensor, dictionary: Tensor, length: Tensor, k: int, *, signed: bool) -> Codes:
    atoms, weights, rest = torch.empty(len(x), 0, dtype=torch.long), x.new_empty(len(x), 0), x
    for _ in range(k):
        fit = rest @ dictionary.T / length
        fit = fit.abs() if signed else fit
        fit.scatter_(1, atoms, -torch.inf)
        atoms = torch.cat([atoms, fit.argmax(1, keepdim=True)], 1)
        start = torch.cat([weights, x.new_zeros(len(x), 1)], 1)
        weights = _fit(x, dictionary[atoms], start, signed=signed)
        rest = x - torch.einsum("vk,vkd->vd", weights, dictionary[atoms])
    return Codes(atoms, weights)


def refit(
    x: Float[Tensor, "vector d_in"],
    dictionary: Float[Tensor, "atom d_in"],
    atoms: Int[Tensor, "vector k"],
    *,
    signed: bool = False,
) -> Float[Tensor, "vector k"]:
    """The best weights of given atoms: least squares, non-negative unless `signed`."""
    blocks = zip(x.split(BLOCK), atoms.split(BLOCK), strict=True)
    return torch.cat(
        [_fit(part, dictionary[chosen], part.new_zeros(chosen.shape), signed=signed) for part, chosen in blocks]
    )


def _fit(x: Tensor, atoms: Tensor, weights: Tensor, *, signed: bool) -> Tensor:
    """Coordinate descent on the small problem of each vector until no weight moves."""
    gram = torch.einsum("vkd,vld->vkl", atoms, atoms)
    target = torch.einsum("vd,vkd->vk", x, atoms)
    if signed:
        return torch.linalg.lstsq(gram, target[..., None]).solution[..., 0]
    own, weights = gram.diagonal(dim1=1, dim2=2), weights.clone()
    for _ in range(MAX_SWEEPS):
        before = weights.clone()
        for j in range(weights.shape[1]):
            slope = target[:, j] - (gram[:, j] * weights).sum(1)
            weights[:, j] = (weights[:, j] + slope / own[:, j]).clamp(min=0)
        if (weights - before).abs().max() <= TOLERANCE * weights.abs().max():
            break
    return weights


def nnls(x: Float[Tensor, "vector d_in"], dictionary: Float[Tensor, "atom d_atom"], k: int) -> Codes:
    """Non-negative least squares on all atoms, of which the `k` heaviest are kept and fitted again.

    Slow, about a tenth of a second a vector for a thousand atoms: for samples.

    Source: Lawson and Hanson (1974), Solving least squares problems; scipy.optimize.nnls.
    """
    from scipy.optimize import nnls as solve

    check_atoms(x, dictionary, k)
    columns = dictionary.T.double().numpy()
    weights = np.stack([solve(columns, vector)[0] for vector in x.double().numpy()])
    return _kept(x, dictionary, torch.from_numpy(weights), k)


def lasso(x: Float[Tensor, "vector d_in"], dictionary: Float[Tensor, "atom d_atom"], k: int) -> Codes:
    """The first `k` steps of the non-negative lasso path, without the shrinkage: the weights are fitted again.

    Source: Efron et al. (2004), with the lasso modification; sklearn.linear_model.lars_path_gram.
    """
    from sklearn.linear_model import lars_path_gram

    check_atoms(x, dictionary, k)
    atoms = torch.nn.functional.normalize(dictionary, dim=1).double()
    gram, fits = (atoms @ atoms.T).numpy(), (x.double() @ atoms.T).numpy()
    weights = np.zeros(fits.shape)
    for row, fit in enumerate(fits):
        *_, path = lars_path_gram(
            fit, gram, n_samples=x.shape[1], max_iter=k, method="lasso", positive=True, copy_Gram=True
        )
        weights[row] = path[:, -1]
    return _kept(x, dictionary, torch.from_numpy(weights), k)


def _kept(x: Tensor, dictionary: Tensor, weights: Tensor, k: int) -> Codes:
    atoms = (weights * dictionary.norm(dim=1)).topk(k, dim=1).indices
    return Codes(atoms, refit(x, dictionary, atoms))


def principal_codes(
    train: Float[Tensor, "vector d_in"], x: Float[Tensor, "other d_in"], k: int
) -> Float[Tensor, "other d_in"]:
    """`x` in the first `k` principal components of `train`, about its mean: the dense reference for `k` numbers."""
    mean = train.mean(0)
    axes = torch.linalg.svd(train - mean, full_matrices=False).Vh[:k]
    return mean + (x - mean) @ axes.T @ axes


def check_atoms(x: Tensor, dictionary: Tensor, k: int) -> None:
    """Raise a ValueError unless `x` can be coded with `k` of these atoms."""
    if x.ndim != 2 or dictionary.ndim != 2 or x.shape[1] != dictionary.shape[1]:
        raise ValueError(
            f"got vectors of shape {tuple(x.shape)} and atoms of shape {tuple(dictionary.shape)}; expected both as "
            "[number, d_in] with the same d_in: dictionaries of different models or layers cannot be compared"
        )
    if not 1 <= k <= len(dictionary):
        raise ValueError(f"k is {k}, but the dictionary has {len(dictionary)} atoms; choose 1 <= k <= their number")
    if not (torch.isfinite(dictionary).all() and torch.isfinite(x).all()):
        raise ValueError("the vectors or the atoms hold NaN or infinity; load or train the dictionary again")
    if not dictionary.any(1).all():
        n_zero = int((~dictionary.any(1)).sum())
        raise ValueError(f"{n_zero} atoms are rows of zeros and have no direction; drop dead latents first")
