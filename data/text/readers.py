"""One reader per source: from an unpacked package to (document name, text) pairs, in a fixed order.

A reader knows where its package keeps the text and what is peculiar about it; rules that hold for all sources are in
`clean.tidy`. Names are stable: the id of a piece is `source/name#number`.
"""

import bz2
import gzip
import html
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import clean
import markup

Documents = Iterator[tuple[str, str]]
READERS: dict[str, Callable[[Path], Documents]] = {}
AUTHOR_LINES = re.compile(r"(?mi)^.*(?:__author__|__credits__|written by|author:|@contact|<[\w.]+@[\w.]+>).*\n")
LISTINGS = frozenset({"python", "postgres", "sqlite", "django", "sqlalchemy"})  # blanks inside a line may matter


def reader(function: Callable[[Path], Documents]) -> Callable[[Path], Documents]:
    """Registers the function as the reader of the source that has its name."""
    READERS[function.__name__] = function
    return function


def _find(root: Path, pattern: str) -> list[Path]:
    found = sorted(root.rglob(pattern))
    if not found:
        raise ValueError(f"No file like {pattern!r} in {root}; expected the package pinned in sources.toml.")
    return found


def _text(path: Path) -> str:
    return clean.decode(path.read_bytes())


def _grouped(entries: Iterator[str], size: int = 3_000) -> Documents:
    """Short entries in a row become documents of about `size` characters, named by their first entry."""
    group: list[str] = []
    for entry in entries:
        group.append(entry)
        if sum(map(len, group)) > size:
            yield _name(group[0]), "\n\n".join(group)
            group = []
    if group:
        yield _name(group[0]), "\n\n".join(group)


def _name(entry: str) -> str:
    return re.sub(r"\W+", "_", entry[:40]).strip("_").lower()


# ------------------------------------------------------------------------------------------ encyclopedias, facts
@reader
def wiki_intros(root: Path) -> Documents:
    for page in json.loads(_text(_find(root, "summaries_en-us.json")[0])).values():
        if len(page.get("extract") or "") > 200:
            yield page["title"], f"{page['title']}\n\n{markup.mend_gaps(page['extract'])}"


@reader
def wiki_articles(root: Path) -> Documents:
    dump = bz2.decompress(_find(root, "enwiki-latest-pages-articles1.xml-*-shortened.bz2")[0].read_bytes()).decode()
    for page in re.findall(r"<page>(.*?)</page>", dump, re.S):
        title = html.unescape(re.search(r"<title>(.*?)</title>", page)[1])
        source = re.search(r"<text[^>]*>(.*?)</text>", page, re.S)
        if source and ":" not in title and not source[1].lstrip().lower().startswith("#redirect"):
            yield title, f"{title}\n\n{markup.wiki_to_text(html.unescape(source[1]))}"


@reader
def factbook(root: Path) -> Documents:
    """One document per country and chapter: what is said in words. Statistics, addresses and set phrases go."""
    countries = [json.loads(_text(path)) for path in _find(root, "data/*/*.json")]
    phrases = Counter(note for chapters in countries for note in _notes(chapters))
    for chapters in countries:
        country = _field(chapters.get("Government", {}).get("Country name", {}).get("conventional short form"))
        for chapter, fields in chapters.items():
            facts = [_fact(name, field, phrases) for name, field in fields.items() if "Diplomatic" not in name]
            facts = [fact for fact in facts if _is_told_in_words(fact)]
            if country not in ("", "none") and facts:
                yield f"{country}, {chapter}", f"{country}: {chapter}\n\n" + "\n\n".join(facts)


def _is_told_in_words(fact: str) -> bool:
    """Long enough, few figures, and not a list of acronyms."""
    capitals = sum(c.isupper() for c in fact)
    return len(fact) > 60 and clean.mostly_words(fact, 0.8) and capitals < 0.3 * sum(c.isalpha() for c in fact)


def _notes(field: dict | str | None) -> Iterator[str]:
    if isinstance(field, dict):
        for name, inner in field.items():
            yield from [_field(inner)] if name == "note" else _notes(inner)


def _field(field: dict | str | None) -> str:
    text = (field or {}).get("text", "") if isinstance(field, dict | None) else field
    text = re.sub(r";?\s*for more details, go to:?\s*\S*", "", " ".join(markup.strip_tags(str(text)).split()))
    return re.sub(r"[; ]*;", ";", text).strip("; ")


def _fact(name: str, field: dict | str, phrases: Counter) -> str:
    """`Area: total 643,801 sq km; land 640,427 sq km; note: ...`, without notes that many countries share."""
    if isinstance(field, str):
        return f"{name}: {_field(field)}"
    parts = []
    for key, inner in field.items():
        if key in ("text", "note"):
            parts.append("" if phrases[_field(inner)] > 2 else _field(inner))
        elif _field(inner) and "sample" not in key:  # samples of other languages
            parts.append(f"{key.removeprefix(name).strip()} {_field(inner).removeprefix(key + ':').strip()}".strip())
    return f"{name}: {'; '.join(part for part in parts if part)}"


@reader
def wordnet(root: Path) -> Documents:
    """Glosses with their examples, 24 neighbours to a document."""
    for part in ("noun", "verb", "adj", "adv"):
        lines = _text(_find(root, f"dict/data.{part}")[0]).split("\n")
        glosses = [_gloss(line) for line in lines if " | " in line and not line.startswith("  ")]
        for i in range(0, len(glosses), 24):
            yield f"{part}_{i:06d}", "\n".join(glosses[i : i + 24])


def _gloss(line: str) -> str:
    kinds = {"n": "noun", "v": "verb", "a": "adjective", "s": "adjective", "r": "adverb"}
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    words = [re.sub(r"\(\w+\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(int(fields[3], 16))]
    return f"{', '.join(words)} ({kinds[fields[2]]}): {gloss.strip()}"


@reader
def jargon(root: Path) -> Documents:
    text = gzip.decompress(_find(root, "jargon.dict.dz")[0].read_bytes()).decode("utf-8")
    text = re.sub(r"\{\s*([^{}]*?)\s*\}", lambda m: " ".join(m[1].split()), text)  # braces mark cross-references
    text = re.sub(r"([“‘(])\s+", r"\1", text)
    entries = re.split(r"\n\n(?=\S)", text)
    yield from _grouped(_one_line_head(entry) for entry in entries if "database" not in entry[:40])


def _one_line_head(entry: str) -> str:
    head, _, body = entry.partition("\n\n")
    return f"{' '.join(head.split())}\n\n{clean.unwrap(body)}"


@reader
def devil(root: Path) -> Documents:
    text = gzip.decompress(_find(root, "devil.dict.dz")[0].read_bytes()).decode("utf-8").replace("_", "")
    entries = re.split(r"\n\s*\n(?=[A-Z][A-Z' -]+, )", text)
    yield from _grouped(_verse_or_prose(entry) for entry in entries[1:])


def _verse_or_prose(entry: str) -> str:
    """Indented paragraphs are verse and keep their lines; the others are joined."""
    paragraphs = re.split(r"\n\s*\n", entry)
    return "\n\n".join(
        "\n".join(line.strip() for line in p.strip("\n").split("\n")) if p.startswith("  ") else clean.unwrap(p)
        for p in paragraphs
    )


# ------------------------------------------------------------------------------------------ speeches, books, plays
@reader
def speeches(root: Path) -> Documents:
    """From 1900 on: older messages read like ledgers. Stage directions such as [Applause] go."""
    for path in _find(root, "data/speeches/*.txt"):
        if int(path.name[:4]) >= 1900:
            yield path.stem, clean.drop_tables(re.sub(r"\[[A-Z][^\]\n]{0,80}\]", "", _text(path)))


@reader
def moby_dick(root: Path) -> Documents:
    paths = _find(root, "moby-dick/data/chapter_*.txt")
    for path in sorted(paths, key=lambda p: int(re.search(r"(\d+)$", p.stem)[1])):
        yield path.stem, clean.unwrap(_text(path).replace("\r\n", "\n").replace("_", ""))


@reader
def austen(root: Path) -> Documents:
    """The six novels, one document per chapter."""
    for lines in _r_string_vectors(_find(root, "janeaustenr/data/Rdata.rdb")[0].read_bytes()):
        novel = "\n".join(lines).replace("_", "")
        title = next(line for line in lines if line.strip()).title()
        chapters = re.split(r"\n(?=(?:CHAPTER|Chapter) [IVXLC\d]+)", novel)
        for i, chapter in enumerate(chapters[1:], start=1):
            yield f"{title} {i}", clean.unwrap(re.split(r"\n\s*(?:THE END|FINIS)\b", chapter)[0])


def _r_string_vectors(data: bytes) -> Iterator[list[str]]:
    """The character vectors in a lazy-load database of R: a 4-byte length, then a zlib stream, again and again."""
    while len(data) > 4:
        stream = zlib.decompressobj()
        values = stream.decompress(data[4:])
        data = stream.unused_data
        start = values.find(b"\x00\x00\x00\x10", 2) + 4  # type 16: a vector of strings
        if start >= 4:
            yield _r_strings(values, start)


def _r_strings(values: bytes, start: int) -> list[str]:
    """XDR: the number of strings, then for each its flags (4 bytes), its length (4 bytes), its characters."""
    count, at = int.from_bytes(values[start : start + 4], "big"), start + 4
    strings = []
    for _ in range(count):
        length = int.from_bytes(values[at + 4 : at + 8], "big")
        strings.append(values[at + 8 : at + 8 + length].decode("utf-8"))
        at += 8 + length
    return strings


@reader
def botchan(root: Path) -> Documents:
    """The e-book header and footer go. The file has no empty lines: a short line ends a paragraph."""
    text = _text(_find(root, "botchan.txt")[0]).replace("\r\n", "\n").replace("_", "")
    text = re.split(r"\*\*\* ?END OF|End of (?:the )?Project Gutenberg", text.split("\nCHAPTER I\n", 1)[1])[0]
    chapters = re.split(r"\nCHAPTER [IVX]+\.?\n", text)
    for i, chapter in enumerate(chapters, start=1):
        chapter = re.sub(r"(?<=[a-z]{2}\.)(?=[A-Z])", " ", chapter)  # a blank is missing here and there
        ended = re.sub(r"(?m)^(.{1,58}[.!?\"'])$", r"\1\n", chapter)
        yield f"chapter {i}", f"Chapter {i}\n\n{clean.unwrap(ended)}"


@reader
def shakespeare(root: Path) -> Documents:
    """One document per scene; speaker, colon, lines."""
    for path in _find(root, "plays/*/*.md"):
        text = re.sub(r"(?m)^\*\*(.*?)\*\* *$", r"\1:", _text(path)).replace("--", " - ")
        title, *scenes = re.split(r"(?m)^#+ (?=SCENE|ACT|PROLOGUE|INDUCTION|EPILOGUE)", re.sub(r"[_*]", "", text))
        for i, scene in enumerate(scenes, start=1):
            yield f"{path.stem} {i}", f"{title.strip('# ').strip()}. {scene.strip()}"


@reader
def milton(root: Path) -> Documents:
    """One document per book of verse, and a speech; printed line numbers go."""
    for name in ("paradiselost", "paradiseregained"):
        text = re.sub(r"(?m)\s{2,}\d+\s*$", "", _text(_find(root, f"miltondata/texts/{name}.txt")[0]))
        text = re.sub(r"(?m)[ \t]+$", "", text.replace("THE END.", ""))
        for i, book in enumerate(re.split(r"(?m)^(?=BOOK [IVX]+|THE \w+ BOOK)", text)[1:], start=1):
            yield f"{name} {i}", book
    yield "areopagitica", clean.unwrap(_text(_find(root, "miltondata/texts/areopagitica.txt")[0]).replace("\r\n", "\n"))


# ------------------------------------------------------------------------------------------ everyday text
@reader
def recipes(root: Path) -> Documents:
    for recipe in json.loads(_text(_find(root, "recipes_en-us.json")[0])).values():
        if recipe.get("steps"):
            ingredients = "\n".join(f"- {i}" for i in recipe["ingredients"])
            steps = "\n".join(f"{i}. {step}" for i, step in enumerate(recipe["steps"], start=1))
            text = f"{recipe['title']}\n\nIngredients\n{ingredients}\n\nProcedure\n{steps}"
            yield recipe["title"], markup.mend_gaps(html.unescape(text))


# ------------------------------------------------------------------------------------------ manuals and code
@reader
def postgres(root: Path) -> Documents:
    skipped = re.compile("bookindex|release|biblio|features|errcodes|sql-keywords|index|legalnotice|acronyms")
    for path in _find(root, "html/*.html"):
        if not skipped.match(path.name):
            yield path.stem, clean.drop_tables(markup.html_to_text(_text(path)))


@reader
def sqlite(root: Path) -> Documents:
    skipped = re.compile(
        "crossref|requirements|keyword_index|sitemap|doclist|changes|chronology|releaselog|syntax|toc|hlr|fullsql|oldnews|"
        "limits_|^index|books|support|copyright|consortium|pressrelease|mingw|news|docs|download|crew|fileformat2|capi3ref|"
        "lang_naming|session.*list|c3ref.*(?:list|objlist|constlist)|funclist|objlist|constlist|code"
    )
    folder = _find(root, "usr/share/doc/sqlite3")[0]
    for path in sorted(folder.glob("*.html")) + sorted(folder.glob("c3ref/*.html")):
        if not skipped.search(path.stem):
            text = markup.html_to_text(_text(path).split("This page last modified")[0])
            name = path.relative_to(folder).with_suffix("").as_posix()
            yield name, clean.drop_tables(re.sub(r"See also lists of\s+Objects,.*", "", text, flags=re.S))


@reader
def django(root: Path) -> Documents:
    for path in _find(root, "*.txt"):
        parts = path.relative_to(root).as_posix().split("/docs/")
        if len(parts) == 2 and not parts[1].startswith(("releases/", "man/", "_theme/")):
            yield parts[1].removesuffix(".txt"), clean.drop_tables(markup.rst_to_text(_text(path)))


@reader
def sqlalchemy(root: Path) -> Documents:
    for path in _find(root, "*.rst"):
        parts = path.relative_to(root).as_posix().split("/doc/build/")
        if len(parts) == 2 and not re.search("changelog/|/_|copyright", parts[1]):
            text = re.sub(r"\{(?:execsql|printsql|opensql|sql|stop)\}", "", _text(path))
            text = re.sub(r"(?m)^\s*\[(?:\.\.\.|cached|generated|insertmany|no key|raw sql)[^\]\n]*\].*\n", "", text)
            yield parts[1].removesuffix(".rst"), clean.drop_tables(markup.rst_to_text(text))


@reader
def python(root: Path) -> Documents:
    """The standard library without its tests, tables of characters, licence comments and author lines."""
    for name, text in _modules(root):
        kept = (block for block in _comment_blocks(text) if not _is_notice(block))
        yield name, re.sub(AUTHOR_LINES, "", "".join(kept))


def python_notices(root: Path) -> Documents:
    """(module, notice) for every licence comment that `python` leaves out, each notice once."""
    seen: set[str] = set()
    for name, text in _modules(root):
        for block in _comment_blocks(text):
            if _is_notice(block) and block not in seen:
                seen.add(block)
                yield name, block.strip("\n")


def _modules(root: Path) -> Documents:
    skipped = re.compile(
        r"/(?:test|tests|idlelib|lib2to3|ensurepip|encodings|pydoc_data|turtledemo|msilib|__phello__)/"
        r"|/(?:this|antigravity|stringprep|_sysconfigdata.*|sre_constants|html/entities|nturl2path)\.py$"
    )
    for path in _find(root, "usr/lib/python3.11/**/*.py"):
        if not skipped.search(path.as_posix()) and path.is_file():
            text = _text(path)
            if max(map(len, text.split("\n"))) < 300:
                yield path.as_posix().split("/python3.11/")[1], text


def _comment_blocks(source: str) -> list[str]:
    """The source in parts: runs of comment lines, and what stands between them."""
    return re.split(r"(?m)(^(?:[ \t]*#.*\n)+)", source)


def _is_notice(block: str) -> bool:
    return block.lstrip().startswith("#") and bool(re.search(r"(?i)copyright|licen[sc]e", block))
