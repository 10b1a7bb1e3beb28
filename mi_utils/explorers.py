"""The interactive views of latents: a live prompt, a browser of all latents, a quiz about one.

Each wires controls to the functions of `latents` and `explanations`; what it shows is drawn by `cards` and `widgets`.
Nothing here is needed to compute a number. Taught in `02_inspect_latents`.
"""

from collections.abc import Callable
from math import isnan
from typing import TYPE_CHECKING

import ipywidgets
import numpy as np
import pandas as pd
import torch

from mi_utils.cards import Card, fact, snippet_line
from mi_utils.claims import format_number
from mi_utils.explanations import NEAR_MISS, Question, Quiz, Score, token_rule
from mi_utils.hooks import fast_reader
from mi_utils.latents import LatentIndex, read_prompt
from mi_utils.markup import Node, element, visible
from mi_utils.sae import Dictionary
from mi_utils.widgets import PromptView, Stack, TreeView, beside

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

WIDE = ipywidgets.Layout(width="100%", max_width="900px")
EMBEDDED_CARDS = 12  # of tokens' most specific latents, so that an exported page can show them


def prompt_explorer(
    model: "TransformerBridge",
    dictionary: Dictionary,
    index: LatentIndex,
    prompt: str = "The Eiffel Tower is in Paris.",
) -> Stack:
    """Type a text: each token's latents, a click away; each latent's card, another click away."""
    box = ipywidgets.Text(prompt, description="prompt", continuous_update=False, layout=WIDE)
    view = PromptView()
    read = _reader(model, index)

    def show_prompt(_change: object = None) -> None:
        try:
            seen = read_prompt(model, dictionary, index, box.value, read=read)
        except ValueError as error:
            view.message = str(error)
            return
        active = {latent for latents in seen.latents for latent in latents}
        hints = {latent: f"strongest on “{index.strongest_token(latent)}”" for latent in active}
        view.show(seen.tokens, seen.latents, seen.acts, seen.bits, hints | index.labels)

    def show_card(change: dict) -> None:
        latent = str(change["new"])
        if change["new"] >= 0 and latent not in view.cards:
            view.cards = view.cards | {latent: index.card(change["new"]).tree()}

    box.observe(show_prompt, "value")
    view.observe(show_card, "latent")
    show_prompt()
    best = {latents[int(np.argmax(bits))] for latents, bits in zip(view.latents, view.bits, strict=True) if bits}
    view.cards = {str(latent): index.card(latent).tree() for latent in sorted(best)[:EMBEDDED_CARDS]}
    return Stack([box, view])


def _reader(model: "TransformerBridge", index: LatentIndex) -> Callable:
    sample = torch.tensor([[index.about["separator"]] * 4])
    return fast_reader(model, [index.about["hook_name"]], sample.to(model.cfg.device))


def latent_browser(
    index: LatentIndex,
    model: "TransformerBridge | None" = None,
    dictionary: Dictionary | None = None,
    *,
    latent: int | None = None,
) -> Stack:
    """Find latents by number, token, density, label, neighbour or prompt; read their cards; keep notes.

    Args:
        model, dictionary: both are needed to search by prompt.
        latent: whose card is shown first; by default that of median density.
    """
    read = _reader(model, index) if model is not None and dictionary is not None else None

    def by_prompt(text: str) -> pd.DataFrame:
        return read_prompt(model, dictionary, index, text, read=read).most_specific()

    searches = {
        "density, as in 0.001-0.01": lambda text: index.find_density(*_bounds(text)),
        "token, as in ' Paris'": lambda text: index.find_token(text.strip("'\"") or " "),
        "latent number": lambda text: index.table.loc[[index.check(_number(text))]],
        "label or note": index.find_note,
        "neighbours of latent number": lambda text: index.neighbours(_number(text)),
    } | ({"prompt": by_prompt} if read else {})
    kind = ipywidgets.Dropdown(options=list(searches), description="search by")
    query = ipywidgets.Text("0.001-0.01", description="for", continuous_update=False)
    label = ipywidgets.Text(description="label", continuous_update=False)
    note = ipywidgets.Text(description="note", continuous_update=False, layout=WIDE)
    save = ipywidgets.Button(description="save", tooltip="saved beside the index, in notes.json")
    results, card = TreeView(), TreeView()
    shown = {"latent": 0}

    def search(_change: object = None) -> None:
        try:
            results.message, results.tree = "", table_tree(searches[kind.value](query.value))
        except ValueError as error:
            results.message = str(error)

    def show(latent: int) -> None:
        shown["latent"] = latent
        saved = index.notes.get(latent, {})
        label.value, note.value = saved.get("label", ""), saved.get("note", "")
        card.tree = index.card(latent).tree()

    def keep(_button: ipywidgets.Button) -> None:
        index.annotate(shown["latent"], label.value, note.value)
        show(shown["latent"])

    for control in (kind, query):
        control.observe(search, "value")
    for view in (results, card):
        view.on_click(lambda clicked: show(int(clicked["latent"])) if "latent" in clicked else None)
    save.on_click(keep)
    search()
    show(typical(index) if latent is None else latent)
    find, notes = beside(kind, query), beside(label, save)
    return Stack([find, results, notes, note, card])


def typical(index: LatentIndex) -> int:
    """The latent of median density among those that fire."""
    density = index.table.density
    alive = density[density > 0].sort_values().index
    return int(alive[len(alive) // 2]) if len(alive) else 0


def _bounds(text: str) -> tuple[float, float]:
    try:
        low, high = map(float, text.split("-", 1))
    except ValueError as error:
        raise ValueError(f"{text!r} is no range of densities; write one such as 0.001-0.01") from error
    return low, high


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is no number of a latent") from error


def table_tree(table: pd.DataFrame) -> Node:
    """A table of latents whose rows can be clicked; a column of empty texts is left out."""
    table = table.loc[:, [not (column == "").all() for _, column in table.items()]]
    if table.empty:
        return element("p", "mi-note", "nothing found")
    names = [str(name).replace("_", " ") for name in (table.index.name, *table.columns)]
    head = element("tr", "", (element("th", "", name) for name in names))
    rows = [
        element(
            "tr",
            {"data-latent": latent, "title": f"show the card of latent {latent}"},
            element("td", "", str(latent)),
            (element("td", "", visible(v) if isinstance(v, str) else format_number(float(v))) for v in row),
        )
        for latent, row in zip(table.index, table.itertuples(index=False), strict=True)
    ]
    return element("table", "mi-table", element("thead", "", head), element("tbody", "", rows))


def explanation_quiz(quiz: Quiz, index: LatentIndex | None = None) -> Stack:
    """Read half of what a latent does, say what it means, and be marked on the other half.

    Args:
        index: where to keep the explanation as the latent's label; by default it is not kept.
    """
    explanation = ipywidgets.Text(description="it means", continuous_update=False, layout=WIDE)
    finish = ipywidgets.Button(description="mark my answers", button_style="primary")
    keep = ipywidgets.Button(description="keep as label", disabled=True)
    view, answers, state = TreeView(), {}, {"score": None}

    def draw() -> None:
        view.tree = quiz_tree(quiz, answers, state["score"])

    def answer(clicked: dict) -> None:
        if state["score"] is None and "answer" in clicked:
            answers[int(clicked["row"])] = clicked["answer"] == "fires"
            draw()

    def mark(_button: ipywidgets.Button) -> None:
        if missing := len(quiz.questions) - len(answers):
            view.message = f"{missing} of {len(quiz.questions)} questions are still open"
            return
        view.message = ""
        state["score"] = quiz.score([answers[row] for row in range(len(quiz.questions))])
        keep.disabled = index is None
        draw()

    def save(_button: ipywidgets.Button) -> None:
        note = f"quiz: {state['score'].accuracy:.2f} right, where guessing has 0.50"
        index.annotate(quiz.latent, explanation.value, note)
        view.message = f"kept as the label of latent {quiz.latent}"

    view.on_click(answer)
    finish.on_click(mark)
    keep.on_click(save)
    draw()
    return Stack([view, explanation, beside(finish, keep)])


def quiz_tree(quiz: Quiz, answers: dict[int, bool], score: Score | None) -> Node:
    """The quiz as it stands: what may be read, the questions, and, once marked, the result."""
    shown = Card(f"latent {quiz.latent}: read these", snippets=quiz.shown).tree()
    questions = [
        _question(row, question, answers.get(row), marked=score is not None)
        for row, question in enumerate(quiz.questions)
    ]
    heading = element("h4", "", "Does it fire on the outlined token?")
    return element("div", "", shown, score and _result(quiz, score), heading, questions)


def _question(row: int, question: Question, given: bool | None, *, marked: bool) -> Node:
    buttons = [
        element(
            "button",
            {
                "data-row": row,
                "data-answer": answer,
                "class": "mi-chosen" if given is (answer == "fires") else "",
                "aria-label": f"question {row + 1}: {answer}",
            },
            answer,
        )
        for answer in ("fires", "silent")
    ]
    verdict = None
    if marked:
        right = given == question.fires
        why = " (near miss)" if question.kind == NEAR_MISS else ""
        text = f"{'fires' if question.fires else 'silent'}{why}"
        verdict = element("b", "mi-right" if right else "mi-wrong", text)
    return element("div", "mi-question", snippet_line(question.snippet), buttons, verdict)


def _result(quiz: Quiz, score: Score) -> Node:
    rule = quiz.answer_with(token_rule(quiz.shown))
    facts = {
        "right": f"{score.accuracy:.2f} [{score.interval.low:.2f}, {score.interval.high:.2f}]",
        "guessing": "0.50",
        "only looking at tokens": f"{rule.accuracy:.2f}",
        "firings found": f"{score.sensitivity:.0%}",
        "near misses told apart": "none" if isnan(score.near_misses_told) else f"{score.near_misses_told:.0%}",
        "silences told": f"{score.silences_told:.0%}",
    }
    return element("div", "mi-facts", (fact(name, value) for name, value in facts.items()))
