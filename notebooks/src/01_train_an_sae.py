# %% [markdown]
# # What does a sparse dictionary learn, and how do we know it learned anything?
#
# *Train a sparse autoencoder first on a world whose answer is known, then on a real language model.*
#
# Four minutes on two CPU cores, no network. You should have met PyTorch and the residual stream of a transformer.
#
# After this notebook you will be able to
# - train a BatchTopK sparse autoencoder (SAE) and read its curves;
# - make a dictionary fail on purpose, in three ways, and name which is which;
# - say how good a dictionary is, next to what untrained directions, principal components and a random model reach;
# - tell what a second seed agrees with from what any two dictionaries would share.
#
# Background: [Bussmann et al. (2024)](https://arxiv.org/abs/2412.06410) for the architecture,
# [Korznikov et al. (2026)](https://arxiv.org/abs/2602.14111) for the controls.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
LAYER = 12  # the residual stream after this layer is what the dictionary reads
K = 32  # latents active on a token, on average
D_SAE = 256 if FAST else 4608  # latents of the dictionary we watch
D_SAE_ARMS = 128 if FAST else 1152  # latents of the dictionaries we compare
N_TOKENS = 6_000 if FAST else 128_000  # tokens to train on
N_HELD_OUT = 2_000 if FAST else 16_000  # tokens to judge on
N_TOKENS_RANDOM_MODEL = 3_000 if FAST else 24_000
N_STEPS = 30 if FAST else 1000  # of the dictionary we watch
N_STEPS_ARMS = 20 if FAST else 300
BATCH_SIZE = 256 if FAST else 1024
LR = 2e-3
N_SPLICED = 4 if FAST else 20  # contexts on which the model runs with its activations replaced

# %%
import numpy as np
import pandas as pd
import torch
from ipywidgets import interact_manual

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("01_train_an_sae")

# %% [markdown]
# ## 1. A world whose answer is known
#
# A language model's features are unknown, so nobody can mark an SAE's work there. We first build a world where we can.
# It has more features than dimensions, each a direction; on every token a few of them are present, and the activation
# is their sum plus noise. The features are in *superposition*: their directions cannot all be orthogonal.

# %%
world = mi.worlds.superposition(n_features=64, d_in=32, density=0.05, seed=SEED)
sample = world.sample(10_000, torch.Generator().manual_seed(SEED))
pd.Series(
    {
        "true features": len(world.directions),
        "dimensions": world.directions.shape[1],
        "features present on a token": (sample.codes > 0).sum(1).float().mean().item(),
        "largest cosine between two features": (world.directions @ world.directions.T)
        .fill_diagonal_(0)
        .max()
        .item(),
    },
    name="the world",
).to_frame()

# %% [markdown]
# An SAE writes each activation as a sum of few rows of a dictionary. The *encoder* decides which rows and how much,
#
# $$f = \mathrm{topk}\big((x - b_{dec})\, W_{enc} + b_{enc}\big), \qquad \hat x = f\, W_{dec} + b_{dec},$$
#
# and training makes $\hat x$ close to $x$. BatchTopK keeps the largest activations of the whole *batch*, so a token
# that needs more latents may have more. If all goes well, the rows of $W_{dec}$ are the directions of the world.

# %%
guess = mi.exercises.predict(
    "With one latent per true feature, how many features will the dictionary find?",
    ["fewer than half", "more than half, not all", "all of them"],
)

# %%
dictionary = mi.worlds.train_on(world, d_sae=64, k=3.2, seed=SEED)
found = mi.worlds.recovery(world.directions, dictionary.W_dec)
mi.plots.recovery_matrix(
    found.cosines, "Every true feature against every row of the dictionary"
)

# %%
answer = (
    "fewer than half"
    if found.share < 0.5
    else "all of them"
    if found.share == 1
    else "more than half, not all"
)
guess.reveal(answer)

# %% [markdown]
# A dark diagonal means a latent of its own for each feature. A number needs a comparison, though: random rows also have
# *some* cosine to the truth. We count a feature as found above the usual cosine of `0.9`, over three worlds, for the
# trained rows and for as many random ones.

# %%
rows = []
for seed in range(3):
    truth = mi.worlds.superposition(seed=seed)
    learned = mi.worlds.train_on(truth, d_sae=64, k=3.2, seed=seed)
    control = mi.worlds.random_dictionary(64, 32, seed)
    rows.append(
        [
            mi.worlds.recovery(truth.directions, W_dec).best.numpy() > 0.9
            for W_dec in (learned.W_dec, control)
        ]
    )
trained_found, random_found = np.concatenate(rows, axis=1).astype(float)
found_by_seed = {
    "trained": np.split(trained_found, 3),
    "random rows": np.split(random_found, 3),
}
pd.DataFrame(found_by_seed, index=["seed 0", "seed 1", "seed 2"]).map(np.mean)

# %%
claims.add(
    "A trained dictionary finds the planted features, random rows do not",
    value=trained_found.mean(),
    control=random_found.mean(),
    interval=mi.metrics.bootstrap_interval(trained_found - random_found),
    margin=0.5,
    kind="planted",
)

# %% [markdown]
# ## 2. Make it fail
#
# Real features are related, and then a sparse dictionary has reasons to lie.
#
# - **Splitting.** With latents to spare, a feature gets several rows, one for each company it keeps.
# - **Absorption.** If a child feature implies its parent (*Paris* implies *city*), one latent can carry both, and the
#   parent's own latent falls silent there: it looks like a *city* latent with inexplicable gaps.
# - **Hedging.** A dictionary too narrow for features that fire together puts them into one row.
#
# Each is measured against a world that has the same directions but not the relation.

# %%
guess = mi.exercises.predict(
    "Which change makes a parent's latent fall silent beside its children?",
    ["the hierarchy", "the narrow dictionary", "neither"],
)

# %%
independent = mi.worlds.superposition(density=0.1, seed=SEED)
nested = mi.worlds.superposition(density=0.1, n_children=2, seed=SEED)
correlated = mi.worlds.superposition(density=0.1, correlation=0.8, seed=SEED)
related = {
    "as wide as the world": (nested, 64, 4.0),
    "wide and sparse": (nested, 128, 2.0),
    "narrow": (correlated, 24, 5.0),
}
unrelated = {name: (independent, d_sae, k) for name, (_, d_sae, k) in related.items()}


# %%
def measure(world, d_sae, k, seed):
    dictionary = mi.worlds.train_on(world, d_sae, k, seed=seed)
    sample = world.sample(10_000, torch.Generator().manual_seed(100 + seed))
    # who is whose parent, we always take from the nested world: elsewhere that is the control
    return mi.worlds.failures(nested, sample, dictionary.W_dec, dictionary.encode(sample.x))


def measure_all(settings):
    runs = {
        name: [measure(*setting, seed) for seed in range(3)]
        for name, setting in settings.items()
    }
    return pd.concat({name: pd.DataFrame(values) for name, values in runs.items()})


with_relation, without = measure_all(related), measure_all(unrelated)

# %%
means = {"hierarchy or correlation": with_relation, "no relation": without}
means = pd.concat(
    {name: runs.groupby(level=0, sort=False).mean() for name, runs in means.items()}
)
means.index = [f"{setting}: {relation}" for relation, setting in means.index]
is_control = means.index.str.endswith("no relation")
mi.plots.failure_grid(means, "Three ways to fail, and what causes each", grey=is_control)

# %%
silence = {
    "the hierarchy": with_relation.absorption["as wide as the world"].mean(),
    "the narrow dictionary": without.absorption["narrow"].mean(),
    "neither": 0.05,
}
guess.reveal(max(silence, key=silence.get))

# %%
statements = {
    "Splitting: given rows to spare, a parent with children gets several": "wide and sparse",
    "Absorption: a parent's latent falls silent beside its children": "as wide as the world",
    "Hedging: a narrow dictionary merges features that fire together": "narrow",
}
for text, setting in statements.items():
    kind = text.split(":")[0].lower()
    runs, controls = with_relation[kind][setting], without[kind][setting]
    interval = mi.metrics.bootstrap_interval(runs - controls)
    value, control = runs.mean(), controls.mean()
    claims.add(text, value=value, control=control, interval=interval, kind="planted")
claims.table()

# %% [markdown]
# None of these dictionaries is *badly trained*. Each is the cheapest description of its world, and the cheapest
# description is not the true one. On a real model we shall not know the relations, so keep the three in mind.
#
# **Your turn.** Find a width and a number of active latents at which the hierarchy is neither split nor absorbed. Is
# there one? (The sliders do nothing until the button is pressed; each run takes a few seconds.)


# %%
def try_it(d_sae, k, correlation, n_children):
    chosen = mi.worlds.superposition(
        density=0.1, correlation=correlation, n_children=n_children, seed=SEED
    )
    dictionary = mi.worlds.train_on(chosen, d_sae, k, seed=SEED)
    found = mi.worlds.recovery(chosen.directions, dictionary.W_dec)
    return mi.plots.recovery_matrix(found.cosines, f"found at cosine > 0.9: {found.share:.0%}")


interact_manual(
    try_it,
    d_sae=(8, 192, 8),
    k=(1.0, 10.0, 0.5),
    correlation=(0.0, 0.9, 0.1),
    n_children=(0, 3),
)
# %% [markdown]
# ## 3. A real model
#
# SmolLM2-135M-Instruct, from 4-bit weights computed in float32. Text comes from the bundled corpus; documents that we
# judge on are set aside before anything is tokenised.

# %%
model = mi.models.load_model()
split = mi.corpus.split_held_out(mi.corpus.load_corpus())
training_text = mi.corpus.contexts(
    mi.corpus.sample(split.train, N_TOKENS, SEED), model.tokenizer
).shuffled(SEED)
held_out_text = mi.corpus.contexts(
    mi.corpus.sample(split.held_out, N_HELD_OUT, SEED), model.tokenizer
).shuffled(SEED)
print(model.tokenizer.decode(training_text.tokens[0, 1:60]))

# %% [markdown]
# The dictionary reads the residual stream. We run the model once over the text, no deeper than the layer we want, and
# keep what flows there, in a cache: the next run finds it. The store leaves out the first position and the separators
# between documents, which the model uses as resting places for attention, and any token whose norm is far from all
# others. They would otherwise own a good part of the error. Rows to train on are computed with rounded products,
# which is faster where the processor can; rows to judge on are not.

# %%
hook_name = mi.hooks.hook_name("resid_post", LAYER)
store = mi.activations.harvest(
    model, training_text.tokens, [hook_name], products=torch.bfloat16
)
held_out = mi.activations.harvest(model, held_out_text.tokens, [hook_name])

# %% [markdown]
# ## 4. Train
#
# Every step costs little more than the encoder's matrix product: after BatchTopK has chosen, all the rest runs on the
# few activations that survived. Watch three things. FVU, the fraction of variance unexplained, should fall. L0 is fixed
# on average by design. And latents that never fire are dead weight; an auxiliary loss sends them after the residual.

# %%
guess = mi.exercises.predict(
    "What share of the activations' variance will the dictionary explain on held-out text?",
    ["less than half", "half to three quarters", "more than three quarters"],
)

# %%
sae = mi.sae.build("batchtopk", model.cfg.d_model, D_SAE, K, seed=SEED)
mi.sae.initialise_from_data(sae, next(store.batches(hook_name, BATCH_SIZE, seed=SEED)), SEED)
figure = mi.plots.Growing(lambda curves: mi.plots.training_curves(curves, K))
batches = store.batches(hook_name, BATCH_SIZE, seed=SEED, epochs=None)
curves = mi.training.train(sae, batches, N_STEPS, lr=LR, on_log=figure)

# %% [markdown]
# While it trains, a batch decides together which activations survive. For use we fix that choice as a threshold, and
# fold the mean and the scale of the activations back in: from here on the dictionary reads the model's own stream, and
# a latent's activation on a token depends on nothing but that token.

# %%
statistics = store.statistics(hook_name)
dictionary = mi.training.to_inference(sae, statistics.mean, statistics.scale)
rows = torch.arange(held_out.n_rows)
x, origin = held_out.rows(hook_name, rows), held_out.origin(rows)
alone, together = dictionary.encode(x[:1]), dictionary.encode(x[:50])[:1]
assert torch.allclose(alone, together, atol=1e-3)

# %% [markdown]
# ## 5. How good is it?
#
# All that follows is measured on held-out documents. First the reconstruction, source by source: a mean over a corpus
# can hide a kind of text that the dictionary does not know.

# %%
report = mi.evaluation.reconstruction(dictionary, x, origin.context)
source = pd.Series(
    [held_out_text.sources[context] for context in origin.context.unique()], name="source"
)
by_source = (
    pd.DataFrame({"error": report.errors, "variance": report.deviations}).groupby(source).sum()
)
by_source = (by_source.error / by_source.variance).sort_values()
mi.plots.ranked_bars(
    by_source, "FVU on held-out text, by source", "fraction of variance unexplained (FVU)"
)

# %%
answers = ["less than half", "half to three quarters", "more than three quarters"]
guess.reveal(answers[np.searchsorted([0.5, 0.75], 1 - report.fvu)])

# %%
mi.plots.l0_histogram({"trained": report.l0_per_token}, K)

# %%
mi.plots.density_histogram({"trained": report.density}, held_out.n_rows)

# %% [markdown]
# The mean of L0 is close to what we asked for, as it must be; the spread is what BatchTopK allows. The second picture
# is the one to check on any dictionary you are given: latents at the left edge never fire, those beyond the dotted
# line fire on more than a tenth of all tokens, and neither kind explains anything in particular.
#
# **Your turn: the metric.** Fill in the fraction of variance unexplained, over a whole set of tokens.


# %%
def my_fvu(x, x_hat):
    """Squared error over squared distance to the mean."""
    ...


my_fvu = mi.exercises.attempt(my_fvu, reference=mi.metrics.fvu)
mi.exercises.check(
    my_fvu, [(x[:100], dictionary(x[:100])), (3 * x[:100], 3 * dictionary(x[:100]))]
)

# %%
mi.exercises.hint(
    "The numerator is a sum over tokens and dimensions of the squared difference.",
    "The denominator does not know the reconstruction: it compares x with its mean over tokens, x.mean(0).",
)

# %%
mi.exercises.reveal(mi.metrics.fvu)

# %% [markdown]
# ## 6. Compared with what?
#
# A dictionary of many random directions also reconstructs, because an encoder can be trained to use them. Four
# opponents get the same tokens, steps and number of active latents as a smaller trained twin:
#
# - **frozen decoder**: random rows that never move; only the encoder learns;
# - **principal components**: as many fixed directions as the dictionary has active latents;
# - **random model**: the same architecture with fresh weights, read by a dictionary of its own;
# - **second seed**: the same again, from another start.
#
# The big dictionary of section 4 stands above them for comparison; its budget is larger.

# %%
guess = mi.exercises.predict(
    "How much of the trained twin's advantage over principal components will a frozen random decoder reach?",
    ["none of it", "some of it", "most of it"],
)


# %%
def train_arm(store, seed, frozen=()):
    sae = mi.sae.build("batchtopk", model.cfg.d_model, D_SAE_ARMS, K, seed=seed)
    if not frozen:
        mi.sae.initialise_from_data(sae, next(store.batches(hook_name, BATCH_SIZE, seed)), seed)
    batches = store.batches(hook_name, BATCH_SIZE, seed, epochs=None)
    mi.training.train(sae, batches, N_STEPS_ARMS, lr=LR, frozen=frozen)
    statistics = store.statistics(hook_name)
    return mi.training.to_inference(sae, statistics.mean, statistics.scale)


arms = {"trained": train_arm(store, SEED), "second seed": train_arm(store, SEED + 1)}
arms["frozen decoder"] = train_arm(store, SEED, frozen=["W_dec"])
training_rows = next(store.batches(hook_name, min(store.n_rows, 20_000), SEED, scaled=False))
arms["principal components"] = mi.evaluation.fit_pca(training_rows, K)

# %%
random_model = mi.models.random_twin(model, SEED)
few = training_text[: N_TOKENS_RANDOM_MODEL // training_text.tokens.shape[1]]
random_store = mi.activations.harvest(
    random_model, few.tokens, [hook_name], products=torch.bfloat16
)
random_held_out = mi.activations.harvest(random_model, held_out_text.tokens, [hook_name])
random_dictionary = train_arm(random_store, SEED)
random_rows = torch.arange(random_held_out.n_rows)

# %%
reports = {"big dictionary": report}
for name, arm in arms.items():
    reports[name] = mi.evaluation.reconstruction(arm, x, origin.context)
reports["random model"] = mi.evaluation.reconstruction(
    random_dictionary,
    random_held_out.rows(hook_name, random_rows),
    random_held_out.origin(random_rows).context,
)
colours = ["truth", "trained", "second_seed", "random_decoder", "pca", "random_model"]
roles = dict(zip(reports, colours, strict=True))
table = mi.evaluation.comparison(reports)
mi.plots.dots_with_intervals(
    table, roles, "Reconstruction of held-out text", "FVU (lower is better)"
)

# %%
table

# %%
gained = reports["principal components"].fvu - reports["frozen decoder"].fvu
gained /= reports["principal components"].fvu - reports["trained"].fvu
guess.reveal("none of it" if gained <= 0 else "some of it" if gained < 0.5 else "most of it")

# %%
for opponent in ("frozen decoder", "principal components"):
    claims.add(
        f"The trained dictionary leaves less variance unexplained than the {opponent}",
        value=reports["trained"].fvu,
        control=reports[opponent].fvu,
        interval=mi.evaluation.fvu_difference(reports["trained"], reports[opponent]),
        direction="less",
        margin=0.02,
    )

# %% [markdown]
# A look at the random model is a warning: its stream is nothing but what the embedding and chance made of the tokens,
# and a dictionary may still reconstruct it. Read the column L0 before you compare, though: a threshold that was fitted
# to little text of a random stream need not keep as few latents active on other text. **Good reconstruction says that activations are compressible, not that
# their parts mean something.**
#
# ## 7. Does the model agree?
#
# Variance treats all directions alike; the model does not. So we put the reconstruction in place of the activation and
# let the model go on. The loss should stay where it was, and we measure it against what it costs to put zeros, or the
# mean, in that place. Zeros are the easier opponent.

# %%
spliced = held_out_text[:N_SPLICED]
keep = torch.zeros(spliced.tokens.shape, dtype=torch.bool)
inside = origin.context < N_SPLICED
keep[origin.context[inside].long(), origin.position[inside].long()] = True
judged = {"big dictionary": dictionary, **arms}
replacements = {
    name: lambda x, arm=arm: arm.decode(arm.encode(x)) for name, arm in judged.items()
}
replacements |= {"zero": torch.zeros_like, "mean": lambda x: statistics.mean.expand_as(x)}
losses = mi.evaluation.spliced_losses(
    model, spliced.tokens.long(), hook_name, replacements, keep
)
losses.mean().round(3).to_frame("loss in nats")

# %%
recovered = mi.evaluation.ce_recovered_table(losses, list(judged), ablations=["mean", "zero"])
mi.plots.dots_with_intervals(
    recovered, roles, "Loss recovered against mean ablation", "share of the loss recovered"
)

# %%
recovered

# %%
difference = (losses["frozen decoder"] - losses["trained"]).to_numpy()
claims.add(
    "Putting the trained dictionary in place costs the model less than the frozen decoder does",
    value=losses["trained"].mean(),
    control=losses["frozen decoder"].mean(),
    interval=mi.metrics.bootstrap_interval(-difference),
    direction="less",
    unit="nats",
)

# %% [markdown]
# ## 8. Would another seed have found the same?
#
# For each latent we look for its nearest row in the dictionary of the second seed. That cosine is never zero, not even
# between random sets, so it stands beside two controls: random rows, and the rows that both dictionaries started from.

# %%
W_dec = arms["trained"].W_dec
starts = [mi.sae.build("batchtopk", model.cfg.d_model, D_SAE_ARMS, K) for _ in range(2)]
for seed, start in enumerate(starts):
    mi.sae.initialise_from_data(
        start, next(store.batches(hook_name, BATCH_SIZE, SEED + seed)), SEED + seed
    )
cosines = {
    "second seed": mi.metrics.max_cosine(W_dec, arms["second seed"].W_dec),
    "before training": mi.metrics.max_cosine(
        starts[0].W_dec.detach(), starts[1].W_dec.detach()
    ),
    "random rows": mi.metrics.max_cosine(
        W_dec, mi.worlds.random_dictionary(*W_dec.shape, seed=SEED)
    ),
}
matching = {"second seed": "trained", "before training": "baseline", "random rows": "control"}
mi.plots.cosine_curves(cosines, "How much of a dictionary a second seed finds", matching)

# %%
agrees, by_chance = (
    np.array(cosines[name] > 0.7, dtype=float) for name in ("second seed", "before training")
)
claims.add(
    "A second seed finds more of the same latents than two untrained starts share",
    value=agrees.mean(),
    control=by_chance.mean(),
    interval=mi.metrics.bootstrap_interval(agrees - by_chance),
    margin=0.05,
)

# %% [markdown]
# ## 9. What did it learn?
#
# The contexts in which a latent fires most look convincing for almost any latent. We therefore show, beside the top,
# contexts from the *middle* of its range, and chose the latents by a rule instead of by eye: their density.

# %%
alive = np.flatnonzero((report.density > 5 / held_out.n_rows) & (report.density < 0.01))
chosen = (
    torch.from_numpy(alive[np.linspace(0, len(alive) - 1, 4).astype(int)])
    if len(alive) >= 4
    else torch.arange(4)
)
acts = torch.cat([dictionary.encode(part)[:, chosen] for part in x.split(2048)])
examples = mi.evaluation.example_contexts(
    acts, origin.context, origin.position, held_out_text.tokens
)
mi.plots.contexts_html(
    examples, model.tokenizer, [f"latent {latent}" for latent in chosen.tolist()]
)

# %% [markdown]
# Read the middle contexts before you name a latent. If only the top ones fit, the name describes the top, and most of
# the latent's firing remains unexplained.
#
# ## What this does not show
#
# - That latents are *features* of the model. Seeds agree on a part of them, and the planted world showed three ways in
#   which a well-trained dictionary misreports related features.
# - That a latent does what its contexts suggest. Nothing here intervened on one.
# - That a wider or longer-trained dictionary would look the same. This one saw a small sample of text.
#
# We would change our mind about "it learned something" if the frozen decoder, given the same budget, reconstructed as
# well, cost the model as little, and agreed with itself across seeds as much.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - On a world of known features a dictionary finds most of them, and relations between features make it split, absorb
#   and hedge.
# - On a real model, reconstruction, loss and agreement between seeds each need their control beside them.
# - Next: `02_inspect_latents` asks what one latent means, and how we would find out that it does not.
#
# **More exercises.** (easy) Move `K` in the parameters cell to half and twice its value and compare the claims.
# (medium) Replace `"batchtopk"` by `"topk"` in section 4: what changes in the histogram of L0, and why? (hard) Freeze
# the *encoder* instead of the decoder; which half of the dictionary does the work?
#
# ## Sources
#
# Bussmann, Leask, Nanda (2024), *BatchTopK Sparse Autoencoders*. Gao et al. (2024), *Scaling and evaluating sparse
# autoencoders*. Chanin et al. (2024), *A is for Absorption*. Chanin et al. (2025), *Feature Hedging*. Korznikov et al.
# (2026), *Sanity checks for sparse autoencoders*. Heap et al. (2025), *Sparse autoencoders can interpret randomly
# initialized transformers*. Paulo and Belrose (2025), *Sparse autoencoders trained on the same data learn different
# features*. Sun et al. (2024), *Massive activations in large language models*.
