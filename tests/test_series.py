"""`./lab run` loses nothing when it is killed, the disk fills up, or two write into one site; then it goes on."""

import json
import resource
import signal
import subprocess
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import nbformat
import psutil
import pytest
from faults import PATIENCE, at_once, dying, wait_for
from typer.testing import CliRunner

from mi_utils import __main__ as commands
from mi_utils import artefacts, runner, runs

"""Seconds for a few kernels to start: the machine may be busy."""

LOG = "open('{folder}/log', 'a').write('{name}\\n')"
WAITS = """
import os, time
from pathlib import Path
Path("{folder}/kernel").write_text(str(os.getpid()))
while not Path("{folder}/go_on").exists():
    time.sleep(0.05)
"""


def write_notebook(path, *sources):
    cells = [nbformat.v4.new_markdown_cell("# Does it go on?"), *map(nbformat.v4.new_code_cell, sources)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture
def start(tmp_path):
    """Starts the real command on the notebooks of a folder; what still runs at the end of the test is killed."""
    with ExitStack() as ending:

        def start(*arguments):
            code = f"""
from pathlib import Path
from mi_utils import __main__ as commands
commands.NOTEBOOKS, commands.SITE = Path({str(tmp_path)!r}), Path({str(tmp_path / "site")!r})
commands.VERDICTS = commands.NOTEBOOKS / "verdicts.json"
commands.app({["run", *arguments]!r}, prog_name="./lab")
"""
            pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            process = subprocess.Popen([sys.executable, "-c", code], **pipes)
            ending.callback(process.kill)
            return process

        yield start


def on_record(site):
    return {run.notebook: run.failure for run in runs.load_runs(site)}


def stop(process, folder, how):
    """Send `how` to the command while a notebook waits; its output, once the notebook's kernel is gone too."""
    wait_for(lambda: (folder / "kernel").exists() and (folder / "kernel").read_text())
    kernel = psutil.Process(int((folder / "kernel").read_text()))
    (folder / "kernel").unlink()
    process.send_signal(how)
    output = process.communicate(timeout=PATIENCE)
    wait_for(lambda: not kernel.is_running() or kernel.status() == psutil.STATUS_ZOMBIE)
    return "".join(output)


def test_a_run_goes_on_at_the_notebook_in_which_it_was_ended_or_killed(start, tmp_path):
    for name in ("01_first", "02_waits", "03_last"):
        log = LOG.format(folder=tmp_path, name=name)
        write_notebook(tmp_path / f"{name}.ipynb", log, WAITS.format(folder=tmp_path) if "waits" in name else "pass")

    process = start()
    output = stop(process, tmp_path, signal.SIGTERM)
    interrupted = {"01_first": None, "02_waits": runner.INTERRUPTED}
    assert process.returncode == 1
    assert f"FAILED in {runner.INTERRUPTED}" in output
    assert on_record(tmp_path / "site") == interrupted

    stop(start("--resume"), tmp_path, signal.SIGKILL)
    assert on_record(tmp_path / "site") == interrupted
    assert "01_first" in (tmp_path / "site" / "index.html").read_text()

    (tmp_path / "go_on").touch()
    output, _ = start("--resume").communicate(timeout=PATIENCE)
    assert (tmp_path / "log").read_text().split() == ["01_first", "02_waits", "02_waits", "02_waits", "03_last"]
    assert on_record(tmp_path / "site") == {"01_first": None, "02_waits": None, "03_last": None}
    assert "minutes of 4  peak GB of 6" in output
    assert all(name in output for name in ("01_first", "02_waits", "03_last"))
    assert list((tmp_path / "site").rglob(".*.part")) == []


def test_resuming_runs_again_what_failed_and_what_changed_and_nothing_else(tmp_path, monkeypatch):
    ran = []

    def execute(path, fast):
        ran.append(path.stem)
        failure = "it failed" if path.stem == "02_b" and ran.count("02_b") == 1 else None
        return nbformat.read(path, as_version=4), a_run(path.stem, failure=failure, tier="fast" if fast else "full")

    monkeypatch.setattr(runner, "execute", execute)
    for name in ("01_a", "02_b", "03_c"):
        write_notebook(tmp_path / f"{name}.ipynb", "pass")
    paths = runner.find_notebooks(tmp_path)

    def resumed(**options):
        ran_before = len(ran)
        series = runner.run_notebooks(paths, tmp_path / "site", resume=True, **options)
        assert [run.notebook for run in series] == ["01_a", "02_b", "03_c"]
        return ran[ran_before:]

    assert resumed() == ["01_a", "02_b", "03_c"]
    assert resumed() == ["02_b"]
    assert resumed() == []
    write_notebook(paths[2], "changed")
    assert resumed() == ["03_c"]
    assert resumed(fast=True) == ["01_a", "02_b", "03_c"]
    monkeypatch.setattr(artefacts, "shipped", lambda: [paths[0]])
    assert resumed(fast=True) == ["01_a", "02_b", "03_c"]


def test_a_planted_claim_that_broke_is_run_again():
    claim = {"text": "a", "kind": "planted", "verdict": "holds"}
    good, broken = (a_run("01_a", fingerprint="f", claims=[claim | {"verdict": v}]) for v in ("holds", "undecided"))
    assert runner._is_as_good_as_new(good, "f", fast=False)
    assert not runner._is_as_good_as_new(broken, "f", fast=False)


def a_run(name, **changes):
    fields = {"tier": "full", "seconds": 1.0, "peak_bytes": 1, "finished": "2026-01-01T00:00:00+00:00", "machine": "m"}
    return runs.Run(name, "A title", **fields | changes)


def write_run(site, name):
    runner._write_run(nbformat.v4.new_notebook(), a_run(name), site)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("n", range(1, 7))
def test_dying_at_any_write_leaves_a_whole_site(tmp_path, n, after):
    write_run(tmp_path, "01_old")
    assert dying(lambda: write_run(tmp_path, "02_new"), n, after) == 9
    assert "01_old" in {run.notebook for run in runs.load_runs(tmp_path)}
    for path in tmp_path.rglob("[!.]*.html"):
        assert path.read_text().endswith("</html>\n")
    write_run(tmp_path, "03_later")
    assert list(tmp_path.rglob(".*.part")) == []


def test_two_series_at_once_lose_no_row(tmp_path):
    names = [f"{number:02}_x" for number in range(12)]
    assert at_once(*(partial(write_run, tmp_path, name) for name in names)) == [0] * 12
    assert [run.notebook for run in runs.load_runs(tmp_path)] == names
    index = (tmp_path / "index.html").read_text()
    assert all(f"{name}.html" in index for name in names)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte; the script that draws figures alone is larger."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("only root may make a small disk")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_said_and_nothing_is_lost(small_disk, tmp_path, monkeypatch):
    write_notebook(tmp_path / "01_a.ipynb", "1")
    write_notebook(tmp_path / "02_b.ipynb", "1")
    executed = nbformat.read(tmp_path / "01_a.ipynb", as_version=4), a_run("01_a")
    monkeypatch.setattr(runner, "execute", lambda path, fast: executed)
    paths = runner.find_notebooks(tmp_path)
    with pytest.raises(OSError, match="could not write .*free some space"):
        runner.run_notebooks(paths, small_disk)
    assert [run.notebook for run in runs.load_runs(small_disk)] == ["01_a"]
    subprocess.run(["mount", "-o", "remount,size=50m", small_disk], check=True)
    executed = nbformat.read(tmp_path / "02_b.ipynb", as_version=4), a_run("02_b")
    assert [run.notebook for run in runner.run_notebooks(paths, small_disk, resume=True)] == ["01_a", "02_b"]
    assert "02_b.html" in (small_disk / "index.html").read_text()


def test_the_command_tells_a_full_disk_in_one_line(start, tmp_path):
    write_notebook(tmp_path / "01_a.ipynb", "1")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        process = start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "free some space" in errors
    assert "./lab run --resume" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("text", ["", "[{", '[{"notebook": "01_a"}]', '[{"other": 1}]', "[1]"])
def test_a_damaged_record_is_named(tmp_path, text):
    (tmp_path / "runs.json").write_text(text)
    with pytest.raises(ValueError, match=r"runs.json is damaged .*: delete it"):
        runs.load_runs(tmp_path)


def test_two_that_put_verdicts_on_record_lose_none(tmp_path, monkeypatch):
    monkeypatch.setattr(commands, "SITE", tmp_path)
    monkeypatch.setattr(commands, "VERDICTS", tmp_path / "verdicts.json")
    series = [[a_run(f"{n:02}_x", claims=[{"text": "a", "verdict": "holds"}])] for n in range(8)]
    assert at_once(*(partial(commands._record_verdicts, series_of) for series_of in series)) == [0] * 8
    assert json.loads((tmp_path / "verdicts.json").read_text()) == {f"{n:02}_x": {"a": "holds"} for n in range(8)}


def test_costs_stand_beside_their_budgets():
    dear = a_run("02_dear", seconds=241.0, peak_bytes=7_000_000_000, failure="cell [1] `x`: E: no")
    cheap, dear, total = runs.budget_table([a_run("01_cheap"), dear]).split("\n")[1:]
    assert "OVER" not in cheap
    assert "OVER BUDGET in time; OVER BUDGET in memory; FAILED in cell [1]" in dear
    assert total.split()[:3] == ["all", "4.0", "7.0"]
    assert "OVER" in runs.budget_table([a_run(f"{n:02}_x", seconds=200.0) for n in range(8)]).split("\n")[-1]
    assert a_run("01_fast", tier="fast", seconds=runs.NOTEBOOK_SECONDS["fast"] + 1.0).over_budget() == ["time"]
    assert runs.budget_table([]).split("\n")[-1].startswith("all")


def test_a_selection_that_matches_nothing_is_a_usage_error(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "NOTEBOOKS", tmp_path)
    result = CliRunner().invoke(commands.app, ["run", "77"])
    assert result.exit_code == 2
    assert "no notebook starts with" in result.output


def test_the_list_of_checksums_is_in_step():
    listed = [line[66:] for line in (artefacts.DATA / artefacts.CHECKSUMS).read_text().splitlines()]
    assert listed == [path.relative_to(artefacts.DATA).as_posix() for path in artefacts.shipped()], "run ./lab sync"
    assert artefacts.damaged() == {}, "run ./lab sync"


def test_damage_to_an_artefact_is_named(tmp_path):
    for name in ("a/one.csv", "two.bin", "left_out.py", "notes.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name} 1234")
    assert artefacts.write_checksums(tmp_path)
    assert not artefacts.write_checksums(tmp_path)
    assert artefacts.damaged(tmp_path) == {}
    subprocess.run(["sha256sum", "--check", "--quiet", artefacts.CHECKSUMS], cwd=tmp_path, check=True)
    (tmp_path / "a" / "one.csv").unlink()
    (tmp_path / "two.bin").write_text("two.bin 123")
    assert artefacts.damaged(tmp_path) == {"a/one.csv": "missing", "two.bin": "altered or truncated"}
    (tmp_path / artefacts.CHECKSUMS).write_text("zzz  a\n")
    with pytest.raises(ValueError, match="holds the line"):
        artefacts.damaged(tmp_path)
    Path(tmp_path / artefacts.CHECKSUMS).unlink()
    with pytest.raises(ValueError, match="is missing: restore it"):
        artefacts.damaged(tmp_path)
