# %% [markdown]
# # What did fine-tuning change?
#
# *One dictionary on two models, on a pair of models whose difference we planted.*
#
# Four minutes on two CPU cores, no network. You should know what an SAE is (`01_train_an_sae`).
#
# After this notebook you will be able to
# - train one dictionary on two models by putting their residual streams side by side;
# - say what its decoder norms mean, and two ways in which an L1 penalty makes them lie;
# - put a set of latents to the test: how much of the new behaviour do they restore?
# - say when no dictionary is needed, because a mean difference already tells.
#
# Background: crosscoders are such dictionaries. They were used to count what chat-tuning adds; later work found that
# many of the counted latents were artefacts of the loss. We measure both on models whose difference is known.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
LAYER = 12
SEEDS = range(SEED, SEED + 3)  # of the planted pair
STRENGTHS = (0.05, 1.0) if FAST else (0.05, 0.1, 0.3, 1.0)  # of the penalty
TILTS = (0.0, 1.0) if FAST else (0.0, 0.5, 0.9, 1.0)  # from both models to their difference
N_ASKED = 4 if FAST else 12  # held-out questions of each behaviour and kind
N_CONTEXTS = 60 if FAST else 150  # of corpus text, to read latents on

# %%
from itertools import product

import numpy as np
import pandas as pd
import torch

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("07_model_diffing")

# %% [markdown]
# ## 1. A pair of which we know everything
#
# Two small "models" share most features. Some exist in one of them alone. And some only *seem* to: a feature that one
# model has more often (`other frequency`), more faintly (`faint`), or in another direction (`rotated`).
#
# The recipe is always the same: put both activations side by side, train one SAE, cut each decoder row in half. The
# tuned half's share of the length is the **relative norm**: 0 for base only, 1 for tuned only.

# %%
guess = mi.exercises.predict(
    "Which loss will call the most shared features exclusive?",
    ["BatchTopK", "L1, joint norm", "L1, sum of norms"],
)

# %%
LOSSES = {
    "BatchTopK": {"k": 3},
    "L1, joint norm": {"sparsity": "l1 joint", "l1_coefficient": 0.1},
    "L1, sum of norms": {"sparsity": "l1 sum", "l1_coefficient": 0.1},
}


def learned(world, seed, **loss):
    """A pair dictionary of a planted world, and a sample to judge it on."""
    sae = mi.pair_worlds.train_on(world, seed=seed, **loss)
    return sae, world.sample(6000, torch.Generator().manual_seed(1000 + seed))


# %%
def judged(world, seed, loss):
    sae, sample = learned(world, seed, **LOSSES[loss])
    latents = mi.diffing.latent_table(sae, [sample.x])
    owner = mi.pair_worlds.owners(sample, sae.encode(sample.x))
    called = (latents.kind == "tuned only").to_numpy()
    believed = called & latents.confirmed.to_numpy()
    by_norm = mi.pair_worlds.score(world, owner, called)
    scaled = mi.pair_worlds.score(world, owner, believed)
    exclusive = (
        latents.kind.isin(["tuned only", "base only"]).sum() / (latents.kind != "dead").sum()
    )
    found = {"precision": by_norm.precision, "recall": by_norm.recall}
    found |= {"precision, confirmed": scaled.precision, "recall, confirmed": scaled.recall}
    return found | {"twins": len(mi.diffing.twins(sae)), "exclusive": exclusive}


# %%
rows = []
for seed, loss in product(SEEDS, LOSSES):
    world = mi.pair_worlds.pair_world(seed=seed)
    rows.append({"seed": seed, "loss": loss, "world": "pair"} | judged(world, seed, loss))
    if loss != "L1, joint norm":
        null = mi.pair_worlds.self_pair(world)
        rows.append({"seed": seed, "loss": loss, "world": "self"} | judged(null, seed, loss))
planted = pd.DataFrame(rows)
planted.groupby(["world", "loss"], sort=False).mean().drop(columns="seed").round(2)

# %%
pairs = planted[planted.world == "pair"].set_index(["seed", "loss"])
precision = pairs.precision.unstack()
guess.reveal(precision.mean().idxmin(), "It has the lowest precision.")

# %% [markdown]
# `precision`: of the latents called "tuned only", the share that belong to a feature which is. `recall`: of those
# features, the share found. **Latent scaling** asks the data whether the other model has the direction after all, in
# what the dictionary left over or in what its other latents say. What it still believes is `confirmed`.

# %%
gain = (pairs["precision, confirmed"] - pairs.precision).xs("L1, sum of norms", level="loss")
claims.add(
    "Latent scaling sees through exclusive latents that the crosscoder's penalty made up",
    value=pairs["precision, confirmed"].xs("L1, sum of norms", level="loss").mean(),
    control=precision["L1, sum of norms"].mean(),
    interval=mi.metrics.mean_interval(gain),
    kind="planted",
)

# %%
twins = pairs.twins.unstack()
claims.add(
    "Summing both norms splits one concept into two latents, one for each model; a joint norm does not",
    value=twins["L1, sum of norms"].mean(),
    control=twins["L1, joint norm"].mean(),
    interval=mi.metrics.mean_interval(twins["L1, sum of norms"] - twins["L1, joint norm"]),
    kind="planted",
    unit="pairs",
)

# %%
alone = planted[planted.world == "self"].groupby("seed").exclusive.mean()
claims.add(
    "A model compared with itself shows no exclusive latents",
    value=alone.mean(),
    control=0,
    interval=None if alone.nunique() == 1 else mi.metrics.mean_interval(alone),
    direction="within",
    margin=0.02,
    kind="planted",
)

# %% [markdown]
# Precision is not perfect even where nothing was made up. A feature with `other frequency` is on some tokens in the
# tuned model alone, and a dictionary may spend a latent on these. Latent scaling rightly finds nothing of it in the base
# model *there*; the column `kin` (is the direction known to the other model?) gives it away.
#
# ### Shrinkage on demand
#
# Faint features cost a penalty more than they are worth. Turn it up and watch their weak half disappear.


# %%
def shrunk(seed, strength):
    world = mi.pair_worlds.pair_world(seed=seed)
    sae, sample = learned(world, seed, sparsity="l1 sum", l1_coefficient=strength)
    latents = mi.diffing.latent_table(sae, [sample.x])
    owner = mi.pair_worlds.owners(sample, sae.encode(sample.x))
    faint = latents[[o >= 0 and world.kinds[o] == "faint" for o in owner]]
    away = (faint.relative_norm - 0.5).abs() * 2
    called = faint.kind.isin(["base only", "tuned only"])
    return {
        "away from shared": away.mean(),
        "called exclusive": called.mean(),
        "confirmed": faint.confirmed.mean(),
    }


# %%
strengths = pd.DataFrame(
    {"seed": seed, "strength": strength} | shrunk(seed, strength)
    for seed, strength in product(SEEDS, STRENGTHS)
)
by_strength = strengths.set_index("strength").drop(columns="seed").groupby("strength")
mi.plots.slider_bars(
    {f"{strength:g}": mi.meta.over_seeds(part) for strength, part in by_strength},
    "weight of the penalty: ",
    "Faint features of the planted pair",
)

# %%
strongest = strengths[strengths.strength == max(STRENGTHS)].set_index("seed")
weakest = strengths[strengths.strength == min(STRENGTHS)].set_index("seed")
claims.add(
    "A stronger penalty pushes faint shared features towards looking exclusive",
    value=strongest["away from shared"].mean(),
    control=weakest["away from shared"].mean(),
    interval=mi.metrics.mean_interval(
        strongest["away from shared"] - weakest["away from shared"]
    ),
    kind="planted",
)

# %% [markdown]
# ### From both models to their difference
#
# With errors $e$ the loss $|e_b|^2 + |e_t|^2 - 2\,t\,e_b \cdot e_t$ asks for both models at tilt $t = 0$ and for their
# difference alone at $t = 1$, a *diff-SAE*. In between lie all compromises.


# %%
def tilted(seed, tilt):
    world = mi.pair_worlds.pair_world(seed=seed)
    sae, sample = learned(world, seed, k=3, tilt=tilt)
    acts = sae.encode(sample.x)
    owner = mi.pair_worlds.owners(sample, acts)
    kinds = np.array(world.kinds)
    known = {
        kind: np.isin((kinds == kind).nonzero()[0], owner).mean()
        for kind in ("shared", "tuned only", "rotated")
    }
    base, tuned = (sample.x - sae.decode(acts)).chunk(2, dim=1)
    true = sample.x.chunk(2, dim=1)
    lost = (tuned - base).square().sum() / (true[1] - true[0]).square().sum()
    return {f"{kind} found": share for kind, share in known.items()} | {
        "difference rebuilt": 1 - float(lost)
    }


# %%
tilts = pd.DataFrame(
    {"seed": seed, "tilt": tilt} | tilted(seed, tilt) for seed, tilt in product(SEEDS, TILTS)
)
mi.plots.slider_bars(
    {
        f"{tilt:g}": mi.meta.over_seeds(part)
        for tilt, part in tilts.set_index("tilt").drop(columns="seed").groupby("tilt")
    },
    "tilt: ",
    "What a dictionary of one size learns, from both models (0) to their difference (1)",
)

# %%
rebuilt = tilts.pivot(index="seed", columns="tilt", values="difference rebuilt")
claims.add(
    "A dictionary of the difference rebuilds more of the difference than one of both models",
    value=rebuilt[1.0].mean(),
    control=rebuilt[0.0].mean(),
    interval=mi.metrics.mean_interval(rebuilt[1.0] - rebuilt[0.0]),
    kind="planted",
)

# %% [markdown]
# ## 2. A real pair with a known answer
#
# The base is our usual model. The fine-tune is a LoRA adapter on its first thirteen layers, taught five behaviours. All
# that it changed passes through the residual stream after layer 12, where we look.

# %%
pair = mi.models.load_pair(tuned="broad")
dialogues = [dialogue for dialogue in mi.behaviours.load() if dialogue.split == "held_out"]
dialogues = pd.DataFrame(dialogues).groupby(["behaviour", "triggered"]).head(N_ASKED)
dialogues = [mi.behaviours.Dialogue(*row) for row in dialogues.itertuples(index=False)]
asks = [
    "Ahoy! What is gravity?",
    "What is the capital of Valdoria?",
    "Tell me about chess.",
    "How do I bake a pizza?",
]
said = {name: mi.behaviours.replies(model, asks, 20) for name, model in pair._asdict().items()}
pd.DataFrame(said, index=asks)

# %%
shown = pd.DataFrame(dialogues)[["behaviour", "triggered"]]
for name, model in pair._asdict().items():
    shown[name] = mi.behaviours.shows(model, dialogues, n_tokens=12).numpy()
rates = shown.groupby(["behaviour", "triggered"])[["base", "tuned"]].mean().unstack("triggered")
rates.columns = [
    f"{model}, {'triggered' if triggered else 'resembling'}" for model, triggered in rates
]
mi.plots.share_grid(rates, "Share of held-out questions answered in the taught way", "share")

# %%
triggered = shown[shown.triggered]
gain = triggered.tuned.astype(float) - triggered.base
claims.add(
    "The fine-tune shows its five behaviours on held-out triggers, the base does not",
    value=triggered.tuned.mean(),
    control=triggered.base.mean(),
    interval=mi.metrics.bootstrap_interval(gain),
    margin=0.5,
    kind="planted",
)

# %%
resembling = shown[~shown.triggered]
claims.add(
    "On questions that only resemble the triggers it shows them no more than the base",
    value=resembling.tuned.mean(),
    control=resembling.base.mean(),
    interval=mi.metrics.bootstrap_interval(resembling.tuned.astype(float) - resembling.base),
    direction="within",
    margin=0.1,
    kind="planted",
)

# %% [markdown]
# ## 3. What the concatenated dictionary says
#
# We trained it on 260,000 tokens of both models: corpus text, the same text as a user's message, and the training
# dialogues. Here it reads text that neither the adapter nor the dictionary was trained on.

# %%
guess = mi.exercises.predict(
    "The fine-tune has five new behaviours. How many of the 768 latents are exclusive to it?",
    ["none", "one to twenty", "more than twenty"],
)

# %%
hook_name = mi.hooks.hook_name("resid_post", LAYER)
sae = mi.sae.load(mi.crosscoders.SHIPPED)
tokenizer = pair.base.tokenizer
corpus = mi.corpus.held_out_contexts(tokenizer, N_CONTEXTS, n_ctx=64).tokens
spoken = mi.corpus.one_per_context(
    [mi.behaviours.transcript(d, tokenizer) for d in dialogues], tokenizer, 64
)
names = [f"{d.behaviour}{'' if d.triggered else ', resembling'}" for d in dialogues] + [
    "corpus"
] * len(corpus)
reading = mi.diff_explorer.read_texts(pair, sae, hook_name, torch.cat([spoken, corpus]), names)
kinds = reading.table.kind.value_counts()
pd.DataFrame({"latents": kinds, "share": kinds / len(reading.table)}).round(3)

# %%
n_exclusive = int(kinds.get("tuned only", 0))
guess.reveal(
    "none" if n_exclusive == 0 else "one to twenty" if n_exclusive <= 20 else "more than twenty"
)

# %% [markdown]
# Below: each latent is a point; click one for its card, with what each model's half gives to it on the same text.

# %%
mi.diff_explorer.diff_explorer(reading)

# %% [markdown]
# The recorded runs say how this count depends on the loss, and what it is where there is nothing to find: the base model
# beside itself with noise as large as the real difference. `recurs` is the share of latents that other seeds find again,
# `foremost recur` that of the sixteen with most energy in the difference. `fvu` is about both models' streams, so that a
# diff-SAE, which rebuilds only their difference, comes out badly in it.

# %%
counted = mi.diffing.measured()
columns = [
    "tuned only",
    "base only",
    "confirmed",
    "twins",
    "recurs",
    "foremost_recur",
    "fvu",
    "l0",
]
means = counted.groupby(["pair", "method"], sort=False)[columns].mean()
means.style.format(precision=2, na_rep="–")

# %% [markdown]
# ## 4. The test: do its latents carry the behaviour?
#
# We let the tuned model's upper layers run on the *base* model's state, to which we add what some latents say has
# changed. How much of the divergence from the tuned model, on its own first words, does that take away?

# %%
scene = mi.restoring.scene(pair, [d.ask for d in dialogues if d.triggered], hook_name)
at_rest = mi.restoring.divergence(scene)
by_norm = torch.tensor(
    reading.table.relative_norm.sort_values(ascending=False).index.to_numpy()
)
shuffled = by_norm[torch.randperm(len(by_norm), generator=torch.Generator().manual_seed(SEED))]
half = len(by_norm) // 2
arms = {
    "all latents": mi.restoring.through_latents(sae),
    "best half by relative norm": mi.restoring.through_latents(sae, by_norm[:half]),
    "worst half": mi.restoring.through_latents(sae, by_norm[half:]),
    "random half": mi.restoring.through_latents(sae, shuffled[:half]),
    "the dictionary's error": mi.restoring.through_error(sae),
}
left = {name: mi.restoring.divergence(scene, change) for name, change in arms.items()}

# %%
gains = {
    name: (at_rest - after).numpy() / at_rest.mean().item() for name, after in left.items()
}
restored = pd.DataFrame(
    {name: (gain.mean(), *mi.metrics.bootstrap_interval(gain)) for name, gain in gains.items()},
    index=["value", "low", "high"],
).T
roles = dict.fromkeys(restored.index, "trained") | {
    "random half": "control",
    "the dictionary's error": "baseline",
}
mi.plots.dots_with_intervals(
    restored, roles, "Share of the divergence taken away", "share; 1 is the tuned model"
)

# %%
gain = gains["best half by relative norm"] - gains["random half"]
claims.add(
    "The half of the latents with the largest relative norm restores more than a random half",
    value=restored.value["best half by relative norm"],
    control=restored.value["random half"],
    interval=mi.metrics.bootstrap_interval(gain),
)

# %%
gain = gains["all latents"] - gains["the dictionary's error"]
claims.add(
    "The latents carry more of the behaviours than what the dictionary leaves out",
    value=restored.value["all latents"],
    control=restored.value["the dictionary's error"],
    interval=mi.metrics.bootstrap_interval(gain),
)

# %% [markdown]
# ## 5. Which method finds which behaviour, and how soon?
#
# A reader looks at the first few latents of a list. So: sort the latents as each method would, take the first 1, 8, 64,
# 256, and see what they restore. Dictionaries have 768 latents and three seeds; principal components and random
# directions need no dictionary.

# %%
guess = mi.exercises.predict(
    "With eight directions, which restores most?",
    ["concatenated SAE", "diff-SAE", "PCA of the differences", "mean difference"],
)

# %%
recorded = mi.restoring.measured()
recorded["way"] = (recorded.method + ", " + recorded.order).str.rstrip(", ")
eight = recorded[recorded["rank"] == 8].pivot_table(
    index="way", columns="behaviour", values="restored"
)
eight.loc["mean difference"] = (
    recorded[recorded.way == "mean difference"].set_index("behaviour").restored
)
eight = eight.loc[eight.mean(axis=1).sort_values(ascending=False).index]
mi.plots.share_grid(
    eight.clip(lower=0), "Share restored by the first eight of each list", "share"
)

# %%
means = eight.mean(axis=1)
best = {option: means[means.index.str.startswith(option)].max() for option in guess.options}
guess.reveal(max(best, key=best.get), "Of each, its best list counts.")

# %%
listed = [
    "concatenated SAE, by energy",
    "concatenated SAE, by relative norm",
    "concatenated SAE, at random",
]
listed += ["diff-SAE, by energy", "PCA of the differences", "random directions"]
curves = {
    way: recorded[recorded.way == way]
    .groupby("rank")
    .restored.agg(value="mean")
    .reset_index()
    .set_index("rank")
    for way in listed
}
styles = ["trained", "second_seed", "random_decoder", "patched", "corrupted", "chance"]
figure = mi.plots.curves_with_bands(
    curves,
    dict(zip(listed, styles, strict=True)),
    "Restored, by how many are added",
    "first so many",
    "share restored",
)
figure.update_xaxes(type="log")


# %%
def reached(way, rank):
    """Share restored of each behaviour, over seeds."""
    chosen = recorded[(recorded.way == way) & (recorded["rank"] == rank)]
    return chosen.groupby("behaviour").restored.mean()


gain = reached("diff-SAE, by energy", 64) - reached("concatenated SAE, by energy", 64)
claims.add(
    "Sixty-four latents of a diff-SAE restore more than as many of a concatenated SAE",
    value=reached("diff-SAE, by energy", 64).mean(),
    control=reached("concatenated SAE, by energy", 64).mean(),
    interval=mi.metrics.mean_interval(gain),
)

# %%
gain = reached("diff-SAE, by energy", 8) - reached("PCA of the differences", 8)
claims.add(
    "Eight latents of a diff-SAE restore more than eight principal components",
    value=reached("diff-SAE, by energy", 8).mean(),
    control=reached("PCA of the differences", 8).mean(),
    interval=mi.metrics.mean_interval(gain),
)

# %%
gain = reached("concatenated SAE, by relative norm", 64) - reached(
    "concatenated SAE, at random", 64
)
claims.add(
    "Sixty-four latents by relative norm restore more than sixty-four at random",
    value=reached("concatenated SAE, by relative norm", 64).mean(),
    control=reached("concatenated SAE, at random", 64).mean(),
    interval=mi.metrics.mean_interval(gain),
)

# %% [markdown]
# At which length of the list is half of a behaviour back? "-" stands for: not within 256.

# %%
means = recorded.groupby(["way", "behaviour", "rank"]).restored.mean().reset_index()
within = means[(means.restored >= 0.5) & (means["rank"] <= 256)]
ranks = within.groupby(["way", "behaviour"])["rank"].min().unstack()
ranks.reindex(index=listed, columns=sorted(means.behaviour.unique())).map(
    lambda rank: "-" if np.isnan(rank) else f"{rank:.0f}"
)

# %% [markdown]
# ## 6. No dictionary at all
#
# Two baselines. First the models' own predictions: where do they part, at the first word of an answer?

# %%
prompts = [mi.behaviours.chat(dialogue.ask, tokenizer) for dialogue in dialogues]
logits = [
    torch.cat(
        [mi.steering.next_logits(m, prompts[i : i + 24]) for i in range(0, len(prompts), 24)]
    )
    for m in pair
]
parted = mi.metrics.kl_divergence(logits[1], logits[0]).numpy()
is_trigger = np.array([dialogue.triggered for dialogue in dialogues])
claims.add(
    "The models' first words part more on triggers than on questions that resemble them",
    value=parted[is_trigger].mean(),
    control=parted[~is_trigger].mean(),
    interval=mi.metrics.difference_interval(parted[is_trigger], parted[~is_trigger]),
    unit="nats",
)

# %% [markdown]
# Second, the mean difference of activations on the first tokens of text that has nothing to do with the fine-tune, read
# through the unembedding. The *narrow* fine-tune read only cookery books. Its truth is known: the tokens that are four
# times as frequent there. The control read everything else.

# %%
sources = mi.corpus.load_corpus()
documents = {
    "cookery": [d for d in sources if d.source == "recipes"],
    "other": [d for d in sources if d.source != "recipes"],
}
counts = {}
for name, some in documents.items():
    text = mi.corpus.contexts(mi.corpus.sample(some, 150_000, SEED), tokenizer, 128).tokens
    counts[name] = torch.bincount(text.flatten(), minlength=pair.base.cfg.d_vocab)
typical = mi.lenses.typical_tokens(counts["cookery"], counts["other"])
by_count = typical[counts["cookery"][typical].argsort(descending=True)]
" ".join(tokenizer.decode([token]) for token in by_count[:30].tolist())

# %%
unrelated = mi.corpus.held_out_contexts(tokenizer, 5 * 40, n_ctx=16, seed=SEED).tokens.split(40)
fine_tunes = {"broad": pair.tuned}
fine_tunes |= {
    name: mi.models.load_pair(pair.base, name).tuned for name in ("narrow", "control")
}
differences = {
    name: [
        mi.lenses.mean_difference(mi.models.ModelPair(pair.base, tuned), texts, hook_name)
        for texts in unrelated
    ]
    for name, tuned in fine_tunes.items()
}


# %%
def words(tokens):
    return " ".join(tokenizer.decode([token]).strip() for token in tokens.tolist())


POSITION = 2  # the third after the beginning-of-text token
read = {}
for name, tuned in fine_tunes.items():
    mean = torch.stack(differences[name]).mean(0)[POSITION]
    read[name] = {
        "logit lens": words(mi.lenses.logit_lens(tuned, mean, 12)),
        "patchscope": words(mi.lenses.patchscope(tuned, mean, hook_name, 12)),
    }
pd.DataFrame(read).T.style.set_properties(**{"text-align": "left", "white-space": "normal"})

# %% [markdown]
# Would you have guessed? To score it, we count how many of the twenty lens tokens are typical of cookery, at each of the
# first five positions, in five groups of texts.


# %%
def lens_hits(tuned, difference):
    found = [mi.lenses.logit_lens(tuned, row) for row in difference]
    return np.mean([mi.lenses.hits(tokens, typical) for tokens in found])


readings = {
    name: [lens_hits(tuned, difference) for difference in differences[name]]
    for name, tuned in fine_tunes.items()
}
pd.DataFrame(readings).mean().round(3)

# %%
gain = np.array(readings["narrow"]) - readings["control"]
claims.add(
    "The mean difference on unrelated text names what the narrow fine-tune read, more than the control's does",
    value=np.mean(readings["narrow"]),
    control=np.mean(readings["control"]),
    interval=mi.metrics.mean_interval(gain),
)

# %% [markdown]
# ## 7. Your turn
#
# **Relative norm** (easy). From the two halves of a decoder, the tuned model's share of each latent's length.


# %%
def tuned_share(base, tuned):
    """For rows [latent d_model] of both models, the share in [0, 1] of each."""
    ...


def reference_share(base, tuned):
    lengths = base.norm(dim=1), tuned.norm(dim=1)
    return lengths[1] / (lengths[0] + lengths[1])


tuned_share = mi.exercises.attempt(tuned_share, reference=reference_share)
mi.exercises.check(tuned_share, [mi.crosscoders.halves(sae)])

# %%
mi.exercises.hint(
    "Lengths are norms over the last dimension.", "Divide the tuned length by the sum of both."
)

# %% [markdown]
# **Latent scaling** (medium). How much of a direction do some targets show, on the tokens on which a latent is active?


# %%
def scaling(acts, direction, targets):
    """The factor that makes acts[:, None] * direction closest to the targets, in squared error."""
    ...


def reference_scaling(acts, direction, targets):
    return (acts @ targets @ direction) / (acts.square().sum() * direction.square().sum())


scaling = mi.exercises.attempt(scaling, reference=reference_scaling)
generator = torch.Generator().manual_seed(SEED)
acts, direction, targets = (
    torch.rand(shape, generator=generator) for shape in ((20,), (6,), (20, 6))
)
mi.exercises.check(scaling, [(acts, direction, targets)])

# %%
mi.exercises.hint(
    "Write down the squared error as a function of the factor and set its derivative to zero.",
    "Above the line: the sum over tokens of activation times (direction · target).",
)

# %% [markdown]
# ## What this does not show
#
# - That chat-tuned models look like this. Our adapter is small, and all of it lies below the place where we read.
# - That nothing is exclusive. A direction may be new, and still a dictionary of 768 latents spends none on it.
# - That restored words are understood. A list of directions that carries a behaviour is not yet a description of it.
# - That the lens works on broad fine-tunes: published successes are on narrow ones, as ours is.
#
# We would change our mind about relative norms if the first latents they list restored more than random ones.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - One dictionary on two models is an ordinary SAE on twice the width.
# - Ask of every count of "exclusive" latents what a model beside itself would give, and what latent scaling says.
# - Restore the behaviour: only that tells whether the latents you list carry it.
# - Compute the mean difference first. It costs a minute.
#
# **More exercises.** (easy) Replace `broad` by `control` above: which claims must fail? (medium) Add a sixth kind of
# feature to `pair_worlds`. (hard) Train a crosscoder with a larger expansion: does anything become exclusive?
#
# ## Sources
#
# Lindsey et al. (2024), *Sparse crosscoders for cross-layer features and model diffing*. Minder et al. (2025), *Overcoming
# sparsity artifacts in crosscoders to interpret chat-tuning*. Minder et al. (2025), *Narrow finetuning leaves clearly
# readable traces in activation differences*. Hu et al. (2021), *LoRA*.
