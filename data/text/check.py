"""What a clean piece of text may not contain. The builder leaves out what fails; the tests read every shipped piece."""

import re
import unicodedata

from clean import EMAIL, RULE, mostly_words

TAG = re.compile(r"</?(?:p|br|div|span|ref|a|b|i|em|strong|td|tr|table|sup|sub|li|ul|ol|h\d)\b[^<>]*>", re.I)
MOJIBAKE = re.compile(r"Ã[\u0080-\u00bf]|â€[\u0080-\u2122]|Â[\u00a0-\u00bf]")
WIKI = re.compile(r"\{\{|\}\}|\[\[|\]\]|'{3,}")
HTML_IS_THE_TOPIC = frozenset({"python", "django", "sqlalchemy", "postgres", "sqlite", "jargon"})
LONGEST_WORD, LONGEST_CODE_LINE = 150, 300
LONGEST_PIECE = 6_500  # MAX_PIECE of clean.py and a scrap


def problems(source: str, text: str) -> list[str]:
    """Names of the rules the piece breaks; an empty list is good news."""
    kinds = {unicodedata.category(c) for c in set(text) - {"\n"}}
    rules = {
        "control characters": bool(kinds & {"Cc", "Cf", "Co", "Cs"}),
        "replacement character": "\ufffd" in text,
        "mojibake": bool(MOJIBAKE.search(text)),
        "tabs or blanks at line ends": bool(re.search(r"\t|[^\S\n]$", text, re.M)),
        "many empty lines": "\n\n\n\n" in text,
        "drawn lines": any(RULE.match(line) for line in text.split("\n")),
        "private address": "@" in text and bool(EMAIL.search(text)),
        "tags": source not in HTML_IS_THE_TOPIC and bool(TAG.search(text)),
        "wiki mark-up": source.startswith(("wiki", "chat_wiki")) and bool(WIKI.search(text)),
        "endless word": any(len(word) > LONGEST_WORD for word in text.split()),
        "few letters": not mostly_words(text, 0.55 if source in HTML_IS_THE_TOPIC else 0.65),
        "long code line": source == "python" and max(map(len, text.split("\n"))) > LONGEST_CODE_LINE,
        "too long": len(text) > LONGEST_PIECE,
    }
    return [name for name, broken in rules.items() if broken]
