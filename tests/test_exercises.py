"""Exercises help, never wait, and never show a string as markup."""

import json

import numpy as np
import pytest
import torch

from mi_utils import exercises


def double(x):
    return 2 * x


def test_a_prediction_never_waits_and_knows_the_pick(capsys):
    guess = exercises.predict("Which?", ["left", "right"])
    assert guess.choice is None
    assert "no guess" in str(guess.reveal("left", because="It was <b>heavier</b>."))
    guess.choice = "left"
    assert "guessed right" in str(guess.reveal("left"))
    guess.choice = "right"
    assert "You guessed: right. Measured here: left" in str(guess.reveal("left"))


def test_a_prediction_refuses_what_cannot_be_answered():
    with pytest.raises(ValueError, match="two or more"):
        exercises.predict("Which?", ["same", "same"])
    with pytest.raises(ValueError, match="not one of the options"):
        exercises.predict("Which?", ["left", "right"]).reveal("up")


def test_attempt_stands_in_until_the_reader_answers(capsys):
    unfilled = exercises.attempt(lambda x: ..., reference=double)
    assert (unfilled(3), unfilled(4)) == (6, 8)
    assert capsys.readouterr().out.count("using the reference") == 1
    assert exercises.attempt(lambda x: x + 1, reference=double)(3) == 4


def test_attempt_shows_the_readers_error():
    with pytest.raises(ZeroDivisionError):
        exercises.attempt(lambda x: x / 0, reference=double)(3)


@pytest.mark.parametrize(
    ("answer", "difference"),
    [
        (lambda x: 2 * x, None),
        (lambda x: -2 * x, "sign"),
        (lambda x: 2 * x + 1, "one too large"),
        (lambda x: 2 * x - 1, "one too small"),
        (lambda x: 6 * x, "3 times"),
        (lambda x: torch.roll(2 * x, 1), "one place along"),
        (lambda x: (2 * x)[None], r"shape [1, 5]; expected [5]"),
        (lambda x: 2 * x / 0, "not finite"),
        (lambda x: 2 * x + torch.tensor([0.0, 0, 0.5, 0, 0]), "1 of 5 entries differ; the first is [2]: got 6.5"),
        (lambda x: "six", "got a str"),
        (lambda x: [[1.0], [2.0, 3.0]], "got a list"),
    ],
)
def test_check_names_the_first_difference(answer, difference):
    attempted = exercises.attempt(answer, reference=double)
    note = exercises.check(attempted, cases=[(torch.tensor([1.0, 5.0, 3.0, 8.0, 2.0]),)])
    assert (difference or "agrees with the reference on all 1 cases") in str(note)


def test_check_says_which_case_raised_and_when_nothing_is_filled_in():
    attempted = exercises.attempt(lambda x: 1 / x, reference=lambda x: 1 / x)
    assert "Case 2: your function raised ZeroDivisionError" in str(exercises.check(attempted, [(1,), (0,)]))
    assert "not filled in" in str(exercises.check(exercises.attempt(lambda x: None, reference=double), [(1,)]))
    with pytest.raises(ValueError, match="no reference"):
        exercises.check(double, [(1,)])


def test_a_transposed_answer_is_recognised():
    assert "transposed" in exercises.first_difference(np.zeros((2, 3)), np.zeros((3, 2)))


def test_rounding_is_no_difference():
    expected = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert exercises.first_difference(expected.half().float(), expected) is not None
    assert exercises.first_difference(expected * (1 + 1e-6), expected) is None


@pytest.mark.parametrize("make", [exercises.hint, exercises.reveal])
def test_strings_are_never_markup(make):
    html = make("<script>alert(1)</script>")._repr_html_()
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert html.startswith("<details>")


def test_hints_open_one_at_a_time():
    html = exercises.hint("first", "second")._repr_html_()
    assert html.index("first") < html.index("<details>", 1) < html.index("second")


def test_reveal_shows_the_source_of_a_function():
    assert "return 2 * x" in str(exercises.reveal(double))


def test_the_static_copy_of_a_prediction_escapes_too():
    html = exercises._choices_html(exercises.Prediction("<b>?</b>", ["<i>", "b"]))
    assert "<i>" not in html
    assert "<b>?" not in html


def test_an_audit_tells_what_each_kind_of_answer_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv(exercises.LOG_VARIABLE, str(tmp_path / "log"))
    exercises.check(exercises.attempt(lambda x: ..., reference=double), [(torch.tensor([1.0, 5.0, 3.0]),)])
    (line,) = (tmp_path / "log").read_text().splitlines()
    told = json.loads(line)["told"]
    assert told.pop("the reference") == "the reference agrees with the reference on all 1 cases."
    assert "not filled in" in told.pop("a blank")
    words = {"another sign": "sign", "one too large": "one too large", "another scale": "3 times"}
    words |= {"another shape": "shape", "a text": "got a str", "an error": "ZeroDivisionError"}
    assert told.keys() == words.keys()
    assert all(message.startswith("Case 1: ") and words[kind] in message for kind, message in told.items())


def test_an_audit_finds_cases_that_cannot_tell_right_from_wrong():
    told = exercises.audit(lambda x: x > 0, [(1,), (2,)])
    assert told["the opposite"] == "Case 1: got False; expected True"
    assert "agrees" in told["always the same"]
    assert "Case 2" in exercises.audit(lambda x: x > 0, [(1,), (-1,)])["always the same"]
    assert "agrees" in exercises.audit(lambda x: 0 * x, [(1.0,)])["another sign"]
    assert "got 'a.'; expected 'a'" in exercises.audit(str, [("a",)])["another text"]
