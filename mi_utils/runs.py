"""What is kept of each execution of a notebook: its cost beside its budget, its claims, how it failed."""

import json
from dataclasses import dataclass, field
from pathlib import Path

NOTEBOOK_SECONDS = {"full": 240, "fast": 240}
"""Budget of one notebook by tier: the full one on two quiet cores, the fast one on two busy cores."""
SUITE_SECONDS = 25 * 60
"""Budget of all notebooks together, full tier."""
PEAK_BYTES = 6_000_000_000
"""Budget of memory."""


@dataclass(frozen=True)
class Run:
    """One execution of one notebook."""

    notebook: str
    """File name without its ending."""
    title: str
    """First heading."""
    tier: str
    """`full`, or `fast` for the small sizes that tests use."""
    seconds: float
    """Wall time from the start of the kernel to its end."""
    peak_bytes: int
    """Largest resident memory of the kernel and its children, sampled ten times a second."""
    finished: str
    """When it ended, ISO 8601 with time zone."""
    machine: str
    """System, processor count and Python version."""
    failure: str | None = None
    """Cell, its first line and the error; None if every cell ran."""
    claims: list[dict] = field(default_factory=list)
    """Records of the claims shown, see `claims.Claim`."""
    refused: list[str] = field(default_factory=list)
    """Network destinations that the kernel asked for and was refused, also where a library kept quiet about it."""
    fingerprint: str = ""
    """Of the notebook, the package, the data and the pins it ran with; `runner.run_notebooks(resume=True)` compares."""

    def verdict_counts(self) -> str:
        """How many claims came out how, in words."""
        verdicts = [claim["verdict"] for claim in self.claims]
        counts = {verdict: verdicts.count(verdict) for verdict in ("holds", "does not hold", "undecided")}
        return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "none"

    def broken_controls(self) -> list[str]:
        """Texts of the planted claims that do not hold: then the method failed where the truth is known."""
        return [c["text"] for c in self.claims if c["kind"] == "planted" and c["verdict"] != "holds"]

    def over_budget(self) -> list[str]:
        """Which of time and memory were more than allowed; empty if neither."""
        over = {"time": self.seconds > NOTEBOOK_SECONDS[self.tier], "memory": self.peak_bytes > PEAK_BYTES}
        return [name for name, is_over in over.items() if is_over]


def budget_table(runs: list[Run]) -> str:
    """Minutes and peak memory of each run and of all of them beside what is allowed, as lines of text."""
    width = max([len(run.notebook) for run in runs], default=8)
    allowed = NOTEBOOK_SECONDS[runs[0].tier] if runs else 0
    lines = [f"{'notebook':<{width}}  minutes of {allowed / 60:g}  peak GB of {PEAK_BYTES / 1e9:g}  claims"]
    for run in runs:
        outcome = f"FAILED in {run.failure}" if run.failure else run.verdict_counts()
        over = "".join(f"OVER BUDGET in {name}; " for name in run.over_budget())
        lines.append(_cost_line(run.notebook, width, run.seconds, run.peak_bytes, over + outcome))
    seconds, peak = sum((run.seconds for run in runs), 0.0), max([run.peak_bytes for run in runs], default=0)
    over = runs and runs[0].tier == "full" and seconds > SUITE_SECONDS
    remark = f"{'OVER BUDGET: ' if over else ''}the whole suite has {SUITE_SECONDS // 60} minutes in full size"
    return "\n".join([*lines, _cost_line("all", width, seconds, peak, remark)])


def _cost_line(name: str, width: int, seconds: float, peak_bytes: int, remark: str) -> str:
    return f"{name:<{width}}  {seconds / 60:12.1f}  {peak_bytes / 1e9:12.1f}  {remark}"


def load_runs(site: Path) -> list[Run]:
    """The runs on record in `site`, by notebook name; empty if nothing ran yet.

    Raises:
        ValueError: the record is damaged, or of another version of this package.
    """
    path = site / "runs.json"
    if not path.exists():
        return []
    try:
        return [Run(**record) for record in json.loads(path.read_text(encoding="utf8"))]
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or of another version ({error}): delete it, and run the notebooks again"
        ) from error
