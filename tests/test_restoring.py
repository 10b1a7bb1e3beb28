"""The whole difference restores the tuned model exactly, nothing added is the base's state, and parts add up."""

import pytest
import torch
from test_finetuning import TEMPLATE
from tiny_models import tiny_bridge

from mi_utils import crosscoders, hooks, metrics, restoring
from mi_utils.models import ModelPair
from mi_utils.restoring import divergence, through_bias, through_error, through_latents, through_subspace
from mi_utils.stores import Statistics

HOOK = hooks.hook_name("resid_post", 1)
ASKS = ["c d", "e f f", "d"]


@pytest.fixture(scope="module")
def scene():
    pair = ModelPair(tiny_bridge(), tiny_bridge(1))
    pair.base.tokenizer.chat_template = pair.tuned.tokenizer.chat_template = TEMPLATE
    yield restoring.scene(pair, ASKS, HOOK, n_tokens=3)
    pair.base.tokenizer.chat_template = pair.tuned.tokenizer.chat_template = None


@pytest.fixture(scope="module")
def dictionary(scene):
    x = torch.cat([scene.base[scene.is_text], scene.tuned[scene.is_text]], 1)
    unit = Statistics(x.mean(0)[:16] * 0, 1.0, 1.0)
    found = crosscoders.train_pair([x] * 40, 20, 4, n_steps=30)
    return crosscoders.in_model_units(found, (unit, unit))


def test_a_scene_is_question_and_the_tuned_models_own_reply(scene):
    for row, ask in enumerate(ASKS):
        n_given = 1 + 1 + len(ask.split()) + 1
        text = scene.tokens[row][: n_given + 3]
        for place in range(n_given, n_given + 3):
            assert scene.pair.tuned(text[None, :place])[0, -1].argmax() == text[place]
        assert scene.judged[row].nonzero()[:, 0].tolist() == list(range(n_given - 1, n_given + 2))
        assert scene.is_text[row].nonzero()[:, 0].tolist() == list(range(1, n_given + 3))


def test_the_whole_difference_restores_the_tuned_model(scene):
    torch.testing.assert_close(divergence(scene, lambda base, tuned: tuned - base), torch.zeros(3), atol=1e-5, rtol=0)


def test_nothing_added_is_the_bases_state_under_the_tuned_layers(scene):
    first = scene.tokens[:1]
    state = torch.cat([scene.tuned[:1, :1], scene.base[:1, 1:]], 1)
    with hooks.intervene(scene.pair.tuned, {HOOK: lambda _: state}):
        found = scene.pair.tuned(first)
    expected = metrics.kl_divergence(scene.pair.tuned(first), found)[scene.judged[:1]].mean()
    torch.testing.assert_close(divergence(scene)[0], expected)
    assert expected > 0.01


def test_latents_bias_and_error_make_up_the_whole(scene, dictionary):
    parts = through_latents(dictionary), through_bias(dictionary), through_error(dictionary)

    def whole(base, tuned):
        return sum(part(base, tuned) for part in parts)

    torch.testing.assert_close(divergence(scene, whole), torch.zeros(3), atol=1e-5, rtol=0)


def test_sets_of_latents_add_up(scene, dictionary):
    states = scene.base[scene.is_text], scene.tuned[scene.is_text]
    parts = [through_latents(dictionary, latents)(*states) for latents in torch.arange(20).split(7)]
    torch.testing.assert_close(sum(parts), through_latents(dictionary)(*states), atol=1e-4, rtol=1e-4)


def test_a_subspace_takes_its_part_of_the_difference(scene):
    states = scene.base[scene.is_text], scene.tuned[scene.is_text]
    torch.testing.assert_close(through_subspace(torch.eye(16))(*states), states[1] - states[0], atol=1e-4, rtol=1e-4)
    one = through_subspace(2 * torch.eye(16)[3:4])(*states)
    torch.testing.assert_close(one[:, 3], (states[1] - states[0])[:, 3])
    assert not one[:, torch.arange(16) != 3].any()


def test_no_questions_are_refused(scene):
    with pytest.raises(ValueError, match="no questions"):
        restoring.scene(scene.pair, [], HOOK)
