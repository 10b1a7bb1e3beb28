"""Measure how much of a meta-SAE's explained variance is floor, for every shipped dictionary and for ones trained less.

    nice python data/saes/meta_table.py ladder   # dictionaries trained less or not at all, and a wider random model's
    nice python data/saes/meta_table.py table    # meta-SAEs on all of them and on their nulls; writes meta_table.csv

Both stop and start again at will. The ladder stays in the cache folder: only what was measured of it is shipped.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd
from build import HOOK, WORK, Plan, fit, store, untrained

import mi_utils as mi
from mi_utils.files import atomic_path

TABLE = Path(__file__).parent / "meta_table.csv"
SETTING = ["dictionary", "ratio", "k", "seed", "rows"]
RATIOS, SEEDS = (21, 4), (0, 1, 2)  # those of the original post and of the common benchmark
LADDER = {
    f"resid12_{d_sae}_{millions:g}M": Plan(d_sae, int(millions * 1e6), batch_size=batch_size)
    for d_sae, batch_size in ((4608, 2048), (1152, 1024))
    for millions in (0, 0.75, 1.5, 3, 6)
} | {"resid12_4608_random_model": Plan(4608, 12_000_000, batch_size=2048, random_model=True)}


def train(name: str, plan: Plan) -> None:
    """As the shipped dictionaries are trained, with a budget of its own and the whole schedule inside it.

    A budget of nothing leaves the rows where they start: on data points, mixed with noise.
    """
    rows = store(random_model=plan.random_model)
    sae = untrained(plan, rows)
    if plan.n_samples:
        fit(sae, plan, rows)
    statistics = rows.statistics(HOOK)
    mi.sae.save(mi.training.to_inference(sae, statistics.mean, statistics.scale), WORK / "ladder" / name)
    print(f"{name} is trained", file=sys.stderr, flush=True)


def dictionaries() -> dict[str, Path]:
    """The shipped ones, then the ladder."""
    return mi.sae.shipped() | {name: WORK / "ladder" / name for name in LADDER}


def runs() -> list[tuple]:
    """What to measure, as (dictionary, ratio, k, seed, rows); the usual setting first, for every dictionary."""
    shipped = mi.sae.shipped()
    usual = [
        (name, ratio, 4, seed, kind)
        for name in dictionaries()
        for ratio in RATIOS
        for seed in SEEDS
        for kind in ("real", *(mi.meta.NULLS if name in shipped else ["gaussian"]))
    ]
    others = [
        (name, ratio, k, seed, kind)
        for name in shipped
        for ratio in RATIOS
        for k in (2, 8)
        for seed in SEEDS
        for kind in ("real", "gaussian")
    ]
    return usual + others


def measure(name: str, ratio: int, k: int, seed: int, kind: str) -> dict[str, float]:
    rows = mi.meta.rows_of_kind(mi.meta.unit_rows(mi.sae.load(dictionaries()[name])), kind, seed)
    start = time.perf_counter()
    found = mi.meta.score(rows, len(rows) // ratio, k, seed=seed)
    return {
        "own": found.own,
        "in_sample": found.in_sample,
        "held_out": found.held_out,
        "one_atom": found.curve[1],
        "seconds": time.perf_counter() - start,
    }


def table() -> None:
    done = pd.read_csv(TABLE) if TABLE.exists() else pd.DataFrame(columns=[*SETTING])
    there = set(done[SETTING].itertuples(index=False, name=None))
    for run in runs():
        if run not in there:
            done = pd.concat([done, pd.DataFrame([dict(zip(SETTING, run, strict=True)) | measure(*run)])])
            with atomic_path(TABLE) as part:
                done.round(5).to_csv(part, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["ladder", "table"])
    if parser.parse_args().step == "table":
        return table()
    (WORK / "ladder").mkdir(parents=True, exist_ok=True)
    for name, plan in LADDER.items():
        if not (WORK / "ladder" / name).exists():
            train(name, plan)


if __name__ == "__main__":
    main()
