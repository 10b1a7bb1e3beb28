"""The files that come with the repository under `data/`: which there are, and whether they are what was put there.

`data/SHA256SUMS` holds their checksums, in the format of `sha256sum -c`. Scripts, descriptions and readers' notes are
no artefacts. Every notebook begins by comparing them, so that no table or weight that was swapped or cut is read.
"""

import re
from pathlib import Path

from mi_utils.files import atomic_path, sha256

DATA = Path(__file__).resolve().parent.parent / "data"
CHECKSUMS = "SHA256SUMS"
NO_ARTEFACTS = (".py", ".pyc", ".md", ".part")


def shipped(data: Path = DATA) -> list[Path]:
    """The artefacts that are there, sorted."""
    found = (path for path in data.rglob("*") if path.is_file() and path.name not in (CHECKSUMS, "notes.json"))
    return sorted(path for path in found if path.suffix not in NO_ARTEFACTS)


def write_checksums(data: Path = DATA) -> bool:
    """Bring the list of checksums in step with the files; whether it had to change."""
    lines = "".join(f"{sha256(path)}  {path.relative_to(data).as_posix()}\n" for path in shipped(data))
    if (data / CHECKSUMS).exists() and (data / CHECKSUMS).read_text(encoding="utf8") == lines:
        return False
    with atomic_path(data / CHECKSUMS) as part:
        part.write_text(lines, encoding="utf8")
    return True


def damaged(data: Path = DATA) -> dict[str, str]:
    """Artefacts that are not what the list of checksums says, each with what is wrong: missing, or altered.

    Raises:
        ValueError: there is no list, or a line of it has another form.
    """
    if not (data / CHECKSUMS).exists():
        raise ValueError(f"{data / CHECKSUMS} is missing: restore it from version control")
    problems = {}
    for line in (data / CHECKSUMS).read_text(encoding="utf8").splitlines():
        if not (entry := re.fullmatch(r"([0-9a-f]{64})  (.+)", line)):
            raise ValueError(f"{data / CHECKSUMS} holds the line {line!r}; expected a checksum, two blanks and a path")
        path = data / entry[2]
        if not path.is_file():
            problems[entry[2]] = "missing"
        elif sha256(path) != entry[1]:
            problems[entry[2]] = "altered or truncated"
    return problems


def check(data: Path = DATA) -> None:
    """Compare every artefact with the list of checksums; half a second when the files are in the disk cache.

    Raises:
        ValueError: one is missing or is not what was shipped; names it.
    """
    if problems := damaged(data):
        name, problem = next(iter(problems.items()))
        more = f", and so are {len(problems) - 1} more" if len(problems) > 1 else ""
        raise ValueError(
            f"{data / name} is {problem}{more}: restore data/ from version control, or copy the repository again; "
            "if the change is yours, put it on record with ./lab sync"
        )
