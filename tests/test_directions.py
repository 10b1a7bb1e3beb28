import pytest
import torch

from mi_utils import directions, language_worlds, worlds
from mi_utils.directions import (
    diff_mean,
    input_scores,
    orthogonalised,
    principal,
    probe_weight,
    random_direction,
    rebuilt,
)


@pytest.fixture(scope="module")
def world():
    return language_worlds.planted_concepts()


@pytest.fixture(scope="module")
def workshop(world):
    return directions.workshop(world.model, world.concepts["two"], world.hook_name, world.dictionary, 0.8)


def test_the_workshop_finds_what_was_planted(world, workshop):
    cosine = {name: float(vector @ world.directions["two"]) for name, vector in workshop.vectors.items()}
    for name in ("DiffMean", "CAA", "SAE row, best reader", "SAE row, best writer"):
        assert cosine[name] > 0.95, name
    assert cosine["probe weight"] > 0.4
    assert abs(cosine["PCA"]) < 0.1  # it finds the nuisance
    assert all(abs(cosine[f"random {n}"]) < 0.5 for n in range(3))
    assert workshop.chosen.latent.tolist() == [1, 1]


def test_every_direction_has_length_one(workshop):
    for name, vector in workshop.vectors.items():
        assert vector.norm().item() == pytest.approx(1.0, abs=1e-5), name


def test_diff_mean_by_hand():
    positive, negative = torch.tensor([[1.0, 4.0], [3.0, 0.0]]), torch.tensor([[-1.0, 2.0]])
    assert torch.allclose(diff_mean(positive, negative), torch.tensor([1.0, 0.0]))


def test_principal_takes_the_widest_line_and_the_labels_sign():
    spread = torch.tensor([[5.0, 1.0], [-5.0, 1.0]])
    component = principal(spread, spread - torch.tensor([1.0, 2.0]))
    assert component[0] > 0.99


def test_a_probe_cancels_noise_that_a_mean_keeps():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 1, generator=generator)
    signal = torch.cat([torch.ones(200, 1), -torch.ones(200, 1)])
    states = torch.cat([signal + 2 * noise, noise + 0.1 * torch.randn(400, 1, generator=generator)], 1)
    weight = probe_weight(states[:200], states[200:])
    assert weight[1] < -0.5  # the mean difference has nothing there
    assert abs(diff_mean(states[:200], states[200:])[1]) < 0.2


def test_input_scores_are_areas_under_the_curve():
    positive = torch.tensor([[3.0, 0.0, 1.0], [2.0, 0.0, 0.0]])
    negative = torch.tensor([[0.0, 0.0, 3.0], [1.0, 0.0, 2.0]])
    assert input_scores(positive, negative).tolist() == [1.0, 0.5, 0.0]


def test_random_directions_repeat_by_seed():
    assert torch.equal(random_direction(8, 3), random_direction(8, 3))
    assert not torch.equal(random_direction(8, 3), random_direction(8, 4))


class TestRebuilt:
    def test_a_signed_pursuit_says_what_an_encoder_cannot(self, world):
        rows = world.dictionary.W_dec
        vector = (rows[0] - rows[1]) / 2**0.5
        cosine = {
            name: float(version @ vector / version.norm().clamp(min=1e-6))
            for name, version in rebuilt(vector, world.dictionary, 2, 8.0).items()
        }
        assert cosine["pursuit, signed, 2 rows"] == pytest.approx(1.0, abs=1e-4)
        assert cosine["pursuit, non-negative, 2 rows"] == pytest.approx(2**-0.5, abs=1e-3)
        assert cosine["encoder, typical length"] == pytest.approx(2**-0.5, abs=1e-3)

    def test_needs_a_vector_as_wide_as_the_rows(self):
        with pytest.raises(ValueError, match="same d_in"):
            rebuilt(torch.ones(5), language_worlds.PlantedDictionary(worlds.random_dictionary(8, 6)), 2, 1.0)


class TestOrthogonalised:
    def test_is_orthogonal_and_of_length_one(self):
        rest = orthogonalised(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0]))
        assert torch.allclose(rest, torch.tensor([0.0, 1.0]))

    def test_refuses_the_same_line(self):
        with pytest.raises(ValueError, match="same line"):
            orthogonalised(torch.tensor([1.0, 2.0]), torch.tensor([-2.0, -4.0]))


def test_two_equal_sides_have_no_direction():
    with pytest.raises(ValueError, match="length zero"):
        diff_mean(torch.ones(3, 4), torch.ones(2, 4))
