# %% [markdown]
# # Are latents atoms?
#
# *Train a sparse autoencoder on the directions of another, and on directions that mean nothing beside it.*
#
# Four minutes on two CPU cores, no network. You should have read a few latents (`02_inspect_latents`).
#
# After this notebook you will be able to
# - train a meta-SAE and say what its explained variance would be if there were nothing to find;
# - tell structure among latents from the floor that any directions give;
# - take a latent apart, and see how convincing it looks when the parts are noise;
# - edit a latent through its parts, with the controls that such an edit needs.
#
# Background: [Bussmann et al. (2024)](https://www.lesswrong.com/posts/TMAmHh4DdMr4nCSr5) introduced meta-SAEs. A reader
# asked there for a null model; this notebook is that null model.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
NAME = "resid12_4608" if FAST else "resid12_18432"  # the dictionary we take apart
SMALL = "resid12_1152"  # a smaller one on the same activations
RATIO, K = 21, 4  # rows to meta-latents, and meta-latents a row, as in the original post
N_WORLDS = 3  # seeds of the planted worlds
N_STEPS = (
    (250, 100) if FAST else (600, 200)
)  # of a dictionary on a planted world, of its meta-SAE
N_HELD_OUT = 6_000 if FAST else 20_000  # tokens on which we watch latents fire
N_EDITS = 8 if FAST else 40  # pairs of countries
N_SEARCHED, N_SUBSETS = (2, 16) if FAST else (8, 64)  # pairs for the search, subsets a pair

# %%
from functools import cache
from itertools import permutations

import numpy as np
import pandas as pd
import torch

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("03_meta_saes")

# %% [markdown]
# ## 1. A world of sums, and a world of atoms
#
# A meta-SAE is an SAE whose data are the *decoder rows* of another SAE, one per latent. If the row for Tokyo is the sum
# of directions for cities, for Japan and for Tokyo alone, a meta-SAE should find those parts.
#
# We plant that. In the world of sums each feature is two of 24 attributes plus a part of its own. In the world of atoms
# all features are drawn independently. The truth is known in both.

# %%
sums = mi.worlds.composed(seed=SEED)
atoms = mi.worlds.superposition(256, 64, density=3 / 256, seed=SEED)
found = mi.meta.train_meta(sums.world.directions, 32, 3, seed=SEED)
own_attributes = mi.worlds.recovery(sums.attributes, found.W_dec)
mi.plots.recovery_matrix(
    own_attributes.cosines, "Planted attributes against the meta-SAE's latents"
)

# %%
by_chance = mi.worlds.recovery(sums.attributes, mi.worlds.random_dictionary(32, 64, SEED))
difference = (own_attributes.best - by_chance.best).numpy()
claims.add(
    "A meta-SAE's latents lie along the planted attributes, random directions do not",
    value=own_attributes.best.mean(),
    control=by_chance.best.mean(),
    interval=mi.metrics.bootstrap_interval(difference),
    margin=0.2,
    kind="planted",
    unit="cosine",
)

# %% [markdown]
# So far this is what papers show. Now the question they leave out.

# %%
guess = mi.exercises.predict(
    "A quarter as many meta-latents as rows, four to a row: how much of the variance of directions drawn at random "
    "does a meta-SAE explain, on the rows it was trained on?",
    ["nothing", "a tenth", "a quarter", "over four tenths"],
)

# %%
noise = mi.meta.random_rows(mi.sae.load(SMALL).W_dec, SEED)
floor = mi.meta.score(noise, len(noise) // 4, 4, seed=SEED)
options = {"nothing": 0.0, "a tenth": 0.1, "a quarter": 0.25, "over four tenths": 0.45}
guess.reveal(min(options, key=lambda name: abs(options[name] - floor.own)))

# %%
formula = mi.meta.predicted_floor(len(noise), len(noise) // 4, floor.held_out)
pd.Series(
    {
        "on its training rows, as usually reported": floor.own,
        "a quarter stored outright, the rest by chance": formula,
        "on rows it has not seen": floor.held_out,
    },
    name="explained variance of random directions",
).to_frame().round(3)

# %% [markdown]
# There are two ways to explain noise: store some rows outright, and learn sums that happen to fit the others. Both need
# the rows at hand. **Rows that were held out take most of the floor away**, and what is left of it is measured with
# *null rows*. We use three: random directions; every coordinate shuffled among the rows; and Gaussian directions with
# the same mean and covariance as the rows. The last is the floor of every headline below, chosen beforehand; section 2
# shows all three.
#
# *Excess* is explained variance of held-out rows minus that of held-out null rows, both with exactly `k` non-negative
# atoms a row, found by the same pursuit.


# %%
@cache
def planted(kind, seed):
    """A world by its name."""
    if kind == "sums":
        return mi.worlds.composed(seed=seed).world
    if kind == "rings":
        return mi.worlds.on_rings(seed=seed)
    n_children = 3 if kind == "hierarchy" else 0
    return mi.worlds.superposition(256, 64, density=3 / 256, n_children=n_children, seed=seed)


@cache
def decoder(kind, of, seed):
    """The true directions of a world, a dictionary trained on it, or a meta-SAE of that dictionary."""
    if kind == "orthogonal":
        return mi.worlds.orthogonal_dictionary(256, 64, seed)
    if of == "truth":
        return planted(kind, seed).directions
    if of == "trained":
        sae = mi.worlds.train_on(planted(kind, seed), 256, 3, n_steps=N_STEPS[0], seed=seed)
        return mi.meta.unit_rows(sae)
    return mi.meta.unit_rows(
        mi.meta.train_meta(decoder(kind, "trained", seed), 64, 3, seed=seed, n_steps=N_STEPS[1])
    )


# %% [markdown]
# Five kinds of dictionary. *Atoms* and *sums* we have met. In the *hierarchy* a child fires only with its parent; their
# directions are independent. On *rings* features are spread over circles, as months are: a plane, of which no point is
# special. And *orthogonal* rows are as unlike each other as rows can be, and have nothing to do with any world.
#
# Of each we judge the true directions, the decoder of an SAE trained on the activations, and the decoder of a meta-SAE
# trained on that.

# %%
guess = mi.exercises.predict(
    "Features of the hierarchy have independent directions. What excess will the SAE trained on it have?",
    ["none", "some, because absorption mixes rows", "as much as the sums"],
)

# %%
kinds, of = ["atoms", "sums", "hierarchy", "rings", "orthogonal"], ["truth", "trained", "meta"]
found = {}
for kind in kinds:
    for which in of[:1] if kind == "orthogonal" else of:
        for seed in range(SEED, SEED + N_WORLDS):
            rows = decoder(kind, which, seed)
            one = mi.meta.against_nulls(
                rows, len(rows) // 8, 3, seeds=[seed], nulls=["gaussian"], n_steps=N_STEPS[1]
            )
            found[kind, which, seed] = one.set_index("rows").held_out
by_seed = pd.DataFrame(found).T.rename_axis(["kind", "of", "seed"]).sort_index()
excess = (by_seed.real - by_seed.gaussian).unstack("seed")
means = excess.mean(axis=1).unstack("of").loc[kinds, of]
halves = excess.apply(lambda row: np.ptp(mi.metrics.mean_interval(row)) / 2, axis=1)
mi.plots.signed_grid(
    means,
    halves.unstack("of").loc[kinds, of],
    "Excess over the floor, held-out rows",
    "excess",
)

# %%
trained_hierarchy = mi.metrics.mean_interval(excess.loc["hierarchy", "trained"])
sums_trained = excess.loc["sums", "trained"].mean()
answers = ["none", "some, because absorption mixes rows", "as much as the sums"]
guess.reveal(
    answers[int(trained_hierarchy.low > 0) + int(trained_hierarchy.low > sums_trained)]
)

# %%
claims.add(
    "Rows that are sums exceed the floor",
    value=by_seed.real["sums", "truth"].mean(),
    control=by_seed.gaussian["sums", "truth"].mean(),
    interval=mi.metrics.mean_interval(excess.loc["sums", "truth"]),
    margin=0.1,
    kind="planted",
)

# %%
claims.add(
    "Rows drawn independently have no excess",
    value=by_seed.real["atoms", "truth"].mean(),
    control=by_seed.gaussian["atoms", "truth"].mean(),
    interval=mi.metrics.mean_interval(excess.loc["atoms", "truth"]),
    direction="within",
    margin=0.05,
    kind="planted",
)

# %% [markdown]
# Does little excess mean good features? We put beside it the share of true features that each dictionary recovers.

# %%
recovered = pd.Series(
    {
        (kind, seed): mi.worlds.recovery(
            planted("atoms" if kind == "orthogonal" else kind, seed).directions,
            decoder(kind, "trained", seed),
        ).share
        for kind in kinds
        for seed in range(SEED, SEED + N_WORLDS)
    }
).unstack()
of_trained = excess.xs("trained", level="of").mean(axis=1)
of_trained["orthogonal"] = excess.loc["orthogonal", "truth"].mean()
pd.DataFrame({"features recovered": recovered.mean(axis=1), "excess": of_trained}).loc[
    kinds
].round(3)

# %%
claims.add(
    "A random orthogonal dictionary, whose rows hold no sums, recovers fewer features than a trained one",
    value=recovered.loc["orthogonal"].mean(),
    control=recovered.loc["atoms"].mean(),
    interval=mi.metrics.mean_interval(recovered.loc["orthogonal"] - recovered.loc["atoms"]),
    direction="less",
    margin=0.5,
    kind="planted",
)

# %% [markdown]
# A dictionary without structure may be perfect, or useless. **Little meta-structure is no proof of good features.** And
# rings have excess although no sum of attributes made them: structure is not always composition.
#
# ## 2. Our dictionaries
#
# The same for the dictionaries that come with this suite. These numbers take an hour, so they are read from
# `data/saes/meta_table.csv`, made by `data/saes/meta_table.py`: three seeds each, which decide the held-out rows, the
# start of the training and the draw of the null.

# %%
guess = mi.exercises.predict(
    "On the widest dictionary, with a quarter as many meta-latents, what share of the explained variance that is "
    "usually reported is there for rows without structure?",
    ["a tenth", "half", "nine tenths"],
)

# %%
measured = mi.meta.measured()
shipped = list(mi.sae.shipped_cards().index)
settings = measured[measured.dictionary.isin(shipped)].groupby(["dictionary", "ratio", "k"])


def over_seeds(column):
    table = pd.DataFrame({key: mi.meta.excess(rows, column=column) for key, rows in settings}).T
    return table.rename_axis(["dictionary", "ratio", "k"]).loc[shipped]


own, held_out = over_seeds("own"), over_seeds("held_out")
usual = own.xs((4, 4), level=("ratio", "k"))
mi.plots.over_floor(
    usual, "As usually reported: training rows, own encoder", "explained variance"
)

# %%
widest = measured.query("dictionary == 'resid12_18432' and ratio == 4 and k == 4")
by_seed = widest.pivot(index="seed", columns="rows", values="own")
share = by_seed.gaussian / by_seed.real
claims.add(
    "Most of what a meta-SAE is usually said to explain is there without structure",
    value=share.mean(),
    control=0.5,
    interval=[end - 0.5 for end in mi.metrics.mean_interval(share)],
)

# %%
options = {"a tenth": 0.1, "half": 0.5, "nine tenths": 0.9}
guess.reveal(min(options, key=lambda name: abs(options[name] - share.mean())))

# %% [markdown]
# Now held-out rows, with exactly `k` atoms. The controls must come out at nothing: a decoder that never moved from its
# random start, and, less obviously, the dictionary of a model with random weights.

# %%
mi.plots.over_floor(
    held_out.xs((4, 4), level=("ratio", "k")),
    "Rows it has not seen, four atoms each",
    "explained variance",
)

# %% [markdown]
# The whole table: both ratios of rows to meta-latents, two, four and eight atoms a row; `low` to `high` is Student's
# interval of the excess over three seeds.

# %%
held_out.style.format(precision=3).bar(subset=["excess"], color="#9ECAE1", vmin=0, vmax=0.1)

# %% [markdown]
# And all three nulls, with four atoms:

# %%
four = measured[measured.dictionary.isin(shipped) & (measured.k == 4)]
nulls = four.pivot_table(index=["dictionary", "ratio"], columns="rows", values="held_out")
nulls.loc[shipped, ["real", *mi.meta.NULLS]].round(3)

# %%
headline = held_out.loc["resid12_18432", RATIO, K]
claims.add(
    "The rows of the widest dictionary have structure beyond their covariance",
    value=headline.value,
    control=headline.floor,
    interval=(headline.low, headline.high),
)


# %%
def runs_of(dictionary, ratio=RATIO, k=K):
    runs = measured[measured.dictionary == dictionary]
    return runs[(runs.ratio == ratio) & (runs.k == k)]


def compare(text, one, other):
    one, other = (mi.meta.excess_by_seed(runs_of(name)) for name in (one, other))
    interval = mi.metrics.mean_interval(one - other)
    return claims.add(text, value=one.mean(), control=other.mean(), interval=interval)


compare(
    "A trained model's dictionary has more excess than a random model's of the same width",
    "resid12_1152",
    "resid12_1152_random_model",
)

# %%
compare("The widest dictionary has more excess than the narrowest", "resid12_18432", SMALL)

# %%
compare(
    "Sixteen times as much training gives a dictionary more excess",
    "resid12_4608",
    "resid12_4608_0.75M",
)

# %% [markdown]
# What would a dictionary have that was never trained? Our training starts each row on a data point, mixed with as much
# noise. Data points are sums of features, so they are the opposite of atoms.

# %%
compare(
    "A trained dictionary has more excess than the data points on which its training starts",
    "resid12_4608",
    "resid12_4608_0M",
)

# %%
amounts = {f"resid12_{width}_{m:g}M": m for width in (1152, 4608) for m in (0, 0.75, 1.5, 3, 6)}
amounts |= {"resid12_1152": 10.0, "resid12_4608": 12.0}
curves = {"1,152 latents": {}, "4,608 latents": {}}
for name, millions in amounts.items():
    width = "1,152 latents" if "_1152" in name else "4,608 latents"
    curves[width][millions] = mi.meta.excess(runs_of(name))[["excess", "low", "high"]]
curves = {
    width: pd.DataFrame(points).T.sort_index().rename(columns={"excess": "value"})
    for width, points in curves.items()
}
roles = {"1,152 latents": "second_seed", "4,608 latents": "trained"}
mi.plots.curves_with_bands(
    curves,
    roles,
    "Excess over the floor, by training",
    "activations trained on (millions)",
    "excess",
)

# %% [markdown]
# ## 3. One atom, or several?
#
# Near-copies of one direction are structure too, but one atom explains a whole cluster of them. Composition needs
# several atoms. So we ask how the excess grows with the number of atoms.

# %%
model = mi.models.load_model()
dictionary, small = mi.sae.load(NAME), mi.sae.load(SMALL)
rows = mi.meta.unit_rows(dictionary)
n_meta = len(rows) // RATIO
scores = {
    kind: mi.meta.score(
        mi.meta.rows_of_kind(rows, kind, SEED),
        n_meta,
        K,
        seed=SEED,
        n_atoms=8,
    )
    for kind in ("real", "gaussian")
}
curves = {kind: score.curve.to_frame("value") for kind, score in scores.items()}
roles = {"real": "trained", "gaussian": "control"}
mi.plots.curves_with_bands(curves, roles, "Held-out rows", "atoms a row", "explained variance")

# %%
steps = pd.DataFrame(
    {kind: score.curve.diff().fillna(score.curve) for kind, score in scores.items()}
)
steps["excess added by this atom"] = steps.real - steps.gaussian
steps.round(3)

# %%
one, all_four = (
    mi.meta.excess_by_seed(runs_of("resid12_18432"), column=column)
    for column in ("one_atom", "held_out")
)
share = one / all_four
claims.add(
    "More than half of the excess is there with a single atom a row: clusters rather than sums",
    value=share.mean(),
    control=0.5,
    interval=[end - 0.5 for end in mi.metrics.mean_interval(share)],
)

# %% [markdown]
# ## 4. Take a latent apart
#
# Choose a latent, see its meta-latents, their other members, and what each direction does to the logits. Then press
# **random twin**: the same rows, taken apart over as many Gaussian directions that nobody trained. How much of what you
# found convincing is still there?

# %%
meta_sae = mi.meta.train_meta(rows, n_meta, K, seed=SEED)
parts = mi.meta.decompose(rows, meta_sae.W_dec, K, meta_sae.b_dec)
noise = mi.meta.gaussian_rows(rows, SEED)[:n_meta]
twin = mi.meta.decompose(rows, noise, K, rows.mean(0))
index = mi.latents.shipped_index(NAME, model.tokenizer)
small_index = mi.latents.shipped_index(SMALL, model.tokenizer)
country = int(index.find_token(" Germany").index[0])
mi.meta_explorer.meta_explorer(
    model,
    index,
    {"meta-SAE": parts, "random twin": twin},
    (small_index, small),
    latent=country,
)

# %% [markdown]
# ## 5. Do siblings share a part?
#
# A big dictionary splits latents of a small one. Take two children of one parent, where parenthood is read off *when*
# latents fire and not off their rows. If meta-latents are the old parents, the two should share one. But similar rows
# share atoms anyway. So beside each pair of siblings stands a *matched pair*: the same cosine, two different parents.

# %%
guess = mi.exercises.predict(
    "Compared with pairs that are as similar, siblings share a meta-latent ...",
    ["less often", "as often", "more often"],
)

# %%
hook_name = index.about["hook_name"]
held_out_text = mi.corpus.split_held_out(mi.corpus.load_corpus()).held_out
sample = mi.corpus.sample(held_out_text, N_HELD_OUT, SEED)
text = mi.corpus.contexts(sample, model.tokenizer).shuffled(SEED)
store = mi.activations.harvest(model, text.tokens, [hook_name])
x = store.rows(hook_name, torch.arange(store.n_rows))
parent = mi.families.parents(mi.families.firings(dictionary, x), mi.families.firings(small, x))
pairs = mi.families.pairs(parent, rows, seed=SEED)
shared = {
    (arm, kind): taken.share_an_atom(chosen).float().numpy()
    for arm, taken in {"meta-SAE": parts, "random twin": twin}.items()
    for kind, chosen in {"siblings": pairs.siblings, "as similar": pairs.matched}.items()
}
pd.Series({key: values.mean() for key, values in shared.items()}).unstack().round(3)

# %%
gain = shared["meta-SAE", "siblings"] - shared["meta-SAE", "as similar"]
families = pd.Series(gain).groupby(pairs.family).agg(["sum", "size"])
interval = mi.metrics.bootstrap_interval(
    families["sum"], families["size"], statistic=mi.metrics.ratio_of_sums
)
claims.add(
    "Siblings share a meta-latent more often than pairs that are as similar",
    value=shared["meta-SAE", "siblings"].mean(),
    control=shared["meta-SAE", "as similar"].mean(),
    interval=interval,
)

# %%
guess.reveal(
    ["less often", "as often", "more often"][1 + (interval.low > 0) - (interval.high < 0)]
)

# %% [markdown]
# ## 6. Edit a latent through its parts
#
# The original post turns a latent for Tokyo into one for Paris by exchanging meta-latents. It tries every subset, and
# scales the change by a hundred, which replaces the row. We exchange *all* parts that two latents do not share, at
# their own weight, once, and put controls beside it:
# - *random parts*: the exchange over the random twin, made as long;
# - *random direction*: as long;
# - *whole latent*: the other latent's row in its place, the most a change of one row could do;
# - *whole state*: all of the residual stream, taken from the other country.
#
# We use countries whose capital the model knows and that have a latent of their own.

# %%
TEMPLATES = "The capital of {} is", "The capital city of {} is called"
facts = mi.facts.table("country_capital").set_index("subject").answer


def first_token(answer):
    return model.tokenizer.encode(" " + answer)[0]


def prompt(template, country):
    """Tokens, and where the country's name ends."""
    before, after = (model.tokenizer.encode(part) for part in template.split(" {}"))
    name = model.tokenizer.encode(" " + country)
    separator = index.about["separator"]
    return torch.tensor([[separator, *before, *name, *after]]), len(before) + len(name)


@torch.no_grad()
def answers(template, country, changes=None):
    """Log-probabilities of the next token, a row per change of the stream at the country's name."""
    tokens, end = prompt(template, country)
    changes = torch.zeros(1, rows.shape[1]) if changes is None else changes
    edit = mi.hooks.at_position(lambda stream: stream + changes[:, None], end)
    with mi.hooks.intervene(model, {hook_name: edit}):
        logits = model(tokens.expand(len(changes), -1), logits_to_keep=1)
    return logits[:, -1].log_softmax(-1)


# %%
def known(country, capital):
    return all(answers(t, country)[0].argmax() == first_token(capital) for t in TEMPLATES)


read = mi.hooks.fast_reader(model, [hook_name], prompt(TEMPLATES[0], facts.index[0])[0])


def own_latent(country):
    """The strongest latent, among specific ones, where the country is named; its activation; the stream."""
    tokens, end = prompt(TEMPLATES[0], country)
    seen = read(tokens)[hook_name][0, end].float()
    acts = dictionary.encode(seen[None])[0]
    fires = acts.nonzero()[:, 0].numpy()
    specific = fires[index.surprisal(fires, acts[fires].numpy()) > 12]
    if not len(specific):
        return None
    latent = int(specific[acts[specific].argmax()])
    return {"latent": latent, "act": acts[latent].item(), "stream": seen}


# %%
names = list(facts.index[: 40 if FAST else None])
countries = {name: own_latent(name) for name in names if known(name, facts[name])}
table = pd.DataFrame({name: found for name, found in countries.items() if found}).T
table = table[~table.latent.duplicated(keep=False) & (table.act > 15)]
pairs_of_countries = [
    (one, other)
    for one, other in permutations(table.index, 2)
    if first_token(facts[one]) != first_token(facts[other])
]
rng = np.random.default_rng(SEED)
chosen = [pairs_of_countries[i] for i in rng.permutation(len(pairs_of_countries))[:N_EDITS]]
print(f"{len(countries)} capitals known, {len(table)} countries with a latent of their own")


# %%
def changes(one, other):
    """What each arm adds to the stream where the country is named."""
    a, b, act = table.latent[one], table.latent[other], table.act[one]
    edited = act * (parts.exchanged(a, b) - rows[a])
    random = torch.randn(edited.shape, generator=torch.Generator().manual_seed(a))
    random_parts = twin.exchanged(a, b) - rows[a]
    return {
        "meta-latents exchanged": edited,
        "random parts": mi.meta.unit_rows(random_parts[None])[0] * edited.norm(),
        "random direction": mi.meta.unit_rows(random[None])[0] * edited.norm(),
        "whole latent": act * (rows[b] - rows[a]),
        "whole state": table.stream[other] - table.stream[one],
    }


def moved(template, one, other, vectors):
    """How far each change moves the answer towards the other capital, in nats."""
    after = answers(template, one, torch.cat([torch.zeros(1, rows.shape[1]), vectors]))
    towards = after[:, first_token(facts[other])] - after[:, first_token(facts[one])]
    return (towards[1:] - towards[0]).numpy(), after[1:].argmax(1) == first_token(facts[other])


# %%
found = []
for one, other in chosen:
    arms = changes(one, other)
    for template in TEMPLATES:
        gain, flipped = moved(template, one, other, torch.stack(list(arms.values())))
        for arm, value, flip in zip(arms, gain, flipped.tolist(), strict=True):
            found.append((one, other, arm, value, flip, arms[arm].norm().item()))
edits = pd.DataFrame(found, columns=["one", "other", "arm", "nats", "flipped", "length"])
by_arm = edits.groupby("arm", sort=False)[["nats", "flipped", "length"]].mean()
cosines = [
    (parts.exchanged(table.latent[a], table.latent[b]) @ rows[table.latent[a]]).item()
    for a, b in chosen
]
print(f"cosine of the edited row to the original: {np.mean(cosines):.2f}")
by_arm.round(2)

# %%
nats = edits.groupby(["one", "other", "arm"]).nats.mean().unstack()
claims.add(
    "Exchanging meta-latents moves the answer further than exchanging random parts",
    value=nats["meta-latents exchanged"].mean(),
    control=nats["random parts"].mean(),
    interval=mi.metrics.bootstrap_interval(
        (nats["meta-latents exchanged"] - nats["random parts"]).to_numpy()
    ),
    unit="nats",
)

# %% [markdown]
# What does the search over subsets buy? We draw subsets of the parts to exchange, keep the best on one template, and
# report it on the other, once with the meta-latents and once with random parts. The gap between the two columns is what
# searching alone looks like.


# %%
def subset_changes(taken, one, other):
    """Random subsets of an exchange: a change of the stream each."""
    a, b = table.latent[one], table.latent[other]
    own, theirs = taken.parts(a), taken.parts(b)
    out = [-own[i] * taken.atoms[i] for i in own.keys() - theirs.keys()]
    into = [theirs[i] * taken.atoms[i] for i in theirs.keys() - own.keys()]
    pieces = torch.stack([*out, *into])
    generator = torch.Generator().manual_seed(SEED)
    keep = torch.rand(N_SUBSETS, len(pieces), generator=generator) < 0.5
    edited = torch.nn.functional.normalize(rows[a] + keep.float() @ pieces, dim=1)
    return table.act[one] * (edited - rows[a])


searched = []
for one, other in chosen[:N_SEARCHED]:
    for arm, taken in {"meta-latents": parts, "random parts": twin}.items():
        tried = subset_changes(taken, one, other)
        first, second = (moved(template, one, other, tried)[0] for template in TEMPLATES)
        best = first.argmax()
        searched.append((arm, first[best], second[best], first.mean()))
columns = ["arm", "best, where it was chosen", "the same, other template", "mean of all tried"]
pd.DataFrame(searched, columns=columns).groupby("arm").mean().round(2).assign(tried=N_SUBSETS)

# %% [markdown]
# ## 7. Your turn
#
# **One atom** (easy). The first step of matching pursuit: given a row and unit atoms, return the number of the atom that
# fits best with a weight that is not negative. Return -1 if no atom fits at all.


# %%
def best_atom(row, atoms):
    """The index of the atom with the largest positive inner product, or -1."""
    ...


def reference(row, atoms):
    fit = atoms @ row
    return int(fit.argmax()) if fit.max() > 0 else -1


best_atom = mi.exercises.attempt(best_atom, reference=reference)
mi.exercises.check(
    best_atom,
    [(rows[0], parts.atoms), (rows[1], parts.atoms), (-parts.atoms[0], parts.atoms[:1])],
)

# %%
mi.exercises.hint(
    "All atoms have length one, so the best fit is the largest inner product.",
    "What if even the largest is below zero?",
)

# %% [markdown]
# ## What this does not show
#
# - That latents with parts are bad latents. Where Tokyo and Japan often come together, a latent for both is the
#   shorter code.
# - That the excess is composition. Rings have it too, and near-copies; look at how much of it the first atom takes.
# - That training makes the excess. Rows begin on data points, and the curve by training shows what they bring along.
# - That other dictionaries have as little. Ours are small; the same calls take any sae-lens folder, and
#   `mi.sae.load_hub` the public ladder of GPT-2 dictionaries on which the original post worked.
# - That the edit failed because meta-latents are wrong: the whole latent, too, moves the answer only part of the way
#   that the whole state does.
#
# We would change our mind about "structure beyond covariance" if a null that keeps near-copies but no shared parts
# reached the same excess.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - A meta-SAE explains a good part of anything. Report the excess over a floor, on rows it has not seen.
# - No excess is what perfect features have, and what useless orthogonal ones have.
# - Take latents apart beside a random twin, and edit them beside random parts, or you will be convinced by noise.
#
# **More exercises.** (medium) Write a null that keeps the pairwise cosines of nearest neighbours and nothing else. Does
# the excess survive it? (hard) Train the meta-SAE with `weights=` the latents' densities: do common latents share more?
#
# ## Sources
#
# Bussmann et al. (2024), *Showing SAE latents are not atomic using meta-SAEs*, and the comments below it. Karvonen et
# al. (2025), *SAEBench*, for the quarter-width metric. Engels et al. (2025), *Not all language model features are
# one-dimensionally linear*. Leask et al. (2025), *Sparse autoencoders do not find canonical units of analysis*.
