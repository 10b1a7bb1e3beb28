import numpy as np
import pytest
import scipy.sparse
import torch

from mi_utils.families import NO_PARENT, firings, pairs, parents
from mi_utils.language_worlds import PlantedDictionary


def test_firings_are_the_activations():
    dictionary = PlantedDictionary(torch.eye(3)[:2])
    found = firings(dictionary, torch.tensor([[1.0, 0.0, 5.0], [0.1, 2.0, 0.0]]))
    assert found.toarray().tolist() == [[1.0, 0.0], [0.0, 2.0]]


def test_a_parent_fires_wherever_its_child_does():
    rng = np.random.default_rng(0)
    candidates = (rng.random((4000, 3)) < [0.04, 0.04, 0.5]).astype(float)
    children = np.zeros((4000, 4))
    children[:, 0] = candidates[:, 0] * (rng.random(4000) < 0.4)  # a child of the first
    children[:, 1] = rng.random(4000) < 0.02  # of nobody
    children[:, 2] = candidates[:, 2] * (rng.random(4000) < 0.4)  # of one too dense to be a parent
    children[np.flatnonzero(candidates[:, 1])[:5], 3] = 1  # too rare to say
    found = parents(scipy.sparse.csc_matrix(children), scipy.sparse.csc_matrix(candidates))
    assert found.tolist() == [0, NO_PARENT, NO_PARENT, NO_PARENT]


def test_siblings_have_one_parent_and_matches_two_and_the_same_cosine():
    angle = torch.tensor([0.0, 0.5, 0.9, 0.55, 2.0])
    rows = torch.stack([angle.cos(), angle.sin()], 1)
    parent = np.array([7, 7, NO_PARENT, 8, 8])
    found = pairs(parent, rows)
    assert found.siblings.tolist() == [[0, 1], [3, 4]]
    assert found.matched.tolist() == [[0, 3], [3, 0]]  # the one without a parent is never a match
    assert found.family.tolist() == [7, 8]


def test_families_of_one_have_no_pairs():
    with pytest.raises(ValueError, match="two children"):
        pairs(np.array([1, 2, NO_PARENT]), torch.eye(3))
