"""Directions that stand for a concept, found in the usual ways: the candidates of a steering comparison.

Every function returns a vector of unit length, so that the dose alone says how much of it is added. `workshop` makes
all of them for one concept at one place; what is read from the model is said there once for all methods.

Papers: DiffMean and its company, Wu et al. 2025, arXiv:2501.17148; CAA, Rimsky et al. 2024, arXiv:2312.06681; choosing
latents by their output, Arad et al. 2025, arXiv:2505.20063; why an encoder misreads a steering vector, Mayne et al.
2024, arXiv:2411.08790. Taught in `05_steering`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from scipy.stats import rankdata
from torch import Tensor

from mi_utils.concepts import Concept, read, strongest_acts
from mi_utils.hooks import intervene
from mi_utils.meta import unit_rows
from mi_utils.models import unembedding
from mi_utils.sae import Dictionary
from mi_utils.sparse_coding import omp

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

NEUTRAL_PROMPT = "From my experience,"
N_CANDIDATES = 20
N_LENS = 20


class Workshop(NamedTuple):
    """Every candidate direction of one concept at one place."""

    vectors: dict[str, Float[Tensor, " d_model"]]
    """Unit vectors, by how they were found."""
    chosen: pd.DataFrame
    """The latents whose rows are among them: `direction`, `latent`, `input_score`, `output_score`."""


def diff_mean(positive: Float[Tensor, "text d_model"], negative: Float[Tensor, "other d_model"]) -> Tensor:
    """The difference of the two means, [d_model]."""
    return _unit(positive.mean(0) - negative.mean(0))


def principal(positive: Float[Tensor, "text d_model"], negative: Float[Tensor, "other d_model"]) -> Tensor:
    """The first principal component of all states together, [d_model]; the labels give only its sign."""
    states = torch.cat([positive, negative])
    component = torch.linalg.svd(states - states.mean(0), full_matrices=False).Vh[0]
    return _unit(component * torch.sign(component @ (positive.mean(0) - negative.mean(0))))


def probe_weight(
    positive: Float[Tensor, "text d_model"], negative: Float[Tensor, "other d_model"], C: float = 0.01
) -> Tensor:
    """The weight of a logistic regression on standardised states, taken back to the states' own scale, [d_model]."""
    from sklearn.linear_model import LogisticRegression

    states = torch.cat([positive, negative])
    labels = [1] * len(positive) + [0] * len(negative)
    scale = states.std(0).clamp(min=1e-6)
    fitted = LogisticRegression(C=C, max_iter=2000).fit(((states - states.mean(0)) / scale).numpy(), labels)
    return _unit(torch.from_numpy(fitted.coef_[0]).float() / scale)


def random_direction(d_model: int, seed: int) -> Float[Tensor, " d_model"]:
    """A direction drawn evenly from the sphere: what any effect has to beat."""
    return _unit(torch.randn(d_model, generator=torch.Generator().manual_seed(seed)))


def input_scores(
    positive: Float[Tensor, "text d_sae"], negative: Float[Tensor, "other d_sae"]
) -> Float[Tensor, " d_sae"]:
    """Per latent the AUROC with which its strongest activation tells positive from negative texts."""
    ranks = torch.from_numpy(rankdata(torch.cat([positive, negative]).numpy(), axis=0)[: len(positive)])
    n = len(positive)
    return ((ranks.sum(0) - n * (n + 1) / 2) / (n * len(negative))).float()


@torch.no_grad()
def output_scores(
    model: "TransformerBridge", hook_name: str, dictionary: Dictionary, latents: Sequence[int], amount: float
) -> Float[Tensor, " latent"]:
    """Per latent, how likely the tokens that its row promotes become when the row is added to a neutral prompt.

    The 20 tokens are those of the row's direct logit effect; the score is the best of their probabilities, times one
    minus its rank over the vocabulary. `amount` is the length added, in the activation's units.
    """
    rows = dictionary.W_dec[list(latents)]
    promoted = (unit_rows(rows) @ unembedding(model)).topk(N_LENS).indices
    tokens = model.to_tokens(NEUTRAL_PROMPT, prepend_bos=True)
    scores = []
    for row, lens in zip(unit_rows(rows), promoted, strict=True):
        with intervene(model, {hook_name: lambda acts, row=row: acts + amount * row}):
            probabilities = model(tokens, logits_to_keep=1)[0, -1].softmax(-1)
        best = probabilities[lens].max()
        rank = (probabilities > best).sum()
        scores.append((1 - rank / len(probabilities)) * best)
    return torch.stack(scores)


def candidates(
    model: "TransformerBridge", concept: Concept, hook_name: str, dictionary: Dictionary, amount: float, n_pairs: int
) -> pd.DataFrame:
    """The 20 latents that read a concept best, best first: `latent`, `input_score`, `output_score`."""
    acts = strongest_acts(model, concept.rows(n_pairs=n_pairs).texts, hook_name, dictionary)
    best = input_scores(acts[0::2], acts[1::2]).topk(N_CANDIDATES)
    found = pd.DataFrame({"latent": best.indices.numpy(), "input_score": best.values.numpy()})
    return found.assign(output_score=output_scores(model, hook_name, dictionary, found["latent"].tolist(), amount))


def workshop(
    model: "TransformerBridge",
    concept: Concept,
    hook_name: str,
    dictionary: Dictionary,
    amount: float,
    *,
    n_pairs: int = 80,
    n_random: int = 3,
) -> Workshop:
    """All candidate directions of a concept at one place.

    DiffMean, the probe and PCA see each text's mean over its tokens; CAA sees the last token alone. Of the SAE there
    is the row of the latent that reads the concept best, and of the 20 best readers the one with the highest output
    score.

    Args:
        amount: the length added when output scores are taken, in the activation's units.
    """
    texts = concept.rows(n_pairs=n_pairs).texts
    mean = read(model, texts, [hook_name], mean=True)[hook_name]
    last = read(model, texts, [hook_name])[hook_name]
    readers = candidates(model, concept, hook_name, dictionary, amount, n_pairs)
    chosen = readers.loc[[0, int(readers["output_score"].idxmax())]]
    chosen.insert(0, "direction", ["SAE row, best reader", "SAE row, best writer"])
    vectors = {
        "DiffMean": diff_mean(mean[0::2], mean[1::2]),
        "CAA": diff_mean(last[0::2], last[1::2]),
        "probe weight": probe_weight(mean[0::2], mean[1::2]),
        "PCA": principal(mean[0::2], mean[1::2]),
    }
    for row in chosen.itertuples():
        vectors[row.direction] = _unit(dictionary.W_dec[row.latent])
    vectors |= {f"random {n}": random_direction(model.cfg.d_model, n) for n in range(n_random)}
    return Workshop(vectors, chosen.reset_index(drop=True))


def rebuilt(
    vector: Float[Tensor, " d_model"], dictionary: Dictionary, k: int, amount: float
) -> dict[str, Float[Tensor, " d_model"]]:
    """A direction as a dictionary's rows say it, in four ways: two pursuits of `k` rows, two passes of the encoder.

    The encoder is first given the direction at unit length, as people do, and then at the length of an activation,
    `amount`. It expects activations: its bias shifts a short vector by more than the vector, and it has no way to
    say that a latent is *less* active than usual.
    """
    rows = unit_rows(dictionary.W_dec)
    codes = {f"pursuit, signed, {k} rows": True, f"pursuit, non-negative, {k} rows": False}
    found = {name: omp(vector[None], rows, k, signed=signed).reconstruct(rows)[0] for name, signed in codes.items()}
    for name, length in (("encoder, unit length", 1.0), ("encoder, typical length", amount)):
        acts = dictionary.encode(length * vector[None])
        found[name] = (acts @ dictionary.W_dec)[0]
    return found


def orthogonalised(vector: Float[Tensor, " d_model"], other: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    """What of a direction is not along the other, at unit length.

    Raises:
        ValueError: the two are the same line.
    """
    other = _unit(other)
    rest = vector - (vector @ other) * other
    if rest.norm() < 1e-4 * vector.norm():
        raise ValueError("the two directions are the same line, so nothing is left; give two different ones")
    return _unit(rest)


def _unit(vector: Float[Tensor, " d_model"]) -> Float[Tensor, " d_model"]:
    if not (length := vector.norm()) > 0:
        raise ValueError("the direction has length zero: both sides have the same mean, or a row is empty")
    return vector / length
