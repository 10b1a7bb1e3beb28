import pytest
import torch

from mi_utils import worlds
from mi_utils.worlds import NO_PARENT, failures, random_dictionary, recovery, superposition


def draw(world, n=20_000, seed=0):
    return world.sample(n, torch.Generator().manual_seed(seed))


def test_sample_is_what_the_codes_say_plus_noise():
    world = superposition(noise=0.02)
    sample = draw(world)
    left = sample.x - sample.codes @ world.directions
    assert left.std().item() == pytest.approx(0.02, rel=0.02)
    torch.testing.assert_close(world.directions.norm(dim=1), torch.ones(64))


def test_features_fire_as_often_as_planted_and_independently():
    fires = (draw(superposition(density=0.1), 50_000).codes > 0).float()
    assert fires.mean().item() == pytest.approx(0.1, rel=0.03)
    both = (fires[:, 0] * fires[:, 1]).mean().item()
    assert both == pytest.approx(0.01, abs=0.003)


def test_correlated_features_fire_together_but_as_often_as_before():
    fires = (draw(superposition(density=0.1, correlation=0.8), 50_000).codes > 0).float()
    assert fires.mean().item() == pytest.approx(0.1, rel=0.03)
    mates, strangers = (fires[:, 0] * fires[:, 1]).mean().item(), (fires[:, 0] * fires[:, 2]).mean().item()
    assert mates > 4 * strangers


def test_a_child_never_fires_without_its_parent():
    world = superposition(n_children=2, density=0.1)
    fires = draw(world).codes > 0
    children = (world.parent != NO_PARENT).nonzero().squeeze(1)
    assert len(children) == 42
    assert not (fires[:, children] & ~fires[:, world.parent[children]]).any()
    given_parent = fires[:, children[0]][fires[:, world.parent[children[0]]]].float().mean().item()
    assert given_parent == pytest.approx(1 / 3, abs=0.03)


def test_same_seed_same_world_same_sample():
    assert torch.equal(draw(superposition(seed=4)).x, draw(superposition(seed=4)).x)
    assert not torch.equal(superposition(seed=4).directions, superposition(seed=5).directions)


def test_recovery_of_the_truth_is_complete_and_of_noise_is_not():
    world = superposition()
    shuffled = 3 * world.directions[torch.randperm(64, generator=torch.Generator().manual_seed(0))]
    assert recovery(world.directions, shuffled).share == 1
    assert recovery(world.directions, random_dictionary(64, 32)).share < 0.05
    assert recovery(world.directions, world.directions[:16]).share == pytest.approx(0.25)


def test_failures_by_hand():
    """A parent and its child: a dictionary that absorbs, one that splits, and one that does neither."""
    base = superposition(4, 4, n_children=1, density=0.5, noise=0.0)
    world = worlds.SuperpositionWorld(torch.eye(4), base.firing_probability, base.parent, base.group, 0.0, 0.0)
    sample = draw(world, 2000)
    perfect = failures(world, sample, torch.eye(4), sample.codes)
    assert perfect == (0, 0, 0)
    absorbed = sample.codes.clone()
    absorbed[:, :2][sample.codes[:, 2:] > 0] = 0  # parents 0 and 1 fall silent where children 2 and 3 fire
    assert failures(world, sample, torch.eye(4), absorbed).absorption == pytest.approx(1)
    split = torch.cat([torch.eye(4), torch.tensor([[1.0, 0.0, 0.3, 0.0]])])
    assert failures(world, sample, split, torch.cat([sample.codes, sample.codes[:, :1]], 1)).splitting == 0.5


def test_hedging_by_hand():
    world = superposition(2, 2, correlation=0.5, noise=0.0)
    world = worlds.SuperpositionWorld(torch.eye(2), world.firing_probability, world.parent, world.group, 0.5, 0.0)
    sample = draw(world, 100)
    assert failures(world, sample, torch.eye(2), sample.codes).hedging == 0
    mixed = torch.tensor([[0.8, 0.6], [0.6, 0.8]])
    assert failures(world, sample, mixed, sample.codes).hedging == pytest.approx(0.6)


@pytest.mark.parametrize(
    "arguments", [{"density": 0.0}, {"correlation": 1.0}, {"n_features": 3, "n_children": 3}, {"d_in": 0}]
)
def test_impossible_worlds_are_refused(arguments):
    with pytest.raises(ValueError, match="need"):
        superposition(**arguments)


def test_a_trained_dictionary_finds_the_truth_and_hedges_where_it_must():
    """The positive controls of the lesson, on its smallest settings."""
    independent, correlated = superposition(), superposition(correlation=0.8)
    trained = worlds.train_on(independent, 64, 3.2, n_steps=300)
    assert recovery(independent.directions, trained.W_dec).share > 0.8
    hedging = {}
    for name, world in {"independent": independent, "correlated": correlated}.items():
        narrow, sample = worlds.train_on(world, 24, 3.2, n_steps=300), draw(world, 2000)
        hedging[name] = failures(world, sample, narrow.W_dec, narrow.encode(sample.x)).hedging
    assert hedging["correlated"] > 0.2 > abs(hedging["independent"]) + 0.1


def test_composed_features_are_their_attributes_and_a_part_of_their_own():
    made = worlds.composed(100, 400, n_attributes=10, n_each=2)
    assert (made.has.sum(1) == 2).all()
    cosine = made.world.directions @ made.attributes.T
    assert cosine[made.has].mean().item() == pytest.approx(1 / 3**0.5, abs=0.05)  # two attributes and one own part
    assert cosine[~made.has].abs().mean() < 0.1
    assert (draw(made.world).codes > 0).sum(1).float().mean().item() == pytest.approx(3, rel=0.05)


def test_rings_are_planes_of_evenly_spread_directions():
    world = worlds.on_rings(32, 64, n_each=8)
    torch.testing.assert_close(world.directions.norm(dim=1), torch.ones(32))
    assert torch.linalg.matrix_rank(world.directions[:8]) == 2
    assert (world.directions[0] @ world.directions[1]).item() == pytest.approx(0.5**0.5, abs=1e-4)
    with pytest.raises(ValueError, match="do not fill"):
        worlds.on_rings(30, 64, n_each=8)


def test_an_orthogonal_dictionary_recovers_nothing():
    rows = worlds.orthogonal_dictionary(150, 64)
    torch.testing.assert_close(rows[:64] @ rows[:64].T, torch.eye(64), atol=1e-5, rtol=0)
    assert recovery(superposition(150, 64).directions, rows).share < 0.02


def test_more_attributes_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="cannot have 3 of 2"):
        worlds.composed(8, 8, n_attributes=2, n_each=3)
