"""Measurements beside the peers, run with `./lab bench`; the package imports nothing from here.

What the small ones share: a table of figures or one JSON object, and medians of seconds.
"""

import argparse
import json
import time
from collections.abc import Callable

import torch


def show(description: str, costs: Callable[[], dict[str, float]]) -> None:
    """Print what `costs` measures, by name: as a table, or as one JSON object if the command line asks for it."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    arguments = parser.parse_args()
    result = costs()
    if arguments.json:
        print(json.dumps(result))
    else:
        width = max(map(len, result))
        print("\n".join(f"{name:{width}s} {value:8.2f}" for name, value in result.items()))


def median_seconds(action: Callable[[], object], repeats: int) -> float:
    """Median time of so many calls, without gradients unless the action switches them on."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        with torch.no_grad():
            action()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[repeats // 2]
