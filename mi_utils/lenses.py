"""Read a direction of the residual stream as words: what it makes the model say.

The difference between two models, averaged over the first tokens of texts that have nothing to do with the fine-tune,
is such a direction: the cheapest of all ways to see what fine-tuning was about.

Paper: Minder et al. 2025, "Narrow Finetuning Leaves Clearly Readable Traces in Activation Differences"; Ghandeharioun
et al. 2024, "Patchscopes", arXiv:2401.06102. Taught in `07_model_diffing`.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.hooks import at_position, intervene, run_with_cache
from mi_utils.models import ModelPair, unembedding

N_ROWS = 32
IDENTITY = "cat -> cat\n1135 -> 1135\nhello -> hello\n?"
"""After which a model repeats what stands in the place of the question mark."""


@torch.no_grad()
def mean_difference(
    pair: ModelPair, tokens: Int[Tensor, "context pos"], hook_name: str, n_positions: int = 5
) -> Float[Tensor, "position d_model"]:
    """Tuned minus base, averaged over contexts, at each of the first positions after the beginning-of-text token.

    Raises:
        ValueError: the contexts are too short, or an unknown hook.
    """
    if tokens.shape[1] <= n_positions:
        raise ValueError(f"contexts have {tokens.shape[1]} tokens; {n_positions} positions after the first were asked")
    rows = tokens[:, : n_positions + 1]
    base, tuned = (
        torch.cat([run_with_cache(model, batch, [hook_name])[hook_name][:, 1:] for batch in rows.split(N_ROWS)])
        for model in pair
    )
    return (tuned - base).mean(0)


def logit_lens(model, direction: Float[Tensor, " d_model"], n: int = 20) -> Int[Tensor, " token"]:
    """The tokens whose logits a direction raises most, the first one most of all; all if there are fewer than `n`."""
    effects = direction @ unembedding(model)
    return effects.topk(min(n, len(effects))).indices


@torch.no_grad()
def patchscope(
    model, direction: Float[Tensor, " d_model"], hook_name: str, n: int = 20, prompt: str = IDENTITY
) -> Int[Tensor, " token"]:
    """The tokens that a model repeats when it finds the direction, at a usual length, where a word should be.

    Args:
        prompt: ends in the token whose activation is replaced.
    """
    tokens = model.to_tokens(prompt + " ->", prepend_bos=True)
    place = model.to_tokens(prompt, prepend_bos=True).shape[1] - 1

    def replace(activation: Tensor) -> Tensor:
        return direction / direction.norm() * activation.norm(dim=-1, keepdim=True)

    with intervene(model, {hook_name: at_position(replace, place)}):
        return model(tokens, logits_to_keep=1)[0, -1].topk(n).indices


def typical_tokens(
    counts: Int[Tensor, " d_vocab"], elsewhere: Int[Tensor, " d_vocab"], least: int = 20
) -> Int[Tensor, " token"]:
    """Tokens that are at least four times as frequent in some text as elsewhere, and stand there often enough to say.

    Args:
        counts, elsewhere: how often each token stands in the text and in other text.
        least: tokens seen less often than this are left out.
    """
    share, other = counts / counts.sum(), (elsewhere + 1) / (elsewhere.sum() + len(elsewhere))
    return ((counts >= least) & (share > 4 * other)).nonzero()[:, 0]


def hits(found: Sequence[int] | Tensor, typical: Int[Tensor, " token"]) -> float:
    """The share of some tokens that are among the typical ones."""
    return float(torch.isin(torch.as_tensor(found), typical).float().mean())
