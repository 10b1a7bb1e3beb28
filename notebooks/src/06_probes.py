# %% [markdown]
# # Does a dictionary beat a linear probe?
#
# *Dense probes, sparse probes on SAE latents, and everything that should not work, on the same rows.*
#
# Four minutes on two CPU cores, no network. You should know what an SAE latent is (`02_inspect_latents`).
#
# After this notebook you will be able to
# - compare probes fairly: same rows, same split, joined by name, within a kind of text and beyond it;
# - put the controls beside them: bag of words, a model that was never trained, labels to learn by heart;
# - catch a probe that has learned a cue, and find the cue with a dictionary;
# - say why "decodable" is not "used".
#
# Background: published comparisons found that sparse probes on SAE latents seldom beat a dense one. What a dictionary
# does well is to show *what* was learned. We test both.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
DICTIONARY, LAYER = "resid12_4608", 12
CONCEPTS = ["truth", "sentiment", "tense", "number", "gender", "question"]
CONCEPTS += [] if FAST else ["french", "person", "food", "sea", "formality", "code"]
N_PAIRS = 60 if FAST else 120  # contrast pairs of each concept
N_MANY = 150 if FAST else 600  # pairs for the learning curve
SEEDS = range(SEED, SEED + (2 if FAST else 3))  # splits
LAYERS = range(0, 30, 6) if FAST else range(0, 30, 3)
CUE = "In fact, "

# %%
import numpy as np
import pandas as pd
import torch

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("06_probes")

# %% [markdown]
# ## 1. A cue that we planted
#
# In this world activations are sums of sparse features. One feature carries the label, faintly. Another, the *cue*, is
# loud and agrees with the label nine times in ten while we train. Later it agrees with nothing.

# %%
guess = mi.exercises.predict(
    "Trained with the cue and tested without it, which probe suffers most?",
    ["logistic regression", "the difference of means", "both alike"],
)


# %%
def fitted(world, name, dropped, train, validation):
    """A probe, and how the rows look to it: all of them, or without one feature's direction."""
    fit = mi.probes.mean_difference if name == "DiffMean" else mi.probes.logistic

    def seen(sample):
        return sample.x if dropped is None else world.without(sample.x, dropped)

    return fit(seen(train), train.labels, seen(validation), validation.labels), seen


# %%
def planted(seed):
    world = mi.cue_worlds.cue_world(seed=seed)
    train, validation = (world.sample(n, 0.9, seed=10 * seed + n) for n in (600, 200))
    tests = {
        "as in training": world.sample(1000, 0.9, seed=10 * seed + 1),
        "the cue says nothing": world.sample(1000, 0.5, seed=10 * seed + 2),
    }
    ranked = mi.probes.ranked(train.acts, train.labels)
    versions = {"dense": None, "DiffMean": None}
    versions |= {"without the top feature": ranked[0], "without another feature": ranked[10]}
    for name, dropped in versions.items():
        probe, seen = fitted(world, name, dropped, train, validation)
        for on, test in tests.items():
            reached = mi.probes.auroc(probe.scores(seen(test)), test.labels)
            yield {"seed": seed, "probe": name, "on": on, "auroc": reached, "top": ranked[0]}


worlds = pd.DataFrame([row for seed in range(SEED, SEED + 5) for row in planted(seed)])
worlds.pivot_table(index="probe", columns="on", values="auroc", sort=False).round(3)

# %%
wide = worlds.pivot(index="seed", columns=["probe", "on"], values="auroc")
lost = {
    name: (wide[name]["as in training"] - wide[name]["the cue says nothing"]).mean()
    for name in ("dense", "DiffMean")
}
guess.reveal(
    "both alike"
    if abs(lost["dense"] - lost["DiffMean"]) < 0.02
    else "the difference of means"
    if lost["DiffMean"] > lost["dense"]
    else "logistic regression"
)

# %%
fell = wide["dense"]["the cue says nothing"] - wide["dense"]["as in training"]
claims.add(
    "A probe trained with a planted cue does worse where the cue says nothing",
    value=wide["dense"]["the cue says nothing"].mean(),
    control=wide["dense"]["as in training"].mean(),
    interval=mi.metrics.mean_interval(fell),
    direction="less",
    margin=0.02,
    kind="planted",
)

# %% [markdown]
# Now ask the features themselves. Rank them by how far apart the class means are: the cue comes first, the concept
# second. Taking the cue's direction away restores the probe; taking away another feature does not.

# %%
found = worlds.groupby("seed").top.first() == mi.cue_worlds.CUE
claims.add(
    "The feature with the largest class difference is the planted cue",
    value=found.mean(),
    control=1 / 128,
    interval=None if found.nunique() == 1 else mi.metrics.mean_interval(found - 1 / 128),
    margin=0.5,
    kind="planted",
)

# %%
restored = wide["without the top feature"] - wide["without another feature"]
claims.add(
    "Without the cue's direction a probe transfers better than without another feature's",
    value=wide["without the top feature"]["the cue says nothing"].mean(),
    control=wide["without another feature"]["the cue says nothing"].mean(),
    interval=mi.metrics.mean_interval(restored["the cue says nothing"]),
    margin=0.02,
    kind="planted",
)

# %% [markdown]
# ## 2. Real concepts
#
# Each concept comes as contrast pairs of texts, and as another kind of text with the same labels: the *shift*. Probes
# read the residual stream at the last token. All rows of a pair's group (a verb, a city) stay on one side of a split.

# %%
model = mi.models.load_model()
twin = mi.models.random_twin(model, SEED)
dictionary = mi.sae.load(DICTIONARY)
hook_name = mi.hooks.hook_name("resid_post", LAYER)
concepts = mi.concepts.load(CONCEPTS)
data = {
    name: mi.probing.read(
        model, twin, dictionary, hook_name, concept, n_pairs=N_PAIRS, seed=SEED
    )
    for name, concept in concepts.items()
}
examples = {name: concept.pairs[0][:2] for name, concept in concepts.items()}
pd.DataFrame(examples, index=["positive", "negative"]).T.style

# %%
guess = mi.exercises.predict(
    "Beyond the kind of text it was trained on, which does best over all concepts?",
    ["the dense probe", "sixteen SAE latents", "the SAE's reconstruction", "a bag of words"],
)

# %%
scores = pd.concat([mi.probing.evaluate(d, seed=s) for d in data.values() for s in SEEDS])
means = scores.pivot_table(index=["data", "on"], columns="method", values="auroc", sort=False)
means = means[list(mi.probes.METHODS)]
mi.plots.share_grid(means, "AUROC within each kind of text and on its shifts", "AUROC", low=0.5)

# %%
beyond = means[means.index.get_level_values("on") != mi.probing.HELD_OUT]
best = beyond.mean().idxmax()
guess.reveal(
    {
        "16 latents": "sixteen SAE latents",
        "SAE reconstruction": "the SAE's reconstruction",
        "bag of words": "a bag of words",
    }.get(best, "the dense probe")
)

# %% [markdown]
# A score far below one half says as much as one far above it: the probe reads something, and the label goes the other
# way. Look for such rows, read their texts in `concepts.toml`, and say what the probe has learned instead.
#
# Means over concepts hide which one decides. So the comparison is a difference on each data set, with its interval over
# splits, and the claim is about data sets, each of which counts once.


# %%
def over_data(method, shifted):
    """Mean AUROC of a method on each concept, its shifts taken together."""
    on = means.index.get_level_values("on")
    return means[(on != mi.probing.HELD_OUT) == shifted][method].groupby(level="data").mean()


gaps = mi.probing.paired(scores, "dense", "16 latents")
gaps.index = [f"{name}, {on}" for name, on in gaps.index]
mi.plots.dots_with_intervals(
    gaps,
    {
        name: "trained" if name.endswith(mi.probing.HELD_OUT) else "second_seed"
        for name in gaps.index
    },
    "Dense probe minus sixteen latents (pale: on a shift)",
    "difference of AUROC",
)

# %%
ours, theirs = (over_data(method, shifted=True) for method in ("dense", "16 latents"))
claims.add(
    "On shifted text a dense probe beats sixteen SAE latents, over concepts",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.mean_interval(ours - theirs),
)

# %%
ours, theirs = (over_data(method, shifted=True) for method in ("dense", "SAE reconstruction"))
claims.add(
    "On shifted text a dense probe on states beats one on the SAE's reconstruction, over concepts",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.mean_interval(ours - theirs),
)

# %%
ours, theirs = (over_data(method, shifted=True) for method in ("dense", "bag of words"))
claims.add(
    "On shifted text a dense probe beats a bag of words, over concepts",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.mean_interval(ours - theirs),
)

# %%
ours, theirs = (over_data(method, shifted=False) for method in ("dense", "DiffMean"))
claims.add(
    "On text of the same kind logistic regression beats the difference of means, over concepts",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.mean_interval(ours - theirs),
)

# %% [markdown]
# ## 3. What a probe can learn by heart
#
# A *control task* gives each group a label at random. Nothing can be understood, only remembered; rows of a group stand
# on both sides of this split. *Selectivity* is accuracy on the task minus accuracy on the control. A probe without it
# has shown its own capacity, not the model's knowledge.

# %%
guess = mi.exercises.predict(
    "Which learns random labels by heart most easily?",
    ["the dense probe", "sixteen SAE latents", "a bag of words"],
)

# %%
hearts = pd.concat([mi.probing.selectivity(d, seed=s) for d in data.values() for s in SEEDS])
by_method = hearts.groupby("method", sort=False)[["task", "control", "selectivity"]].mean()
by_method.round(2)

# %%
learns = by_method.control[["dense", "16 latents", "bag of words"]].idxmax()
guess.reveal(
    {"dense": "the dense probe", "16 latents": "sixteen SAE latents"}.get(
        learns, "a bag of words"
    )
)

# %%
per_concept = hearts.pivot_table(index="data", columns="method", values="selectivity")
claims.add(
    "Sixteen latents are more selective than a dense probe, over concepts",
    value=per_concept["16 latents"].mean(),
    control=per_concept["dense"].mean(),
    interval=mi.metrics.mean_interval(per_concept["16 latents"] - per_concept["dense"]),
)

# %% [markdown]
# ## 4. Where truth appears
#
# True and false statements about cities, read at every third layer. The probe is trained on cities and tested on
# cities it has not seen, and on capitals, languages, elements and animals. The control has the same architecture and
# was never trained. It may fall below one half: a country that is named in more true than false statements of the
# training cities is named in more false ones of the rest.

# %%
guess = mi.exercises.predict(
    "From which layer on does a probe tell true from false statements about unseen cities (AUROC over 0.8)?",
    ["from the first layers", "about a third of the way", "only near the end"],
)

# %%
truth = concepts["truth"]
places = [mi.hooks.hook_name("resid_post", layer) for layer in LAYERS]
kinds = {mi.probing.HELD_OUT: truth.rows()} | {name: truth.rows(name) for name in truth.shifts}
states = {name: mi.concepts.read(model, rows.texts, places) for name, rows in kinds.items()}
untrained = mi.concepts.read(twin, kinds[mi.probing.HELD_OUT].texts, places)


def at_layer(read, place, seed):
    """AUROC of a probe trained on part of the cities, on the rest of them and on each other kind."""
    rows = kinds[mi.probing.HELD_OUT]
    split = mi.probes.split_groups(rows.groups, seed)
    x, y = read[mi.probing.HELD_OUT][place].numpy(), rows.labels
    probe = mi.probes.logistic(
        x[split.train], y[split.train], x[split.validation], y[split.validation]
    )
    yield mi.probing.HELD_OUT, mi.probes.auroc(probe.scores(x[split.test]), y[split.test])
    for name in [name for name in read if name != mi.probing.HELD_OUT]:
        yield name, mi.probes.auroc(probe.scores(read[name][place].numpy()), kinds[name].labels)


# %%
sweep = pd.DataFrame(
    [
        {"layer": layer, "on": on, "seed": seed, "auroc": value}
        for layer, place in zip(LAYERS, places, strict=True)
        for seed in SEEDS
        for on, value in [
            *at_layer(states, place, seed),
            (
                "untrained model",
                next(at_layer({mi.probing.HELD_OUT: untrained}, place, seed))[1],
            ),
        ]
    ]
)

# %%
bands = {
    on: one.groupby("layer").auroc.agg(value="mean", low="min", high="max")
    for on, one in sweep.groupby("on", sort=False)
}
mi.plots.curves_with_bands(
    bands,
    dict(
        zip(
            bands,
            ["trained", "second_seed", "patched", "control", "corrupted", "chance"],
            strict=True,
        )
    ),
    "A probe for truth, trained on cities: band from the lowest to the highest split",
    "layer",
    "AUROC",
)

# %%
cities = bands[mi.probing.HELD_OUT].value
first = cities.index[(cities > 0.8).to_numpy().argmax()] / 30
guess.reveal(
    "from the first layers"
    if first < 0.2
    else "about a third of the way"
    if first < 0.6
    else "only near the end"
)

# %%
late = sweep[sweep.layer >= LAYER].groupby(["on", "seed"]).auroc.mean().unstack(0)
others = late[list(truth.shifts)]
gap = others.sub(late["untrained model"], axis=0).mean()
claims.add(
    "From the layer of our dictionary on, a probe for truth about cities transfers to other relations",
    value=others.mean().mean(),
    control=late["untrained model"].mean(),
    interval=mi.metrics.mean_interval(gap),
    margin=0.1,
)

# %% [markdown]
# ## 5. Few labels, wrong labels, unequal classes
#
# The case for sparse probes is strongest where labels are scarce: with few features to choose from there is less to
# overfit. Each point is the mean over data sets and splits.

# %%
many = ["tense"] if FAST else ["tense", "sentiment"]
large = {
    name: mi.probing.read(
        model, twin, dictionary, hook_name, concepts[name], n_pairs=N_MANY, seed=SEED
    )
    for name in many
}
compared = {
    name: mi.probes.METHODS[name] for name in ("dense", "DiffMean", "1 latent", "16 latents")
}
colours = {
    "dense": "trained",
    "DiffMean": "patched",
    "1 latent": "control",
    "16 latents": "random_model",
}


# %%
def curve(regimes):
    """Mean AUROC on held-out groups of each method, by regime, with the range over data sets and splits."""
    rows = [
        mi.probing.evaluate(d, seed=seed, regime=regime, methods=compared).assign(at=at)
        for at, regime in regimes.items()
        for d in large.values()
        for seed in SEEDS
    ]
    table = pd.concat(rows)
    table = table[table.on == mi.probing.HELD_OUT]
    spread = table.groupby(["method", "at"], sort=False).auroc.agg(
        value="mean", low="min", high="max"
    )
    return {name: spread.loc[name] for name in compared}


# %%
amounts = [10, 20, 50, 100, 200] + ([] if FAST else [500, 900])
scarce = curve({n: mi.probing.Regime(n_labels=n) for n in amounts})
mi.plots.curves_with_bands(
    scarce, colours, "Scarce labels", "labels", "AUROC on unseen groups"
).update_xaxes(type="log", tickvals=amounts, minor_ticks="")

# %%
noisy = curve({share: mi.probing.Regime(flipped=share) for share in (0.0, 0.1, 0.2, 0.3, 0.4)})
mi.plots.curves_with_bands(
    noisy, colours, "Wrong labels", "share of labels flipped", "AUROC on unseen groups"
)

# %%
unequal = curve({s: mi.probing.Regime(n_labels=80, positive=s) for s in (0.5, 0.25, 0.1, 0.05)})
mi.plots.curves_with_bands(
    unequal,
    colours,
    "Unequal classes, 80 labels",
    "share of positive labels",
    "AUROC on unseen groups",
)

# %%
few = pd.concat(
    [
        mi.probing.evaluate(d, seed=s, regime=mi.probing.Regime(n_labels=20), methods=compared)
        for d in data.values()
        for s in SEEDS
    ]
)
few = few[few.on == mi.probing.HELD_OUT].groupby(["data", "method"]).auroc.mean().unstack()
claims.add(
    "With twenty labels sixteen latents beat a dense probe, over concepts",
    value=few["16 latents"].mean(),
    control=few["dense"].mean(),
    interval=mi.metrics.mean_interval(few["16 latents"] - few["dense"]),
)

# %% [markdown]
# ## 6. A cue in real text, and the dictionary that finds it
#
# We put *In fact,* in front of nine in ten true statements, and of one in ten false ones. A probe at the last token
# need not know why it does well.

# %%
rows = truth.rows()
with_cue = mi.cue_worlds.plant_cue(rows, CUE, 0.9, SEED)
without_meaning = mi.cue_worlds.plant_cue(rows, CUE, 0.5, SEED + 1)


def last_token(texts):
    return mi.concepts.read(model, texts, [hook_name])[hook_name].numpy()


clean, cued, free = (last_token(r.texts) for r in (rows, with_cue, without_meaning))
fits = {"dense": mi.probes.logistic, "DiffMean": mi.probes.mean_difference}


# %%
def tempted(seed):
    """AUROC where the cue says nothing, after training with it and without it."""
    split = mi.probes.split_groups(rows.groups, seed)
    for name, fit in fits.items():
        for trained_on, x in (("with the cue", cued), ("without", clean)):
            parts = [z for p in (split.train, split.validation) for z in (x[p], rows.labels[p])]
            scores = fit(*parts).scores(free[split.test])
            yield {
                "probe": name,
                "trained": trained_on,
                "seed": seed,
                "auroc": mi.probes.auroc(scores, rows.labels[split.test]),
            }


# %%
tempting = pd.DataFrame([row for seed in range(SEED, SEED + 5) for row in tempted(seed)])
tempting.pivot_table(index="probe", columns="trained", values="auroc").round(3)

# %%
by_seed = tempting.pivot_table(index="seed", columns=["probe", "trained"], values="auroc")
gap = by_seed["dense"]["with the cue"] - by_seed["dense"]["without"]
claims.add(
    "On real statements a probe trained with the cue does worse where the cue says nothing",
    value=by_seed["dense"]["with the cue"].mean(),
    control=by_seed["dense"]["without"].mean(),
    interval=mi.metrics.mean_interval(gap),
    direction="less",
)

# %% [markdown]
# Now look at the latents with the largest class differences, as anybody would who wants to know what a label is made
# of. For each: how well does it tell the *cue*, and how well the *truth*?

# %%
index = mi.latents.shipped_index(DICTIONARY, model.tokenizer)
acts = mi.concepts.strongest_acts(model, with_cue.texts, hook_name, dictionary).numpy()
plain_acts = mi.concepts.strongest_acts(model, rows.texts, hook_name, dictionary).numpy()
has_cue = np.array([text.startswith(CUE) for text in with_cue.texts]).astype(int)


def strength(latent):
    """How far a latent's AUROC is from a coin's, for the cue and for the truth."""
    return {
        "latent": latent,
        "strongest on": index.strongest_token(latent),
        "cue": abs(mi.probes.auroc(acts[:, latent], has_cue) - 0.5) + 0.5,
        "truth": abs(mi.probes.auroc(acts[:, latent], rows.labels) - 0.5) + 0.5,
    }


top = [int(latent) for latent in mi.probes.ranked(acts, rows.labels)[:10]]
suspects = pd.DataFrame([strength(latent) for latent in top]).set_index("latent")
suspects.round(2)

# %%
before = [int(latent) for latent in mi.probes.ranked(plain_acts, rows.labels)[:10]]
same = pd.DataFrame([strength(latent) for latent in before]).set_index("latent")
claims.add(
    "The ten latents that differ most between the classes tell the planted cue better than the ten did before it",
    value=suspects.cue.mean(),
    control=same.cue.mean(),
    interval=mi.metrics.difference_interval(suspects.cue, same.cue),
    margin=0.1,
)

# %%
index.card(top[0])

# %% [markdown]
# ## 7. Decodable is not used
#
# A probe's weight is a direction. Add it to the model: does what the probe reads also move what the model says? Each
# dot is a concept, beside it the same for a random direction.

# %%
neutral = mi.corpus.held_out_contexts(model.tokenizer, 4, n_ctx=64).tokens.long()
amount = 0.15 * mi.steering.typical_norm(model, hook_name, neutral)


def moved(name):
    """Effect on the concept's words of its probe's weight, its difference of means, and a random direction."""
    states = torch.from_numpy(data[name].within.views["states"])
    gauge = mi.steering.Gauge(model, concepts[name], concepts[name].prompts[:12])
    ways = {
        "probe": mi.directions.probe_weight(states[0::2], states[1::2]),
        "DiffMean": mi.directions.diff_mean(states[0::2], states[1::2]),
        "random": mi.directions.random_direction(model.cfg.d_model, SEED),
    }
    return {
        way: float(gauge([mi.steering.Addition(hook_name, amount * vector)]).mean())
        for way, vector in ways.items()
    }


used = pd.DataFrame({name: moved(name) for name in CONCEPTS}).T
used["AUROC of the probe"] = means["dense"].xs(mi.probing.HELD_OUT, level="on")
used.round(2)

# %%
claims.add(
    "Along a probe's weight the model's words move more than along a random direction, over concepts",
    value=used["probe"].mean(),
    control=used["random"].mean(),
    interval=mi.metrics.mean_interval(used["probe"] - used["random"]),
    unit="nats",
)

# %%
claims.add(
    "The difference of means moves the model's words more than the probe's weight, over concepts",
    value=used["DiffMean"].mean(),
    control=used["probe"].mean(),
    interval=mi.metrics.mean_interval(used["DiffMean"] - used["probe"]),
    unit="nats",
)

# %% [markdown]
# ## 8. Your turn
#
# **AUROC** (easy). Write it from its meaning: how often does a positive row score above a negative one? Ties count half.


# %%
def area(scores, labels):
    """Share of (positive, negative) pairs in which the positive one scores higher."""
    ...


area = mi.exercises.attempt(area, reference=mi.probes.auroc)
mi.exercises.check(
    area,
    [
        (np.array([0.1, 0.4, 0.4, 0.9]), np.array([0, 0, 1, 1])),
        (acts[:40, top[0]], rows.labels[:40]),
    ],
)

# %%
mi.exercises.hint(
    "Compare every positive score with every negative one: scores[labels == 1][:, None].",
    "np.sign of the difference is 1, 0 or -1; move that to 1, one half and 0, and take the mean.",
)

# %% [markdown]
# **A control task** (medium). Give each group a label at random, half of the groups each, by seed.


# %%
def at_random(groups, seed):
    """One label for all rows of a group."""
    ...


at_random = mi.exercises.attempt(at_random, reference=mi.probes.control_labels)
mi.exercises.check(at_random, [(np.array([0, 0, 1, 1, 2, 2, 3, 3]), 0)])

# %%
mi.exercises.hint(
    "np.unique(..., return_inverse=True) gives the groups and each row's place among them.",
    "Permute `np.arange(n) % 2` with np.random.default_rng(seed), and index it.",
)

# %% [markdown]
# ## What this does not show
#
# - That truth is represented. The statements are short, in five forms; the probe may read how *expected* an object is.
# - That sparse probes are useless. Ours read one dictionary of a small model, at one token.
# - That a bag of words is blind in general: our pairs were written so that words alone tell little.
# - That a high selectivity means understanding. It means the task is easier than learning by heart.
# - That the model uses what a probe reads. Section 7 is a push from outside, with fifteen words as the witness.
#
# We would change our mind about dense probes if sixteen latents did better on shifted text, concept by concept.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - Split by group, test on another kind of text, and join results by name.
# - A bag of words, an untrained model and a control task belong into every probing table.
# - Where a probe does suspiciously well, list the latents that differ: a dictionary is a good witness.
# - Before saying that a model uses something, push it.
#
# **More exercises.** (easy) Set `CUE` to a word of your own. (medium) Probe the mean over tokens instead of the last one:
# which concepts gain? (hard) Take the shipped 18,432-latent dictionary: at which `k` does a sparse probe catch up?
#
# ## Sources
#
# Kantamneni et al. (2025), *Are sparse autoencoders useful? A case study in sparse probing*. Hewitt and Liang (2019),
# *Designing and interpreting probes with control tasks*. Marks and Tegmark (2023), *The geometry of truth*. Geirhos et al.
# (2020), *Shortcut learning in deep neural networks*.
