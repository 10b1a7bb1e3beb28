"""One attribute of the names a model is asked about: who has which answer, who is known, and what can be read where.

`ask_for` picks a relation's names and their frequent answers and asks the model; `readable` fits and scores every
readout of the name's last token, layer by layer, beside its controls.

Paper: Nanda, Rajamanoharan, Kramar and Shah 2023, "Fact Finding", posts 1 and 2. Taught in `10_fact_finding`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from threadpoolctl import threadpool_limits
from torch import Tensor

from mi_utils import facts
from mi_utils.class_probes import balanced_accuracy, classes, fit, split_names, token_bags
from mi_utils.effective_models import Recall
from mi_utils.extraction import answer_directions, head_effects, head_readout, read_out
from mi_utils.hooks import hook_name

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_HEADS = 6  # that are tried as the one that carries the attribute


@dataclass(frozen=True)
class Asked:
    """A relation as a model answers it."""

    recall: Recall
    prompt: str
    truth: Int[Tensor, " name"]
    """The number of each name's right answer."""
    known: Bool[np.ndarray, " name"]
    """Whether the right answer is the likeliest of the candidates."""

    @property
    def answers(self) -> list[str]:
        """The candidates, the most frequent first."""
        return self.recall.answers

    def search(self) -> Bool[np.ndarray, " name"]:
        """The half of the names on which things are chosen; what is reported is measured on the other half."""
        return np.arange(len(self.truth)) % 2 == 0


def ask_for(
    model: "TransformerBridge", relation: str, *, shots: int = 0, least: int = 4, most: int | None = None, seed: int = 0
) -> Asked:
    """Ask a model for a relation of all names whose answers are one token and frequent.

    Args:
        least: how many names an answer must have.
        most: names, taken at random if there are more.
    Raises:
        ValueError: no such relation, or fewer than two answers are left.
    """
    found = [f for f in facts.load(relation, shots=shots) if _one_token(model, f.target_true)]
    y, answers = classes([fact.target_true for fact in found], least)
    rows = np.flatnonzero(y >= 0)
    if most is not None and len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    rows = np.random.default_rng(seed).permutation(rows)  # so that both halves are alike
    recall = Recall(model, found[0].prompt, [found[i].subject for i in rows], answers)
    truth = torch.tensor(y[rows])
    return Asked(recall, found[0].prompt, truth, recall.ask().right(truth).numpy() > 0)


def carrier(asked: Asked) -> tuple[int, int]:
    """Layer and head that carry the attribute from the name to the end of the prompt.

    Of the heads that add most to the right answers, the one whose readout of the names' last tokens, before its layer,
    is right most often; on the half of the names that is for choosing.
    """
    half, truth = asked.search(), asked.truth
    recall = Recall(asked.recall.model, asked.prompt, list(np.array(asked.recall.names)[half]), asked.answers)
    best = head_effects(recall, truth[half]).head(N_HEADS)
    places = {int(layer): hook_name("resid_pre", int(layer)) for layer in best.layer.unique()}
    read = recall.ask(read=list(places.values())).read

    def right(layer: int, head: int) -> float:
        scores = read_out(read[places[layer]], head_readout(recall, layer, head))
        return float((scores.argmax(1) == truth[half]).float().mean())

    return max(zip(best["layer"].tolist(), best["head"].tolist(), strict=True), key=lambda pair: right(*pair))


@threadpool_limits.wrap(limits=1, user_api="blas")  # hundreds of small fits, whose threads would wait for one another
def readable(
    asked: Asked, twin: "TransformerBridge", seeds: Iterable[int], head: tuple[int, int] | None = None
) -> pd.DataFrame:
    """How well each readout of the name's last token names the answer, after each layer, on names it was not fitted to.

    `trained probe`, `shuffled labels`, `untrained model` and `bag of tokens` (which has no layers) are fitted on names
    that share no token with the test names; `head readout` and `unembedding` are not fitted. All are scored on the same
    test names.

    Args:
        twin: a randomly initialised model; None leaves it out.
        head: the carrier; by default it is searched for on half of these names, one of six heads.
    Returns:
        Columns `method`, `layer`, `seed`, `on` ("all", "known", "unknown"), `accuracy` (balanced over the answers that
        occur), `chance` (one over the number of candidates) and `n`, the test names.
    """
    recall, truth = asked.recall, asked.truth.numpy()
    layers = range(recall.model.cfg.n_layers)
    places = [hook_name("resid_post", layer) for layer in layers]
    own = recall.ask(read=places).read
    strange = Recall(twin, asked.prompt, recall.names, recall.answers).ask(read=places).read
    at, number = head or carrier(asked)
    readouts = {"head readout": head_readout(recall, at, number), "unembedding": answer_directions(recall).cpu()}
    rows = []

    def note(method: str, layer: int, seed: int, scores: Float[np.ndarray, "name answer"], test: np.ndarray) -> None:
        for on, kept in (("all", test), ("known", test & asked.known), ("unknown", test & ~asked.known)):
            if kept.any():
                reached = balanced_accuracy(scores[kept], truth[kept])
                chance = 1 / len(recall.answers)
                key = {"method": method, "layer": layer, "seed": seed, "on": on}
                rows.append(key | {"accuracy": reached, "chance": chance, "n": int(kept.sum())})

    for seed in seeds:
        split = split_names(recall.name_tokens, seed)
        shuffled = np.random.default_rng(seed).permutation(truth)
        bags = token_bags(recall.name_tokens)
        note("bag of tokens", -1, seed, fit(bags, truth, split).scores(bags), split.test)
        for layer, place in zip(layers, places, strict=True):
            states, untrained = own[place].numpy(), strange[place].numpy()
            note("trained probe", layer, seed, fit(states, truth, split).scores(states), split.test)
            note("shuffled labels", layer, seed, fit(states, shuffled, split).scores(states), split.test)
            note("untrained model", layer, seed, fit(untrained, truth, split).scores(untrained), split.test)
            for method, readout in readouts.items():
                scores = read_out(own[place], readout).numpy()
                note(method, layer, seed, scores, split.test)
    return pd.DataFrame(rows)


def _one_token(model: "TransformerBridge", answer: str) -> bool:
    return len(facts.answer_tokens(model.tokenizer, answer)) == 1
