"""The latent card: everything known about one direction, on one page, drawn the same in a notebook and in a file.

A card describes any direction of a model: an SAE latent, a meta-latent, a crosscoder latent, a probe, a steering
vector. What is not known of it is left out. Strings come from models, corpora and readers, so they stay text.

Read: Bills et al. (2023), Language models can explain neurons in language models, on why top examples alone mislead.
Taught in `02_inspect_latents`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Integer

from mi_utils.markup import Node, element, to_fragment, visible


@dataclass(frozen=True)
class Snippet:
    """A stretch of text in which a direction is active."""

    band: str
    """Why it is shown: "top", "upper quarter", ..., "random"."""
    tokens: tuple[str, ...]
    acts: Float[np.ndarray, " pos"]
    """The activation on each token."""
    mark: int
    """The token that was chosen, counted from the start of the stretch."""
    source: str = ""
    """Which part of the corpus it is from."""


@dataclass(frozen=True)
class Histogram:
    """How often each activation occurs, among those above zero."""

    edges: Float[np.ndarray, " edge"]
    counts: Integer[np.ndarray, " bin"]


@dataclass(frozen=True)
class Card:
    """What is known about one direction."""

    title: str
    facts: Mapping[str, str] = field(default_factory=dict)
    """Short values by name, already formatted."""
    snippets: Sequence[Snippet] = ()
    histogram: Histogram | None = None
    promoted: Sequence[tuple[str, float]] = ()
    """Tokens whose logits the direction raises most, with the effect."""
    suppressed: Sequence[tuple[str, float]] = ()
    effect_of_chance: float | None = None
    """The effect that the best token of a random direction reaches."""
    neighbours: Sequence[tuple[int, float]] = ()
    """Latents with the most similar decoder rows, with the cosine."""
    cosine_of_chance: float | None = None
    """The cosine to its nearest decoder row that a random direction reaches."""
    co_firing: Sequence[tuple[int, float]] = ()
    """Latents that fire on the same tokens, with the correlation of firing."""
    sources: Sequence[tuple[str, float]] = ()
    """Share of tokens it fires on, by part of the corpus."""
    label: str = ""
    note: str = ""
    names: Mapping[int, str] = field(default_factory=dict)
    """Readers' labels of other latents on this card."""

    def tree(self) -> Node:
        """The card as a tree, see `markup`. Tokens are as dark as their share of the card's largest activation."""
        strongest = max((float(snippet.acts.max(initial=0)) for snippet in self.snippets), default=0.0)
        return element(
            "div",
            "mi-card",
            element("div", "mi-card-head", element("h3", "", self.title), self.label and element("b", "", self.label)),
            self.note and element("p", "mi-note", self.note),
            element("div", "mi-facts", (fact(name, value) for name, value in self.facts.items())),
            element(
                "div",
                "mi-columns",
                _section("Activations", self.histogram and _histogram(self.histogram)),
                _section("Raises", _bars(self.promoted, "+.2f"), self._against(self.effect_of_chance)),
                _section("Lowers", _bars(self.suppressed, "+.2f")),
                _section("Nearest rows (cosine)", self._chips(self.neighbours), self._against(self.cosine_of_chance)),
                _section("Fires with (correlation)", self._chips(self.co_firing)),
                _section("Where it fires", _bars([pair for pair in self.sources if pair[1] > 0], ".3%")),
            ),
            (
                _section(band, *(snippet_line(snippet, strongest) for snippet in group))
                for band, group in self._bands().items()
            ),
        )

    def _repr_html_(self) -> str:
        return to_fragment(self.tree())

    def _bands(self) -> dict[str, list[Snippet]]:
        return {
            band: [snippet for snippet in self.snippets if snippet.band == band]
            for band in dict.fromkeys(snippet.band for snippet in self.snippets)
        }

    def _chips(self, latents: Sequence[tuple[int, float]]) -> list[Node]:
        return [
            element(
                "span",
                {"class": "mi-chip", "data-latent": latent},
                f"{latent} · {value:.2f}",
                self.names.get(latent, "") and f" {self.names[latent]}",
            )
            for latent, value in latents
        ]

    @staticmethod
    def _against(chance: float | None) -> Node | None:
        return None if chance is None else element("small", "mi-note", f"a random direction reaches {chance:.2f}")


def _section(title: str, *content: Node | list | None) -> Node | None:
    content = [part for part in content if part]
    return element("div", "mi-section", element("h4", "", title), content) if content else None


def fact(name: str, value: str) -> Node:
    """A value under its name."""
    return element("div", "mi-fact", element("small", "", name), element("b", "", value))


def snippet_line(snippet: Snippet, strongest: float = 0.0) -> Node:
    """One line of text; the activation on the chosen token stands in front, unless the snippet hides it."""
    value = f"{snippet.acts[snippet.mark]:.1f}" if snippet.acts.any() else ""
    shares = snippet.acts / max(strongest, 1e-9)
    return element(
        "div",
        "mi-snippet",
        element("small", "mi-value", value),
        element("span", "mi-text", _tokens(snippet.tokens, shares, snippet.mark)),
        snippet.source and element("small", "mi-note", snippet.source),
    )


def _tokens(texts: Sequence[str], shares: Float[np.ndarray, " pos"], mark: int) -> list[Node]:
    return [
        element(
            "span",
            {"class": "mi-tok mi-mark" if place == mark else "mi-tok"}
            | ({"style": f"background:rgba(0,114,178,{0.1 + 0.55 * share:.2f})"} if share > 0 else {}),
            visible(text),
        )
        for place, (text, share) in enumerate(zip(texts, shares.tolist(), strict=True))
    ]


def _bars(values: Sequence[tuple[str, float]], form: str) -> Node | None:
    """A row per name: the name, a bar as long as its share of the largest value, the value."""
    if not values:
        return None
    largest = max(abs(value) for _, value in values)
    return element(
        "div",
        "mi-bars",
        (
            element(
                "div",
                "mi-row",
                element("span", "mi-id", visible(name)),
                element("span", {"class": "mi-bar", "style": f"width:{60 * abs(value) / largest:.0f}px"}),
                element("span", "mi-val", format(value, form)),
            )
            for name, value in values
        ),
    )


def _histogram(histogram: Histogram, width: int = 220, height: int = 90) -> Node:
    filled = np.flatnonzero(histogram.counts)
    if not len(filled):
        return element("small", "mi-note", "never fired on this text")
    first, last = filled[0], filled[-1] + 1
    counts, edges = histogram.counts[first:last], histogram.edges[first : last + 1]
    step, tallest = width / len(counts), counts.max()
    bars = [
        element(
            "rect",
            {
                "x": f"{place * step:.1f}",
                "y": f"{height - height * count / tallest:.1f}",
                "width": f"{0.9 * step:.1f}",
                "height": f"{height * count / tallest:.1f}",
                "class": "mi-hist-bar",
            },
            element("title", "", f"{count} tokens from {low:.2g} to {high:.2g}"),
        )
        for place, (count, low, high) in enumerate(zip(counts.tolist(), edges, edges[1:], strict=False))
    ]
    labels = [
        element("text", {"x": "0", "y": str(height + 16), "class": "mi-hist-label"}, f"{edges[0]:.2g}"),
        element("text", {"x": str(width - 30), "y": str(height + 16), "class": "mi-hist-label"}, f"{edges[-1]:.2g}"),
    ]
    box = {"class": "mi-hist", "viewBox": f"0 0 {width} {height + 20}", "width": width, "height": height + 20}
    return element("svg", {**box, "role": "img", "aria-label": "histogram of activations"}, bars, labels)
