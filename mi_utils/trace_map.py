"""A causal-trace map for any prompt: how far each clean state, put back alone, brings the answer back.

Rows are tokens, columns layers. A click on a cell patches that state and shows what becomes of the next token. The map
grows while it is computed, a few layers at a time and between cells, so that nothing waits for it; a newer setting ends
the run of an older one.

Paper: Meng et al. 2022, arXiv:2202.05262. Taught in `08_locate_a_fact`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import ipywidgets
import torch
from jaxtyping import Float
from torch import Tensor

from mi_utils.cards import fact
from mi_utils.facts import answer_tokens, encode, subject_positions
from mi_utils.markup import Node, element, visible
from mi_utils.patching import Stack as Layers
from mi_utils.patching import at, cells, each_position, probability, sweep
from mi_utils.tracing import NOISE, Pair, Question, corrupt, share_recovered, swap
from mi_utils.widgets import Stack, Steps, TreeView, beside

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

N_PROMPT = 40  # tokens: the map of a longer prompt would not be ready in time, nor fit on the screen
N_DRAWS = 3
N_NEXT = 6  # likeliest next tokens shown of each run
DRAW_EVERY = 0.4  # seconds
KINDS = {"residual stream": "resid_post", "MLP": "mlp_out", "attention": "attn_out"}
CELL, LEFT, TOP = 24, 150, 26


class Setting(NamedTuple):
    """What is traced."""

    prompt: str
    subject: str
    instead: str = ""
    """Another subject of as many tokens to put in its place; empty for noise."""
    answer: str = ""
    """What to watch; empty for what the model says by itself."""
    kind: str = "resid_post"
    width: int = 1
    noise: float = NOISE


@dataclass(frozen=True)
class TraceMap:
    """A map, complete or growing."""

    setting: Setting
    tokens: list[str]
    pair: Pair
    p: Float[Tensor, "pos layer"]
    """The answer's probability after each patch; not a number where the patch has not been made."""

    @property
    def clean(self) -> float:
        """The answer's probability in the clean run."""
        return float(probability(self.pair.asked.true)(self.pair.clean.logits).mean())

    @property
    def corrupted(self) -> float:
        """The answer's probability in the corrupted run."""
        return float(probability(self.pair.asked.true)(self.pair.corrupted.logits).mean())


class Next(NamedTuple):
    """Probabilities of the next token in the clean run, the corrupted one, and the one patched at a cell."""

    pos: int
    layer: int
    rows: list[tuple[str, float, float, float]]


def trace_map(model: "TransformerBridge", prompt: str, subject: str, **setting: Any) -> Stack:
    """The map with its controls; a click on a cell shows what the patch does to the next token.

    Args:
        setting: the other fields of `Setting`.
    Raises:
        ValueError: the prompt is empty or too long, does not name the subject, ends in it, or the other subject has
            another number of tokens.
    """
    return _Map(model, Setting(prompt, subject, **setting)).stack


def begin(layers: Layers, tokenizer: "PreTrainedTokenizerBase", setting: Setting) -> TraceMap:
    """A map in which nothing is patched yet.

    Raises:
        ValueError: as `trace_map`.
    """
    asked = _question(layers, tokenizer, setting.prompt, setting.subject, setting.answer)
    if setting.instead:
        other = setting.prompt.replace(setting.subject, setting.instead)
        theirs = _question(layers, tokenizer, other, setting.instead, setting.answer)
        if theirs.subject != asked.subject:
            raise ValueError(
                f"{setting.subject!r} is {len(asked.subject)} tokens here and {setting.instead!r} "
                f"{len(theirs.subject)}; give another subject of as many tokens"
            )
        pair = swap(layers, asked, theirs)
    else:
        pair = corrupt(layers, asked, noise=setting.noise, n_draws=N_DRAWS)
    texts = [visible(tokenizer.decode([token])) for token in asked.tokens.tolist()]
    return TraceMap(setting, texts, pair, torch.full((len(texts), layers.n_layers), torch.nan))


def grow(layers: Layers, traced: TraceMap) -> Iterator[None]:
    """Fill the map in, yielding after every patch."""
    metric, sites = probability(traced.pair.asked.true), each_position(len(traced.tokens))
    pair, setting = traced.pair, traced.setting
    for cell in cells(layers, pair.corrupted, pair.clean, metric, sites, kind=setting.kind, width=setting.width):
        traced.p[cell.site, cell.layer] = cell.values.mean()
        yield


def after_patch(layers: Layers, tokenizer: "PreTrainedTokenizerBase", traced: TraceMap, pos: int, layer: int) -> Next:
    """What the next token becomes when one cell is patched: the likeliest of each run, by their clean probability.

    Raises:
        ValueError: a cell outside of the map.
    """
    pair, setting = traced.pair, traced.setting
    if not 0 <= layer < layers.n_layers:
        raise ValueError(f"there is no layer {layer}; there are 0 to {layers.n_layers - 1}")
    site = at([pos], len(traced.tokens))[None]
    how = {"kind": setting.kind, "width": setting.width, "layers": [layer]}
    patched = sweep(layers, pair.corrupted, pair.clean, lambda logits: logits, site, **how)[0, 0]
    runs = [logits.softmax(-1).mean(0) for logits in (pair.clean.logits, pair.corrupted.logits, patched)]
    likely = torch.cat([p.topk(N_NEXT).indices for p in runs]).unique()
    likely = likely[runs[0][likely].argsort(descending=True)].tolist()
    rows = [(visible(tokenizer.decode([token])), *(float(p[token]) for p in runs)) for token in likely]
    return Next(pos, layer, rows)


def map_tree(traced: TraceMap, tokenizer: "PreTrainedTokenizerBase", shown: Next | None = None) -> Node:
    """The map, what it measures, and the next tokens after the chosen patch."""
    answer = visible(tokenizer.decode([traced.pair.asked.true]))
    setting = traced.setting
    noise = f"noise {setting.noise:g} on the subject, {N_DRAWS} draws"
    how = f"“{visible(setting.instead)}” instead" if setting.instead else noise
    facts = element(
        "div",
        "mi-facts",
        fact("answer", f"“{answer}”"),
        fact("probability, clean", f"{traced.clean:.2f}"),
        fact(f"corrupted, {how}", f"{traced.corrupted:.2f}"),
        fact("patched so far", f"{float(traced.p.isfinite().float().mean()):.0%}"),
    )
    note = "Blue: share of the lost probability that comes back. Red: less than the corrupted run. ▸ marks the subject."
    parts = [facts, _grid(traced, shown), element("p", "mi-note", note)]
    return element("div", "", parts, [] if shown is None else _table(traced, shown))


def _question(layers: Layers, tokenizer: "PreTrainedTokenizerBase", prompt: str, subject: str, answer: str) -> Question:
    tokens, span = encode(tokenizer, prompt), subject_positions(tokenizer, prompt, subject)
    if len(tokens) > N_PROMPT:
        raise ValueError(f"the prompt has {len(tokens)} tokens; give one of at most {N_PROMPT}")
    likeliest = layers.read(layers.embed(tokens[None])).logits[0].topk(2).indices.tolist()
    true = int(answer_tokens(tokenizer, answer)[0]) if answer.strip() else likeliest[0]
    return Question(tokens, span, true, next(token for token in likeliest if token != true))


def _grid(traced: TraceMap, shown: Next | None) -> Node:
    n_pos, n_layers = traced.p.shape
    shares = share_recovered(traced.p, traced.corrupted, traced.clean)
    chosen = (shown.pos, shown.layer) if shown else None
    drawn = []
    for pos, token in enumerate(traced.tokens):
        mark = "▸ " if pos in traced.pair.asked.subject else ""
        y = TOP + CELL * pos
        drawn.append(element("text", {"x": 0, "y": y + 17}, f"{mark}{token[:14]}"))
        for layer in range(n_layers):
            place = {"x": LEFT + CELL * layer, "y": y, "width": CELL, "height": CELL}
            drawn.append(_cell(place, pos, layer, float(shares[pos, layer]), float(traced.p[pos, layer]), chosen))
    drawn += [element("text", {"x": LEFT + CELL * layer + 3, "y": 18}, str(layer)) for layer in range(0, n_layers, 5)]
    width, height = LEFT + CELL * n_layers, TOP + CELL * n_pos
    box = {"viewBox": f"0 0 {width} {height}", "width": width, "height": height, "class": "mi-map", "role": "img"}
    return element("svg", box | {"aria-label": "what each patch brings back, tokens by layers"}, drawn)


def _cell(place: dict, pos: int, layer: int, share: float, p: float, chosen: tuple[int, int] | None) -> Node:
    if share != share:  # not a number: not patched yet
        return element("rect", {**place, "class": "mi-cell", "style": "color:rgba(138,138,138,0.15)"})
    colour = "0,114,178" if share >= 0 else "213,94,0"
    attributes = {
        **place,
        "class": "mi-cell mi-chosen" if (pos, layer) == chosen else "mi-cell",
        "style": f"color:rgba({colour},{min(1.0, abs(share)):.2f})",
        "data-token": pos,
        "data-row": layer,
        "aria-label": f"token {pos}, layer {layer}: {p:.2f}",
    }
    return element("rect", attributes, element("title", "", f"layer {layer}: probability {p:.2f}, share {share:.2f}"))


def _table(traced: TraceMap, shown: Next) -> Node:
    def numbers(row: tuple[str, float, float, float]) -> list[Node]:
        shade = "background:rgba(0,114,178,{:.2f})"
        return [element("td", {"style": shade.format(0.6 * p)}, f"{p:.3f}") for p in row[1:]]

    head = [element("th", "", name) for name in ("next token", "clean", "corrupted", "patched here")]
    rows = [element("tr", "", element("td", "", f"“{row[0]}”"), numbers(row)) for row in shown.rows]
    title = f"next token after patching “{traced.tokens[shown.pos]}” at layer {shown.layer}"
    body = element("tbody", "", rows)
    table = element("table", "mi-table", element("thead", "", element("tr", "", head)), body)
    return element("div", "mi-section", element("h4", "", title), table)


class _Map:
    """The controls, the latest setting, and its map."""

    def __init__(self, model: "TransformerBridge", setting: Setting) -> None:
        self.layers, self.tokenizer, self.latest = Layers(model), model.tokenizer, 0
        self.traced: TraceMap | None = None
        self.steps, self.view = Steps(), TreeView()
        wide = ipywidgets.Layout(width="auto", max_width="900px")
        text = {"continuous_update": False, "layout": wide}
        self.texts = {
            name: ipywidgets.Text(getattr(setting, name), description=name, placeholder=hint, **text)
            for name, hint in (
                ("prompt", ""),
                ("subject", ""),
                ("instead", "another subject of as many tokens; empty: noise"),
                ("answer", "empty: what the model says"),
            )
        }
        kind = next(name for name, kind in KINDS.items() if kind == setting.kind)
        self.kind = ipywidgets.ToggleButtons(options=list(KINDS), value=kind, style={"button_width": "auto"})
        self.width = ipywidgets.IntSlider(setting.width, 1, 15, description="window", continuous_update=False)
        self.noise = ipywidgets.FloatSlider(setting.noise, min=0.5, max=10, step=0.5, description="noise")
        self.ask = ipywidgets.Button(description="trace", button_style="primary")
        self.ask.on_click(self.restart)
        self.view.on_click(self.choose)
        controls = [*self.texts.values(), beside(self.kind, self.width, self.noise, self.ask)]
        self.stack = Stack([*controls, self.view])
        for _ in self.run(self.latest):
            pass

    def setting(self) -> Setting:
        kind = KINDS[self.kind.value]
        width = 1 if kind == "resid_post" else self.width.value
        texts = {name: box.value.strip() for name, box in self.texts.items()}
        return Setting(**texts, kind=kind, width=width, noise=self.noise.value)

    def restart(self, _button: object = None) -> None:
        """Begin with the setting that is there now. What is running sees that it is stale and ends."""
        self.latest += 1
        self.steps.begin(self.run(self.latest), self.view)

    def run(self, ticket: int) -> Iterator[None]:
        """Trace for as long as the ticket is the latest, and draw now and then."""
        self.view.message = ""
        traced, drawn = begin(self.layers, self.tokenizer, self.setting()), perf_counter()
        self.traced = traced
        for _ in grow(self.layers, traced):
            if perf_counter() - drawn > DRAW_EVERY:
                self.view.tree, drawn = map_tree(traced, self.tokenizer), perf_counter()
                yield
                if ticket != self.latest:
                    return
        self.view.tree = map_tree(traced, self.tokenizer)

    def choose(self, clicked: dict) -> None:
        """Patch the clicked cell and show the next tokens."""
        self.steps.begin(self.show(int(clicked["token"]), int(clicked["row"])), self.view)

    def show(self, pos: int, layer: int) -> Iterator[None]:
        """Show the next tokens after one patch of the map that is there now."""
        yield
        traced = self.traced
        self.view.tree = map_tree(traced, self.tokenizer, after_patch(self.layers, self.tokenizer, traced, pos, layer))
