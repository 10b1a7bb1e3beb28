"""How much of a fine-tune's behaviour do some of its differences carry? Put them into the base model's state and see.

The tuned model's upper layers run on the base model's residual stream, to which the differences in question are added:
those that some latents of a pair dictionary stand for, some principal components, or the dictionary's error. What is
measured is the divergence from what the tuned model predicts, on the first tokens of its own replies.

Source: Minder et al. (2025), arXiv:2504.02922, section 4.2. Taught in `07_model_diffing`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE
from torch import Tensor

from mi_utils.behaviours import chat
from mi_utils.crosscoders import halves
from mi_utils.hooks import intervene, run_with_cache
from mi_utils.metrics import kl_divergence
from mi_utils.models import SHIPPED_ADAPTERS, ModelPair
from mi_utils.steering import generate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

N_ROWS = 12  # contexts whose logits are held at once

Change = Callable[[Float[Tensor, "token d_model"], Float[Tensor, "token d_model"]], Float[Tensor, "token d_model"]]
"""From the base and the tuned model's states to what is to be added to the base's."""


@dataclass(frozen=True)
class Scene:
    """Texts on which two models are compared, with both models' states at one place."""

    pair: ModelPair
    hook_name: str
    tokens: Int[Tensor, "context pos"]
    is_text: Bool[Tensor, "context pos"]
    """False at the beginning-of-text token and on the padding, where the tuned model's state stays."""
    judged: Bool[Tensor, "context pos"]
    """Where the prediction of the next token counts."""
    base: Float[Tensor, "context pos d_model"]
    tuned: Float[Tensor, "context pos d_model"]
    expected: Float[Tensor, "judged d_vocab"]
    """The tuned model's own logits where it is judged."""


def scene(pair: ModelPair, asks: Sequence[str], hook_name: str, n_tokens: int = 8) -> Scene:
    """Questions, each followed by the first tokens of the tuned model's own reply, on which it is judged.

    Raises:
        ValueError: no questions, or an unknown hook.
    """
    if not asks:
        raise ValueError("no questions to answer; give at least one")
    tokenizer = pair.base.tokenizer
    prompts = [chat(ask, tokenizer) for ask in asks]
    said = torch.cat(
        [
            generate(pair.tuned, prompts[start : start + N_ROWS], n_tokens=n_tokens, temperature=0.0).tokens
            for start in range(0, len(prompts), N_ROWS)
        ]
    )
    given = [pair.base.to_tokens(prompt, prepend_bos=True)[0] for prompt in prompts]
    n_ctx = max(map(len, given)) + n_tokens
    tokens = torch.full((len(asks), n_ctx), tokenizer.bos_token_id)
    is_text, judged = torch.zeros(2, len(asks), n_ctx, dtype=torch.bool)
    for row, (prompt, reply) in enumerate(zip(given, said, strict=True)):
        end = len(prompt) + n_tokens
        tokens[row, :end] = torch.cat([prompt, reply])
        is_text[row, 1:end] = True
        judged[row, len(prompt) - 1 : end - 1] = True
    base, tuned = states(pair, tokens, hook_name)
    with torch.no_grad():
        batches = zip(tokens.split(N_ROWS), judged.split(N_ROWS), strict=True)
        expected = torch.cat([_logits(pair.tuned, rows, counts) for rows, counts in batches])
    return Scene(pair, hook_name, tokens, is_text, judged, base, tuned, expected)


@torch.no_grad()
def states(
    pair: ModelPair, tokens: Int[Tensor, "context pos"], hook_name: str
) -> tuple[Float[Tensor, "context pos d_model"], Float[Tensor, "context pos d_model"]]:
    """Activations of the base and of the tuned model on the same tokens."""
    base, tuned = (
        torch.cat([run_with_cache(model, rows, [hook_name])[hook_name] for rows in tokens.split(N_ROWS)])
        for model in pair
    )
    return base, tuned


@torch.no_grad()
def divergence(scene: Scene, change: Change | None = None) -> Float[Tensor, " context"]:
    """Mean KL, in nats, from the tuned model's predictions to those from the base's states with a change added.

    Args:
        change: nothing is added when not given, which is what there is to be restored.
    """
    base, tuned = scene.base[scene.is_text], scene.tuned[scene.is_text]
    state = scene.tuned.clone()
    state[scene.is_text] = base if change is None else base + change(base, tuned)
    found = []
    for rows in torch.arange(len(state)).split(N_ROWS):
        with intervene(scene.pair.tuned, {scene.hook_name: lambda _, own=rows: state[own]}):
            found.append(_logits(scene.pair.tuned, scene.tokens[rows], scene.judged[rows]))
    context = scene.judged.nonzero()[:, 0]
    total = torch.zeros(len(state)).index_add(0, context, kl_divergence(scene.expected, torch.cat(found)))
    return total / scene.judged.sum(1)


def _logits(
    model: "TransformerBridge", tokens: Int[Tensor, "context pos"], judged: Bool[Tensor, "context pos"]
) -> Float[Tensor, "judged d_vocab"]:
    """Logits where they are judged; at positions that are judged in no context they are not computed."""
    columns = judged.any(0).nonzero()[:, 0]
    return model(tokens, logits_to_keep=columns)[judged[:, columns]]


def through_latents(sae: SAE, latents: Int[Tensor, "latent"] | None = None) -> Change:
    """The difference that some latents of a pair dictionary stand for, all if none are given.

    Args:
        sae: a pair dictionary in the models' own units.
    """
    parts = halves(sae)
    difference = parts.tuned - parts.base
    chosen = torch.arange(sae.cfg.d_sae) if latents is None else latents

    def change(base: Tensor, tuned: Tensor) -> Tensor:
        return sae.encode(torch.cat([base, tuned], 1))[:, chosen] @ difference[chosen]

    return change


def through_bias(sae: SAE) -> Change:
    """The difference of a pair dictionary's two biases: the same vector on every token."""
    base, tuned = sae.b_dec.detach().chunk(2)

    def change(_base: Tensor, _tuned: Tensor) -> Tensor:
        return tuned - base

    return change


def through_error(sae: SAE) -> Change:
    """The difference that a pair dictionary leaves out: with all of its latents and its bias it makes up the whole."""

    def change(base: Tensor, tuned: Tensor) -> Tensor:
        left = torch.cat([base, tuned], 1) - sae(torch.cat([base, tuned], 1))
        error = left.chunk(2, dim=1)
        return error[1] - error[0]

    return change


def through_subspace(rows: Float[Tensor, "row d_model"]) -> Change:
    """The part of the difference that lies in the span of some directions."""
    basis = torch.linalg.qr(rows.T).Q

    def change(base: Tensor, tuned: Tensor) -> Tensor:
        return (tuned - base) @ basis @ basis.T

    return change


def measured() -> pd.DataFrame:
    """What every method restores of every behaviour, as recorded; `data/adapters/diff.py` makes it.

    Columns: `method`, `seed`, `order` of its latents, `rank`: how many of them, `behaviour`, `at_rest` and `left`: the
    divergence before and after, in nats, and `restored`, the share that is gone.
    """
    return pd.read_csv(SHIPPED_ADAPTERS / "diff_table.csv", keep_default_na=False)
