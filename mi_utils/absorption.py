"""First-letter absorption: where a letter's own latent is silent because a more specific latent carries the letter.

Every word starts with a letter, and the model knows which: a linear probe reads it. A dictionary that has a latent for
"starts with S" ought to fire it on every such word. Where it does not, although the probe still sees the letter, and
another active latent writes along the probe's direction instead, the letter was absorbed.

Read: Chanin et al. (2024), A is for Absorption, arXiv 2409.14507. Taught in `02_inspect_latents`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_utils.metrics import Interval, bootstrap_interval
from mi_utils.sae import Dictionary, active

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

N_LETTERS = 26
MAIN_LATENTS = 3  # at most so many latents count as a letter's own
F1_GAIN = 0.03  # what a further one must add
LEAST_COSINE = 0.1  # of an absorbing latent's row to the probe's direction
LEAST_SHARE = 0.4  # of the probe's reading that an absorbing latent must account for
LEAST_WORDS = 30  # letters with fewer words are left out
RIDGE = 1e-2  # regularisation, as a share of the activations' mean variance


@dataclass(frozen=True)
class Absorption:
    """How much of first letters is absorbed, over letters."""

    letters: pd.DataFrame
    """A row per letter: `words`, `probe` (accuracy), `latents` (the letter's own), `f1` (how well they recognise it),
    `absorbed` (share of the words that the probe reads) and `chance` (the same with another letter's direction)."""

    @property
    def rate(self) -> float:
        """Share of words whose letter was absorbed, mean over letters; 0 is best."""
        return float(self.letters.absorbed.mean())

    @property
    def interval(self) -> Interval:
        """Of the rate, over letters."""
        return bootstrap_interval(self.letters.absorbed.to_numpy())

    @property
    def f1(self) -> float:
        """How well the letters' own latents recognise them: where this is low, little is there to be absorbed."""
        return float(self.letters.f1.mean())


def first_letters(tokenizer: "PreTrainedTokenizerBase", tokens: Int[Tensor, " token"]) -> Int[Tensor, " token"]:
    """Per token the number of its word's first letter, from 0; -1 where it does not begin a word of three letters."""
    ids, place = tokens.unique(return_inverse=True)
    numbers = []
    for text in (tokenizer.decode([i]) for i in ids.tolist()):
        word = text[1:] if text.startswith(" ") else ""
        is_word = len(word) >= 3 and word.isascii() and word.isalpha()
        numbers.append(ord(word[0].lower()) - ord("a") if is_word else -1)
    return torch.tensor(numbers)[place]


@torch.no_grad()
def absorption(
    dictionary: Dictionary,
    x: Float[Tensor, "token d_in"],
    letter: Int[Tensor, " token"],
    tokens: Int[Tensor, " token"],
    seed: int = 0,
) -> Absorption:
    """Measure absorption on words that neither the probe nor the choice of latents has seen.

    Words are split by token id: half to fit the probe (ridge regression on the letters) and to choose each letter's
    latents (by F1, greedily), half to judge.

    Args:
        x: activations at first tokens of words, with their `letter` (0 to 25) and token id.
    Raises:
        ValueError: fewer than two letters have enough words.
    """
    generator = torch.Generator().manual_seed(seed)
    to_judge = (torch.rand(int(tokens.max()) + 1, generator=generator) < 0.5)[tokens]
    directions, mean = _probe(x[~to_judge], letter[~to_judge])
    fires = active(dictionary, x)
    shape = (len(x), len(dictionary.W_dec))
    acts = scipy.sparse.csr_array((fires.acts.numpy(), (fires.tokens.numpy(), fires.latents.numpy())), shape=shape)
    seen = (~to_judge).numpy()
    projections = ((x - mean) @ directions.T).numpy()
    read = projections.argmax(1)
    rows = torch.nn.functional.normalize(dictionary.W_dec, dim=1)
    cosine = (rows @ torch.nn.functional.normalize(directions, dim=1).T).numpy()
    along = (dictionary.W_dec @ directions.T).numpy()
    table = {}
    for number in range(N_LETTERS):
        is_letter = (letter == number).numpy()
        words = is_letter & ~seen
        if words.sum() < LEAST_WORDS or (is_letter & seen).sum() < LEAST_WORDS:
            continue
        main, f1 = _own_latents(acts[seen], is_letter[seen])
        known = words & (read == number)
        silent = known & (acts[:, main].sum(1) == 0)
        other = (number + 1 + int(torch.randint(N_LETTERS - 1, (), generator=generator))) % N_LETTERS
        absorbed, chance = (
            _absorbed(acts[silent], cosine[:, n], along[:, n], projections[silent, n]) for n in (number, other)
        )
        table[chr(ord("a") + number)] = {
            "words": int(words.sum()),
            "probe": known.sum() / words.sum(),
            "latents": main,
            "f1": f1,
            "absorbed": absorbed.sum() / max(1, known.sum()),
            "chance": chance.sum() / max(1, known.sum()),
        }
    if len(table) < 2:
        raise ValueError(f"only {len(table)} letters have {LEAST_WORDS} words on either side; give more text")
    return Absorption(pd.DataFrame(table).T.infer_objects())


def _probe(x: Tensor, letter: Tensor) -> tuple[Float[Tensor, "letter d_in"], Float[Tensor, " d_in"]]:
    mean = x.mean(0)
    centred = (x - mean).double()
    wanted = torch.nn.functional.one_hot(letter, N_LETTERS).double()
    gram = centred.T @ centred
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    return torch.linalg.solve(gram, centred.T @ (wanted - wanted.mean(0))).T.float(), mean


def _own_latents(acts: scipy.sparse.csr_array, is_letter: Bool[np.ndarray, " token"]) -> tuple[list[int], float]:
    """The latents that together recognise the letter best, chosen one after the other, and their F1."""
    fires = (acts > 0).astype(np.float32).tocsc()
    true_positives, positives = fires.T @ is_letter.astype(np.float32), np.asarray(fires.sum(0))
    f1 = 2 * true_positives / (positives + is_letter.sum())
    chosen, best, covered = [], 0.0, np.zeros(len(is_letter), dtype=bool)
    for latent in np.argsort(-f1)[: 4 * MAIN_LATENTS].tolist():
        together = covered | (fires[:, [latent]].toarray()[:, 0] > 0)
        score = 2 * (together & is_letter).sum() / (together.sum() + is_letter.sum())
        if score > best + (F1_GAIN if chosen else 0) and len(chosen) < MAIN_LATENTS:
            chosen, best, covered = [*chosen, latent], float(score), together
    return chosen, best


def _absorbed(
    acts: scipy.sparse.csr_array,
    cosine: Float[np.ndarray, " latent"],
    along: Float[np.ndarray, " latent"],
    projection: Float[np.ndarray, " token"],
) -> Bool[np.ndarray, " token"]:
    """Tokens on which one active latent near the direction accounts for enough of what the probe reads."""
    aligned = acts @ scipy.sparse.diags_array(np.where(cosine >= LEAST_COSINE, along, 0.0))
    largest = aligned.max(axis=1).toarray().ravel() if aligned.nnz else np.zeros(acts.shape[0])
    return (largest > 0) & (projection > 0) & (largest >= LEAST_SHARE * projection)
