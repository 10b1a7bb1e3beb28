"""No text becomes markup: whatever a model, a corpus or a reader writes, every widget shows it as text."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mi_utils import cards, claims, exercises, explorers, meta_explorer, steering_console
from mi_utils import explanations as e
from mi_utils.markup import TAGS, element, to_fragment, to_html
from mi_utils.widgets import TreeView, checked

PACKAGE = Path(exercises.__file__).parent
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "</style><b onmouseover='alert(1)'>",
    "\"' onclick=alert(1) x='",
    "javascript:alert(1)",
    "&lt;script&gt;&#x3C;",
    "<!-- --><![CDATA[<svg/onload=alert(1)>]]>",
]


class Reader(HTMLParser):
    """What a browser would see: tags, attributes, texts."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.texts = set(), {}, []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= dict(attrs)
        self.texts += [value for _, value in attrs if value]

    def handle_data(self, data):
        self.texts.append(data)


def assert_harmless(html, text=None):
    seen = Reader(html)
    allowed = {tag.lower() for tag in TAGS} | {"style", "pre", "code", "br"}
    assert seen.tags <= allowed, seen.tags - allowed
    assert not [name for name in seen.attributes if name.startswith("on") or name in ("href", "src", "srcdoc")]
    assert text is None or text in "".join(seen.texts), "the text is not shown as it is"


def quiz(text):
    snippet = cards.Snippet(text, (text, text), np.array([0.0, 1.0], dtype=np.float32), 1, text)
    return e.Quiz(3, [snippet] * 2, [e.Question(snippet, e.FIRES), e.Question(snippet, e.SILENT)])


def written(text):
    return steering_console.Written(torch.tensor([1]), text, 1.0, 0.0)


SINKS = {
    "quiz": lambda t: to_fragment(explorers.quiz_tree(quiz(t), {0: True}, None)),
    "quiz widget": lambda t: explorers.explanation_quiz(quiz(t)).static_html(),
    "search results": lambda t: to_html(
        explorers.table_tree(pd.DataFrame({"label": [t]}, index=pd.Index([1], name="l")))
    ),
    "reading": lambda t: to_html(meta_explorer.reading_tree({t: 0.5}, "")),
    "pairs": lambda t: to_html(
        steering_console.pairs_tree({(t, t): 0.0, (t, "b"): 1.0, ("b", t): 1.0, ("b", "b"): 0.0})
    ),
    "console": lambda t: to_html(
        steering_console.console_tree(
            t, [(t, 0.5)], "sum", written(t), written(t), steering_console.Effects({t: 1.0}, {t: 1.0}, 0.1)
        )
    ),
    "card": lambda t: cards.Card(t, facts={t: t}, label=t, note=t, promoted=[(t, 1.0)])._repr_html_(),
    "claim": lambda t: table_of_claims(t)._repr_mimebundle_()["text/html"],
    "prediction": lambda t: exercises._choices_html(exercises.Prediction(t, [t, "b"])),
    "revealed": lambda t: exercises.Prediction("?", [t, "b"]).reveal(t, because=t)._repr_html_(),
    "hint": lambda t: exercises.hint(t, t)._repr_html_(),
    "solution": lambda t: exercises.reveal(t)._repr_html_(),
    "check": lambda t: exercises.check(lambda _: t, [(1,)], reference=lambda _: "right")._repr_html_(),
    "tree": lambda t: TreeView(element("p", {"title": t}, t)).static_html(),
}


def table_of_claims(text):
    table = claims.ClaimTable("01_x")
    table.add(text, value=1.0, control=0.0, interval=None, unit=text)
    return table.table()


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("name", SINKS)
def test_a_hostile_text_is_shown_as_text(name, text):
    html = SINKS[name](text)
    shown = repr(text) if name == "check" else text
    assert_harmless(html, shown)


TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20))
TREES = st.recursive(
    TEXTS,
    lambda inner: st.builds(
        lambda tag, title, children: element(tag, {"title": title}, *children),
        st.sampled_from(sorted(TAGS)),
        TEXTS,
        st.lists(inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=200, derandomize=True, database=None, deadline=None)
@given(TREES)
def test_any_tree_of_any_texts_is_harmless(tree):
    assert_harmless(to_html(tree))


NAMES = st.sampled_from(["script", "iframe", "a", "onclick", "href", "src", "style", "srcdoc", "form", "DIV", "b "])


@settings(max_examples=100, derandomize=True, database=None, deadline=None)
@given(tag=st.one_of(NAMES, st.text(max_size=8)), name=st.one_of(NAMES, st.text(max_size=8)), value=TEXTS)
def test_a_tree_put_together_by_hand_is_checked(tag, name, value):
    for node in ([tag, {}, value], ["div", {name: value}]):
        try:
            assert_harmless(to_html(checked(node)))
        except ValueError as error:
            assert "not allowed" in str(error)  # noqa: PT017 - refusing is as good as drawing


def test_html_is_written_by_hand_in_few_places():
    users = {path.stem for path in PACKAGE.glob("*.py") if re.search(r"\bHTML\(", path.read_text(encoding="utf8"))}
    assert users <= {"exercises", "plots"}, "draw with markup.element, which cannot run anything"
