"""Make the tables of `09_edit_a_fact`: audits of planted worlds, edit success by layer, the scoreboard of methods.

    python data/facts/edits.py planted      # planted_edits.csv: worlds of one and two paths, several seeds
    python data/facts/edits.py sweep        # edit_sweep.csv: ROME at every second layer
    python data/facts/edits.py scoreboard   # edit_scores.csv: every method on the same facts

Stop and start again at will: what is in a table is not made again.
"""

import sys
from pathlib import Path

import pandas as pd
import torch

from mi_utils import fact_worlds
from mi_utils.files import atomic_path

FOLDER = Path(__file__).resolve().parent
SEEDS = range(3)


def add(name: str, rows: pd.DataFrame) -> None:
    """Append to a table, whole or not at all."""
    path = FOLDER / name
    table = pd.concat([pd.read_csv(path), rows]) if path.exists() else rows
    with atomic_path(path) as part:
        table.to_csv(part, index=False, float_format="%.4g")


def done(name: str, columns: list[str]) -> set[tuple]:
    """What a table holds already, by some of its columns."""
    path = FOLDER / name
    return set(pd.read_csv(path)[columns].itertuples(index=False, name=None)) if path.exists() else set()


def planted() -> None:
    """Every way to change facts, in worlds of one and of two paths."""
    for seed in SEEDS:
        for n_paths in (1, 2):
            if (n_paths, seed) not in done("planted_edits.csv", ["paths", "seed"]):
                add("planted_edits.csv", fact_worlds.audit(n_paths, seed))


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"planted": planted}[sys.argv[1]]()
