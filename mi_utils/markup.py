"""Small trees of HTML: one description of a picture, drawn by Python in a file and by the browser in a widget.

A node is text or `[tag, attributes, *children]`, plain lists that travel as JSON. Text stays text in both: Python
escapes it, and `static/draw.js` puts it into text nodes. Only a few tags and attributes exist, none of which can run
anything or fetch anything, so a hostile token, label or corpus can at most look odd.
"""

import re
from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files as resources

Node = str | list

TAGS = frozenset(
    [
        "div",
        "span",
        "b",
        "i",
        "small",
        "p",
        "h3",
        "h4",
        "button",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "ul",
        "li",
        "details",
        "summary",
        "svg",
        "rect",
        "line",
        "text",
        "title",
    ]
)
ATTRIBUTES = frozenset(
    [
        "class",
        "title",
        "role",
        "tabindex",
        "lang",
        "dir",
        "open",
        "colspan",
        "viewBox",
        "x",
        "y",
        "x1",
        "x2",
        "y1",
        "y2",
        "width",
        "height",
        "aria-label",
        "data-latent",
        "data-row",
        "data-token",
        "data-answer",
        "data-atom",
    ]
)
INVISIBLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200c\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff]")
STYLES = re.compile(r"(background|color|width|outline|opacity):(?!.*url)[#\w(),.%\s-]+")


def element(tag: str, attributes: str | dict[str, object] = "", *children: Node | Iterable[Node] | None) -> list:
    """A node; children that are `None` are left out, iterables of nodes are spliced in.

    Args:
        attributes: by name; a string alone is the class. `style` takes one declaration such as `width:40%`.
    Raises:
        ValueError: a tag, an attribute or a style that is not on the list of harmless ones.

    >>> element("b", "loud", "x < y")
    ['b', {'class': 'loud'}, 'x < y']
    """
    attributes = {"class": attributes} if isinstance(attributes, str) and attributes else dict(attributes or {})
    attributes = {name: str(value) for name, value in attributes.items()}
    if tag not in TAGS or (odd := set(attributes) - ATTRIBUTES - {"style"}):
        raise ValueError(
            f"<{tag}> with {sorted(attributes)} is not allowed; unknown: {tag if tag not in TAGS else odd}"
        )
    if "style" in attributes and not STYLES.fullmatch(attributes["style"]):
        raise ValueError(f"style {attributes['style']!r} is not allowed; expected one declaration: 'width:40%'")
    return [tag, attributes, *_flat(children)]


def _flat(children: Iterable) -> Iterable[Node]:
    for child in children:
        if isinstance(child, str) or (isinstance(child, list) and len(child) > 1 and isinstance(child[1], dict)):
            yield child
        elif child is not None:
            yield from _flat(child)


def to_html(node: Node) -> str:
    """The node as HTML.

    >>> to_html(element("b", {"title": '"'}, "<img onerror=x>"))
    '<b title="&quot;">&lt;img onerror=x&gt;</b>'
    """
    if isinstance(node, str):
        return escape(node, quote=False)
    tag, attributes, *children = node
    inside = "".join(map(to_html, children))
    given = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
    return f"<{tag}{given}>{inside}</{tag}>"


def to_fragment(node: Node) -> str:
    """The node with its style: complete in itself, for a notebook's output or a page."""
    return f'<style>{style()}</style><div class="mi-widget">{to_html(node)}</div>'


@cache
def style() -> str:
    """The style sheet of all our widgets and cards."""
    return (resources("mi_utils") / "static" / "widgets.css").read_text(encoding="utf8")


def visible(token: str) -> str:
    """A token's text with line breaks, tabs and invisible characters shown as signs.

    Marks that turn the writing direction or have no width would rearrange or hide what stands beside them.

    >>> visible("a\\n\\u202eb")
    'a⏎\\\\u202eb'
    """
    token = token.replace("\n", "⏎").replace("\t", "⇥").replace("\r", "␍")
    return re.sub(
        r"[\x00-\x1f\x7f-\x9f\u061c\u200b\u200c\u200e\u200f\u2028-\u202f\u2060-\u206f\ufeff]", _code_point, token
    )


def _code_point(match: re.Match) -> str:
    return f"\\u{ord(match[0]):04x}"
