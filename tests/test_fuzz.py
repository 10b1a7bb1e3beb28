"""Whatever is done to a stored file or typed after `./lab`, the answer is a clear error or a right result.

The examples are the same on every run: what fails here fails everywhere.
"""

import inspect
import json
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_corpus import make_bundle
from tiny_models import save_tiny_model, tiny_bridge, tiny_tokenizer
from typer.testing import CliRunner

from mi_utils import __main__ as commands
from mi_utils import (
    activations,
    corpus,
    indexing,
    latents,
    models,
    pairs,
    readiness,
    runner,
    runs,
    sae,
    stores,
    training,
)
from mi_utils.corpus import Contexts
from mi_utils.hooks import hook_name

HOOK = hook_name("resid_post", 1)
BOUNDED = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def tokens(n_contexts=20, n_ctx=12):
    drawn = torch.randint(1, 7, (n_contexts, n_ctx), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    drawn[:, 0] = 0
    return drawn


def make_dictionary(folder):
    sae.save(training.to_inference(sae.build("batchtopk", 16, 24, 4)), folder)


def make_index(folder):
    make_dictionary(folder / "dictionary")
    text = Contexts(tokens(), torch.zeros_like(tokens()), ["novels"] * len(tokens()))
    settings = latents.Settings(n_top=2, n_sample=2, before=2, after=2)
    dictionary = sae.load(folder / "dictionary")
    indexing.build(tiny_bridge(), dictionary, text, HOOK, folder / "index", settings=settings, progress=False)
    shutil.rmtree(folder / "dictionary")


def make_store(folder):
    activations.harvest(tiny_bridge(), tokens(), [HOOK], folder, shard_contexts=8, progress=False)


def make_runs(folder):
    run = runs.Run("01_x", "A title", "fast", 1.0, 1, "2026-01-01T00:00:00+00:00", "here")
    (folder / "runs.json").write_text(json.dumps([vars(run)]))


def read_index(folder):
    index = latents.LatentIndex(folder / "index", tiny_tokenizer())
    return index.card(0)._repr_html_()


def read_store(folder):
    store = stores.ActivationStore(folder)
    return store.rows(HOOK, torch.arange(store.n_rows)), store.statistics(HOOK)


KINDS = {
    "dictionary": (make_dictionary, sae.load),
    "index": (make_index, read_index),
    "store": (make_store, read_store),
    "corpus": (make_bundle, lambda folder: corpus.load_corpus(folder=folder)),
    "model": (save_tiny_model, models.load_model),
    "runs": (make_runs, runs.load_runs),
}
"""Kinds of artefact: how one is made in an empty folder, and how it is read."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with an undamaged artefact of each kind."""
    folder = tmp_path_factory.mktemp("whole")
    for kind, (make, read) in KINDS.items():
        (folder / kind).mkdir()
        if kind in ("dictionary", "store"):
            (folder / kind).rmdir()
        make(folder / kind)
        assert read(folder / kind)
    return folder


HOW = st.tuples(
    st.sampled_from(["cut", "flip", "empty", "gone", "swap", "junk"]),
    st.floats(0, 1, exclude_max=True),
    st.integers(1, 255),
    st.binary(min_size=1, max_size=40),
)


def damage(path, others, how):
    kind, where, mask, junk = how
    content = bytearray(path.read_bytes())
    place = int(where * len(content))
    if kind == "flip":
        content[place] ^= mask
    changed = {"cut": content[:place], "empty": b"", "junk": junk, "swap": others[mask % len(others)].read_bytes()}
    path.write_bytes(changed.get(kind, content))
    if kind == "gone":
        path.unlink()


def is_checked(path):
    """Whether a file's checksum is on record, so that no change to it may go unnoticed."""
    return path.suffix in (".safetensors", ".feather", ".xz")


@pytest.mark.parametrize("kind", KINDS)
@BOUNDED
@given(number=st.integers(0, 99), how=HOW)
def test_a_damaged_artefact_is_a_clear_error_or_does_no_harm(whole, tmp_path, kind, number, how):
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(whole / kind, copy)
    files = sorted(path for path in copy.rglob("*") if path.is_file() and path.name != activations.LOCK)
    path = files[number % len(files)]
    assume(is_checked(path) or how[0] != "flip")  # a description whose letters changed is still a description
    before = path.read_bytes()
    damage(path, files, how)
    try:
        KINDS[kind][1](copy)
    except ValueError:
        return
    same = path.exists() and path.read_bytes() == before
    assert same or kind == "model" or not is_checked(path), f"{path.name} was altered, and was read all the same"


@BOUNDED
@given(content=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
@pytest.mark.parametrize("name", ["own.txt", "own.jsonl", "own.md"])
def test_any_own_text_is_read_or_refused(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with suppress(ValueError):
        assert all(document.text for document in corpus.load_text(tmp_path / name))


@BOUNDED
@given(content=st.text(max_size=300))
def test_any_text_pair_is_built_or_refused(tmp_path, content):
    (tmp_path / "01_x.py").write_text(content, encoding="utf8")
    with suppress(ValueError):
        runner.set_fast(pairs.build(tmp_path / "01_x.py"))


NAMES = ["run", "test", "open", "bench", "data", "setup", "sync", "check"]
WORDS = st.one_of(
    st.sampled_from([*NAMES, "--help", "--fast", "--resume", "--record", "--json", "-k", "--", "-", "", "01", "99"]),
    st.text(max_size=20),
    st.sampled_from(["../..", "/etc/passwd", "\0", "\udcff", "$(reboot)", "; ls", "%s%n", "a" * 5000, "👩‍🔬"]),
)


@pytest.fixture
def harmless(tmp_path):
    """Commands without their consequences."""
    with ExitStack() as patches:
        for owner, name, stub in (
            (commands, "_python", lambda *_: 0),
            (commands, "_become_python", lambda *_: None),
            (runner, "run_notebooks", lambda *_, **__: []),
            (pairs, "find_pairs", lambda _: {}),
            (models, "fetch_default_model", lambda: None),
            (readiness, "checks", lambda: iter(())),
            (commands.signal, "signal", lambda *_: None),
            (commands, "VERDICTS", tmp_path / "verdicts.json"),
            (commands, "SITE", tmp_path / "site"),
        ):
            patches.enter_context(patch.object(owner, name, stub))
        patches.enter_context(patch("mi_utils.artefacts.write_checksums", lambda: False))
        for command in commands.app.registered_commands:  # typer hands them a context of another class than it names
            patches.enter_context(patch.object(command, "callback", inspect.unwrap(command.callback)))
        yield


@settings(BOUNDED, max_examples=200)
@given(arguments=st.lists(WORDS, max_size=4), name=st.sampled_from(NAMES))
def test_any_command_line_is_run_or_explained(harmless, arguments, name):
    for line in (arguments, [name, *arguments]):
        result = CliRunner().invoke(commands.app, line)
        assert result.exception is None or isinstance(result.exception, SystemExit), (line, result.exception)
        assert result.exit_code in (0, 2), (line, result.output)


def test_a_benchmark_is_never_a_path(harmless):
    for name in ("../lab", "/bin/sh", "..", "sae.py", "__init__"):
        result = CliRunner().invoke(commands.app, ["bench", name])
        assert (result.exit_code, "no benchmark" in result.output.replace("\n", " ")) == (2, True), name
    assert Path(commands.ROOT / "bench" / "sae.py").exists()
