"""Files that are either whole or not there: the cache folder, atomic writes, checksums, locks between processes.

Everything the package writes goes through `atomic_path`, so that a crash, a kill or a full disk leaves the old
file or none, and never half of a new one.
"""

import errno
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def cache_dir() -> Path:
    """Folder for what can be rebuilt: `$MI_CACHE` if set, else `~/.cache/mi_utils`. Made if missing."""
    folder = Path(os.environ.get("MI_CACHE") or Path.home() / ".cache" / "mi_utils").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any error it is removed.

    The block writes one file, or makes one folder, at the path it is given. A file replaces an old file in one
    step; a folder must not exist yet. Contents reach the disk before the name does.

    Raises:
        OSError: the disk is full, or the file is larger than allowed; names `path` and what to do.
        FileExistsError: a folder is at `path`: another process made it meanwhile.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{uuid4().hex[:8]}.part")
    try:
        yield part
        _flush_to_disk(part)
        os.replace(part, path)
        _fsync(path.parent)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOTEMPTY, errno.EEXIST) and path.is_dir():
            raise FileExistsError(
                f"{path} is there: another process made it meanwhile. Use it, or remove it"
            ) from error
        if (number := _full_disk(error)) is None:
            raise
        raise OSError(
            number,
            f"could not write {path}: {os.strerror(number)}. Nothing half-written was kept; "
            "free some space or choose another folder, then run again",
        ) from error
    finally:
        _remove(part)


def write_json(path: str | Path, content: dict | list) -> None:
    """Write JSON that people may read, whole or not at all."""
    with atomic_path(path) as part:
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf8")


def remove_leftovers(folder: str | Path) -> None:
    """Delete what killed writers left in `folder`. Call it only where no other process writes there."""
    for part in Path(folder).glob(".*.part"):
        _remove(part)


@contextmanager
def locked(path: str | Path) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; other processes wait. Released even when a holder is killed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sha256(path: str | Path) -> str:
    """SHA-256 of a file's contents, in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _flush_to_disk(path: Path) -> None:
    for child in path.rglob("*") if path.is_dir() else ():
        _fsync(child)
    _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _full_disk(error: Exception) -> int | None:
    """The error number, if `error` says that no more can be written: safetensors gives it in its text only."""
    if isinstance(error, OSError):
        return error.errno if error.errno in FULL_DISK else None
    return next((number for number in FULL_DISK if f"os error {number})" in str(error)), None)
