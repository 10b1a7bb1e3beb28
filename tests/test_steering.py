import pytest
import torch

from mi_utils import concepts, language_worlds, steering
from mi_utils.steering import Addition, Gauge, cost, generate, repeats, steered, typical_norm


@pytest.fixture(scope="module")
def world():
    return language_worlds.planted_concepts()


def logits(world, additions=(), n_before=1):
    tokens = world.neutral[:1]
    with torch.no_grad(), steered(world.model, additions, n_before=n_before):
        return world.model(tokens)


def states(world, additions=(), n_before=1):
    from mi_utils.hooks import run_with_cache

    with torch.no_grad(), steered(world.model, additions, n_before=n_before):
        return run_with_cache(world.model, world.neutral[:1], ["blocks.0.hook_resid_mid"])["blocks.0.hook_resid_mid"][0]


class TestSteered:
    def test_adds_the_vector_everywhere_but_at_the_first_position(self, world):
        vector = world.directions["one"]
        moved = states(world, [Addition(world.hook_name, vector)]) - states(world)
        assert moved[0].abs().max() < 1e-5
        assert torch.allclose(moved[1:], vector.expand(len(moved) - 1, -1), atol=1e-5)

    @pytest.mark.parametrize(
        ("where", "reached"), [("generated", [-1]), ((1, 2), [1, 2]), ((-2,), [-2]), ((0,), [0])], ids=str
    )
    def test_adds_it_where_it_is_told_to(self, world, where, reached):
        vector = world.directions["one"]
        moved = states(world, [Addition(world.hook_name, vector, where)]) - states(world)
        expected = torch.zeros(len(moved))
        expected[reached] = 1.0
        assert torch.allclose(moved, expected[:, None] * vector, atol=1e-5)

    def test_several_additions_at_one_place_add_up(self, world):
        one, two = (Addition(world.hook_name, world.directions[name]) for name in ("one", "two"))
        both = Addition(world.hook_name, one.vector + two.vector)
        assert torch.allclose(logits(world, [one, two]), logits(world, [both]), atol=1e-5)

    def test_a_dose_of_zero_is_bit_identical(self, world):
        assert torch.equal(logits(world, [Addition(world.hook_name, torch.zeros(64))]), logits(world))

    def test_positions_count_from_the_text_when_the_row_is_padded(self, world):
        vector = world.directions["one"]
        moved = states(world, [Addition(world.hook_name, vector, (1,))], n_before=torch.tensor([3])) - states(world)
        assert moved.norm(dim=1).argmax() == 3

    def test_leaves_the_model_as_it_was_when_the_block_raises(self, world):
        before = logits(world)
        with pytest.raises(RuntimeError, match="on purpose"), steered(world.model, [_one(world)]):
            raise RuntimeError("on purpose")
        assert torch.equal(logits(world), before)

    def test_refuses_a_vector_of_another_model(self, world):
        with pytest.raises(ValueError, match=r"width 5, the model's residual stream 64"):
            logits(world, [Addition(world.hook_name, torch.ones(5))])

    def test_refuses_a_position_beyond_the_prompt(self, world):
        with pytest.raises(ValueError, match=r"not all in a prompt of 13 tokens"):
            logits(world, [Addition(world.hook_name, torch.ones(64), (13,))])


class TestGenerate:
    def test_a_padded_batch_writes_what_each_prompt_writes_alone(self, world):
        prompts = ["fillera", "fillera fillerb fillerc"]
        together = generate(world.model, prompts, [_one(world)], temperature=0.0, n_tokens=4)
        for row, prompt in enumerate(prompts):
            alone = generate(world.model, [prompt], [_one(world)], temperature=0.0, n_tokens=4)
            assert torch.equal(alone.tokens[0], together.tokens[row])

    def test_each_row_can_have_a_vector_of_its_own(self, world):
        rows = torch.stack([3 * world.directions["one"], -3 * world.directions["one"]])
        texts = generate(
            world.model, ["fillera"] * 2, [Addition(world.hook_name, rows)], temperature=0.0, n_tokens=2
        ).texts
        assert "oneyestarget" in texts[0]
        assert "onenotarget" in texts[1]

    def test_the_same_seed_writes_the_same(self, world):
        first, again, other = (
            generate(world.model, ["fillera"] * 4, n_tokens=8, seed=seed).tokens for seed in (0, 0, 1)
        )
        assert torch.equal(first, again)
        assert not torch.equal(first, other)

    def test_leaves_the_random_numbers_of_others_alone(self, world):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        generate(world.model, ["fillera"], n_tokens=2, seed=9)
        assert torch.equal(torch.rand(1), expected)

    @pytest.mark.parametrize("prompts", [[], ["fillera", ""]])
    def test_refuses_no_prompt(self, world, prompts):
        with pytest.raises(ValueError, match="none empty"):
            generate(world.model, prompts)


def test_cost_is_the_mean_loss_of_the_continuation_alone(world):
    prompts, written = ["fillera", "fillera fillerb"], torch.tensor([[3, 4, 5], [6, 7, 8]])
    for prompt, row, paid in zip(prompts, written, cost(world.model, prompts, written), strict=True):
        tokens = torch.cat([world.model.to_tokens(prompt, prepend_bos=True)[0], row])[None]
        with torch.no_grad():
            chances = world.model(tokens)[0].log_softmax(-1)
        by_hand = -torch.stack([chances[-4 + n, token] for n, token in enumerate(row)]).mean()
        assert paid == pytest.approx(float(by_hand), abs=1e-5)


def test_repeats_counts_bigrams_seen_before():
    assert repeats(torch.tensor([[1, 2, 1, 2, 1], [1, 2, 3, 4, 5]])).tolist() == [0.5, 0.0]


def test_typical_norm_leaves_out_the_first_position(world):
    assert typical_norm(world.model, world.hook_name, world.neutral) == pytest.approx(
        language_worlds.CONSTANT, rel=0.05
    )


class TestGauge:
    def test_a_planted_direction_moves_its_own_concept_alone(self, world):
        effect = {name: Gauge(world.model, concept)([_one(world)]) for name, concept in world.concepts.items()}
        assert (effect["one"] > 1.0).all()
        assert all(effect[name].abs().max() < 0.1 for name in ("two", "gate", "gated"))

    def test_is_the_log_odds_by_hand(self, world):
        gauge = Gauge(world.model, world.concepts["one"], ["fillera"])
        with torch.no_grad():
            last = world.model(world.model.to_tokens("fillera", prepend_bos=True))[0, -1].softmax(0)
        sides = (gauge.concept.positive_words, gauge.concept.negative_words)
        yes, no = (last[concepts.token_ids(words, world.model.tokenizer)].sum() for words in sides)
        assert gauge.at_rest.item() == pytest.approx(float((yes / no).log()), abs=1e-5)

    def test_nothing_added_has_no_effect(self, world):
        assert Gauge(world.model, world.concepts["one"])([]).abs().max() == 0.0

    def test_the_instruction_is_put_before_each_prompt(self, world):
        gauge = Gauge(world.model, world.concepts["one"], ["fillera"])
        assert torch.allclose(gauge.prompted(), gauge.log_odds([gauge.concept.instruction + "fillera"]) - gauge.at_rest)


def _one(world):
    return Addition(world.hook_name, world.directions["one"])


def test_the_real_model_is_bit_identical_at_dose_zero_and_moves_otherwise():
    from mi_utils.models import load_model

    model = load_model()
    gauge = Gauge(model, concepts.load(["tense"])["tense"])
    place = "blocks.12.hook_resid_post"
    assert torch.equal(gauge.log_odds(gauge.prompts, [Addition(place, torch.zeros(576))]), gauge.at_rest)
    moved = gauge(
        [Addition(place, steering.typical_norm(model, place, model.to_tokens("A b c d e")) * torch.eye(576)[0])]
    )
    assert moved.abs().max() > 0.01
