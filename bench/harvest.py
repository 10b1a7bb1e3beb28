"""Tokens per second of the harvest, beside the matrix products that the layers it runs cannot avoid.

    ./lab bench harvest            a table
    ./lab bench harvest --json     one JSON object

The ceiling multiplies activations of the same batch by the model's own weights, layer after layer, into buffers that
are used again, and does nothing else: no norms, no rotation, no activation function, no softmax. It is measured in two
ways, one batch at a time on all cores and a batch for each core, and the faster one counts; with and without the two
products of attention. Harvest and ceilings take turns in one process; medians are over the turns. Preparing a harvest,
about a second each time, is left out; writing the files is not. Peak memory is that of a process while it harvests N
contexts, the model included, and of another while it harvests 4 N; it is read as Linux gives it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from threading import local

import torch

from mi_utils.activations import Exclusion, Job, harvest, workers
from mi_utils.hooks import hook_name
from mi_utils.models import load_model, unhooked

N_CTX = 128
MEMORY_CONTEXTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Harvest beside the matrix products of the layers it runs.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--layer", type=int, default=12, help="read the residual stream after this layer")
    parser.add_argument("--batch-size", type=int, default=16, help="contexts in one forward pass")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of))
        return
    result = take_turns(arguments.layer, arguments.batch_size, arguments.turns) | {
        f"peak_megabytes_at_{n}_contexts": run_apart(n) for n in (MEMORY_CONTEXTS, 4 * MEMORY_CONTEXTS)
    }
    if arguments.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name:42s} {value:12,.3f}" for name, value in result.items()))


@torch.no_grad()
def take_turns(layer: int, batch_size: int, turns: int) -> dict[str, float]:
    model, n_batches = load_model(), 2 * torch.get_num_threads()
    tokens = some_tokens(n_batches * batch_size, model.cfg.d_vocab)
    with tempfile.TemporaryDirectory() as folder:
        contestants = {"harvest": harvester(model, tokens, layer, batch_size, Path(folder))}
        for attention in (False, True):
            for parallel in (False, True):
                multiply = products(model, layer, batch_size, attention)
                contestants[attention, parallel] = partial(repeat, multiply, n_batches, parallel)
        seconds = {name: [] for name in contestants}
        for turn in range(-1, turns):
            for name, run in contestants.items():
                start = time.perf_counter()
                run()
                if turn >= 0:  # the first turn warms up
                    seconds[name].append(time.perf_counter() - start)
    rates = {name: tokens.numel() / statistics.median(values) for name, values in seconds.items()}
    linear, with_attention = (max(rates[attention, False], rates[attention, True]) for attention in (False, True))
    return {
        "harvest_tokens_per_second": rates["harvest"],
        "linear_and_attention_products_tokens_per_second": with_attention,
        "linear_products_tokens_per_second": linear,
        "share_of_ceiling": rates["harvest"] / with_attention,
        "share_of_linear_products_alone": rates["harvest"] / linear,
    }


def harvester(model, tokens: torch.Tensor, layer: int, batch_size: int, folder: Path) -> Callable[[], None]:
    names, n_contexts = [hook_name("resid_post", layer)], len(tokens)
    job = Job(model, tokens, names, folder, batch_size, n_contexts, torch.float16, torch.float32, Exclusion())

    def run() -> None:
        for path in folder.iterdir():
            path.unlink()
        job.write_shard(0)

    return run


def products(model, layer: int, batch_size: int, attention: bool) -> Callable[[], None]:
    """A function that multiplies what one pass multiplies."""
    n_tokens, heads = batch_size * N_CTX, (batch_size * model.cfg.n_heads, N_CTX, model.cfg.d_head)
    weights = [
        module.weight
        for block in unhooked(model).get_submodule(model.blocks[0].name.rpartition(".")[0])[: layer + 1]
        for module in block.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    inputs = {width: torch.randn(n_tokens, width) for width in {weight.shape[1] for weight in weights}}
    q, k, own = torch.randn(heads), torch.randn(heads), local()

    @torch.no_grad()
    def run() -> None:
        if not hasattr(own, "outputs"):  # each thread writes into buffers of its own
            own.outputs = {width: torch.empty(n_tokens, width) for width in {weight.shape[0] for weight in weights}}
            own.scores, own.z = torch.empty(heads[0], N_CTX, N_CTX), torch.empty(heads)
        for weight in weights:
            torch.mm(inputs[weight.shape[1]], weight.T, out=own.outputs[weight.shape[0]])
        for _ in range(layer + 1 if attention else 0):
            torch.bmm(q, k.transpose(1, 2), out=own.scores)
            torch.bmm(own.scores, k, out=own.z)

    return run


def repeat(run: Callable[[], None], n_times: int, parallel: bool) -> None:
    with workers(parallel) as pool:
        list(pool.map(lambda _: run(), range(n_times)))


def some_tokens(n_contexts: int, d_vocab: int) -> torch.Tensor:
    tokens = torch.randint(1, d_vocab, (n_contexts, N_CTX), generator=torch.Generator().manual_seed(0))
    tokens[:, 0] = 0
    return tokens


def run_apart(n_contexts: int) -> float:
    """Peak memory in MB of a process of its own that loads the model and harvests."""
    command = [sys.executable, "-m", "bench.harvest", "--memory-of", str(n_contexts)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def peak_memory(n_contexts: int) -> float:
    model = load_model()
    Path("/proc/self/clear_refs").write_text("5")  # Linux starts the peak anew: loading the model needs more
    with tempfile.TemporaryDirectory() as folder:
        harvest(
            model,
            some_tokens(n_contexts, model.cfg.d_vocab),
            [hook_name("resid_post", 1)],
            folder,
            shard_contexts=MEMORY_CONTEXTS // 2,
            progress=False,
        )
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


if __name__ == "__main__":
    main()
