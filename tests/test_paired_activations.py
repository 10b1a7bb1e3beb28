"""Pairs are the two models' rows on the same tokens; what is left out is left out of both."""

import pytest
import torch
from test_activations import some_tokens
from tiny_models import tiny_bridge

from mi_utils import hooks
from mi_utils.activations import harvest
from mi_utils.models import ModelPair
from mi_utils.paired_activations import PairedStore, harvest_pair

HOOK = hooks.hook_name("resid_post", 1)
QUICK = {"batch_size": 2, "shard_contexts": 5, "progress": False}


def nearest(rows, others):
    """Distance to, and index of, the nearest of the other rows."""
    return torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist").min(1)


def pair():
    return ModelPair(tiny_bridge(), tiny_bridge(1))


@pytest.fixture
def store(tmp_path):
    return harvest_pair(pair(), some_tokens(), HOOK, tmp_path, **QUICK)


def test_rows_are_both_models_on_the_same_token(store):
    rows = store.rows(torch.arange(len(store)))
    origin = store.stores[0].origin(store.kept)
    for model, own in zip(pair(), rows, strict=True):
        expected = hooks.run_with_cache(model, some_tokens(), [HOOK])[HOOK]
        torch.testing.assert_close(own, expected[origin.context, origin.position], atol=1e-3, rtol=1e-3)


def test_an_epoch_visits_every_pair_once_and_keeps_it_together(store):
    every = store.scaled(*store.rows(torch.arange(len(store))))
    seen = torch.cat(list(store.batches(1)))
    assert nearest(seen, every).values.max() < 1e-4
    torch.testing.assert_close(seen.norm(dim=1).sort().values, every.norm(dim=1).sort().values, atol=1e-4, rtol=1e-4)
    assert {len(batch) for batch in store.batches(7)} == {7}


def test_each_half_is_centred_and_scaled_by_itself(store):
    x = store.scaled(*store.rows(torch.arange(len(store))))
    torch.testing.assert_close(x.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
    for half in x.chunk(2, dim=1):
        assert half.square().sum(1).mean().item() == pytest.approx(16, rel=1e-3)


def test_a_row_too_long_in_one_model_is_left_out_of_both(store):
    base, tuned = store.stores
    norms = torch.cat(list(tuned.read(HOOK))).norm(dim=1)
    strict = PairedStore(base, tuned, HOOK, norm_multiple=1.2)
    assert (norms[strict.kept] <= 1.2 * norms.median()).all()
    assert 0 < len(strict) < len(store)
    seen = torch.cat(list(strict.batches(5)))
    assert nearest(seen, strict.scaled(*strict.rows(torch.arange(len(strict))))).values.max() < 1e-4


def test_the_same_seed_gives_the_same_batches(store):
    for one, other in zip(store.batches(8, 3), store.batches(8, 3), strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.allclose(next(store.batches(8, 3)), next(store.batches(8, 4)))


def test_a_finished_pair_is_not_harvested_again(store, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    harvest_pair(pair(), some_tokens(), HOOK, tmp_path, **QUICK)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert before


def test_stores_of_other_tokens_are_refused(store, tmp_path):
    other = harvest(tiny_bridge(1), some_tokens(12), [HOOK], tmp_path / "other", **QUICK)
    with pytest.raises(ValueError, match="do not pair up"):
        PairedStore(store.stores[0], other, HOOK)
