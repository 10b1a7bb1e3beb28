# %% [markdown]
# # Is a big dictionary just sums of a small one?
#
# *A meta-SAE against sparse regression on dictionaries that were trained for something else, with the floor below both.*
#
# Four minutes on two CPU cores, no network. You should have met meta-SAEs and their floor (`03_meta_saes`).
#
# After this notebook you will be able to
# - compare any two sets of atoms fairly: same rows, same number, same coder, same sign;
# - say whether a decomposition of directions also holds for activations and for behaviour;
# - tell latents that bring news from latents that repeat, and by how much a rule of thumb does so;
# - argue both sides of "an idealised SAE leaves a meta-SAE nothing to find".
#
# Background: under [the meta-SAE post](https://www.lesswrong.com/posts/TMAmHh4DdMr4nCSr5) readers asked whether sparse
# regression on a smaller SAE would show the same, and the authors expected so. We found no published number. Here is
# one.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
BIG = "resid12_4608" if FAST else "resid12_18432"  # whose rows are to be explained
SMALL, SECOND = "resid12_1152", "resid12_1152_seed1"  # what they may be sums of
K = 4  # atoms a row
N_META_SEEDS = 1 if FAST else 2  # trainings of the meta-SAE
N_WORLDS = 3 if FAST else 5  # planted worlds
N_HELD_OUT = 6_000 if FAST else 20_000  # tokens
N_CODED = 40 if FAST else 80  # rows for the slow coders
N_CHILDREN = 30 if FAST else 200  # latents whose activations we predict
N_REPLACED = 6 if FAST else 24  # latents whose rows we replace in the running model

# %%
import numpy as np
import pandas as pd
import torch

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("04_dictionaries_in_dictionaries")

# %% [markdown]
# ## 1. A dictionary that is sums of another, and one that is not
#
# In the first world the big dictionary's rows are sums of two attributes and a part of their own, and the small
# dictionary *is* the attributes. In the second the small dictionary has nothing to do with the big one. The control is
# the small dictionary *rotated*: its rows are to each other what they were, and to the big dictionary nothing.
#
# Everything is coded alike: matching pursuit, non-negative weights, `k` atoms, rows that no method has seen.


# %%
def planted(seed):
    sums = mi.worlds.composed(seed=seed)
    other = mi.worlds.random_dictionary(24, 64, seed=seed)
    split = mi.meta.split_rows(sums.world.directions, seed)
    meta_sae = mi.meta.train_meta(split.train, 24, 2, seed=seed, n_steps=200)
    sets = {
        "the attributes": sums.attributes,
        "the attributes, rotated": mi.meta.rotated_rows(sums.attributes, seed),
        "an unrelated dictionary": other,
        "the same, rotated": mi.meta.rotated_rows(other, seed),
        "meta-SAE": mi.meta.unit_rows(meta_sae),
    }
    centre = split.train.mean(0)
    return {
        name: mi.meta.explained(split.held_out, atoms, 2, centre)[2]
        for name, atoms in sets.items()
    }


worlds = pd.DataFrame([planted(SEED + seed) for seed in range(N_WORLDS)])
worlds.mean().to_frame("explained variance, held-out rows").round(3)

# %%
gain = worlds["the attributes"] - worlds["the attributes, rotated"]
claims.add(
    "Regression on the parts of planted sums explains more than on the same parts rotated",
    value=worlds["the attributes"].mean(),
    control=worlds["the attributes, rotated"].mean(),
    interval=mi.metrics.mean_interval(gain),
    margin=0.2,
    kind="planted",
)

# %%
gain = worlds["an unrelated dictionary"] - worlds["the same, rotated"]
claims.add(
    "Regression on an unrelated dictionary explains no more than on the same rotated",
    value=worlds["an unrelated dictionary"].mean(),
    control=worlds["the same, rotated"].mean(),
    interval=mi.metrics.mean_interval(gain),
    direction="within",
    margin=0.05,
    kind="planted",
)

# %% [markdown]
# ## 2. The comparison
#
# The rows of our widest dictionary, and ten sets of 1,152 atoms. Only the meta-SAE, the k-means centres and the subset
# of rows have seen rows of this dictionary at all, and none has seen the fifth that we judge them on.

# %%
guess = mi.exercises.predict(
    "Which explains more of the big dictionary's rows, with four atoms each: a meta-SAE trained on such rows, or a "
    "smaller SAE that never saw one?",
    ["the meta-SAE", "about the same", "the smaller SAE"],
)

# %%
model = mi.models.load_model()
big, small, second = (mi.sae.load(name) for name in (BIG, SMALL, SECOND))
rows = mi.meta.unit_rows(big)
split = mi.meta.split_rows(rows, SEED)
centre, n_atoms = split.train.mean(0), len(small.W_dec)
meta_saes = [
    mi.meta.train_meta(split.train, n_atoms, K, seed=SEED + seed)
    for seed in range(N_META_SEEDS)
]

# %%
W_E = next(model.original_model.get_input_embeddings().parameters()).detach()
W_U = mi.models.unembedding(model).T
tokens = torch.randperm(len(W_E), generator=torch.Generator().manual_seed(SEED))[:n_atoms]
gaussian = mi.meta.gaussian_rows(split.train, SEED)
sets = {
    "meta-SAE": mi.meta.unit_rows(meta_saes[0]),
    "k-means centres": mi.meta.kmeans_centres(split.train, n_atoms, SEED) - centre,
    "a subset of its own rows": split.train[:n_atoms] - centre,
    "smaller SAE": mi.meta.centred_atoms(small.W_dec),
    "smaller SAE, second seed": mi.meta.centred_atoms(second.W_dec),
    "SAE of a random model": mi.meta.centred_atoms(mi.sae.load(f"{SMALL}_random_model").W_dec),
    "embedding of random tokens": mi.meta.centred_atoms(W_E[tokens]),
    "unembedding of random tokens": mi.meta.centred_atoms(W_U[tokens]),
    "Gaussian, the rows' covariance": gaussian[:n_atoms] - centre,
    "smaller SAE, rotated": mi.meta.rotated_rows(mi.meta.centred_atoms(small.W_dec), SEED),
    "random directions": mi.meta.random_rows(small.W_dec, SEED),
}
sets |= {f"meta-SAE, seed {i}": mi.meta.unit_rows(m) for i, m in enumerate(meta_saes[1:], 1)}

# %%
taken = {name: mi.meta.decompose(split.held_out, a, 8, centre) for name, a in sets.items()}

# %%
curves = {name: decomposition.curve() for name, decomposition in taken.items()}
curves["principal components (dense)"] = pd.Series(
    {
        k: 1
        - mi.metrics.fvu(
            split.held_out, mi.sparse_coding.principal_codes(split.train, split.held_out, k)
        ).item()
        for k in range(1, 9)
    }
)
shown = {
    "meta-SAE": "trained",
    "smaller SAE": "second_seed",
    "a subset of its own rows": "patched",
    "principal components (dense)": "corrupted",
    "Gaussian, the rows' covariance": "control",
    "random directions": "chance",
}
mi.plots.curves_with_bands(
    {name: curves[name].to_frame("value") for name in shown},
    shown,
    "Held-out rows explained by each set of atoms",
    "atoms a row",
    "explained variance",
)

# %%
codes = {name: decomposition.first(K) for name, decomposition in taken.items()}
errors = {
    name: mi.metrics.squared_errors(split.held_out, taken.x_hat)
    for name, taken in codes.items()
}


def unexplained(name):
    return [part.numpy() for part in errors[name]]


table = {}
for name in sets:
    low, high = mi.metrics.bootstrap_interval(
        *unexplained(name), statistic=mi.metrics.ratio_of_sums
    )
    table[name] = {"value": curves[name][K], "low": 1 - high, "high": 1 - low}
table = pd.DataFrame(table).T
floor = table.value["Gaussian, the rows' covariance"]
table.assign(excess=table.value - floor).sort_values("value", ascending=False).round(3)


# %%
def gain(name, other):
    """Explained variance of one set minus that of another on the same rows, with its interval."""
    one, two = errors[name][0].numpy(), errors[other][0].numpy()
    whole = errors[name][1].numpy()
    return mi.metrics.bootstrap_interval(
        two, one, whole, statistic=lambda b, a, v: (b - a).sum() / v.sum()
    )


claims.add(
    "Sums of a smaller SAE's latents explain the big one's rows beyond Gaussian atoms of their covariance",
    value=table.value["smaller SAE"],
    control=floor,
    interval=gain("smaller SAE", "Gaussian, the rows' covariance"),
)

# %%
interval = gain("meta-SAE", "smaller SAE")
claims.add(
    "Sparse regression on the smaller SAE explains as much as the meta-SAE, to two hundredths",
    value=table.value["smaller SAE"],
    control=table.value["meta-SAE"],
    interval=(-interval.high, -interval.low),
    direction="within",
    margin=0.02,
)

# %%
claims.add(
    "On rows it has not seen, a meta-SAE explains less than sparse regression on the smaller SAE",
    value=table.value["meta-SAE"],
    control=table.value["smaller SAE"],
    interval=interval,
    direction="less",
)

# %%
answers = ["the meta-SAE", "about the same", "the smaller SAE"]
guess.reveal(answers[1 - int(interval.low > 0.02) + int(interval.high < -0.02)])

# %% [markdown]
# Had we judged the meta-SAE on the rows it was trained on, as is usual:

# %%
some = split.train[
    torch.randperm(len(split.train), generator=torch.Generator().manual_seed(1))[:2000]
]
pd.DataFrame(
    {
        "training rows": {
            n: mi.meta.decompose(some, sets[n], K, centre).explained for n in shown if n in sets
        },
        "held-out rows": {n: curves[n][K] for n in shown if n in sets},
    }
).round(3)

# %% [markdown]
# Turn the two knobs: how many atoms, and how large a difference must be to count. Three readings were on offer in the
# debate; the panel says which one the numbers above support.

# %%
mi.meta_explorer.reading_explorer(
    pd.DataFrame(curves),
    meta="meta-SAE",
    regression="smaller SAE",
    floor="Gaussian, the rows' covariance",
    k=K,
)

# %% [markdown]
# ## 3. Do they agree on what a latent is made of?
#
# Equal scores may come from different parts. First the coder: do pursuit, the lasso path and full least squares choose
# the same atoms of the smaller SAE? Chance is the same codes dealt to other rows.

# %%
few = split.held_out[:N_CODED] - centre
atoms = sets["smaller SAE"]
coders = {"pursuit": mi.sparse_coding.omp, "lasso path": mi.sparse_coding.lasso}
coders["all, heaviest kept"] = mi.sparse_coding.nnls
coded = {name: coder(few, atoms, K) for name, coder in coders.items()}


def overlap(one, other):
    """Share of a row's atoms that two codes have in common."""
    return (one[:, :, None] == other[:, None, :]).any(2).float().mean().item()


pd.DataFrame(
    {
        name: {
            "explained": 1
            - ((few - c.reconstruct(atoms)).pow(2).sum() / few.pow(2).sum()).item(),
            "in common with pursuit": overlap(coded["pursuit"].atoms, c.atoms),
            "by chance": overlap(coded["pursuit"].atoms, c.atoms.roll(1, 0)),
        }
        for name, c in coded.items()
    }
).T.round(3)

# %% [markdown]
# Then the dictionaries. Atoms of different sets have no common names, but *pairs of rows* do: do two rows that share an
# atom of the meta-SAE share one of the smaller SAE too? `phi` is the correlation of the two answers over random pairs.
# Similar rows share atoms of anything, so the control is agreement with Gaussian atoms.

# %%
n = len(split.held_out)
generator = torch.Generator().manual_seed(SEED)
pairs = torch.randint(n, (200_000, 2), generator=generator)
pairs = pairs[pairs[:, 0] != pairs[:, 1]]
shared = {name: taken.share_an_atom(pairs).numpy() for name, taken in codes.items()}
compared = ["smaller SAE", "smaller SAE, second seed", "k-means centres"]
compared += ["Gaussian, the rows' covariance"]
pd.Series(
    {name: np.corrcoef(shared["meta-SAE"], shared[name])[0, 1] for name in compared},
    name="phi with the meta-SAE",
).to_frame().round(3)

# %% [markdown]
# ## 4. Does it hold for activations?
#
# A decomposition is about directions. If a big latent *is* its parts, the parts' latents should be active when it is.
# We predict the big latent's activation from the four latents of the smaller SAE that its row was taken apart into,
# fitted on half of the contexts and judged on the others. Controls: four latents of about the same density, and, as the
# most one could hope for, the four that correlate best.

# %%
guess = mi.exercises.predict(
    "How much of a latent's activation do its four parts predict?",
    ["no more than four random latents", "less than half", "more than half"],
)

# %%
held_out_text = mi.corpus.split_held_out(mi.corpus.load_corpus()).held_out
sample = mi.corpus.sample(held_out_text, N_HELD_OUT, SEED)
text = mi.corpus.contexts(sample, model.tokenizer).shuffled(SEED)
hook_name = big.cfg.metadata.hook_name
store = mi.activations.harvest(model, text.tokens, [hook_name])
every = torch.arange(store.n_rows)
x, origin = store.rows(hook_name, every), store.origin(every)
fires, small_fires = mi.families.firings(big, x), mi.families.firings(small, x)
is_first = (origin.context % 2 == 0).numpy()  # contexts to fit on
parts = mi.meta.decompose(rows, atoms, K, rows.mean(0))

# %%
rng = np.random.default_rng(SEED)
both_halves = np.minimum(*((fires[half] > 0).sum(0).A1 for half in (is_first, ~is_first)))
children = rng.choice(np.flatnonzero(both_halves >= 10), N_CHILDREN, replace=False)
rank = np.argsort(np.argsort((small_fires > 0).sum(0).A1))
by_rank = np.argsort(rank)
fitted = small_fires[is_first]

# %%


def like(latents):
    """Other latents of about the same density."""
    near = np.clip(rank[latents] + rng.integers(-30, 31, len(latents)), 0, len(rank) - 1)
    return by_rank[near]


def best_correlated(child):
    target = fires[is_first][:, [child]]
    products = (fitted.T @ target).toarray()[:, 0]
    lengths = np.sqrt(fitted.multiply(fitted).sum(0).A1 + 1e-9)
    return np.argsort(-products / lengths)[:K]


def predicted(child, latents):
    """R² of a linear fit on the first half, judged on the second."""
    y = fires[:, [child]].toarray()[:, 0]
    inputs = np.column_stack([small_fires[:, latents].toarray(), np.ones(len(y))])
    weights = np.linalg.lstsq(inputs[is_first], y[is_first], rcond=None)[0]
    rest = y[~is_first] - inputs[~is_first] @ weights
    return 1 - rest.var() / y[~is_first].var()


# %%
r2 = pd.DataFrame(
    {
        "its four parts": predicted(child, parts.codes.atoms[child].numpy()),
        "four of their density": predicted(child, like(parts.codes.atoms[child].numpy())),
        "the four best": predicted(child, best_correlated(child)),
    }
    for child in children
)
claims.add(
    "A latent's parts in the smaller SAE predict its activation better than other latents of their density",
    value=r2["its four parts"].mean(),
    control=r2["four of their density"].mean(),
    interval=mi.metrics.bootstrap_interval(
        (r2["its four parts"] - r2["four of their density"]).to_numpy()
    ),
    unit="R²",
)

# %%
middle = r2["its four parts"].mean()
answers = ["no more than four random latents", "less than half", "more than half"]
guess.reveal(answers[int(middle > r2["four of their density"].mean()) + int(middle > 0.5)])

# %%
r2.describe().loc[["mean", "25%", "50%", "75%"]].round(3)

# %% [markdown]
# ## 5. Does it hold for behaviour?
#
# We replace a latent's row by its approximation with four atoms, where the latent fires, in the running model, and
# measure how far the next-token distribution moves. Taking the latent out altogether is the yardstick.

# %%
arms = ["meta-SAE", "smaller SAE", "k-means centres", "a subset of its own rows"]
arms += ["Gaussian, the rows' covariance", "random directions"]
unseen = split.held_out_latents.numpy()
usable = np.flatnonzero(both_halves[unseen] >= 10)
replaced = rng.choice(usable, min(N_REPLACED, len(usable)), replace=False)

# %%


@torch.no_grad()
def cost(number, place):
    """KL of the next-token distribution for each arm, at a place where the held-out latent of that number fires."""
    context, position = int(origin.context[place]), int(origin.position[place])
    tokens = text.tokens[context, : position + 1].long()
    act, nothing = float(fires[place, unseen[number]]), torch.zeros(1, rows.shape[1])
    new = torch.stack([codes[name].x_hat[number] for name in arms])
    change = torch.cat([nothing, act * (torch.cat([new, nothing]) - split.held_out[number])])
    edit = mi.hooks.at_last(lambda stream: stream + change[:, None])
    with mi.hooks.intervene(model, {hook_name: edit}):
        logits = model(tokens.expand(len(change), -1), logits_to_keep=1)[:, -1]
    return mi.metrics.kl_divergence(logits[:1].expand(len(arms) + 1, -1), logits[1:])


costs = {}
for number in replaced.tolist():
    places = fires[:, [unseen[number]]].nonzero()[0]
    chosen = rng.choice(places, 2, replace=False)
    costs[number] = torch.stack([cost(number, place) for place in chosen.tolist()]).mean(0)
kl = pd.DataFrame({k: v.numpy() for k, v in costs.items()}, index=[*arms, "taken out"]).T
(kl.mean() / kl["taken out"].mean()).to_frame("share of the cost of taking it out").round(3)

# %%
floor = "Gaussian, the rows' covariance"
claims.add(
    "Four atoms of the smaller SAE keep more of a latent's effect than four Gaussian atoms",
    value=kl["smaller SAE"].mean(),
    control=kl[floor].mean(),
    interval=mi.metrics.bootstrap_interval((kl["smaller SAE"] - kl[floor]).to_numpy()),
    direction="less",
    unit="nats",
)

# %% [markdown]
# ## 6. Stitching: news or repetition?
#
# Insert one latent of the big dictionary into the small one. If the error falls it brought news, if it rises it
# repeated what was there. Published: the largest cosine to the small dictionary's rows tells which. The control inserts
# latents that fire as they did but point along one another's rows.

# %%
inserted = mi.stitching.insertions(small, big, x[is_first])
inserted = inserted[inserted.firings >= 10]
order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(SEED))
mixed = mi.stitching.insertions(small, big, x[is_first], rows=big.W_dec[order])
mixed = mixed[mixed.firings >= 10]
mi.plots.insertions(inserted, "Inserting one latent of the big dictionary into the small one")

# %%
from sklearn.metrics import roc_auc_score

helps = (inserted.change < 0).to_numpy()


def area(helps, cosine):
    return float(roc_auc_score(helps > 0, -cosine))


interval = mi.metrics.bootstrap_interval(
    helps, inserted.cosine, statistic=area, n_resamples=200
)
claims.add(
    "The largest cosine tells latents that help from latents that repeat",
    value=area(helps, inserted.cosine),
    control=0.5,
    interval=[end - 0.5 for end in interval],
    unit="AUC",
)

# %%
difference = mi.metrics.difference_interval(
    helps, (mixed.change < 0).to_numpy(), n_resamples=300
)
claims.add(
    "Latents help the small dictionary more often along their own rows than along one another's",
    value=helps.mean(),
    control=(mixed.change < 0).mean(),
    interval=difference,
)

# %% [markdown]
# Adding latents makes codes denser, and denser codes reconstruct better. So thresholds are raised until all have the
# small dictionary's L0. Latents were chosen on one half of the contexts, the table is about the other.

# %%
second_half, context = x[~is_first], origin.context[~is_first]
l0 = mi.evaluation.reconstruction(small, second_half, context).l0
choices = {
    "the most helpful": inserted.change.nsmallest(n_atoms).index,
    "the lowest cosine": inserted.cosine.nsmallest(n_atoms).index,
    "drawn at random": inserted.sample(min(n_atoms, len(inserted)), random_state=SEED).index,
}
reports = {"small dictionary": mi.evaluation.reconstruction(small, second_half, context)}
for name, latents in choices.items():
    both = mi.stitching.stitched(small, big, torch.tensor(latents.to_numpy()))
    both = mi.stitching.at_l0(both, second_half, l0)
    reports[f"stitched: {name}"] = mi.evaluation.reconstruction(both, second_half, context)
reports["big dictionary"] = mi.evaluation.reconstruction(big, second_half, context)
mi.evaluation.comparison(reports)[["value", "low", "high", "L0"]].round(3)

# %%
stitched, alone = reports["stitched: the most helpful"], reports["small dictionary"]
claims.add(
    "At equal L0, stitching in the most helpful latents leaves less unexplained",
    value=stitched.fvu,
    control=alone.fvu,
    interval=mi.evaluation.fvu_difference(stitched, alone),
    direction="less",
    unit="FVU",
)

# %% [markdown]
# ## 7. Would an idealised SAE leave nothing to find?
#
# The authors: if latents were true atoms, a meta-SAE would find nothing. The counter-claim: a *lossy* meta-SAE can
# always compress, because most features are rare and may be thrown away. Both can be tried at once. Features of the
# world of atoms get frequencies that fall as one over rank. The rarest are thrown away: the meta-SAE never sees their
# rows, but is judged on all rows, weighted by frequency. Move the slider. Beside it the world of sums, and noise with
# the same frequencies.

# %%
frequency = 1 / torch.arange(1, 257).float()
shares = [0.0, 0.5, 0.75, 0.85]


def compressed(rows, thrown_away, seed):
    """Explained variance of rows as often as they occur, by 32 atoms that never saw the rarest."""
    weights = frequency.clone()
    weights[round(len(rows) * (1 - thrown_away)) :] = 0
    meta_sae = mi.meta.train_meta(rows, 32, 3, weights=weights, seed=seed, n_steps=100)
    generator = torch.Generator().manual_seed(seed)
    seen = rows[torch.multinomial(frequency, 2000, replacement=True, generator=generator)]
    return mi.meta.explained(seen, meta_sae.W_dec, 3, meta_sae.b_dec)[3]


def a_world(seed):
    sums = mi.worlds.composed(seed=seed).world.directions
    atoms = mi.worlds.superposition(256, 64, seed=seed).directions
    return {"atoms": atoms, "noise": mi.meta.random_rows(atoms, seed), "sums": sums}


# %%
lossy = {
    share: pd.DataFrame(
        [
            {name: compressed(rows, share, seed) for name, rows in a_world(seed).items()}
            for seed in range(6)
        ]
    )
    for share in (shares[::2] if FAST else shares)
}
mi.plots.slider_bars(
    {f"{share:.0%}": mi.meta.over_seeds(table) for share, table in lossy.items()},
    "rarest features thrown away: ",
    "Frequency-weighted variance explained by 32 meta-latents",
)

# %%
thrown = lossy[0.75]
claims.add(
    "The counter-claim: a lossy meta-SAE compresses even a world of atoms by more than half",
    value=thrown["atoms"].mean(),
    control=0.5,
    interval=[end - 0.5 for end in mi.metrics.mean_interval(thrown["atoms"])],
    kind="planted",
)

# %%
claims.add(
    "And finds nothing: it compresses noise of the same frequencies as well",
    value=thrown["atoms"].mean(),
    control=thrown["noise"].mean(),
    interval=mi.metrics.mean_interval(thrown["atoms"] - thrown["noise"]),
    direction="within",
    margin=0.1,
    kind="planted",
)

# %% [markdown]
# So both sides are right, about different things. Something that compresses can always be had; whether it has found
# structure only the difference to noise can say, and for atoms there is none.
#
# ## 8. Your turn
#
# **A fair floor** (medium). A colleague compares a smaller SAE with *random directions*. Say why that is too easy, by
# computing how much variance the best single direction of the rows explains: return the share of variance along the
# first principal component.


# %%
def first_share(rows):
    """Share of the rows' variance, about their mean, along their first principal component."""
    ...


def reference(rows):
    variances = torch.linalg.svdvals(rows - rows.mean(0)).square()
    return float(variances[0] / variances.sum())


first_share = mi.exercises.attempt(first_share, reference=reference)
mi.exercises.check(first_share, [(rows[:500],), (gaussian[:500],)])

# %%
mi.exercises.hint(
    "Singular values of the centred rows, squared, are the variances along the components.",
    "torch.linalg.svdvals gives them, largest first; divide by their sum of squares.",
)

# %% [markdown]
# ## What this does not show
#
# - That latents are sums. The best sets here leave most of the variance of held-out rows unexplained.
# - That the smaller SAE is the natural vocabulary: a second seed of it has other latents. Compare their scores above.
# - Anything about encoders. Section 4 fits a new linear map; it does not say that the big encoder works that way.
# - That stitching gains little in general. Ours are dictionaries of one small model at one layer.
# - That the comparison is one of equal means. A meta-SAE sees some ten thousand rows; the smaller SAE was trained on
#   millions of activations, of which the big dictionary's rows are one summary.
#
# We would change our mind about "regression on a smaller SAE" if its rotation, or the SAE of a random model, did as well.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - Compare sets of atoms on held-out rows, with one coder, and put Gaussian atoms of the same covariance beside them.
# - Ask a decomposition three times: for directions, for activations, for behaviour.
# - A latent far from the small dictionary's rows is likely to bring news; check it by inserting it.
# - That something can be compressed is no finding. That it can be compressed better than noise is.
#
# **More exercises.** (easy) Exchange `SMALL` and `SECOND`. (medium) Take the 4,608-latent dictionary as the smaller one,
# and as many meta-latents: who wins? (hard) Choose the four parts by `signed=True` pursuit, and repeat section 4.
#
# ## Sources
#
# Bussmann et al. (2024), *Showing SAE latents are not atomic using meta-SAEs*, with its comment thread. Leask et al.
# (2025), *Sparse autoencoders do not find canonical units of analysis*. Bruckstein et al. (2008), *On the uniqueness of
# nonnegative sparse solutions*. Efron et al. (2004), *Least angle regression*.
