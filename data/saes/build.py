"""Train the shipped dictionaries, measure them on held-out text, and index their latents.

    nice python data/saes/build.py train              # all of them, in order; stop and start again at will
    nice python data/saes/build.py train resid12_1152 # one of them
    nice python data/saes/build.py cards              # measure what is there; writes the cards and data/README.md
    nice python data/saes/build.py index              # index what is there

Activations are harvested once into the cache folder (13 GB) with products in bfloat16, and what is measured is
measured on float32 activations of documents that were held out. Why this layer: `choose_layer.py`.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import torch
from sae_lens import TrainingSAE

import mi_utils as mi
from mi_utils.files import atomic_path, cache_dir, write_json
from mi_utils.stores import ActivationStore

HERE = Path(__file__).parent
WORK = cache_dir() / "shipped-saes"
LAYER, K, SEED, N_CTX = 12, 32, 0, 128
HOOK = mi.hooks.hook_name("resid_post", LAYER)
N_TOKENS, N_TOKENS_RANDOM_MODEL = 10_500_000, 1_050_000
N_SPLICED, N_WORDS = 64, 40_000
TABLE, TABLE_END = "<!-- cards: written by saes/build.py -->", "<!-- end of cards -->"


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
    n_indexed: int = 400_000
    """Tokens on which its latents are watched."""


PLANS = {
    "resid12_1152": Plan(1152, 10_000_000, n_indexed=1_000_000),
    "resid12_18432": Plan(18432, 20_000_000, lr=1.4e-3, batch_size=4096, n_indexed=1_000_000),
    "resid12_1152_seed1": Plan(1152, 10_000_000, seed=1),
    "resid12_1152_frozen_decoder": Plan(1152, 10_000_000, frozen=("W_dec",)),
    "resid12_1152_random_model": Plan(1152, 10_000_000, random_model=True, n_indexed=1_000_000),
    "resid12_4608": Plan(4608, 12_000_000, batch_size=2048),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["harvest", "train", "cards", "index"])
    parser.add_argument("names", nargs="*", help=f"which dictionaries: {', '.join(PLANS)}")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(PLANS):
        parser.error(f"unknown {sorted(unknown)}; there are {', '.join(PLANS)}")
    names = arguments.names or list(PLANS)
    there = [name for name in names if (HERE / name).exists()]
    if arguments.step == "harvest":
        store(random_model=False)
        store(random_model=True)
    elif arguments.step == "train":
        for name in names:
            if name not in there:
                train(name, PLANS[name])
    elif arguments.step == "cards":
        for name in there:
            write_card(name)
        write_table()
    else:
        for name in there:
            if not (HERE / name / "index").exists():
                index(name)


def store(*, random_model: bool) -> ActivationStore:
    documents = mi.corpus.split_held_out(mi.corpus.load_corpus()).train
    n_tokens = N_TOKENS_RANDOM_MODEL if random_model else N_TOKENS
    tokenizer = mi.models.load_tokenizer()
    text = mi.corpus.contexts(mi.corpus.sample(documents, n_tokens, SEED), tokenizer, N_CTX).shuffled(SEED)
    return mi.activations.harvest(model(random=random_model), text.tokens, [HOOK], products=torch.bfloat16)


def untrained(plan: Plan, rows: ActivationStore) -> TrainingSAE:
    """A new SAE; unless its decoder is frozen, its rows start on data points."""
    sae = mi.sae.build("batchtopk", rows.d_in(HOOK), plan.d_sae, K, seed=plan.seed)
    if not plan.frozen:
        mi.sae.initialise_from_data(sae, next(rows.batches(HOOK, 2 * plan.d_sae, plan.seed)), plan.seed)
    return sae


def fit(sae: TrainingSAE, plan: Plan, rows: ActivationStore, **settings) -> pd.DataFrame:
    """Train in place as planned, and return the curves."""
    return mi.training.train(
        sae,
        rows.batches(HOOK, plan.batch_size, plan.seed, epochs=None, shards_mixed=16),
        plan.n_samples // plan.batch_size,
        lr=plan.lr,
        frozen=plan.frozen,
        dead_after=500_000 // plan.batch_size,
        log_every=100,
        **settings,
    )


def train(name: str, plan: Plan) -> None:
    rows = store(random_model=plan.random_model)
    sae = untrained(plan, rows)
    WORK.mkdir(parents=True, exist_ok=True)
    n_steps, start = plan.n_samples // plan.batch_size, time.time()

    def report(curves) -> None:
        last = curves.iloc[-1]
        print(
            f"{name} step {last.step:.0f}/{n_steps} fvu {last.fvu:.4f} dead {last.dead_share:.3f} {last.seconds:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    curves = fit(sae, plan, rows, on_log=report, checkpoint=WORK / f"{name}.safetensors")
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


@cache
def model(*, random: bool):
    trained = mi.models.load_model()
    return mi.models.random_twin(trained, SEED) if random else trained


@cache
def held_out(*, random: bool):
    """Held-out text in float32: tokens, activations, the context and the token of each row."""
    documents = mi.corpus.split_held_out(mi.corpus.load_corpus()).held_out
    text = mi.corpus.contexts(documents, model(random=random).tokenizer, N_CTX).shuffled(SEED)
    rows = mi.activations.harvest(model(random=random), text.tokens, [HOOK])
    every = torch.arange(rows.n_rows)
    origin = rows.origin(every)
    token = text.tokens[origin.context.long(), origin.position.long()].long()
    return text, rows.rows(HOOK, every), origin, token


def write_card(name: str) -> None:
    """Measure one dictionary on held-out text."""
    plan, dictionary = PLANS[name], mi.sae.load(HERE / name)
    text, x, origin, token = held_out(random=plan.random_model)
    report = mi.evaluation.reconstruction(dictionary, x, origin.context)
    letter = mi.absorption.first_letters(model(random=False).tokenizer, token)
    words = (letter >= 0).nonzero()[:N_WORDS, 0]
    absorbed = mi.absorption.absorption(dictionary, x[words], letter[words], token[words])
    keep = torch.zeros(text.tokens.shape, dtype=torch.bool)
    keep[origin.context.long(), origin.position.long()] = True
    mean = x.mean(0)
    losses = mi.evaluation.spliced_losses(
        model(random=plan.random_model),
        text.tokens[:N_SPLICED].long(),
        HOOK,
        {"sae": dictionary, "mean": lambda rows: mean.expand_as(rows)},
        keep[:N_SPLICED],
    )
    recovered, interval = mi.evaluation.ce_recovered(losses, "sae", "mean")
    metadata = json.loads((HERE / name / "cfg.json").read_text())["metadata"]
    known = ("samples", "unique_tokens", "hours", "seed", "frozen", "model_name", "hook_name", "command")
    card = {
        "d_sae": plan.d_sae,
        "fvu": report.fvu,
        "fvu_interval": report.fvu_interval,
        "l0": report.l0,
        "ce_recovered": None if plan.random_model else recovered,
        "ce_recovered_interval": None if plan.random_model else interval,
        "nats_added": float((losses["sae"] - losses["clean"]).mean()),
        "dead": report.dead_share,
        "dense": report.dense_share,
        "absorption": absorbed.rate,
        "absorption_interval": absorbed.interval,
        "absorption_chance": float(absorbed.letters.chance.mean()),
        "first_letter_f1": absorbed.f1,
        "held_out_tokens": len(x),
        "measured_by": f"python data/saes/build.py cards {name}",
    } | {key: metadata[key] for key in known}
    write_json(HERE / name / "card.json", card)
    print(name, {key: value for key, value in card.items() if isinstance(value, float)}, file=sys.stderr, flush=True)


def write_table() -> None:
    """The cards as a table in data/README.md."""
    head = "| dictionary | samples (millions) | epochs | hours | FVU | L0 | CE recovered | dead | dense | absorption |"
    lines = [head + " first-letter F1 |", "|---|" + "--:|" * 10]
    for name, card in mi.sae.shipped_cards().iterrows():
        recovered = "not defined" if pd.isna(card.ce_recovered) else f"{card.ce_recovered:.3f}"
        lines.append(
            f"| `{name}` | {card.samples / 1e6:.1f} | {card.samples / card.unique_tokens:.1f} | {card.hours:.2f} "
            f"| {card.fvu:.3f} | {card.l0:.1f} | {recovered} | {card.dead:.1%} | {card.dense:.2%} "
            f"| {card.absorption:.3f} (chance {card.absorption_chance:.3f}) | {card.first_letter_f1:.2f} |"
        )
    readme = HERE.parent / "README.md"
    before, _, after = readme.read_text().partition(TABLE)
    with atomic_path(readme) as part:
        part.write_text(f"{before}{TABLE}\n" + "\n".join(lines) + "\n" + TABLE_END + after.partition(TABLE_END)[2])


def index(name: str) -> None:
    """Watch every latent on training text; what is scored on it later uses other text."""
    plan, dictionary = PLANS[name], mi.sae.load(HERE / name)
    documents = mi.corpus.split_held_out(mi.corpus.load_corpus()).train
    text = mi.corpus.contexts(
        mi.corpus.sample(documents, plan.n_indexed, SEED + 1), model(random=False).tokenizer, N_CTX
    )
    mi.indexing.build(
        model(random=plan.random_model),
        dictionary,
        text.shuffled(SEED),
        HOOK,
        HERE / name / "index",
        products=torch.bfloat16,
        seed=SEED,
    )


if __name__ == "__main__":
    main()
