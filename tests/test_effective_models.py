import pytest
import torch
from tiny_models import tiny_bridge
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from mi_utils import extraction, models, name_neurons
from mi_utils.effective_models import Recall, Switches, simplified
from mi_utils.hooks import hook_name, run_with_cache

NAMES, ANSWERS = ["a b", "b c", "c a", "d"], ["d", "e", "f"]
TRUTH = torch.tensor([0, 1, 2, 0])
ALL = range(3)


def recall(prompt="e {} f", model=None):
    return Recall(model or tiny_bridge(), prompt, NAMES, ANSWERS)


def tiny_neox():
    config = GPTNeoXConfig(
        vocab_size=7, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=4
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = GPTNeoXForCausalLM(config).eval()
    return models.bridge(plain, tiny_bridge().tokenizer, "tiny-neox")


class TestAsking:
    def test_gives_the_model_s_own_logits_whatever_is_shared(self):
        model = tiny_bridge()
        for prompt in ("{} f", "e d f e {} f e"):
            asked = recall(prompt).ask()
            for name, logits in zip(NAMES, asked.logits, strict=True):
                whole = model(model.to_tokens(prompt.replace("{}", name)))[0, -1]
                torch.testing.assert_close(logits, whole[recall().answer_ids], rtol=1e-4, atol=1e-4)

    def test_reads_at_the_name_s_last_token_and_at_the_end(self):
        model, place = tiny_bridge(), hook_name("resid_post", 1)
        asked = recall().ask(read=[place], read_end=[place])
        states = run_with_cache(model, model.to_tokens("e b c f"), [place])[place][0]
        torch.testing.assert_close(asked.read[place][1], states[3], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(asked.read_end[place][1], states[4], rtol=1e-4, atol=1e-4)

    def test_margins_and_right_answers_by_hand(self):
        answers = recall().ask()._replace(logits=torch.tensor([[3.0, 0.0, 0.0], [1.0, 0.0, 2.0]]))
        assert answers.right(torch.tensor([0, 1])).tolist() == [1, 0]
        assert answers.margins(torch.tensor([0, 1])).tolist() == [2, -1]

    @pytest.mark.parametrize(
        ("prompt", "names", "answers", "said"),
        [
            ("e f", NAMES, ANSWERS, "a place for them"),
            ("e {}", [], ANSWERS, "0 names"),
            ("e {}", NAMES, ["d"], "two or more"),
            ("e {}", NAMES, ["d e", "d f"], "share their first token"),
        ],
    )
    def test_refuses_what_cannot_be_asked(self, prompt, names, answers, said):
        with pytest.raises(ValueError, match=said):
            Recall(tiny_bridge(), prompt, names, answers)


class TestSwitches:
    def test_nothing_taken_away_changes_nothing(self):
        assert torch.equal(recall().ask(Switches()).logits, recall().ask().logits)

    def test_the_model_is_as_before(self):
        before = recall().ask().logits
        recall().ask(Switches(ALL, ALL))
        recall().ask(Switches(alone=True))
        assert torch.equal(before, recall().ask().logits)

    def test_attention_gone_leaves_no_trace_of_the_first_word_at_the_last(self):
        place = hook_name("resid_post", 2)
        model = tiny_bridge()
        asked = Recall(model, "e {} f", ["a b", "c b", "d a"], ANSWERS).ask(Switches(attention=ALL), read=[place])
        torch.testing.assert_close(asked.read[place][0], asked.read[place][1], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(asked.read[place][0], asked.read[place][2])

    def test_a_replaced_output_is_the_mean_over_the_names(self):
        place = hook_name("mlp_out", 1)
        clean = recall().ask(read=[place]).read[place]
        taken = recall().ask(Switches(mlps=[1]), read=[place]).read[place]
        torch.testing.assert_close(taken, clean.mean(0).expand_as(taken), rtol=1e-4, atol=1e-4)

    def test_a_name_read_alone_brings_its_states_into_the_prompt(self):
        place, model = hook_name("resid_post", 1), tiny_bridge()
        asked = recall("e f {} f").ask(Switches(alone=True), read=[place])
        states = run_with_cache(model, model.to_tokens("b c"), [place])[place][0]
        torch.testing.assert_close(asked.read[place][1], states[-1], rtol=1e-4, atol=1e-4)

    def test_random_switches_are_as_many(self):
        found = Switches(range(2), [0], alone=True).at_random(30, seed=1)
        assert (len(found.attention), len(found.mlps), found.alone) == (2, 1, True)
        assert found.places == sorted(found.places)

    def test_a_column_for_each_step(self):
        table = simplified(recall(), TRUTH, {"whole": Switches(), "no attention": Switches(attention=ALL)})
        assert table.shape == (4, 2)
        assert list(table.index) == NAMES
        assert table.whole.tolist() == recall().ask().right(TRUTH).tolist()


class TestPaths:
    def test_an_mlp_without_an_earlier_one_loses_nothing(self):
        asked = recall()
        assert torch.equal(asked.ask(edits=asked.without_paths([1])).logits, asked.ask().logits)

    def test_what_is_hidden_is_what_the_earlier_mlp_wrote_beyond_its_mean(self):
        asked, reads, written = recall(), "blocks.1.ln2.hook_in", hook_name("mlp_out", 0)
        cut = asked.ask(edits=asked.without_paths([0, 1]), read=[written, reads])
        clean = asked.ask(read=[written, reads])
        deviation = clean.read[written] - clean.read[written].mean(0)
        torch.testing.assert_close(cut.read[reads], clean.read[reads] - deviation, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(clean.logits, cut.logits)


class TestExtraction:
    @pytest.mark.parametrize("model", [tiny_bridge(), tiny_neox()], ids=["llama", "neox"])
    def test_heads_and_readouts_of_two_architectures(self, model):
        asked = Recall(model, "e {} f", NAMES, ANSWERS)
        effects = extraction.head_effects(asked, TRUTH)
        assert len(effects) == 12
        assert effects.effect.is_monotonic_decreasing
        readout = extraction.head_readout(asked, 1, 3)
        assert readout.shape == (16, 3)
        torch.testing.assert_close(readout.sum(1), torch.zeros(16), rtol=1e-4, atol=1e-4)

    def test_a_head_s_readout_is_what_the_head_writes(self):
        model, asked = tiny_bridge(), recall()
        attention, gain = model.blocks[1].attn, model.blocks[1].ln1.original_component.weight
        state = torch.randn(16)
        value = (state * gain) @ attention.W_V[3 // 2]  # four heads, two values
        expected = value @ attention.W_O[3] @ extraction.answer_directions(asked)
        torch.testing.assert_close(state @ extraction.head_readout(asked, 1, 3), expected, rtol=1e-4, atol=1e-5)

    def test_scores_are_free_of_scale_and_of_what_all_names_share(self):
        states, readout = torch.randn(5, 16), torch.randn(16, 3)
        scores = extraction.read_out(states, readout)
        torch.testing.assert_close(scores, extraction.read_out(7 * states, readout), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(scores.mean(0), torch.zeros(3), rtol=1e-4, atol=1e-4)


class TestNeurons:
    @pytest.mark.parametrize("model", [tiny_bridge(), tiny_neox()], ids=["llama", "neox"])
    def test_effects_are_what_the_mlp_writes_along_the_answer(self, model):
        asked, readout = recall(model=model), torch.randn(16, 3)
        readout = readout - readout.mean(1, keepdim=True)
        found = name_neurons.neurons(asked, [0, 2], readout)
        place = hook_name("mlp_out", 2)
        written = asked.ask(read=[place]).read[place]
        expected = ((written - written.mean(0)) @ readout).gather(1, TRUTH[:, None])[:, 0]
        torch.testing.assert_close(found.effects(TRUTH)[:, 24:].sum(1), expected, rtol=1e-3, atol=1e-3)
        assert found.label(25) == "L2N1"
        assert found.place(25) == (hook_name("mlp_post", 2), 1)

    def test_ranked_names_the_answer_a_neuron_is_about(self):
        found = name_neurons.Neurons(
            (0,), 2, torch.tensor([[5.0, 0.0], [0.0, 1.0], [0.0, 1.0], [5.0, 1.0]]), torch.eye(2, 3)
        )
        table = name_neurons.ranked(found, TRUTH, ANSWERS)
        assert table.loc[0, "answer"] == "d"
        assert table.loc[0, "sign"] == 1
        assert (table.loc[1, "answer"], table.loc[1, "sign"]) == ("d", -1)

    def test_swapped_names_keep_every_word_in_its_place(self):
        names, other_last, other_first, other = name_neurons.swapped(["a b", "c d", "e f"])
        for whole, last, first, both in zip(names, other_last, other_first, other, strict=True):
            assert last.split()[0] == whole.split()[0]
            assert first.split()[1] == whole.split()[1]
            assert both == f"{first.split()[0]} {last.split()[1]}"
            assert both in names
        with pytest.raises(ValueError, match="two words"):
            name_neurons.swapped(["a b", "c"])

    def test_before_the_first_attention_nothing_depends_on_both_words(self):
        shares = name_neurons.interaction_by_layer(
            tiny_bridge(), "e {} f", ["a b", "c d", "e f"], ANSWERS, [0, 2], Switches(attention=ALL)
        )
        assert shares.mlp_out.abs().max() < 1e-6
        usual = name_neurons.interaction_by_layer(tiny_bridge(), "e {} f", ["a b", "c d", "e f"], ANSWERS, [2])
        assert usual.mlp_out.iloc[0] > 1e-3
