"""Measure every direction for every concept at every dose, and write what was measured.

    nice python data/concepts/steering_table.py

Stops and starts again at will: each concept's part stays in the cache folder until all are there.
"""

import sys
import time
from pathlib import Path

import pandas as pd

import mi_utils as mi
from mi_utils.files import atomic_path, cache_dir

HERE = Path(__file__).parent
HOOK, DICTIONARY, N_ROWS = mi.hooks.hook_name("resid_post", 12), "resid12_18432", 8
PARTS = cache_dir() / "steering"


def measure(concept, bench, dictionary) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Curves of one concept, and the latents whose rows were used."""
    gauge = mi.steering.Gauge(bench.model, concept)
    found = mi.directions.workshop(bench.model, concept, bench.hook_name, dictionary, bench.unit / 2)
    rows = mi.directions.rebuilt(found.vectors["DiffMean"], dictionary, N_ROWS, bench.unit)
    vectors = found.vectors | {f"DiffMean as {N_ROWS} SAE rows": next(iter(rows.values()))}
    curves = {name: bench.dose_curve(gauge, vector) for name, vector in vectors.items()}
    curves["prompt"] = bench.prompted(gauge)
    table = pd.concat(curves, names=["direction"]).reset_index("direction").assign(concept=concept.name)
    return table, found.chosen.assign(concept=concept.name)


def main() -> None:
    model, dictionary = mi.models.load_model(), mi.sae.load(DICTIONARY)
    neutral = mi.corpus.held_out_contexts(model.tokenizer, 4, n_ctx=64).tokens.long()
    bench = mi.dosing.Bench(model, HOOK, neutral)
    concepts = mi.concepts.load()
    for name, concept in concepts.items():
        folder = PARTS / name
        if folder.exists():
            continue
        began = time.time()
        curves, latents = measure(concept, bench, dictionary)
        with atomic_path(folder) as part:
            part.mkdir(exist_ok=True)
            curves.to_csv(part / "curves.csv", index=False)
            latents.to_csv(part / "latents.csv", index=False)
        print(f"{name}: {time.time() - began:.0f} s", file=sys.stderr, flush=True)
    for kind, path in (("curves", mi.dosing.CURVES), ("latents", mi.dosing.LATENTS)):
        table = pd.concat([pd.read_csv(PARTS / name / f"{kind}.csv") for name in concepts], ignore_index=True)
        table.round(4).to_csv(
            path, index=False, compression={"method": "gzip", "mtime": 0} if kind == "curves" else None
        )


if __name__ == "__main__":
    main()
