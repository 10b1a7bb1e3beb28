import pytest
import torch

from mi_utils import circles, concepts
from mi_utils.models import load_model


def ring(n=7, noise=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    angles = torch.arange(n) * 2 * torch.pi / n
    plane = torch.linalg.qr(torch.randn(32, 2, generator=generator)).Q.T
    return torch.stack([angles.cos(), angles.sin()], 1) @ plane + noise * torch.randn(n, 32, generator=generator)


def test_a_circle_is_found_whole_and_in_order():
    found = circles.fit(ring() + 3.0)
    assert found.share == pytest.approx(1.0, abs=1e-4)
    assert found.neighbours == 1.0
    assert torch.allclose(found.points.norm(dim=1), torch.ones(7), atol=1e-4)
    assert torch.allclose(found.plane @ found.plane.T, torch.eye(2), atol=1e-5)


def test_both_senses_of_rotation_are_order():
    assert circles.fit(ring().flip(0)).neighbours == 1.0


def test_points_without_order_are_near_chance():
    generator = torch.Generator().manual_seed(0)
    scores = [circles.fit(torch.randn(7, 32, generator=generator)).neighbours for _ in range(100)]
    assert sum(scores) / 100 < 0.5


def test_a_swapped_pair_breaks_the_order():
    swapped = ring()[[0, 2, 1, 3, 4, 5, 6]]
    assert circles.fit(swapped).neighbours == pytest.approx(4 / 7)


def test_three_states_are_too_few():
    with pytest.raises(ValueError, match="at least four"):
        circles.fit(ring(3))


@pytest.fixture(scope="module")
def months():
    template = "If this month is {x}, next month is"
    return circles.Cycle(load_model(), template, concepts.load_cycle("months"), "blocks.12.hook_resid_post")


class TestCycle:
    def test_moving_along_nothing_changes_nothing(self, months):
        assert months.swap_gain(torch.zeros(1, 576)).abs().max() < 1e-3

    def test_moving_everything_beats_moving_in_a_plane_that_stands_for_nothing(self, months):
        basis = torch.linalg.qr(torch.randn(576, 2, generator=torch.Generator().manual_seed(0))).Q.T
        assert months.swap_gain(None).mean() > months.swap_gain(basis).mean() + 1.0

    def test_the_whole_space_is_the_whole_state(self, months):
        assert torch.allclose(months.swap_gain(torch.eye(576)), months.swap_gain(None), atol=1e-2)

    def test_items_must_stand_at_one_place(self, months):
        with pytest.raises(ValueError, match="one token"):
            circles.Cycle(months.model, "{x} is", ["Monday", "Xqzzyvwk"], months.hook_name)
