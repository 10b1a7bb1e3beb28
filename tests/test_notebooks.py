"""Every notebook runs from the top in its fast tier, and its positive controls hold.

Verdicts of the full tier are on record in `notebooks/verdicts.json`: `./lab run --record` writes them, every
`./lab run` prints what changed. The fast tier is too small to decide claims about the real model, so here only the
planted ones must hold; what is claimed must be what is on record, in both tiers. On the way every exercise is
tried with its reference, a blank and wrong answers.
"""

import json
from pathlib import Path

import pytest

from mi_utils import exercises, runner

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = runner.find_notebooks(ROOT / "notebooks")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook(path, tmp_path, monkeypatch):
    monkeypatch.setenv(exercises.LOG_VARIABLE, str(tmp_path / "exercises"))
    (run,) = runner.run_notebooks([path], tmp_path, fast=True)
    if run.failure:
        pytest.fail(f"{run.notebook}, {run.failure}\nas far as it came: {tmp_path / run.notebook}.html", pytrace=False)
    assert run.claims, "a notebook makes at least one claim"
    assert run.broken_controls() == []
    assert run.refused == [], "a notebook asks for no connection, not even one it can do without"
    assert run.over_budget() == []
    assert_on_record(run)
    assert_exercises_tell_right_from_wrong(path, tmp_path / "exercises")


def assert_on_record(run):
    verdicts = ROOT / "notebooks" / "verdicts.json"
    recorded = json.loads(verdicts.read_text(encoding="utf8")) if verdicts.exists() else {}
    how = f"run `./lab run {run.notebook[:2]} --record`, read the difference, and keep it with the change"
    assert set(recorded.get(run.notebook, {})) == {claim["text"] for claim in run.claims}, how
    planted = [claim["text"] for claim in run.claims if claim["kind"] == "planted"]
    assert all(recorded[run.notebook][text] == "holds" for text in planted), how


def assert_exercises_tell_right_from_wrong(path, log):
    """The reference passes, a blank is told that nothing is filled in, and a wrong answer where it goes wrong."""
    tried = [json.loads(line) for line in log.read_text(encoding="utf8").splitlines()] if log.exists() else []
    assert len(tried) == path.read_text(encoding="utf8").count("exercises.check("), "an exercise was not checked"
    for exercise in tried:
        told = exercise["told"]
        assert "agrees with the reference on all" in told.pop("the reference"), exercise
        assert "is not filled in yet" in told.pop("a blank"), exercise
        unhelpful = {kind: message for kind, message in told.items() if not message.startswith("Case ")}
        assert not unhelpful, f"the cases of {exercise['exercise']} cannot tell these from a right answer"
