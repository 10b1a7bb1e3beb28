"""A dictionary of 65,536 latents on 2 billion tokens of a model of 7 billion parameters: bytes, hours, accelerators.

./lab bench plan            a page
./lab bench plan --json     one JSON object

What is measured, here and now: the speed of bare matrix products, and which share of it our harvest and our training
step reach; on a GPU at the work's own widths, else at those of the default model. Where there is no GPU, the page takes
its numbers for one from `ACCELERATOR`. What is assumed: `WORK`, what network and storage carry, and that

- n accelerators, each with its part of the work, reach the same shares; `cluster` trains on processors only so far;
- the harvest runs the layers up to the middle one and no unembedding; attention's own products are left out (with
  contexts of 1,024 tokens a twenty-fourth of the rest);
- shards are harvested independently, so that n accelerators take an nth of the time;
- training is data-parallel as in `cluster`: each worker reads the whole store, computes its rows of each batch, and
  all-reduces a dense float32 gradient in a ring; reading, computing and sending do not overlap; the cut of BatchTopK
  (a few megabytes a step) is left out.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mi_utils as mi
from bench import harvest, median_seconds, sae
from mi_utils.activations import Exclusion, Job
from mi_utils.sae import build
from mi_utils.training import Trainer

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

HOUR = 3600
ROWS, K = 4096, 64
"""Of a batch, and active latents per row, when a GPU is measured."""
DENSE_COPIES = 8
"""Matrices of latents by rows that the dense step of a GPU holds at its peak: 8.3 were measured with these rows."""
CONTEXTS, N_CTX = 64, 1024
"""Harvested there."""


@dataclass(frozen=True)
class Work:
    """What is to be done."""

    n_tokens: int
    layers_run: int
    layer_parameters: int
    """Of the matrices of one layer."""
    d_in: int
    d_sae: int
    batch_size: int

    @property
    def harvest_flop(self) -> int:
        """Two for each parameter and token."""
        return 2 * self.n_tokens * self.layers_run * self.layer_parameters

    @property
    def training_flop(self) -> int:
        """Of the encoder's product, the one dense product of a sparse step."""
        return 2 * self.n_tokens * self.d_in * self.d_sae

    @property
    def store_bytes(self) -> int:
        """Rows in float16."""
        return 2 * self.n_tokens * self.d_in

    @property
    def sae_bytes(self) -> int:
        """Weights in float32."""
        return 4 * (2 * self.d_in * self.d_sae + self.d_in + self.d_sae)


@dataclass(frozen=True)
class Shares:
    """Of the speed of bare products of the same shapes."""

    harvest: float
    training: float


@dataclass(frozen=True)
class Hardware:
    """One of the machines that share the work."""

    name: str
    flops: float
    """Of a large matrix product, a second."""
    network: float
    """Bytes sent a second, while all send."""
    storage: float
    """Bytes read a second, while all read."""
    shares: Shares
    """What our code reaches on it."""


WORK = Work(
    n_tokens=2_000_000_000,
    layers_run=16,
    layer_parameters=4 * 4096**2 + 3 * 4096 * 11008,  # a Llama of 7 billion
    d_in=4096,
    d_sae=65_536,
    batch_size=16_384,
)
ACCELERATOR = Hardware("NVIDIA H200", flops=337e12, network=50e9, storage=5e9, shares=Shares(0.28, 0.093))
"""Measured on one by this module, but for network and storage, which are assumed."""


def plan(work: Work, hardware: Hardware, n: int) -> dict[str, float]:
    """Hours and bytes if `n` machines share the work."""
    n_steps = work.n_tokens / work.batch_size
    pre_acts = DENSE_COPIES * 4 * work.batch_size / n * work.d_sae
    hours = {
        "hours of harvest": work.harvest_flop / (n * hardware.flops * hardware.shares.harvest) / HOUR,
        "hours of training: computing": work.training_flop / (n * hardware.flops * hardware.shares.training) / HOUR,
        "hours of training: sending gradients": n_steps * 2 * (n - 1) / n * work.sae_bytes / hardware.network / HOUR,
        "hours of training: reading": work.store_bytes / hardware.storage / HOUR,
    }
    return hours | {
        "hours of training": sum(value for name, value in hours.items() if "training" in name),
        "GB of memory for training": (4 * work.sae_bytes + pre_acts) / 1e9,  # weights, gradients, two of Adam's
    }


def measured(turns: int = 3) -> Hardware:
    """This machine's processors."""
    rates = harvest.take_turns(layer=12, batch_size=16, turns=turns)
    timings = sae.take_turns(9216, 4096, turns)
    shares = Shares(
        rates["share_of_linear_products_alone"], timings["encoder_product"].seconds / timings["ours"].seconds
    )
    flops = timings["encoder_product"].samples_per_second * 2 * sae.D_IN * 9216
    return Hardware("this machine", flops, network=1e9, storage=1e9, shares=shares)


def measured_on_gpu(turns: int = 5) -> Hardware:
    """This machine's GPU, with TF32 products as most train in."""
    torch.set_float32_matmul_precision("high")
    x, weights = (torch.randn(shape, device="cuda") for shape in ((ROWS, WORK.d_in), (WORK.d_in, WORK.d_sae)))
    product = median_seconds(lambda: torch.mm(x, weights), turns)
    flops = 2 * ROWS * WORK.d_in * WORK.d_sae / product
    del weights
    trainer = Trainer(build("batchtopk", WORK.d_in, WORK.d_sae, K, device="cuda"), n_steps=1000)
    step = median_seconds(torch.enable_grad()(partial(trainer.step, x)), turns)
    del trainer
    model, hook_name = llama(), mi.hooks.hook_name("resid_post", WORK.layers_run - 1)
    tokens = torch.randint(1, model.cfg.d_vocab, (CONTEXTS, N_CTX))
    with tempfile.TemporaryDirectory() as folder:
        job = Job(model, tokens, [hook_name], Path(folder), 8, CONTEXTS, torch.float16, torch.float32, Exclusion())
        shard = median_seconds(lambda: job.write_shard(0), turns)
    harvested = 2 * tokens.numel() * WORK.layers_run * WORK.layer_parameters / shard
    shares = Shares(harvested / flops, product / step)
    return replace(ACCELERATOR, name=torch.cuda.get_device_name(), flops=flops, shares=shares)


def llama() -> "TransformerBridge":
    """The first layers of a Llama of 7 billion, with random weights, on the GPU."""
    sizes = {"hidden_size": WORK.d_in, "intermediate_size": 11008, "num_attention_heads": 32}
    config = LlamaConfig(vocab_size=32_000, num_hidden_layers=WORK.layers_run, **sizes)
    with torch.device("cuda"):
        plain = LlamaForCausalLM(config).eval()
    return mi.models.bridge(plain, None, "a Llama")


def main() -> None:
    parser = argparse.ArgumentParser(description="A plan for work of another size.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the page")
    arguments = parser.parse_args()
    here = measured()
    there = measured_on_gpu() if torch.cuda.is_available() else ACCELERATOR
    plans = {n: plan(WORK, there, n) for n in (1, 2, 4, 8, 16)}
    if arguments.json:
        print(json.dumps({"work": asdict(WORK), "here": asdict(here), "there": asdict(there)} | plans))
    else:
        print_page(here, there, plans)


def print_page(here: Hardware, there: Hardware, plans: dict[int, dict[str, float]]) -> None:
    print(f"{WORK.n_tokens:,} tokens, {WORK.d_sae:,} latents on {WORK.d_in:,} dimensions, {WORK.layers_run} layers run")
    print(f"store {WORK.store_bytes / 1e12:.1f} TB; weights {WORK.sae_bytes / 1e9:.1f} GB; checkpoint three times that")
    print(f"\n{speed(there)}{'' if torch.cuda.is_available() else ', on record'}")
    width = max(map(len, plans[1]))
    print(f"{'':{width}s} {''.join(f'{n:>8d}' for n in plans)}")
    for name in plans[1]:
        print(f"{name:{width}s} {''.join(f'{values[name]:8.1f}' for values in plans.values())}")
    best = min(plans, key=lambda n: plans[n]["hours of training"])
    print(f"\nleast hours of training: {best}; harvest in a day: {-(-plans[1]['hours of harvest'] // 24):.0f}")
    alone = plan(WORK, here, 1)
    days = {name: alone[f"hours of {name}"] / 24 for name in ("harvest", "training")}
    spelled = ", ".join(f"{value:,.0f} machine-days of {name}" for name, value in days.items())
    print(f"\n{speed(here)}: {spelled}")


def speed(hardware: Hardware) -> str:
    reached = f"harvest reaches {hardware.shares.harvest:.0%}, training {hardware.shares.training:.0%}"
    return f"{hardware.name}: {hardware.flops / 1e12:.3g} tera a second in a large product, of which {reached}"


if __name__ == "__main__":
    main()
