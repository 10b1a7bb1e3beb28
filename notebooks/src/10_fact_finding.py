# %% [markdown]
# # Can factual recall be read off neurons?
#
# *Four planted ways to remember, the tests that tell them apart, and the same tests on a real model's names.*
#
# Four minutes on two CPU cores, no network. You should know probes and their controls (`06_probes`).
#
# After this notebook you will be able to
# - state two accounts of fact recall so that they can be wrong, and test each beside a planted case where it is right;
# - read an attribute off a name with the model's own head, next to a probe and everything that should not work;
# - strip a model down to what recall needs, beside stripping as much at random;
# - show why a neuron that looks like one answer is not.
#
# Background: *Fact Finding* (2023) took a model's early layers apart on athletes and did not find a readable mechanism.
# A negative result needs power: here every test first meets a memoriser for which the answer is known.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
MODEL = "smollm2-135m"
RELATION = "us_city_state"
SHOTS, LEAST = 0, 4  # examples before the prompt; names that an answer must have
N_NAMES = 50 if FAST else 90
N_SWITCHED = 20 if FAST else 64  # names for the ablation switches
N_PEOPLE = 40 if FAST else 72
N_WORLDS = 4 if FAST else 6  # planted memorisers of each kind; half are for calibration
SEEDS = range(SEED, SEED + (4 if FAST else 5))  # splits of names
N_TEXTS = 8 if FAST else 16  # contexts of 64 tokens for the neurons

# %%
import numpy as np
import pandas as pd
import torch

from mi_utils.effective_models import Recall, Switches

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("10_fact_finding")

# %% [markdown]
# ## 1. Four ways to remember
#
# A name is two tokens. Each known name has four facts, drawn by coin. Four models know them, and we know how:
#
# - *single step*: one neuron a name is an AND of its tokens and writes all its facts;
# - *additive*: neurons see single tokens; facts are sums over the tokens, that is, cues;
# - *hash and lookup*: two layers scramble every pair, the last one recognises known scrambles;
# - *distributed*: gradient descent, until the bits are learned by heart.

# %%
guess = mi.exercises.predict(
    "A layer may no longer read what an earlier one wrote. Who forgets?",
    ["only the lookup", "the lookup and the trained one", "all but the additive one"],
)

# %%
worlds = pd.DataFrame(
    [
        {"mechanism": name, "seed": seed} | mi.fact_finding.examine(build(seed), seed)
        for name, build in mi.memorisers.MECHANISMS.items()
        for seed in range(SEED, SEED + N_WORLDS)
    ]
)
tests = list(mi.fact_finding.EXPECTED)
by_mechanism = worlds.groupby("mechanism", sort=False)[tests].mean()
mi.plots.share_grid(
    by_mechanism, "Each test on each planted mechanism, mean over seeds", "statistic"
)

# %%
lost = by_mechanism["needs composition"] > 0.5
guess.reveal(
    "only the lookup"
    if not lost["distributed"]
    else "all but the additive one"
    if lost["single step"]
    else "the lookup and the trained one"
)

# %% [markdown]
# The boundary of each test is set on half of the seeds, half-way between the mechanisms that must come out low and those
# that must come out high. The other half says how often the test is wrong. Where it says nothing, it is not counted.

# %%
judged = mi.fact_finding.errors(worlds, range(SEED, SEED + N_WORLDS // 2))
judged.round(2)

# %%
claims.add(
    "On fresh planted worlds the six tests name the wrong kind of mechanism less often than a coin",
    value=judged.errors.sum() / judged["of"].sum(),
    control=0.5,
    interval=None,
    direction="less",
    margin=0.4,
    kind="planted",
)


# %%
def planted_gap(test):
    """High minus low mechanisms of a test, one value a seed."""
    low, high = (
        worlds[worlds.mechanism.isin(kinds)].groupby("seed")[test].mean()
        for kinds in mi.fact_finding.EXPECTED[test]
    )
    return {
        "value": high.mean(),
        "control": low.mean(),
        "interval": mi.metrics.mean_interval(high - low),
        "kind": "planted",
        "margin": 0.1,
    }


claims.add(
    "The AND test is higher where names are remembered than where facts are sums over tokens",
    **planted_gap("AND"),
)

# %%
claims.add(
    "Cutting layers apart costs more where layers build on each other than where they do not",
    **planted_gap("needs composition"),
)

# %%
claims.add(
    "Neurons agree over a name's facts more where each stands for a name than where nobody planned them",
    **planted_gap("facts agree"),
)

# %%
claims.add(
    "Held-out names can be read before the last layer where nothing is hashed more than where all is",
    **planted_gap("readable early"),
)

# %% [markdown]
# ## 2. Which facts does this model know?
#
# The original study asked for athletes' sports. This model's answer is a function of the prompt: three examples, in one
# order and in the other. A relation for this notebook must survive that; cities and people's professions do.

# %%
athletes = pd.read_csv(mi.facts.FOLDER / "finding_athletes.csv")
athletes["right"] = athletes.sport == athletes.said
orders = athletes.pivot(index="name", columns="examples", values=["said", "right"])
athletes.groupby(["examples", "sport"]).right.agg(["mean", "size"]).unstack(0).round(2)

# %%
both = (orders["right"].astype(bool)).all(axis=1)
chance = (athletes.groupby("name").sport.first()).value_counts(normalize=True).max()
claims.add(
    "The default model names an athlete's sport, whichever way round the examples stand, more often than one sport for all would",
    value=both.mean(),
    control=chance,
    interval=mi.metrics.bootstrap_interval(both - chance),
)

# %%
model = mi.models.load_model(MODEL)
twin = mi.models.random_twin(model, SEED)
cities = mi.name_facts.ask_for(
    model, RELATION, shots=SHOTS, least=LEAST, most=N_NAMES, seed=SEED
)
people = mi.name_facts.ask_for(
    model, "person_occupation", shots=5, least=12, most=N_PEOPLE, seed=SEED
)
pd.DataFrame(
    {
        name: {
            "names": len(asked.truth),
            "answers": len(asked.answers),
            "right": asked.known.mean(),
            "most frequent answer": (asked.truth == 0).float().mean().item(),
        }
        for name, asked in {RELATION: cities, "person_occupation": people}.items()
    }
).T.round(2)

# %%
majority = (cities.truth == cities.truth.mode().values).numpy()
claims.add(
    "The model names a city's state more often than the most frequent state would be right",
    value=cities.known.mean(),
    control=majority.mean(),
    interval=mi.metrics.bootstrap_interval(cities.known.astype(float) - majority),
    margin=0.1,
)

# %% [markdown]
# ## 3. What can be read of the answer at the name's last token, layer by layer
#
# - a *trained probe*, on names that share no token with the test names: *San* must not teach California;
# - the *head readout*: `W_V W_O W_U` of the head that carries the attribute to the end of the prompt, nothing trained;
# - the *unembedding* alone; *shuffled labels*; an *untrained model*; a *bag of tokens*.
#
# Accuracy is balanced over answers, so that a frequent answer buys nothing. Intervals are over splits of the names,
# which share names, so they are on the narrow side.

# %%
guess = mi.exercises.predict(
    "Which reads more of the answer half-way through the model?",
    ["the trained probe", "the head's own readout", "both alike"],
)

# %%
head = mi.name_facts.carrier(cities)
read = mi.name_facts.readable(cities, twin, SEEDS, head)
read = read.assign(excess=read.accuracy - read.chance)
session_note = f"L{head[0]}H{head[1]} carries the state to the end of the prompt"
session_note


# %%
def bands(on):
    """Mean accuracy by layer of each readout; for the two that matter, with the range over splits."""
    some = read[(read.on == on) & (read.layer >= 0)]
    found = {
        name: one.groupby("layer").accuracy.agg(value="mean", low="min", high="max")
        for name, one in some.groupby("method", sort=False)
    }
    shown = ("trained probe", "head readout")
    return {name: one if name in shown else one[["value"]] for name, one in found.items()}


roles = {
    "trained probe": "trained",
    "head readout": "patched",
    "unembedding": "second_seed",
    "shuffled labels": "control",
    "untrained model": "random_model",
}
mi.plots.curves_with_bands(
    bands("known"),
    roles,
    f"Names the model knows: {session_note}",
    "layer",
    "balanced accuracy, unseen names",
)

# %%
mi.plots.curves_with_bands(
    bands("unknown"),
    roles,
    "Names the model answers wrongly",
    "layer",
    "balanced accuracy, unseen names",
)

# %%
before = read[(read.layer < head[0]) & (read.layer >= head[0] // 2)]
late = before.pivot_table(index=["on", "seed"], columns="method", values="accuracy")
gap = (late["head readout"] - late["trained probe"]).loc["all"].mean()
guess.reveal(
    "both alike"
    if abs(gap) < 0.05
    else "the head's own readout"
    if gap > 0
    else "the trained probe"
)

# %%
known = late.loc["known"]
claims.add(
    "On known names the head readout beats a probe of an untrained model, in the second half before its layer",
    value=known["head readout"].mean(),
    control=known["untrained model"].mean(),
    interval=mi.metrics.mean_interval(known["head readout"] - known["untrained model"]),
    margin=0.1,
)

# %%
claims.add(
    "On known names with unseen tokens a trained probe beats one of an untrained model, in the second half before the head's layer",
    value=known["trained probe"].mean(),
    control=known["untrained model"].mean(),
    interval=mi.metrics.mean_interval(known["trained probe"] - known["untrained model"]),
    margin=0.05,
)

# %%
gaps = (late.loc["known"] - late.loc["unknown"])["head readout"]
claims.add(
    "The head readout reads known names better than names the model answers wrongly",
    value=late.loc["known"]["head readout"].mean(),
    control=late.loc["unknown"]["head readout"].mean(),
    interval=mi.metrics.mean_interval(gaps),
    margin=0.1,
)

# %% [markdown]
# The same on other relations, from the record: `python data/facts/finding.py probes`.

# %%
record = pd.read_csv(mi.facts.FOLDER / "finding_probes.csv.gz")
middle = record[record.layer.between(8, 20) | (record.layer < 0)]
table = middle[middle.on != "all"].pivot_table(
    index=["relation", "on"], columns="method", values="accuracy", sort=False
)
mi.plots.share_grid(table, "Balanced accuracy on unseen names, layers 8 to 20", "accuracy")

# %% [markdown]
# ## 4. An effective model, by switches
#
# At the name's tokens, and only there, parts are replaced by their mean over the names. How far can we go? What to
# remove is chosen on one half of the names and reported on the other, where each step has its twins: as many parts,
# chosen at random.

# %%
guess = mi.exercises.predict(
    "From which layer on can attention at the name's tokens go, with nearly all answers intact?",
    ["from the first", "within the first quarter", "later or never"],
)

# %%
n_layers = model.cfg.n_layers
few = mi.name_facts.ask_for(
    model, RELATION, shots=SHOTS, least=LEAST, most=N_SWITCHED, seed=SEED + 1
)
steps = {
    f"no attention from {n}": Switches(attention=range(n, n_layers)) for n in (0, 1, 2, 4, 8)
}
steps |= {f"no MLPs above {n}": Switches(mlps=range(n + 1, n_layers)) for n in (4, 8, 14)}
steps |= {f"no MLPs below {n}": Switches(mlps=range(n)) for n in (1, 2)}
steps |= {"nothing removed": Switches(), "name alone": Switches(alone=True)}
kept = mi.effective_models.simplified(few.recall, few.truth, steps)

# %%
mi.plots.ranked_bars(kept.mean(), "Right answers after one simplification", "share right")

# %%
half = few.search()
whole = kept["nothing removed"][half].mean()


def simplest(step, candidates, tolerance=0.1):
    """The first candidate that costs at most this share of answers, on the half of the names for choosing."""
    reached = {n: kept[f"{step} {n}"][half].mean() for n in candidates}
    return next((n for n in candidates if reached[n] >= whole - tolerance), None)


start = simplest("no attention from", (0, 1, 2, 4, 8))
top = simplest("no MLPs above", (4, 8, 14))
bottom = simplest("no MLPs below", (2, 1)) or 0
guess.reveal(
    "later or never"
    if start is None or start >= n_layers / 4
    else "from the first"
    if start == 0
    else "within the first quarter"
)

# %%
attention = range(n_layers if start is None else start, n_layers)
above = range(n_layers if top is None else top + 1, n_layers)
outside = [*range(bottom), *above]
built = {
    "nothing removed": Switches(),
    "late attention": Switches(attention=attention),
    "and late MLPs": Switches(attention, above),
    "and first MLPs": Switches(attention, outside),
    "and the prompt": Switches(attention, outside, alone=True),
}
at_random = {
    f"{name}, random {n}": step.at_random(n_layers, SEED + n)
    for name, step in list(built.items())[1:]
    for n in (1, 2)
}
tried = mi.effective_models.simplified(few.recall, few.truth, built | at_random)[~half]

# %%
right = pd.DataFrame({name: tried[name] for name in built})
random = pd.DataFrame(
    {
        name: tried[[f"{name}, random {n}" for n in (1, 2)]].mean(axis=1)
        for name in list(built)[1:]
    }
)
assembled = pd.DataFrame(
    {"right": right.mean(), "as much at random": random.mean()}, index=list(built)
)
assembled["attention layers"] = [n_layers - len(step.attention) for step in built.values()]
assembled["MLPs"] = [n_layers - len(step.mlps) for step in built.values()]
assembled.round(2)


# %%
def against_random(step):
    """Right answers after a step, beside as many parts taken at random."""
    return {
        "value": right[step].mean(),
        "control": random[step].mean(),
        "interval": mi.metrics.bootstrap_interval(right[step] - random[step]),
    }


claims.add(
    "Without late attention and MLPs at the name more answers survive than without as many parts at random",
    **against_random("and first MLPs"),
)

# %%
claims.add(
    "The assembled effective model is right about as many names as the model itself",
    value=right["and the prompt"].mean(),
    control=right["nothing removed"].mean(),
    interval=mi.metrics.bootstrap_interval(right["and the prompt"] - right["nothing removed"]),
    direction="within",
    margin=0.1,
)

# %% [markdown]
# ## 5. Is a name more than the sum of its parts?
#
# Swap last names between people. If first and last name each bring their own evidence, the margin of the right answer
# is a sum, and real pairs have nothing over recombined ones. If the pair is remembered, they have. *AND* is the margin
# minus what the sum predicts.

# %%
guess = mi.exercises.predict(
    "How much of a known person's margin over a stranger does neither part of the name explain?",
    ["almost nothing", "about half", "almost all"],
)

# %%
names = np.array(people.recall.names)
pairs = np.isin(np.arange(len(names)), mi.name_neurons.words(list(names)))


def square(rows, given=None):
    """Margins of the right professions for some people and their recombinations."""
    chosen = list(names[rows]) if given is None else given
    truth = people.truth[torch.tensor(rows)]
    return mi.name_neurons.margins(model, people.prompt, chosen, people.answers, truth, SEED)


real = square(pairs & people.known)
false = square(
    pairs & people.known,
    mi.name_neurons.swapped(list(names[pairs & people.known]), SEED + 1)[1],
)
unknown = square(pairs & ~people.known)

# %%
groups = {"known people": real, "answered wrongly": unknown, "recombined names": false}
ands = pd.DataFrame(
    [
        {"value": a.mean().item(), **mi.metrics.bootstrap_interval(a)._asdict()}
        for a in (g.interaction() for g in groups.values())
    ],
    index=list(groups),
)
mi.plots.dots_with_intervals(
    ands,
    dict(zip(groups, ["trained", "second_seed", "control"], strict=True)),
    "What is not a sum over first and last name",
    "margin of the right profession, nats",
)

# %%
share = mi.fact_finding.and_share(real)
guess.reveal("almost nothing" if share < 0.2 else "about half" if share < 0.7 else "almost all")

# %%
claims.add(
    "Known people's names are more of an AND than recombinations of the same names",
    value=real.interaction().mean().item(),
    control=false.interaction().mean().item(),
    interval=mi.metrics.difference_interval(real.interaction(), false.interaction()),
    unit="nats",
)

# %% [markdown]
# ## 6. The falsification tests on the model
#
# **Do MLPs build on each other?** No MLP of the lookup range may read, at the name's tokens, what another one wrote. The
# control cuts as many later ones apart. A single step would lose nothing; the planted lookup loses everything.

# %%
rising = bands("all")["head readout"].value.loc[: head[0] - 1]
lookup = range(max(3, int((rising >= 0.9 * rising.max()).idxmax()) + 1))
later = range(max(len(lookup), head[0] - len(lookup)), head[0])
cut = {
    name: cities.recall.ask(edits=cities.recall.without_paths(apart))
    .right(cities.truth)
    .numpy()
    for name, apart in (("lookup", lookup), ("later", later))
}
shares = {"as it is": cities.known.mean()}
shares |= {f"{name} MLPs apart": answers.mean() for name, answers in cut.items()}
f"lookup range: layers {lookup[0]} to {lookup[-1]}; control: {later[0]} to {later[-1]}"

# %%
pd.Series(shares, name="right answers").round(2).to_frame()

# %%
known = cities.known
claims.add(
    "Cutting the lookup MLPs apart costs known names more than cutting later MLPs apart",
    value=cut["lookup"][known].mean(),
    control=cut["later"][known].mean(),
    interval=mi.metrics.bootstrap_interval(cut["lookup"][known] - cut["later"][known]),
    direction="less",
)

# %% [markdown]
# **Do neurons help all facts of a name?** Profession and nationality of the same people. For each neuron of the lookup
# range: what it adds to the right profession, and to the right nationality. The control gives people each other's
# nationalities. A single step would correlate as in the planted case.

# %%
table = mi.facts.table("person_nationality")
lands = dict(zip(table.subject, table.answer, strict=True))
both = np.flatnonzero([name in lands for name in names])
label, answers = mi.class_probes.classes([lands[name] for name in names[both]], 3)
rows, land = torch.tensor(both[label >= 0]), torch.tensor(label[label >= 0])
prompt = mi.facts.load("person_nationality", shots=5)[0].prompt
travel = Recall(model, prompt, list(names[rows.numpy()]), answers)
born = mi.name_facts.Asked(travel, prompt, land, travel.ask().right(land).numpy() > 0)
f"{len(rows)} people of {len(answers)} nationalities, {born.known.mean():.0%} of them right"

# %%
layers = list(range(max(len(lookup), 8)))
trade, origin = (
    mi.name_neurons.neurons(
        people.recall,
        layers,
        mi.extraction.head_readout(asked.recall, *mi.name_facts.carrier(asked)),
    )
    for asked in (people, born)
)
mixed = land[torch.randperm(len(land), generator=torch.Generator().manual_seed(SEED))]
own = trade.effects(people.truth[rows], rows)
agree, apart = (
    mi.fact_finding.agreement(torch.stack([own, origin.effects(some, rows)]))
    for some in (land, mixed)
)

# %%
claims.add(
    "Neurons that help a person's profession help their nationality, as much as a single step would predict",
    value=agree.mean().item(),
    control=apart.mean().item(),
    interval=mi.metrics.bootstrap_interval(agree - apart),
    margin=float(judged.boundary["facts agree"]),
)

# %% [markdown]
# **Where does the AND arise?** If in the neurons, then what they *read* is a sum over the two words. The share of the
# variance within squares of names that is interaction: a third would mean that the parts mean nothing.

# %%
known_names = list(names[pairs & people.known])
shares = {
    which: mi.name_neurons.interaction_by_layer(
        m, people.prompt, known_names, people.answers, layers, seed=SEED
    )
    for which, m in (("model", model), ("untrained", twin))
}
curves = {
    f"{which} {what}": one.set_index("layer")[[column]].rename(columns={column: "value"})
    for which, one in shares.items()
    for what, column in (("reads", "pre_acts"), ("writes", "mlp_out"))
}
mi.plots.curves_with_bands(
    curves,
    dict(zip(curves, ["trained", "second_seed", "random_model", "control"], strict=True)),
    "Interaction of first and last name in what neurons read and write",
    "layer",
    "share of variance within squares",
)

# %%
reads = {which: one.pre_acts[1:] for which, one in shares.items()}
claims.add(
    "From the second layer on, what neurons read is more of an interaction than in an untrained model",
    value=reads["model"].mean(),
    control=reads["untrained"].mean(),
    interval=mi.metrics.mean_interval(reads["model"] - reads["untrained"]),
)

# %% [markdown]
# **Is it a hash?** Then nothing could be read of an unseen name before the lookup, and a known name would look like a
# stranger made of the same words. Section 3 has the first answer. For the second: does the length of what an MLP writes
# tell known people from recombined ones?

# %%
early = read[read.layer.between(1, max(1, len(lookup) // 2)) & (read.on == "known")]
early = early.pivot_table(index="seed", columns="method", values="accuracy")
claims.add(
    "Half-way through the lookup range unseen names can be read better than in an untrained model",
    value=early["head readout"].mean(),
    control=early["untrained model"].mean(),
    interval=mi.metrics.mean_interval(early["head readout"] - early["untrained model"]),
    margin=0.05,
)

# %%
places = [mi.hooks.hook_name("mlp_out", layer) for layer in layers]
both_kinds = known_names + mi.name_neurons.swapped(known_names, SEED)[1]
labels = np.repeat([1, 0], len(known_names))


def told_apart(m):
    """By layer: how well the length of the MLP's output tells known names from recombined ones."""
    written = Recall(m, people.prompt, both_kinds, people.answers).read_alone(places)
    return pd.Series(
        [mi.probes.auroc(written[place].norm(dim=1).numpy(), labels) for place in places],
        index=layers,
    )


lengths = pd.DataFrame({"model": told_apart(model), "untrained": told_apart(twin)})
lengths.T.round(2)

# %%
distance = 2 * (lengths - 0.5).abs()
claims.add(
    "The length of what early MLPs write tells known names from recombined ones better than in an untrained model",
    value=distance["model"].mean(),
    control=distance["untrained"].mean(),
    interval=mi.metrics.mean_interval(distance["model"] - distance["untrained"]),
)

# %% [markdown]
# ## 7. One neuron, on names and on everything else
#
# Neurons of the lookup range that add most to the right state, the most selective ones, and random ones. Each is shown
# on all names and on ordinary text. *Stray*: tokens of text, in a thousand, on which it is at least as active as on its
# own state's names.

# %%
guess = mi.exercises.predict(
    "The neurons with the largest effect on states: as active on ordinary text as on their state's names?",
    ["never", "now and then", "as often as random neurons"],
)

# %%
readout = mi.extraction.head_readout(cities.recall, *head)
found = mi.name_neurons.neurons(cities.recall, layers, readout)
texts = mi.corpus.held_out_contexts(model.tokenizer, N_TEXTS, n_ctx=64, seed=SEED).tokens
neurons = mi.neuron_explorer.read_neurons(cities, found, texts, seed=SEED)
neurons.table.groupby("found", sort=False)[["effect", "selectivity", "stray"]].median().round(2)

# %%
stray = {kind: one.stray for kind, one in neurons.table.groupby("found", sort=False)}
best, chance_ones = stray[mi.neuron_explorer.BY_EFFECT], stray[mi.neuron_explorer.AT_RANDOM]
guess.reveal(
    "never"
    if best.median() < 0.1
    else "now and then"
    if best.median() < chance_ones.median() / 2
    else "as often as random neurons"
)

# %%
mi.neuron_explorer.neuron_explorer(neurons)

# %%
claims.add(
    "The neurons with the largest effect on states are rarer on ordinary text than random neurons, at the level of their names",
    value=best.mean(),
    control=chance_ones.mean(),
    interval=mi.metrics.difference_interval(best, chance_ones),
    direction="less",
    unit="in 1000 tokens",
)

# %% [markdown]
# ## 8. Search a toy for structure
#
# Below, every neuron of two memorisers: its best correlation with any token and any fact of the names, beside the same
# with the names shuffled. In one each neuron stands for a token. In the other nobody planned anything. Look for more:
# `toy.run(toy.names).acts` are the activations, `toy.signs` the facts.


# %%
def structure(toy, seed=None):
    """For each neuron, the largest correlation with any token or fact of the known names."""
    acts = torch.cat(toy.run(toy.names).acts, 1)
    acts = acts[:, acts.std(0) > 0]
    order = (
        torch.arange(len(acts))
        if seed is None
        else torch.randperm(len(acts), generator=torch.Generator().manual_seed(seed))
    )
    tokens = [torch.nn.functional.one_hot(part) for part in toy.names]
    traits = torch.cat([*tokens, toy.signs], 1).float()[order]
    z, t = ((m - m.mean(0)) / m.std(0).clamp(min=1e-6) for m in (acts, traits))
    return (z.T @ t / len(z)).abs().amax(1)


toy = mi.memorisers.distributed(SEED)
found_there = {}
for name, model_ in (("additive", mi.memorisers.additive(SEED)), ("distributed", toy)):
    found_there[name] = structure(model_)
    found_there[f"{name}, names shuffled"] = structure(model_, SEED)
mi.plots.dots_per_input(
    found_there, "Best correlation of each neuron with a token or a fact", "correlation"
)

# %%
firing = (torch.cat(toy.run(toy.names).acts, 1) > 0).float().mean(0)
claims.add(
    "A neuron of the trained memoriser fires for more of the names than one of a single step does",
    value=firing.mean().item(),
    control=(torch.cat((s := mi.memorisers.single_step(SEED)).run(s.names).acts, 1) > 0)
    .float()
    .mean()
    .item(),
    interval=None,
    kind="planted",
    margin=0.05,
)

# %% [markdown]
# ## 9. Your turn
#
# **Interaction** (easy). Four margins of a name: itself, other last, other first, other both. What is not a sum?


# %%
def interaction(name, other_last, other_first, other):
    """What the sum over the parts does not predict."""
    ...


def reference(name, other_last, other_first, other):
    """The same, from the package."""
    return mi.fact_finding.Square(name, other_last, other_first, other).interaction()


interaction = mi.exercises.attempt(interaction, reference=reference)
mi.exercises.check(interaction, [tuple(real), tuple(false)])

# %%
mi.exercises.hint(
    "If the margin is f(first) + g(last), which combination of the four is zero whatever f and g are?",
    "name - other_last - other_first + other.",
)

# %% [markdown]
# **Names that leak** (medium). Mark the test names that share a token with a training name.


# %%
def leaks(tokens, test):
    """For each name, whether it is a test name of which a training name has a token."""
    ...


leaks = mi.exercises.attempt(leaks, reference=mi.class_probes.leaking)
at_chance = np.arange(len(cities.truth)) % 5 == 0
tokens = cities.recall.name_tokens
f"{leaks(tokens, at_chance)[at_chance].mean():.0%} of test names taken at random leak"

# %%
mi.exercises.check(
    leaks, [([[1, 2], [2, 3], [4]], np.array([True, False, True])), (tokens, at_chance)]
)

# %%
mi.exercises.hint(
    "Collect the tokens of all names that are not in the test.",
    "A test name leaks unless its tokens are disjoint from that set: `seen.isdisjoint(name)`.",
)

# %% [markdown]
# ## What this does not show
#
# - That recall works the same in large models: ours has few names an answer, and answers some of them from their parts.
# - That early MLPs hold the facts. Switches say what suffices at the name's tokens, not what is stored where, and the
#   very first MLP is needed by everything.
# - That the simplest model was found: three ranges were searched one by one, on few names.
# - That the head's readout is the only way out; other heads carry part of it, and later layers mend what is missing.
# - That no readable mechanism exists. Two accounts were tested; a third may pass.
# - That a neuron means one thing on this text. More text finds more meanings, never fewer.
#
# We would change our mind about single-step detokenisation if the MLPs could be cut apart at no cost, and their neurons
# agreed over facts as the planted ones do. Whether an *edit* at these layers rewrites a fact is asked in `09_edit_a_fact`.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - State an account so that it predicts a number; plant a model for which it is true; then measure.
# - A readout that the model supplies itself needs no labels, and cannot learn cues by heart.
# - Hold out *parts* of names, and compare every simplification with one at random.
# - Look at a neuron where you did not search for it.
#
# **More exercises.** (easy) Set `RELATION` to `country_language`. (medium) Raise `noise` in `mi.memorisers.single_step`:
# which test errs first? (hard) On a machine that reaches the hub, set `MODEL = "EleutherAI/pythia-2.8b"`,
# `RELATION = "athlete_sport"`, `SHOTS = 1`: the original study, through the same calls.
#
# ## Sources
#
# Nanda, Rajamanoharan, Kramár, Shah (2023), *Fact Finding: Attempting to Reverse-Engineer Factual Recall on the Neuron
# Level*, posts 1 to 5. Hewitt and Liang (2019), *Designing and interpreting probes with control tasks*. Meng et al. (2022),
# *Locating and Editing Factual Associations in GPT*. Elhage et al. (2022), *Softmax linear units* (detokenisation).
