"""Planted pairs hold what they say, and scores of "exclusive" are what a count by hand gives."""

import numpy as np
import pytest
import torch

from mi_utils import diffing, pair_worlds
from mi_utils.pair_worlds import PairSample, owners, pair_world, score, self_pair


def drawn(world, n=20_000):
    return world.sample(n, torch.Generator().manual_seed(5))


def features(world, kind):
    return torch.tensor([own == kind for own in world.kinds])


def test_each_kind_is_what_it_says():
    world = pair_world()
    sample = drawn(world)
    assert not world.base[features(world, "tuned only")].any()
    assert not world.tuned[features(world, "base only")].any()
    turned = (world.base * world.tuned).sum(1)[features(world, "rotated")]
    assert turned.abs().max() < 0.6
    for kind in ("shared", "faint", "other frequency"):
        torch.testing.assert_close(world.base[features(world, kind)], world.tuned[features(world, kind)])
    seldom = features(world, "other frequency")
    rates = [(codes[:, seldom] > 0).float().mean() for codes in (sample.base_codes, sample.tuned_codes)]
    assert rates[0] == pytest.approx(0.05 * pair_worlds.BASE_CHANCE, rel=0.1)
    assert rates[1] == pytest.approx(0.05 * pair_worlds.TUNED_CHANCE, rel=0.1)
    faint = features(world, "faint").nonzero()[:, 0]
    ratio = sample.base_codes[:, faint].sum(0) / sample.tuned_codes[:, faint].sum(0)
    torch.testing.assert_close(ratio[::2], torch.full((3,), pair_worlds.FAINT))
    torch.testing.assert_close(ratio[1::2], torch.full((3,), 1 / pair_worlds.FAINT))


def test_a_model_beside_itself_has_nothing_of_its_own():
    null = self_pair(pair_world())
    assert set(null.kinds) == {"shared"}
    torch.testing.assert_close(null.base, null.tuned)
    x = drawn(pair_world(), 100).x
    assert x.shape == (100, 64)


def test_seeds_decide():
    one, same, other = (next(pair_world(seed=seed).batches(8)) for seed in (0, 0, 1))
    torch.testing.assert_close(one, same)
    assert not torch.allclose(one, other)


def test_impossible_worlds_are_refused():
    with pytest.raises(ValueError, match="unknown kinds"):
        pair_world({"green": 3})
    with pytest.raises(ValueError, match="at least one feature"):
        pair_world({"shared": 0})
    with pytest.raises(ValueError, match="density"):
        pair_world(density=1.0)


def test_a_latent_belongs_to_the_feature_it_follows():
    sample = drawn(pair_world(), 4000)
    codes = torch.maximum(sample.base_codes, sample.tuned_codes)
    noise = torch.rand(4000, 1, generator=torch.Generator().manual_seed(0))
    acts = torch.cat([codes[:, [40, 3]], noise, torch.zeros(4000, 1)], 1)
    assert owners(sample, acts).tolist() == [40, 3, -1, -1]


def test_scores_by_hand():
    world = pair_world({"shared": 2, "tuned only": 2})
    owner = np.array([0, 2, 2, -1, 1])
    called = np.array([True, True, True, True, False])
    assert score(world, owner, called) == (0.5, 0.5)
    precision, recall = score(world, owner, np.zeros(5, dtype=bool))
    assert np.isnan(precision)
    assert recall == 0
    assert np.isnan(score(self_pair(world), owner[:1], called[:1]).recall)
    assert isinstance(drawn(world, 3), PairSample)


def test_what_each_loss_makes_of_the_world():
    """The planted artefact: the summed penalty tells one concept twice, the joint one does not."""
    world = pair_world()
    sample = drawn(world, 4000)
    found = {}
    for sparsity in ("l1 joint", "l1 sum"):
        sae = pair_worlds.train_on(world, sparsity=sparsity, l1_coefficient=0.1)
        latents = diffing.latent_table(sae, [sample.x])
        owner = owners(sample, sae.encode(sample.x))
        called = (latents.kind == "tuned only").to_numpy()
        assert score(world, owner, called).recall > 0.8
        found[sparsity] = len(diffing.twins(sae))
    assert found["l1 joint"] == 0 < 3 <= found["l1 sum"]
