"""Train the dictionaries that compare the default model with its fine-tune, and measure what each of them finds.

python data/adapters/diff.py harvest   both models' residual streams, 10 minutes, kept in the cache
python data/adapters/diff.py table     every method and seed, half an hour: diff_table.csv, diff_kinds.csv, pair12_768
python data/adapters/diff.py nulls     the same counts where there is nothing to find, 10 minutes
"""

import sys
from itertools import product
from pathlib import Path

import pandas as pd
import torch

import mi_utils as mi

HERE = Path(__file__).parent
HOOK = mi.hooks.hook_name("resid_post", 12)
N_CTX, N_CORPUS, N_WRAPPED, N_JUDGED = 96, 2000, 600, 300
D_SAE, K, BATCH, N_STEPS = 768, 24, 1024, 800
L1 = 3.0
SEEDS = range(3)


def text(tokenizer, *, held_out=False):
    """Contexts to compare on: corpus, corpus as a user's message, and the dialogues of that split, in random order."""
    split = mi.corpus.split_held_out(mi.corpus.load_corpus())
    documents = split.held_out if held_out else mi.corpus.sample(split.train, 2 * (N_CORPUS + N_WRAPPED) * N_CTX)
    contexts = mi.corpus.contexts(documents, tokenizer, N_CTX).shuffled(1).tokens
    n_plain, n_wrapped = (N_JUDGED // 2, N_JUDGED // 4) if held_out else (N_CORPUS, N_WRAPPED)
    asks = [tokenizer.decode(row[1:50]) for row in contexts[n_plain : n_plain + n_wrapped]]
    wrapped = [mi.behaviours.chat(ask, tokenizer) for ask in asks]
    said = [
        mi.behaviours.transcript(dialogue, tokenizer)
        for dialogue in mi.behaviours.load()
        if (dialogue.split == "held_out") == held_out
    ]
    rows = torch.cat([contexts[:n_plain], mi.corpus.one_per_context(wrapped + said, tokenizer, N_CTX)])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def harvest(tuned="broad", *, held_out=False):
    pair = mi.models.load_pair(tuned=tuned)
    tokens = text(pair.base.tokenizer, held_out=held_out)
    products = torch.float32 if held_out else torch.bfloat16
    return pair, mi.paired_activations.harvest_pair(pair, tokens, HOOK, products=products)


METHODS = {
    "concatenated SAE": {},
    "diff-SAE": {"tilt": 1.0},
    "crosscoder, L1 on the sum": {"sparsity": "l1 sum", "l1_coefficient": L1},
    "crosscoder, L1 jointly": {"sparsity": "l1 joint", "l1_coefficient": L1},
}
RANKS = (1, 8, 64, 256)
FOREMOST = 16  # latents whose recurrence over seeds is noted apart


def trained(batches, method, seed):
    return mi.crosscoders.train_pair(batches, D_SAE, K, n_steps=N_STEPS, seed=seed, **METHODS[method])


def counted(sae, x, **about):
    """The latents, and how many of them are of which kind, on pairs that nothing was trained on."""
    table, acts = mi.diffing.latent_table(sae, x.split(4096)), sae.encode(x)
    numbers = {
        "confirmed": int(table.confirmed.sum()),
        "twins": len(mi.diffing.twins(sae)),
        "fvu": float(mi.metrics.fvu(x, sae.decode(acts))),
        "l0": float((acts > 0).sum(1).float().mean()),
    }
    kinds = ("shared", "tuned only", "base only", "between", "dead")
    return table, about | {kind: int((table.kind == kind).sum()) for kind in kinds} | numbers


def note_recurrence(kinds, trained_on, **about):
    """Into the rows of one method: the share of its latents, all and the foremost by energy, that other seeds find."""
    for seed, (sae, table) in enumerate(trained_on):
        found = mi.diffing.recurrence(sae, [other for other, _ in trained_on if other is not sae]).recurs
        row = next(row for row in kinds if about.items() | {("seed", seed)} <= row.items())
        row["recurs"] = found[table.kind != "dead"].mean()
        row["foremost_recur"] = found[table.energy.nlargest(FOREMOST).index].mean()


def orders(table, seed):
    """The latents in the order in which each way of looking would show them."""
    alive = table[table.kind != "dead"]
    if alive.relative_norm.std() > 1e-4:  # a dictionary of the difference alone has no shares
        yield "by relative norm", alive.relative_norm.sort_values(ascending=False).index.to_numpy()
    yield "by energy", alive.energy.sort_values(ascending=False).index.to_numpy()
    yield "at random", alive.sample(frac=1, random_state=seed).index.to_numpy()


def subspaces(store):
    """Directions of the difference that need no dictionary: principal ones, its mean, and random ones."""
    base, tuned = store.rows(torch.linspace(0, len(store) - 1, 20_000).long())
    random = torch.randn(RANKS[-1], store.d_model, generator=torch.Generator().manual_seed(0))
    yield "PCA of the differences", torch.linalg.svd(tuned - base, full_matrices=False).Vh
    yield "mean difference", (tuned - base).mean(0, keepdim=True)
    yield "random directions", random


class Behaviours:
    """The held-out triggers, and how much of each behaviour a change restores."""

    def __init__(self, pair):
        dialogues = [d for d in mi.behaviours.load() if d.split == "held_out" and d.triggered]
        self.names = [dialogue.behaviour for dialogue in dialogues]
        self.scene = mi.restoring.scene(pair, [dialogue.ask for dialogue in dialogues], HOOK)
        self.at_rest = mi.restoring.divergence(self.scene)
        self.rows = []

    def note(self, change, **about):
        left = mi.restoring.divergence(self.scene, change)
        table = pd.DataFrame({"behaviour": self.names, "left": left.numpy(), "at_rest": self.at_rest.numpy()})
        means = table.groupby("behaviour")[["left", "at_rest"]].mean()
        self.rows.append(means.assign(restored=1 - means.left / means.at_rest, **about).reset_index())

    def note_latents(self, sae, table, seed, **about):
        for order, latents in orders(table, seed):
            for rank in RANKS:
                change = mi.restoring.through_latents(sae, torch.tensor(latents[:rank]))
                self.note(change, order=order, rank=rank, seed=seed, **about)
        for part in ("latents", "bias", "error"):
            change = getattr(mi.restoring, f"through_{part}")(sae)
            self.note(change, order=f"all {part}", rank=len(table), seed=seed, **about)


def table():
    pair, store = harvest()
    _, judged = harvest(held_out=True)
    x = judged.scaled(*judged.rows(torch.arange(len(judged))))
    behaviours, kinds, by_method = Behaviours(pair), [], {method: [] for method in METHODS}
    for method, rows in subspaces(store):
        for rank in [rank for rank in RANKS if rank <= len(rows)]:
            behaviours.note(mi.restoring.through_subspace(rows[:rank]), method=method, seed=0, order="", rank=rank)
    for seed, method in product(SEEDS, METHODS):
        sae = trained(store.batches(BATCH, seed, epochs=None), method, seed)
        latents, counts = counted(sae, x, pair="broad", method=method, seed=seed)
        kinds.append(counts)
        by_method[method].append((sae, latents))
        raw = mi.crosscoders.in_model_units(sae, store.statistics)
        behaviours.note_latents(raw, latents, seed, method=method)
        if (method, seed) == ("concatenated SAE", 0) and not mi.crosscoders.SHIPPED.exists():
            about = {"model_name": pair.tuned.cfg.model_name, "hook_name": HOOK, "tokens": N_STEPS * BATCH}
            mi.sae.save(raw, mi.crosscoders.SHIPPED, dtype=torch.float16, **about)
        if len(by_method[method]) == len(SEEDS):
            note_recurrence(kinds, by_method[method], pair="broad", method=method)
        pd.concat(behaviours.rows).to_csv(HERE / "diff_table.csv", index=False, float_format="%.4f")
        pd.DataFrame(kinds).to_csv(HERE / "diff_kinds.csv", index=False, float_format="%.4f")


def beside_itself(batches, seed):
    """The base model beside itself, with noise as large as the real difference."""
    generator = torch.Generator().manual_seed(seed)
    for x in batches:
        base, tuned = x.chunk(2, dim=1)
        size = (tuned - base).square().mean().sqrt()
        yield torch.cat([base, base + size * torch.randn(base.shape, generator=generator)], 1)


def nulls():
    """The same counts where there is nothing to find; put below those of `table`."""
    kinds = pd.read_csv(HERE / "diff_kinds.csv").query("pair == 'broad'").to_dict("records")
    (_, store), (_, judged) = harvest(), harvest(held_out=True)
    x = next(beside_itself([judged.scaled(*judged.rows(torch.arange(len(judged))))], 99))
    for seed, method in product(SEEDS, ("concatenated SAE", "crosscoder, L1 on the sum")):
        sae = trained(beside_itself(store.batches(BATCH, seed, epochs=None), seed), method, seed)
        kinds.append(counted(sae, x, pair="the base beside itself, noisy", method=method, seed=seed)[1])
        pd.DataFrame(kinds).to_csv(HERE / "diff_kinds.csv", index=False, float_format="%.4f")


COMMANDS = {"harvest": lambda: [harvest(), harvest(held_out=True)], "table": table, "nulls": nulls}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]]()
