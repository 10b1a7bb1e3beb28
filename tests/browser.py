"""A real JupyterLab in a real Chromium, cut off from every other machine, that keeps note of all that goes wrong."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from textwrap import dedent

import nbformat
import pytest
from playwright.sync_api import Page, Playwright, Route, expect, sync_playwright

ARTIFACTS = Path(__file__).resolve().parent.parent / "test-artifacts"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 30
"""Seconds for anything the browser is asked to wait for: the machine may be busy."""
INSTALL_TIMEOUT = 300
CONTRASTS = (Path(__file__).parent / "contrasts.js").read_text()
TEXT, MARK = 4.5, 3.0
"""Least contrast with what is behind it, of text and of marks that mean something: WCAG 2.2, level AA."""


@cache
def chromium() -> str:
    """The browser's program, installed from the system's packages if need be. Skips the test if there is none."""
    found = os.environ.get("CHROMIUM") or _find()
    if not found and os.name == "posix" and os.geteuid() == 0 and shutil.which("apt-get"):
        _install()
        found = _find()
    if not found:
        reason = "NO BROWSER: what readers see and click was NOT tested. Install chromium, or set CHROMIUM to one."
        warnings.warn(reason, stacklevel=2)
        pytest.skip(reason)
    return found


def _find() -> str | None:
    return next(filter(None, map(shutil.which, NAMES)), None)


def _install() -> None:
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", "chromium"]):
        try:
            subprocess.run(["apt-get", *arguments], capture_output=True, check=True, timeout=INSTALL_TIMEOUT)
        except (subprocess.SubprocessError, OSError) as error:
            warnings.warn(f"could not install a browser: {error}", stacklevel=3)
            return


@contextmanager
def driver() -> Iterator[Playwright]:
    """What drives all browsers of a test module; there can be only one at a time."""
    chromium()
    with sync_playwright() as playwright:
        yield playwright


class Browser:
    """Chromium that reaches files and `origin` only. What else it asked for, errors and dialogs are kept."""

    def __init__(self, playwright: Playwright, origin: str = "file:"):
        self.playwright, self.origin = playwright, origin
        self.refused: list[str] = []
        """Addresses that a page asked for and was refused."""
        self.errors: list[str] = []
        """Errors on the console, uncaught or logged."""
        self.dialogs: list[str] = []
        """What alerts and other dialogs said."""
        self._closing = ExitStack()

    def __enter__(self):
        with ExitStack() as closing:
            profile = closing.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self.context = self.playwright.chromium.launch_persistent_context(
                profile, executable_path=chromium(), args=FLAGS, viewport={"width": 1280, "height": 900}
            )
            closing.callback(self.context.close)
            self.context.set_default_timeout(PATIENCE * 1000)
            expect.set_options(timeout=PATIENCE * 1000)
            self.context.route("**/*", self._gate)
            self.context.on("dialog", self._dismiss)
            self.context.on("weberror", lambda error: self.errors.append(str(error.error)))
            self.context.on("console", self._hear)
            self._closing = closing.pop_all()
        return self

    def __exit__(self, *exception):
        self._closing.close()

    def open(self, address: str, width: int = 1280) -> Page:
        """A page in a tab of its own."""
        page = self.context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(address)
        return page

    def assert_harmless(self) -> None:
        """Nothing was executed that should be text, nothing was asked of another machine, nothing failed."""
        hacked = [page.url for page in self.context.pages if page.evaluate("window.hacked !== undefined")]
        found = {"hacked": hacked, "dialogs": self.dialogs, "refused": self.refused, "errors": self.errors}
        assert not any(found.values()), found

    def _gate(self, route: Route) -> None:
        if route.request.url.startswith((self.origin, "file:", "data:", "blob:", "about:")):
            route.continue_()
        else:
            self.refused.append(route.request.url)
            route.abort()

    def _dismiss(self, dialog) -> None:
        if dialog.type == "beforeunload":
            dialog.accept()
        else:
            self.dialogs.append(dialog.message)
            dialog.dismiss()

    def _hear(self, message) -> None:
        if message.type == "error":
            self.errors.append(f"{message.text} {message.location.get('url', '')}")


class Lab(Browser):
    """JupyterLab with one notebook open, in a folder of its own and with settings of its own."""

    def __init__(self, playwright: Playwright, notebook: Path):
        self.notebook = notebook
        self.port, self.token = _free_port(), secrets.token_hex(16)
        super().__init__(playwright, f"http://127.0.0.1:{self.port}/")

    def __enter__(self):
        with ExitStack() as closing:
            self._start(closing)
            super().__enter__()
            closing.push(super().__exit__)
            self.page = self.open(f"{self.origin}lab/tree/{self.notebook.name}?reset&token={self.token}")
            self.page.wait_for_function("window.jupyterapp && document.querySelector('.jp-Notebook .jp-Cell')")
            self.page.evaluate("window.jupyterapp.restored.then(() => null)")
            self._serving = closing.pop_all()
        return self

    def __exit__(self, *exception):
        self._serving.close()

    def run_all(self) -> None:
        """Run every cell; fails with the traceback of the first cell that fails."""
        self.page.wait_for_function(
            """() => { const session = window.jupyterapp.shell.currentWidget?.sessionContext;
                return session?.isReady && session.session?.kernel?.connectionStatus === 'connected'; }"""
        )
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells').then(() => null)")
        self.page.wait_for_function(
            """() => { const cells = [...window.jupyterapp.shell.currentWidget.content.model.cells];
                const code = cells.filter(cell => cell.type === 'code');
                const failed = code.some(cell => cell.outputs.toJSON().some(output => output.output_type === 'error'));
                return failed || code.every(cell => cell.executionCount && cell.executionState !== 'running'); }"""
        )
        outputs = self.page.evaluate(
            """() => [...window.jupyterapp.shell.currentWidget.content.model.cells]
                .filter(cell => cell.type === 'code').flatMap(cell => cell.outputs.toJSON())"""
        )
        for output in outputs:
            assert output["output_type"] != "error", "\n".join(output["traceback"])

    def cell(self, number: int):
        """The output of a cell, counted from 0."""
        return self.page.locator(".jp-Notebook .jp-Cell").nth(number).locator(".jp-OutputArea-output")

    def choose_theme(self, name: str) -> None:
        """Change the colours of everything, and wait for them."""
        choose = "theme => window.jupyterapp.commands.execute('apputils:change-theme', { theme }).then(() => null)"
        self.page.evaluate(choose, name)
        expect(self.page.locator("body")).to_have_attribute("data-jp-theme-name", name)
        expect(self.page.locator("#jupyterlab-splash")).to_have_count(0)

    def assert_legible(self) -> None:
        """Text and marks of our widgets stand out from what is behind them, in the dark theme and in the light one."""
        pale = {}
        for theme in ("JupyterLab Dark", "JupyterLab Light"):
            self.choose_theme(theme)
            for one in self.page.evaluate(CONTRASTS):
                if one["contrast"] < (TEXT if one["isText"] else MARK):
                    pale[theme, one["what"]] = round(one["contrast"], 2)
        assert not pale, pale

    def tab_stops(self) -> int:
        """How many times the Tab key stops in our widgets."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('.mi-widget [tabindex="0"], .mi-widget button, .mi-widget summary')]
                .filter(one => one.checkVisibility()).length"""
        )

    def end_kernel(self) -> None:
        """Shut the kernel down and wait until it is gone."""
        self.page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")
        self.page.wait_for_function("!window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel")

    def _start(self, closing: ExitStack) -> None:
        home = Path(closing.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        _write_json(
            home / "config" / "labconfig" / "page_config.json",
            {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}},
        )
        _write_json(  # every cell stays in the page, also those out of view
            home / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings",
            {"windowingMode": "none"},
        )
        folders = {
            "JUPYTER_CONFIG_DIR": "config",
            "JUPYTERLAB_SETTINGS_DIR": "settings",
            "JUPYTERLAB_WORKSPACES_DIR": "workspaces",
            "JUPYTER_RUNTIME_DIR": "runtime",
            "IPYTHONDIR": "ipython",
        }
        environment = {**os.environ, **{name: str(home / folder) for name, folder in folders.items()}}
        arguments = [
            "--no-browser",
            "--allow-root",
            "--expose-app-in-browser",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={self.port}",
            "--ServerApp.port_retries=0",
            f"--ServerApp.root_dir={self.notebook.parent}",
            f"--IdentityProvider.token={self.token}",
        ]
        log = closing.enter_context((home / "server.log").open("w+"))
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *arguments],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
        closing.callback(_end, server)
        _wait_for_port(self.port, server, home / "server.log")


def write_notebook(path: Path, *cells: str) -> Path:
    """A notebook of these cells."""
    kernel = {"name": "python3", "display_name": "Python 3"}
    sources = [nbformat.v4.new_code_cell(dedent(cell).strip()) for cell in cells]
    nbformat.write(nbformat.v4.new_notebook(cells=sources, metadata={"kernelspec": kernel}), path)
    return path


@contextmanager
def lab_with(folder: Path, *cells: str) -> Iterator[Lab]:
    """JupyterLab on a notebook of these cells, all of them run."""
    with driver() as playwright, Lab(playwright, write_notebook(folder / "one.ipynb", *cells)) as lab:
        lab.run_all()
        yield lab


def screenshot(page: Page, name: str) -> Path:
    """A picture of a page for people to look at, in `test-artifacts/`."""
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"{name}.png")
    return ARTIFACTS / f"{name}.png"


def _write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(value), encoding="utf8")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_for_port(port: int, server: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read_text()}")


def _end(server: subprocess.Popen) -> None:
    """The server ends its kernels on a polite request; only if it does not answer is its whole group ended."""
    server.terminate()
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
