"""The verdict rule, the numbers a claim refuses, and what a table hands on."""

import json
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mi_utils.claims import MIME, Claim, ClaimTable, changed_verdicts, format_number


def verdict(interval, direction="greater", margin=0.0, difference=None):
    middle = difference if interval is None else sum(interval) / 2
    return (
        ClaimTable("nb")
        .add("x", value=middle, control=0.0, interval=interval, direction=direction, margin=margin)
        .verdict
    )


@pytest.mark.parametrize(
    ("interval", "direction", "margin", "expected"),
    [
        ((0.1, 0.3), "greater", 0.0, "holds"),
        ((-0.1, 0.3), "greater", 0.0, "undecided"),
        ((-0.3, -0.1), "greater", 0.0, "does not hold"),
        ((0.1, 0.3), "greater", 0.2, "undecided"),
        ((0.0, 0.1), "greater", 0.2, "does not hold"),
        ((-0.3, -0.1), "less", 0.0, "holds"),
        ((-0.3, -0.1), "less", 0.2, "undecided"),
        ((0.1, 0.3), "less", 0.0, "does not hold"),
        ((-0.01, 0.02), "within", 0.05, "holds"),
        ((-0.01, 0.08), "within", 0.05, "undecided"),
        ((0.06, 0.08), "within", 0.05, "does not hold"),
        ((-0.08, -0.06), "within", 0.05, "does not hold"),
    ],
)
def test_verdicts(interval, direction, margin, expected):
    assert verdict(interval, direction, margin) == expected


@pytest.mark.parametrize(
    ("difference", "direction", "expected"),
    [(1.0, "greater", "holds"), (0.0, "greater", "does not hold"), (0.0, "less", "does not hold")],
)
def test_an_exact_difference_is_never_undecided(difference, direction, expected):
    assert verdict(None, direction, difference=difference) == expected


@given(low=st.floats(-5, 5), width=st.floats(0, 5), margin=st.floats(0, 5))
def test_less_is_greater_seen_from_the_other_side(low, width, margin):
    high = low + width
    assert verdict((low, high), "greater", margin) == verdict((-high, -low), "less", margin)


@given(low=st.floats(-5, 5), width=st.floats(0.1, 5), extra=st.floats(0, 5), margin=st.floats(0, 5))
def test_a_wider_interval_never_makes_a_verdict_more_certain(low, width, extra, margin):
    high = low + width
    for direction in ("greater", "less", "within"):
        wide = verdict((low - extra, high + extra), direction, margin)
        assert wide in ("undecided", verdict((low, high), direction, margin))


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"value": float("nan")}, "finite"),
        ({"interval": (0.9, 1.1)}, "outside of its interval"),  # that of the value, not of the difference
        ({"interval": (0.6, 0.4)}, "outside of its interval"),
        ({"margin": -1.0}, "margin is -1.0"),
        ({"direction": "above"}, "'above'; expected one of greater"),
        ({"kind": "maybe"}, "'maybe'; expected one of planted"),
    ],
)
def test_wrong_numbers_are_refused_with_the_reason(numbers, message):
    good = {"value": 1.0, "control": 0.5, "interval": (0.4, 0.6)}
    with pytest.raises(ValueError, match=message):
        ClaimTable("nb").add("x", **good | numbers)


def test_a_claim_that_fails_does_not_raise_and_the_same_text_replaces_it():
    table = ClaimTable("nb")
    table.add("x", value=0.0, control=1.0, interval=(-1.1, -0.9))
    table.add("x", value=1.0, control=0.0, interval=(0.9, 1.1))
    assert [claim.verdict for claim in table.claims] == ["holds"]


def test_the_table_shows_text_as_text_and_carries_its_record():
    table = ClaimTable("nb")
    table.add("<b>a & b</b>", value=0.5, control=0.25, interval=(0.2, 0.3), kind="planted", unit="<i>")
    bundle = table.table()._repr_mimebundle_()
    markup = ElementTree.fromstring(bundle["text/html"])
    assert not list(markup.iter("i"))
    assert next(cell.text for cell in markup.iter("td")) == "<b>a & b</b> "
    record = json.loads(json.dumps(bundle[MIME]))
    assert record["notebook"] == "nb"
    assert [Claim.from_record(claim) for claim in record["claims"]] == table.claims
    assert record["claims"][0]["verdict"] == "holds"


def test_changed_verdicts_names_what_changed_what_went_and_what_is_new():
    now = [{"text": "a", "verdict": "holds"}, {"text": "b", "verdict": "undecided"}, {"text": "d", "verdict": "holds"}]
    assert changed_verdicts({"a": "holds", "b": "holds", "c": "holds"}, now) == [
        "b: holds -> undecided",
        "c: on record, not claimed any more",
        "d: holds, not on record",
    ]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.0, "0"), (0.12345, "0.123"), (12.345, "12.3"), (1234.5, "1,234"), (-0.00512, "-0.00512"), (2e-7, "2.00e-07")],
)
def test_format_number(number, text):
    assert format_number(number) == text
