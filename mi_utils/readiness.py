"""Whether a machine is ready for a class: `./lab check`, which changes nothing, needs no network and says what to do.

Its last step is the whole way once: a kernel with the network refused loads the default model, a shipped dictionary
and its index, completes a sentence and draws a widget.
"""

import errno
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import nbformat
import psutil
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from mi_utils import artefacts, files, models, runner, session

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_PYTHON = (3, 11)
FREE_DISK = 2_000_000_000
"""Bytes free where the cache is and where the pages are written."""
FREE_MEMORY = 6_000_000_000
MINIMUM_CPUS = 2
PORTS = range(8888, 8939)
"""JupyterLab takes the first, or another near it."""
JUPYTER_SECONDS = 120
BROWSERS = ("firefox", "google-chrome", "google-chrome-stable", "chromium", "chromium-browser", "microsoft-edge")
SET_UP = "run `./lab setup` while there is a network"
END_TO_END = """
import mi_utils as mi
model = mi.models.load_model()
print(mi.models.continue_greedily(model, "<|endoftext|>The capital of France is", 1))
---
dictionary = mi.sae.load("resid12_1152")
index = mi.latents.shipped_index("resid12_1152", model.tokenizer)
mi.explorers.prompt_explorer(model, dictionary, index)
"""
ANSWER, DRAWN = " Paris", "mi-widget"


class NotReadyError(Exception):
    """What is wrong with this machine, and what to do about it."""

    def __init__(self, problem: str, remedy: str):
        super().__init__(problem)
        self.remedy = remedy


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    """What was looked at."""
    found: str
    """What was found, or what is wrong."""
    remedy: str = ""
    """What to do; empty if nothing."""

    @property
    def ok(self) -> bool:
        """Whether nothing is to be done."""
        return not self.remedy

    def __str__(self) -> str:
        remedy = "" if self.ok else f"\n        {'':12}  -> {self.remedy}"
        return f"{'ok' if self.ok else 'not ok':<6}  {self.name:<12}  {self.found}{remedy}"


def checks() -> Iterator[Check]:
    """Look at one thing after the other, each as soon as it is asked for; the slow ones come last."""
    passed = True
    for name, look in LOOKS.items():
        check = _check(name, look)
        passed = passed and (check.ok or name not in NEEDED)
        yield check
    if passed:
        yield _check("end to end", end_to_end)
    else:
        yield Check("end to end", "not tried", f"mend the lines on {', '.join(NEEDED)} first")


def _check(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, look())
    except NotReadyError as error:
        return Check(name, str(error), error.remedy)
    except Exception as error:  # noqa: BLE001 - a report that ends half-way helps nobody
        return Check(name, f"{type(error).__name__}: {error}", "this should not happen: mend what the line names")


def python() -> str:
    """Python's version."""
    if sys.version_info < MINIMUM_PYTHON:
        raise NotReadyError(
            f"{platform.python_version()} is too old", "install Python 3.11 or newer, set PYTHON to it, run ./lab setup"
        )
    return f"{platform.python_version()} in {sys.prefix}"


def packages() -> str:
    """Whether what this package requires is installed, and as pinned."""
    pins = _pins(ROOT / "constraints.txt")
    wanted = [Requirement(line) for line in requires("mi-utils") or () if "extra ==" not in line]
    wrong, other = [], []
    for requirement in wanted:
        try:
            found = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(f"{requirement.name} is missing")
            continue
        if not requirement.specifier.contains(found, prereleases=True):
            wrong.append(f"{requirement.name} is {found}, which is not {requirement.specifier}")
        elif found.split("+")[0] != pins.get(canonicalize_name(requirement.name), found):
            other.append(f"{requirement.name} is {found}")
    if wrong:
        raise NotReadyError("; ".join(wrong), "delete .venv and run `./lab setup` while there is a network")
    return f"{len(wanted) - len(other)} of {len(wanted)} as pinned" + "".join(f"; {line}" for line in other)


def _pins(path: Path) -> dict[str, str]:
    """The pinned versions that apply to this Python and system."""
    lines = path.read_text(encoding="utf8").splitlines()
    pins = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    mine = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    return {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in mine}


def model() -> str:
    """Whether the default model is in the cache and as recorded."""
    try:
        folder = models.verify_default_model()
    except ValueError as error:
        raise NotReadyError(str(error), SET_UP) from error
    return f"{models.DEFAULT_MODEL} in {folder}, checksums agree"


def data() -> str:
    """Whether everything under `data/` is what was shipped."""
    try:
        artefacts.check()
    except ValueError as error:
        problem, _, remedy = str(error).partition(": ")
        raise NotReadyError(problem, remedy or "restore data/ from version control") from error
    return f"{len(artefacts.shipped())} files, checksums agree"


def disk() -> str:
    """Free space for the cache and for the executed pages, both of which must be writable."""
    free = {}
    for folder in (files.cache_dir(), ROOT):
        try:
            with tempfile.TemporaryFile(dir=folder):
                free[folder] = shutil.disk_usage(folder).free
        except OSError as error:
            if error.errno not in files.FULL_DISK:
                raise NotReadyError(f"cannot write into {folder}: {error.strerror}", "make it writable") from error
            free[folder] = 0
    folder, least = min(free.items(), key=lambda item: item[1])
    if least < FREE_DISK:
        remedy = f"make room for {FREE_DISK / 1e9:g} GB, or set MI_CACHE to a folder on a larger disk"
        raise NotReadyError(f"{least / 1e9:.1f} GB free in {folder}", remedy)
    return f"{least / 1e9:.1f} GB free"


def memory() -> str:
    """Memory that a kernel could still have, the limit of a container included."""
    free = min(psutil.virtual_memory().available, _container_memory(Path("/sys/fs/cgroup")))
    if free < FREE_MEMORY:
        remedy = f"close programs or kernels until {FREE_MEMORY / 1e9:g} GB are free, or use `./lab run --fast`"
        raise NotReadyError(f"{free / 1e9:.1f} GB free", remedy)
    return f"{free / 1e9:.1f} GB free"


def _container_memory(group: Path) -> int:
    """Bytes left under a Linux control group's limit; a large number where there is none."""
    try:
        used, cached = int((group / "memory.current").read_text()), 0
        for line in (group / "memory.stat").read_text().splitlines():
            cached += int(line.split()[1]) if line.startswith("inactive_file ") else 0
        return int((group / "memory.max").read_text()) - used + cached
    except (OSError, ValueError):  # no control groups here, or the limit is the word "max"
        return 2**62


def cores() -> str:
    """CPUs this process may use."""
    if (found := session.usable_cpus()) < MINIMUM_CPUS:
        raise NotReadyError(f"{found} CPU", "notebooks take twice their time on one; give the machine two")
    return f"{found} CPUs"


def port() -> str:
    """The port that `./lab open` will take."""
    for number in PORTS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                continue
            return f"{number} is free" + ("" if number == PORTS[0] else f"; {PORTS[0]} is in use, which is no harm")
    raise NotReadyError(
        f"all from {PORTS[0]} to {PORTS[-1]} are in use",
        "stop old servers (`jupyter server list`), or `./lab open --port=...`",
    )


def browser() -> str:
    """A browser that can show JupyterLab."""
    if found := next(filter(None, map(shutil.which, BROWSERS)), None):
        return found
    try:
        return webbrowser.get().name
    except webbrowser.Error:
        raise NotReadyError(
            "none found", "install Firefox or Chromium, or open the address that `./lab open` prints elsewhere (ssh -L)"
        ) from None


def jupyter() -> str:
    """Whether JupyterLab starts, on this machine only, and lets nobody in without its token."""
    start, token = time.monotonic(), secrets.token_hex(16)
    with _server(token) as address:
        _ask(Request(f"{address}lab", headers={"Authorization": f"token {token}"}))
        try:
            _ask(Request(f"{address}api/contents"))
            raise NotReadyError("JupyterLab answers without its token", "remove `token` and `password` from its config")
        except HTTPError as error:
            if error.code != HTTPStatus.FORBIDDEN:
                raise
    return f"starts in {time.monotonic() - start:.0f} s, on 127.0.0.1 only, refuses without token"


@contextmanager
def _server(token: str) -> Iterator[str]:
    """The address of a JupyterLab with the user's settings, as long as the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    address = f"http://127.0.0.1:{number}/"
    options = ["--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={number}"]
    options += ["--ServerApp.port_retries=0", f"--ServerApp.root_dir={ROOT / 'notebooks'}"]
    with tempfile.TemporaryDirectory() as runtime, tempfile.TemporaryFile("w+", encoding="utf8") as log:
        environment = dict(os.environ, JUPYTER_RUNTIME_DIR=runtime, JUPYTER_TOKEN=token)
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            _wait_for(address, server)
            yield address
        except (OSError, TimeoutError) as error:
            log.seek(0)
            last = (log.read().strip().splitlines() or ["it said nothing"])[-1]
            raise NotReadyError(f"JupyterLab does not start: {last}", "run `./lab open`, read what it says") from error
        finally:
            server.terminate()
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _ask(request: Request) -> None:
    """Raises an OSError if there is no answer, or an HTTPError if it is a refusal. Never by way of a proxy."""
    build_opener(ProxyHandler({})).open(request, timeout=10).close()


def _wait_for(address: str, server: subprocess.Popen) -> None:
    end = time.monotonic() + JUPYTER_SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            return _ask(Request(f"{address}api"))
        except OSError:
            time.sleep(0.1)
    raise TimeoutError(f"no answer from {address}")


def end_to_end() -> str:
    """A clean kernel without the network, the model, a dictionary, its index, a widget and a page."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "check.ipynb"
        cells = [nbformat.v4.new_code_cell(source.strip()) for source in END_TO_END.split("---")]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), path)
        notebook, run = runner.execute(path)
    if run.failure:
        raise NotReadyError(run.failure, "mend what the line names, or delete .venv and run `./lab setup` again")
    said, drawn = (cell.outputs[-1] for cell in notebook.cells)
    if said.get("text") != f"{ANSWER}\n":
        raise NotReadyError(f"the model says {said.get('text')!r}, not {ANSWER!r}", f"delete .venv, then {SET_UP}")
    if DRAWN not in drawn.get("data", {}).get("text/html", ""):
        raise NotReadyError("no widget was drawn", f"delete .venv, then {SET_UP}")
    cost = f"{run.seconds:.0f} s, {run.peak_bytes / 1e9:.1f} GB"
    return f"kernel, model, dictionary and widget: {cost}, {len(run.refused)} connections asked for"


LOOKS: dict[str, Callable[[], str]] = {
    "python": python,
    "packages": packages,
    "model": model,
    "data": data,
    "disk": disk,
    "memory": memory,
    "cores": cores,
    "port": port,
    "browser": browser,
    "jupyter": jupyter,
}
"""What is looked at before the end-to-end run, in this order."""
NEEDED = ("packages", "model", "data")
"""Without these the end-to-end run can only fail, or would set about mending them."""
