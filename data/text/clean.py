"""Rules for every source: plain characters and white space, no tables, no private addresses, pieces of good size."""

import re
import unicodedata
from collections.abc import Iterator

MAX_PIECE, MIN_PIECE = 6_000, 200  # characters

INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2028-\u202e\u2060-\u2064\ufe00-\ufe0f\ufeff\ufffc]")
ODD_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")
RULE = re.compile(r"^[\W_]*([-=_*~#+|.^])\1{3,}[\W_]*$")  # a line that is drawn, not written
ONLY_A_LINK = re.compile(r"^[-*\s]*<?(?:https?|ftp)://\S+>?[.,;]?$")
# Only dotted or host-like domains, so that `user@host` in a database URL or `matrix @ matrix` stays.
EMAIL = re.compile(r"[\w.+%-]+@(?!example\b)(?:[\w-]+\.)+[a-zA-Z]{2,}")


# ------------------------------------------------------------------------------------------ every source
def tidy(text: str, code: bool = False) -> str:
    """Plain characters, plain white space; no control characters, drawn lines, bare links, private addresses.

    In prose, runs of blanks shrink to one; `code` keeps them, for they carry meaning there.
    """
    text = plain_characters(text)
    text = EMAIL.sub("someone@example.com", text)
    lines = [line.rstrip() for line in text.split("\n")]
    if not code:
        lines = [re.sub(r"(?<=\S) {2,}", " ", re.sub(r"_{4,}|(?<=\.{3})\.{2,}", "", line)).rstrip() for line in lines]
    kept = "\n".join(line for line in lines if not RULE.match(line) and not ONLY_A_LINK.match(line))
    return re.sub(r"\n{4,}", "\n\n\n", kept).strip("\n") if code else re.sub(r"\n{3,}", "\n\n", kept).strip()


def plain_characters(text: str) -> str:
    """NFC, `\\n` line ends, ordinary blanks; invisible, private-use and control characters removed."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    text = INVISIBLE.sub("", ODD_SPACES.sub(" ", text))
    unwanted = {c for c in set(text) - {"\n"} if unicodedata.category(c) in ("Cc", "Co", "Cn", "Cs")}
    return text.translate({ord(c): None for c in unwanted})


def unwrap(text: str) -> str:
    """Joins hard-wrapped lines; a blank line ends a paragraph."""
    paragraphs = re.split(r"\n\s*\n", text)
    return "\n\n".join(" ".join(p.split()) for p in paragraphs if p.strip())


def decode(raw: bytes) -> str:
    """UTF-8 (with or without a byte-order mark), or Windows-1252 where the bytes are not UTF-8."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("cp1252", errors="ignore")


def mostly_words(text: str, least: float = 0.6) -> bool:
    """True when at least `least` of the visible characters are letters: tables, dumps and drawings are not."""
    visible = "".join(text.split())
    return bool(visible) and sum(map(str.isalpha, visible)) >= least * len(visible)


def drop_tables(text: str) -> str:
    """Leaves out paragraphs that are tables, dumps or drawings, their captions, and pointers to moved sections."""
    caption = re.compile(r"^\s*(?:Table|Figure) [\dA-Z]+\.[\d.]* .{0,100}$|^.{0,60}section has moved.*", re.S)
    paragraphs = re.split(r"\n\s*\n(?=\s*\S)", text)
    return "\n\n".join(p for p in paragraphs if not caption.match(p) and not _is_dump(p))


def _is_dump(text: str) -> bool:
    n_digits = sum(c.isdigit() for c in text)
    return (len(text) > 40 and not mostly_words(text, 0.4)) or (len(text) > 200 and n_digits > 0.15 * len(text))


# ------------------------------------------------------------------------------------------ pieces
def cut(text: str, code: bool = False) -> Iterator[str]:
    """Pieces of at most MAX_PIECE characters, cut between paragraphs (in code: between top-level blocks).

    A scrap at the end joins the piece before it; a text that is a scrap as a whole yields nothing.
    """
    pieces: list[str] = []
    for block in _small_blocks(text, code):
        if pieces and len(pieces[-1]) + len(block) + 2 <= MAX_PIECE:
            pieces[-1] += block
        else:
            pieces.append(block)
    if len(pieces) > 1 and len(pieces[-1]) < MIN_PIECE:
        scrap = pieces.pop()
        pieces[-1] += scrap
    trimmed = (piece.strip("\n") if code else piece.strip() for piece in pieces)
    yield from (piece for piece in trimmed if len(piece) >= MIN_PIECE)


def _small_blocks(text: str, code: bool) -> Iterator[str]:
    """Blocks with their separator in front; one that is still too long is cut at lines, then after sentences."""
    borders = (r"(?=\n\n+(?=\S))", r"(?=\n\n)", r"(?=\n)") if code else (r"(?=\n\n)", r"(?=\n)", r"(?<=[.!?;:])(?= )")
    blocks = [text]
    for border in borders:
        blocks = [part for b in blocks for part in (re.split(border, b) if len(b) > MAX_PIECE // 2 else [b]) if part]
    yield from blocks
