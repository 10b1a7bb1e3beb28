"""A dictionary of 65,536 latents on 2 billion tokens of a model of 7 billion parameters: bytes, hours, accelerators.

./lab bench plan            a page
./lab bench plan --json     one JSON object

What is measured, here and now: which share of the speed of bare matrix products our harvest and our training step
reach. What is assumed: everything in `WORK` and `ACCELERATOR`, and that

- the same shares are reached there. Our sparse step is measured on processors only, and `cluster` trains on them only;
- the harvest runs the layers up to the middle one and no unembedding; attention's own products are left out (with
  contexts of 1,024 tokens a twenty-fourth of the rest);
- shards are harvested independently, so that n accelerators take an nth of the time;
- training is data-parallel as in `cluster`: each worker reads the whole store, computes its rows of each batch, and
  all-reduces a dense float32 gradient in a ring; reading, computing and sending do not overlap; the cut of BatchTopK
  (a few megabytes a step) is left out.
"""

import argparse
import json
from dataclasses import asdict, dataclass

from bench import harvest, sae

HOUR = 3600


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
class Hardware:
    """One of the machines that share the work."""

    name: str
    flops: float
    """Of a large matrix product, a second."""
    network: float
    """Bytes sent a second, while all send."""
    storage: float
    """Bytes read a second, while all read."""


@dataclass(frozen=True)
class Shares:
    """Of the speed of bare products of the same shapes."""

    harvest: float
    training: float


WORK = Work(
    n_tokens=2_000_000_000,
    layers_run=16,
    layer_parameters=4 * 4096**2 + 3 * 4096 * 11008,  # a Llama of 7 billion
    d_in=4096,
    d_sae=65_536,
    batch_size=16_384,
)
# Half of 989 and of 495 tera in its data sheet (bfloat16, TF32) is what large products commonly reach; the lower one.
ACCELERATOR = Hardware("H100, 80 GB", flops=0.5 * 495e12, network=50e9, storage=5e9)


def plan(work: Work, hardware: Hardware, shares: Shares, n: int) -> dict[str, float]:
    """Hours and bytes if `n` machines share the work."""
    n_steps = work.n_tokens / work.batch_size
    pre_acts = 4 * work.batch_size / n * work.d_sae
    hours = {
        "hours of harvest": work.harvest_flop / (n * hardware.flops * shares.harvest) / HOUR,
        "hours of training: computing": work.training_flop / (n * hardware.flops * shares.training) / HOUR,
        "hours of training: sending gradients": n_steps * 2 * (n - 1) / n * work.sae_bytes / hardware.network / HOUR,
        "hours of training: reading": work.store_bytes / hardware.storage / HOUR,
    }
    return hours | {
        "hours of training": sum(value for name, value in hours.items() if "training" in name),
        "GB of memory for training": (4 * work.sae_bytes + pre_acts) / 1e9,  # weights, gradients, two of Adam's
    }


def measured(turns: int = 3) -> tuple[Shares, Hardware]:
    """Our shares, and this machine as hardware."""
    rates = harvest.take_turns(layer=12, batch_size=16, turns=turns)
    timings = sae.take_turns(9216, 4096, turns)
    shares = Shares(
        rates["share_of_linear_products_alone"], timings["encoder_product"].seconds / timings["ours"].seconds
    )
    flops = timings["encoder_product"].samples_per_second * 2 * sae.D_IN * 9216
    return shares, Hardware("this machine", flops, network=1e9, storage=1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description="A plan for work of another size.")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the page")
    arguments = parser.parse_args()
    shares, here = measured()
    plans = {n: plan(WORK, ACCELERATOR, shares, n) for n in (1, 2, 4, 8, 16)}
    if arguments.json:
        print(json.dumps({"work": asdict(WORK), "accelerator": asdict(ACCELERATOR), "shares": asdict(shares)} | plans))
    else:
        print_page(shares, here, plans)


def print_page(shares: Shares, here: Hardware, plans: dict[int, dict[str, float]]) -> None:
    print(f"{WORK.n_tokens:,} tokens, {WORK.d_sae:,} latents on {WORK.d_in:,} dimensions, {WORK.layers_run} layers run")
    print(f"measured: harvest at {shares.harvest:.0%}, training at {shares.training:.0%} of bare products")
    print(f"store {WORK.store_bytes / 1e12:.1f} TB; weights {WORK.sae_bytes / 1e9:.1f} GB; checkpoint three times that")
    print(f"\n{ACCELERATOR.name}, {ACCELERATOR.flops / 1e12:.0f} tera a second in a large product, assumed")
    width = max(map(len, plans[1]))
    print(f"{'':{width}s} {''.join(f'{n:>8d}' for n in plans)}")
    for name in plans[1]:
        print(f"{name:{width}s} {''.join(f'{values[name]:8.1f}' for values in plans.values())}")
    best = min(plans, key=lambda n: plans[n]["hours of training"])
    print(f"\nleast hours of training: {best}; harvest in a day: {-(-plans[1]['hours of harvest'] // 24):.0f}")
    alone = plan(WORK, here, shares, 1)
    days = {name: alone[f"hours of {name}"] / 24 for name in ("harvest", "training")}
    spelled = ", ".join(f"{value:,.0f} machine-days of {name}" for name, value in days.items())
    print(f"machines like this one, {here.flops / 1e9:.0f} giga a second: {spelled}")


if __name__ == "__main__":
    main()
