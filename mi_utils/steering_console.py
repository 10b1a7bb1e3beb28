"""A console for steering: several directions with sliders, what the model writes, and everything else that moved.

The text is written a token at a time in the loop that runs the cells, and additions are in force only while a token is
computed: no cell ever meets a steered model. A newer setting ends the run at its next token, so there is no queue of
stale ones. While a cell runs the console waits. JupyterLab hands over what a slider says in a thread of its own, beside
a running cell; such a thread must not touch the model, so it only leaves word in the loop.

Taught in `05_steering`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, permutations
from typing import TYPE_CHECKING

import ipywidgets
import torch
from jaxtyping import Float
from torch import Tensor

from mi_utils.cards import fact
from mi_utils.directions import orthogonalised
from mi_utils.markup import Node, element, visible
from mi_utils.metrics import kl_divergence
from mi_utils.steering import Addition, Gauge, cost, next_logits, repeats, stream
from mi_utils.widgets import Stack, Steps, TreeView, beside

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_TOKENS = 20
N_PROMPT = 128  # tokens: with a longer prompt no slider would answer in time
N_SLOTS = 3
NONE = "—"
SUM, ORTHOGONAL, LATER = "sum", "without what they share", "later ones at the later place"
HALF, SPAN = 90, 6.0  # half the width of a signed bar, in pixels, and what it stands for, in nats
PAIR_DOSE = 0.15
N_ROWS = 8  # settings that are run at once for the heat-map


@dataclass(frozen=True)
class Place:
    """Where directions are added, and how long a dose of 1 is there."""

    hook_name: str
    unit: float
    """Typical length of the activation, in its own units."""
    directions: Mapping[str, Float[Tensor, " d_model"]]
    """Unit vectors by name."""

    def addition(self, name: str, dose: float) -> Addition:
        """A direction at a dose.

        Raises:
            ValueError: no such direction.
        """
        if name not in self.directions:
            raise ValueError(f"no direction {name!r} at {self.hook_name}; there are {', '.join(self.directions)}")
        return Addition(self.hook_name, dose * self.unit * self.directions[name])


@dataclass(frozen=True)
class Effects:
    """What a setting does at the end of the prompt."""

    shifts: dict[str, float]
    """Change of each concept's log-odds, in nats."""
    predicted: dict[str, float]
    """The same as the sum of what each direction does alone."""
    divergence: float
    """KL divergence of the next-token distribution from the unsteered one, in nats."""


@dataclass
class Written:
    """A continuation as far as it has got; the numbers come when it is complete."""

    tokens: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    text: str = ""
    cost: float | None = None
    repeats: float | None = None


def steering_console(
    model: "TransformerBridge",
    place: Place,
    gauges: Mapping[str, Gauge],
    later: Place | None = None,
    *,
    prompt: str = "The last chapter of the story is",
    start: Mapping[str, float] | None = None,
) -> Stack:
    """Choose directions and doses, and see the text beside the unsteered one, every concept's shift, and the price.

    Args:
        gauges: the concepts that are watched.
        later: a second place, so that directions need not be added at the same layer. It has the same names.
        start: doses to begin with, by direction.
    Raises:
        ValueError: an empty prompt, an unknown direction, more than three to begin with, or a later place that lacks
            directions.
    """
    start = dict(start or {})
    if len(start) > N_SLOTS:
        raise ValueError(f"got {len(start)} directions to begin with; there are {N_SLOTS} sliders")
    for name, dose in start.items():
        place.addition(name, dose)
    if later is not None and (lacking := set(place.directions) - set(later.directions)):
        raise ValueError(f"the later place lacks {', '.join(sorted(lacking))}; give it a direction of each name")
    return _Console(model, place, gauges, later, prompt, start).stack


def combined(place: Place, later: Place | None, doses: Sequence[tuple[str, float]], how: str) -> list[Addition]:
    """The additions of a setting.

    Args:
        doses: direction and dose, in the order of the sliders; what comes first is never changed by what follows.
        how: `sum`, `without what they share`, or `later ones at the later place`.
    """
    additions = []
    for name, dose in doses:
        home = later if how == LATER and additions and later is not None else place
        added = home.addition(name, dose)
        if how == ORTHOGONAL:
            for earlier in additions:
                length = added.vector.norm()
                added = added._replace(vector=length * orthogonalised(added.vector, earlier.vector))
        additions.append(added)
    return additions


def effects(
    model: "TransformerBridge", prompt: str, additions: Sequence[Addition], gauges: Mapping[str, Gauge]
) -> Effects:
    """What additions do at the end of a prompt, together and, for the prediction, each alone."""
    n = len(additions)
    reached = torch.cat([torch.zeros(1, n), torch.eye(n), torch.ones(int(n > 1), n)])  # nothing, each alone, all
    rows = [added._replace(vector=row[:, None] * added.vector) for added, row in zip(additions, reached.T, strict=True)]
    logits = next_logits(model, [prompt] * len(reached), rows)
    shifts = {name: gauge.read(logits) - gauge.read(logits[:1]) for name, gauge in gauges.items()}
    return Effects(
        {name: float(shift[-1]) for name, shift in shifts.items()},
        {name: float(shift[1 : n + 1].sum()) for name, shift in shifts.items()},
        float(kl_divergence(logits[:1], logits[-1:])),
    )


def interference(
    model: "TransformerBridge", prompt: str, place: Place, gauges: Mapping[str, Gauge], dose: float = PAIR_DOSE
) -> dict[tuple[str, str], float]:
    """For each ordered pair of directions, the first one's concept read: observed minus predicted shift, in nats.

    Directions without a gauge of the same name are left out.

    Raises:
        ValueError: fewer than two are left.
    """
    names = [name for name in place.directions if name in gauges]
    if len(names) < 2:
        raise ValueError("a pair needs two directions that have a gauge of the same name each")
    combos = [frozenset(combo) for size in range(3) for combo in combinations(names, size)]
    none = torch.zeros(model.cfg.d_model)
    vectors = torch.stack([sum((place.addition(name, dose).vector for name in combo), none) for combo in combos])
    runs = [(Addition(place.hook_name, rows), [prompt] * len(rows)) for rows in vectors.split(N_ROWS)]
    logits = torch.cat([next_logits(model, prompts, [addition]) for addition, prompts in runs])
    gaps = {}
    for one, other in permutations(names, 2):
        shift = gauges[one].read(logits) - gauges[one].read(logits[:1])
        pair, *singles = (float(shift[combos.index(frozenset(combo))]) for combo in ([one, other], [one], [other]))
        gaps[one, other] = pair - sum(singles)
    return gaps


class _Console:
    """The controls, the latest setting, and the views of what came of it."""

    def __init__(
        self,
        model: "TransformerBridge",
        place: Place,
        gauges: Mapping[str, Gauge],
        later: Place | None,
        prompt: str,
        start: dict[str, float],
    ) -> None:
        self.model, self.place, self.gauges, self.later = model, place, gauges, later
        self.unsteered: dict[str, Written] = {}
        self.latest = 0
        self.steps = Steps()
        wide = ipywidgets.Layout(width="auto", max_width="900px")
        self.prompt = ipywidgets.Text(prompt, description="prompt", continuous_update=False, layout=wide)
        filled = [*start.items(), *[(NONE, 0.0)] * N_SLOTS][:N_SLOTS]
        options, narrow = [NONE, *place.directions], ipywidgets.Layout(width="220px")
        self.names = [ipywidgets.Dropdown(options=options, value=name, layout=narrow) for name, _ in filled]
        scale = {"min": -1, "max": 1, "step": 0.05, "readout_format": "+.2f", "description": "dose"}
        scale["layout"] = ipywidgets.Layout(width="420px")
        self.doses = [ipywidgets.FloatSlider(value=dose, **scale) for _, dose in filled]
        ways = [SUM, ORTHOGONAL] + ([LATER] if later else [])
        self.how = ipywidgets.ToggleButtons(options=ways, style={"button_width": "auto"})
        self.ask = ipywidgets.Button(description="do pairs add up?")
        self.view, self.pairs = TreeView(), TreeView()
        for control in (self.prompt, *self.names, *self.doses, self.how):
            control.observe(self.restart, "value")
        self.ask.on_click(self.ask_pairs)
        slots = [beside(*pair) for pair in zip(self.names, self.doses, strict=True)]
        self.stack = Stack([self.prompt, *slots, beside(self.how, self.ask), self.view, self.pairs])
        for _ in self.run(self.latest):
            pass

    def setting(self) -> list[tuple[str, float]]:
        """Directions and doses that do something."""
        chosen = zip(self.names, self.doses, strict=True)
        return [(name.value, dose.value) for name, dose in chosen if name.value != NONE and dose.value]

    def restart(self, _change: object = None) -> None:
        """Begin with the latest setting. What is running sees that it is stale and ends."""
        self.latest += 1
        self.steps.begin(self.run(self.latest), self.view)

    def run(self, ticket: int) -> Iterator[None]:
        """Write, a token at a time, for as long as the ticket is the latest."""
        if ticket != self.latest:
            return
        prompt, doses, how = self.readable_prompt(), self.setting(), self.how.value
        additions = combined(self.place, self.later, doses, how)
        found = effects(self.model, prompt, additions, self.gauges)
        plain, steered = self.unsteered.get(prompt, Written()), Written()
        self.view.message = ""
        for mine, added in ((steered, additions), (plain, [])):
            if mine.cost is not None:
                continue
            for tokens in stream(self.model, prompt, added, n_tokens=N_TOKENS):
                if ticket != self.latest:
                    return
                mine.tokens, mine.text = tokens, self.model.tokenizer.decode(tokens)
                self.view.tree = console_tree(prompt, doses, how, plain, steered, found)
                yield
            mine.cost = float(cost(self.model, [prompt], mine.tokens[None]))
            mine.repeats = float(repeats(mine.tokens[None]))
        self.unsteered = {prompt: plain}
        self.view.tree = console_tree(prompt, doses, how, plain, steered, found)

    def readable_prompt(self) -> str:
        """The prompt.

        Raises:
            ValueError: it is empty or too long.
        """
        n = len(self.model.tokenizer(self.prompt.value)["input_ids"])
        if not 0 < n <= N_PROMPT:
            raise ValueError(f"the prompt has {n} tokens; expected 1 to {N_PROMPT}")
        return self.prompt.value

    def ask_pairs(self, _button: object = None) -> None:
        """Begin with the heat-map of pairs for the prompt that is there now."""
        self.steps.begin(self.show_pairs(), self.pairs)

    def show_pairs(self) -> Iterator[None]:
        """Compute the heat-map and draw it."""
        self.pairs.message = "running every pair …"
        yield
        self.pairs.tree = pairs_tree(interference(self.model, self.readable_prompt(), self.place, self.gauges))
        self.pairs.message = ""


def console_tree(
    prompt: str, doses: Sequence[tuple[str, float]], how: str, plain: Written, steered: Written, found: Effects
) -> Node:
    """The two texts side by side, the price of each, and what moved at the end of the prompt."""
    setting = ", ".join(f"{visible(name)} {dose:+.2f}" for name, dose in doses) or "every dose is 0"
    title = f"steered: {setting}" + (f" ({how})" if len(doses) > 1 else "")
    return element(
        "div",
        "",
        element("div", "mi-pair", _text(title, prompt, steered), _text("as the model is", prompt, plain)),
        element(
            "div",
            "mi-section",
            element("h4", "", "shift of every concept's log-odds at the end of the prompt, nats"),
            [_shift(name, value, found.predicted[name], len(doses)) for name, value in found.shifts.items()],
            element("p", "mi-note", f"Bar: observed, to ±{SPAN:g}. Thick line: sum of what each direction does alone."),
        ),
        fact("divergence of the next token, nats", f"{found.divergence:.2f}"),
    )


def pairs_tree(gaps: dict[tuple[str, str], float]) -> Node:
    """Observed minus predicted shift of the row's concept when the column's direction is added too."""
    names = list(dict.fromkeys(one for one, _ in gaps))
    largest = max(map(abs, gaps.values()), default=0.0) or 1.0

    def cell(one: str, other: str) -> Node:
        if one == other:
            return element("td", "", "")
        gap = gaps[one, other]
        colour = "0,114,178" if gap > 0 else "213,94,0"
        return element("td", {"style": f"background:rgba({colour},{0.5 * abs(gap) / largest:.2f})"}, f"{gap:+.2f}")

    head = element("tr", "", element("th", "", ""), [element("th", "", visible(name)) for name in names])
    rows = [element("tr", "", element("th", "", visible(one)), [cell(one, other) for other in names]) for one in names]
    title = f"observed minus predicted shift of the row's concept, both directions at dose {PAIR_DOSE:g}, nats"
    return element("div", "mi-section", element("h4", "", title), element("table", "mi-table", head, rows))


def _text(title: str, prompt: str, written: Written) -> Node:
    done = len(written.tokens)
    if written.cost is None:
        state = f"writing {done} of {N_TOKENS} tokens" if done else "waiting"
    else:
        state = f"costs {written.cost:.2f} nats a token, {written.repeats:.0%} repeats"
    return element(
        "div",
        "mi-card",
        element("h4", "", title),
        element("p", "mi-story", element("span", "mi-note", visible(prompt)), visible(written.text)),
        element("small", {"role": "status"}, state),
    )


def _shift(name: str, observed: float, predicted: float, active: int) -> Node:
    """A bar to the right for more and to the left for less."""

    def place(value: float) -> float:
        return HALF + HALF * max(-1.0, min(1.0, value / SPAN))

    left, right = sorted((place(0.0), place(observed)))
    span = {"x": f"{left:.1f}", "y": 3, "width": f"{max(right - left, 1):.1f}", "height": 12}
    marks = [
        element("rect", {**span, "class": "mi-hist-bar"}),
        element("line", {"x1": HALF, "x2": HALF, "y1": 0, "y2": 18, "class": "mi-axis"}),
    ]
    if active > 1:
        x = f"{place(predicted):.1f}"
        marks.append(element("line", {"x1": x, "x2": x, "y1": 0, "y2": 18, "class": "mi-predicted"}))
    numbers = f"{observed:+.2f}" + (f" (predicted {predicted:+.2f})" if active > 1 else "")
    box = {"viewBox": f"0 0 {2 * HALF} 18", "width": 2 * HALF, "height": 18, "role": "img", "aria-label": numbers}
    return element(
        "div",
        "mi-shift",
        element("span", "mi-id", visible(name)),
        element("svg", box, marks),
        element("span", "mi-val", numbers),
    )
