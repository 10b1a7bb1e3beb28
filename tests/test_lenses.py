"""A lens reads what a direction says; the mean difference is a mean of differences."""

import pytest
import torch
from tiny_models import tiny_bridge

from mi_utils import hooks, lenses
from mi_utils.models import ModelPair, unembedding

HOOK = hooks.hook_name("resid_post", 1)
TOKENS = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6], [0, 2, 2, 1]])


def test_the_mean_difference_by_hand():
    pair = ModelPair(tiny_bridge(), tiny_bridge(1))
    found = lenses.mean_difference(pair, TOKENS, HOOK, n_positions=2)
    base, tuned = (hooks.run_with_cache(model, TOKENS, [HOOK])[HOOK] for model in pair)
    torch.testing.assert_close(found, (tuned - base)[:, 1:3].mean(0), atol=1e-5, rtol=1e-4)


def test_a_model_does_not_differ_from_itself():
    assert not lenses.mean_difference(ModelPair(tiny_bridge(), tiny_bridge()), TOKENS, HOOK, n_positions=3).any()


def test_the_logit_lens_finds_the_token_whose_column_it_is_given():
    columns = torch.nn.functional.normalize(unembedding(tiny_bridge()), dim=0)
    for token in range(7):
        assert lenses.logit_lens(tiny_bridge(), columns[:, token], n=1).item() == token


def test_the_patchscope_puts_the_direction_where_it_says():
    model = tiny_bridge()
    direction = torch.randn(16, generator=torch.Generator().manual_seed(0))
    tokens = model.to_tokens("a b c ->", prepend_bos=True)
    length = hooks.run_with_cache(model, tokens, [HOOK])[HOOK][0, 3].norm()

    def put(activation):
        activation = activation.clone()
        activation[:, 3] = direction / direction.norm() * length
        return activation

    with hooks.intervene(model, {HOOK: put}):
        expected = model(tokens)[0, -1].topk(3).indices
    assert lenses.patchscope(model, 5 * direction, HOOK, n=3, prompt="a b c").tolist() == expected.tolist()


def test_typical_tokens_are_frequent_here_and_rare_elsewhere():
    here, elsewhere = torch.tensor([100, 30, 10, 100]), torch.tensor([200, 1, 0, 1000])
    assert lenses.typical_tokens(here, elsewhere).tolist() == [1]
    assert lenses.hits([1, 3], torch.tensor([1])) == 0.5


def test_contexts_too_short_are_refused():
    with pytest.raises(ValueError, match="4 tokens"):
        lenses.mean_difference(ModelPair(tiny_bridge(), tiny_bridge(1)), TOKENS, HOOK, n_positions=4)
