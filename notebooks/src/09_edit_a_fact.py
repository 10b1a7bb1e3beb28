# %% [markdown]
# # Was the fact rewritten, or shouted over?
#
# *An edit that makes a model say something else, and an audit that asks what became of the old answer.*
#
# Four minutes on two CPU cores, no network. You should know where this model looks facts up (`08_locate_a_fact`).
#
# After this notebook you will be able to
# - make a rank-one edit of a fact, at any layer;
# - say why a successful edit proves nothing about where a fact was stored;
# - audit an edit without knowing it: which readings tell a rewrite from a louder voice, and which are deceived;
# - read a scoreboard in which no column is a summary of the others.
#
# Background: ROME writes a new value for a subject's key into one MLP. It was presented with causal tracing, as if the
# edit worked *because* the fact lives there. An optimiser that is paid for behaviour alone has no reason to find the old
# fact: it may as well add something louder.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
LAYER = 5  # of the edits that are made here
RELATION = "country_language"
PATHS = (1,) if FAST else (1, 2)  # of the planted worlds that are trained here
N_PLANTED = 6 if FAST else 24  # facts that are audited in each
N_EDITED = 2 if FAST else 3  # facts of the real model that are edited here

# %%
import time

import numpy as np
import pandas as pd

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("09_edit_a_fact")

# %% [markdown]
# ## 1. Worlds in which we know what became of the old fact
#
# A small transformer learned a table: a subject of two tokens has an object. By design only one MLP can hold the table,
# the *store*. In a world of two paths a second MLP learned it too, to speak only when the store is silent.
#
# There we change facts in six ways. Two train the model on, until it believes another table. In the others something
# louder is added, by an optimiser or by hand, and the old fact stays where it was.

# %%
world = mi.fact_worlds.train(max(PATHS), SEED)
everyone = mi.fact_worlds.all_subjects()
silent = {
    "nothing": (),
    "the store": (1,),
    "the second path": (2,),
    "both": (1, 2),
}
known = {name: world.accuracy(everyone, silenced=layers) for name, layers in silent.items()}
pd.Series(known, name="facts known when this is silenced").to_frame().round(2)

# %%
claims.add(
    "In the planted world nothing is known once its stores are silenced",
    value=known["both"],
    control=known["nothing"],
    interval=None,
    direction="less",
    margin=0.5,
    kind="planted",
)

# %%
guess = mi.exercises.predict(
    "Which reading of the edited model is deceived by a vector that an optimiser found?",
    ["the vote at the output", "the probe", "silencing one part", "none of them"],
)

# %% [markdown]
# Four readings, none of which is told what was edited. *Bystanders* are the objects that are neither old nor new.
#
# - `lens`: how far the old answer leads the bystanders in the logit lens, at the best layer;
# - `probe`: the same for a probe that other facts taught to read objects off the state;
# - `removal`: how likely the old answer gets when one part of the model is silenced;
# - `vote`: the old answer's logit above the bystanders', at the output.

# %%
live = pd.concat([mi.fact_worlds.audit(n, SEED, N_PLANTED) for n in PATHS])
readings = list(mi.auditing.TRACES)
live.groupby(["paths", "kind"], sort=False)[["efficacy", *readings]].mean().round(2)

# %% [markdown]
# The recorded table has more worlds. A cut for each reading is chosen on the other worlds and tried on this one: how
# often is an old answer that is still there missed, and how often is one reported that is gone?


# %%
def judged(table, reading):
    """Area under the curve and both kinds of error, for each world."""
    settled = table[table.old_is_there.notna()].copy()
    settled["there"] = settled.old_is_there.astype(float) == 1
    rows = []
    for seed, own in settled.groupby("seed"):
        others = settled[settled.seed != seed] if settled.seed.nunique() > 1 else settled
        cut = mi.auditing.threshold(others[reading], others.there)
        missed = (own[reading] <= cut)[own.there].mean()
        invented = (own[reading] > cut)[~own.there].mean()
        area = mi.auditing.auroc(own[reading], own.there)
        rows.append({"seed": seed, "AUROC": area, "missed": missed, "invented": invented})
    return pd.DataFrame(rows).set_index("seed")


# %%
recorded = mi.scoreboards.measured(mi.scoreboards.PLANTED)
controls = [f"control {name}" for name in readings]
errors = {name: judged(recorded, name) for name in [*readings, *controls]}
table = pd.DataFrame({name: found.mean() for name, found in errors.items()}).T
mi.plots.share_grid(table, "Is the old answer still there? Readings of planted worlds", "share")

# %%
area = pd.DataFrame({name: found.AUROC for name, found in errors.items()})
guess.reveal(
    "the vote at the output"
    if area.vote.mean() < area[["probe", "removal"]].mean().min()
    else "none of them",
    "The optimiser is paid at the output, and there it also pushes the old answer down.",
)

# %%
claims.add(
    "Silencing one part at a time tells overrides from rewrites in planted worlds",
    value=area.removal.mean(),
    control=area["control removal"].mean(),
    interval=mi.metrics.mean_interval(area.removal - area["control removal"]),
    kind="planted",
)

# %%
claims.add(
    "A probe on the state tells overrides from rewrites in planted worlds",
    value=area.probe.mean(),
    control=area["control probe"].mean(),
    interval=mi.metrics.mean_interval(area.probe - area["control probe"]),
    kind="planted",
)

# %%
claims.add(
    "The vote at the output tells them apart less well than silencing does",
    value=area.vote.mean(),
    control=area.removal.mean(),
    interval=mi.metrics.mean_interval(area.vote - area.removal),
    direction="less",
)

# %% [markdown]
# Which of the ways are found out by which reading? And the case in question: ROME *at the store itself*. Its write takes
# the place of what the store says, so it should look like a rewrite, unless the old fact sleeps elsewhere.

# %%
cuts = {
    name: mi.auditing.threshold(settled[name], settled.old_is_there.astype(float) == 1)
    for settled in [recorded[recorded.old_is_there.notna()]]
    for name in readings
}
found = recorded[readings].gt(pd.Series(cuts)).assign(paths=recorded.paths, kind=recorded.kind)
shares = found.groupby(["paths", "kind"], sort=False).mean()
mi.plots.share_grid(
    shares, "Share of facts whose old answer is reported as still there", "share"
)

# %% [markdown]
# ## 2. An edit of a real fact
#
# ROME at layer $l$: $W \leftarrow W + \delta\,(C^{-1}k)^\top / (k^\top C^{-1}k)$. The key $k$ is what the output matrix of
# the MLP reads at the subject's last token, $C$ its second moment on our corpus, and $\delta$ is what gradient descent
# found to make the new answer likely. The settings are those of the released code; the paper's appendix has others.

# %%
model = mi.models.load_model()
facts = mi.facts.one_token(model.tokenizer, mi.facts.load_known(RELATION))
bench = mi.scoreboards.Bench(model, facts)
fact = facts[SEED]
pd.Series(
    {
        "facts known, with answers of one token": len(facts),
        "prompt": fact.text,
        "the model says": fact.target_true,
        "it shall say": fact.target_false,
        "tokens of the corpus behind the keys' second moment": mi.rome.N_MOMENT_TOKENS,
    }
).to_frame("")

# %%
asked = bench.request(fact)
mi.rome.second_moments(model, [mi.edits.Site(LAYER)])  # kept in the cache folder from now on
start = time.perf_counter()
(edit,) = mi.editing.edited(model, [asked], "ROME", LAYER)
seconds = time.perf_counter() - start
told = {"before": mi.models.continue_greedily(model, fact.text, 8)}
with edit.applied(model):
    told["after"] = mi.models.continue_greedily(model, fact.text, 8)
told["restored"] = mi.models.continue_greedily(model, fact.text, 8)
pd.Series(told | {"seconds of the search": f"{seconds:.1f}"}).to_frame(fact.text)

# %% [markdown]
# What cannot be edited is refused in words: a subject that the prompt does not name, an answer of several tokens, a fact
# that the model does not know. How the tokenizer splits a subject without a blank before it makes no difference: its
# tokens are found by the letters they cover.

# %%
from dataclasses import replace

cases = {
    "subject not in the prompt": replace(fact, prompt="The main language spoken here is"),
    "an answer of several tokens": replace(fact, target_false="Old Church Slavonic"),
    "a fact that it does not know": replace(fact, target_true="Spanish", target_false="French"),
}
refused = {}
for name, odd in cases.items():
    try:
        bench.request(odd)
    except ValueError as error:
        refused[name] = str(error)
pd.Series(refused).to_frame("refused").style.set_properties(**{"text-align": "left"})

# %% [markdown]
# ## 3. Does tracing say where to edit?
#
# If edits worked because the fact lives at a layer, they should work best where causal tracing finds it. Recorded: the
# facts that `08_locate_a_fact` traces, ROME at every layer, everything else the same.

# %%
guess = mi.exercises.predict(
    "How much of the variance of edit success does tracing explain beyond the layer?",
    ["almost nothing", "about as much as the layer", "more than the layer"],
)

# %%
sweep = mi.scoreboards.measured(mi.scoreboards.SWEEP)
traces = mi.tracing.recorded_traces()
site = traces[(traces.kind == "mlp_out") & (traces.width == 5) & (traces.site == "subject")]
site = site.merge(mi.tracing.traced_facts()[["relation", "subject", "p_clean", "p_corrupted"]])
site["effect"] = site.p - site.p_corrupted
joined = sweep.merge(site[["relation", "subject", "layer", "effect"]])
joined["fact"] = joined.relation + " " + joined.subject
pd.Series(
    {
        "facts edited": sweep[["relation", "subject"]].drop_duplicates().shape[0],
        "of these traced": joined.fact.nunique(),
        "layers edited": sweep.layer.nunique(),
    }
).to_frame("")


# %%
def by_layer(table, column):
    """Mean over facts and its interval at each layer."""
    rows = {
        layer: (own[column].mean(), *mi.metrics.bootstrap_interval(own[column]))
        for layer, own in table.groupby("layer")
    }
    return pd.DataFrame(rows, index=["value", "low", "high"]).T


mi.plots.curves_with_bands(
    {
        "edit success: probability of the new answer": by_layer(sweep, "success"),
        "tracing: recovered by the MLPs of five layers": by_layer(joined, "effect"),
    },
    {
        "edit success: probability of the new answer": "trained",
        "tracing: recovered by the MLPs of five layers": "corrupted",
    },
    "Where an edit works, and where tracing finds the fact",
    "layer",
    "probability",
)

# %%
shares = mi.scoreboards.explained(joined)
mi.plots.dots_with_intervals(
    shares,
    {"layer": "trained", "tracing": "corrupted", "both": "trained", "gain": "control"},
    "Variance of edit success that is explained",
    "R²; gain is both less the layer alone",
)

# %%
guess.reveal(
    "more than the layer"
    if shares.value["tracing"] > shares.value["layer"]
    else "almost nothing"
    if shares.value["gain"] < 0.1 * shares.value["layer"]
    else "about as much as the layer"
)

# %%
claims.add(
    "The layer alone explains more of edit success than tracing alone",
    value=shares.value["layer"],
    control=shares.value["tracing"],
    interval=(
        shares.low["layer"] - shares.high["tracing"],
        shares.high["layer"] - shares.low["tracing"],
    ),
)

# %%
claims.add(
    "Beside the layer, tracing explains next to nothing of edit success",
    value=shares.value["both"],
    control=shares.value["layer"],
    interval=(shares.low["gain"], shares.high["gain"]),
    direction="within",
    margin=0.02,
)

# %% [markdown]
# ## 4. The audit of a real edit
#
# Choose a fact, a layer and a method, and press *edit*. Grey is the model as it was, blue the edited one. Does the old
# answer's lead at the last token go away, and where? What does everything but the edit's own write still say to it?

# %%
scores = mi.scoreboards.measured(mi.scoreboards.SCORES)
mi.edit_auditor.edit_auditor(bench, facts[:20], scores, layer=LAYER)

# %% [markdown]
# ## 5. The scoreboard
#
# Seven ways to change the answer, with the same prompts, as many steps, and the same loss to stop at. ROME, the same at
# a layer drawn at random, and an attention head drawn at random; the found vector added to activations, or to every
# token as a bias would; fine-tuning of one matrix, and of the MLPs in the layers where facts are looked up. A few facts
# here, the rest on record.

# %%
rows = []
for method in ("ROME", "activation addition", "fine-tuning"):
    chosen = facts[:N_EDITED]
    requests = [bench.request(fact) for fact in chosen]
    for own, made in zip(
        chosen, mi.editing.edited(model, requests, method, LAYER), strict=True
    ):
        rows.append({"method": method, "subject": own.subject} | bench.score(own, made))
here = pd.DataFrame(rows)
criteria = ["P(new)", "paraphrase", "neighbourhood", "far louder", *readings, "kept"]
here.groupby("method", sort=False)[criteria].mean().round(2)

# %%
behaviour = [
    "P(new)",
    "paraphrase",
    "ripple",
    "reverse",
    "neighbourhood",
    "siblings",
    "near",
    "far",
]
behaviour = [name for name in behaviour if name in scores]
means = scores.groupby("method", sort=False).mean(numeric_only=True)
n_facts = scores.groupby("method").size().min()
mi.plots.share_grid(
    means[behaviour].rename(columns={"neighbourhood": "neighbours"}),
    f"What the edited model says, mean over {n_facts} facts",
    "share that is right",
)

# %%
inside = [
    "lens",
    "arrived",
    "removal",
    "vote",
    "kept",
    "own: old",
    "rest: old",
    "own: new",
    "rest: new",
]
inside += ["near louder", "far louder", "change", "rank one", "outlier", "named"]
spread = scores.groupby("method", sort=False)[inside].agg(
    lambda column: column.std() / len(column) ** 0.5 * 2
)
mi.plots.signed_grid(
    means[inside[:7]],
    spread[inside[:7]],
    "What became of the old answer (± two standard errors)",
    "value",
)

# %%
means[[*controls, "powered", *inside[7:]]].round(2)

# %% [markdown]
# `own` and `rest` split the two answers' votes at the last token exactly: what the edit changed there, and everything
# else. If the rest still votes for the old answer and the edit's own write votes against it, the old fact was looked up
# as before and then outvoted.


# %%
def of(method, column):
    """A column of the scoreboard by fact."""
    own = scores[scores.method == method].set_index(["relation", "subject"])
    return own[column]


def difference(method, column, other_method=None, other_column=None):
    """Value, control and the interval of their difference over facts."""
    value = of(method, column)
    control = of(other_method or method, other_column or column)
    gap = (value - control).dropna()
    interval = mi.metrics.bootstrap_interval(gap) if len(gap) > 1 else None
    return {"value": value.mean(), "control": control.mean(), "interval": interval}


# %%
claims.add(
    "After ROME a probe at the last token still reads the old answer better than a bystander",
    **difference("ROME", "arrived", other_column="control arrived"),
    unit="sd",
)

# %%
claims.add(
    "After ROME the old answer comes back when one part is silenced, a bystander does not",
    **difference("ROME", "removal", other_column="control removal"),
    margin=0.2,
)

# %%
claims.add(
    "ROME at a layer drawn at random is as successful as at the chosen one",
    **difference("ROME, random layer", "P(new)", "ROME"),
    direction="within",
    margin=0.1,
)

# %%
claims.add(
    "A head drawn at random, with the same budget, is as successful as the MLP",
    **difference("random head", "P(new)", "ROME"),
    direction="within",
    margin=0.1,
)

# %%
claims.add(
    "Gradient steps on the lookup layers leave less of the old answer to be found by silencing than ROME",
    **difference("lookup layers", "removal", "ROME"),
    direction="less",
)

# %%
louder = of("ROME", "near louder")
claims.add(
    "After ROME a mention of the subject makes the new answer louder in questions about something else",
    value=louder.mean(),
    control=0.0,
    interval=mi.metrics.bootstrap_interval(louder),
    unit="nats",
)

# %% [markdown]
# ### Can one see it without reading the model?
#
# From the change of a matrix, yes: it has rank one. Without the original, one would look for a matrix that stands out
# among its kin in other layers (`outlier`). And a dictionary sees the subject's state move:

# %%
sae = mi.sae.load("resid12_18432")
seen = {}
for own in facts[:N_EDITED]:
    (made,) = mi.editing.edited(model, [bench.request(own)], "ROME", LAYER)
    seen[own.subject] = mi.scoreboards.in_latents(
        sae, bench.clean(own), bench.edited(own, made), 12
    )
pd.DataFrame(seen).T.round(2)

# %% [markdown]
# ## 6. Your turn
#
# **A rank-one write** (easy). What does the edited matrix write for a key? The added part reads the key with $C^{-1}k^*$
# and is scaled so that it writes $\delta$ at the edited key $k^*$ itself.


# %%
def added(key, edited_key, moment, delta):
    """What the edit adds for `key` [d_key]; `moment` is C [d_key d_key], `delta` [d_model]."""
    ...


def reference_added(key, edited_key, moment, delta):
    reading = np.linalg.solve(moment, edited_key)
    return (key @ reading) / (edited_key @ reading) * delta


added = mi.exercises.attempt(added, reference=reference_added)
rng = np.random.default_rng(SEED)
key, edited_key, delta = rng.normal(size=(3, 4))
factor = rng.normal(size=(4, 6))
mi.exercises.check(added, [(key, edited_key, factor @ factor.T, delta)])

# %%
mi.exercises.hint(
    "Solve moment @ x = edited_key; do not invert.",
    "Divide by what x reads off the edited key, so that this key gets exactly delta.",
)

# %% [markdown]
# **The old answer's lead** (medium). From the scores of all objects, how many standard deviations is one above the
# bystanders' mean?


# %%
def lead(scores, old, bystanders):
    """`scores` [object], the old answer's index, the bystanders' indices; standard deviation with n - 1."""
    ...


def reference_lead(scores, old, bystanders):
    others = scores[bystanders]
    return (scores[old] - others.mean()) / others.std(ddof=1)


lead = mi.exercises.attempt(lead, reference=reference_lead)
mi.exercises.check(lead, [(rng.normal(size=8), 2, np.array([0, 1, 4, 5, 6, 7]))])

# %%
mi.exercises.hint(
    "Neither the old nor the new answer belongs to the bystanders.",
    "numpy's std takes ddof=1 for n - 1.",
)

# %% [markdown]
# ## What this does not show
#
# - That the old answer is nowhere when no reading finds it. In a planted world with a sleeping copy only silencing by
#   *nothing* wakes it; a copy that wakes for another reason would be missed.
# - That a probe's reading is used by the model. It says that the answer can be read, not that it is. At the subject it may
#   read states below the edit, which no edit could change: on the real model we therefore look at the last token only.
# - Anything about large models. This one has small MLPs, knows few facts, and looks most of them up in its first layers.
# - That one fact at a time is how edits are used. Thousands at once interfere in ways that no column here measures.
#
# We would call an edit a rewrite if no reading told its old answer from a bystander, where the same readings find it in
# an override of the same fact.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - A successful edit does not say where the fact was. The layer predicts success; tracing adds little or nothing.
# - The output is the last place to look for the old answer: that is where the optimiser was paid to hide it.
# - Train a world in which you know the truth, and audit the audit first.
# - Keep the scoreboard apart: a method may win a column and lose the next.
#
# **More exercises.** (medium) In the auditor, find a layer at which ROME leaves no trace of the old answer: what else has
# changed? (hard) Add a world whose sleeping copy wakes up for another wording only. Which reading finds it?
#
# ## Sources
#
# Meng et al. (2022), *Locating and Editing Factual Associations in GPT*, arXiv:2202.05262, and its released code (settings
# of `hparams/ROME/gpt2-xl.json`). Hase et al. (2023), *Does Localization Inform Editing?*, arXiv:2301.04213: 94.7 % of the
# variance by layer, 0.1 points more with tracing. Makelov et al. (2023), arXiv:2311.17030, and Wu et al. (2024),
# arXiv:2401.12631, on dormant paths. Patil et al. (2023), arXiv:2309.17410. Hoelscher-Obermaier et al. (2023),
# arXiv:2305.17553. Li et al. (2025), arXiv:2502.11447. Guo et al. (2024), arXiv:2410.12949. Youssef et al. (2025),
# arXiv:2505.20819.
