"""Training and indexing that are killed at any write, or run twice at once, lose nothing and leave nothing half."""

import os

import pytest
import torch
from faults import at_once, dying
from tiny_models import tiny_bridge, tiny_tokenizer

from mi_utils import indexing, latents, sae, training
from mi_utils.corpus import Contexts
from mi_utils.hooks import hook_name

D_IN, D_SAE, K, N_STEPS = 16, 24, 4, 12


def train(checkpoint=None):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(64, D_IN, generator=generator) for _ in range(N_STEPS)]
    dictionary = sae.build("batchtopk", D_IN, D_SAE, K)
    training.train(dictionary, batches, N_STEPS, log_every=2, dead_after=2, checkpoint=checkpoint, checkpoint_every=3)
    return dictionary


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_training_killed_at_any_checkpoint_ends_as_if_nothing_had_happened(tmp_path, n, after):
    checkpoint = tmp_path / "run.safetensors"
    assert dying(lambda: train(checkpoint), n, after) == 9
    assert checkpoint.exists() == (n > 1 or after)
    expected = train().state_dict()
    for name, value in train(checkpoint).state_dict().items():
        torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=1e-5)


def test_two_trainings_with_one_checkpoint_both_end_and_leave_it_whole(tmp_path):
    checkpoint = tmp_path / "run.safetensors"
    assert at_once(*[lambda: train(checkpoint)] * 2) == [0, 0]
    train(checkpoint)
    assert list(tmp_path.glob(".*.part")) == []


def build(folder):
    tokens = torch.randint(1, 7, (20, 12), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    tokens[:, 0] = 0
    text = Contexts(tokens, torch.zeros_like(tokens), ["novels"] * len(tokens))
    dictionary = sae.build("topk", D_IN, D_SAE, K)
    settings = latents.Settings(n_top=2, n_sample=2, before=2, after=2)
    place = hook_name("resid_post", 1)
    return indexing.build(tiny_bridge(), dictionary, text, place, folder, settings=settings, progress=False)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_an_index_whose_builder_was_killed_is_whole_or_not_there(tmp_path, after):
    build(tmp_path / "reference")
    assert dying(lambda: build(tmp_path / "index"), 1, after) == 9
    if after:
        latents.LatentIndex(tmp_path / "index", tiny_tokenizer())
    else:
        build(tmp_path / "index")
    assert contents(tmp_path / "index") == contents(tmp_path / "reference")


def test_of_two_builders_of_one_index_the_later_finds_it_made(tmp_path):
    def attempt():
        try:
            build(tmp_path / "index")
        except (ValueError, FileExistsError) as error:
            assert "exists already" in str(error) or "made it meanwhile" in str(error)  # noqa: PT017 - in a child
            os._exit(3)

    assert sorted(at_once(attempt, attempt))[0] == 0
    latents.LatentIndex(tmp_path / "index", tiny_tokenizer())
    assert at_once(attempt) == [3]
    assert list(tmp_path.glob(".*.part")) == []
