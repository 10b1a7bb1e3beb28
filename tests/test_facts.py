import pytest
import torch
from tiny_models import tiny_bridge, tiny_tokenizer

from mi_utils import facts, tracing
from mi_utils.models import load_tokenizer

TOKENIZER = load_tokenizer()


def named(span, prompt):
    tokens = facts.encode(TOKENIZER, prompt)
    return TOKENIZER.decode(tokens[span.start : span.stop])


@pytest.mark.parametrize("relation", facts.relations())
@pytest.mark.parametrize("shots", [0, 5])
def test_every_fact_is_complete_and_its_subject_is_found(relation, shots):
    loaded = facts.load(relation, shots=shots)
    assert len(loaded) >= 30
    for fact in loaded:
        span = facts.subject_positions(TOKENIZER, fact.text, fact.subject)
        assert named(span, fact.text).strip() == fact.subject
        assert fact.target_true != fact.target_false
        assert (
            facts.answer_tokens(TOKENIZER, fact.target_true)[0] != facts.answer_tokens(TOKENIZER, fact.target_false)[0]
        )
        assert fact.source
        assert all(fact.subject in text for text in fact.paraphrases)
        assert len(fact.far) == 5
        assert len(fact.siblings) == 5 or relation not in tracing.TRACED  # of others too few are known


def test_kin_are_what_they_are_called():
    answers = {(row.relation, row.subject): row.answer for row in facts.table().itertuples()}
    countries = {answer for (relation, _), answer in answers.items() if relation == "city_country"}
    for fact in facts.load("city_country")[:40]:
        assert {asked.answer for asked in fact.siblings} <= countries - {fact.target_true}
        assert not any(asked.text.endswith("is a city in the country of") for asked in fact.far)
        assert all(fact.subject not in asked.text for asked in fact.neighbourhood)
    many = [fact for fact in facts.load_known("us_city_state") if fact.target_true == "California"]
    assert all(asked.answer == "California" for fact in many for asked in fact.neighbourhood)


def test_reverse_prompts_name_the_answer_and_ask_for_the_subject():
    fact = next(fact for fact in facts.load("country_capital") if fact.subject == "Austria")
    assert fact.reverse[0] == ("Vienna is the capital of", "Austria")
    assert facts.load("country_language")[0].reverse == ()


def test_loading_repeats_itself_and_examples_leave_their_subjects_out():
    assert facts.load("element_symbol") == facts.load("element_symbol")
    shown = facts.load("element_symbol", shots=3)
    assert {"iron", "carbon", "sodium"}.isdisjoint(fact.subject for fact in shown)
    assert shown[0].text.startswith("The chemical symbol for iron is Fe.\n")


def test_recorded_knowledge_is_what_the_model_shows():
    counts = facts.counts(facts.recorded())
    assert counts.known["us_city_state"] > 50
    assert counts.known["athlete_sport"] < 0.1 * counts.facts["athlete_sport"]
    assert (counts["known, one token"] <= counts.known).all()
    assert len(facts.load_known("city_country")) == counts.known["city_country"]


def test_examples_bring_out_more_of_what_the_model_knows():
    bare, shown = (facts.recorded(shots).groupby("relation").known.mean() for shots in (0, 5))
    assert shown.mean() > bare.mean()
    assert shown["athlete_sport"] < 0.5
    assert {fact.relation for fact in facts.load_known(shots=5)} <= set(shown.index[shown > 0])


def test_known_keeps_what_the_model_writes_in_full():
    model = tiny_bridge()
    words = "abcdef"
    with torch.no_grad():
        logits = model(torch.tensor([[0, 1, 2]]))[0, -1]
    right, wrong = (words[int(i) - 1] for i in (logits[1:].argmax() + 1, logits[1:].argmin() + 1))
    logits[0] = -1e9

    def fact(answer):
        return facts.Fact("r", "b", "a {}", answer, "a" if answer != "a" else "b", (), (), (), (), (), "test")

    measured = facts.measure(model, [fact(right), fact(wrong)], threshold=0.0)
    assert measured.p_true[0] > measured.p_true[1]
    assert not measured.known[1]
    assert [f.target_true for f in facts.known(model, [fact(right), fact(wrong)], threshold=0.999)] == []


def test_a_subject_split_differently_by_itself_is_found_by_its_characters():
    alone = TOKENIZER.encode("Reykjavik")
    prompt = "The city of Reykjavik is the capital of"
    span = facts.subject_positions(TOKENIZER, prompt, "Reykjavik")
    assert facts.encode(TOKENIZER, prompt)[span.start : span.stop].tolist() != alone
    assert named(span, prompt) == " Reykjavik"
    first = facts.subject_positions(TOKENIZER, "Reykjavik is the capital of", "Reykjavik")
    assert first.start == 1


def test_accents_and_several_occurrences():
    prompt = "Côte d'Ivoire is Africa.\nThe capital of Côte d'Ivoire is"
    span = facts.subject_positions(TOKENIZER, prompt, "Côte d'Ivoire")
    assert named(span, prompt) == " Côte d'Ivoire"
    assert span.start > 10
    assert len(facts.encode(TOKENIZER, prompt)) > span.stop


@pytest.mark.parametrize(
    ("prompt", "subject", "message"),
    [
        ("The capital of France is", "Spain", "does not occur"),
        ("The capital of France is", "", "does not occur"),
        ("The capital of Romania is", "Oman", "cover just"),
        ("The capital of Romania is", "oman", "cover just"),
    ],
)
def test_a_subject_that_is_not_there_is_refused(prompt, subject, message):
    with pytest.raises(ValueError, match=message if subject != "Oman" else "does not occur"):
        facts.subject_positions(TOKENIZER, prompt, subject)


def test_answers_of_several_tokens_are_told_apart():
    assert TOKENIZER.decode([facts.answer_token(TOKENIZER, "Paris")]) == " Paris"
    with pytest.raises(ValueError, match="is 2 tokens"):
        facts.answer_token(TOKENIZER, "Buenos Aires")
    kept = facts.one_token(TOKENIZER, facts.load("country_capital"))
    assert 0 < len(kept) < len(facts.load("country_capital"))
    for fact in kept:
        facts.answer_token(TOKENIZER, fact.target_true)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: facts.load("country_president"), "no relation 'country_president'"),
        (lambda: facts.load("city_country", shots=9), "9 examples"),
        (lambda: facts.recorded(2), "nothing is on record for 2"),
        (lambda: facts.measure(tiny_bridge(), []), "no facts"),
        (lambda: facts.encode(TOKENIZER, ""), "empty"),
        (lambda: facts.answer_tokens(TOKENIZER, " "), "empty"),
    ],
)
def test_bad_input_says_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_encoding_puts_the_beginning_first():
    assert facts.encode(tiny_tokenizer(), "a b").tolist() == [0, 1, 2]
