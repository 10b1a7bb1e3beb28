"""A pair dictionary is a plain SAE: what tilts, splits and scales it changes coordinates and nothing else."""

import pytest
import torch
from sae_lens import SAE

from mi_utils import crosscoders, sae
from mi_utils.crosscoders import halves, in_model_units, train_pair
from mi_utils.pair_worlds import pair_world
from mi_utils.stores import Statistics

WORLD = pair_world({"shared": 10, "tuned only": 3}, 8, density=0.1)


def trained(**options):
    options = {"k": 2, "n_steps": 60, "lr": 5e-3} | options
    return train_pair(WORLD.batches(128), 24, **options)


def test_tilted_coordinates_weigh_the_errors_as_the_loss_says():
    error = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    base, tuned = error.chunk(2, dim=1)
    for tilt in (0.0, 0.3, 1.0):
        expected = base.square().sum() + tuned.square().sum() - 2 * tilt * (base * tuned).sum()
        torch.testing.assert_close(crosscoders._tilted(error, tilt).square().sum(), expected)


@pytest.mark.parametrize("tilt", [0.0, 0.5, 0.9])
def test_a_straightened_dictionary_is_the_trained_one_in_other_coordinates(tilt):
    x = next(WORLD.batches(64, 1))
    dictionary = sae.build("batchtopk", 16, 24, 2)
    sae.initialise_from_data(dictionary, crosscoders._tilted(x, tilt))
    tilted = crosscoders.to_inference(dictionary)
    acts, x_hat = tilted.encode(crosscoders._tilted(x, tilt)), tilted(crosscoders._tilted(x, tilt))
    straight = crosscoders._straightened(tilted, tilt)
    torch.testing.assert_close(straight.encode(x), acts, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(crosscoders._tilted(straight(x), tilt), x_hat, atol=1e-4, rtol=1e-4)


def test_at_full_tilt_only_the_difference_is_looked_at():
    dictionary = trained(tilt=1.0)
    x = next(WORLD.batches(64, 1))
    shared = torch.randn(64, 8).repeat(1, 2)
    torch.testing.assert_close(dictionary.encode(x), dictionary.encode(x + shared), atol=1e-4, rtol=1e-4)
    base, tuned = halves(dictionary)
    torch.testing.assert_close(base, -tuned)


def test_the_summed_penalty_by_hand():
    plain = sae.build("standard", 4, 3, 1, l1_coefficient=2.0)
    summed = crosscoders.SummedNormTrainingSAE(plain.cfg)
    summed.W_dec.data = torch.tensor([[3.0, 4, 0, 0], [0, 0, 0, 1], [0, 2, 0, 2]])
    acts = torch.tensor([[1.0, 0, 2], [0, 3, 0]])
    step = sae.TrainStepInput(torch.zeros(2, 4), {"l1": 2.0}, None, 0, False)
    loss = summed.calculate_aux_loss(step, acts, acts, acts)["l1_loss"]
    assert loss.item() == pytest.approx(2 * (1 * 5 + 2 * 4 + 3 * 1) / 2)


@pytest.mark.parametrize("sparsity", ["batchtopk", "l1 joint", "l1 sum"])
def test_every_loss_learns_the_pair(sparsity):
    x = next(WORLD.batches(2000, 7))
    dictionary = trained(sparsity=sparsity, n_steps=400)
    assert (x - dictionary(x)).square().sum() < 0.3 * (x - x.mean(0)).square().sum()


def test_raw_units_give_the_same_activations_and_the_raw_reconstruction(tmp_path):
    x = next(WORLD.batches(64, 1))
    own = (Statistics(torch.randn(8), 3.0, 1.0), Statistics(torch.randn(8), 0.5, 1.0))
    raw_x = torch.cat([half * s.scale + s.mean for half, s in zip(x.chunk(2, 1), own, strict=True)], 1)
    dictionary = trained()
    raw = in_model_units(dictionary, own)
    torch.testing.assert_close(raw.encode(raw_x), dictionary.encode(x), atol=1e-4, rtol=1e-4)
    scale = torch.tensor([3.0, 0.5]).repeat_interleave(8)
    mean = torch.cat([s.mean for s in own])
    torch.testing.assert_close(raw(raw_x), dictionary(x) * scale + mean, atol=1e-4, rtol=1e-4)
    again = SAE.load_from_disk(sae.save(raw, tmp_path / "pair"))
    torch.testing.assert_close(again(raw_x), raw(raw_x))


def test_the_same_seed_trains_the_same_dictionary():
    torch.testing.assert_close(trained(seed=3).W_dec, trained(seed=3).W_dec)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="tilt is 2"):
        trained(tilt=2.0)
    with pytest.raises(ValueError, match="unknown sparsity"):
        trained(sparsity="l2")
    with pytest.raises(ValueError, match="2 d_model"):
        train_pair([torch.zeros(4, 3)], 8)
    with pytest.raises(ValueError, match="2 d_model"):
        train_pair([], 8)
    with pytest.raises(ValueError, match="no pair"):
        halves(crosscoders.to_inference(sae.build("batchtopk", 3, 4, 1)))
