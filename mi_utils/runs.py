"""What is kept of each execution of a notebook: its cost, its claims, how it failed."""

import json
from dataclasses import dataclass, field
from pathlib import Path


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

    def verdict_counts(self) -> str:
        """How many claims came out how, in words."""
        verdicts = [claim["verdict"] for claim in self.claims]
        counts = {verdict: verdicts.count(verdict) for verdict in ("holds", "does not hold", "undecided")}
        return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) or "none"

    def broken_controls(self) -> list[str]:
        """Texts of the planted claims that do not hold: then the method failed where the truth is known."""
        return [c["text"] for c in self.claims if c["kind"] == "planted" and c["verdict"] != "holds"]


def load_runs(site: Path) -> list[Run]:
    """The runs on record in `site`, by notebook name; empty if nothing ran yet."""
    path = site / "runs.json"
    if not path.exists():
        return []
    return [Run(**record) for record in json.loads(path.read_text(encoding="utf8"))]
