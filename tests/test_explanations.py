"""The quiz on planted meanings: the true explanation must win, the tempting and the empty ones must not."""

import numpy as np
import pytest

from mi_utils import explanations, indexing, language_worlds
from mi_utils.corpus import token_texts
from mi_utils.explanations import FIRES, NEAR_MISS, SILENT, majority_rule, token_rule
from mi_utils.latents import Settings


@pytest.fixture(scope="module")
def planted():
    return language_worlds.planted_meanings()


@pytest.fixture(scope="module")
def index(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted") / "index"
    return indexing.build(
        planted.model, planted.dictionary, planted.text(150), planted.hook_name, folder,
        settings=Settings(n_top=8, n_sample=16, before=6, after=2), progress=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def observed(planted):
    return explanations.observe(planted.model, planted.dictionary, planted.text(60, seed=1).tokens, planted.hook_name)


def meaning_rule(planted, latent):
    return lambda snippet: snippet.tokens[snippet.mark].strip() in planted.meaning[latent]


def class_rule(shown):
    """What a reader who knows the classes would say: it fires on every class it was seen on."""
    marked = {snippet.tokens[snippet.mark].strip() for snippet in shown}
    seen = [set(words.split()) for words in language_worlds.CLASSES.values() if marked & set(words.split())]
    return lambda snippet: any(snippet.tokens[snippet.mark].strip() in words for words in seen)


def test_latents_fire_on_their_planted_words_and_nowhere_else(planted, observed):
    tokens = observed.tokens.flatten().tolist()
    for latent, meaning in enumerate(planted.meaning):
        fired = set(np.flatnonzero(observed.acts[:, [latent]].toarray()[:, 0]))
        words = [text.strip() for text in token_texts(planted.model.tokenizer, tokens)]
        assert fired == {place for place, word in enumerate(words) if word in meaning and observed.kept[place]}


def test_the_true_explanation_scores_full_marks_and_a_false_one_guesses(planted, index, observed):
    for latent in range(len(planted.names)):
        quiz = explanations.quiz(index, observed, latent)
        truth = quiz.answer_with(meaning_rule(planted, latent))
        assert (truth.accuracy, truth.sensitivity, truth.silences_told) == (1, 1, 1)
        assert truth.interval == (1, 1)
        for fires in (True, False):
            assert quiz.answer_with(majority_rule(fires)).accuracy == 0.5
        other = quiz.answer_with(meaning_rule(planted, (latent + 1) % 2))
        assert other.accuracy < 0.6


def test_top_examples_hide_the_second_face(planted, index, observed):
    latent = planted.names.index("two faces")
    from_top = explanations.quiz(index, observed, latent, top_only=True, n_each=8)
    from_sample = explanations.quiz(index, observed, latent, n_each=8)
    assert {snippet.tokens[snippet.mark].strip() for snippet in from_top.shown} <= set(
        language_worlds.CLASSES["animals"].split()
    )
    top_score, sample_score = (quiz.answer_with(class_rule(quiz.shown)) for quiz in (from_top, from_sample))
    assert top_score.sensitivity < 0.6
    assert sample_score.accuracy == 1


def test_questions_hide_activations_and_are_what_they_say(planted, index, observed):
    for latent in range(len(planted.names)):
        quiz = explanations.quiz(index, observed, latent)
        shown = {snippet.tokens for snippet in quiz.shown}
        assert {question.kind for question in quiz.questions} <= {FIRES, NEAR_MISS, SILENT}
        for question in quiz.questions:
            word = question.snippet.tokens[question.snippet.mark].strip()
            assert not question.snippet.acts.any()
            assert not question.snippet.source
            assert (word in planted.meaning[latent]) == question.fires
            assert question.snippet.tokens not in shown


def test_near_misses_are_tokens_it_fires_on_elsewhere(planted, tmp_path):
    """A latent that fires on colours in half of the contexts has near misses in the other half."""
    text, model = planted.text(60), planted.model
    one = explanations.observe(model, planted.dictionary, text.tokens, planted.hook_name)
    colours = planted.names.index("colours")
    silenced = one.acts.tolil()
    silenced[: silenced.shape[0] // 2, colours] = 0
    half = explanations.Observed(one.tokens, silenced.tocsc(), one.kept)
    index = indexing.build(model, planted.dictionary, text, planted.hook_name, tmp_path / "index", progress=False)
    quiz = explanations.quiz(index, half, colours)
    near = [question for question in quiz.questions if question.kind == NEAR_MISS]
    assert len(near) == 6
    assert all(question.snippet.tokens[question.snippet.mark].strip() in planted.meaning[colours] for question in near)
    score = quiz.answer_with(meaning_rule(planted, colours))
    assert (score.sensitivity, score.near_misses_told, score.silences_told) == (1, 0, 1)
    assert score.accuracy == 0.75


def test_token_rule_says_what_was_seen(index, observed):
    quiz = explanations.quiz(index, observed, 0)
    rule, seen = token_rule(quiz.shown), {snippet.tokens[snippet.mark].strip().lower() for snippet in quiz.shown}
    assert [rule(question.snippet) for question in quiz.questions] == [
        question.snippet.tokens[question.snippet.mark].strip().lower() in seen for question in quiz.questions
    ]


def test_same_seed_same_quiz(index, observed):
    one, again, other = (explanations.quiz(index, observed, 0, seed=seed) for seed in (0, 0, 1))
    texts = [[question.snippet.tokens for question in quiz.questions] for quiz in (one, again, other)]
    assert texts[0] == texts[1] != texts[2]


def test_what_is_refused(planted, index, observed, tmp_path):
    quiz = explanations.quiz(index, observed, 0)
    with pytest.raises(ValueError, match="answers for"):
        quiz.score([True])
    short = planted.text(2)
    tiny = indexing.build(
        planted.model, planted.dictionary, short, planted.hook_name, tmp_path / "tiny",
        settings=Settings(n_sample=2), progress=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match="at least 4"):
        explanations.quiz(tiny, observed, 0)
