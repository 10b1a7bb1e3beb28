# %% [markdown]
# # Which directions steer, do they add up, and what do they break?
#
# *Six ways to find a direction, one dose axis, and a prompt as the baseline to beat.*
#
# Four minutes on two CPU cores, no network. You should know what a dictionary's row is (`02_inspect_latents`).
#
# After this notebook you will be able to
# - find a direction for a concept in six ways, and say what each of them looked at;
# - read a dose curve with its costs, and choose a strength without fooling yourself;
# - test whether effects add, and name the places where they cannot;
# - write a direction in a dictionary's words, and know why an encoder gets it wrong.
#
# Background: SAE rows are natural vectors to steer with and to combine. Published comparisons (AxBench) found that
# plain difference-of-means directions do better, and that prompting does better still. There a language model was the
# judge. Here nobody judges: we read log-odds of words, and what the unsteered model would pay for the text.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
DICTIONARY = "resid12_4608" if FAST else "resid12_18432"
LAYER, LATER = 12, 16  # where we steer, and where a second vector may go
LIVE = "sentiment"  # the concept that is measured here and now; all others are read from the record
PAIRED = ["sentiment", "french", "tense"]  # concepts that are combined here and now
N_WORLDS = 2 if FAST else 4  # planted worlds
N_PAIRS = 80  # contrast pairs that a direction is made of, as in the record

# %%
import numpy as np
import pandas as pd
import torch

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("05_steering")

# %% [markdown]
# ## 1. Concepts that we planted ourselves
#
# A tiny language model, real in every part, whose residual stream carries four concepts along known directions. Words
# also carry a *nuisance*, three times as strong and without meaning. Of the concepts `gate` and `gated`, a neuron
# writes the product against `gated`: steering towards both must not do what steering towards each does.
#
# Every way of finding a direction gets the same contrast pairs. We know which direction is the right one.

# %%
guess = mi.exercises.predict(
    "Which of these will miss the planted direction altogether?",
    ["the difference of means", "the weight of a probe", "the first principal component"],
)


# %%
def cosines(seed):
    world = mi.language_worlds.planted_concepts(seed)
    bench = mi.dosing.Bench(world.model, world.hook_name, world.neutral)
    for name, concept in world.concepts.items():
        found = mi.directions.workshop(
            world.model, concept, world.hook_name, world.dictionary, bench.unit / 10
        )
        for way, vector in found.vectors.items():
            cosine = float(vector @ world.directions[name])
            yield {
                "seed": seed,
                "concept": name,
                "way": way.rstrip(" 012"),
                "cosine": abs(cosine),
            }


planted = pd.DataFrame([row for seed in range(SEED, SEED + N_WORLDS) for row in cosines(seed)])
by_way = planted.pivot_table(index="way", columns="concept", values="cosine", sort=False)
by_way.style.format(precision=2)

# %%
missed = by_way.drop(index="random").mean(axis=1).idxmin()
guess.reveal(
    {
        "DiffMean": "the difference of means",
        "probe weight": "the weight of a probe",
        "PCA": "the first principal component",
    }[missed]
)

# %% [markdown]
# The labels give a principal component nothing but its sign, and the largest component is the nuisance. The probe looks
# for what *separates*, not for what differs: it leans away from the direction to cancel noise. That is good for reading
# and bad for writing.

# %%
worlds = planted.groupby(["seed", "way"]).cosine.mean().unstack()
claims.add(
    "The difference of means finds planted directions; random directions do not",
    value=worlds["DiffMean"].mean(),
    control=worlds["random"].mean(),
    interval=mi.metrics.mean_interval(worlds["DiffMean"] - worlds["random"]),
    margin=0.5,
    kind="planted",
)

# %%
claims.add(
    "Where a nuisance is louder than the concept, the first principal component is no better than a random direction",
    value=worlds["PCA"].mean(),
    control=worlds["random"].mean(),
    interval=mi.metrics.mean_interval(worlds["PCA"] - worlds["random"]),
    direction="less",
    kind="planted",
)

# %% [markdown]
# Now combine them. On each concept's own prompts: what both vectors do together, minus the sum of what each does alone.


# %%
def planted_sums(seed):
    world = mi.language_worlds.planted_concepts(seed)
    amount = 0.15 * mi.dosing.Bench(world.model, world.hook_name, world.neutral).unit
    additions = {
        name: mi.steering.Addition(world.hook_name, amount * vector)
        for name, vector in world.directions.items()
    }
    gauges = {name: mi.steering.Gauge(world.model, c) for name, c in world.concepts.items()}
    return mi.dosing.additivity(gauges, additions).assign(seed=seed)


sums = pd.concat([planted_sums(seed) for seed in range(SEED, SEED + N_WORLDS)])
sums["gap"] = sums.observed - sums.predicted
sums["pair"] = np.where(
    (sums.concept == "gated") & (sums.other == "gate"), "gated by the other", "not"
)
sums.groupby(["seed", "pair"]).gap.mean().unstack().style.format(precision=2)

# %%
per_world = sums.groupby(["seed", "pair"]).gap.mean().unstack()
claims.add(
    "Planted effects add up, except where one concept gates the other",
    value=per_world["gated by the other"].mean(),
    control=per_world["not"].mean(),
    interval=mi.metrics.mean_interval(per_world["gated by the other"] - per_world["not"]),
    direction="less",
    margin=1.0,
    kind="planted",
    unit="nats",
)

# %% [markdown]
# ## 2. One direction, one dose axis
#
# A dose of 1 is the typical length of the residual vector at the layer: the vector that we add is then as long as what
# was there. The *effect* is the gain in log-odds of the concept's words against their opposites at the end of a prompt.
# No word that counts stands in the contrast pairs of this concept.

# %%
model = mi.models.load_model()
dictionary = mi.sae.load(DICTIONARY)
hook_name = mi.hooks.hook_name("resid_post", LAYER)
neutral = mi.corpus.held_out_contexts(model.tokenizer, 4, n_ctx=64).tokens.long()
bench = mi.dosing.Bench(model, hook_name, neutral)
concepts = mi.concepts.load()
concept = concepts[LIVE]
gauge = mi.steering.Gauge(model, concept)
pd.DataFrame(
    [pair[:2] for pair in concept.pairs[:3]], columns=[concept.positive, concept.negative]
)

# %%
workshop = mi.directions.workshop(
    model, concept, hook_name, dictionary, bench.unit / 2, n_pairs=N_PAIRS
)
vectors = workshop.vectors
stacked = pd.DataFrame(torch.stack(list(vectors.values())).T.numpy(), columns=list(vectors))
(stacked.T @ stacked).style.format(precision=2)

# %% [markdown]
# Cosines between the candidates. They were made from the same texts, and some of them hardly agree.

# %%
prompts = list(concept.prompts[:3])
shown = {}
for dose in (0.0, 0.2, 0.6):
    added = mi.steering.Addition(hook_name, dose * bench.unit * vectors["DiffMean"])
    written = mi.steering.generate(model, prompts, [added], temperature=0.0, n_tokens=12)
    shown[f"dose {dose:g}"] = written.texts
pd.DataFrame(shown, index=prompts).style.set_properties(**{"text-align": "left"})

# %% [markdown]
# ## 3. Dose and response
#
# Effect, cost, and what happens where nothing should. The grey band holds three random directions: any vector that is
# long enough moves log-odds *somewhere*.

# %%
guess = mi.exercises.predict(
    "As the dose of the difference of means rises to the length of the state itself, the effect ...",
    ["rises all the way", "rises and falls", "stays where a small dose takes it"],
)

# %%
chosen = ["DiffMean", "SAE row, best reader"]
curves = pd.concat(
    {name: bench.dose_curve(gauge, vectors[name]) for name in chosen}, names=["direction"]
).reset_index("direction")
recorded = mi.dosing.measured()
randoms = recorded[(recorded.concept == LIVE) & recorded.direction.str.startswith("random")]
mi.plots.dose_panels(
    curves,
    randoms,
    {"DiffMean": "trained", "SAE row, best reader": "patched"},
    f"Steering towards {concept.positive}: what it does and what it costs",
)

# %%
mean_effect = curves[curves.direction == "DiffMean"].groupby("dose").effect.mean()
peak = mean_effect.idxmax()
guess.reveal(
    "rises all the way"
    if peak == mean_effect.index[-1] and mean_effect.iloc[-1] > 1.2 * mean_effect.iloc[-2]
    else "rises and falls"
    if mean_effect.iloc[-1] < 0.8 * mean_effect.max()
    else "stays where a small dose takes it"
)

# %% [markdown]
# The table of all concepts took most of an hour, so it is read from `data/concepts/`. This cell checks the record
# against what was measured just now.

# %%
both = curves.merge(recorded[recorded.concept == LIVE], on=["direction", "dose", "prompt"])
both = both[both.direction == "DiffMean"]
claims.add(
    "The recorded effects of the difference of means are those that this machine measures",
    value=(both.effect_x - both.effect_y).abs().max(),
    control=0.0,
    interval=None,
    direction="within",
    margin=0.05,
    kind="planted",
    unit="nats",
)

# %% [markdown]
# ## 4. Every concept, every direction, at the same cost
#
# For each direction the first half of the prompts chooses the dose: the largest effect that costs at most one nat a
# token more than the model's own text, and no more than a tenth more repeats. The second half reports.

# %%
guess = mi.exercises.predict(
    "Over all concepts, at the same cost, which has the largest effect?",
    [
        "difference of means",
        "the best SAE row",
        "a probe's weight",
        "an instruction in the prompt",
    ],
)

# %%
at_budget = mi.dosing.table(recorded)
effects = at_budget.effect.unstack()
effects["random"] = effects[[f"random {n}" for n in range(3)]].mean(axis=1)
order = ["prompt", "DiffMean", "CAA", "probe weight", "PCA", "SAE row, best reader"]
order += ["SAE row, best writer", "DiffMean as 8 SAE rows", "random"]
halves = ((at_budget.high - at_budget.low) / 2).unstack()
halves["random"] = effects[[f"random {n}" for n in range(3)]].std(axis=1)
mi.plots.signed_grid(
    effects[order],
    halves[order],
    "Effect within the budget, on prompts that did not choose the dose",
    "nats",
)

# %%
options = {
    "DiffMean": "difference of means",
    "SAE row, best reader": "the best SAE row",
    "probe weight": "a probe's weight",
    "prompt": "an instruction in the prompt",
}
guess.reveal(options[effects[list(options)].mean().idxmax()])

# %%
gain = effects["DiffMean"] - effects["random"]
claims.add(
    "The difference of means steers better than random directions, over concepts",
    value=effects["DiffMean"].mean(),
    control=effects["random"].mean(),
    interval=mi.metrics.mean_interval(gain),
    unit="nats",
)

# %%
gain = effects["SAE row, best reader"] - effects["DiffMean"]
claims.add(
    "The row of the SAE latent that reads a concept best steers better than the difference of means",
    value=effects["SAE row, best reader"].mean(),
    control=effects["DiffMean"].mean(),
    interval=mi.metrics.mean_interval(gain),
    unit="nats",
)

# %%
gain = effects["DiffMean as 8 SAE rows"] - effects["SAE row, best reader"]
claims.add(
    "Eight SAE rows, combined to rebuild the difference of means, steer better than the best single row",
    value=effects["DiffMean as 8 SAE rows"].mean(),
    control=effects["SAE row, best reader"].mean(),
    interval=mi.metrics.mean_interval(gain),
    unit="nats",
)

# %%
gain = effects["SAE row, best writer"] - effects["SAE row, best reader"]
claims.add(
    "Among the latents that read a concept, the one chosen by its output steers better",
    value=effects["SAE row, best writer"].mean(),
    control=effects["SAE row, best reader"].mean(),
    interval=mi.metrics.mean_interval(gain),
    unit="nats",
)

# %%
gain = effects["prompt"] - effects["DiffMean"]
claims.add(
    "An instruction in the prompt has more effect than the difference of means, at the same budget",
    value=effects["prompt"].mean(),
    control=effects["DiffMean"].mean(),
    interval=mi.metrics.mean_interval(gain),
    unit="nats",
)

# %% [markdown]
# Which concepts can be steered at all? We call one steerable if the interval of the difference of means, or of CAA,
# lies above the strongest of three random directions. And which budget one chose should not decide who wins:

# %%
strongest = effects[[f"random {n}" for n in range(3)]].max(axis=1)
lows = at_budget.low.unstack()[["DiffMean", "CAA"]].max(axis=1)
steerable = pd.DataFrame(
    {
        "lower end of DiffMean or CAA": lows,
        "strongest random": strongest,
        "steerable": lows > strongest,
    }
)
steerable.loc[list(concepts)].style.format(precision=2)

# %%
by_budget = {}
for cost in (0.5, 1.0, 2.0):
    table = mi.dosing.table(recorded, mi.dosing.Budget(cost=cost)).effect.unstack()
    table["random"] = table[[f"random {n}" for n in range(3)]].mean(axis=1)
    by_budget[f"budget {cost:g} nats"] = table[order].mean()
pd.DataFrame(by_budget).style.format(precision=2)

# %% [markdown]
# A mean hides inputs that go the wrong way. Each dot is a prompt, at the dose that the other half chose.

# %%
wrong = at_budget.wrong_way.unstack()
wrong["random"] = wrong[[f"random {n}" for n in range(3)]].mean(axis=1)
wrong.loc[steerable.index[steerable.steerable], order].style.format("{:.0%}")


# %%
def reported(name):
    one = recorded[(recorded.concept == LIVE) & (recorded.direction == name)]
    second_half = one.prompt >= one.prompt.nunique() // 2
    return one[second_half & (one.dose == at_budget.loc[(LIVE, name), "dose"])].effect


mi.plots.dots_per_input(
    {name: reported(name) for name in [*order[:-1], "random 0"]},
    f"Each prompt, steered towards {concept.positive}",
    "effect, nats",
)

# %% [markdown]
# ## 5. Latents that read, latents that write
#
# The latent that best *recognises* a concept need not *produce* it. Output scores ask what a row promotes when it is
# added to a neutral prompt. Do they say which of the twenty best readers steers?

# %%
readers = mi.directions.candidates(
    model, concept, hook_name, dictionary, bench.unit / 2, N_PAIRS
)
readers["effect"] = [
    float(gauge([mi.steering.Addition(hook_name, 0.2 * bench.unit * row / row.norm())]).mean())
    for row in dictionary.W_dec[readers.latent.tolist()]
]
readers.style.format(precision=3)


# %%
def rank_correlation(score, effect):
    return float(pd.Series(score).corr(pd.Series(effect), method="spearman"))


pairs = {name: (readers[name].to_numpy(), readers.effect.to_numpy()) for name in readers}
interval = mi.metrics.bootstrap_interval(
    *pairs["output_score"], statistic=rank_correlation, seed=SEED
)
claims.add(
    "Among the best readers of the concept, a higher output score goes with a larger effect",
    value=rank_correlation(*pairs["output_score"]),
    control=0.0,
    interval=interval,
)

# %% [markdown]
# Adding a row is one way to use a latent. Clamping sets its activation wherever it is and keeps the rest of the state,
# with what the dictionary cannot express. Writing the dictionary's *reconstruction* back instead changes far more.

# %%
latent = int(readers.latent[0])
row = dictionary.W_dec[latent]
value = float(0.2 * bench.unit / row.norm())
clamp = mi.latents.clamp(dictionary, latent, value)


def through_dictionary(activation):
    acts = dictionary.encode(activation)
    acts[..., latent] = value
    return dictionary.decode(acts)


edits = {"clamped, error kept": clamp, "clamped, error lost": through_dictionary}
with torch.no_grad():
    clean = model(neutral)[:, 1:]
    lost = {}
    for name, edit in edits.items():
        with mi.hooks.intervene(model, {hook_name: edit}):
            lost[name] = float(mi.metrics.kl_divergence(clean, model(neutral)[:, 1:]).mean())
lost["added"] = bench.off_target([mi.steering.Addition(hook_name, value * row)])[0]
pd.Series(lost, name="divergence on neutral text, nats a token").round(3).to_frame()

# %% [markdown]
# ## 6. Do effects add up?
#
# If concepts are independent directions, steering towards two of them should do the sum of what each does. We take the
# differences of means at a moderate dose, all pairs, and read both concepts' log-odds. The control puts a random
# direction of the same length in place of the second concept: it, too, disturbs.

# %%
guess = mi.exercises.predict(
    "Adding a second concept's vector, the first concept's own effect mostly ...",
    ["stays", "shrinks", "grows"],
)

# %%
every = mi.dosing.measured_pairs()
every["gap"] = every.observed - every.predicted
every["with"] = np.where(every.other.str.startswith("random"), "random direction", "concept")
summed = every[every.how == "sum"]
mi.plots.against_prediction(
    {
        "another concept": summed[summed["with"] == "concept"],
        "a random direction": summed[summed["with"] == "random direction"],
    },
    {"another concept": "trained", "a random direction": "control"},
    "Effect on a concept when something else is added too",
    "nats",
)

# %%
of_concepts = summed[summed["with"] == "concept"]
grid = of_concepts.pivot(index="concept", columns="other", values="gap")
halves = (of_concepts.high - of_concepts.low) / 2
halves = of_concepts.assign(half=halves).pivot(index="concept", columns="other", values="half")
mi.plots.signed_grid(
    grid,
    halves,
    "Observed minus predicted effect on the concept of the row, when the column's is added too",
    "nats",
)

# %%
by_concept = summed.assign(gap=summed.gap.abs()).pivot_table(
    index="concept", columns="with", values="gap"
)
claims.add(
    "Two concepts' effects fail to add by more than a concept's and a random direction's",
    value=by_concept["concept"].mean(),
    control=by_concept["random direction"].mean(),
    interval=mi.metrics.mean_interval(by_concept["concept"] - by_concept["random direction"]),
    unit="nats",
)

# %%
errors = of_concepts.assign(
    of_sum=of_concepts.gap.abs(), of_own=(of_concepts.observed - of_concepts.own).abs()
)
errors = errors.groupby("concept")[["of_sum", "of_own"]].mean()
claims.add(
    "The sum of both effects predicts what they do together better than the first alone",
    value=errors.of_sum.mean(),
    control=errors.of_own.mean(),
    interval=mi.metrics.mean_interval(errors.of_sum - errors.of_own),
    direction="less",
    unit="nats",
)

# %%
alone = of_concepts.groupby("concept")[["own", "gap"]].mean()
change = (alone.gap / alone.own).mean()
guess.reveal("stays" if abs(change) < 0.1 else "shrinks" if change < 0 else "grows")

# %% [markdown]
# That was the record of all pairs. Some of them again, here and now:

# %%
DOSE = 0.15


def mean_difference(name, place):
    texts = concepts[name].rows(n_pairs=N_PAIRS).texts
    states = mi.concepts.read(model, texts, [place], mean=True)[place]
    return mi.directions.diff_mean(states[0::2], states[1::2])


gauges = {
    name: mi.steering.Gauge(model, concepts[name], concepts[name].prompts[:12])
    for name in PAIRED
}
additions = {
    name: mi.steering.Addition(hook_name, DOSE * bench.unit * mean_difference(name, hook_name))
    for name in PAIRED
}

# %%
again = mi.dosing.additivity(gauges, additions).merge(summed, on=["concept", "other"])
claims.add(
    "The recorded sums are those that this machine measures",
    value=(again.observed_x - again.observed_y).abs().max(),
    control=0.0,
    interval=None,
    direction="within",
    margin=0.05,
    kind="planted",
    unit="nats",
)

# %% [markdown]
# Three ways to combine: the plain sum, the second vector without what it shares with the first, and the second vector
# at a later layer, found there. Published work found sums to fail and separate layers to be promising.

# %%
ways = every[every["with"] == "concept"].assign(size=every.gap.abs())
by_way = ways.groupby("how", sort=False)[["predicted", "observed", "size"]].mean()
by_way.rename(columns={"size": "mean size of the gap"}).style.format(precision=2)

# %%
sizes = ways.pivot_table(index="concept", columns="how", values="size")
claims.add(
    "Effects add up better when the second vector is added at a later layer",
    value=sizes["second at a later layer"].mean(),
    control=sizes["sum"].mean(),
    interval=mi.metrics.mean_interval(sizes["second at a later layer"] - sizes["sum"]),
    direction="less",
    unit="nats",
)

# %%
reached = ways.pivot_table(index="concept", columns="how", values="observed")
claims.add(
    "With the second vector at a later layer both have more effect together than as a plain sum",
    value=reached["second at a later layer"].mean(),
    control=reached["sum"].mean(),
    interval=mi.metrics.mean_interval(reached["second at a later layer"] - reached["sum"]),
    unit="nats",
)

# %% [markdown]
# ## 7. A direction in a dictionary's words
#
# Which latents make up a steering vector? It is tempting to put it through the encoder. But the encoder expects whole
# activations, and it cannot say "less of this latent than usual". A pursuit with signed weights can.

# %%
guess = mi.exercises.predict(
    "Eight rows, chosen and weighted by a signed pursuit, and added in place of the difference of means: how much of the "
    "effect remains?",
    ["almost nothing", "about half", "most of it"],
)

# %%
vector = vectors["DiffMean"]
rebuilt = mi.directions.rebuilt(vector, dictionary, 8, bench.unit)
noise_rows = mi.worlds.random_dictionary(*dictionary.W_dec.shape, seed=SEED)
control = mi.sparse_coding.omp(vector[None], noise_rows, 8, signed=True)
rebuilt["pursuit, signed, 8 random rows"] = control.reconstruct(noise_rows)[0]
whole = gauge([mi.steering.Addition(hook_name, 0.2 * bench.unit * vector)])
kept = {}
for name, version in rebuilt.items():
    length = version.norm().clamp(min=1e-6)
    effect = gauge([mi.steering.Addition(hook_name, 0.2 * bench.unit * version / length)])
    kept[name] = {"cosine": float(version @ vector / length), "effect": float(effect.mean())}
kept["the direction itself"] = {"cosine": 1.0, "effect": float(whole.mean())}
pd.DataFrame(kept).T.style.format(precision=2)

# %%
share = kept["pursuit, signed, 8 rows"]["effect"] / kept["the direction itself"]["effect"]
guess.reveal(
    "almost nothing" if share < 0.25 else "about half" if share < 0.75 else "most of it"
)


# %%
def effect_of(version):
    unit = version / version.norm().clamp(min=1e-6)
    return gauge([mi.steering.Addition(hook_name, 0.2 * bench.unit * unit)]).numpy()


pursued, encoded = (
    effect_of(rebuilt[name]) for name in ("pursuit, signed, 8 rows", "encoder, unit length")
)
claims.add(
    "A signed pursuit of eight rows keeps more of the direction's effect than its encoding does",
    value=pursued.mean(),
    control=encoded.mean(),
    interval=mi.metrics.bootstrap_interval(pursued - encoded, seed=SEED),
    unit="nats",
)

# %%
from_noise = effect_of(rebuilt["pursuit, signed, 8 random rows"])
claims.add(
    "Eight rows of the dictionary keep more of the effect than eight rows of a random one",
    value=pursued.mean(),
    control=from_noise.mean(),
    interval=mi.metrics.bootstrap_interval(pursued - from_noise, seed=SEED),
    unit="nats",
)

# %% [markdown]
# ## 8. A concept that is no direction
#
# Weekdays follow one another in a circle. A line would have to put Sunday as far from Monday as it can. First planted:
# points on a circle in many dimensions, and points without order. Then the model's states at the day's name.

# %%
generator = torch.Generator().manual_seed(SEED)
angles = torch.arange(7) * 2 * torch.pi / 7
ring = torch.stack([angles.cos(), angles.sin()], 1) @ torch.randn(2, 64, generator=generator)
unordered = [
    mi.circles.fit(torch.randn(7, 64, generator=generator)).neighbours for _ in range(200)
]
circle = mi.circles.fit(ring + 0.3 * torch.randn(7, 64, generator=generator))
claims.add(
    "A planted circle is found in order; points without order are not",
    value=circle.neighbours,
    control=np.mean(unordered),
    interval=tuple(circle.neighbours - np.quantile(unordered, [0.975, 0.025])),
    margin=0.1,
    kind="planted",
)

# %%
weekdays = mi.circles.Cycle(
    model,
    "If today is {x}, then tomorrow is",
    mi.concepts.load_cycle("weekdays"),
    hook_name,
)
days = mi.circles.fit(weekdays.states)
mi.plots.ring(
    days.points,
    mi.concepts.load_cycle("weekdays"),
    "The model's states at the names of the days, in their plane",
)

# %% [markdown]
# Is the circle used? Move the state of each day onto every other, within the plane, along a line, or as a whole, and ask
# which day the model then expects tomorrow.

# %%
plane = days.plane
basis = torch.linalg.qr(torch.randn(model.cfg.d_model, 2, generator=generator)).Q.T
moved = {
    "the whole state": weekdays.swap_gain(None),
    "the plane": weekdays.swap_gain(plane),
    "its better line": max((weekdays.swap_gain(line[None]) for line in plane), key=torch.mean),
    "a random plane": weekdays.swap_gain(basis),
}
by_day = pd.DataFrame({name: gain.mean(0).numpy() for name, gain in moved.items()})
by_day.index = pd.Index(mi.concepts.load_cycle("weekdays"), name="from")
by_day.loc["mean"] = by_day.mean()
by_day.style.format(precision=2)

# %%
days_only = by_day.drop(index="mean")
claims.add(
    "Moving a day within the plane changes tomorrow more than moving it along a line",
    value=days_only["the plane"].mean(),
    control=days_only["its better line"].mean(),
    interval=mi.metrics.mean_interval(days_only["the plane"] - days_only["its better line"]),
    unit="nats",
)

# %% [markdown]
# ## 9. The console
#
# Choose directions and doses, and read what the model writes, beside what it would have written. The bars show every
# concept's log-odds, wanted or not; the line in a bar is the sum of what each direction does alone.

# %%
later = mi.hooks.hook_name("resid_post", LATER)
units = {hook_name: bench.unit, later: mi.steering.typical_norm(model, later, neutral)}
noise = {"random": vectors["random 0"]}
here, there = (
    mi.steering_console.Place(
        place, unit, {name: mean_difference(name, place) for name in PAIRED} | noise
    )
    for place, unit in units.items()
)
watched = {name: mi.steering.Gauge(model, c, c.prompts[:1]) for name, c in concepts.items()}
mi.steering_console.steering_console(
    model, here, watched, there, start={"sentiment": 0.3, "tense": 0.2}
)

# %% [markdown]
# ## 10. Your turn
#
# **Typical norms** (easy). Doses are in units of the *median* length of the state, without the first position. Write
# the function that computes it from activations of shape `[context, pos, d_model]`.


# %%
def dose_unit(acts):
    """Median length of the vectors, the first position of each context left out."""
    ...


def reference(acts):
    return float(acts[:, 1:].norm(dim=-1).median())


with torch.no_grad():
    acts = mi.hooks.run_with_cache(model, neutral, [hook_name])[hook_name]
dose_unit = mi.exercises.attempt(dose_unit, reference=reference)
mi.exercises.check(dose_unit, [(acts,), (acts[:2],)])

# %%
mi.exercises.hint(
    "The first position is an outlier: print its length beside the others'.",
    "norm(dim=-1) gives one length per context and position.",
)

# %% [markdown]
# **Without the shared part** (medium). Return the part of one vector that is not along another, at unit length.


# %%
def without(vector, other):
    """What of `vector` is not along `other`, at length one."""
    ...


without = mi.exercises.attempt(without, reference=mi.directions.orthogonalised)
mi.exercises.check(
    without, [(vectors["CAA"], vectors["DiffMean"]), (vector, 2.0 * noise_rows[0])]
)

# %%
mi.exercises.hint(
    "Divide `other` by its length first.",
    "Subtract the projection, (vector @ other) * other, and divide the rest by its own length.",
)

# %% [markdown]
# ## What this does not show
#
# - That a concept *is* its word list. Log-odds of fifteen words are a narrow view of "formal" or "praise".
# - That steered text is good. A low price under the unsteered model means likely, not true, kind or useful.
# - That larger models behave alike. Published results find them harder to push.
# - That SAE rows steer badly. These are single rows of one dictionary, chosen by two rules, at one layer.
# - That the circle is the only curve: we looked where we expected one.
#
# We would change our mind about differences of means if random directions of their length did as much.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - Say the dose in units of the state, choose it on some prompts, report it on others, and state the budget.
# - Put random directions and a plain instruction into every table.
# - Test whether effects add before you build on it.
# - Read a direction with a signed pursuit, and steer with what you read: the loss is the measure.
# - Before calling something a direction, ask whether a line can hold it.
#
# **More exercises.** (easy) Set `LIVE` to another concept. (medium) Steer with minus the direction: is the effect minus
# the effect? (hard) Add the second vector at every later layer, and draw the gap against the layer.
#
# ## Sources
#
# Wu et al. (2025), *AxBench*. Rimsky et al. (2024), *Steering Llama 2 via contrastive activation addition*. Arad et al.
# (2025), *SAEs are good for steering, if you select the right features*. Mayne et al. (2024), *Can sparse autoencoders
# be used to decompose and interpret steering vectors?* Tan et al. (2024), *Analyzing the generalization and reliability
# of steering vectors*. van der Weij et al. (2024), *Extending activation steering to broad skills and multiple
# behaviours*. Engels et al. (2024), *Not all language model features are one-dimensionally linear*.
