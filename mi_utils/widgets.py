"""Two widgets: a prompt whose tokens and latents can be clicked, and any `markup` tree whose parts can be clicked.

Python only holds the state; the pictures are ES modules in `static/`, without imports, so that they need no network.
Beside the live widget each offers a static twin, `static_html`, which pages without a kernel show; `PromptView`'s
stays clickable there, because all active latents of its prompt are in the page.
"""

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from importlib.resources import files as resources
from math import isfinite
from typing import Any

import anywidget
import ipywidgets
import traitlets

from mi_utils.markup import ATTRIBUTES, STYLES, TAGS, Node, element, style, to_fragment, to_html, visible

PAUSE = 0.005  # seconds between two steps in which the kernel reads new settings
NO_SCRIPTS = "Scripts are switched off here: the tokens cannot be clicked."


def module(name: str) -> str:
    """The ES module of one widget: the lists of `markup`, the shared functions, the widget itself."""
    lists = {
        "TAGS": f"new Set({json.dumps(sorted(TAGS))})",
        "ATTRIBUTES": f"new Set({json.dumps(sorted(ATTRIBUTES))})",
        "STYLE": f"new RegExp({json.dumps(f'^(?:{STYLES.pattern})$')})",
    }
    head = "".join(f"const {key} = {value};\n" for key, value in lists.items())
    static = resources("mi_utils") / "static"
    return head + "".join((static / f"{part}.js").read_text(encoding="utf8") for part in ("draw", name))


def checked(node: Node) -> Node:
    """The node, built again, so that one that was put together by hand obeys the lists of `markup` too.

    Raises:
        ValueError: it holds a tag, an attribute or a style that is not on the lists.
    """
    return node if isinstance(node, str) else element(node[0], node[1], *map(checked, node[2:]))


class Stack(ipywidgets.VBox):
    """Widgets below one another. Its static twin is that of every part that has one; plain controls have none."""

    def static_html(self) -> str:
        """What is shown now, as HTML that is complete in itself."""
        return "".join(part.static_html() for part in self.children if hasattr(part, "static_html"))

    def _repr_mimebundle_(self, **kwargs: Any) -> dict:
        return super()._repr_mimebundle_(**kwargs) | {"text/html": self.static_html()}


def beside(*parts: ipywidgets.Widget) -> ipywidgets.HBox:
    """Widgets beside one another, that go on below where there is no room."""
    return ipywidgets.HBox(parts, layout=ipywidgets.Layout(flex_flow="row wrap"))


class _Widget(anywidget.AnyWidget):
    _css = style()

    message = traitlets.Unicode().tag(sync=True)
    """An error or a hint, shown as text above everything else."""

    def static_html(self) -> str:
        """What is shown now, as HTML that is complete in itself."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict]:
        data, metadata = super()._repr_mimebundle_(**kwargs)
        return {**data, "text/html": self.static_html()}, metadata


class PromptView(_Widget):
    """The tokens of a prompt; a click on one shows its latents, a click on a latent colours the tokens by it.

    With no latent chosen, a token is as dark as its most specific latent is specific.
    """

    _esm = module("prompt")

    tokens = traitlets.List(traitlets.Unicode()).tag(sync=True)
    """The texts of the tokens, passed through `markup.visible`."""
    latents = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    """The active latents of each token."""
    acts = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    """Their activations."""
    bits = traitlets.List(traitlets.List(traitlets.Float())).tag(sync=True)
    """How specific each activation is: -log2 of the share of tokens on which the latent is at least as active."""
    names = traitlets.Dict(value_trait=traitlets.Unicode(), key_trait=traitlets.Unicode()).tag(sync=True)
    """Readers' labels by latent."""
    token = traitlets.Int(-1).tag(sync=True)
    """Position of the chosen token; -1 for none."""
    latent = traitlets.Int(-1).tag(sync=True)
    """The chosen latent; -1 for none."""
    order = traitlets.Enum(["specific", "strong"], "specific").tag(sync=True)
    """Whether a token's most specific or its strongest latents come first."""
    n_shown = traitlets.Int(12).tag(sync=True)
    """Most latents shown of one token."""
    cards = traitlets.Dict(key_trait=traitlets.Unicode()).tag(sync=True)
    """Trees by latent; that of the chosen latent is shown below the prompt."""

    @traitlets.validate("cards")
    def _check_cards(self, proposal: dict) -> dict[str, Node]:
        return {latent: checked(card) for latent, card in proposal["value"].items()}

    def show(
        self,
        tokens: Sequence[str],
        latents: Sequence[Sequence[int]],
        acts: Sequence[Sequence[float]],
        bits: Sequence[Sequence[float]],
        names: Mapping[int | str, str] | None = None,
    ) -> None:
        """Show another prompt. The chosen latent stays chosen, the chosen token does not.

        Args:
            latents, acts, bits: of each token, its active latents in any order.
        Raises:
            ValueError: the lists do not fit each other, or a number is not finite.
        """
        lengths = [list(map(len, lists)) for lists in (latents, acts, bits)]
        if len(tokens) != len(latents) or lengths.count(lengths[0]) < 3:
            raise ValueError(
                f"got {len(tokens)} tokens with {lengths[0]} latents, {lengths[1]} acts and {lengths[2]} bits; "
                "expected one list a token, as long in all three"
            )
        if not all(isfinite(value) for lists in (acts, bits) for values in lists for value in values):
            raise ValueError("an activation or its bits are not finite; JSON has no such number")
        with self.hold_sync():  # one message, or the page draws half an update
            self.token = -1
            self.tokens = [visible(token) for token in tokens]
            self.latents = [[int(latent) for latent in active] for active in latents]
            self.acts = [[round(float(act), 4) for act in active] for active in acts]
            self.bits = [[round(float(value), 2) for value in active] for active in bits]
            self.names = {str(latent): visible(name) for latent, name in (names or {}).items()}
            self.message = ""

    def static_html(self) -> str:
        """What is shown now, as HTML that is complete in itself and stays clickable where scripts may run."""
        plain = element("div", "mi-strip", (element("span", "mi-tok", token) for token in self.tokens))
        state = self.get_state([*PromptView.class_own_traits(sync=True), "message"])
        text = json.dumps(state, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        return (
            f'<style>{style()}</style><div class="mi-widget mi-twin">'
            f"{to_html(plain)}{to_html(element('p', 'mi-note', NO_SCRIPTS))}"
            f'<script type="application/json">{text}</script></div>'
            f'<script type="module">{module("prompt")}\ndrawTwins(render);</script>'
        )


class TreeView(_Widget):
    """A tree of `markup`; a click on an element with a `data-` attribute reaches Python.

    Args:
        tree: what to draw. Assign another one to draw again.
    """

    _esm = module("tree")

    tree = traitlets.Any("").tag(sync=True)
    """A node of `markup`."""
    clicked = traitlets.Dict().tag(sync=True)
    """The `data-` attributes of the last clicked element, {"latent": "17", "n": 3}; `n` counts the clicks."""

    def __init__(self, tree: Node = "", **traits: Any):
        super().__init__(tree=tree, **traits)

    @traitlets.validate("tree")
    def _check_tree(self, proposal: dict) -> Node:
        return checked(proposal["value"])

    def on_click(self, callback: Callable[[dict], None]) -> None:
        """Call `callback` with `clicked` after each click. What it raises is shown above the tree."""

        def call(change: dict) -> None:
            self.message = ""
            try:
                callback(change["new"])
            except Exception as error:
                self.message = f"{type(error).__name__}: {error}"
                raise

        self.observe(call, "clicked")

    def static_html(self) -> str:
        """What is shown now, as HTML that is complete in itself; nothing in it can be clicked."""
        return to_fragment(self.tree)


class Steps:
    """Work in small steps, done between cells in the loop that runs them, whatever thread asks for it.

    Made outside of a loop, it does everything at once.
    """

    def __init__(self) -> None:
        self.task: Future | None = None
        """What was begun last."""
        try:
            self._loop = asyncio.get_running_loop()
        except RuntimeError:  # no notebook
            self._loop = None

    def begin(self, run: Iterator[None], view: TreeView) -> None:
        """Begin with a run, which yields after every step. What it raises is shown above the view."""
        guarded = _guarded(run, view)
        if self._loop is None or self._loop.is_closed():
            for _ in guarded:
                pass
        else:
            self.task = asyncio.run_coroutine_threadsafe(_paced(guarded), self._loop)


def _guarded(run: Iterator[None], view: TreeView) -> Iterator[None]:
    """The same; what it raises is shown above what was there, since nobody else would see it."""
    try:
        yield from run
    except Exception as error:  # noqa: BLE001
        view.message = f"{type(error).__name__}: {error}"


async def _paced(run: Iterator[None]) -> None:
    for _ in run:
        await asyncio.sleep(PAUSE)
