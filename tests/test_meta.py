import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE
from safetensors.torch import save_file

from mi_utils import meta, sae, worlds
from mi_utils.metrics import max_cosine, mean_interval


def unit(n, d, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.fixture(scope="module")
def composed():
    return worlds.composed(seed=3)


@pytest.fixture(scope="module")
def meta_sae(composed):
    return meta.train_meta(composed.world.directions, 32, 3, seed=0)


def test_the_planted_attributes_are_found(composed, meta_sae):
    found = max_cosine(composed.attributes, meta_sae.W_dec)
    by_chance = max_cosine(composed.attributes, worlds.random_dictionary(32, 64))
    assert found.mean() > 0.8
    assert by_chance.mean() < 0.4


def test_sums_exceed_their_floor_and_independent_directions_do_not(composed):
    settings = {"n_meta": 32, "k": 3, "seeds": (0, 1, 2), "nulls": ["gaussian"]}
    sums = meta.excess(meta.against_nulls(composed.world.directions, **settings))
    independent = meta.excess(meta.against_nulls(worlds.superposition(256, 64).directions, **settings))
    assert sums.low > 0.1
    assert abs(independent.excess) < 0.03


def test_a_rotation_of_all_rows_changes_nothing_but_their_relation_to_others(composed):
    rows = composed.world.directions
    turned = meta.rotated_rows(rows)
    torch.testing.assert_close(turned @ turned.T, rows @ rows.T, atol=1e-5, rtol=1e-4)
    assert meta.score(turned, 32, 3).held_out == pytest.approx(meta.score(rows, 32, 3).held_out, abs=0.05)
    centre = torch.zeros(64)
    assert meta.explained(rows, composed.attributes, 2, centre)[2] > 0.6
    assert meta.explained(turned, composed.attributes, 2, centre)[2] < 0.3


def test_nulls_keep_what_they_promise_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    scales = torch.linspace(0.2, 3, 16)
    rows = torch.nn.functional.normalize(0.5 + scales * torch.randn(4000, 16, generator=generator), dim=1)
    for null in meta.NULLS.values():
        drawn = null(rows, 1)
        torch.testing.assert_close(drawn.norm(dim=1), torch.ones(4000))
        assert torch.equal(drawn, null(rows, 1))
        assert not torch.equal(drawn, null(rows, 2))
    gaussian = meta.gaussian_rows(rows, 0)
    torch.testing.assert_close(gaussian.mean(0), rows.mean(0), atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(gaussian.T), torch.cov(rows.T), atol=0.02, rtol=0)
    assert torch.cov(meta.random_rows(rows, 0).T).diagonal().std() < 0.01 < torch.cov(rows.T).diagonal().std()
    assert (max_cosine(rows[:50], meta.shuffled_rows(rows, 0)) < 0.999).all()


def test_held_out_rows_are_a_fifth_and_seen_once():
    rows = torch.arange(100.0)[:, None].expand(100, 3)
    split = meta.split_rows(rows, 4)
    assert len(split.held_out) == 20
    assert sorted(torch.cat(split[:2])[:, 0].tolist()) == list(range(100))
    assert torch.equal(rows[split.held_out_latents], split.held_out)


def test_explained_by_hand():
    """Two rows about the mean 0; one atom reaches the first, none the second."""
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert meta.explained(x, torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 2, torch.zeros(2)).tolist() == [0.5, 0.5]


def test_excess_by_hand():
    table = pd.DataFrame(
        {
            "rows": ["real", "gaussian"] * 3,
            "seed": [0, 0, 1, 1, 2, 2],
            "held_out": [0.5, 0.2, 0.6, 0.2, 0.7, 0.2],
        }
    )
    found = meta.excess(table)
    assert found[["value", "floor", "excess"]].tolist() == pytest.approx([0.6, 0.2, 0.4])
    half = 4.302653 * 0.1 / np.sqrt(3)  # Student's quantile for two degrees of freedom
    assert found[["low", "high"]].tolist() == pytest.approx([0.4 - half, 0.4 + half])


def test_mean_interval_wants_two_values():
    with pytest.raises(ValueError, match="more seeds"):
        mean_interval([1.0])


def test_over_seeds_by_hand():
    found = meta.over_seeds(pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [5.0, 5.0, 5.0]}))
    assert found.loc["b"].tolist() == [5, 5, 5]
    assert found.loc["a"].tolist() == pytest.approx([2, 2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5])


def test_predicted_floor_by_hand():
    assert meta.predicted_floor(100, 25, 0.2) == pytest.approx(0.25 + 0.75 * 0.2)


@pytest.mark.parametrize(
    ("meta_sae", "regression", "expected"),
    [(0.22, 0.21, 0), (0.40, 0.41, 1), (0.40, 0.30, 2), (0.30, 0.40, 3), (0.21, 0.40, 3)],
)
def test_reading_by_hand(meta_sae, regression, expected):
    assert meta.reading(meta_sae, regression, floor=0.2, margin=0.03) == meta.READINGS[expected]


def test_rows_that_are_never_drawn_are_not_learned():
    """Two clusters; only one of them is sampled."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.eye(8)[:2].repeat_interleave(50, 0)
    rows = torch.nn.functional.normalize(centres + 0.05 * torch.randn(100, 8, generator=generator), dim=1)
    weights = torch.cat([torch.ones(50), torch.zeros(50)])
    found = meta.train_meta(rows, 2, 1, weights=weights, n_steps=200)
    assert (found(rows[:50]) - rows[:50]).norm(dim=1).mean() < 0.3
    assert (found(rows[50:]) - rows[50:]).norm(dim=1).mean() > 0.8


def test_a_meta_sae_is_a_sae_lens_dictionary(meta_sae, composed, tmp_path):
    rows = composed.world.directions
    sae.save(meta_sae, tmp_path / "meta")
    torch.testing.assert_close(SAE.load_from_disk(tmp_path / "meta")(rows), meta_sae(rows))


def test_decomposition_by_hand():
    atoms = torch.eye(4)
    rows = torch.tensor([[0.8, 0.6, 0.0, 0.0], [0.8, 0.0, 0.6, 0.0], [0.0, 0.0, 0.0, 1.0]])
    taken = meta.decompose(rows, atoms, 2, torch.zeros(4))
    torch.testing.assert_close(taken.x_hat, rows)
    torch.testing.assert_close(taken.cosine, torch.ones(3))
    assert taken.parts(0) == pytest.approx({0: 0.8, 1: 0.6})
    assert taken.parts(2) == pytest.approx({3: 1.0})
    assert [group.tolist() for group in taken.members] == [[0, 1], [0], [1], [2]]
    assert taken.share_an_atom(torch.tensor([[0, 1], [0, 2], [1, 2]])).tolist() == [True, False, False]
    torch.testing.assert_close(taken.exchanged(0, 1), rows[1])
    torch.testing.assert_close(taken.exchanged(0, 0), rows[0])


def test_kmeans_centres_are_near_the_clusters():
    centres = unit(5, 16)
    rows = centres.repeat_interleave(40, 0) + 0.02 * torch.randn(200, 16, generator=torch.Generator().manual_seed(1))
    assert (max_cosine(centres, meta.kmeans_centres(rows, 5)) > 0.98).all()


def test_centred_atoms_lose_a_shared_direction():
    one, other = (3 * unit(1, 32, 9) + unit(200, 32, seed) for seed in (1, 2))
    assert max_cosine(one, other).mean() > 0.9
    assert max_cosine(meta.centred_atoms(one), meta.centred_atoms(other)).mean() < 0.6


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), "1 decoder rows are zeros"),
        (torch.tensor([[1.0, torch.nan]]), "NaN"),
        (torch.ones(4), "shape"),
    ],
)
def test_a_decoder_without_directions_is_refused(rows, message):
    with pytest.raises(ValueError, match=message):
        meta.unit_rows(rows)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 12), n_meta=st.integers(-1, 14), k=st.integers(-1, 14))
def test_sizes_that_cannot_be_are_refused_before_any_work(n, n_meta, k):
    if 1 <= k <= n_meta <= n:
        return
    with pytest.raises(ValueError, match="meta-latents <= rows"):
        meta.train_meta(unit(n, 4), n_meta, k)


@pytest.mark.parametrize("weights", [torch.zeros(20), -torch.ones(20), torch.ones(3)])
def test_weights_that_cannot_be_are_refused(weights):
    with pytest.raises(ValueError, match="weight of at least 0"):
        meta.train_meta(unit(20, 4), 4, 2, weights=weights)


def test_a_folder_as_the_public_gpt2_ladder_has_them(tmp_path):
    """Written before sae-lens 6: other names for the settings, no architecture, decoder rows of any length."""
    folder = tmp_path / "blocks.8.hook_resid_pre_96"
    folder.mkdir()
    state = {"W_enc": torch.randn(24, 96), "b_enc": torch.zeros(96), "W_dec": 3 * torch.randn(96, 24)}
    save_file(state | {"b_dec": torch.zeros(24)}, folder / "sae_weights.safetensors")
    config = {
        "model_name": "gpt2-small",
        "hook_point": "blocks.8.hook_resid_pre",
        "hook_point_layer": 8,
        "hook_point_head_index": None,
        "activation_fn_str": "relu",
        "d_in": 24,
        "d_sae": 96,
        "dtype": "torch.float32",
        "device": "cpu",
        "context_size": 128,
        "normalize_activations": False,
    }
    (folder / "cfg.json").write_text(json.dumps(config))
    loaded = sae.load(folder)
    assert loaded.cfg.metadata.hook_name == "blocks.8.hook_resid_pre"
    table = meta.against_nulls(meta.unit_rows(loaded), 8, 2, seeds=(0, 1), nulls=["gaussian"])
    assert np.isfinite(table[["own", "in_sample", "held_out"]]).all(axis=None)


def test_a_dictionary_of_the_hub_says_that_it_is_out_of_reach(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="out of reach"):
        sae.load_hub("gpt2-small-res-jb-feature-splitting", "blocks.8.hook_resid_pre_768")
    with pytest.raises(ValueError, match="lists no dictionary 'nope'"):
        sae.load_hub("gpt2-small-res-jb-feature-splitting", "nope")
