import errno
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import tiny_bridge

from mi_utils import activations
from mi_utils.activations import ActivationStore, harvest
from mi_utils.hooks import run_with_cache

HOOKS = ["blocks.0.hook_resid_post", "blocks.1.hook_resid_post"]


def contexts(n=10, length=8, seed=0):
    return torch.randint(0, 7, (n, length), generator=torch.Generator().manual_seed(seed), dtype=torch.int32)


def gather(folder, tokens=None, **options):
    options = {"batch_size": 2, "shard_contexts": 3, "progress": False} | options
    return harvest(tiny_bridge(), contexts() if tokens is None else tokens, HOOKS, folder, **options)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return gather(tmp_path_factory.mktemp("store"))


# --- content ---------------------------------------------------------------------------------------------------------


def test_rows_are_the_model_s_activations_at_the_recorded_places(store):
    cache = run_with_cache(tiny_bridge(), contexts(), HOOKS)
    for name in HOOKS:
        expected = cache[name][store.location.context.long(), store.location.position.long()]
        torch.testing.assert_close(store.read(name), expected, atol=1e-3, rtol=1e-3)


def test_first_positions_are_left_out_and_counted(store):
    assert not store.keep[:, 0].any()
    assert store.keep[:, 1:].all()
    assert (len(store), store.n_excluded) == (70, 10)


def test_outliers_are_left_out_at_all_hooks_by_the_first_shard_s_limit(tmp_path, monkeypatch):
    """With a limit below the largest norms some tokens go, and they are the ones above it."""
    monkeypatch.setattr(activations, "NORM_LIMIT", 1.1)
    store = gather(tmp_path / "store")
    cache = run_with_cache(tiny_bridge(), contexts(), HOOKS)
    expected = torch.ones(10, 8, dtype=torch.bool)
    expected[:, 0] = False
    for act in cache.values():
        norms = act.norm(dim=-1)
        expected &= norms <= 1.1 * norms[:3, 1:].median()
    assert 0 < expected.sum() < 70
    assert torch.equal(store.keep, expected)


def test_mean_and_scale_make_batches_centred_with_mean_squared_norm_d_in(store):
    for name in HOOKS:
        rows = torch.cat(list(store.batches(name, 7, epochs=1)))
        assert len(rows) == 70
        torch.testing.assert_close(rows.mean(0), torch.zeros(16), atol=1e-4, rtol=0)
        assert rows.pow(2).sum(1).mean().item() == pytest.approx(16, rel=1e-3)
        torch.testing.assert_close(store.mean(name), store.read(name).mean(0), atol=1e-4, rtol=1e-4)


# --- reading ---------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(batch_size=st.integers(1, 70), seed=st.integers(0, 1000), pool=st.integers(1, 100))
def test_every_row_comes_once_per_epoch(store, batch_size, seed, pool):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "MIX_ROWS", pool)
        batches = list(store.batches(HOOKS[0], batch_size, seed=seed, epochs=1))
        again = list(store.batches(HOOKS[0], batch_size, seed=seed, epochs=1))
    assert {len(batch) for batch in batches} == {batch_size}
    assert len(batches) == 70 // batch_size
    rows = torch.cat(batches)
    assert torch.equal(rows, torch.cat(again))
    everything = (store.read(HOOKS[0]) - store.mean(HOOKS[0])) / store.scale(HOOKS[0])
    distance, place = torch.cdist(rows.double(), everything.double()).min(1)
    assert distance.max() < 1e-5
    copies = (torch.cdist(everything.double(), everything.double()) < 1e-6).sum(1)
    assert (torch.bincount(place, minlength=70) <= copies).all()


def test_order_depends_on_the_seed_and_epochs_differ(store):
    first, second = (torch.cat(list(store.batches(HOOKS[0], 70, seed=s, epochs=2))) for s in (0, 1))
    assert not torch.equal(first, second)
    assert not torch.equal(first[:70], first[70:])


@pytest.mark.parametrize("batch_size", [0, 71])
def test_batches_that_cannot_be_filled_are_refused(store, batch_size):
    with pytest.raises(ValueError, match="from 1 to the 70 rows"):
        store.batches(HOOKS[0], batch_size)


def test_unknown_hook_is_refused(store):
    with pytest.raises(ValueError, match=r"it has blocks\.0"):
        store.read("blocks.2.hook_resid_post")


# --- faults ----------------------------------------------------------------------------------------------------------

WRITER = """
import sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_activations import contexts, gather
print("ready", flush=True)
gather(sys.argv[1], contexts(150), shard_contexts=1, batch_size=1)
"""


def test_kill_at_ten_random_moments_and_resume_byte_for_byte(tmp_path):
    gather(tmp_path / "whole", contexts(150), shard_contexts=1, batch_size=1)
    whole, moments = content(tmp_path / "whole"), random.Random(0)
    broken, killed = tmp_path / "broken", 0
    for _ in range(10):
        command = [sys.executable, "-W", "ignore", "-c", WRITER, str(broken), str(Path(__file__).parent)]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE)
        writer.stdout.readline()
        time.sleep(moments.uniform(0.0, 0.25))
        killed += writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        assert all(whole[name] == data for name, data in content(broken).items())
    assert killed >= 3, "the writer finished before it could be killed: slow it down"
    gather(broken, contexts(150), shard_contexts=1, batch_size=1)
    assert content(broken) == whole
    assert not list(broken.glob(".*.part"))


def test_finished_shards_are_not_computed_again(tmp_path, monkeypatch):
    gather(tmp_path)
    monkeypatch.setattr(activations, "run_with_cache", lambda *_: pytest.fail("the model ran again"))
    assert len(gather(tmp_path)) == 70


def test_a_lost_shard_alone_comes_back_the_same(tmp_path):
    gather(tmp_path)
    before = content(tmp_path)
    for name in ("shard-00000.safetensors", "shard-00002.safetensors"):
        (tmp_path / name).unlink()
        with pytest.raises(ValueError, match="3 of 4 shards"):
            ActivationStore(tmp_path)
        gather(tmp_path)
    assert content(tmp_path) == before


@pytest.mark.parametrize("damage", ["truncated", "altered"])
def test_damaged_shards_are_named(tmp_path, damage):
    store = gather(tmp_path)
    path = store.paths[1]
    data = path.read_bytes()
    path.write_bytes(data[:-10] if damage == "truncated" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"shard-00001.*{damage}.*Delete this file"):
        ActivationStore(tmp_path).read(HOOKS[0])


def test_store_of_another_run_is_left_alone(tmp_path):
    gather(tmp_path)
    before = content(tmp_path)
    with pytest.raises(ValueError, match="tokens differ"):
        gather(tmp_path, contexts(seed=1))
    with pytest.raises(ValueError, match="weights differ"):
        harvest(tiny_bridge(1), contexts(), HOOKS, tmp_path, batch_size=2, shard_contexts=3, progress=False)
    assert content(tmp_path) == before


def test_nan_activations_are_refused(tmp_path, monkeypatch):
    real = activations.run_with_cache
    monkeypatch.setattr(activations, "run_with_cache", lambda *a: {n: v.log() for n, v in real(*a).items()})
    with pytest.raises(ValueError, match=r"blocks\.0\.hook_resid_post are not finite"):
        gather(tmp_path)
    assert not content(tmp_path)


def test_full_disk_before_and_during(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(0, 0, 10))
        with pytest.raises(OSError, match="Free some space"):
            gather(tmp_path)

    def fail(_tensors, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(activations, "save_file", fail)
        with pytest.raises(OSError, match="Nothing half-written was kept"):
            gather(tmp_path)
    assert not content(tmp_path)
    assert len(gather(tmp_path)) == 70


@pytest.mark.parametrize("tokens", [torch.zeros(0, 8, dtype=torch.int32), torch.zeros(3, 1, dtype=torch.int32)])
def test_too_little_text_is_refused(tmp_path, tokens):
    with pytest.raises(ValueError, match="at least two tokens"):
        gather(tmp_path, tokens)


def test_not_a_store(tmp_path):
    with pytest.raises(ValueError, match="no activation store"):
        ActivationStore(tmp_path)
    gather(tmp_path)
    assert set(load_file(tmp_path / "shard-00000.safetensors")) > set(HOOKS)
