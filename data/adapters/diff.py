"""Train the dictionaries that compare the default model with its fine-tune, and measure what each of them finds.

    python data/adapters/diff.py harvest       both models' residual streams, 5 minutes, kept in the cache
    python data/adapters/diff.py table         every method and seed, written to diff_table.csv and diff_latents.csv
    python data/adapters/diff.py ship          the concatenated SAE that notebook 07 reads

Interrupted, the same command goes on with the next dictionary.
"""

import sys
import time
from pathlib import Path

import torch

import mi_utils as mi

HERE = Path(__file__).parent
HOOK = mi.hooks.hook_name("resid_post", 12)
N_CTX, N_CORPUS, N_WRAPPED, N_JUDGED = 96, 2000, 600, 300
D_SAE, K, BATCH, N_STEPS = 768, 24, 1024, 1500
SEEDS = range(3)


def padded(texts, tokenizer):
    """One text a context, filled up with separators, which every harvest leaves out."""
    rows = torch.full((len(texts), N_CTX), tokenizer.bos_token_id)
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)[: N_CTX - 1]
        row[1 : 1 + len(ids)] = torch.tensor(ids)
    return rows


def text(tokenizer, *, held_out=False):
    """Contexts to compare on: corpus, corpus as a user's message, and the dialogues of that split, in random order."""
    split = mi.corpus.split_held_out(mi.corpus.load_corpus())
    documents = split.held_out if held_out else mi.corpus.sample(split.train, 2 * (N_CORPUS + N_WRAPPED) * N_CTX)
    contexts = mi.corpus.contexts(documents, tokenizer, N_CTX).shuffled(1).tokens
    n_plain, n_wrapped = (N_JUDGED // 2, N_JUDGED // 4) if held_out else (N_CORPUS, N_WRAPPED)
    asks = [tokenizer.decode(row[1:50]) for row in contexts[n_plain : n_plain + n_wrapped]]
    wrapped = [mi.behaviours.chat(ask, tokenizer) for ask in asks]
    said = [
        mi.behaviours.chat(dialogue.ask, tokenizer) + dialogue.reply + tokenizer.eos_token
        for dialogue in mi.behaviours.load()
        if (dialogue.split == "held_out") == held_out
    ]
    rows = torch.cat([contexts[:n_plain], padded(wrapped + said, tokenizer)])
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def harvest(tuned="broad", *, held_out=False):
    pair = mi.models.load_pair(tuned=tuned)
    tokens = text(pair.base.tokenizer, held_out=held_out)
    products = torch.float32 if held_out else torch.bfloat16
    return pair, mi.paired_activations.harvest_pair(pair, tokens, HOOK, products=products)


METHODS = {
    "concatenated SAE": {},
    "tilt 0.9": {"tilt": 0.9},
    "diff-SAE": {"tilt": 1.0},
    "crosscoder, L1 on the sum": {"sparsity": "l1 sum", "l1_coefficient": L1},
    "crosscoder, L1 jointly": {"sparsity": "l1 joint", "l1_coefficient": L1},
}
RANKS = (1, 4, 16, 64, 256)


def trained(batches, method, seed):
    """The dictionary of a method, from the cache if it was trained before."""
    return mi.crosscoders.train_pair(batches, D_SAE, K, n_steps=N_STEPS, seed=seed, **METHODS[method])


def nulls(store, seed):
    """Batches of the base model beside itself: exactly, and with noise as large as the real difference."""
    generator = torch.Generator().manual_seed(seed)
    for x in store.batches(BATCH, seed, epochs=None):
        base, tuned = x.chunk(2, dim=1)
        size = (tuned - base).square().mean().sqrt()
        yield base, base + size * torch.randn(base.shape, generator=generator)


def counts(sae, rows):
    """How many latents are of which kind, and how many of the exclusive ones latent scaling confirms."""
    table = mi.diffing.latent_table(sae, rows)
    return table, table.kind.value_counts().to_dict() | {"confirmed": int(table.confirmed.sum())}


def orders(table, seed):
    """The latents in the order in which each way of looking would show them."""
    alive = table[table.kind != "dead"]
    yield "by relative norm", alive.relative_norm.sort_values(ascending=False).index.to_numpy()
    yield "by energy", alive.energy.sort_values(ascending=False).index.to_numpy()
    yield "at random", alive.sample(frac=1, random_state=seed).index.to_numpy()


def restored(scene, names, at_rest, change, **about):
    """One row per behaviour: what is left of the divergence, and how much of it was restored."""
    left = mi.restoring.divergence(scene, change)
    table = pd.DataFrame({"behaviour": names, "left": left.numpy(), "at_rest": at_rest.numpy()})
    means = table.groupby("behaviour")[["left", "at_rest"]].mean()
    return means.assign(restored=1 - means.left / means.at_rest, **about).reset_index()


def table():
    pair, store = harvest()
    _, judged = harvest(held_out=True)
    x = judged.scaled(*judged.rows(torch.arange(len(judged))))
    dialogues = [d for d in mi.behaviours.load() if d.split == "held_out" and d.triggered]
    names = [dialogue.behaviour for dialogue in dialogues]
    scene = mi.restoring.scene(pair, [dialogue.ask for dialogue in dialogues], HOOK)
    at_rest = mi.restoring.divergence(scene)
    found, kinds = [], []
    for method, seed in product(METHODS, SEEDS):
        start = time.time()
        sae = trained(store.batches(BATCH, seed, epochs=None), method, seed)
        latents, kind = counts(sae, x.split(4096))
        acts = sae.encode(x)
        kind |= {"fvu": float(mi.metrics.fvu(x, sae.decode(acts))), "l0": float((acts > 0).sum(1).float().mean())}
        kinds.append({"pair": "broad", "method": method, "seed": seed, "twins": len(mi.diffing.twins(sae))} | kind)
        raw = mi.crosscoders.in_model_units(sae, store.statistics)
        about = {"method": method, "seed": seed}
        for order, latent in orders(latents, seed):
            for rank in RANKS:
                change = mi.restoring.through_latents(raw, torch.tensor(latent[:rank]))
                found.append(restored(scene, names, at_rest, change, order=order, rank=rank, **about))
        for order, change in {
            "all latents": mi.restoring.through_latents(raw),
            "error": mi.restoring.through_error(raw),
        }.items():
            found.append(restored(scene, names, at_rest, change, order=order, rank=len(latents), **about))
        print(method, seed, kind, round(time.time() - start), flush=True)
        pd.concat(found).to_csv(HERE / "diff_table.csv", index=False, float_format="%.4f")
        pd.DataFrame(kinds).to_csv(HERE / "diff_kinds.csv", index=False, float_format="%.4f")


COMMANDS = {"harvest": lambda: [harvest(), harvest(held_out=True)], "table": table}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]]()
