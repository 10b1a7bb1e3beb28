"""Measure every direction for every concept at every dose, and every pair of concepts; write what was measured.

    nice python data/concepts/steering_table.py curves   # forty minutes on two cores
    nice python data/concepts/steering_table.py pairs    # ten

The first stops and starts again at will: each concept's part stays in the cache folder until all are there.
"""

import argparse
import sys
import time
from pathlib import Path

import pandas as pd

import mi_utils as mi
from mi_utils.files import atomic_path, cache_dir

HERE = Path(__file__).parent
HOOK, LATER = (mi.hooks.hook_name("resid_post", layer) for layer in (12, 16))
DICTIONARY, N_ROWS = "resid12_18432", 8
PAIR_DOSE, N_PROMPTS, N_PAIRS = 0.15, 12, 80
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


def curves(model, neutral) -> None:
    """Dose curves of all concepts."""
    dictionary, bench = mi.sae.load(DICTIONARY), mi.dosing.Bench(model, HOOK, neutral)
    concepts = mi.concepts.load()
    for name, concept in concepts.items():
        folder = PARTS / name
        if folder.exists():
            continue
        began = time.time()
        measured, latents = measure(concept, bench, dictionary)
        with atomic_path(folder) as part:
            part.mkdir(exist_ok=True)
            measured.to_csv(part / "curves.csv", index=False)
            latents.to_csv(part / "latents.csv", index=False)
        print(f"{name}: {time.time() - began:.0f} s", file=sys.stderr, flush=True)
    for kind, path in (("curves", mi.dosing.CURVES), ("latents", mi.dosing.LATENTS)):
        table = pd.concat([pd.read_csv(PARTS / name / f"{kind}.csv") for name in concepts], ignore_index=True)
        packed = {"method": "gzip", "mtime": 0} if path.suffix == ".gz" else None
        table.round(4).to_csv(path, index=False, compression=packed)


def additions(model, place, neutral) -> dict[str, mi.steering.Addition]:
    """Differences of means of all concepts and three random directions, as long as the pairs' dose says."""
    amount = PAIR_DOSE * mi.steering.typical_norm(model, place, neutral)
    vectors = {f"random {n}": mi.directions.random_direction(model.cfg.d_model, n) for n in range(3)}
    for name, concept in mi.concepts.load().items():
        states = mi.concepts.read(model, concept.rows(n_pairs=N_PAIRS).texts, [place], mean=True)[place]
        vectors[name] = mi.directions.diff_mean(states[0::2], states[1::2])
    return {name: mi.steering.Addition(place, amount * vector) for name, vector in vectors.items()}


def pairs(model, neutral) -> None:
    """Additivity of all pairs, combined in three ways."""
    here, later = (additions(model, place, neutral) for place in (HOOK, LATER))
    gauges = {
        name: mi.steering.Gauge(model, concept, concept.prompts[:N_PROMPTS])
        for name, concept in mi.concepts.load().items()
    }
    ways = {
        "sum": mi.dosing.additivity(gauges, here),
        "orthogonalised": mi.dosing.additivity(gauges, here, combine=mi.dosing.orthogonal),
        "second at a later layer": mi.dosing.additivity(gauges, here, seconds=later),
    }
    table = pd.concat(ways, names=["how"]).reset_index("how")
    table.round(4).to_csv(mi.dosing.PAIRS, index=False)


def main() -> None:
    parser = argparse.ArgumentParser(description="What steering does, for the record.")
    parser.add_argument("what", choices=["curves", "pairs"])
    what = {"curves": curves, "pairs": pairs}[parser.parse_args().what]
    model = mi.models.load_model()
    what(model, mi.corpus.held_out_contexts(model.tokenizer, 4, n_ctx=64).tokens.long())


if __name__ == "__main__":
    main()
