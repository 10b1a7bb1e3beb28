"""Neurons that help to answer about names, on those names and on any text: what looks like one meaning is many.

Every neuron is shown where it was found, on names by answer, and where nobody looked, on ordinary text. A neuron for
an answer would be as active only where the answer matters; `stray` counts how often it is as active elsewhere.

Read: Nanda et al. 2023, "Fact Finding", post 3, on a neuron for baseball players that is active on much else. Taught in
`10_fact_finding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import ipywidgets
import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.cards import Card, Histogram, Snippet
from mi_utils.corpus import token_texts
from mi_utils.explorers import table_tree
from mi_utils.hooks import run_with_cache
from mi_utils.markup import Node, element
from mi_utils.models import unembedding
from mi_utils.name_facts import Asked
from mi_utils.name_neurons import Neurons, ranked
from mi_utils.theme import BLUE, GREY, VERMILION
from mi_utils.widgets import Stack, TreeView

BY_EFFECT, BY_SELECTIVITY, AT_RANDOM = (
    "largest effect on the answers",
    "most selective for one answer",
    "random neurons",
)
N_TEXTS, N_WORDS, N_BATCH, BEFORE, AFTER = 5, 6, 8, 10, 4
WIDTH, ROW, LEFT, RIGHT = 760, 20, 130, 20
TEXT_ROW = "any text"


@dataclass(frozen=True)
class Reading:
    """Some neurons on names and on text."""

    asked: Asked
    table: pd.DataFrame
    """As `name_neurons.ranked`, with `found` (why it is here), `level` (mean activation on its answer's names), and
    `stray` (tokens of text, in a thousand, on which it is at least as active)."""
    on_names: Float[Tensor, "name neuron"]
    """Activations at the names' last tokens, turned so that the neuron's answer is on the positive side."""
    tokens: Int[Tensor, "context pos"]
    on_text: Float[Tensor, "context pos neuron"]
    promoted: Sequence[Sequence[tuple[str, float]]]
    """The tokens whose logits each neuron raises most, turned the same way."""

    def column(self, neuron: int) -> int:
        """Where a neuron stands in the tensors.

        Raises:
            ValueError: it was not read.
        """
        if neuron not in self.table.index:
            raise ValueError(f"neuron {neuron} was not read; there are {list(self.table.index)}")
        return int(self.table.index.get_loc(neuron))

    def card(self, neuron: int) -> Card:
        """What is known of one neuron: names of its answer, other names, and text."""
        column = self.column(neuron)
        row = self.table.loc[neuron]
        facts = {
            "found as": row.found,
            "most about": row.answer,
            "selectivity": f"{row.selectivity:.1f} sd",
            "as active on text": f"{row.stray:.1f} in 1000 tokens",
        }
        counts, edges = np.histogram(self.on_text[..., column].clamp(min=0).numpy(), bins=24)
        counts[0] -= int((self.on_text[..., column] <= 0).sum())
        return Card(
            f"neuron {row.label}",
            facts,
            [*self._names(column, row.answer), *self._texts(column)],
            Histogram(edges, counts),
            promoted=self.promoted[column],
            note="Turned around: it is most negative for its answer." if row["sign"] < 0 else "",
        )

    def _names(self, column: int, answer: str) -> list[Snippet]:
        acts, recall = self.on_names[:, column], self.asked.recall
        own = self.asked.truth == self.asked.answers.index(answer)
        found = []
        for band, rows in ((f"names: {answer}", own), ("names: other answers", ~own)):
            for row in [int(i) for i in acts.argsort(descending=True) if rows[i]][:N_TEXTS]:
                tokens = tuple(token_texts(recall.model.tokenizer, recall.name_tokens[row]))
                shown = np.zeros(len(tokens))
                shown[-1] = max(float(acts[row]), 0.0)
                found.append(
                    Snippet(band, tokens, shown, len(tokens) - 1, self.asked.answers[int(self.asked.truth[row])])
                )
        return found

    def _texts(self, column: int) -> list[Snippet]:
        acts = self.on_text[..., column]
        best = acts.amax(1).argsort(descending=True)[:N_TEXTS].tolist()
        return [self._line("any text, where it is most active", c, int(acts[c].argmax()), acts[c]) for c in best]

    def _line(self, band: str, context: int, place: int, acts: Float[Tensor, " pos"]) -> Snippet:
        start, end = max(0, place - BEFORE), place + AFTER
        tokens = token_texts(self.asked.recall.model.tokenizer, self.tokens[context, start:end].tolist())
        return Snippet(band, tuple(tokens), acts[start:end].clamp(min=0).numpy(), place - start)


@torch.no_grad()
def read_neurons(
    asked: Asked, found: Neurons, tokens: Int[Tensor, "context pos"], *, n_each: int = 12, seed: int = 0
) -> Reading:
    """Choose neurons by effect, by selectivity and at random, and read them on text too.

    Those at random are turned towards an answer just like the others, so that only the choice differs.

    Args:
        tokens: contexts whose first token is the beginning-of-text token; it is left out.
        n_each: neurons of each kind.
    Raises:
        ValueError: more neurons are asked for than there are.
    """
    table = ranked(found, asked.truth, asked.answers)
    if not 0 < n_each <= len(table) // 3:
        raise ValueError(f"{n_each} neurons of each kind were asked for; there are {len(table)} in all")
    chosen = dict.fromkeys(table.index[:n_each], BY_EFFECT)
    rest = table.drop(list(chosen))
    chosen |= dict.fromkeys(rest.selectivity.nlargest(n_each).index, BY_SELECTIVITY)
    rest = table.drop(list(chosen))
    at_random = np.random.default_rng(seed).choice(rest.index, n_each, replace=False)
    chosen |= dict.fromkeys(at_random.tolist(), AT_RANDOM)
    table = table.loc[list(chosen)].assign(found=list(chosen.values()))
    signs = torch.tensor(table["sign"].to_numpy(), dtype=torch.float32)
    on_names, on_text = found.acts[:, list(chosen)] * signs, _on_text(asked, found, tokens, list(chosen)) * signs
    own = [asked.answers.index(answer) for answer in table.answer]
    level = torch.stack([on_names[asked.truth == n, i].mean() for i, n in enumerate(own)])
    stray = 1000 * (on_text >= level).float().mean((0, 1))
    return Reading(
        asked,
        table.assign(level=level.tolist(), stray=stray.tolist()),
        on_names,
        tokens[:, 1:],
        on_text,
        _promoted(asked, found, list(chosen), signs),
    )


def neuron_explorer(reading: Reading, *, neuron: int | None = None) -> Stack:
    """Neurons in a table; a click shows one of them on all names and on text, and its card.

    Args:
        neuron: which is shown first; by default the one with the largest effect.
    """
    kind = ipywidgets.ToggleButtons(options=[BY_EFFECT, BY_SELECTIVITY, AT_RANDOM], style={"button_width": "auto"})
    listing, strip, card = TreeView(), TreeView(), TreeView()

    def show(number: int) -> None:
        strip.tree, card.tree = strip_tree(reading, number), reading.card(number).tree()

    def choose(_change: object = None) -> None:
        rows = reading.table[reading.table.found == kind.value]
        columns = ["label", "effect", "answer", "selectivity", "stray"]
        renamed = {"stray": "as active on text, in 1000 tokens", "answer": "most about"}
        listing.tree = table_tree(rows[columns].rename(columns=renamed).rename_axis("neuron"))

    kind.observe(choose, "value")
    listing.on_click(lambda clicked: show(int(clicked["latent"])) if "latent" in clicked else None)
    choose()
    show(int(reading.table.index[0]) if neuron is None else neuron)
    return Stack([kind, listing, strip, card])


def strip_tree(reading: Reading, neuron: int) -> Node:
    """A row of marks per answer, one mark a name, and below them the strongest tokens of any text, on one scale."""
    column, row = reading.column(neuron), reading.table.loc[neuron]
    acts = reading.on_names[:, column]
    text = reading.on_text[..., column].flatten()
    strongest = text.topk(min(300, len(text))).values
    low, high = float(min(acts.min(), 0)), float(max(acts.max(), strongest[0]))
    rows = {a: acts[reading.asked.truth == n].tolist() for n, a in enumerate(reading.asked.answers)}
    rows[TEXT_ROW] = strongest.tolist()
    nodes = []
    for line, (name, values) in enumerate(rows.items()):
        y, colour = 24 + ROW * line, {row.answer: BLUE, TEXT_ROW: VERMILION}.get(name, GREY)
        nodes.append(element("text", {"x": 4, "y": y + 5, "class": "mi-hist-label"}, name))
        for value in values:
            x = LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / max(high - low, 1e-9)
            mark = {"x": f"{x - 2:.1f}", "y": y - 5, "width": 4, "height": 10, "style": f"color:{colour}"}
            nodes.append(element("rect", mark | {"class": "mi-point"}))
    height = 30 + ROW * len(rows)
    x = LEFT + (WIDTH - LEFT - RIGHT) * (float(row.level) - low) / max(high - low, 1e-9)
    nodes.append(
        element("line", {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": 12, "y2": height - 12, "class": "mi-predicted"})
    )
    box = {"class": "mi-scatter", "viewBox": f"0 0 {WIDTH} {height}", "width": WIDTH, "height": height}
    title = (
        f"{row.label}: activation on every name, by answer, and on the {len(strongest)} strongest tokens of any text"
    )
    note = f"Line: its mean on names of {row.answer}. Blue: those names. Red: text, chosen by nothing but activation."
    return element(
        "div",
        "mi-section",
        element("h4", "", title),
        element("svg", box | {"role": "img", "aria-label": title}, nodes),
        element("p", "mi-note", note),
    )


def _on_text(
    asked: Asked, found: Neurons, tokens: Int[Tensor, "context pos"], chosen: Sequence[int]
) -> Float[Tensor, "context later neuron"]:
    places = [found.place(neuron) for neuron in chosen]
    names, model = sorted({name for name, _ in places}), asked.recall.model
    parts = []
    for batch in tokens.long().split(N_BATCH):
        read = run_with_cache(model, batch.to(model.cfg.device), names)
        parts.append(torch.stack([read[name][:, 1:, number] for name, number in places], dim=-1).cpu())
    return torch.cat(parts)


def _promoted(
    asked: Asked, found: Neurons, chosen: Sequence[int], signs: Float[Tensor, " neuron"]
) -> list[list[tuple[str, float]]]:
    """The tokens each neuron's output raises most, by the unembedding alone."""
    model, rows = asked.recall.model, []
    for neuron, sign in zip(chosen, signs, strict=True):
        layer = found.layers[neuron // found.d_mlp]
        raised = (sign * model.blocks[layer].mlp.W_out.detach()[neuron % found.d_mlp] @ unembedding(model)).topk(
            N_WORDS
        )
        words = token_texts(model.tokenizer, raised.indices.tolist())
        rows.append(list(zip(words, raised.values.tolist(), strict=True)))
    return rows
