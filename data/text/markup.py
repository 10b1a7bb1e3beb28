"""Text out of mark-up: HTML pages, reStructuredText, and the wiki language of encyclopedia dumps."""

import html
import re
from collections.abc import Iterator
from html.parser import HTMLParser


def _names(words: str) -> frozenset[str]:
    return frozenset(words.split())


# ------------------------------------------------------------------------------------------ HTML
class _Html(HTMLParser):
    """Collects the readable text of a page: headings, paragraphs, lists and listings, in order."""

    BLOCKS = _names("p div li tr h1 h2 h3 h4 h5 h6 ul ol dl dt dd br pre section blockquote hr")
    LINES = _names("br li dt dd tr")  # start on a new line, without an empty line above
    SKIPPED = _names("script style head nav svg table form button")
    SKIPPED_CLASSES = _names("nosearch navheader navfooter toc fancy_toc")
    VOID = _names("br hr img input meta link wbr col")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.skipping: list[str] = []  # open tags inside a skipped element, outermost first
        self.listing = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        classes = set((dict(attrs).get("class") or "").split())
        if self.skipping or tag in self.SKIPPED or classes & self.SKIPPED_CLASSES:
            if not self.skipping or tag == self.skipping[0]:
                self.skipping += [tag] if tag not in self.VOID else []
            return
        self.listing += tag == "pre"
        self._border(tag)

    def handle_endtag(self, tag: str) -> None:
        if self.skipping:
            if tag == self.skipping[-1]:
                self.skipping.pop()
            return
        self.listing -= tag == "pre" and self.listing > 0
        self._border(tag)

    def _border(self, tag: str) -> None:
        if tag in self.BLOCKS:
            self.parts.append("\n" if tag in self.LINES else "\n\n")

    def handle_data(self, data: str) -> None:
        if not self.skipping:
            self.parts.append(data if self.listing else re.sub(r"\s+", " ", data))


def html_to_text(page: str) -> str:
    """The text of a page without tables, menus and listings that hold a drawn table."""
    page = re.sub(r"<pre[^>]*>(?:(?!</pre>).)*-\+-.*?</pre>", "", page, flags=re.S)  # output of a database shell
    parser = _Html()
    parser.feed(page)
    return re.sub(r"\n\s*\n(?=\s*\S)", "\n\n", re.sub(r"(?m)^ (?=\S)", "", "".join(parser.parts)))


def strip_tags(text: str) -> str:
    """Mark-up inside a data field: tags go, entities become characters."""
    return html.unescape(re.sub(r"<[^>]+>", "", re.sub(r"<br\s*/?>|</p>", "; ", text)))


# ------------------------------------------------------------------------------------------ reStructuredText
LITERAL = _names("code-block code sourcecode console parsed-literal doctest testcode snippet highlight-sql")
SPOKEN = _names("note warning tip important caution hint seealso admonition")
HIDDEN = _names(
    "index toctree image figure include only contents meta raw currentmodule module highlight rubric container tags "
    "change changelog default-role automodule autoclass autofunction automethod autodata autoattribute "
    "versionadded versionchanged deprecated templatefilter sphinx csv-table table list-table"
)
HEADING_RULE = re.compile(r"^([=\-~^\"'`#*+.:])\1{2,}\s*$")


def rst_to_text(source: str) -> str:
    """reStructuredText as a reader sees it: no directives, labels, roles, tables or heading rules; lines joined."""
    lines = list(_without_tables(source.expandtabs(4).split("\n")))
    return "\n\n".join(block for block in _rst_blocks(lines) if block.strip())


def _without_tables(lines: list[str]) -> Iterator[str]:
    """A table runs from one rule of equal signs to the rule that has an empty line below it."""
    inside = False
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        rule = re.match(r"^\s*=+( +=+)+\s*$", line)
        if not (inside or rule or re.match(r"^\s*(\+[-=]|\|)", line)):
            yield line
        inside = bool(following.strip()) if rule else inside


def _rst_blocks(lines: list[str]) -> Iterator[str]:
    literal_follows = False
    for block in _split_blocks(lines):
        if block[0].startswith(".."):
            yield from _rst_directive(block)
        elif block[0].startswith(" "):
            listing, text = _split_listing(_dedent(block)) if literal_follows else ([], _dedent(block))
            yield "\n".join("    " + line if line else "" for line in listing).rstrip()
            yield from _rst_blocks(text)
        else:
            yield _rst_paragraph(block)
        literal_follows = not block[0].startswith(" ") and block[-1].rstrip().endswith("::")


def _split_listing(lines: list[str]) -> tuple[list[str], list[str]]:
    """A listing and what comes after it: in a list item the listing is indented deeper than the text below it."""
    if not lines[0].startswith(" "):
        return lines, []
    end = next((i for i, line in enumerate(lines) if line and not line.startswith(" ")), len(lines))
    return _dedent(lines[:end]), lines[end:]


def _split_blocks(lines: list[str]) -> Iterator[list[str]]:
    """Paragraphs, indented bodies, and directives with their bodies."""
    i = 0
    while i < len(lines):
        if not lines[i].strip():
            i += 1
            continue
        start, i = i, i + 1
        if lines[start].startswith((" ", ".. ")):  # up to the next line that is not indented
            while i < len(lines) and (not lines[i].strip() or lines[i].startswith(" ")):
                i += 1
        else:
            while i < len(lines) and lines[i].strip() and not lines[i].startswith(".. "):
                if lines[i].startswith(" ") and not re.match(r"[*\-+#\d]", lines[start]):
                    break  # the body of a definition
                i += 1
        block = lines[start:i]
        while not block[-1].strip():
            block.pop()
        yield block


def _rst_directive(block: list[str]) -> Iterator[str]:
    head = re.match(r"^\.\. (?:([\w-]+:)?([\w-]+)::)\s*(.*)$", block[0])
    if not head or head[2] in HIDDEN:
        return
    name, argument = head[2], head[3]
    body = [line for line in _dedent(block[1:]) if not re.match(r"^:[\w-]+:(?:\s|$)", line)]
    if name in LITERAL:
        yield "\n".join("    " + line if line else "" for line in body).strip("\n")
    elif name in SPOKEN:
        label = argument if name == "admonition" else {"seealso": "See also"}.get(name, name.capitalize())
        yield from _labelled(label, list(_rst_blocks(body if name == "admonition" else [argument, *body])))
    else:
        yield _rst_inline(argument)
        yield from _rst_blocks(body)


def _labelled(label: str, paragraphs: list[str]) -> Iterator[str]:
    if paragraphs:
        yield f"{label}: {paragraphs[0]}"
        yield from paragraphs[1:]


def _rst_paragraph(lines: list[str]) -> str:
    """Lines joined; heading rules dropped; every bullet on a line of its own."""
    kept = [line.strip() for line in lines if not HEADING_RULE.match(line)]
    kept = [line for line in kept if not re.match(r"^:[\w ]+:(\s|$)", line)]
    joined = ""
    for line in kept:
        bullet = re.match(r"^(?:[*\-+]|\d+\.|#\.) ", line)
        joined += ("\n" if bullet else " ") * bool(joined) + line
    return _rst_inline(re.sub(r"(?m)^[*+] ", "- ", joined))


def _rst_inline(text: str) -> str:
    text = re.sub(r":(?:ref|doc):`[^`<]*?([\w.-]+)`", lambda m: re.sub("[_-]", " ", m[1]), text)  # a label
    text = re.sub(r":[\w:+-]+:`[~!]?([^`<]*?)\s*<[^`>]*>`", r"\1", text)  # :role:`text <target>`
    text = re.sub(r":[\w:+-]+:`~(?:[\w.]*\.)?([^`]+)`", r"\1", text)  # :role:`~package.name`
    text = re.sub(r":[\w:+-]+:`!?(?:_\w+)?\.?([^`]+)`", r"\1", text)
    text = re.sub(r"`([^`<]+?)\s*<[^`>]*>`_+", r"\1", text)  # `text <link>`_
    text = re.sub(r"`([^`]+)`_+", r"\1", text.replace("``", "`"))
    text = re.sub(r"(?<![\w`.])([A-Z][\w.]*|[a-z]{6,})_(?=[\s.,;:)]|$)", r"\1", text)  # Name_
    text = re.sub(r"(?<![*\w])\*{1,2}(?=\S)([^*\n]+?)(?<=\S)\*{1,2}(?![*\w])", r"\1", text)
    text = re.sub(r"\|([\w ]+)\|_*", r"\1", text)
    return re.sub(r"\s*::$", ":", text) if text.strip() != "::" else ""


def _dedent(lines: list[str]) -> list[str]:
    margins = [len(line) - len(line.lstrip()) for line in lines if line.strip()]
    return [line[min(margins) :] for line in lines] if margins else []


# ------------------------------------------------------------------------------------------ wiki mark-up
LAST_SECTIONS = "See also|References|External links|Further reading|Notes|Bibliography|Footnotes|Sources|Gallery"


def wiki_to_text(source: str) -> str:
    """Running text of an encyclopedia article: no templates, tables, files, references, or closing sections."""
    text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref[^>]*>.*?</ref>", "", source, flags=re.S)
    text = re.sub(r"<(math|gallery|timeline|nowiki|code|pre|source|table|div)[^>]*>.*?</\1>", "", text, flags=re.S)
    text = _until_stable(r"\{\{[^{}]*\}\}", text)
    text = _until_stable(r"\{\|(?:(?!\{\|)(?!\|\}).)*\|\}", text)
    text = _until_stable(r"\[\[(?:File|Image|Category|[a-z\-]{2,12}):(?:[^\[\]]|\[\[[^\[\]]*\]\])*\]\]", text)
    text = re.sub(r"\[\[(?:[^|\[\]]*\|)?([^\[\]]*)\]\]", r"\1", text)
    text = re.sub(r"\[(?:https?|ftp)://\S+\s?([^\]]*)\]", r"\1", text)
    text = re.sub(r"<sup>([^<]*)</sup>", r"^\1", re.sub(r"'{2,}", "", text))
    text = html.unescape(re.sub(r"<[^>]+>", "", text))
    text = re.split(rf"\n==+\s*(?:{LAST_SECTIONS})\s*==+", text)[0]
    return mend_gaps(_drop_empty_sections(text))


def _until_stable(pattern: str, text: str) -> str:
    while (shorter := re.sub(pattern, "", text, flags=re.S | re.I)) != text:
        text = shorter
    return text


def _drop_empty_sections(text: str) -> str:
    """Short list items go (years, members, titles: names without sentences), then headings with nothing below."""
    text = re.sub(r"(?m)^[*#:;|!]+ *(.{80,})$", r"\n- \1\n", text)
    text = re.sub(r"(?m)^[*#:;|!].*$", "", text)
    text = re.sub(r"(?m)^(=+)\s*(.*?)\s*=+\s*$", r"\n\n\1\2\n\n", text)
    paragraphs = [p.strip() for p in text.split("\n\n") if p.strip()]
    kept = []
    for this, following in zip(paragraphs, [*paragraphs[1:], "="], strict=True):
        deeper = len(following) - len(following.lstrip("=")) > len(this) - len(this.lstrip("="))
        if not this.startswith("=") or not following.startswith("=") or (deeper and following != "="):
            kept.append(this)
    return "\n\n".join(p.lstrip("=") for p in kept if p.lstrip("="))


def mend_gaps(text: str) -> str:
    """Closes what a removed template or reference leaves behind: "( , 1900)", "()", " .", " ,"."""
    text = re.sub(r"\(\s*[,;:]*\s*(?:or|and)?\s*[,;]*\s*\)", "", re.sub(r"\(\s*[,;:]+\s*", "(", text))
    return re.sub(r"(?<=\w) +([.,;:])(?=\s|$)", r"\1", re.sub(r"\s+\)", ")", text))
