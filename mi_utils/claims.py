"""Claims: what a notebook says it found, next to a control, an interval and a verdict that may be "no".

A claim is always about the difference between a value and its control. It holds if the whole interval of that
difference lies on the claimed side of the margin, does not hold if the whole interval lies on the other side, and
is undecided if the interval straddles it. The rule is that of confidence-interval tests, non-inferiority and
equivalence included: Schuirmann (1987), J. Pharmacokinet. Biopharm. 15, 657-680.

    claims = mi.claims.ClaimTable("01_train_an_sae")
    claims.add("Training finds more of the planted features than a frozen decoder does",
               value=recovered, control=recovered_random, interval=interval_of_difference, kind="planted")
    claims.table()          # the last line of its cell: shows the table and hands the record to the runner
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape

MIME = "application/vnd.mi.claims+json"
"""Under this type a displayed table carries its record, which the runner collects."""

DIRECTIONS = ("greater", "less", "within")
KINDS = ("planted", "real")

COLOURS = {"holds": "#00734F", "does not hold": "#A84300", "undecided": "#5F5F5F"}
"""Green, vermilion and grey of the palette, dark enough for text on white."""
COLUMNS = ("Claim", "Value", "Control", "Difference, interval", "Must be", "Verdict")


@dataclass(frozen=True)
class Claim:
    """One statement and how it came out."""

    text: str
    """What is said: one sentence without numbers, the same for every size of run."""
    value: float
    """What was measured."""
    control: float
    """The same measurement where the effect should be absent, or chance level."""
    interval: tuple[float, float] | None
    """Interval of `value - control`; None if nothing was sampled, so that the difference is exact."""
    direction: str
    """Where the difference must lie: above the margin, below minus the margin, or within it on both sides."""
    margin: float
    """How large a difference must be to count, in the unit of the value. Never negative."""
    kind: str
    """`planted`: a positive control in a world of known truth, which must hold. `real`: may come out either way."""
    unit: str
    """Unit of value, control and margin; empty for a share or a pure number."""

    @property
    def difference(self) -> float:
        """`value - control`."""
        return self.value - self.control

    @property
    def verdict(self) -> str:
        """`holds`, `does not hold` or `undecided`, by the rule at the top of this module."""
        low, high = self.interval or (self.difference, self.difference)
        if self.direction == "less":
            low, high = -high, -low
        if self.direction == "within":
            inside, outside = -self.margin <= low and high <= self.margin, high < -self.margin or low > self.margin
        else:
            inside, outside = low > self.margin, high < self.margin or self.interval is None
        return "holds" if inside else "does not hold" if outside else "undecided"

    def record(self) -> dict:
        """The claim and its verdict as plain values, for JSON."""
        return asdict(self) | {"difference": self.difference, "verdict": self.verdict}

    @classmethod
    def from_record(cls, record: dict) -> "Claim":
        """The claim whose `record()` this is; the verdict is worked out again from its numbers."""
        values = {name: record[name] for name in cls.__dataclass_fields__}
        return cls(**values | {"interval": _pair(values["interval"])})

    def _repr_html_(self) -> str:
        return f'<div style="font-size:1.05em">{_verdict_html(self)} — {escape(self.text)}</div>'

    def __str__(self) -> str:
        return f"{self.verdict}: {self.text}"


class ClaimTable:
    """The claims of one notebook, in the order they were made."""

    def __init__(self, notebook: str):
        self.notebook = notebook
        self.claims: list[Claim] = []

    def add(
        self,
        text: str,
        *,
        value: float,
        control: float,
        interval: tuple[float, float] | None,
        direction: str = "greater",
        margin: float = 0.0,
        kind: str = "real",
        unit: str = "",
    ) -> Claim:
        """Claim that `value` is `direction` than `control` by more than `margin`. A claim that fails does not raise.

        The same text again replaces the earlier claim, so that a cell can be run again with other parameters.

        Args:
            interval: of the difference `value - control`, not of the value; `metrics.bootstrap_interval` of paired
                differences gives one. None only if nothing was sampled.
            direction: "greater", "less", or "within" for "as good as": the difference is at most `margin` in size.
        Raises:
            ValueError: a number that is not finite, an interval that is reversed or does not contain the
                difference, a negative margin, an unknown direction or kind.
        """
        claim = Claim(text, float(value), float(control), _pair(interval), direction, float(margin), kind, unit)
        _check(claim)
        self.claims = [earlier for earlier in self.claims if earlier.text != text] + [claim]
        return claim

    def table(self) -> "Table":
        """The table to show at the end of a notebook: the last line of its cell."""
        return Table(self.notebook, tuple(self.claims))


@dataclass(frozen=True)
class Table:
    """Claims ready to be shown; displaying it also hands the record to whoever ran the notebook."""

    notebook: str
    """Name of the notebook, without its ending."""
    claims: tuple[Claim, ...]
    """The claims, in order."""

    def record(self) -> dict:
        """Notebook name and claims as plain values, for JSON."""
        return {"notebook": self.notebook, "claims": [claim.record() for claim in self.claims]}

    def _repr_mimebundle_(self, **_) -> dict:
        return {MIME: self.record(), "text/html": self._html(), "text/plain": str(self)}

    def _html(self) -> str:
        head = "".join(f'<th style="text-align:left">{name}</th>' for name in COLUMNS)
        rows = "".join(f"<tr>{''.join(_cells(claim))}</tr>" for claim in self.claims)
        return f'<table class="mi-claims"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>'

    def __str__(self) -> str:
        return "\n".join(str(claim) for claim in self.claims) or "no claims"


def changed_verdicts(recorded: dict[str, str], records: list[dict]) -> list[str]:
    """What differs between the verdicts on record (text to verdict) and those of a run, one line each."""
    now = {record["text"]: record["verdict"] for record in records}
    changed = [
        f"{text}: {recorded[text]} -> {now[text]}" for text in recorded if now.get(text, "") not in ("", recorded[text])
    ]
    gone = [f"{text}: on record, not claimed any more" for text in recorded if text not in now]
    return changed + gone + [f"{text}: {now[text]}, not on record" for text in now if text not in recorded]


def format_number(x: float) -> str:
    """Three significant digits, without an exponent where a reader can do without."""
    if x == 0:
        return "0"
    if not 1e-4 <= abs(x) < 1e6:
        return f"{x:.2e}"
    decimals = max(0, 2 - math.floor(math.log10(abs(x))))
    return f"{x:,.{decimals}f}"


def _cells(claim: Claim) -> list[str]:
    planted = ' <small title="a positive control: must hold">planted</small>' if claim.kind == "planted" else ""
    unit = f" {claim.unit}" if claim.unit else ""
    interval = "exact" if claim.interval is None else " to ".join(format_number(end) for end in claim.interval)
    value, control = format_number(claim.value) + unit, format_number(claim.control) + unit
    text = f'<td style="text-align:left;min-width:16em">{escape(claim.text)}{planted}</td>'
    style = '<td style="text-align:left;white-space:nowrap">'
    difference = f"{style}{format_number(claim.difference)}<br/><small>{interval}</small></td>"
    value, control, rule = (f"{style}{escape(cell)}</td>" for cell in (value, control, _rule(claim) + unit))
    return [text, value, control, difference, rule, f"{style}{_verdict_html(claim)}</td>"]


def _rule(claim: Claim) -> str:
    if claim.direction == "within":
        return f"within ±{claim.margin:g}"
    return f"> {claim.margin:g}" if claim.direction == "greater" else f"< {0 - claim.margin:g}"


def _verdict_html(claim: Claim) -> str:
    return f'<b style="color:{COLOURS[claim.verdict]}">{claim.verdict}</b>'


def _pair(interval: Sequence[float] | None) -> tuple[float, float] | None:
    if interval is None:
        return None
    low, high = interval
    return float(low), float(high)


def _check(claim: Claim) -> None:
    numbers = (claim.value, claim.control, claim.margin, *(claim.interval or ()))
    if not all(map(math.isfinite, numbers)):
        raise ValueError(f"claim {claim.text!r}: got {numbers}; expected finite numbers. Mend the measurement first")
    if claim.margin < 0:
        raise ValueError(f"claim {claim.text!r}: margin is {claim.margin}; give its size and choose the direction")
    for given, allowed in ((claim.direction, DIRECTIONS), (claim.kind, KINDS)):
        if given not in allowed:
            raise ValueError(f"claim {claim.text!r}: got {given!r}; expected one of {', '.join(allowed)}")
    low, high = claim.interval or (claim.difference, claim.difference)
    slack = 1e-6 * max(abs(claim.value), abs(claim.control), abs(low), abs(high))  # float32 means
    if not low - slack <= claim.difference <= high + slack:
        raise ValueError(
            f"claim {claim.text!r}: the difference value - control is {claim.difference:.6g}, outside of its interval "
            f"{low:.6g} to {high:.6g}; pass the interval of the difference, lower end first"
        )
