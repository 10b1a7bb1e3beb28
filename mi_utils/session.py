"""The first line of every notebook: shipped files compared, seeds, theme, one line that says what ran."""

import math
import os
import platform
import random
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from mi_utils import artefacts, theme
from mi_utils.claims import format_number

REPORTED = ("mi-utils", "torch", "transformer-lens", "sae-lens")


@dataclass(frozen=True)
class Session:
    """What a notebook runs on."""

    seed: int
    """The seed given to python, numpy and torch."""
    threads: int
    """Threads that torch uses for one operation."""
    versions: dict[str, str]
    """Versions of Python and of the packages that decide the numbers."""

    def __str__(self) -> str:
        versions = " · ".join(f"{name} {number}" for name, number in self.versions.items())
        return f"{versions} · {self.threads} threads · seed {self.seed}"


def start(seed: int = 0) -> Session:
    """Compare the shipped files, seed python, numpy and torch, apply the theme, print one line.

    Tables show three significant digits from here on.

    Gradients stay on: training needs them, and whatever only reads a model switches them off for itself.

    Args:
        seed: from 0 to 2**32 - 1, the range numpy takes.
    Raises:
        ValueError: the seed is out of range, or a file under `data/` is not the shipped one.
    """
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed is {seed}; expected a whole number from 0 to 2**32 - 1")
    artefacts.check()
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - libraries still draw from the global generator
    torch.manual_seed(seed)
    if torch.get_num_threads() > usable_cpus():
        torch.set_num_threads(usable_cpus())
    theme.apply()
    pd.options.display.float_format = format_number
    versions = {"python": platform.python_version()} | {name: version(name) for name in REPORTED}
    session = Session(seed, torch.get_num_threads(), versions)
    print(session)  # noqa: T201 - the one line this function promises
    return session


def usable_cpus() -> int:
    """CPUs this process may use: in a container that is fewer than the machine has, and torch does not look."""
    visible = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(visible, _cpu_quota(Path("/sys/fs/cgroup/cpu.max"))))


def _cpu_quota(limit: Path) -> int:
    """CPUs that a Linux control group allows, rounded up; a large number where there is no limit."""
    try:
        quota, period = limit.read_text().split()
        return math.ceil(int(quota) / int(period))
    except (OSError, ValueError):  # no control groups here, or the quota is the word "max"
        return 2**31
