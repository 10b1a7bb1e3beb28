"""Cards of any direction: what is known is shown, what is not is left out, and text stays text."""

import numpy as np
import pytest

from mi_utils.cards import Card, Histogram, Snippet
from mi_utils.markup import element, to_html, visible

HOSTILE = '<img src=x onerror="alert(1)">'


def snippet(band="top", acts=(0.0, 4.0, 1.0), tokens=("a", " b", " c"), mark=1):
    return Snippet(band, tuple(tokens), np.array(acts), mark, "novels")


def test_a_card_of_nothing_but_a_name():
    html = Card("probe for truth")._repr_html_()
    assert "probe for truth" in html
    for absent in ("Raises", "Activations", "Nearest", "Where it fires", "nan"):
        assert absent not in html.partition("</style>")[2]


def test_a_full_card_shows_every_part():
    card = Card(
        "latent 7",
        facts={"fires on": "1%"},
        snippets=[snippet(), snippet("random", mark=2)],
        histogram=Histogram(np.array([1.0, 2.0, 4.0]), np.array([3, 1])),
        promoted=[(" b", 0.5)],
        suppressed=[(" c", -0.25)],
        effect_of_chance=0.4,
        neighbours=[(3, 0.9)],
        cosine_of_chance=0.2,
        co_firing=[(4, 0.8)],
        sources=[("novels", 0.01), ("code", 0.0)],
        label="b",
        note="fires on b",
        names={3: "near b"},
    )
    body = card._repr_html_().partition("</style>")[2]
    for part in ("latent 7", "1%", "+0.50", "-0.25", "3 · 0.90 near b", "4 · 0.80", "1.000%", "fires on b", "random"):
        assert part in body
    assert "a random direction reaches 0.40" in body
    assert "a random direction reaches 0.20" in body
    assert body.count("mi-hist-bar") == 2
    assert ">code<" not in body  # it never fires there


def test_darkness_is_the_share_of_the_largest_activation_on_the_card():
    body = to_html(Card("x", snippets=[snippet(acts=(0.0, 4.0, 1.0)), snippet(acts=(0.0, 2.0, 0.0))]).tree())
    dark, light, half = (f"rgba(0,114,178,{0.1 + 0.55 * share:.2f})" for share in (1, 0.25, 0.5))
    assert [body.count(shade) for shade in (dark, light, half)] == [1, 1, 1]
    assert "mi-mark" in body


def test_every_string_stays_text():
    card = Card(
        HOSTILE,
        facts={HOSTILE: HOSTILE},
        snippets=[snippet(tokens=(HOSTILE,) * 3)],
        promoted=[(HOSTILE, 1.0)],
        sources=[(HOSTILE, 0.5)],
        neighbours=[(1, 0.5)],
        label=HOSTILE,
        note=HOSTILE,
        names={1: HOSTILE},
    )
    body = card._repr_html_().partition("</style>")[2]
    assert "<img" not in body
    assert body.count("&lt;img") == 11


def test_markup_refuses_what_could_run_or_fetch():
    for tag, attributes in (
        ("script", {}),
        ("img", {}),
        ("a", {}),
        ("b", {"onclick": "x"}),
        ("b", {"style": "background:url(x)"}),
        ("b", {"style": "color:red;position:fixed"}),
    ):
        with pytest.raises(ValueError, match="not allowed"):
            element(tag, attributes)


def test_text_that_looks_like_a_node_is_text():
    assert element("div", "", ["b", "bold?"]) == ["div", {}, "b", "bold?"]


def test_invisible_characters_are_shown():
    assert visible("a\u202eb\u200b\t\n") == "a\\u202eb\\u200b⇥⏎"
    assert visible("👩\u200d🔬") == "👩\u200d🔬"
