"""Neurons at the last token of a name: what each adds to an answer, and what swapping parts of names does to it.

`swapped` recombines names, so that a sum over parts can be told from a function of the whole. `Neurons` holds
activations of all MLPs of some layers at the names' last tokens and what each neuron writes towards each answer.

Paper: Nanda, Rajamanoharan, Kramar and Shah 2023, "Fact Finding", posts 3 and 4. Taught in `10_fact_finding`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.effective_models import NOTHING, Recall, Switches
from mi_utils.fact_finding import Square, interaction_share, partners
from mi_utils.hooks import hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Neurons:
    """The neurons of some layers at the names' last tokens."""

    layers: tuple[int, ...]
    d_mlp: int
    acts: Float[Tensor, "name neuron"]
    """What the output weights read, layer after layer."""
    writes: Float[Tensor, "neuron answer"]
    """What an activation of 1 adds to each answer's score, over the mean answer."""

    def label(self, neuron: int) -> str:
        """A neuron's name, such as L5N604."""
        return f"L{self.layers[neuron // self.d_mlp]}N{neuron % self.d_mlp}"

    def place(self, neuron: int) -> tuple[str, int]:
        """The hook where it is read, and its number there."""
        return hook_name("mlp_post", self.layers[neuron // self.d_mlp]), neuron % self.d_mlp

    def effects(
        self, truth: Int[Tensor, " some"], rows: Int[Tensor, " some"] | None = None
    ) -> Float[Tensor, "some neuron"]:
        """What each neuron's deviation from its mean over all names adds to the answers of all names, or of some."""
        acts = self.acts if rows is None else self.acts[rows]
        return (acts - self.acts.mean(0)) * self.writes.T[truth]


def words(names: Sequence[str]) -> list[int]:
    """Which names are two words, so that they can be recombined."""
    return [i for i, name in enumerate(names) if len(name.split()) == 2]


def swapped(names: Sequence[str], seed: int = 0) -> list[list[str]]:
    """Two-word names, and three recombinations with another name each: other last, other first, both.

    Raises:
        ValueError: a name is not two words, or shares a word with every other.
    """
    if len(words(names)) < len(names):
        odd = next(name for name in names if len(name.split()) != 2)
        raise ValueError(f"expected names of two words, got {odd!r}; keep those of `name_neurons.words`")
    first, last = np.array([name.split() for name in names]).T
    numbers = [torch.tensor(np.unique(part, return_inverse=True)[1]) for part in (first, last)]
    other = partners(*numbers, seed).numpy()
    pairs = ((first, last), (first, last[other]), (first[other], last), (first[other], last[other]))
    return [[f"{a} {b}" for a, b in zip(*pair, strict=True)] for pair in pairs]


def margins(
    model: "TransformerBridge",
    prompt: str,
    names: Sequence[str],
    answers: Sequence[str],
    truth: Int[Tensor, " name"],
    seed: int = 0,
) -> Square:
    """The margin of each name's right answer for the name and its three recombinations, in nats."""
    together = Recall(model, prompt, list(chain(*swapped(names, seed))), answers).ask().margins(truth.repeat(4))
    return Square(*together.chunk(4))


def interaction_by_layer(
    model: "TransformerBridge",
    prompt: str,
    names: Sequence[str],
    answers: Sequence[str],
    layers: Sequence[int],
    switches: Switches = NOTHING,
    seed: int = 0,
) -> pd.DataFrame:
    """Share of variance within squares of names that is interaction, in what neurons read and in what they write.

    Names are read alone. Columns: `layer`, `pre_acts` (of the gate, where neurons are gated), `acts`, `mlp_out`.
    """
    kinds = {"pre_acts": "mlp_pre", "acts": "mlp_post", "mlp_out": "mlp_out"}
    places = [hook_name(kind, layer) for layer in layers for kind in kinds.values()]
    together = Recall(model, prompt, list(chain(*swapped(names, seed))), answers)  # so that all share the same means
    read = together.read_alone(places, switches)
    rows = []
    for layer in layers:
        squares = {name: Square(*read[hook_name(kind, layer)].chunk(4)) for name, kind in kinds.items()}
        rows.append({"layer": layer} | {name: interaction_share(square) for name, square in squares.items()})
    return pd.DataFrame(rows)


def neurons(recall: Recall, layers: Sequence[int], readout: Float[Tensor, "d_model answer"]) -> Neurons:
    """Read the neurons of some layers in the prompt, and what they write towards each answer."""
    places = [hook_name("mlp_post", layer) for layer in layers]
    read = recall.ask(read=places).read
    W_out = torch.cat([recall.model.blocks[layer].mlp.W_out.detach().cpu() for layer in layers])
    writes = W_out @ readout
    return Neurons(
        tuple(layers),
        read[places[0]].shape[1],
        torch.cat([read[place] for place in places], 1),
        writes - writes.mean(1, keepdim=True),
    )


def ranked(found: Neurons, truth: Int[Tensor, " name"], answers: Sequence[str]) -> pd.DataFrame:
    """Every neuron by its mean effect on the right answers, largest first.

    Columns: `label`, `effect` on the right answer's score, `answer` on whose names it differs most from other names,
    `selectivity`, by how many standard deviations, and `sign`, -1 where it is lower there. The index is the neuron's
    number.
    """
    effects = found.effects(truth)
    sums = torch.zeros(len(answers), effects.shape[1]).index_add(0, truth, found.acts)
    counts = torch.bincount(truth, minlength=len(answers))[:, None]
    inside, outside = sums / counts.clamp(min=1), (found.acts.sum(0) - sums) / (len(truth) - counts).clamp(min=1)
    gaps = (inside - outside).masked_fill(counts == 0, 0)
    best = gaps.abs().argmax(0)
    gap = gaps.gather(0, best[None])[0]
    return pd.DataFrame(
        {
            "label": [found.label(neuron) for neuron in range(len(gap))],
            "effect": effects.mean(0),
            "answer": [answers[i] for i in best.tolist()],
            "selectivity": gap.abs() / found.acts.std(0).clamp(min=1e-9),
            "sign": gap.sign().int(),
        }
    ).sort_values("effect", ascending=False)
