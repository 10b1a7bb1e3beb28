"""A cluster of two local workers gives what one process gives. Needs the extra `cluster`."""

import os
import signal
import sys
import time
from functools import partial
from threading import Thread

import psutil
import pytest
import torch
from faults import PATIENCE, wait_for
from tiny_models import save_tiny_model

from mi_utils import activations, cluster, models, sae, stores, training

pytest.importorskip("ray", reason="the extra `cluster` is not installed")

HOOK = "blocks.1.hook_resid_post"
SIZES = {"shard_contexts": 16, "batch_size": 1, "progress": False}
N_STEPS, N_LONG, BATCH = 60, 2000, 256
SHAPE = 16, 64, 4
"""Of the dictionaries: width of the model, latents, active ones."""
TOLERANCE = 1e-6
"""Largest difference of a weight, of the order of 0.1; 2e-7 was measured after the long training."""
LOOPBACK = ("127.0.0.1", "::1", "::ffff:127.0.0.1")


@pytest.fixture(scope="module", autouse=True)
def workers():
    with cluster.local(2):
        yield


@pytest.fixture(scope="module")
def load(tmp_path_factory):
    return partial(models.load_model, save_tiny_model(tmp_path_factory.mktemp("models") / "model"))


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(1, 7, (320, 16), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def reference(tmp_path_factory, load, tokens):
    return activations.harvest(load(), tokens, [HOOK], tmp_path_factory.mktemp("stores") / "reference", **SIZES)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shards(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("shard-*.safetensors")}


def descendants():
    return [process for process in psutil.Process().children(recursive=True) if process.is_running()]


def test_a_harvest_equals_that_of_one_process_though_a_worker_is_killed(tmp_path, load, tokens, reference):
    killed, before = [], {}

    def kill_a_worker():
        while len(shards(tmp_path / "store")) < 3:
            time.sleep(0.005)
        busy = [process for process in descendants() if "_write_shard" in "".join(process.cmdline())]
        before.update(shards(tmp_path / "store"))
        if busy:
            os.kill(busy[0].pid, signal.SIGKILL)
            killed.append(busy[0].pid)

    killer = Thread(target=kill_a_worker)
    killer.start()
    store = cluster.harvest(load, tokens, [HOOK], tmp_path / "store", **SIZES)
    killer.join()
    assert killed, "no worker was at work when one was to be killed"
    assert contents(store.folder) == contents(reference.folder)
    assert before.items() <= shards(store.folder).items(), "a shard was made twice"


def test_either_goes_on_where_the_other_stopped(tmp_path, load, tokens, reference):
    store = activations.harvest(load(), tokens, [HOOK], tmp_path / "store", **SIZES)
    for path in (store.folder / stores.MANIFEST, *sorted(shards(store.folder))[5:]):
        path.unlink()
    kept = shards(store.folder)
    cluster.harvest(load, tokens, [HOOK], store.folder, **SIZES)
    assert contents(store.folder) == contents(reference.folder)
    assert kept.items() <= shards(store.folder).items()


def test_errors_are_those_of_one_process(tmp_path, load, tokens, reference):
    with pytest.raises(ValueError, match="holds another harvest"):
        cluster.harvest(load, tokens + 0, ["blocks.0.hook_resid_post"], reference.folder, **SIZES)
    with pytest.raises(ValueError, match="tokens run from"):
        cluster.harvest(load, tokens + 7, [HOOK], tmp_path, **SIZES)

    def load_loud():
        model = load()
        models.unhooked(model).get_input_embeddings().weight.data.mul_(1e7)  # beyond float16
        return model

    with pytest.raises(ValueError, match="exceed the range"):
        cluster.harvest(load_loud, tokens, [HOOK], tmp_path / "loud", **SIZES)


def trained_alone(store, n_steps, **settings):
    alone = sae.build("batchtopk", *SHAPE)
    return alone, training.train(alone, store.batches(HOOK, BATCH, epochs=None), n_steps, **settings)


def largest_gap(ours, theirs):
    return max((ours.state_dict()[name] - weight).abs().max().item() for name, weight in theirs.state_dict().items())


def test_training_equals_that_of_one_process_and_talks_to_this_machine_only(tmp_path, reference):
    outside, watched = set(), [True]
    watcher = Thread(target=lambda: outside.update(addresses_while(lambda: watched[0])))
    watcher.start()
    ours = sae.build("batchtopk", *SHAPE)
    curves = cluster.train(ours, reference, HOOK, N_STEPS, tmp_path, batch_size=BATCH)
    watched[0] = False
    watcher.join()
    assert outside == set()
    alone, expected = trained_alone(reference, N_STEPS)
    assert largest_gap(ours, alone) < TOLERANCE
    assert largest_gap(sae.build("batchtopk", *SHAPE), alone) > 100 * TOLERANCE
    same = ["step", "tokens", "fvu", "l0", "dead_share"]
    assert (curves[same] - expected[same]).abs().to_numpy().max() < 1e-4


def test_a_killed_training_worker_is_replaced_and_all_go_on_from_the_checkpoint(tmp_path, reference):
    killed = []

    def kill_a_worker():
        wait_for((tmp_path / "checkpoint.safetensors").exists)
        training_now = [process for process in descendants() if "RayTrainWorker" in "".join(process.cmdline())]
        if training_now:
            os.kill(training_now[0].pid, signal.SIGKILL)
            killed.append(training_now[0].pid)

    killer = Thread(target=kill_a_worker)
    killer.start()
    ours = sae.build("batchtopk", *SHAPE)
    curves = cluster.train(ours, reference, HOOK, N_LONG, tmp_path, batch_size=BATCH, checkpoint_every=100)
    killer.join()
    assert killed, "no worker was training when one was to be killed"
    assert curves.step.is_monotonic_increasing
    assert curves.step.iloc[-1] == N_LONG - 1
    assert largest_gap(ours, trained_alone(reference, N_LONG)[0]) < TOLERANCE


DRIVER = f"""
import sys
from mi_utils import cluster, sae, stores
store, folder, hook_name, n_steps, batch_size = sys.argv[1:]
with cluster.local(2):
    cluster.train(
        sae.build("batchtopk", *{SHAPE}), stores.ActivationStore(store), hook_name, int(n_steps), folder,
        batch_size=int(batch_size), checkpoint_every=100,
    )
"""


def test_one_process_finishes_what_a_killed_cluster_began(tmp_path, reference):
    arguments = map(str, (reference.folder, tmp_path, HOOK, N_LONG, BATCH))
    driver = psutil.Popen([sys.executable, "-c", DRIVER, *arguments])
    wait_for((tmp_path / "checkpoint.safetensors").exists)
    started = driver.children(recursive=True)
    driver.kill()
    driver.wait()
    assert not (tmp_path / "trained.safetensors").exists()
    _, left = psutil.wait_procs(started, timeout=PATIENCE)
    assert left == [], "Ray outlived its driver"
    ours, _ = trained_alone(reference, N_LONG, checkpoint=tmp_path / "checkpoint.safetensors")
    assert largest_gap(ours, trained_alone(reference, N_LONG)[0]) < TOLERANCE


def addresses_while(goes_on):
    """Addresses beyond this machine that any process of the cluster listens on or talks to."""
    found = set()
    while goes_on():
        for process in descendants():
            try:
                ends = [end for link in process.net_connections("inet") for end in (link.laddr, link.raddr) if end]
            except psutil.Error:
                continue
            found |= {end.ip for end in ends if end.ip not in LOOPBACK}
        time.sleep(0.1)
    return found


def test_what_cannot_be_shared_is_refused(tmp_path, reference):
    plain = sae.build("batchtopk", *SHAPE)
    with pytest.raises(ValueError, match="evenly"):
        cluster.train(plain, reference, HOOK, 10, tmp_path, batch_size=255)
    with pytest.raises(ValueError, match="use batchtopk"):
        nested = sae.build("matryoshka", *SHAPE, matryoshka_widths=[16, 64])
        cluster.train(nested, reference, HOOK, 10, tmp_path, batch_size=BATCH)
    with pytest.raises(ValueError, match="connected to a Ray cluster already"), cluster.local():
        pass
