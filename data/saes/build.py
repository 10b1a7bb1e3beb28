"""Train the shipped dictionaries, measure them on held-out text, and index their latents.

    nice python data/saes/build.py train              # all of them, in order; stop and start again at will
    nice python data/saes/build.py train resid12_1152 # one of them
    nice python data/saes/build.py cards              # measure what is there; writes the cards and data/README.md
    nice python data/saes/build.py index              # index what is there

Activations are harvested once into the cache folder (13 GB) with products in bfloat16, and what is measured is
measured on float32 activations of documents that were held out. Why this layer: `choose_layer.py`.
"""

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import mi_utils as mi
from mi_utils.activations import ActivationStore
from mi_utils.files import cache_dir

HERE = Path(__file__).parent
WORK = cache_dir() / "shipped-saes"
LAYER, K, SEED, N_CTX = 12, 32, 0, 128
HOOK = mi.hooks.hook_name("resid_post", LAYER)
N_TOKENS, N_TOKENS_RANDOM_MODEL = 10_500_000, 1_050_000


@dataclass(frozen=True)
class Plan:
    """One dictionary: what makes it different from the others."""

    d_sae: int
    n_samples: int
    """Activations it is trained on, repetitions included."""
    seed: int = SEED
    frozen: tuple[str, ...] = ()
    random_model: bool = False
    lr: float = 2e-3
    batch_size: int = 1024


PLANS = {
    "resid12_1152": Plan(1152, 10_000_000),
    "resid12_18432": Plan(18432, 30_000_000, lr=1e-3, batch_size=2048),
    "resid12_1152_seed1": Plan(1152, 10_000_000, seed=1),
    "resid12_1152_frozen_decoder": Plan(1152, 10_000_000, frozen=("W_dec",)),
    "resid12_1152_random_model": Plan(1152, 10_000_000, random_model=True),
    "resid12_4608": Plan(4608, 20_000_000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["harvest", "train"])
    parser.add_argument("names", nargs="*", help=f"which dictionaries: {', '.join(PLANS)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(PLANS):
        parser.error(f"unknown {sorted(unknown)}; there are {', '.join(PLANS)}")
    names = arguments.names or list(PLANS)
    if arguments.step == "harvest":
        store(random_model=False)
        store(random_model=True)
    if arguments.step == "train":
        for name in names:
            if not (HERE / name).exists():
                train(name, PLANS[name])


def store(*, random_model: bool) -> ActivationStore:
    model = mi.models.load_model()
    documents = mi.corpus.split_held_out(mi.corpus.load_corpus()).train
    n_tokens = N_TOKENS_RANDOM_MODEL if random_model else N_TOKENS
    text = mi.corpus.contexts(mi.corpus.sample(documents, n_tokens, SEED), model.tokenizer, N_CTX).shuffled(SEED)
    if random_model:
        model = mi.models.random_twin(model, SEED)
    return mi.activations.harvest(model, text.tokens, [HOOK], products=torch.bfloat16)


def train(name: str, plan: Plan) -> None:
    rows = store(random_model=plan.random_model)
    sae = mi.sae.build("batchtopk", rows.d_in(HOOK), plan.d_sae, K, seed=plan.seed)
    if not plan.frozen:
        mi.sae.initialise_from_data(sae, next(rows.batches(HOOK, 2 * plan.d_sae, plan.seed)), plan.seed)
    WORK.mkdir(parents=True, exist_ok=True)
    n_steps, start = plan.n_samples // plan.batch_size, time.time()

    def report(curves) -> None:
        last = curves.iloc[-1]
        print(
            f"{name} step {last.step:.0f}/{n_steps} fvu {last.fvu:.4f} dead {last.dead_share:.3f} {last.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    curves = mi.training.train(
        sae,
        rows.batches(HOOK, plan.batch_size, plan.seed, epochs=None, shards_mixed=16),
        n_steps,
        lr=plan.lr,
        frozen=plan.frozen,
        dead_after=500_000 // plan.batch_size,
        log_every=100,
        on_log=report,
        checkpoint=WORK / f"{name}.safetensors",
    )
    curves.to_csv(WORK / f"{name}.csv", index=False)
    statistics = rows.statistics(HOOK)
    dictionary = mi.training.to_inference(sae, statistics.mean, statistics.scale)
    mi.sae.save(
        dictionary,
        HERE / name,
        dtype=torch.float16,
        model_name=mi.models.DEFAULT_MODEL + (f", weights drawn anew with seed {SEED}" if plan.random_model else ""),
        hook_name=HOOK,
        k=K,
        seed=plan.seed,
        frozen=list(plan.frozen),
        samples=n_steps * plan.batch_size,
        unique_tokens=rows.n_rows,
        hours=round(curves.seconds.iloc[-1] / 3600, 2),
        command=f"python data/saes/build.py train {name}",
    )
    print(f"{name} done after {time.time() - start:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
