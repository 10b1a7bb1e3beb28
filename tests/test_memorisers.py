import pytest
import torch

from mi_utils import memorisers
from mi_utils.memorisers import MECHANISMS, N_FACTS, N_NAMES

QUICK = [name for name in MECHANISMS if name != "distributed"]


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_every_mechanism_knows_its_facts(mechanism):
    model = MECHANISMS[mechanism](3)
    assert model.mechanism == mechanism
    assert model.signs.shape == (N_NAMES, N_FACTS)
    assert model.accuracy() > 0.95


@pytest.mark.parametrize("mechanism", QUICK)
def test_a_seed_gives_the_same_memoriser_again_and_another_seed_another(mechanism):
    one, again, other = (MECHANISMS[mechanism](seed) for seed in (1, 1, 2))
    assert torch.equal(one.run(one.names).facts, again.run(again.names).facts)
    assert not torch.equal(one.signs, other.signs)


def test_strangers_are_all_other_pairs():
    model = memorisers.single_step()
    strangers = model.strangers()
    pairs = {*zip(model.names.first.tolist(), model.names.last.tolist(), strict=True)}
    assert len(strangers.first) == memorisers.N_TOKENS**2 - N_NAMES
    assert not pairs & {*zip(strangers.first.tolist(), strangers.last.tolist(), strict=True)}


def test_without_noise_one_neuron_fires_for_each_name_and_none_for_a_stranger():
    model = memorisers.single_step(0, noise=0.0)
    firing = sum((acts > 1e-4).sum(1) for acts in model.run(model.names).acts)
    assert firing.tolist() == [1] * N_NAMES
    assert sum(int((acts > 1e-4).sum()) for acts in model.run(model.strangers()).acts) == 0


def test_additive_facts_are_sums_for_strangers_too():
    model = memorisers.additive(0, noise=0.0)
    states = model.run(memorisers.Names(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))).facts
    torch.testing.assert_close(states[0] - states[1], states[2] - states[3], rtol=1e-4, atol=1e-4)


def test_cutting_layers_apart_breaks_the_lookup_and_not_the_single_step():
    assert memorisers.hash_and_lookup(2).accuracy(cut=True) < 0.6
    assert memorisers.single_step(2).accuracy(cut=True) > 0.95


def test_training_leaves_no_gradient_and_no_trace_in_the_global_generator():
    state = torch.get_rng_state()
    model = memorisers.distributed(0, n_steps=3)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(weight.requires_grad for layer in model.layers for weight in layer)
