import pytest
import torch
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig

from mi_utils.metrics import fvu, l0
from mi_utils.stitching import at_l0, insertions, stitched


def dictionary(rows, threshold=0.1, b_dec=None):
    """Latents that read along their own rows."""
    d_sae, d_in = rows.shape
    out = JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae))
    bias = torch.zeros(d_in) if b_dec is None else b_dec
    state = {"W_enc": rows.T.contiguous(), "b_enc": torch.zeros(d_sae), "W_dec": rows, "b_dec": bias}
    out.load_state_dict(state | {"threshold": torch.full((d_sae,), threshold)})
    return out.eval().requires_grad_(False)


@pytest.fixture
def x():
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(3000, 4, generator=generator) * (torch.rand(3000, 4, generator=generator) < 0.3)) + 0.0


def test_a_new_direction_helps_and_a_repeated_one_hurts(x):
    small, large = dictionary(torch.eye(4)[:3]), dictionary(torch.eye(4)[[3, 0]])
    found = insertions(small, large, x)
    assert found.change[0] < -0.1
    assert found.change[1] > 0.1
    assert found.cosine.tolist() == [0, 1]


def test_the_change_is_that_of_the_dictionary_with_the_latent(x):
    generator = torch.Generator().manual_seed(1)
    rows = torch.nn.functional.normalize(torch.randn(9, 4, generator=generator), dim=1)
    small, large = dictionary(rows[:4], b_dec=torch.full((4,), 0.2)), dictionary(rows[4:], b_dec=torch.full((4,), -0.1))
    found = insertions(small, large, x)
    for latent in range(5):
        both = stitched(small, large, torch.tensor([latent]))
        by_hand = fvu(x, both(x)) - fvu(x, small(x))
        assert found.change[latent] == pytest.approx(by_hand.item(), abs=1e-5)
        torch.testing.assert_close(both.encode(x)[:, 4], large.encode(x)[:, latent], atol=1e-6, rtol=1e-5)


def test_other_rows_may_be_inserted_in_place_of_a_latents_own(x):
    small, large = dictionary(torch.eye(4)[:3]), dictionary(torch.eye(4)[[3]])
    assert insertions(small, large, x, rows=-torch.eye(4)[[3]]).change[0] > 0.1


def test_thresholds_rise_until_as_many_latents_fire(x):
    both = dictionary(torch.eye(4))
    raised = at_l0(both, x, 0.5)
    assert l0(raised.encode(x)).mean().item() == pytest.approx(0.5, abs=1e-3)
    fires = raised.encode(x) > 0
    torch.testing.assert_close(raised.encode(x)[fires], both.encode(x)[fires])
    with pytest.raises(ValueError, match="only 1"):
        at_l0(both, x, 3.0)


def test_dictionaries_that_do_not_fit_are_refused(x):
    with pytest.raises(ValueError, match="width 4 and 5"):
        insertions(dictionary(torch.eye(4)), dictionary(torch.eye(5)), x)
    plain = StandardSAE(StandardSAEConfig(d_in=4, d_sae=4))
    assert isinstance(plain, SAE)
    with pytest.raises(ValueError, match="fixed thresholds"):
        stitched(dictionary(torch.eye(4)), plain, torch.tensor([0]))


def test_thresholds_stay_where_as_many_latents_fire_as_asked_for(x):
    both = dictionary(torch.eye(4))
    asked = l0(both.encode(x)).mean().item()
    torch.testing.assert_close(at_l0(both, x, asked).encode(x), both.encode(x))
