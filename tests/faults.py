"""Faults to order: a process that ends without warning at a chosen write, processes at once, and waiting for them."""

import multiprocessing
import os
import time
from collections.abc import Callable

from mi_utils import files

PATIENCE = 300
"""Seconds: the machine may be busy."""


def dying(action: Callable, n: int, after: bool) -> int:
    """Run `action` in a process of its own that ends before, or after, its n-th rename; its exit code, 9 if it died."""
    process = multiprocessing.get_context("fork").Process(target=_run, args=(action, n, after))
    process.start()
    process.join()
    return process.exitcode


def at_once(*actions: Callable) -> list[int]:
    """Run the actions at the same time, each in a process of its own; their exit codes."""
    processes = [multiprocessing.get_context("fork").Process(target=action) for action in actions]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def wait_for(happened: Callable[[], object]) -> None:
    """Return as soon as it has happened; an AssertionError if it never does."""
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def _run(action: Callable, n: int, after: bool) -> None:
    rename, calls = os.replace, []

    def counted(*arguments):
        calls.append(1)
        if len(calls) < n or after:
            rename(*arguments)
        if len(calls) == n:
            os._exit(9)

    files.os.replace = counted
    action()
