"""How long a meta-SAE takes until more training would not help, beside sae-lens's own trainer at equal work.

    ./lab bench meta            a table
    ./lab bench meta --json     one JSON object

The rows of a shipped decoder, a quarter and a twenty-first as many meta-latents, four to a row. Converged means that
four times as many steps explain about a hundredth more of the training rows, and less than that of held-out ones.
sae-lens's BatchTopKTrainingSAE runs a few steps on the same batches, from which its time for the same steps is worked
out.
"""

import argparse
import json
import time

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

import mi_utils as mi
from mi_utils.meta import BATCH_SIZE, LR, N_STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description="A meta-SAE until it has converged.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--name", default="resid12_18432", help="a shipped dictionary")
    arguments = parser.parse_args()
    rows = mi.meta.unit_rows(mi.sae.load(arguments.name))
    result = {}
    for ratio in (21, 4):
        result |= {f"1/{ratio}: {name}": value for name, value in costs(rows, len(rows) // ratio).items()}
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:52s} {value:10,.3f}" for name, value in result.items()))


def costs(rows: torch.Tensor, n_meta: int) -> dict[str, float]:
    out, split = {}, mi.meta.split_rows(rows)
    for times in (1, 4):
        start = time.perf_counter()
        meta = mi.meta.train_meta(split.train, n_meta, n_steps=times * N_STEPS)
        out[f"seconds for {times * N_STEPS} steps"] = time.perf_counter() - start
        for name, part in (("training", split.train), ("held-out", split.held_out)):
            found = mi.meta.explained(part, meta.W_dec, 4, meta.b_dec)[4]
            out[f"{name} rows explained after {times * N_STEPS} steps"] = float(found)
    return out | {f"seconds for {N_STEPS} steps, sae-lens": seconds_of_sae_lens(split.train, n_meta)}


def seconds_of_sae_lens(rows: torch.Tensor, n_meta: int, n_steps: int = 6) -> float:
    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=rows.shape[1], d_sae=n_meta, k=4))
    trainer = mi.training.Trainer(sae, n_steps, lr=LR)
    generator = torch.Generator().manual_seed(0)
    seconds = []
    for _ in range(n_steps):
        x = rows[torch.randint(len(rows), (BATCH_SIZE,), generator=generator)]
        start = time.perf_counter()
        trainer.step(x)
        seconds.append(time.perf_counter() - start)
    return N_STEPS * sorted(seconds)[n_steps // 2]


if __name__ == "__main__":
    main()
