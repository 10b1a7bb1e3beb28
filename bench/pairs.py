"""What a paired harvest costs beside the two forward passes it cannot avoid.

./lab bench pairs            a table
./lab bench pairs --json     one JSON object

The passes stop at the same layer, run on the same contexts with as many workers, and keep nothing. The harvest writes
both stores, checks them row by row, leaves long rows out of both and computes each model's mean and scale. The two
take turns in one process; medians are over the turns, preparation of either is left in.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import mi_utils as mi
from bench.harvest import N_CTX, some_tokens
from mi_utils.activations import workers

BATCH = 16


def main() -> None:
    parser = argparse.ArgumentParser(description="A paired harvest beside two forward passes.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--layer", type=int, default=12, help="read the residual stream after this layer")
    parser.add_argument("--contexts", type=int, default=128)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    result = take_turns(arguments.layer, arguments.contexts, arguments.turns)
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:42s} {value:12,.3f}" for name, value in result.items()))


def take_turns(layer: int, n_contexts: int, turns: int) -> dict[str, float]:
    pair, place = mi.models.load_pair(tuned="broad"), mi.hooks.hook_name("resid_post", layer)
    tokens = some_tokens(n_contexts, pair.base.cfg.d_vocab)
    contestants = {"harvest": lambda: harvest(pair, tokens, place), "passes": lambda: passes(pair, tokens, place)}
    seconds = {name: [] for name in contestants}
    for turn in range(-1, turns):
        for name, run in contestants.items():
            start = time.perf_counter()
            run()
            if turn >= 0:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "pairs_per_second": n_contexts * N_CTX / medians["harvest"],
        "pairs_per_second_of_the_passes_alone": n_contexts * N_CTX / medians["passes"],
        "harvest_over_passes": medians["harvest"] / medians["passes"],
    }


def harvest(pair: mi.models.ModelPair, tokens: torch.Tensor, place: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mi.paired_activations.harvest_pair(pair, tokens, place, Path(folder), batch_size=BATCH, progress=False)


@torch.no_grad()
def passes(pair: mi.models.ModelPair, tokens: torch.Tensor, place: str) -> None:
    for model in pair:
        reader = mi.hooks.fast_reader(model, [place], tokens[:1])
        run: Callable[[torch.Tensor], object] = torch.no_grad()(reader)
        with workers(reader.in_threads) as pool:
            for _ in pool.map(run, tokens.split(BATCH)):
                pass


if __name__ == "__main__":
    main()
