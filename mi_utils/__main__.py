"""The commands behind `./lab`."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS, SITE = ROOT / "notebooks", ROOT / "site"
VERDICTS = NOTEBOOKS / "verdicts.json"
"""Verdicts of the full size on record, by notebook and claim: what we believe, so that a change is a visible diff."""

GO_ON = "What ran well is on record: mend this, then go on with ./lab run --resume"
SILENT = [
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.handlers.announcements.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
]
"""JupyterLab asks for news, for its newest version and for extensions; ours asks nobody."""

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
app = typer.Typer(no_args_is_help=True, add_completion=False, help="Notebooks for mechanistic interpretability.")


@app.command()
def run(
    select: Annotated[str, typer.Argument(help='start of a name, such as "03"; all notebooks if left out')] = "",
    fast: Annotated[bool, typer.Option(help="the small sizes of the tests, into site/fast")] = False,
    record: Annotated[bool, typer.Option(help="put the verdicts of this run on record")] = False,
    resume: Annotated[bool, typer.Option(help="go on: leave out what ran well and has not changed since")] = False,
):
    """Execute the notebooks into site/ and print what they cost and what they claim."""
    from mi_utils import runner

    try:
        paths = runner.find_notebooks(NOTEBOOKS, select)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    for stop in (signal.SIGTERM, signal.SIGHUP):  # end as on Ctrl-C: kernel stopped, what was done on record
        signal.signal(stop, signal.default_int_handler)
    try:
        runs = runner.run_notebooks(paths, SITE / "fast" if fast else SITE, fast=fast, resume=resume)
    except (OSError, ValueError) as error:
        print(f"./lab run: {error}\n{GO_ON}", file=sys.stderr)
        raise typer.Exit(1) from None
    if record and not fast:
        _record_verdicts(runs)
    _print_runs(runs, compare=not fast)
    print(f"\nPages: {(SITE / 'fast' if fast else SITE) / 'index.html'}")
    if any(run.failure or run.broken_controls() for run in runs):
        print(GO_ON)
        raise typer.Exit(1)


@app.command()
def check():
    """Say in under a minute whether this machine is ready for a class, and what to do if it is not. Changes nothing."""
    from mi_utils import readiness

    wrong = 0
    for line in readiness.checks():
        print(line, flush=True)
        wrong += not line.ok
    print(f"\n{'ready' if not wrong else f'not ready: {wrong} to mend'}")
    raise typer.Exit(int(wrong > 0))


@app.command(context_settings=PASS_ON)
def test(context: typer.Context):
    """Lint, then all tests; further arguments go to pytest, whose summary is the last line."""
    lint = [
        _python("-m", "ruff", *step, "--quiet", "--output-format=concise")
        for step in (["check"], ["format", "--check"])
    ]
    if any(lint):
        print("lint failed: see above; `.venv/bin/ruff format` and `ruff check --fix` mend most of it", flush=True)
    tests = _python("-m", "pytest", *context.args)
    raise typer.Exit(tests or max(lint))


@app.command("open", context_settings=PASS_ON)
def open_lab(context: typer.Context):
    """Open JupyterLab on the notebooks, on this machine only, behind a token, asking no other machine for anything."""
    from mi_utils import pairs

    for text, notebook in pairs.find_pairs(NOTEBOOKS).items():
        if not pairs.is_in_step(text, notebook):  # JupyterLab would take the text even where the notebook is newer
            print(pairs.sync(text, notebook))
    as_root = ["--allow-root"] if getattr(os, "geteuid", lambda: 1)() == 0 else []
    where = [f"--ServerApp.root_dir={NOTEBOOKS}", "--ServerApp.ip=127.0.0.1"]
    _become_python("-m", "jupyterlab", *where, *SILENT, *as_root, *context.args)


@app.command(context_settings=PASS_ON)
def bench(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="sae, harvest, latents, meta, steering, pairs, facts, cluster, plan")
    ] = "sae",
):
    """Measure side by side with other implementations; --json prints one object."""
    names = sorted(path.stem for path in (ROOT / "bench").glob("[a-z]*.py"))
    if name not in names:
        raise typer.BadParameter(f"no benchmark {name!r}; there are: {', '.join(names)}")
    _become_python("-m", f"bench.{name}", *context.args)


@app.command(context_settings=PASS_ON)
def data(context: typer.Context):
    """Build data/text again from its sources."""
    _become_python("data/text/build.py", *context.args)


@app.command()
def setup():
    """Put the default model into the cache. `./lab` does this once, after installing."""
    from mi_utils import models

    models.fetch_default_model()


@app.command()
def sync():
    """Bring notebooks and text pairs in step (the newer file wins), strip outputs, list the checksums of data/."""
    from mi_utils import artefacts, pairs

    for text, notebook in pairs.find_pairs(NOTEBOOKS).items():
        print(pairs.sync(text, notebook) or f"{notebook.name} is in step")
    if artefacts.write_checksums():
        print(f"wrote data/{artefacts.CHECKSUMS}")


def _python(*arguments: str) -> int:
    """Run Python in the repository; its exit code."""
    try:
        return subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode
    except KeyboardInterrupt:  # Ctrl-C goes to the child too, which has ended in its own way
        return 130


def _become_python(*arguments: str) -> None:
    """Run Python in the repository in place of this process, so that signals reach it."""
    os.chdir(ROOT)
    os.execv(sys.executable, [sys.executable, *arguments])


def _recorded_verdicts() -> dict[str, dict[str, str]]:
    return json.loads(VERDICTS.read_text(encoding="utf8")) if VERDICTS.exists() else {}


def _record_verdicts(runs: list) -> None:
    from mi_utils.files import locked, write_json

    new = {run.notebook: {c["text"]: c["verdict"] for c in run.claims} for run in runs if not run.failure}
    with locked(SITE / ".verdicts.lock"):
        write_json(VERDICTS, dict(sorted((_recorded_verdicts() | new).items())))


def _print_runs(runs: list, *, compare: bool) -> None:
    from mi_utils.claims import Claim, changed_verdicts, format_number
    from mi_utils.runs import budget_table

    for run in runs:
        print(f"\n{run.notebook}")
        for claim in map(Claim.from_record, run.claims):
            numbers = f"{format_number(claim.value)} against {format_number(claim.control)}"
            print(f"  {claim.verdict:>13}  {claim.text}  ({numbers})")
        for line in changed_verdicts(_recorded_verdicts().get(run.notebook, {}), run.claims) if compare else ():
            print(f"  CHANGED  {line}")
        for text in run.broken_controls():
            print(f"  BROKEN   {text}: a planted claim must hold")
        for destination in dict.fromkeys(run.refused):
            print(f"  REFUSED  a connection to {destination}")
    print(f"\n{budget_table(runs)}")


if __name__ == "__main__":
    app(prog_name="./lab")
