"""Files are whole or absent, whatever happens while they are written."""

import errno
import multiprocessing
import os
import resource
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mi_utils import files


def test_cache_dir_follows_the_environment_and_is_made(tmp_path, monkeypatch):
    monkeypatch.setenv("MI_CACHE", str(tmp_path / "a" / "b"))
    assert files.cache_dir() == tmp_path / "a" / "b"
    assert files.cache_dir().is_dir()


def test_atomic_path_replaces_a_file_only_on_success(tmp_path):
    target = tmp_path / "deep" / "file.txt"
    with files.atomic_path(target) as part:
        part.write_text("first")
        assert not target.exists()
    with pytest.raises(RuntimeError, match="no"), files.atomic_path(target) as part:
        part.write_text("half of the sec")
        raise RuntimeError("no")
    assert target.read_text() == "first"
    assert list(target.parent.iterdir()) == [target]


def test_atomic_path_takes_a_folder(tmp_path):
    with files.atomic_path(tmp_path / "folder") as part:
        part.mkdir()
        (part / "file").write_text("x")
    assert (tmp_path / "folder" / "file").read_text() == "x"


def test_atomic_path_complains_when_nothing_was_written(tmp_path):
    with pytest.raises(FileNotFoundError), files.atomic_path(tmp_path / "file"):
        pass


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"0" * 100_000),
        lambda path: save_file({"x": torch.zeros(100_000)}, path),
    ],
    ids=["python", "safetensors"],
)
def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path, write):
    old_handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old_limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, old_limit[1]))
    try:
        caught = pytest.raises(OSError, match="could not write .*file.*free some space")
        with caught as error, files.atomic_path(tmp_path / "file") as part:
            write(part)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old_limit)
        signal.signal(signal.SIGXFSZ, old_handler)
    assert error.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_is_not_about_space_passes_unchanged(tmp_path):
    with pytest.raises(FileNotFoundError, match="elsewhere"), files.atomic_path(tmp_path / "file") as part:
        part.write_text("x")
        Path("/elsewhere/file").read_text()


def test_remove_leftovers_takes_parts_only(tmp_path):
    (tmp_path / "kept").write_text("x")
    (tmp_path / ".file.0a1b2c3d.part").write_text("x")
    (tmp_path / ".folder.0a1b2c3d.part").mkdir()
    files.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_text("abc")
    assert files.sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def _count_up(lock: Path, counter: Path):
    for _ in range(20):
        with files.locked(lock):
            value = int(counter.read_text())
            time.sleep(0.001)
            counter.write_text(str(value + 1))


def test_the_lock_excludes_other_processes(tmp_path):
    counter = tmp_path / "counter"
    counter.write_text("0")
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_count_up, args=(tmp_path / "lock", counter)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert counter.read_text() == "60"


def _hold(lock: Path, held: Path):
    with files.locked(lock):
        held.touch()
        time.sleep(60)


def test_the_lock_is_free_again_after_its_holder_was_killed(tmp_path):
    worker = multiprocessing.get_context("fork").Process(target=_hold, args=(tmp_path / "lock", tmp_path / "held"))
    worker.start()
    while not (tmp_path / "held").exists():
        time.sleep(0.01)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    with files.locked(tmp_path / "lock"):
        pass
