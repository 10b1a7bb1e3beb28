"""Shares, latent scaling and twins are what a count by hand gives, and planted deceptions are seen through."""

import pytest
import torch
from sae_lens import SAE

from mi_utils import crosscoders, diffing, pair_worlds, sae


def dictionary(W_dec, threshold=0.0) -> SAE:
    """A pair dictionary that reads each latent off by the pseudo-inverse of its rows."""
    rows = torch.tensor(W_dec, dtype=torch.float32)
    made = crosscoders.to_inference(sae.build("batchtopk", rows.shape[1], len(rows), 1))
    made.W_dec.data, made.W_enc.data = rows, torch.linalg.pinv(rows)
    made.threshold.data = torch.full((len(rows),), threshold)
    made.b_dec.data.zero_()
    return made


def test_relative_norm_and_cosine_by_hand():
    found = dictionary([[3.0, 0, 1, 0], [0, 0, 0, 2], [0, 2, 0, -2]])
    torch.testing.assert_close(diffing.relative_norm(found), torch.tensor([0.25, 1.0, 0.5]))
    torch.testing.assert_close(diffing.cosine(found), torch.tensor([1.0, 0.0, -1.0]))


@pytest.mark.parametrize(
    ("share", "kind"),
    [(0.0, "base only"), (0.2, "between"), (0.4, "shared"), (0.5, "shared"), (0.7, "between"), (0.95, "tuned only")],
)
def test_the_usual_thresholds(share, kind):
    assert diffing.kind_of(share) == kind


def test_a_truly_exclusive_latent_is_confirmed():
    x = torch.zeros(100, 4)
    x[:50, 2] = 1.0  # in the tuned model alone
    x[50:, :2] = 1.0  # something else, in the base model
    table = diffing.latent_table(dictionary([[0.0, 0, 1, 0], [1, 1, 0, 0]], 0.1), [x])
    assert table.kind.tolist() == ["tuned only", "base only"]
    assert table.nu_error[0] == pytest.approx(0)
    assert table.confirmed.all()
    assert table.density.tolist() == [0.5, 0.5]
    assert table.energy.tolist() == [0.5, 1.0]


def test_shrinkage_is_seen_in_the_error():
    x = torch.zeros(100, 4)
    x[:50, 2], x[:50, 0] = 1.0, 0.4  # the base model has it too, its half of the row has been driven to nothing
    table = diffing.latent_table(dictionary([[0.0, 0, 1, 0]], 0.1), [x])
    assert table.kind[0] == "tuned only"
    assert table.nu_error[0] == pytest.approx(0.4)
    assert not table.confirmed[0]


def test_decoupling_is_seen_in_the_reconstruction_and_as_twins():
    x = torch.zeros(100, 4)
    x[:50, 2], x[10:60, 0] = 1.0, 1.0  # one direction in both, on tokens that overlap in four fifths
    found = dictionary([[0.0, 0, 1, 0], [1, 0, 0, 0]], 0.1)
    table = diffing.latent_table(found, [x])
    assert table.nu_reconstruction.tolist() == pytest.approx([0.8, 0.8])
    assert table.kin.tolist() == pytest.approx([1.0, 1.0])
    assert not table.confirmed.any()
    twins = diffing.twins(found)
    assert twins[["base_latent", "tuned_latent"]].to_numpy().tolist() == [[1, 0]]
    assert twins.cosine[0] == pytest.approx(1)


def test_a_latent_that_never_fires_is_dead():
    table = diffing.latent_table(dictionary([[0.0, 0, 1, 0], [1, 0, 0, 0]], 0.1), [torch.tensor([[1.0, 0, 0, 0]])])
    assert table.kind.tolist() == ["dead", "base only"]


def test_batches_add_up():
    world = pair_worlds.pair_world()
    x = next(world.batches(500))
    found = crosscoders.train_pair(world.batches(256), 128, 4, n_steps=50)
    whole, parts = diffing.latent_table(found, [x]), diffing.latent_table(found, x.split(100))
    alive = whole.kind != "dead"
    torch.testing.assert_close(
        torch.tensor(whole[alive].nu_error.to_numpy()),
        torch.tensor(parts[alive].nu_error.to_numpy()),
        atol=1e-3,
        rtol=1e-3,
    )


def test_latents_that_another_seed_finds_recur():
    one = dictionary([[0.0, 0, 1, 0], [1, 0, 0, 0]])
    other = dictionary([[0.0, 1, 0, 0], [2, 0, 0, 0]])
    table = diffing.recurrence(one, [other, one])
    assert table.recurs.tolist() == [0.5, 1.0]
