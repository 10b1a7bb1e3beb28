"""Exercises that never stop Run All: predict, attempt, check, with hints and solutions folded away.

    guess = predict("Which loses less?", ["the trained dictionary", "the frozen one"])
    ...
    guess.reveal("the trained dictionary")        # computed by the notebook, shown beside the reader's pick

    def l0(feature_acts): ...                     # your turn
    l0 = attempt(l0, reference=mi.metrics.l0)     # the reader's function where it answers, else the reference
    check(l0, cases=[(example,)])                 # names the first difference

Everything shown is HTML that needs no kernel; every string is escaped.
"""

import functools
import inspect
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from mi_utils.theme import BLUE, GREEN, GREY, VERMILION

BOX = "border-left:4px solid {};padding:6px 12px;margin:6px 0"
ASK, GOOD, BAD, CALM = BLUE, GREEN, VERMILION, GREY
RELATIVE_TOLERANCE = 1e-4
LOG_VARIABLE = "MI_EXERCISE_LOG"
"""Environment variable: a file to which `check` appends the name and the `audit` of each exercise, one JSON a line."""


@dataclass(frozen=True)
class Note:
    """A coloured box in the notebook, or plain text in a terminal."""

    text: str
    """What it says, as plain text."""
    html: str
    """The same as HTML."""

    def _repr_html_(self) -> str:
        return self.html

    def __str__(self) -> str:
        return self.text


class Prediction:
    """A question put to the reader before the result is shown."""

    def __init__(self, question: str, options: Sequence[str]):
        self.question = question
        self.options = tuple(options)
        self.choice: str | None = None
        """What the reader picked; None as long as nothing is picked."""

    def reveal(self, answer: str, because: str = "") -> Note:
        """Show `answer`, which the notebook computed, beside the reader's pick.

        Raises:
            ValueError: the answer is not one of the options.
        """
        if answer not in self.options:
            raise ValueError(f"the answer {answer!r} is not one of the options {list(self.options)}")
        picked = {None: "You made no guess.", answer: "You guessed right."}.get(
            self.choice, f"You guessed: {self.choice}."
        )
        return _note(f"{picked} Measured here: {answer}. {because}".strip(), GOOD if self.choice == answer else CALM)


def predict(question: str, options: Sequence[str]) -> Prediction:
    """Ask the reader for a guess. Never waits: without a click, the guess is None and everything below still runs.

    Raises:
        ValueError: fewer than two options, or one twice.
    """
    if len(options) < 2 or len(set(options)) < len(options):
        raise ValueError(f"got options {list(options)}; expected two or more different ones")
    prediction = Prediction(question, options)
    _show_choices(prediction)
    return prediction


def attempt(function: Callable, *, reference: Callable) -> Callable:
    """The reader's `function`, with `reference` in its place wherever it still answers nothing (None or `...`).

    Says once that the reference is in use. An error in the reader's function is shown as it is.
    """

    @functools.wraps(function)
    def attempted(*arguments, **named):
        answer = function(*arguments, **named)
        if answer is not None and answer is not ...:
            return answer
        if not attempted.said:
            _display(_note(f"{function.__name__} is not filled in: using the reference for now.", CALM))
            attempted.said = True
        return reference(*arguments, **named)

    attempted.said = False
    attempted.reference = reference
    return attempted


def check(function: Callable, cases: Iterable[tuple], *, reference: Callable | None = None) -> Note:
    """Compare `function` with the reference on `cases`, each a tuple of arguments, and name the first difference.

    Args:
        reference: defaults to the one given to `attempt`.
    Raises:
        ValueError: there is no reference.
    """
    reference = reference or getattr(function, "reference", None)
    if reference is None:
        raise ValueError(f"{function.__name__} has no reference: pass reference=..., or make it with attempt(...)")
    function = getattr(function, "__wrapped__", function)
    cases = list(cases)
    if log := os.environ.get(LOG_VARIABLE):
        with Path(log).open("a", encoding="utf8") as file:
            file.write(json.dumps({"exercise": function.__name__, "told": audit(reference, cases)}) + "\n")
    return _compare(function, cases, reference)


def audit(reference: Callable, cases: Sequence[tuple]) -> dict[str, str]:
    """What `check` tells the reference, a blank and answers that are wrong in one way, by the kind of answer.

    Whoever writes an exercise learns from it whether its cases can tell right from wrong; a test does so for all.
    """
    wrong = _wrong_answers(reference(*cases[0]))
    answers = {"the reference": lambda *a: reference(*a), "a blank": lambda *_: ..., "an error": lambda *_: 1 / 0} | {
        kind: lambda *arguments, spoil=spoil: spoil(reference(*arguments)) for kind, spoil in wrong.items()
    }
    return {kind: _compare(_named(answer, kind), cases, reference).text for kind, answer in answers.items()}


def _wrong_answers(right: Any) -> dict[str, Callable]:
    """Ways to spoil answers like `right`."""
    if isinstance(right, str):
        return {"another text": lambda text: f"{text}."}
    if isinstance(right, bool | np.bool_):
        return {"the opposite": lambda answer: not answer, "always the same": lambda _: right}
    return {
        "another sign": lambda answer: -_array(answer),
        "one too large": lambda answer: _array(answer) + 1,
        "another scale": lambda answer: 3 * _array(answer),
        "another shape": lambda answer: _array(answer)[None],
        "a text": lambda _: "a text",
    }


def _named(function: Callable, name: str) -> Callable:
    function.__name__ = name
    return function


def _compare(function: Callable, cases: Sequence[tuple], reference: Callable) -> Note:
    for number, arguments in enumerate(cases, start=1):
        try:
            answer = function(*arguments)
        except Exception as error:  # noqa: BLE001 - the reader's code: whatever it raises is the news
            return _note(f"Case {number}: your function raised {type(error).__name__}: {error}", BAD)
        if answer is None or answer is ...:
            return _note(f"{function.__name__} is not filled in yet: nothing to check.", CALM)
        if difference := first_difference(answer, reference(*arguments)):
            return _note(f"Case {number}: {difference}", BAD)
    return _note(f"{function.__name__} agrees with the reference on all {len(cases)} cases.", GOOD)


def hint(*hints: str) -> Note:
    """Hints, each folded inside the one before, so that a reader opens one at a time."""
    html = ""
    for number, text in reversed(list(enumerate(hints, start=1))):
        html = f"<details><summary>Hint {number}</summary><p>{escape(text)}</p>{html}</details>"
    return Note("\n".join(f"Hint {number}: {text}" for number, text in enumerate(hints, start=1)), html)


def reveal(solution: str | Callable) -> Note:
    """A folded solution: a text, or a function whose source is shown."""
    text = solution if isinstance(solution, str) else inspect.getsource(solution)
    style = "white-space:pre-wrap;margin:6px 0"
    return Note(text, f'<details><summary>Solution</summary><pre style="{style}">{escape(text)}</pre></details>')


def first_difference(answer: Any, expected: Any) -> str | None:
    """What is wrong with `answer`, in words: type, shape, sign, scale, off by one, first entry. None if equal."""
    if isinstance(expected, str):
        return None if answer == expected else f"got {answer!r}; expected {expected!r}"
    try:
        a, b = _array(answer), _array(expected)
    except (TypeError, ValueError):
        return f"got a {type(answer).__name__}; expected numbers like {type(expected).__name__}"
    if a.shape != b.shape:
        swapped = " (transposed?)" if a.shape == b.shape[::-1] else ""
        return f"got shape {list(a.shape)}; expected {list(b.shape)}{swapped}"
    if _close(a, b):
        return None
    if isinstance(expected, bool | np.bool_):
        return f"got {answer}; expected {bool(expected)}"
    return _pattern(a, b) or _first_entry(a, b)


def _pattern(a: np.ndarray, b: np.ndarray) -> str | None:
    """The one mistake that explains every entry, if there is one."""
    if not np.isfinite(a).all():
        return "some entries are not finite (nan or inf)"
    if _close(-a, b):
        return "the sign is the other way round"
    if _close(a - 1, b) or _close(a + 1, b):
        return f"off by one: every entry is one too {'large' if _close(a - 1, b) else 'small'}"
    if a.ndim and a.shape[-1] > 2 and (_close(a[..., 1:], b[..., :-1]) or _close(a[..., :-1], b[..., 1:])):
        return "off by one: the right numbers, one place along the last axis"
    if (a * b).sum() and _close(a * ((b * b).sum() / (a * b).sum()), b):
        return f"the scale: every entry is {(a * b).sum() / (b * b).sum():.3g} times what it should be"
    return None


def _first_entry(a: np.ndarray, b: np.ndarray) -> str:
    if not a.ndim:
        return f"got {a.item():.6g}; expected {b.item():.6g}"
    wrong = ~np.isclose(a, b, rtol=RELATIVE_TOLERANCE, atol=_tolerance(b))
    where = tuple(int(i) for i in np.argwhere(wrong)[0])
    share = f"{wrong.sum()} of {wrong.size} entries differ"
    return f"{share}; the first is {list(where)}: got {a[where]:.6g}; expected {b[where]:.6g}"


def _close(a: np.ndarray | np.float64, b: np.ndarray | np.float64) -> bool:
    return np.allclose(a, b, rtol=RELATIVE_TOLERANCE, atol=_tolerance(b))


def _tolerance(expected: np.ndarray | np.float64) -> float:
    """Rounding of a sum of float32 numbers, relative to the largest expected entry."""
    return 1e-6 * float(np.abs(expected).max(initial=0)) + 1e-12


def _array(x: Any) -> np.ndarray:
    """Numbers, arrays and tensors as a float64 array."""
    if hasattr(x, "detach"):
        x = x.detach().cpu().double().numpy()
    return np.asarray(x, dtype=np.float64)


def _note(text: str, colour: str) -> Note:
    return Note(text, f'<div style="{BOX.format(colour)}">{escape(text)}</div>')


def _choices_html(prediction: Prediction) -> str:
    items = "".join(f"<li>{escape(option)}</li>" for option in prediction.options)
    question = f"<b>Predict:</b> {escape(prediction.question)}"
    return f'<div style="{BOX.format(ASK)}">{question}<ul style="margin:4px 0">{items}</ul></div>'


def _show_choices(prediction: Prediction) -> None:
    """Buttons where a kernel listens, with the plain list as the static copy of the same output."""
    import ipywidgets
    from IPython.display import display

    buttons = ipywidgets.ToggleButtons(options=prediction.options, value=None, style={"button_width": "auto"})
    buttons.observe(lambda change: setattr(prediction, "choice", change["new"]), names="value")
    question = ipywidgets.HTML(f"<b>Predict:</b> {escape(prediction.question)}")
    bundle = ipywidgets.VBox([question, buttons])._repr_mimebundle_()
    plain = f"Predict: {prediction.question} ({' / '.join(prediction.options)})"
    display(bundle | {"text/html": _choices_html(prediction), "text/plain": plain}, raw=True)


def _display(note: Note) -> None:
    from IPython.display import display

    display(note)
