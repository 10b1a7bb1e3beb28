import re

import pytest
import torch

from mi_utils import concepts, language_worlds
from mi_utils.hooks import run_with_cache
from mi_utils.models import load_tokenizer

ALL = concepts.load()


@pytest.mark.parametrize("concept", ALL.values(), ids=ALL)
class TestShipped:
    def test_has_enough_prompts_and_pairs_and_a_shift(self, concept):
        assert len(concept.prompts) == len(set(concept.prompts)) == 24
        assert len(concept.pairs) >= 30
        assert concept.shifts
        assert all(len(pairs) >= 20 for pairs in concept.shifts.values())

    def test_the_two_texts_of_a_pair_differ_and_no_text_has_both_labels(self, concept):
        positive = {pair.positive for pair in concept.pairs}
        negative = {pair.negative for pair in concept.pairs}
        assert not positive & negative

    def test_no_prompt_is_a_text_to_learn_from(self, concept):
        known = {text for pair in concept.pairs for text in pair[:2]}
        assert not known & set(concept.prompts)

    def test_words_are_single_tokens_and_belong_to_one_side(self, concept):
        tokenizer = load_tokenizer()
        sides = [concepts.token_ids(words, tokenizer) for words in (concept.positive_words, concept.negative_words)]
        assert [len(side) for side in sides] == [len(concept.positive_words), len(concept.negative_words)]
        assert not set(sides[0].tolist()) & set(sides[1].tolist())

    def test_a_lexical_concept_keeps_its_words_out_of_the_pairs(self, concept):
        if concept.lexical:
            text = " ".join(text for pair in concept.pairs for text in pair[:2]).lower()
            words = {word.strip().lower() for word in concept.positive_words + concept.negative_words}
            assert not words & set(re.findall(r"\w+", text))


def test_rows_alternate_and_keep_groups_together():
    rows = ALL["tense"].rows(n_pairs=10)
    assert rows.labels.tolist() == [1, 0] * 10
    assert (rows.groups[0::2] == rows.groups[1::2]).all()
    assert len(rows.texts) == 20


def test_a_choice_of_pairs_repeats_by_seed():
    assert ALL["tense"].rows(n_pairs=5, seed=1).texts == ALL["tense"].rows(n_pairs=5, seed=1).texts
    assert ALL["tense"].rows(n_pairs=5, seed=1).texts != ALL["tense"].rows(n_pairs=5, seed=2).texts


def test_false_statements_use_objects_about_as_often_as_true_ones():
    last = [pair.negative.rsplit(" ", 1)[1] for pair in ALL["truth"].shifts["animals"]]
    assert len(set(last)) == 5
    assert max(map(last.count, set(last))) < 30


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: concepts.load(["nonsense"]), "no concept named nonsense"),
        (lambda: ALL["tense"].rows("nonsense"), "no shift 'nonsense'; it has be, have, do"),
        (lambda: concepts.load_cycle("nonsense"), "there are weekdays, months"),
        (lambda: concepts.token_ids(["qzxqzxqzx"], load_tokenizer()), "none of"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(call, says):
    with pytest.raises(ValueError, match=says):
        call()


class TestRead:
    @pytest.fixture(scope="class")
    @classmethod
    def world(cls):
        return language_worlds.planted_concepts()

    texts = ("fillera", "fillera fillerb oneyesa", "fillera fillerc")

    def cached(self, world, text):
        tokens = world.model.to_tokens(text, prepend_bos=True)
        with torch.no_grad():
            return run_with_cache(world.model, tokens, [world.hook_name])[world.hook_name][0]

    def test_takes_the_last_token_of_each_text(self, world):
        found = concepts.read(world.model, self.texts, [world.hook_name])[world.hook_name]
        assert torch.allclose(found, torch.stack([self.cached(world, text)[-1] for text in self.texts]), atol=1e-6)

    def test_the_mean_leaves_out_the_beginning_of_text(self, world):
        found = concepts.read(world.model, self.texts, [world.hook_name], mean=True)[world.hook_name]
        expected = torch.stack([self.cached(world, text)[1:].mean(0) for text in self.texts])
        assert torch.allclose(found, expected, atol=1e-6)

    def test_strongest_acts_are_maxima_over_tokens(self, world):
        found = concepts.strongest_acts(world.model, self.texts, world.hook_name, world.dictionary)
        expected = [world.dictionary.encode(self.cached(world, text)[1:]).amax(0) for text in self.texts]
        assert torch.allclose(found, torch.stack(expected), atol=1e-5)
        assert found[:, 0].gt(0.5).tolist() == [False, True, False]

    @pytest.mark.parametrize("texts", [[], ["fillera", ""]])
    def test_refuses_empty_texts(self, world, texts):
        with pytest.raises(ValueError, match="none empty"):
            concepts.read(world.model, texts, [world.hook_name])
