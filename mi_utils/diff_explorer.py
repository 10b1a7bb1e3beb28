"""The latents of a pair dictionary as points: how they are shared, whether scaling believes it, and a card for each.

Across: the tuned model's share of the decoder's length. Up: how much of the latent the other model shows after all. A
click on a point opens its card, with the texts on which it is most active and what each model's half gives to it.

Taught in `07_model_diffing`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from mi_utils.cards import Card, Snippet
from mi_utils.claims import format_number
from mi_utils.corpus import token_texts
from mi_utils.crosscoders import halves
from mi_utils.diffing import latent_table
from mi_utils.explorers import table_tree
from mi_utils.lenses import logit_lens
from mi_utils.markup import Node, element
from mi_utils.models import ModelPair
from mi_utils.restoring import states
from mi_utils.theme import BLUE, GREEN, GREY, VERMILION
from mi_utils.widgets import Stack, TreeView, beside

WIDTH, HEIGHT, MARGIN = 640, 300, 46
COLOURS = {"tuned only": VERMILION, "base only": BLUE, "shared": GREY, "between": GREEN}
LARGEST_NU = 1.5
N_TEXTS, N_WORDS, BEFORE, AFTER = 4, 8, 12, 4


@dataclass(frozen=True)
class Reading:
    """A pair dictionary on some texts: what the explorer shows."""

    pair: ModelPair
    sae: SAE
    tokens: Int[Tensor, "context pos"]
    names: tuple[str, ...]
    """What each context is, for instance which behaviour it triggers."""
    acts: Float[Tensor, "context pos latent"]
    shares: tuple[Float[Tensor, "context pos latent"], Float[Tensor, "context pos latent"]]
    """What each model's half of the encoder gives to a latent's activation: base, tuned."""
    table: pd.DataFrame
    """As `diffing.latent_table` makes it, on these texts."""

    def card(self, latent: int) -> Card:
        """Everything known about one latent.

        Raises:
            ValueError: no such latent.
        """
        if latent not in self.table.index:
            raise ValueError(f"there is no latent {latent}; expected 0 to {len(self.table) - 1}")
        row = self.table.loc[latent]
        parts = halves(self.sae)
        difference = parts.tuned[latent] - parts.base[latent]
        words = token_texts(self.pair.tuned.tokenizer, logit_lens(self.pair.tuned, difference, N_WORDS).tolist())
        facts = {"kind": f"{row.kind}{', confirmed' if row.confirmed else ''}"}
        shown = ("relative_norm", "cosine", "nu_error", "nu_reconstruction", "kin", "density", "energy")
        facts |= {name.replace("_", " "): format_number(float(row[name])) for name in shown}
        facts["tuned minus base raises"] = " ".join(word.strip() for word in words)
        return Card(f"pair latent {latent}", facts, [s for place in self._places(latent) for s in self._lines(*place)])

    def _places(self, latent: int) -> list[tuple[int, int, int]]:
        """Latent, context and position of the strongest activation in each of the contexts where it is strongest."""
        best = self.acts[:, :, latent].max(1)
        order = best.values.topk(min(N_TEXTS, len(best.values))).indices
        return [(latent, int(c), int(best.indices[c])) for c in order if best.values[c] > 0]

    def _lines(self, latent: int, context: int, position: int) -> list[Snippet]:
        start, end = max(1, position - BEFORE), position + AFTER
        texts = tuple(token_texts(self.pair.base.tokenizer, self.tokens[context, start:end].tolist()))
        band = f"{self.names[context]}: the latent, and what each model gives to it"
        values = {"latent": self.acts, "base": self.shares[0], "tuned": self.shares[1]}
        return [
            Snippet(band, texts, acts[context, start:end, latent].clamp(min=0).numpy(), position - start, name)
            for name, acts in values.items()
        ]


@torch.no_grad()
def read_texts(
    pair: ModelPair, sae: SAE, hook_name: str, tokens: Int[Tensor, "context pos"], names: Sequence[str]
) -> Reading:
    """Run both models and the dictionary over some texts, the beginning-of-text token and padding left out.

    Args:
        sae: a pair dictionary in the models' own units.
    Raises:
        ValueError: as many names as contexts are needed; or as `hooks.run_with_cache`.
    """
    if len(names) != len(tokens):
        raise ValueError(f"got {len(names)} names for {len(tokens)} contexts; give one each")
    base, tuned = states(pair, tokens, hook_name)
    is_text = tokens != pair.base.tokenizer.bos_token_id
    x = torch.cat([base, tuned], -1)
    acts = sae.encode(x) * is_text[..., None]
    weights, centred = sae.W_enc.chunk(2), (x - sae.b_dec).chunk(2, dim=-1)
    shares = tuple(half @ weight * (acts > 0) for half, weight in zip(centred, weights, strict=True))
    return Reading(pair, sae, tokens, tuple(names), acts, shares, latent_table(sae, x[is_text].split(4096)))


def diff_explorer(reading: Reading, *, latent: int | None = None) -> Stack:
    """Points to click, a search by rank, and the card of the chosen latent.

    Args:
        latent: whose card is shown first; by default the alive one with the largest share in the tuned model.
    """
    alive = reading.table[reading.table.kind != "dead"]
    orders = {
        "largest share in the tuned model": "relative_norm",
        "most energy in the difference": "energy",
        "densest": "density",
    }
    by = ipywidgets.Dropdown(options=orders, description="first")
    only = ipywidgets.Checkbox(description="confirmed only", indent=False)
    points, ranking, card = TreeView(), TreeView(), TreeView()
    first = int(alive.relative_norm.idxmax()) if latent is None else latent
    shown = {"latent": first}

    def draw() -> None:
        points.tree = scatter_tree(alive, shown["latent"])
        card.tree = reading.card(shown["latent"]).tree()

    def rank(_change: object = None) -> None:
        rows = alive[alive.confirmed] if only.value else alive
        columns = ["relative_norm", "nu_error", "nu_reconstruction", "density", "energy"]
        ranking.tree = table_tree(rows.sort_values(by.value, ascending=False)[columns].head(8))

    def show(clicked: dict) -> None:
        if "latent" in clicked:
            shown["latent"] = int(clicked["latent"])
            draw()

    for control in (by, only):
        control.observe(rank, "value")
    for view in (points, ranking, card):
        view.on_click(show)
    rank()
    draw()
    return Stack([points, beside(by, only), ranking, card])


def scatter_tree(table: pd.DataFrame, chosen: int) -> Node:
    """Relative norm across, the larger of the two ratios of latent scaling up; one small square per latent."""
    table = table.sort_values("relative_norm")  # arrow keys go from left to right
    nu = table[["nu_error", "nu_reconstruction"]].max(axis=1).clip(0, LARGEST_NU)
    across = MARGIN + (WIDTH - 2 * MARGIN) * table.relative_norm
    up = HEIGHT - MARGIN - (HEIGHT - 2 * MARGIN) * nu / LARGEST_NU
    size = 4 + 3 * np.sqrt(table.density.clip(0, 0.2) / 0.2)
    squares = [
        element(
            "rect",
            {
                "x": f"{x - side / 2:.1f}",
                "y": f"{y - side / 2:.1f}",
                "width": f"{side:.1f}",
                "height": f"{side:.1f}",
                "class": "mi-point mi-chosen" if latent == chosen else "mi-point",
                "style": f"color:{COLOURS[kind]}",
                "data-latent": latent,
                "aria-label": f"latent {latent}, {kind}",
            },
            element("title", "", f"latent {latent}, {kind}"),
        )
        for latent, x, y, side, kind in zip(table.index, across, up, size, table.kind, strict=True)
    ]
    box = {"class": "mi-scatter", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "width": WIDTH, "height": HEIGHT}
    legend = (
        element("span", "", element("span", {"style": f"color:{colour}"}, "■"), f" {kind} {(table.kind == kind).sum()}")
        for kind, colour in COLOURS.items()
    )
    return element("div", "", element("div", "mi-facts", legend), element("svg", box, _axes(), squares))


def _axes() -> list[Node]:
    bottom, right = HEIGHT - MARGIN, WIDTH - MARGIN
    line = {"class": "mi-axis"}
    nodes = [
        element("line", {**line, "x1": MARGIN, "x2": right, "y1": bottom, "y2": bottom}),
        element("line", {**line, "x1": MARGIN, "x2": MARGIN, "y1": MARGIN, "y2": bottom}),
        element(
            "text",
            {"x": WIDTH / 2 - 130, "y": HEIGHT - 10, "class": "mi-hist-label"},
            "relative norm: the tuned model's share",
        ),
        element(
            "text",
            {"x": 6, "y": MARGIN - 14, "class": "mi-hist-label"},
            "what the other model shows of it (ν, the larger of two)",
        ),
    ]
    nodes += [
        element(
            "text",
            {"x": MARGIN + (right - MARGIN) * share - 8, "y": bottom + 16, "class": "mi-hist-label"},
            f"{share:g}",
        )
        for share in (0, 0.5, 1)
    ]
    return nodes + [
        element(
            "text",
            {"x": 18, "y": bottom - (bottom - MARGIN) * nu / LARGEST_NU + 4, "class": "mi-hist-label"},
            f"{nu:g}",
        )
        for nu in (0, 0.5, 1, 1.5)
    ]
