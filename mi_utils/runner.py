"""Execute notebooks in clean kernels with the network refused, and write what came out as a site.

A kernel is started from this very environment by `mi_utils.offline`, so that neither a kernel installed elsewhere
nor a start-up script of the user can change a result. A notebook that fails keeps what it did up to then, and the
next one runs. Each is on record as soon as it ends, so that a series which was killed can be resumed, and several
series may write into one site at once.
"""

import hashlib
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path

import nbformat
import psutil
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from nbformat import NotebookNode
from tqdm import tqdm

from mi_utils import artefacts, claims, offline, pages
from mi_utils.files import atomic_path, locked, remove_leftovers, sha256, write_json
from mi_utils.runs import Run, load_runs

PATTERN = "[0-9][0-9]_*.ipynb"
PICTURES = "img"
"""Folder beside the notebooks with a picture of each, for the front page."""
PARAMETERS = "parameters"
FULL_LINE, FAST_LINE = "FAST = False", "FAST = True"
CELL_TIMEOUT = 1800
"""Seconds after which a cell counts as hung."""
INTERRUPTED = "interrupted by Ctrl-C"


def find_notebooks(folder: Path, select: str = "") -> list[Path]:
    """Notebooks of `folder` in teaching order; `select` is the start of a name, such as "03".

    Raises:
        ValueError: nothing matches `select`.
    """
    found = sorted(folder.glob(PATTERN))
    chosen = [path for path in found if path.stem.startswith(select)]
    if select and not chosen:
        names = ", ".join(path.stem for path in found) or "none"
        raise ValueError(f"no notebook starts with {select!r}; there are: {names}")
    return chosen


def run_notebooks(paths: list[Path], site: Path, *, fast: bool = False, resume: bool = False) -> list[Run]:
    """Execute notebooks one after the other into `site`, and bring its front page up to date after each.

    Rows of notebooks that are not run again stay. Progress goes to stderr. Ctrl-C ends the notebook and the series.

    Args:
        resume: leave out what ran to its end in this tier, with planted claims that hold, and would be the same
            again: notebook, package, data and pins have not changed since.
    Returns: the runs, in the order of `paths`, those left out included; those that failed have `failure` set.
    Raises:
        OSError: the disk is full; what ran before is on record.
        ValueError: the record in `site` is damaged.
    """
    shared, runs = _fingerprint_of_all(), []
    on_record = {run.notebook: run for run in load_runs(site)}
    for path in paths:
        fingerprint = hashlib.sha256(f"{shared} {sha256(path)}".encode()).hexdigest()
        earlier = on_record.get(path.stem)
        if resume and earlier and _is_as_good_as_new(earlier, fingerprint, fast):
            runs.append(earlier)
            continue
        notebook, run = execute(path, fast=fast)
        runs.append(replace(run, fingerprint=fingerprint))
        _write_run(notebook, runs[-1], site, path.parent / PICTURES)
        if run.failure == INTERRUPTED:
            break
    if resume and paths:
        with _alone(site):  # the series that was killed may not have come to its front page
            pages.write_index(load_runs(site), site, paths[0].parent / PICTURES)
    return runs


def execute(path: Path, *, fast: bool = False) -> tuple[NotebookNode, Run]:
    """Execute one notebook in a clean kernel whose working folder is the notebook's.

    Args:
        fast: replace `FAST = False` in the cell tagged `parameters` by `FAST = True`.
    Raises:
        ValueError: `fast` is asked for and the notebook has no such line.
    """
    notebook = nbformat.read(path, as_version=4)
    if fast:
        set_fast(notebook)
    start = time.monotonic()
    with _kernel_folder() as (log, environment), tqdm(total=_code_cells(notebook), desc=path.stem, unit="cell") as bar:
        client = _client(notebook, path.parent, bar)
        with _PeakMemory(client) as memory:
            failure = _execute(client, environment)
        refused = log.read_text(encoding="utf8").splitlines() if log.exists() else []
    run = Run(
        notebook=path.stem,
        title=pages.first_heading(notebook) or path.stem,
        tier="fast" if fast else "full",
        seconds=round(time.monotonic() - start, 1),
        peak_bytes=memory.peak,
        finished=datetime.now(UTC).isoformat(timespec="seconds"),
        machine=f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}",
        failure=failure,
        claims=collect_claims(notebook),
        refused=refused,
    )
    return notebook, run


def set_fast(notebook: NotebookNode) -> None:
    """Turn the parameters cell to its small sizes. The cell derives them from `FAST`, so the line is replaced.

    Raises:
        ValueError: there is not exactly one cell tagged `parameters` with exactly one line `FAST = False`.
    """
    cells = [cell for cell in notebook.cells if PARAMETERS in cell.metadata.get("tags", [])]
    lines = [cell.source.splitlines().count(FULL_LINE) for cell in cells]
    if lines != [1]:
        raise ValueError(
            f"found {len(cells)} cells tagged {PARAMETERS!r} with {sum(lines)} lines {FULL_LINE!r}; "
            "a notebook needs one such cell with one such line, and sizes like `N = 100 if FAST else 10_000` below it"
        )
    cells[0].source = re.sub(rf"^{FULL_LINE}$", FAST_LINE, cells[0].source, flags=re.MULTILINE)


def collect_claims(notebook: NotebookNode) -> list[dict]:
    """The records of the claims tables that an executed notebook shows; of a claim shown twice, the last."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    tables = [output.data[claims.MIME] for output in outputs if claims.MIME in output.get("data", {})]
    return list({claim["text"]: claim for table in tables for claim in table["claims"]}.values())


def _is_as_good_as_new(run: Run, fingerprint: str, fast: bool) -> bool:
    same = (run.fingerprint, run.tier) == (fingerprint, "fast" if fast else "full")
    return same and not run.failure and not run.broken_controls()


def _fingerprint_of_all() -> str:
    """Of what every notebook depends on: the package, the data, the pins and the Python version."""
    package = Path(__file__).resolve().parent
    pins = [path for path in [package.parent / "constraints.txt"] if path.exists()]
    parts = [*sorted(package.glob("*.py")), *sorted(package.glob("static/*")), *pins, *artefacts.shipped()]
    return "\n".join([platform.python_version(), *(f"{path.name} {sha256(path)}" for path in parts)])


@contextmanager
def _alone(site: Path) -> Iterator[None]:
    """While the block runs, no other process writes into `site`; what killed ones left half-written is removed."""
    with locked(site / ".lock"):
        for name in (".", "executed", "claims", "assets"):
            remove_leftovers(site / name)
        yield


def _write_run(notebook: NotebookNode, run: Run, site: Path, pictures: Path | None = None) -> None:
    with _alone(site):
        with atomic_path(site / "executed" / f"{run.notebook}.ipynb") as part:
            nbformat.write(notebook, part)
        pages.write_notebook_page(notebook, run, site / f"{run.notebook}.html")
        write_json(site / "claims" / f"{run.notebook}.json", run.claims)
        kept = {earlier.notebook: earlier for earlier in load_runs(site)} | {run.notebook: run}
        runs = [kept[name] for name in sorted(kept)]
        write_json(site / "runs.json", [asdict(run) for run in runs])  # last but for the front page
        pages.write_index(runs, site, pictures)


class _OfflineKernelManager(AsyncKernelManager):
    """Starts `python -m mi_utils.offline` of this environment, whatever kernel the notebook names."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "mi_utils.offline", "-f", "{connection_file}", "--log-level=ERROR"]
        return KernelSpec(argv=argv, display_name="Python 3 (no network)", language="python")


def _client(notebook: NotebookNode, folder: Path, bar: tqdm) -> NotebookClient:
    def show(cell: NotebookNode, **_) -> None:
        cell.execution_count = bar.n + 1  # as the kernel will say, if it lives to say so
        bar.set_postfix_str(_first_line(cell)[:60])

    return NotebookClient(
        notebook,
        kernel_manager_class=_OfflineKernelManager,
        resources={"metadata": {"path": str(folder)}},
        timeout=CELL_TIMEOUT,
        coalesce_streams=True,
        store_widget_state=False,  # megabytes of it, and the pages show static copies
        on_cell_execute=show,
        on_cell_executed=lambda **_: bar.update(),
    )


def _execute(client: NotebookClient, environment: dict[str, str]) -> str | None:
    """Execute; what went wrong as one line, or None.

    In a thread of its own, because in the main thread the client answers Ctrl-C itself and loses the notebook.
    """
    with ThreadPoolExecutor(1) as pool:
        execution = pool.submit(_execute_here, client, environment)
        try:
            return execution.result()
        except KeyboardInterrupt:
            while not execution.done():
                if kernel := _kernel(client):
                    kernel.kill()
                time.sleep(0.1)
            return INTERRUPTED


def _execute_here(client: NotebookClient, environment: dict[str, str]) -> str | None:
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        return f"{_last_cell(client.nb)}: {error.ename}: {error.evalue}"
    except CellTimeoutError:
        return f"{_last_cell(client.nb)}: not done after {client.timeout} seconds"
    except RuntimeError as error:  # a kernel that dies, or does not start
        return f"{_last_cell(client.nb)}: {error}. A kernel often dies for lack of memory"
    return None


def _last_cell(notebook: NotebookNode) -> str:
    """The last code cell that was started, with the number its page and JupyterLab show."""
    started = [cell for cell in notebook.cells if cell.get("execution_count")]
    if not started:
        return "before the first cell"
    return f"cell [{started[-1].execution_count}] `{_first_line(started[-1])}`"


def _first_line(cell: NotebookNode) -> str:
    return cell.source.strip().split("\n")[0]


def _code_cells(notebook: NotebookNode) -> int:
    return sum(cell.cell_type == "code" and bool(cell.source.strip()) for cell in notebook.cells)


@contextmanager
def _kernel_folder() -> Iterator[tuple[Path, dict[str, str]]]:
    """A file for refused destinations, and the environment of a kernel that knows no user's start-up files."""
    with tempfile.TemporaryDirectory(prefix="mi-kernel-") as folder:
        log = Path(folder) / "refused.txt"
        yield log, dict(os.environ, IPYTHONDIR=folder, **{offline.LOG_VARIABLE: str(log)})


class _PeakMemory:
    """Samples the resident memory of a client's kernel, children included, while the block runs."""

    def __init__(self, client: NotebookClient):
        self.peak = 0
        self._client = client
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> "_PeakMemory":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.1):
            self.peak = max(self.peak, self._resident())

    def _resident(self) -> int:
        kernel = _kernel(self._client)
        try:
            return sum(process.memory_info().rss for process in [kernel, *kernel.children(recursive=True)])
        except (AttributeError, psutil.Error):  # not started yet, or just gone
            return 0


def _kernel(client: NotebookClient) -> psutil.Process | None:
    """The kernel's process, while there is one."""
    try:
        return psutil.Process(client.km.provisioner.pid)
    except (AttributeError, TypeError, psutil.Error):
        return None
