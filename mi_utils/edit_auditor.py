"""Edit one fact and audit the edit: what the model says, where the old answer still is, and the scoreboard.

Choose a fact, a layer and a method, and press the button. The search goes on between cells, a gradient step at a time;
a newer press ends it. The edit is in force only while it is read, so that no cell ever meets an edited model.

Taught in `09_edit_a_fact`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import ipywidgets
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from mi_utils import auditing
from mi_utils.claims import format_number
from mi_utils.editing import METHODS, attempt
from mi_utils.edits import Edit
from mi_utils.facts import Fact
from mi_utils.markup import Node, element, visible
from mi_utils.models import continue_greedily
from mi_utils.rome import N_STEPS
from mi_utils.scoreboards import DISTANCES, Bench
from mi_utils.theme import BLUE, GREY, INK
from mi_utils.widgets import Stack, Steps, TreeView, beside

N_TOKENS = 8
WIDTH, HEIGHT, LEFT, TOP = 420, 190, 40, 16
HIGHEST, LOWEST = 5.0, -2.0  # of the curve, in standard deviations
BEFORE, AFTER, LINE = GREY, BLUE, INK
CRITERIA = {
    "P(new)": "probability of the new answer",
    "paraphrase": "paraphrases that give the new answer",
    "ripple": "what follows from the new answer is said",
    "reverse": "asked the other way round, the subject is said",
    "neighbourhood": "same relation, same answer: left alone",
    "siblings": "same relation, other answers: left alone",
    "near louder": "new answer louder after a mention of the subject (nats)",
    "far louder": "the same, a sentence later (nats)",
    "lens": "lead of the old answer in the logit lens (sd)",
    "probe": "lead of the old answer in a probe (sd)",
    "arrived": "the same at the last token alone (sd)",
    "removal": "probability of the old answer with one part silenced",
    "kept": "share of the old answer's vote that is left",
    "own: old": "what the edit's own write says to the old answer (nats)",
    "rest: old": "what everything else says to the old answer (nats)",
    "own: new": "what the edit's own write says to the new answer (nats)",
    "change": "length of the change, in lengths of the matrix",
    "rank one": "share of the change in one direction",
    "outlier": "how far the edited matrix stands out (sd over layers)",
}
"""Rows of the scoreboard, and what they mean."""


@dataclass(frozen=True)
class Audit:
    """An edit of one fact, and what came of it."""

    fact: Fact
    edit: Edit
    layer: int
    row: dict[str, float]
    """Of the scoreboard."""
    leads: dict[str, Float[Tensor, "method place layer"]]
    """The old answer's lead in lens and probe, `before` and `after`."""
    told: list[tuple[str, str, str]]
    """Prompt, continuation before, continuation after."""


def audit(bench: Bench, fact: Fact, edit: Edit, layer: int) -> Audit:
    """Read the model with and without an edit, on the fact's prompt, a paraphrase, and another fact after a mention."""
    case = bench.case(fact)
    leads = {
        name: auditing.by_layer(reading, case)
        for name, reading in (("before", bench.clean(fact)), ("after", bench.edited(fact, edit)))
    }
    prompts = [fact.text, *fact.paraphrases[:1]]
    prompts += [f"{fact.subject} is well known.{DISTANCES['far']} {asked.text}" for asked in fact.far[:1]]
    before = [continue_greedily(bench.model, prompt, N_TOKENS) for prompt in prompts]
    with edit.applied(bench.model):
        after = [continue_greedily(bench.model, prompt, N_TOKENS) for prompt in prompts]
    told = list(zip(prompts, before, after, strict=True))
    return Audit(fact, edit, layer, bench.score(fact, edit), leads, told)


def edit_auditor(
    bench: Bench, facts: Sequence[Fact], recorded: pd.DataFrame, *, layer: int = 5, method: str = "ROME"
) -> Stack:
    """Controls, a button, and the audit of the latest edit; that of the first fact is there from the beginning.

    Args:
        recorded: scores of each `method` over many facts, to stand beside this one's.
    Raises:
        ValueError: no facts, or an unknown method; or as `rome.request`.
    """
    if not facts or method not in METHODS:
        raise ValueError(
            f"got {len(facts)} facts and {method!r}; expected one or more, and one of {', '.join(METHODS)}"
        )
    return _Auditor(bench, facts, recorded.groupby("method").mean(numeric_only=True), layer, method).stack


class _Auditor:
    """The controls and the view; `latest` counts the presses of the button."""

    def __init__(self, bench: Bench, facts: Sequence[Fact], usual: pd.DataFrame, layer: int, method: str) -> None:
        self.bench, self.facts, self.usual = bench, {named(fact): fact for fact in facts}, usual
        self.latest, self.steps = 0, Steps()
        wide = ipywidgets.Layout(width="auto", max_width="640px")
        self.fact = ipywidgets.Dropdown(options=list(self.facts), description="fact", layout=wide)
        self.layer = ipywidgets.IntSlider(layer, 0, bench.model.cfg.n_layers - 1, description="layer")
        self.method = ipywidgets.Dropdown(options=METHODS, value=method, description="method")
        self.button = ipywidgets.Button(description="edit", button_style="primary")
        self.view = TreeView()
        self.button.on_click(self.press)
        controls = beside(self.layer, self.method, self.button)
        self.stack = Stack([self.fact, controls, self.view])
        for _ in self.run(self.latest):
            pass

    def press(self, _button: object = None) -> None:
        """Begin with the setting that is there now. What is running sees that it is stale and ends."""
        self.latest += 1
        self.steps.begin(self.run(self.latest), self.view)

    def run(self, ticket: int) -> Iterator[None]:
        """Search, then read, for as long as the ticket is the latest."""
        fact, layer, method = self.facts[self.fact.value], self.layer.value, self.method.value
        self.view.message = f"{method} at layer {layer}: reading the prompts …"
        yield
        search, n = attempt(self.bench.model, [self.bench.request(fact)], method, layer), 0
        while ticket == self.latest:
            try:
                loss = next(search)
            except StopIteration as end:
                (edit,) = end.value
                break
            n += 1
            self.view.message = f"{method} at layer {layer}: step {n} of at most {N_STEPS}, loss {loss:.2f}"
            yield
        else:
            return
        self.view.message = f"{method} at layer {layer}: auditing …"
        yield
        if ticket == self.latest:
            self.view.tree = audit_tree(audit(self.bench, fact, edit, layer), self.usual)
            self.view.message = ""


def named(fact: Fact) -> str:
    """How a fact and its edit are listed."""
    return f"{fact.subject}: {fact.target_true} → {fact.target_false} ({fact.relation.replace('_', ' to ')})"


def audit_tree(audit: Audit, usual: pd.DataFrame) -> Node:
    """What the model says, the old answer by layer, and the scoreboard beside the same method's over many facts."""
    title = f"{audit.edit.method} at layer {audit.layer}: {visible(named(audit.fact))}"
    return element(
        "div",
        "mi-card",
        element("h3", "", title),
        _told(audit.told),
        element("h4", "", f"How far “{visible(audit.fact.target_true)}” leads the other answers, by layer"),
        element("div", "mi-facts", _chip(BEFORE, "before"), _chip(AFTER, "after the edit")),
        element(
            "div", "mi-pair", (_curve(audit, i, place) for i in (0, 1) for place in (auditing.SUBJECT, auditing.LAST))
        ),
        element("h4", "", "Scoreboard"),
        _scoreboard(audit, usual),
    )


def _chip(colour: str, text: str) -> Node:
    return element("span", "mi-chip", element("span", {"style": f"color:{colour}"}, "■"), f" {text}")


def _told(told: Sequence[tuple[str, str, str]]) -> Node:
    head = element("tr", "", (element("th", "", name) for name in ("prompt", "before", "after the edit")))
    rows = [element("tr", "", (element("td", "", visible(text)) for text in texts)) for texts in told]
    return element("table", "mi-table", element("thead", "", head), element("tbody", "", rows))


def _scoreboard(audit: Audit, usual: pd.DataFrame) -> Node:
    compared = _compared(audit.edit.method, usual)
    columns = ["this edit"] + [f"{name}, mean on record" for name in compared]
    head = element("tr", "", (element("th", "", name) for name in ("criterion", *columns)))
    rows = []
    for name, meaning in CRITERIA.items():
        values = [audit.row.get(name)] + [usual.get(name, {}).get(other) for other in compared]
        if values[0] is not None:
            rows.append(element("tr", "", element("th", "", meaning), (element("td", "", _number(v)) for v in values)))
    return element("table", "mi-table", element("thead", "", head), element("tbody", "", rows))


def _compared(method: str, usual: pd.DataFrame) -> list[str]:
    """The method itself over many facts, and the control."""
    return [name for name in dict.fromkeys((method, "ROME, random layer")) if name in usual.index]


def _number(value: float | None) -> str:
    return "—" if value is None or value != value else format_number(float(value))


def _curve(audit: Audit, method: int, place: int) -> Node:
    """One curve before and one after; a thin line at the edited layer."""
    n = audit.leads["before"].shape[-1]
    right, bottom = WIDTH - 10, HEIGHT - 30

    def x(layer: int) -> float:
        return LEFT + (right - LEFT) * layer / (n - 1)

    def y(lead: float) -> float:
        return bottom - (bottom - TOP) * (min(max(lead, LOWEST), HIGHEST) - LOWEST) / (HIGHEST - LOWEST)

    nodes = [_line(LEFT, y(0), right, y(0), "mi-axis"), _line(LEFT, TOP, LEFT, bottom, "mi-axis")]
    nodes += [_text(8, y(tick) + 4, f"{tick:g}") for tick in (0, 2, 4)]
    nodes += [_text(x(layer) - 6, HEIGHT - 12, str(layer)) for layer in range(0, n, max(1, n // 6))]
    for name, colour in (("before", BEFORE), ("after", AFTER)):
        leads = audit.leads[name][method, place].tolist()
        for layer, (one, other) in enumerate(pairwise(leads)):
            nodes.append(_line(x(layer), y(one), x(layer + 1), y(other), "mi-curve", colour))
    if audit.edit.site is not None:
        at = x(audit.edit.site.layer)
        nodes.append(_line(at, TOP, at, bottom, "mi-axis"))
    label = (
        f"{('logit lens', 'probe')[method]}, {('subject’s last token', 'last token')[place]} (sd, cut at {HIGHEST:g})"
    )
    nodes.append(_text(LEFT + 6, TOP - 3, label))
    box = {
        "class": "mi-hist",
        "viewBox": f"0 0 {WIDTH} {HEIGHT}",
        "width": WIDTH,
        "height": HEIGHT,
        "aria-label": label,
    }
    return element("svg", box, nodes)


def _line(x1: float, y1: float, x2: float, y2: float, kind: str, colour: str = LINE) -> Node:
    ends: Mapping[str, str] = {
        name: f"{value:.1f}" for name, value in zip(("x1", "y1", "x2", "y2"), (x1, y1, x2, y2), strict=True)
    }
    return element("line", {**ends, "class": kind, "style": f"color:{colour}"})


def _text(x: float, y: float, text: str) -> Node:
    return element("text", {"x": f"{x:.1f}", "y": f"{y:.1f}", "class": "mi-hist-label"}, text)
