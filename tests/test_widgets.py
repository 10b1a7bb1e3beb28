"""The widgets' Python side: what travels to the page, and that no string in it can become markup."""

import json
import re

import ipywidgets
import pytest

from mi_utils.markup import element
from mi_utils.widgets import PromptView, Stack, TreeView, module

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror=window.hacked=1>"


@pytest.fixture
def view():
    view = PromptView()
    view.show(["The", " cat"], [[3], [3, 17]], [[1.23456], [2.0, 0.5]], [[4.0], [1.0, 12.344]], {17: "cats"})
    return view


def state_of(html):
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)[1])


def test_show_hands_over_all_active_latents_in_one_message(view):
    messages = []
    view.comm.send = lambda data=None, **_: messages.append(data)
    view.show(["a"], [[5]], [[0.1]], [[7.0]], {5: "five"})
    assert [message["method"] for message in messages] == ["update"]
    expected = {"tokens": ["a"], "latents": [[5]], "acts": [[0.1]], "bits": [[7.0]], "names": {"5": "five"}}
    assert messages[0]["state"].items() >= expected.items()


def test_show_rounds_and_makes_invisible_characters_visible(view):
    assert (view.acts, view.bits) == ([[1.2346], [2.0, 0.5]], [[4.0], [1.0, 12.34]])
    view.show(["a\n\u202eb"], [[]], [[]], [[]], {3: "\u202ex"})
    assert (view.tokens, view.names) == (["a⏎\\u202eb"], {"3": "\\u202ex"})


def test_another_prompt_keeps_the_latent_and_drops_the_token_and_the_message(view):
    view.token, view.latent, view.message = 1, 17, "no such token"
    view.show(["a"], [[5]], [[0.1]], [[7.0]])
    assert (view.token, view.latent, view.message, view.names) == (-1, 17, "", {})


def test_an_empty_prompt_is_a_prompt(view):
    view.show([], [], [], [])
    assert state_of(view.static_html())["tokens"] == []


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        (([[3]], [[1.0]], [[4.0]]), "2 tokens"),
        (([[3], [4]], [[1.0], []], [[4.0], [2.0]]), r"\[1, 0\] acts"),
        (([[3], []], [[1.0], []], [[], []]), r"\[0, 0\] bits"),
        (([[3], []], [[1.0], []], [[float("inf")], []]), "not finite"),
        (([[3], []], [[float("nan")], []], [[1.0], []]), "not finite"),
    ],
)
def test_show_refuses_lists_that_do_not_fit_and_changes_nothing(view, lists, said):
    with pytest.raises(ValueError, match=said):
        view.show(["The", " cat"], *lists)
    assert view.latents == [[3], [3, 17]]


def test_the_twin_of_a_prompt_carries_all_it_needs_and_no_markup(view):
    view.show([HOSTILE], [[3]], [[1.0]], [[2.0]], {3: HOSTILE})
    view.cards = {"3": element("p", {"title": HOSTILE}, HOSTILE)}
    view.message = HOSTILE
    html = view.static_html()
    state = state_of(html)
    assert (state["tokens"], state["names"]) == ([HOSTILE], {"3": HOSTILE})
    assert (state["message"], state["cards"]) == (HOSTILE, {"3": ["p", {"title": HOSTILE}, HOSTILE]})
    assert html.count("<script") == html.count("</script") == 2
    assert "<img" not in html
    assert "http" not in html.replace("http://www.w3.org/2000/svg", "")


def test_the_twin_of_a_prompt_shows_its_tokens_without_scripts(view):
    html = re.sub(r"<script.*?</script>|<style.*?</style>", "", view.static_html(), flags=re.DOTALL)
    assert '<span class="mi-tok"> cat</span>' in html
    assert "cannot be clicked" in html


def test_the_twin_of_a_tree_is_the_tree():
    html = TreeView(element("button", {"data-answer": "a"}, HOSTILE)).static_html()
    assert '<button data-answer="a">&lt;/script&gt;' in html
    assert "<script" not in html


@pytest.mark.parametrize("node", [["script", {}, "x"], ["p", {"onclick": "x"}], ["p", {}, ["img", {"src": "x"}]]])
def test_a_tree_made_by_hand_obeys_the_lists_too(node):
    with pytest.raises(ValueError, match="not allowed"):
        TreeView(node)
    with pytest.raises(ValueError, match="not allowed"):
        PromptView(cards={"1": node})


def test_both_forms_are_offered_to_the_notebook(view):
    for widget in (view, TreeView("text")):
        data, _ = widget._repr_mimebundle_()
        assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == widget.model_id
        assert '<div class="mi-widget' in data["text/html"]


def test_a_stack_shows_the_twins_of_its_parts(view):
    tree = TreeView("a tree")
    data = Stack([ipywidgets.Text("control"), view, Stack([tree])])._repr_mimebundle_()
    assert data["text/html"] == view.static_html() + tree.static_html()
    assert "application/vnd.jupyter.widget-view+json" in data


def test_a_click_reaches_the_callback_each_time_and_an_error_is_shown():
    tree, heard = TreeView(), []
    tree.on_click(heard.append)
    tree.set_state({"clicked": {"latent": "17", "n": 1}})
    tree.set_state({"clicked": {"latent": "17", "n": 2}})
    assert heard == [{"latent": "17", "n": 1}, {"latent": "17", "n": 2}]

    tree = TreeView()
    tree.on_click(lambda clicked: {}[clicked["latent"]])
    with pytest.raises(KeyError):
        tree.clicked = {"latent": "17", "n": 1}
    assert tree.message == "KeyError: '17'"


@pytest.mark.parametrize("name", ["prompt", "tree"])
def test_a_module_needs_nothing_from_elsewhere_and_writes_no_markup(name):
    source = module(name)
    assert not re.search(r"\bimport\b|innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|</script", source)
    assert source.count("export ") == 1
