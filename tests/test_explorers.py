"""What the explorers do when their controls change, on the planted world; how they look is in the browser tests."""

import pytest

from mi_utils import explanations, explorers, indexing, language_worlds
from mi_utils.explanations import FIRES
from mi_utils.markup import to_html


@pytest.fixture(scope="module")
def planted():
    return language_worlds.planted_meanings()


@pytest.fixture
def index(planted, tmp_path):
    return indexing.build(
        planted.model, planted.dictionary, planted.text(60), planted.hook_name, tmp_path / "index", progress=False
    )


def test_prompt_explorer_shows_latents_and_makes_cards_on_demand(planted, index):
    box, view = explorers.prompt_explorer(planted.model, planted.dictionary, index, "the red dog").children
    assert view.tokens == [" the", " red", " dog"]
    assert view.latents[1] == [planted.names.index("colours")]
    assert planted.names.index("two faces") in view.latents[2]
    view.cards = {}
    view.latent = 0
    assert "latent 0" in to_html(view.cards["0"])
    box.value = ""
    assert "0 tokens" in view.message
    assert view.tokens == [" the", " red", " dog"]  # what was there stays
    box.value = "a blue cat"
    assert (view.message, view.tokens) == ("", [" a", " blue", " cat"])


def test_browser_searches_by_everything_and_says_what_it_cannot_read(planted, index):
    browser = explorers.latent_browser(index, planted.model, planted.dictionary)
    (kind, query), results, (label, save), note, card = (
        getattr(part, "children", None) or part for part in browser.children
    )
    for name, text, expected in (
        ("latent number", "3", "3"),
        ("token, as in ' Paris'", "Paris", str(planted.names.index("cities"))),
        ("prompt", "in Paris", str(planted.names.index("cities"))),
        ("density, as in 0.001-0.01", "0-1", "2"),
    ):
        kind.value, query.value = name, text
        assert results.message == ""
        assert f'data-latent="{expected}"' in to_html(results.tree)
    for name, text, complaint in (
        ("latent number", "99", "no latent 99"),
        ("latent number", "x", "no number"),
        ("density, as in 0.001-0.01", "x", "no range"),
        ("token, as in ' Paris'", "red dog", "2 tokens"),
    ):
        kind.value, query.value = name, text
        assert complaint in results.message
    results.clicked = {"latent": "1", "n": 1}
    label.value, note.value = "my label", "my note"
    save.click()
    assert index.notes[1] == {"label": "my label", "note": "my note"}
    assert "my label" in to_html(card.tree)
    kind.value, query.value = "label or note", "MY NO"
    assert 'data-latent="1"' in to_html(results.tree)


def test_a_quiz_is_answered_marked_once_and_kept(planted, index):
    observed = explanations.observe(
        planted.model, planted.dictionary, planted.text(40, seed=1).tokens, planted.hook_name
    )
    quiz = explanations.quiz(index, observed, 0)
    view, meaning, buttons = explorers.explanation_quiz(quiz, index).children
    finish, keep = buttons.children
    finish.click()
    assert "still open" in view.message
    for row, question in enumerate(quiz.questions):
        answer = "fires" if question.kind == FIRES else "silent"
        view.clicked = {"row": str(row), "answer": answer, "n": row}
    assert "mi-right" not in to_html(view.tree)
    finish.click()
    html = to_html(view.tree)
    assert html.count("mi-right") == len(quiz.questions)
    assert "1.00 [1.00, 1.00]" in html
    view.clicked = {"row": "0", "answer": "fires", "n": 99}  # too late
    assert to_html(view.tree) == html
    meaning.value = "colours"
    keep.click()
    assert index.labels == {0: "colours"}
