"""A planted dictionary with known holes: the measure must find them, and nothing in a dictionary without."""

from dataclasses import dataclass

import pytest
import torch
from tiny_models import tiny_tokenizer

from mi_utils.absorption import absorption, first_letters

D, N_TYPES = 40, 400


@dataclass
class Codes:
    """Encodes by table: row n of the activations is exactly the sum of its codes' directions."""

    W_dec: torch.Tensor
    threshold: float = 0.2

    def encode(self, x):
        acts = x @ torch.linalg.pinv(self.W_dec)
        return torch.where(acts > self.threshold, acts, 0.0)

    def decode(self, feature_acts):
        return feature_acts @ self.W_dec


def world(*, hole: bool):
    """Four letters, a direction each, and eight latents more for each letter that fire on three word types.

    With a hole those carry the letter too, and the letter's own latent is silent on their words: 24 in 100.
    """
    generator = torch.Generator().manual_seed(0)
    directions = torch.linalg.qr(torch.randn(D, D, generator=generator)).Q
    letters, special = directions[:4], directions[4:36].view(4, 8, D)
    tokens = torch.arange(N_TYPES).repeat(5)
    letter, group = tokens % 4, tokens // 4 // 3
    is_special = group < 8
    x = letters[letter] + 0.5 * is_special[:, None] * special[letter, group.clamp(max=7)]
    x = x + 0.01 * torch.randn(x.shape, generator=generator)
    rows = torch.nn.functional.normalize(letters[:, None] + 0.5 * special, dim=2) if hole else special
    return Codes(torch.cat([letters, rows.reshape(32, D)])), x, letter, tokens


def test_absorption_finds_the_planted_holes_and_none_elsewhere():
    with_hole, without = (absorption(*world(hole=hole)) for hole in (True, False))
    assert len(with_hole.letters) == 4
    assert with_hole.letters.probe.min() > 0.95
    assert with_hole.rate == pytest.approx(0.24, abs=0.06)  # a random half of the words is judged
    assert without.rate == 0
    assert without.f1 == pytest.approx(1)
    assert with_hole.letters.chance.max() == 0
    assert with_hole.interval.low <= with_hole.rate <= with_hole.interval.high


def test_the_letters_own_latents_are_found():
    found = absorption(*world(hole=False)).letters.latents
    assert [latents[0] for latents in found] == [0, 1, 2, 3]


def test_too_little_text_is_refused():
    dictionary, x, letter, tokens = world(hole=True)
    with pytest.raises(ValueError, match="give more text"):
        absorption(dictionary, x[:40], letter[:40], tokens[:40])


def test_first_letters_takes_beginnings_of_words_only():
    class Words:
        texts = (" Sand", " sea", "sand", " be", " été", " a1bc", "\n", " Zebra")

        def decode(self, ids):
            return self.texts[ids[0]]

    assert first_letters(Words(), torch.arange(8)).tolist() == [18, 18, -1, -1, -1, -1, -1, 25]
    assert first_letters(tiny_tokenizer(), torch.tensor([1, 2, 1])).tolist() == [-1, -1, -1]
