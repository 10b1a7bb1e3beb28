"""How the end of a prompt gets an attribute off a name: the heads that carry it, and what they would read at any layer.

A head's effect is what it writes at the end of the prompt, along the right answer's unembedding. The best one's
`W_V W_O W_U` is a readout of a name's last token that nobody trained.

Paper: Nanda, Rajamanoharan, Kramar and Shah 2023, "Fact Finding", post 2. Taught in `10_fact_finding`.
"""

import pandas as pd
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.effective_models import Recall
from mi_utils.hooks import hook_name
from mi_utils.models import unembedding


def answer_directions(recall: Recall) -> Float[Tensor, "d_model answer"]:
    """Unembedding of each candidate over their mean: what tells the answers apart."""
    directions = unembedding(recall.model)[:, recall.answer_ids]
    return directions - directions.mean(1, keepdim=True)


def head_effects(recall: Recall, truth: Int[Tensor, " name"]) -> pd.DataFrame:
    """What every head adds to the right answer's logit, over the mean candidate, at the end of the prompt.

    Columns: `layer`, `head`, `effect` (mean over names, in units of the unembedding, before the final norm's scale) and
    `share` of all positive effects; the largest first.
    """
    layers = range(recall.model.cfg.n_layers)
    places = [hook_name("z", layer) for layer in layers]
    read, directions = recall.ask(read_end=places).read_end, answer_directions(recall).cpu()
    rows = []
    for layer, place in zip(layers, places, strict=True):
        W_O = recall.model.blocks[layer].attn.W_O.detach().cpu()
        toward = W_O @ directions
        for head in range(len(W_O)):
            effects = (read[place][:, head] @ toward[head]).gather(1, truth[:, None])
            rows.append({"layer": layer, "head": head, "effect": float(effects.mean())})
    table = pd.DataFrame(rows).sort_values("effect", ascending=False, ignore_index=True)
    return table.assign(share=table.effect / table.effect.clip(lower=0).sum())


def head_readout(recall: Recall, layer: int, head: int) -> Float[Tensor, "d_model answer"]:
    """What a head would write towards each candidate if it looked at a state of length 1 with nothing else beside it.

    The gain of the norm before the attention is multiplied in.
    """
    block = recall.model.blocks[layer]
    W_V, W_O = block.attn.W_V.detach(), block.attn.W_O.detach()
    shared = len(W_O) // len(W_V)  # several heads may share one value
    gain = block.ln1.original_component.weight.detach()
    return (gain[:, None] * (W_V[head // shared] @ W_O[head] @ answer_directions(recall))).cpu()


def read_out(
    states: Float[Tensor, "name d_model"], readout: Float[Tensor, "d_model answer"]
) -> Float[Tensor, "name answer"]:
    """Scores of the candidates: the states at unit root mean square, less their mean over the names, through a readout.

    Args:
        states: of the residual stream at the names' last tokens, at any layer.
    """
    seen = states / states.pow(2).mean(-1, keepdim=True).sqrt()
    return (seen - seen.mean(0)) @ readout
