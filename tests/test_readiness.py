"""`./lab check` tells a machine that is ready from one that is not, whatever is broken, and says what to do."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections import namedtuple
from contextlib import ExitStack
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

import psutil
import pytest
from typer.testing import CliRunner

from mi_utils import __main__ as commands
from mi_utils import artefacts, models, readiness, runner, runs
from mi_utils.readiness import NotReadyError

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 300
"""Seconds for JupyterLab to start: the machine may be busy."""


def test_this_machine_starts_jupyter_and_goes_the_whole_way():
    assert "on 127.0.0.1 only, refuses without token" in readiness.jupyter()
    assert readiness.packages()
    assert readiness.port()
    if models._gguf_path() is None:
        pytest.skip("needs the default model's wheel, which ./lab installs")
    models.load_model()
    assert "checksums agree" in readiness.model()
    assert readiness.end_to_end().endswith("0 connections asked for")


def refuses(look, problem, remedy):
    with pytest.raises(NotReadyError, match=problem) as error:
        look()
    assert remedy in error.value.remedy


def test_an_old_python(monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    refuses(readiness.python, "is too old", "install Python 3.11")


def test_packages_that_are_missing_or_of_another_version(monkeypatch):
    found = {"torch": "2.1.0", "plotly": None}

    def version(name):
        if found.get(name, "") is None:
            raise PackageNotFoundError
        return found.get(name) or real(name)

    real = readiness.version
    monkeypatch.setattr(readiness, "version", version)
    refuses(readiness.packages, "torch is 2.1.0, which is not >=2.6.*plotly is missing", "./lab setup")
    found.clear()
    found["torch"] = "2.99.0+cu999"
    assert readiness.packages().endswith("; torch is 2.99.0+cu999")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_model_that_is_missing_or_damaged(cache):
    refuses(readiness.model, "smollm2-135m is not in", "./lab setup")
    folder = models._default_folder()
    folder.mkdir(parents=True)
    refuses(readiness.model, "manifest.json is damaged or missing", "./lab setup")
    (folder / "manifest.json").write_text('{"model.safetensors": "0"}')
    (folder / "model.safetensors").write_text("cut")
    refuses(readiness.model, "model.safetensors is damaged or missing", "./lab setup")


def test_data_that_is_altered_or_missing(tmp_path, monkeypatch):
    check = artefacts.check
    monkeypatch.setattr(artefacts, "check", lambda: check(tmp_path))
    refuses(readiness.data, "SHA256SUMS is missing", "restore it from version control")
    for number in range(5):
        (tmp_path / f"{number}.csv").write_text("1")
    artefacts.write_checksums(tmp_path)
    for number in range(5):
        (tmp_path / f"{number}.csv").write_text("2")
    refuses(readiness.data, "0.csv is altered or truncated, and so are 4 more", "version control")


def test_a_disk_that_is_small_or_read_only(cache, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(10**9, 0, 10**9))
    refuses(readiness.disk, "1.0 GB free in", "make room for 2 GB, or set MI_CACHE")

    def read_only(dir):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(readiness.tempfile, "TemporaryFile", read_only)
    refuses(readiness.disk, "cannot write into .*Permission denied", "make it writable")


def test_too_little_memory_in_the_machine_or_in_the_container(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("3000000000\n")
    (tmp_path / "memory.current").write_text("1500000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 500000000\n")
    assert readiness._container_memory(tmp_path) == 2_000_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert readiness._container_memory(tmp_path) > 2**60
    assert readiness._container_memory(tmp_path / "none") > 2**60
    monkeypatch.setattr(readiness, "_container_memory", lambda group: 2_000_000_000)
    refuses(readiness.memory, "2.0 GB free", "close programs")


def test_one_core(monkeypatch):
    monkeypatch.setattr(readiness.session, "usable_cpus", lambda: 1)
    refuses(readiness.cores, "1 CPU", "give the machine two")


def test_ports_in_use(monkeypatch):
    with ExitStack() as closing:
        taken = closing.enter_context(socket.socket())
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        monkeypatch.setattr(readiness, "PORTS", range(number, number + 1))
        refuses(readiness.port, "are in use", "--port")
        monkeypatch.setattr(readiness, "PORTS", range(number, number + 9))
        assert f"{number} is in use, which is no harm" in readiness.port()


def test_no_browser(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(readiness.webbrowser, "get", lambda: (_ for _ in ()).throw(readiness.webbrowser.Error))
    refuses(readiness.browser, "none found", "install Firefox or Chromium")


def test_a_jupyter_that_does_not_start_or_lets_everyone_in(monkeypatch, tmp_path):
    with monkeypatch.context() as patched:
        patched.setattr(sys, "executable", "/bin/false")
        refuses(readiness.jupyter, "does not start: it said nothing", "./lab open")
    monkeypatch.setenv("JUPYTER_CONFIG_DIR", str(tmp_path))
    (tmp_path / "jupyter_server_config.py").write_text("c.IdentityProvider.token = ''")
    refuses(readiness.jupyter, "answers without its token", "config")


def test_open_takes_another_port_where_one_is_in_use_and_lets_nobody_in_without_token(tmp_path):
    runtime = tmp_path / "runtime"
    environment = dict(os.environ, JUPYTER_CONFIG_DIR=str(tmp_path / "config"), JUPYTER_RUNTIME_DIR=str(runtime))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        command = [sys.executable, "-m", "mi_utils", "open", "--no-browser", f"--ServerApp.port={number}"]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + PATIENCE
            while not (found := [*runtime.glob("jpserver-*.json")]) and time.monotonic() < end:
                time.sleep(0.1)
            about = json.loads(found[0].read_text())
            listening = [c for c in psutil.Process(server.pid).net_connections("inet") if c.status == "LISTEN"]
            with pytest.raises(HTTPError) as refused:
                readiness._ask(Request(f"{about['url']}api/contents"))
            page = page_of(f"{about['url']}lab", about["token"])
            update = page_of(f"{about['url']}lab/api/update", about["token"])
        finally:
            server.terminate()
            server.wait(PATIENCE)
    assert about["port"] != number
    assert len(about["token"]) >= 32
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    assert refused.value.code == 403
    assert '"news": {"disabled": true}' in page
    assert json.loads(update) == {"notification": None}  # without the setting it would ask the package index


def page_of(address, token):
    opener = build_opener(ProxyHandler({}))
    with opener.open(Request(address, headers={"Authorization": f"token {token}"}), timeout=PATIENCE) as answer:
        return answer.read().decode()


def test_a_way_that_breaks_off(monkeypatch):
    fields = {"tier": "full", "seconds": 1.0, "peak_bytes": 1, "finished": "", "machine": ""}
    run = runs.Run("check", "check", **fields, failure="cell [1] `import mi_utils as mi`: ImportError: no")
    monkeypatch.setattr(runner, "execute", lambda path: (None, run))
    refuses(readiness.end_to_end, r"cell \[1\].*ImportError: no", "mend what the line names")


def test_the_command_reports_every_line_and_its_exit_code(monkeypatch):
    def broken():
        raise NotReadyError("bad", "mend it")

    monkeypatch.setattr(readiness, "LOOKS", {"model": broken, "cores": lambda: 1 / 0, "port": lambda: "8888"})
    monkeypatch.setattr(readiness, "end_to_end", lambda: "fine")
    result = CliRunner().invoke(commands.app, ["check"])
    assert result.exit_code == 1
    lines = result.output.splitlines()
    assert lines[0].split() == ["not", "ok", "model", "bad"]
    assert lines[1].split() == ["->", "mend", "it"]
    assert "ZeroDivisionError" in lines[2]
    assert lines[4].split() == ["ok", "port", "8888"]
    assert "not tried" in lines[5]
    assert lines[-1] == "not ready: 3 to mend"
    monkeypatch.setattr(readiness, "LOOKS", {"port": lambda: "8888"})
    result = CliRunner().invoke(commands.app, ["check"])
    assert (result.exit_code, result.output.splitlines()[-1]) == (0, "ready")


def test_without_an_environment_the_script_says_so_and_installs_nothing(tmp_path):
    environment = dict(os.environ, MI_VENV=str(tmp_path / "venv"))
    done = subprocess.run([ROOT / "lab", "check"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "not ready" in done.stderr
    assert "./lab setup" in done.stderr
    assert not (tmp_path / "venv").exists()
