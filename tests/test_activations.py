"""A store holds what the model computes, survives its writer, and is read row by row exactly once."""

import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import WORDS, tiny_bridge

from mi_utils import activations, files, hooks, metrics, stores
from mi_utils.activations import Exclusion, harvest
from mi_utils.stores import ActivationStore

HOOKS = [hooks.hook_name("resid_post", 1), hooks.hook_name("mlp_out", 0)]


@pytest.fixture(autouse=True)
def one_thread():
    """Processes forked from this one cannot use its threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some_tokens(n: int = 37, n_ctx: int = 9) -> torch.Tensor:
    tokens = torch.randint(0, len(WORDS), (n, n_ctx), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return tokens


def quick_harvest(folder, model=None, tokens=None, names=HOOKS, **options):
    options = {"batch_size": 2, "shard_contexts": 5, "progress": False} | options
    return harvest(model or tiny_bridge(), some_tokens() if tokens is None else tokens, names, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != activations.LOCK}


# --- what is stored ---


def test_rows_are_the_models_activations(tmp_path):
    tokens, store = some_tokens(), quick_harvest(tmp_path)
    origin = store.origin(torch.arange(store.n_rows))
    for name in HOOKS:
        expected = hooks.run_with_cache(tiny_bridge(), tokens, [name])[name]
        stored = store.rows(name, torch.arange(store.n_rows))
        torch.testing.assert_close(stored, expected[origin.context, origin.position], atol=1e-3, rtol=1e-3)
    assert torch.equal(store.contexts(torch.tensor([36, 0, 7])), tokens[[36, 0, 7]].int())


def test_rounded_products_are_close_not_equal_and_another_store(tmp_path):
    exact, rounded = quick_harvest(tmp_path / "a"), quick_harvest(tmp_path / "b", products=torch.bfloat16)
    every = torch.arange(exact.n_rows)
    for name in HOOKS:
        x, x_rounded = exact.rows(name, every), rounded.rows(name, every)
        error = metrics.fvu(x, x_rounded).item()
        assert 1e-7 < error < 1e-3  # float16 storage alone costs less than 1e-7
    with pytest.raises(ValueError, match="products: bfloat16 there, float32 now"):
        quick_harvest(tmp_path / "b")


def test_rows_to_keep_is_the_rule_of_the_harvest(tmp_path):
    tokens = some_tokens()
    tokens[3, 4] = 0
    store = quick_harvest(tmp_path, tokens=tokens, names=HOOKS[:1], shard_contexts=len(tokens))
    norms = hooks.run_with_cache(tiny_bridge(), tokens, HOOKS[:1])[HOOKS[0]].norm(dim=-1)
    keep = activations.rows_to_keep(tiny_bridge())(tokens, norms)
    origin = store.origin(torch.arange(store.n_rows))
    assert keep.nonzero().tolist() == torch.stack([origin.context, origin.position], 1).tolist()


def test_first_positions_and_separators_are_left_out_and_counted(tmp_path):
    tokens = some_tokens()
    store = quick_harvest(tmp_path, exclusion=Exclusion(first_positions=2, norm_multiple=1e9))
    kept = torch.zeros_like(tokens, dtype=torch.bool)
    origin = store.origin(torch.arange(store.n_rows))
    kept[origin.context, origin.position] = True
    expected = tokens != 0
    expected[:, :2] = False
    assert torch.equal(kept, expected)
    assert store.excluded == {"first positions": 74, "separators": int((tokens[:, 2:] == 0).sum()), "long": 0}


def test_long_rows_are_left_out_at_all_hooks(tmp_path):
    everything = quick_harvest(tmp_path / "all", exclusion=Exclusion(norm_multiple=1e9))
    store = quick_harvest(tmp_path / "short", exclusion=Exclusion(norm_multiple=1.1))
    norms = {name: everything.rows(name, torch.arange(everything.n_rows)).norm(dim=-1) for name in HOOKS}
    limits = {name: store.statistics(name).largest_norm for name in HOOKS}
    short = torch.stack([norms[name] <= limits[name] for name in HOOKS]).all(0)
    assert store.n_rows == int(short.sum()) == everything.n_rows - store.excluded["long"]
    first_shard = everything.origin(torch.arange(everything.n_rows)).context < 5
    for name in HOOKS:
        assert limits[name] == pytest.approx(1.1 * norms[name][first_shard].median().item(), rel=1e-3)


def test_statistics_centre_and_scale(tmp_path):
    store = quick_harvest(tmp_path)
    for name in HOOKS:
        rows = store.rows(name, torch.arange(store.n_rows)).double()
        statistics = store.statistics(name)
        torch.testing.assert_close(statistics.mean.double(), rows.mean(0))
        scaled = (rows - rows.mean(0)) / statistics.scale
        assert scaled.square().sum(-1).mean().item() == pytest.approx(store.d_in(name), rel=1e-6)
        batch = next(store.batches(name, store.n_rows))
        torch.testing.assert_close(batch.mean(0), torch.zeros(16), atol=1e-4, rtol=0)


def test_heads_are_flattened_and_other_shapes_refused(tmp_path):
    store = quick_harvest(tmp_path / "z", names=[hooks.hook_name("z", 1)])
    assert store.d_in(hooks.hook_name("z", 1)) == 16
    with pytest.raises(ValueError, match="not one vector per token"):
        quick_harvest(tmp_path / "pattern", names=[hooks.hook_name("pattern", 1)])


def test_no_layer_below_the_deepest_hook_runs(tmp_path, monkeypatch):
    reached = []
    plain = hooks.unhooked(tiny_bridge())
    plain.model.layers[2].register_forward_hook(lambda *arguments: reached.append(2))
    monkeypatch.setattr(hooks, "unhooked", lambda model: plain)
    quick_harvest(tmp_path)
    assert reached == []


# --- interruption ---


def _harvest_in_child(folder, die_at_write=None):
    """Harvest in a process of its own; with `die_at_write`, it ends without warning before or after that rename."""
    torch.set_num_threads(1)
    if die_at_write is not None:
        _die_at(*die_at_write)
    quick_harvest(folder)


def _die_at(n: int, after: bool) -> None:
    replace, calls = os.replace, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) == n and not after:
            os._exit(9)
        replace(*arguments)
        if len(calls) == n:
            os._exit(9)

    files.os.replace = counted


def run_child(*arguments) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_harvest_in_child, args=arguments)
    process.start()
    return process


@pytest.fixture
def reference(tmp_path):
    start = time.perf_counter()
    quick_harvest(tmp_path / "reference")
    return contents(tmp_path / "reference"), time.perf_counter() - start


def test_ten_kills_at_random_moments_change_no_byte(tmp_path, reference):
    expected, duration = reference
    moments, folder, was_unfinished = random.Random(0), tmp_path / "store", 0
    for _ in range(10):
        process = run_child(folder)
        time.sleep(moments.uniform(0, 0.6 * duration))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        was_unfinished += not (folder / stores.MANIFEST).exists()
        if (folder / stores.MANIFEST).exists():
            assert contents(folder) == expected
            shutil.rmtree(folder)
    assert was_unfinished > 0, "every run ended before it was killed: lower the moments"
    quick_harvest(folder)
    assert contents(folder) == expected


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("n", range(1, 11))
def test_dying_at_any_write_changes_no_byte(tmp_path, reference, n, after):
    expected, _ = reference
    process = run_child(tmp_path / "store", (n, after))
    process.join()
    assert process.exitcode == 9
    quick_harvest(tmp_path / "store")
    assert contents(tmp_path / "store") == expected


def test_two_harvests_at_once_make_one_store(tmp_path, reference):
    children = [run_child(tmp_path / "store") for _ in range(2)]
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    assert contents(tmp_path / "store") == reference[0]


def test_the_number_of_threads_changes_no_byte(tmp_path, reference):
    torch.set_num_threads(3)
    quick_harvest(tmp_path / "store")
    assert torch.get_num_threads() == 3
    assert contents(tmp_path / "store") == reference[0]


def test_a_finished_store_is_returned_as_it_is(tmp_path, monkeypatch):
    quick_harvest(tmp_path)
    monkeypatch.setattr(activations.Job, "write_shard", lambda *arguments: pytest.fail("harvested again"))
    quick_harvest(tmp_path)


def test_a_disk_that_fills_up_is_an_error_after_which_the_harvest_goes_on(tmp_path, reference):
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, old_limit[1]))
    try:
        with pytest.raises(OSError, match="could not write .*shard-00000.*free some space"):
            quick_harvest(tmp_path / "store")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert set(contents(tmp_path / "store")) == {stores.PLAN}
    quick_harvest(tmp_path / "store")
    assert contents(tmp_path / "store") == reference[0]


def test_too_small_a_disk_is_an_error_before_the_start(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 90, 10))
    with pytest.raises(OSError, match="GB more and .* has 1e-08 GB free: give fewer tokens"):
        quick_harvest(tmp_path)
    assert contents(tmp_path) == {}


# --- bad input ---


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": some_tokens().flip(0)},
        {"names": HOOKS[:1]},
        {"dtype": torch.float32},
        {"exclusion": Exclusion(norm_multiple=5.0)},
        {"shard_contexts": 6},
        {"model": 1},
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_with_another_harvest_is_refused_and_kept(tmp_path, change, finished):
    quick_harvest(tmp_path)
    if not finished:
        (tmp_path / stores.MANIFEST).unlink()
    before = contents(tmp_path)
    if "model" in change:
        change = {"model": tiny_bridge(seed=1)}
    with pytest.raises(ValueError, match="holds another harvest .* there, .* now.*Nothing was changed"):
        quick_harvest(tmp_path, **change)
    assert contents(tmp_path) == before


def test_an_unfinished_store_wants_the_same_libraries_and_a_finished_one_does_not(tmp_path, monkeypatch):
    quick_harvest(tmp_path)
    monkeypatch.setattr(activations, "version", lambda library: "0.0")
    quick_harvest(tmp_path)
    (tmp_path / stores.MANIFEST).unlink()
    with pytest.raises(ValueError, match="holds another harvest .computed_by"):
        quick_harvest(tmp_path)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="no store of activations but holds .'thesis.tex'"):
        quick_harvest(tmp_path)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


def alter(path):
    whole = bytearray(path.read_bytes())
    whole[-10] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("damage", [truncate, alter, Path.unlink])
def test_a_damaged_shard_is_an_error_and_its_remedy_works(tmp_path, damage):
    quick_harvest(tmp_path)
    before, shard = contents(tmp_path), tmp_path / "shard-00001.safetensors"
    damage(shard)
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is missing, truncated or altered: delete it and"):
        list(ActivationStore(tmp_path).batches(HOOKS[0], 10))
    shard.unlink(missing_ok=True)
    (tmp_path / stores.MANIFEST).unlink()
    quick_harvest(tmp_path)
    assert contents(tmp_path) == before


def test_a_truncated_shard_of_an_unfinished_store_is_an_error(tmp_path):
    quick_harvest(tmp_path)
    (tmp_path / stores.MANIFEST).unlink()
    truncate(tmp_path / "shard-00002.safetensors")
    with pytest.raises(ValueError, match="shard-00002.safetensors is truncated or altered: delete it"):
        quick_harvest(tmp_path)


def test_opening_what_is_no_store_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="holds no store"):
        ActivationStore(tmp_path)
    quick_harvest(tmp_path)
    (tmp_path / stores.MANIFEST).write_text("{")
    with pytest.raises(ValueError, match="manifest.json is damaged"):
        ActivationStore(tmp_path)
    (tmp_path / stores.MANIFEST).unlink()
    with pytest.raises(ValueError, match="unfinished: call harvest again"):
        ActivationStore(tmp_path)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (some_tokens()[0], "expected whole numbers of shape"),
        (some_tokens().float(), "expected whole numbers of shape"),
        (some_tokens()[:0], "at least one context"),
        (some_tokens()[:, :1], "leave nothing after the 1 excluded first positions"),
        (some_tokens() + 5, "expected 0 to 6: were they made with another model's tokenizer"),
        (torch.zeros(3, 4, dtype=torch.long), "no token of the first 3 contexts is left"),
    ],
)
def test_tokens_that_cannot_be_harvested_are_an_error(tmp_path, tokens, message):
    # The shape annotations, checked in tests only, refuse the first two on their own.
    call = harvest.__wrapped__ if hasattr(harvest, "__wrapped__") else harvest
    with pytest.raises(ValueError, match=message):
        call(tiny_bridge(), tokens, HOOKS, tmp_path / "store", progress=False)
    assert not (tmp_path / "store").exists() or contents(tmp_path / "store") == {}


def test_activations_that_are_not_finite_are_an_error(tmp_path):
    model = tiny_bridge(seed=2)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = some_tokens().clamp(max=5)
    tokens[17, 4] = 6
    model.embed.weight.data[6] = float("nan")
    try:
        with pytest.raises(ValueError, match="in context 17 are not finite"):
            quick_harvest(tmp_path, model=model, tokens=tokens)
    finally:
        model.load_state_dict(weights)


def test_activations_too_large_for_the_type_are_an_error(tmp_path):
    with hooks.intervene(tiny_bridge(), {HOOKS[0]: lambda activation: activation * 1e6}):
        with pytest.raises(ValueError, match="exceed the range of torch.float16; harvest with dtype=torch.float32"):
            quick_harvest(tmp_path)
        assert contents(tmp_path) == {}
        assert quick_harvest(tmp_path, dtype=torch.float32).statistics(HOOKS[0]).scale > 1e4


def test_unknown_hooks_and_batches_are_errors(tmp_path):
    store = quick_harvest(tmp_path)
    with pytest.raises(ValueError, match="has no hook 'blocks.0.hook_resid_pre'; it has"):
        store.batches("blocks.0.hook_resid_pre", 4)
    for size in (0, store.n_rows + 1):
        with pytest.raises(ValueError, match=f"batch_size is {size}; expected between 1 and"):
            store.batches(HOOKS[0], size)
    with pytest.raises(ValueError, match="indices run from 0 to .*; expected 0 to"):
        store.rows(HOOKS[0], torch.tensor([0, store.n_rows]))
    with pytest.raises(ValueError, match="has no hook 'blocks.7.hook_resid_post'"):
        quick_harvest(tmp_path / "new", names=["blocks.7.hook_resid_post"])
    assert not (tmp_path / "new").exists()


# --- the reader's laws ---


def store_of(folder: Path, sizes: list[int]) -> ActivationStore:
    """A store whose row number r holds (r, -r)."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    rows = torch.arange(sum(sizes)).float()
    shards = []
    for k, part in enumerate(rows.split(sizes)):
        path = stores.shard_path(folder, k)
        save_file({"h": torch.stack([part, -part], 1), "context": part.int(), "position": part.int()}, path)
        shards.append({"rows": len(part), "sha256": files.sha256(path)})
    hook = {"mean": [1.0, -1.0], "scale": 2.0, "largest_norm": 1.0}
    (folder / stores.PLAN).write_text(json.dumps({"hook_names": ["h"]}))
    (folder / stores.MANIFEST).write_text(json.dumps({"hooks": {"h": hook}, "shards": shards}))
    return ActivationStore(folder)


any_store = {"sizes": st.lists(st.integers(1, 9), min_size=1, max_size=6)}
repeated = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@repeated
@given(
    **any_store,
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 3),
    epochs=st.integers(1, 3),
    shards_mixed=st.integers(1, 7),
)
def test_each_row_is_read_at_most_once_per_epoch(tmp_path, sizes, batch_size, seed, epochs, shards_mixed):
    store = store_of(tmp_path / "store", sizes)
    batch_size = min(batch_size, store.n_rows)
    options = {"epochs": epochs, "scaled": False, "shards_mixed": shards_mixed}
    batches = list(store.batches("h", batch_size, seed, **options))
    per_epoch = store.n_rows // batch_size
    assert len(batches) == epochs * per_epoch
    assert all(batch.shape == (batch_size, 2) and torch.equal(batch[:, 0], -batch[:, 1]) for batch in batches)
    for epoch in range(epochs):
        seen = torch.cat(batches[epoch * per_epoch : (epoch + 1) * per_epoch])[:, 0]
        assert len(seen.unique()) == len(seen)
    again = store.batches("h", batch_size, seed, **options)
    assert all(torch.equal(one, other) for one, other in zip(batches, again, strict=True))


@repeated
@given(**any_store, data=st.data())
def test_rows_come_in_the_order_asked_for(tmp_path, sizes, data):
    store = store_of(tmp_path / "store", sizes)
    asked = torch.tensor(data.draw(st.lists(st.integers(0, store.n_rows - 1), max_size=20)), dtype=torch.long)
    assert torch.equal(store.rows("h", asked)[:, 0].long(), asked)
    assert torch.equal(store.origin(asked).context.long(), asked)
    assert torch.equal(torch.cat(list(store.read("h", 4)))[:, 0], torch.arange(store.n_rows).float())


def test_batches_are_scaled_shuffled_and_endless_on_demand(tmp_path):
    store = store_of(tmp_path / "store", [50, 50])
    scaled = torch.cat(list(store.batches("h", 10, seed=1)))
    plain = torch.cat(list(store.batches("h", 10, seed=1, scaled=False)))
    torch.testing.assert_close(scaled, (plain - torch.tensor([1.0, -1.0])) / 2)
    assert not torch.equal(plain[:, 0], torch.arange(100).float())
    assert not torch.equal(plain, torch.cat(list(store.batches("h", 10, seed=2, scaled=False))))
    endless = store.batches("h", 30, epochs=None)
    assert len({tuple(next(endless)[:, 0].tolist()) for _ in range(20)}) == 20


def test_rows_are_mixed_across_shards(tmp_path):
    """With all shards held at once, the share of each shard in a batch is that of drawing without replacement."""
    store = store_of(tmp_path / "store", [400] * 5)
    batches = store.batches("h", 100, scaled=False)
    shares = torch.stack([torch.bincount((batch[:, 0] // 400).long(), minlength=5) / 100 for batch in batches])
    expected_variance = 0.2 * 0.8 / 100 * (2000 - 100) / (2000 - 1)
    assert shares.var(0).mean().item() == pytest.approx(expected_variance, rel=0.5)


def test_the_store_takes_only_plain_tensors(tmp_path):
    """No file of a store is a pickle."""
    quick_harvest(tmp_path)
    for path in tmp_path.glob("shard-*"):
        load_file(path)
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ""}
