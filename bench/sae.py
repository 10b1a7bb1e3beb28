"""Samples per second of a BatchTopK training step, beside the peers and beside the matrix product it cannot avoid.

    ./lab bench sae            a table
    ./lab bench sae --json     one JSON object

All contestants run in one process and take turns, so that other load on the machine hits them alike; medians are over
the turns. Every one does a whole step: forward, backward, clipping where its own trainer clips, Adam. Peers that are
not installed are left out: `pip install dictionary-learning eai-sparsify` brings them in, best into a copy of the
environment, because they ask for many other packages.
"""

import argparse
import contextlib
import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, LoggingConfig, SAETrainer
from sae_lens.config import SAETrainerConfig

from mi_utils.metrics import fvu
from mi_utils.sae import SparseBatchTopKTrainingSAE
from mi_utils.training import Trainer
from mi_utils.worlds import superposition

D_IN, K, LR = 576, 32, 3e-4
SIZES = ((4608, 2048), (9216, 4096))
N_STEPS_CURVE = 60

Step = Callable[[torch.Tensor], None]


@dataclass
class Timing:
    """Median seconds of one step, and what follows from it."""

    seconds: float
    samples_per_second: float


def main() -> None:
    parser = argparse.ArgumentParser(description="Training step of a BatchTopK SAE beside the peers.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--turns", type=int, default=7, help="turns per contestant")
    arguments = parser.parse_args()
    result = {}
    for d_sae, batch_size in SIZES:
        timings = take_turns(d_sae, batch_size, arguments.turns)
        result |= {f"{name}_samples_per_second_{d_sae}": t.samples_per_second for name, t in timings.items()}
        ours = timings["ours"].seconds
        result[f"speedup_vs_sae_lens_{d_sae}"] = timings["sae_lens"].seconds / ours
        result[f"share_of_ceiling_{d_sae}"] = timings["encoder_product"].seconds / ours
        if not arguments.json:
            print_table(d_sae, batch_size, timings)
    result["fvu_gap_equal_tokens"] = fvu_gap()
    if arguments.json:
        print(json.dumps({name: round(value, 4) for name, value in result.items()}))
    else:
        print(f"largest FVU gap to sae-lens at equal tokens: {result['fvu_gap_equal_tokens']:.5f}")


def take_turns(d_sae: int, batch_size: int, turns: int) -> dict[str, Timing]:
    batches = list(itertools.islice(superposition(4 * D_IN, D_IN, density=0.02).batches(batch_size), 4))
    contestants = {}
    for name, make in CONTESTANTS.items():
        with contextlib.suppress(ImportError):
            contestants[name] = make(d_sae, batch_size)
    seconds = {name: [] for name in contestants}
    for turn in range(-1, turns):
        for name, step in contestants.items():
            start = time.perf_counter()
            step(batches[turn % len(batches)])
            if turn >= 0:  # the first turn warms up
                seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: Timing(median, batch_size / median) for name, median in medians.items()}


def encoder_product(d_sae: int, batch_size: int) -> Step:
    """The ceiling: the dense product of the encoder's shape alone, in float32, into a buffer that is reused."""
    weights, buffer = torch.randn(d_sae, D_IN), torch.empty(batch_size, d_sae)
    return lambda x: torch.mm(x, weights.T, out=buffer)


def ours(d_sae: int, _batch_size: int) -> Step:
    return Trainer(sparse_sae(d_sae), 10_000, lr=LR).step


def ours_in_sae_lens_trainer(d_sae: int, batch_size: int) -> Step:
    return sae_lens_step(sparse_sae(d_sae), batch_size)


def sae_lens(d_sae: int, batch_size: int) -> Step:
    return sae_lens_step(BatchTopKTrainingSAE(config(d_sae)), batch_size)


def config(d_sae: int) -> BatchTopKTrainingSAEConfig:
    torch.manual_seed(0)
    return BatchTopKTrainingSAEConfig(d_in=D_IN, d_sae=d_sae, k=K)


def sparse_sae(d_sae: int) -> SparseBatchTopKTrainingSAE:
    return SparseBatchTopKTrainingSAE(config(d_sae))


def sae_lens_step(sae: BatchTopKTrainingSAE, batch_size: int) -> Step:
    trainer = SAETrainer(
        SAETrainerConfig(
            total_training_samples=10_000 * batch_size,
            train_batch_size_samples=batch_size,
            lr=LR,
            lr_end=LR,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        iter(()),
    )

    def step(x: torch.Tensor) -> None:
        trainer.step(x)
        trainer.n_training_steps += 1

    return step


def dictionary_learning(d_sae: int, _batch_size: int) -> Step:
    from dictionary_learning.trainers.batch_top_k import BatchTopKTrainer

    trainer = BatchTopKTrainer(
        steps=10_000, activation_dim=D_IN, dict_size=d_sae, k=K, layer=0, lm_name="", lr=LR, device="cpu"
    )
    steps = itertools.count()
    return lambda x: trainer.update(next(steps), x)


def sparsify(d_sae: int, _batch_size: int) -> Step:
    """eai-sparsify has TopK only and trains inside a model; this is its module with a step like its trainer's."""
    from sparsify import SparseCoder, SparseCoderConfig

    coder = SparseCoder(D_IN, SparseCoderConfig(num_latents=d_sae, k=K), device="cpu")
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)

    def step(x: torch.Tensor) -> None:
        coder(x).fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        optimizer.step()
        optimizer.zero_grad()
        coder.set_decoder_norm_to_unit_norm()

    return step


CONTESTANTS = {
    "encoder_product": encoder_product,
    "ours": ours,
    "ours_in_sae_lens_trainer": ours_in_sae_lens_trainer,
    "sae_lens": sae_lens,
    "dictionary_learning": dictionary_learning,
    "sparsify": sparsify,
}


def fvu_gap(d_sae: int = 2304, batch_size: int = 1024) -> float:
    """Largest difference of the two FVU curves, ours and sae-lens's, over a run on the same batches."""
    dense, sparse = BatchTopKTrainingSAE(config(d_sae)), sparse_sae(d_sae)
    sparse.load_state_dict(dense.state_dict())
    theirs = sae_lens_step(dense, batch_size)
    ours_trainer = Trainer(sparse, N_STEPS_CURVE, lr=LR, warm_up=0.0, decay=0.0)
    held_out = next(superposition(4 * D_IN, D_IN, density=0.02).batches(batch_size, seed=1))
    gaps = []
    batches = superposition(4 * D_IN, D_IN, density=0.02).batches(batch_size)
    for x in itertools.islice(batches, N_STEPS_CURVE):
        theirs(x)
        ours_trainer.step(x)
        with torch.no_grad():
            gaps.append(abs(fvu(held_out, dense(held_out)) - fvu(held_out, sparse(held_out))).item())
    return max(gaps)


def print_table(d_sae: int, batch_size: int, timings: dict[str, Timing]) -> None:
    print(f"d_sae {d_sae}, batch {batch_size}, d_in {D_IN}, k {K}")
    for name, timing in timings.items():
        times = timings["sae_lens"].seconds / timing.seconds
        share = timings["encoder_product"].seconds / timing.seconds
        rate = f"{timing.samples_per_second:>10,.0f} samples/s"
        print(f"  {name:26s}{rate} {times:7.1f} x sae-lens {share:7.0%} of the encoder product")


if __name__ == "__main__":
    main()
