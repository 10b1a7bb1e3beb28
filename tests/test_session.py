"""The session line, the seeds, the theme, and that the network is refused."""

import random
import socket
import urllib.request
from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
import pytest
import torch

from mi_utils import artefacts, offline, session, theme


def test_the_same_seed_draws_the_same_numbers(capsys):
    def draw():
        session.start(seed=3)
        return random.random(), np.random.rand(), torch.rand(1).item()  # noqa: NPY002 - what libraries use

    first = draw()
    assert draw() == first
    random.seed(4)
    assert random.random() != first[0]


def test_it_prints_one_line_with_versions_and_seed(capsys):
    started = session.start(seed=5)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    for part in (f"torch {torch.__version__}", "sae-lens", "threads", "seed 5"):
        assert part in lines[0]
    with pytest.raises(FrozenInstanceError):
        started.seed = 6


def test_tables_show_three_significant_digits():
    session.start()
    assert "0.551" in repr(pd.Series([0.550765, 64.0]))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match="0 to 2"):
        session.start(seed=seed)


@pytest.mark.parametrize(("text", "cpus"), [("150000 100000", 2), ("max 100000", 2**31), ("", 2**31)])
def test_a_container_limits_the_threads(tmp_path, text, cpus):
    (tmp_path / "cpu.max").write_text(text)
    assert session._cpu_quota(tmp_path / "cpu.max") == cpus
    assert session._cpu_quota(tmp_path / "missing") == 2**31


def test_the_theme_is_the_default_and_no_renderer_offers_to_upload():
    theme.apply()
    figure = go.Figure(go.Scatter(y=[1, 2]))
    assert figure.layout.template.layout.width == 720
    assert figure.layout.template.layout.colorway[0] == theme.BLUE
    configs = [pio.renderers[name].config for name in pio.renderers if hasattr(pio.renderers[name], "config")]
    assert len(configs) > 5
    assert all(config["showSendToCloud"] is False for config in configs)


def test_meanings_have_colours_that_can_be_told_apart():
    arms = ["truth", "trained", "second_seed", "random_decoder", "random_model", "pca", "chance"]
    assert len({theme.COLOURS[arm] for arm in arms}) == len(arms)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost", "", None, b"localhost"])
def test_this_machine_is_local(host):
    assert offline.is_local(host)


@pytest.mark.parametrize("host", ["example.com", "10.0.0.1", "0.0.0.0", "8.8.8.8", "2001:db8::1", "localhost.evil.org"])
def test_everything_else_is_not(host):
    assert not offline.is_local(host)


@pytest.mark.parametrize(
    "reach",
    [
        lambda: socket.create_connection(("192.0.2.1", 80), timeout=1),
        lambda: socket.getaddrinfo("example.com", 443),
        lambda: socket.gethostbyname("example.com"),
        lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.1", 53)),
        lambda: socket.socket(socket.AF_INET6).connect(("2001:db8::1", 80, 0, 0)),
    ],
)
def test_the_network_is_refused_and_counted(reach):
    before = len(offline.refused())
    with pytest.raises(offline.NetworkRefusedError, match="refused: notebooks and tests run without"):
        reach()
    assert len(offline.refused()) == before + 1


def test_libraries_see_a_failed_connection():
    with pytest.raises(OSError, match=r"example\.com:80 refused"):
        urllib.request.urlopen("http://example.com")


def test_this_machine_can_still_be_reached(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(str(tmp_path / "s"))
        server.listen()
        client.connect(str(tmp_path / "s"))


def test_a_shipped_file_that_was_swapped_stops_a_notebook_at_its_first_line(tmp_path, monkeypatch):
    for name in ("curves.csv", "weights.safetensors"):
        (tmp_path / name).write_text(name)
    artefacts.write_checksums(tmp_path)
    check = artefacts.check
    monkeypatch.setattr(artefacts, "check", lambda: check(tmp_path))
    session.start()
    (tmp_path / "curves.csv").write_text("weights.safetensors")
    with pytest.raises(ValueError, match="curves.csv is altered or truncated: restore data/.*./lab sync"):
        session.start()
