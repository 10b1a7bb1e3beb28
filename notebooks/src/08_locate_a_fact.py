# %% [markdown]
# # Where does the model look a fact up?
#
# *Break the subject, mend one state at a time, and see which states bring the answer back. Then ask what that proves.*
#
# Four minutes on two CPU cores, no network. You should know what a residual stream is (`00_start_here`).
#
# After this notebook you will be able to
# - trace a fact through a model, with noise or with another subject, in both directions;
# - say which choices (noise, window, metric, direction) move the answer, and by how much;
# - check a quick guess (attribution patching) against the exact patches it stands for;
# - name the heads that carry an answer from the subject to the end of a prompt.
#
# Background: causal tracing found middle MLPs at the subject's last token, and editing methods were built on that. Later
# work found that tracing does not predict where an edit works. Here we only *locate*; `09_edit_a_fact` edits.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
N_WORLDS = 5 if FAST else 8  # planted models of each kind
N_LIVE = (
    2 if FAST else 6
)  # facts that are traced here and now; all others are read from the record
N_DRAWS = 4  # draws of noise in a planted model
PROMPT, SUBJECT = (
    "The city of Stockton, which is in the state of",
    "Stockton",
)  # one that the model knows

# %%
import numpy as np
import pandas as pd
import torch

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("08_locate_a_fact")

# %% [markdown]
# ## 1. A fact store that we planted ourselves
#
# A small transformer, written by hand. A name is two tokens; layer 0 brings the first to the second; one MLP, the
# **store**, knows which pair of names belongs to which city; one later attention layer, the **hand-over**, carries the
# city to the end of the prompt. A **decoy** MLP writes the city too, three times as loudly, where nothing reads it.
#
# In a second kind of model the store has a **backup**, an MLP that answers if, and only if, the store did not.

# %%
guess = mi.exercises.predict(
    "Corrupt the store alone, in an otherwise clean run. Where there is a backup, the answer ...",
    ["is lost as without it", "is lost less"],
)

# %%
world = mi.recall_worlds.recall_world(SEED)
stack = mi.patching.Stack(world.model)
tokenizer = world.model.tokenizer
fact = world.facts[0]
asked = mi.tracing.question(tokenizer, fact)
pair = mi.tracing.swap(stack, asked, mi.tracing.twin(tokenizer, fact, world.facts))
log_odds = mi.patching.log_odds(pair.asked.true, pair.asked.false)
sites = mi.patching.each_position(len(asked.tokens))
words = [tokenizer.decode([token]) for token in asked.tokens]
mi.plots.layer_map(
    mi.tracing.effects(stack, pair, log_odds, sites),
    words,
    f"Residual stream: share of the answer that each state brings back (store {world.store[0]}, "
    f"hand-over {world.handover})",
    "share",
)

# %% [markdown]
# The states of the subject's last token work until the hand-over; from there on those of the last token do. That says
# where the answer *is*, layer after layer. Where it is *made* we see from the MLPs:

# %%
mi.plots.layer_map(
    mi.tracing.effects(stack, pair, log_odds, sites, kind="mlp_out"),
    words,
    f"MLP outputs (store in layer {world.store[0]}, decoy in layer {world.decoy})",
    "share",
)

# %% [markdown]
# Now many planted models, and several methods, each asked for *one* MLP, layer and token. A method's score is how often
# it names the store. The control is what one might do without any patching: take the MLP whose output changes most.


# %%
def corrupted_pair(world, stack, fact, noise):
    """A clean run and one with noise on the name, or with another name if there is no noise."""
    asked = mi.tracing.question(world.model.tokenizer, fact)
    if noise:
        return mi.tracing.corrupt(stack, asked, noise=noise, n_draws=N_DRAWS)
    other = mi.tracing.twin(world.model.tokenizer, fact, world.facts)
    return mi.tracing.swap(stack, asked, other)


def mlp_maps(stack, pair):
    metric = mi.patching.log_odds(pair.asked.true, pair.asked.false)
    how = {"sites": mi.patching.each_position(len(pair.asked.tokens)), "kind": "mlp_out"}
    change = pair.clean.outputs["mlp_out"] - pair.corrupted.outputs["mlp_out"]
    guessed = mi.attribution.attribution(stack, pair.corrupted, pair.clean, metric, ["mlp_out"])
    lost = float(
        metric(pair.clean.logits).mean() - metric(pair.corrupted.logits).mean()
    )  # nats
    return {
        "denoise": lost * mi.tracing.effects(stack, pair, metric, **how),
        "denoise, window of 3": lost * mi.tracing.effects(stack, pair, metric, width=3, **how),
        "noise": lost * mi.tracing.effects(stack, pair, metric, direction="noise", **how),
        "attribution": guessed["mlp_out"].mean(1).T,
        "loudest change": change.norm(dim=-1).mean(1).T,
    }


# %%
def scores():
    for kind in ("one", "backup"):
        for seed in range(SEED, SEED + N_WORLDS):
            world = mi.recall_worlds.recall_world(seed, kind)
            stack = mi.patching.Stack(world.model)
            for noise in (0.0, 1.0):
                pairs = [corrupted_pair(world, stack, fact, noise) for fact in world.facts[:6]]
                every = [mlp_maps(stack, pair) for pair in pairs]
                for method in every[0]:
                    effects = torch.stack([maps[method] for maps in every]).mean(0)
                    pos, layer = divmod(int(effects.argmax()), effects.shape[1])
                    found = float((pos, layer) == (4, world.store[0]))
                    row = {"store": kind, "seed": seed, "method": method, "named": found}
                    row["corruption"] = f"noise {noise:g}" if noise else "another name"
                    yield row | {"at store": float(effects[4, world.store[0]])}


planted = pd.DataFrame(scores())
chance = 1 / (len(asked.tokens) * stack.n_layers)
shares = planted.pivot_table(
    index="method", columns=["store", "corruption"], values="named", sort=False
)
print(f"share of models in which the method names the store; chance is {chance:.3f}")
shares.style.format(precision=2)

# %%
simple = planted[(planted.store == "one") & (planted.corruption == "another name")]
named = simple.pivot(index="seed", columns="method", values="named")
claims.add(
    "Denoising names the planted store; the loudest change does not",
    value=named["denoise"].mean(),
    control=named["loudest change"].mean(),
    interval=mi.metrics.bootstrap_interval(
        named["denoise"] - named["loudest change"], seed=SEED
    ),
    margin=0.5,
    kind="planted",
)

# %%
single = planted[(planted.method == "noise") & (planted.corruption == "noise 1")]
lost = single.pivot(index="seed", columns="store", values="at store")
claims.add(
    "A backup hides part of the store from noising",
    value=lost["backup"].mean(),
    control=lost["one"].mean(),
    interval=mi.metrics.mean_interval(lost["backup"] - lost["one"]),
    direction="less",
    kind="planted",
    unit="nats",
)

# %%
guess.reveal(
    "is lost less"
    if lost["backup"].mean() < 0.8 * lost["one"].mean()
    else "is lost as without it"
)

# %% [markdown]
# So *sufficient* (denoising) and *necessary* (noising) are two questions. A window of three layers finds the store as
# well, and blurs it: its peak may be a neighbour. And the loudest write was never the answer.
#
# ## 2. What does the real model know?
#
# A fact counts as known if the answer's first token is the likeliest next token, above a threshold, and the whole answer
# is what the model writes. Some answers the model has, but does not give: after five examples of a relation it knows what
# is asked for. Counts are from the record; we measure one relation again.

# %%
asked_with = {"no examples": mi.facts.recorded(), "five examples": mi.facts.recorded(5)}
pd.concat({name: mi.facts.counts(known) for name, known in asked_with.items()}, axis=1)

# %%
pd.DataFrame(
    {
        name: {"facts": len(known), "known": known.known.sum()}
        for name, known in asked_with.items()
    }
)

# %%
model = mi.models.load_model()
stack, tokenizer = mi.patching.Stack(model), model.tokenizer
shown = mi.facts.load("element_symbol")[: 10 if FAST else 30]
again = mi.facts.measure(model, shown)
record = mi.facts.recorded().set_index(["relation", "subject"])
record = record.loc[list(zip(again.relation, again.subject, strict=True))]
claims.add(
    "The recorded knowledge is what this machine measures",
    value=float(np.abs(again.p_true.to_numpy() - record.p_true.to_numpy()).max()),
    control=0.0,
    interval=None,
    direction="within",
    margin=0.01,
    kind="planted",
)

# %% [markdown]
# Athletes' sports, the relation of *Fact Finding*, are not among what this model knows, so nothing here uses them.

# %%
knows = asked_with["no examples"].groupby("relation").known
cities, athletes = (
    knows.get_group(name).astype(float) for name in ("city_country", "athlete_sport")
)
claims.add(
    "The model knows a smaller share of athletes' sports than of cities' countries",
    value=athletes.mean(),
    control=cities.mean(),
    interval=mi.metrics.difference_interval(athletes, cities, seed=SEED),
    direction="less",
)

# %% [markdown]
# ## 3. One fact on the map
#
# Type a prompt and its subject, press *trace*, and click a cell to see what the next token becomes when that one state is
# put back. `instead` takes another subject with as many tokens; left empty, the subject gets noise.

# %%
mi.trace_map.trace_map(model, PROMPT, SUBJECT)

# %% [markdown]
# ## 4. Many facts
#
# One map is an anecdote. The record has facts of seven relations. We look at the last token of the subject and at the
# last token of the prompt. Shares run from nothing recovered to everything; bands are intervals over facts.

# %%
guess = mi.exercises.predict(
    "Does the answer wander from the subject to the last token over many layers, or in one step?",
    ["over many layers", "mostly in one step"],
)

# %%
facts = mi.tracing.traced_facts().set_index(["relation", "subject"])
n_traced, facts = len(facts), facts[facts.p_clean - facts.p_corrupted > 0.1]
print(
    f"{len(facts)} of {n_traced} facts lose a tenth of probability or more: only they have a share to recover"
)
traces = mi.tracing.recorded_traces().join(
    facts[["p_clean", "p_corrupted"]], on=["relation", "subject"], how="inner"
)
traces["share"] = (traces.p - traces.p_corrupted) / (traces.p_clean - traces.p_corrupted)
facts.groupby("relation", sort=False)[["p_clean", "p_corrupted", "p_corrupted_after"]].agg(
    ["count", "mean"]
).style.format(precision=2)


# %%
def arm(kind, width, site, relation=None):
    """Shares of one arm, a row per fact and a column per layer."""
    rows = traces[(traces.kind == kind) & (traces.width == width) & (traces.site == site)]
    if relation is not None:
        rows = rows[rows.relation == relation]
    return rows.pivot(index=["relation", "subject"], columns="layer", values="share")


# %%
def band(table):
    ends = [mi.metrics.bootstrap_interval(table[layer], n_resamples=300) for layer in table]
    return pd.DataFrame(
        {"value": table.mean(), "low": [e.low for e in ends], "high": [e.high for e in ends]}
    )


subject, last = arm("resid_post", 1, "subject"), arm("resid_post", 1, "last")
curves = {
    "subject's last token": subject,
    "last token": last,
    "a token between": arm("resid_post", 1, "elsewhere"),
    "subject, state of another": arm("resid_post", 1, "other prompt"),
}
mi.plots.curves_with_bands(
    {name: band(table) for name, table in curves.items()},
    dict(zip(curves, ("clean", "patched", "control", "baseline"), strict=True)),
    f"Residual stream, {len(subject)} facts",
    "layer",
    "share of the lost probability that comes back",
)

# %%
steps = last.diff(axis=1).iloc[:, 1:]
handover = int(steps.mean().idxmax())
ordered = np.sort(steps.to_numpy(), axis=1)
largest, second = ordered[:, -1], ordered[:, -2]
print(f"the largest mean step is into layer {handover}")
guess.reveal("mostly in one step" if largest.mean() > 0.5 else "over many layers")

# %%
claims.add(
    "A fact's largest one-layer step at the last token is larger than its second largest by a quarter of the whole",
    value=largest.mean(),
    control=second.mean(),
    interval=mi.metrics.bootstrap_interval(largest - second, seed=SEED),
    margin=0.25,
)

# %% [markdown]
# Is it the same layer in every relation? Below, the layer from which on the last token recovers more than the subject.

# %%
ahead = last > subject
crossing = (
    ahead.iloc[:, ::-1].cummin(axis=1).sum(axis=1)
)  # how many of the last layers it is ahead in
crossing = (ahead.shape[1] - crossing).rename("crossing")
spread = crossing.groupby(level="relation", sort=False).describe()[
    ["count", "min", "25%", "50%", "75%", "max"]
]
spread.style.format(precision=0)

# %%
near = ((crossing - crossing.median()).abs() <= 1).astype(float)
early = ((crossing - crossing.median() + 3).abs() <= 1).astype(
    float
)  # as wide a range, three layers earlier
claims.add(
    "More facts cross within a layer of the median crossing than within a layer of three layers earlier",
    value=near.mean(),
    control=early.mean(),
    interval=mi.metrics.bootstrap_interval(near - early, seed=SEED),
)

# %% [markdown]
# The controls of the figure as claims. A state of *another* subject's run must not bring *this* answer back, and a token
# between subject and end should hold little of it.

# %%
middle = range(5, 18)
at_subject = subject[list(middle)].mean(axis=1)
for name, text in (
    ("a token between", "The subject's state brings back more than that of a token between"),
    (
        "subject, state of another",
        "The subject's state brings back more than the same token's of another subject",
    ),
):
    control = curves[name][list(middle)].mean(axis=1)
    both = pd.concat([at_subject, control], axis=1, keys=["value", "control"]).dropna()
    claims.add(
        text,
        value=both.value.mean(),
        control=both.control.mean(),
        interval=mi.metrics.bootstrap_interval(both.value - both.control, seed=SEED),
    )

# %% [markdown]
# And corrupting as many tokens *after* the subject should cost less than corrupting the subject, or "subject" means
# nothing. It is a hard control: where the prompt ends soon after the subject, its last token is among them, or there are
# fewer.

# %%
claims.add(
    "Noise on the subject costs more probability than noise on as many tokens after it",
    value=(facts.p_clean - facts.p_corrupted).mean(),
    control=(facts.p_clean - facts.p_corrupted_after).mean(),
    interval=mi.metrics.bootstrap_interval(
        facts.p_corrupted_after - facts.p_corrupted, seed=SEED
    ),
)

# %% [markdown]
# ## 5. The middle MLPs
#
# The site that editing was built on: MLPs of middle layers at the subject's last token, a window at a time, against the
# same window at the last token.

# %%
windows = {
    "MLPs, subject's last token": arm("mlp_out", 5, "subject"),
    "MLPs, last token": arm("mlp_out", 5, "last"),
    "attention, last token": arm("attn_out", 5, "last"),
}
mi.plots.curves_with_bands(
    {name: band(table) for name, table in windows.items()},
    dict(zip(windows, ("clean", "control", "patched"), strict=True)),
    "Windows of five layers",
    "middle layer of the window",
    "share of the lost probability that comes back",
)

# %%
mlps = windows["MLPs, subject's last token"]
early, mid = mlps[list(range(3))].max(axis=1), mlps[list(range(8, 21))].max(axis=1)
claims.add(
    "At the subject's last token, the best early MLP window brings back more than the best middle one",
    value=early.mean(),
    control=mid.mean(),
    interval=mi.metrics.bootstrap_interval(early - mid, seed=SEED),
)

# %%
elsewhere = windows["MLPs, last token"][list(range(8, 21))].max(axis=1)
both = pd.concat([mid, elsewhere], axis=1, keys=["value", "control"]).dropna()
claims.add(
    "The best middle MLP window at the subject brings back more than the best at the last token",
    value=both.value.mean(),
    control=both.control.mean(),
    interval=mi.metrics.bootstrap_interval(both.value - both.control, seed=SEED),
)

# %% [markdown]
# Some facts again, here and now, with the record's own settings:

# %%
chosen = [
    fact
    for relation, name in facts.index[:: max(1, len(facts) // N_LIVE)][:N_LIVE]
    for fact in mi.facts.load(relation)
    if fact.subject == name
]
layers = [0, 10, 20, 29]


# %%
def traced_again(fact):
    asked = mi.tracing.question(tokenizer, fact)
    pair = mi.tracing.corrupt(stack, asked, n_draws=mi.tracing.RECORDED_DRAWS)
    site = mi.patching.at([asked.subject[-1]], len(asked.tokens))[None]
    p = mi.patching.probability(asked.true)
    return mi.patching.sweep(stack, pair.corrupted, pair.clean, p, site, layers=layers)[0].mean(
        1
    )


# %%
recorded = traces[(traces.kind == "resid_post") & (traces.site == "subject")]
recorded = recorded.pivot(index=["relation", "subject"], columns="layer", values="p")[layers]
gaps = [
    np.abs(
        traced_again(fact).numpy() - recorded.loc[(fact.relation, fact.subject)].to_numpy()
    ).max()
    for fact in chosen
]
claims.add(
    "The recorded traces are those that this machine measures",
    value=max(gaps),
    control=0.0,
    interval=None,
    direction="within",
    margin=0.02,
    kind="planted",
)

# %% [markdown]
# ## 6. What the choices do
#
# The same facts with other noise, windows and metrics, MLPs at the subject's last token. If a conclusion needs one of
# these settings, it is a conclusion about the setting.


# %%
def shares_at(fact, noise, width, metric_name):
    asked = mi.tracing.question(tokenizer, fact)
    pair = mi.tracing.corrupt(stack, asked, noise=noise, n_draws=2)
    metric = mi.patching.probability(asked.true)
    if metric_name == "log-odds":
        metric = mi.patching.log_odds(asked.true, asked.false)
    site = mi.patching.at([asked.subject[-1]], len(asked.tokens))[None]
    shares = mi.tracing.effects(
        stack, pair, metric, site, kind="mlp_out", width=width, layers=range(1, 27, 3)
    )[0]
    named = {
        f"layer {layer}": float(share)
        for layer, share in zip(range(1, 27, 3), shares, strict=True)
    }
    return {"noise": noise, "window": width, "metric": metric_name} | named


# %%
settings = [
    (3.0, 5, "probability"),
    (1.0, 5, "probability"),
    (10.0, 5, "probability"),
    (3.0, 1, "probability"),
    (3.0, 10, "probability"),
    (3.0, 5, "log-odds"),
]
rows = pd.DataFrame([shares_at(fact, *setting) for setting in settings for fact in chosen[:2]])
rows.groupby(["noise", "window", "metric"], sort=False).mean().style.format(precision=2)

# %% [markdown]
# ## 7. Another subject in place of noise, both directions, and a quick guess
#
# Noise throws the model out of its habits. Another subject with as many tokens does not: now both runs are ordinary, and
# we can go either way. `attribution patching` guesses all of it from one gradient; the exact patches say how well.


# %%
def partners(limit):
    known = mi.facts.load_known("us_city_state") + mi.facts.load_known("country_language")
    for fact in known:
        other = mi.tracing.twin(tokenizer, fact, known)
        if other is not None:
            yield mi.tracing.swap(stack, mi.tracing.question(tokenizer, fact), other)
            limit -= 1
        if limit == 0:
            return


pairs = list(partners(2 * N_LIVE))
LAYERS = sorted({*range(0, 30, 3), 22, 23, 25, 26})


# %%
def both_ways(pair):
    metric = mi.patching.log_odds(pair.asked.true, pair.asked.false)
    places = {"subject": pair.asked.subject[-1], "last": len(pair.asked.tokens) - 1}
    site = torch.stack([mi.patching.at([p], len(pair.asked.tokens)) for p in places.values()])
    for direction in ("denoise", "noise"):
        exact = mi.tracing.effects(
            stack, pair, metric, site, direction=direction, layers=LAYERS
        )
        for name, shares in zip(places, exact, strict=True):
            yield from (
                {"direction": direction, "site": name, "layer": layer, "share": float(share)}
                for layer, share in zip(LAYERS, shares, strict=True)
            )


ways = pd.DataFrame(
    [row | {"pair": n} for n, pair in enumerate(pairs) for row in both_ways(pair)]
)
ways.groupby(["site", "direction", "layer"], sort=False).share.mean().unstack(
    "layer"
).style.format(precision=2)

# %%
subject_site = ways[ways.site == "subject"].pivot_table(
    index="pair", columns="direction", values="share"
)
claims.add(
    "Denoising and noising the subject's states agree, over all layers, to within a tenth of the whole",
    value=subject_site["denoise"].mean(),
    control=subject_site["noise"].mean(),
    interval=mi.metrics.bootstrap_interval(
        subject_site["denoise"] - subject_site["noise"], seed=SEED
    ),
    direction="within",
    margin=0.1,
)

# %%
guess = mi.exercises.predict(
    "Where is attribution patching's guess for the residual stream at its worst?",
    ["in the first layers", "in the last layers"],
)


# %%
def guess_errors(pair):
    metric = mi.patching.log_odds(pair.asked.true, pair.asked.false)
    places = [pair.asked.subject[-1], len(pair.asked.tokens) - 1]
    site = torch.stack([mi.patching.at([p], len(pair.asked.tokens)) for p in places])
    guessed = mi.attribution.attribution(
        stack, pair.corrupted, pair.clean, metric, ["resid_post"]
    )
    guessed = guessed["resid_post"][LAYERS][:, 0, places].T
    exact = mi.patching.sweep(stack, pair.corrupted, pair.clean, metric, site, layers=LAYERS)
    exact = exact[..., 0] - metric(pair.corrupted.logits)
    whole = mi.attribution.agreement(guessed, exact)
    by_layer = {
        layer: mi.attribution.agreement(guessed[:, n], exact[:, n]).error
        for n, layer in enumerate(LAYERS)
    }
    return by_layer | {"all layers": whole.error, "rank": whole.rank}


errors = pd.DataFrame([guess_errors(pair) for pair in pairs])
errors.median().to_frame("error, median over pairs").T.style.format(precision=2)

# %%
first, late = errors[LAYERS[:3]].median().mean(), errors[LAYERS[-3:]].median().mean()
guess.reveal("in the first layers" if first > late else "in the last layers")

# %%
claims.add(
    "Attribution patching is closer to the exact patches than guessing that none has an effect",
    value=errors["all layers"].mean(),
    control=1.0,
    interval=mi.metrics.Interval(
        *(end - 1 for end in mi.metrics.bootstrap_interval(errors["all layers"], seed=SEED))
    ),
    direction="less",
)

# %% [markdown]
# ## 8. Who carries the answer over?
#
# Path patching: one head of the last token reads the subject's keys and values from the clean run, everything else stays
# corrupted. What changes went from the subject through that head.


# %%
def heads(pair, layers):
    metric = mi.patching.log_odds(pair.asked.true, pair.asked.false)
    read = mi.paths.reading(
        stack, pair.corrupted, pair.clean, metric, list(pair.asked.subject), layers=layers
    )
    clean, corrupted = (
        float(metric(run.logits).mean()) for run in (pair.clean, pair.corrupted)
    )
    return mi.tracing.share_recovered(read[..., 0], corrupted, clean)


HEAD_LAYERS = range(16, 30)
maps = torch.stack([heads(pair, HEAD_LAYERS) for pair in pairs])
figure = mi.plots.layer_map(
    maps.mean(0).T,
    [f"head {head}" for head in range(stack.n_heads)],
    "Share of the answer that one head of the last token carries from the subject",
    "share",
)
figure.update_xaxes(
    tickvals=list(range(len(HEAD_LAYERS))), ticktext=[str(layer) for layer in HEAD_LAYERS]
)

# %%
best = maps.amax(2)  # of each pair and layer, its strongest head
here = best[:, handover - HEAD_LAYERS[0]].numpy()
others = np.delete(best.numpy(), handover - HEAD_LAYERS[0], axis=1).max(1)
claims.add(
    "The strongest head of the hand-over layer carries more than the strongest of any other layer",
    value=here.mean(),
    control=others.mean(),
    interval=mi.metrics.bootstrap_interval(here - others, seed=SEED),
)

# %% [markdown]
# ## 9. Your turn
#
# **Share recovered** (easy). Given the metric after a patch, in the corrupted and in the clean run, return the share of
# the loss that came back.


# %%
def share(patched, corrupted, clean):
    """0 where the patch did nothing, 1 where it brought everything back."""
    ...


share = mi.exercises.attempt(
    share,
    reference=lambda patched, corrupted, clean: (patched - corrupted) / (clean - corrupted),
)
mi.exercises.check(share, [(0.5, 0.1, 0.9), (0.9, 0.1, 0.9), (0.0, 0.1, 0.9)])

# %%
mi.exercises.hint(
    "How far did the patch move the metric from the corrupted run?",
    "Divide by how far it could have moved.",
)

# %% [markdown]
# **Windows** (medium). Which layers belong to a window around a layer, cut off at the model's ends? An even width reaches
# one layer further down.


# %%
def window(layer, width, n_layers):
    """The layers of the window, as a list."""
    ...


window = mi.exercises.attempt(window, reference=lambda *where: list(mi.patching.window(*where)))
mi.exercises.check(window, [(4, 5, 30), (4, 4, 30), (0, 10, 30), (29, 3, 30)])

# %%
mi.exercises.hint(
    "Half of the width, rounded down, lies below the layer.",
    "range(max(0, layer - width // 2), min(n_layers, layer - width // 2 + width))",
)

# %% [markdown]
# ## What this does not show
#
# - That a fact is *stored* where a state brings it back. A state of the residual stream holds all that was done before.
# - That the middle MLPs do nothing. Other tokens' MLPs, and attention, may do what a patched window then cannot show.
# - That a site without effect under noising is idle: a backup may have stepped in, as in our planted model.
# - That editing works where tracing points. That is measured, layer by layer, in `09_edit_a_fact`.
# - Anything about facts that the model does not know, or knows only after examples; about answers beyond their first
#   token; or about larger models.
#
# We would change our mind about the hand-over if other prompts of the same relations crossed at other layers.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - Score a method where the answer is planted: patching names a store that the loudest change misses.
# - Denoising asks what suffices, noising what is needed; a backup makes them differ.
# - Beside every effect belongs that of another token, another prompt's state, and other corrupted tokens.
# - Noise, window and metric are part of the result.
# - A gradient's guess is cheap and wants exact patches beside it.
#
# **More exercises.** (medium) Trace a fact in the map with `instead` and with noise: which cells differ? (hard) In
# `recall_worlds`, split the store over two layers: which method still names both?
#
# ## Sources
#
# Meng et al. (2022), *Locating and editing factual associations in GPT*. Hase et al. (2023), *Does localization inform
# editing?* Zhang and Nanda (2024), *Towards best practices of activation patching*. Heimersheim and Nanda (2024), *How to
# use and interpret activation patching*. Goldowsky-Dill et al. (2023), *Localizing model behavior with path patching*.
# Nanda (2023), *Attribution patching*. Geva et al. (2023), *Dissecting recall of factual associations*.
