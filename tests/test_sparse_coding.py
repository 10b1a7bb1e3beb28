import numpy as np
import pytest
import torch
from scipy.optimize import nnls as solve
from sklearn.linear_model import orthogonal_mp

from mi_utils.metrics import fvu
from mi_utils.sparse_coding import lasso, nnls, omp, principal_codes, refit

CODERS = [omp, nnls, lasso]


def unit(n, d, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.mark.parametrize("coder", CODERS)
def test_sums_of_two_atoms_are_taken_apart(coder):
    atoms = torch.linalg.qr(torch.randn(20, 20, generator=torch.Generator().manual_seed(0))).Q[:12]
    x = torch.stack([2 * atoms[3] + atoms[7], 0.5 * atoms[0] + 3 * atoms[11]])
    codes = coder(x, atoms, 2)
    assert [set(row) for row in codes.atoms.tolist()] == [{3, 7}, {0, 11}]
    torch.testing.assert_close(codes.reconstruct(atoms), x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("coder", CODERS)
def test_weights_are_never_negative_and_a_useless_atom_gets_none(coder):
    atoms = torch.eye(3)
    codes = coder(torch.tensor([[1.0, -2.0, -3.0]]), atoms, 2)
    assert (codes.weights >= 0).all()
    torch.testing.assert_close(codes.reconstruct(atoms), torch.tensor([[1.0, 0.0, 0.0]]))


def test_weights_are_the_best_non_negative_ones():
    x, atoms = unit(30, 6, 1), unit(40, 6, 2)
    chosen = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(i))[:4] for i in range(30)])
    weights = refit(x, atoms, chosen)
    best = np.stack([solve(atoms[row].T.numpy(), vector.numpy())[0] for vector, row in zip(x, chosen, strict=True)])
    torch.testing.assert_close(weights, torch.from_numpy(best).float(), atol=1e-4, rtol=1e-3)


def test_signed_pursuit_is_that_of_scikit_learn():
    x, atoms = unit(20, 16, 1), unit(50, 16, 2)
    codes = omp(x, atoms, 4, signed=True)
    theirs = orthogonal_mp(atoms.T.numpy(), x.T.numpy(), n_nonzero_coefs=4).T
    dense = torch.zeros(20, 50).scatter(1, codes.atoms, codes.weights)
    torch.testing.assert_close(dense, torch.from_numpy(theirs).float(), atol=1e-4, rtol=1e-3)


def test_codes_of_every_smaller_size_are_a_prefix():
    x, atoms = unit(50, 16, 1), unit(60, 16, 2)
    codes = omp(x, atoms, 5)
    for k in (1, 3):
        alone, first = omp(x, atoms, k), codes.first(k, x, atoms)
        assert torch.equal(alone.atoms, first.atoms)
        torch.testing.assert_close(alone.weights, first.weights, atol=1e-5, rtol=1e-4)


def test_atoms_of_any_length_are_equally_likely_to_be_chosen():
    x, atoms = unit(50, 16, 1), unit(60, 16, 2)
    lengths = torch.linspace(0.1, 5, 60)[:, None]
    assert torch.equal(omp(x, atoms, 3).atoms, omp(x, lengths * atoms, 3).atoms)


def test_principal_codes_keep_what_varies_most():
    x = torch.tensor([[5.0, 1.0, 0.0], [-5.0, 1.0, 0.1], [4.0, 1.0, -0.1], [-4.0, 1.0, 0.0]])
    torch.testing.assert_close(principal_codes(x, x, 1)[:, 0], x[:, 0], atol=0.05, rtol=0)
    assert fvu(x, principal_codes(x, x, 3)).item() < 1e-10


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(
    ("x", "atoms", "k", "message"),
    [
        (torch.ones(2, 3), torch.eye(4), 1, "different models or layers"),
        (torch.ones(2, 3), torch.eye(3), 4, "k is 4"),
        (torch.ones(2, 3), torch.eye(3), 0, "k is 0"),
        (torch.ones(2, 3), torch.full((3, 3), torch.nan), 1, "NaN"),
        (torch.ones(2, 3), torch.diag(torch.tensor([1.0, 0.0, 1.0])), 1, "1 atoms are rows of zeros"),
    ],
)
def test_bad_input_is_named(coder, x, atoms, k, message):
    with pytest.raises(ValueError, match=message):
        coder(x, atoms, k)
