# %% [markdown]
# # What does one latent mean, and how would we find out that it doesn't?
#
# *Read latents the honest way: examples from everywhere, explanations that are marked, and the latents of a model that
# never learned anything beside them.*
#
# Four minutes on two CPU cores, no network. You should have met sparse autoencoders (`01_train_an_sae`).
#
# After this notebook you will be able to
# - read a latent card, and say which part of it cherry-picks;
# - write an explanation of a latent and have it marked on text nobody has looked at;
# - ablate and boost a latent and tell its effect from that of any direction;
# - name the words on which a latent that should fire is silent, and who took them.
#
# Background: [Bills et al. (2023)](https://openaipublic.blob.core.windows.net/neuron-explainer/paper/index.html) on
# explaining neurons, [Heap et al. (2025)](https://arxiv.org/abs/2501.17727) on random models,
# [Chanin et al. (2024)](https://arxiv.org/abs/2409.14507) on absorption.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
NAME = "resid12_1152" if FAST else "resid12_18432"  # the shipped dictionary we read
NARROWER = "resid12_1152"
RANDOM_NAME = "resid12_1152_random_model"
N_HELD_OUT = 6_000 if FAST else 30_000  # tokens on which explanations are marked
N_WORLDS = 3 if FAST else 6  # planted worlds in the exam
N_LATENTS = 30 if FAST else 200  # latents whose explanations we mark
N_EFFECTS = 6 if FAST else 40  # latents we ablate and boost
PROMPT = "The Eiffel Tower is in Paris, the capital of France."

# %%
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("02_inspect_latents")

# %% [markdown]
# ## 1. Latents whose meaning we planted
#
# Before we read latents of a language model, we read some whose meaning we know. This is a tiny transformer whose
# embeddings hold five latents: two are plain classes of words, one has *two faces*, one has a *hole*, and one fires on
# words drawn at random, so it means nothing.

# %%
planted = mi.language_worlds.planted_meanings(seed=SEED)
pd.Series(
    {
        name: ", ".join(f"{word} ({strength:g})" for word, strength in meaning.items())
        for name, meaning in zip(planted.names, planted.meaning, strict=True)
    },
    name="fires on (how strongly)",
).to_frame().style.set_properties(**{"text-align": "left", "white-space": "normal"})

# %% [markdown]
# An *index* is made in one pass over a text. Of each latent it keeps the strongest examples, as every dashboard does,
# and a random sample of all its firings, as few do.

# %%
folder = Path(tempfile.mkdtemp())
settings = mi.latents.Settings(n_top=20, n_sample=40, before=8, after=3)
planted_index = mi.indexing.build(
    planted.model,
    planted.dictionary,
    planted.text(400, seed=SEED),
    planted.hook_name,
    folder / "planted",
    settings=settings,
)
two_faces = planted.names.index("two faces")
mi.cards.Card("its strongest examples", snippets=planted_index.top(two_faces)[:8])

# %%
guess = mi.exercises.predict(
    "These are the strongest examples of one latent. On what share of its firings does it fire on animals?",
    ["nearly all", "about half", "a quarter"],
)

# %%
mi.cards.Card("a random sample of its firings", snippets=planted_index.sample(two_faces)[:8])

# %%
animals = mi.language_worlds.CLASSES["animals"].split()
on_animals = [s.tokens[s.mark].strip() in animals for s in planted_index.sample(two_faces)]
options = {"a quarter": 0.25, "about half": 0.5, "nearly all": 1.0}
guess.reveal(min(options, key=lambda name: abs(options[name] - np.mean(on_animals))))

# %% [markdown]
# The strongest examples told the truth about the strongest examples. Tools come three times as often in this text, and
# on them the latent fires less strongly, so they never reach the top.
#
# **An explanation is worth what it predicts.** We mark it like an exam. Some firings may be read. The questions are
# other firings, places where the latent is silent, and *near misses*: the same words, where it is silent. A rule is a
# function that answers. We mark the plainest of all, "it fires on the words it was seen to fire on", read once off the
# top and once off a random sample, and beside them the planted meaning and the meaning of another latent.


# %%
def meaning_rule(world, latent):
    return lambda snippet: snippet.tokens[snippet.mark].strip() in world.meaning[latent]


def mark(world, index, observed, latent, seed):
    quiz = mi.explanations.quiz(index, observed, latent, n_each=10, seed=seed)
    rules = {
        "planted meaning": meaning_rule(world, latent),
        "words of a random sample": mi.explanations.token_rule(quiz.shown),
        "words of the top examples": mi.explanations.token_rule(index.top(latent)),
        "meaning of another latent": meaning_rule(world, (latent + 1) % 2),  # colours, cities
        "always yes": mi.explanations.majority_rule(True),
    }
    return {name: quiz.answer_with(rule) for name, rule in rules.items()}


# %%
def exam(seed):
    world = mi.language_worlds.planted_meanings(seed)
    place, made = world.hook_name, folder / f"exam {seed}"
    texts = world.text(400, seed=seed), world.text(200, seed=100 + seed)
    index = mi.indexing.build(
        world.model, world.dictionary, texts[0], place, made, settings=settings, progress=False
    )
    observed = mi.explanations.observe(world.model, world.dictionary, texts[1].tokens, place)
    return {
        (name, seed): mark(world, index, observed, latent, seed)
        for latent, name in enumerate(world.names)
    }


marks = {key: value for seed in range(N_WORLDS) for key, value in exam(SEED + seed).items()}
accuracy = pd.DataFrame(marks).map(lambda score: score.accuracy).T
accuracy.groupby(level=0).mean().round(2)

# %%
claims.add(
    "Marked on held-out text, the planted meaning beats the meaning of another latent",
    value=accuracy["planted meaning"].mean(),
    control=accuracy["meaning of another latent"].mean(),
    interval=mi.metrics.bootstrap_interval(
        (accuracy["planted meaning"] - accuracy["meaning of another latent"]).to_numpy()
    ),
    margin=0.3,
    kind="planted",
)

# %%
found = pd.DataFrame(marks).map(lambda score: score.sensitivity).T.loc["two faces"]
claims.add(
    "Top examples hide the second face: they find fewer of its firings than a random sample does",
    value=found["words of the top examples"].mean(),
    control=found["words of a random sample"].mean(),
    interval=mi.metrics.bootstrap_interval(
        (found["words of the top examples"] - found["words of a random sample"]).to_numpy()
    ),
    direction="less",
    margin=0.2,
    kind="planted",
)

# %% [markdown]
# Even a pure class fares badly when it is read off the top: its words are equally strong but for a little noise, and
# the top shows the one that noise favours. And look at the row of the latent that means nothing: a list of words
# explains it well. **Being predictable is not being meaningful.**
#
# ## 2. A real dictionary
#
# Six dictionaries come with this suite, trained on the residual stream after layer 12 of SmolLM2-135M. Each was measured
# on held-out text. The last three are controls: another seed, a decoder that never moved, a model with random weights.

# %%
cards = mi.sae.shipped_cards()
columns = ["d_sae", "samples", "fvu", "l0", "ce_recovered", "dead", "dense", "absorption"]
cards[columns].style.format(precision=3)

# %%
model = mi.models.load_model()
dictionary = mi.sae.load(NAME)
index = mi.latents.shipped_index(NAME, model.tokenizer)
hook_name = index.about["hook_name"]
table = index.table
ordinary = index.ordinary()
print(
    f"{len(table):,} latents, watched on {index.n_tokens:,} tokens; {len(ordinary):,} are neither rare nor dense"
)

# %% [markdown]
# A card shows one latent. We choose it by a rule, the median of the ordinary latents by density, not because it is
# pretty. Read it from the bottom: first the random firings, then the quarters, the top last. The two greys say what a
# *random direction* reaches: some token's logit is always raised, and some row of a big dictionary is always near.

# %%
by_density = table.loc[ordinary].sort_values("density")
latent = int(by_density.index[len(by_density) // 2])
index.card(latent)

# %% [markdown]
# **Type a prompt.** Each token is as dark as its most specific latent is specific: how rarely that latent is as active.
# Click a token for its latents, click a latent for its card.

# %%
mi.explorers.prompt_explorer(model, dictionary, index, PROMPT)

# %% [markdown]
# **Browse.** Search by token, by density, by your own labels, by a prompt. Labels and notes are saved beside the index
# and travel with it.

# %%
mi.explorers.latent_browser(index, model, dictionary)

# %% [markdown]
# ## 3. Top examples, marked
#
# Now the exam for latents drawn at random. Text for the questions was in neither the training nor the index.

# %%
guess = mi.exercises.predict(
    "Rules read off the top examples instead of a random sample find ...",
    ["fewer of a latent's firings", "as many", "more"],
)

# %%
split = mi.corpus.split_held_out(mi.corpus.load_corpus())
text = mi.corpus.contexts(
    mi.corpus.sample(split.held_out, N_HELD_OUT, SEED), model.tokenizer
).shuffled(SEED)
observed = mi.explanations.observe(model, dictionary, text.tokens, hook_name)
chosen = np.random.default_rng(SEED).choice(
    ordinary, min(N_LATENTS, len(ordinary)), replace=False
)
rules = mi.explanations.token_rules(index, observed, chosen.tolist(), SEED)
rules.mean().round(3).to_frame("mean over latents")

# %%
from_top, from_sample = rules["top sensitivity"], rules["sample sensitivity"]
interval = mi.metrics.bootstrap_interval((from_top - from_sample).to_numpy())
claims.add(
    "Token rules read off top examples find fewer of a latent's firings than rules read off a random sample",
    value=from_top.mean(),
    control=from_sample.mean(),
    interval=interval,
    direction="less",
)

# %%
answers = ["fewer of a latent's firings", "as many", "more"]
guess.reveal(answers[0 if interval.high < 0 else 2 if interval.low > 0 else 1])

# %%
mi.plots.paired_dots(
    rules["sample sensitivity"],
    rules["top sensitivity"],
    "Share of held-out firings that a rule finds, one dot per latent",
    "rule read off a random sample",
    "rule read off the top examples",
)

# %% [markdown]
# ## 4. The same for a model that learned nothing
#
# A transformer with random weights has no concepts, but its stream still knows something of which token it is reading,
# and its latents have cards too. Here is one, chosen by the same rule. Would you have known?

# %%
random_model = mi.models.random_twin(model, SEED)
random_dictionary = mi.sae.load(RANDOM_NAME)
random_index = mi.latents.shipped_index(RANDOM_NAME, model.tokenizer)
random_ordinary = random_index.ordinary()
by_density = random_index.table.loc[random_ordinary].sort_values("density")
random_index.card(int(by_density.index[len(by_density) // 2]))

# %%
guess = mi.exercises.predict(
    "Whose latents are better explained by a list of tokens?",
    ["the trained model's", "the random model's", "no difference"],
)

# %%
narrow = mi.sae.load(NARROWER)
narrow_index = mi.latents.shipped_index(NARROWER, model.tokenizer)


def mark_tokens(model, dictionary, index):
    latents = index.ordinary()
    observed = mi.explanations.observe(model, dictionary, text.tokens, hook_name)
    rng = np.random.default_rng(SEED)
    chosen = rng.choice(latents, min(N_LATENTS, len(latents)), replace=False)
    return mi.explanations.token_rules(index, observed, chosen.tolist(), SEED)


trained_rules = mark_tokens(model, narrow, narrow_index)
random_rules = mark_tokens(random_model, random_dictionary, random_index)

# %%
scores = {
    "random model": random_rules["sample accuracy"],
    "trained model, same width": trained_rules["sample accuracy"],
    "trained model, widest": rules["sample accuracy"],
}
spread = {
    name: {"value": s.mean()} | mi.metrics.bootstrap_interval(s.to_numpy())._asdict()
    for name, s in scores.items()
}
roles = dict(zip(scores, ["random_model", "trained", "second_seed"], strict=True))
mi.plots.dots_with_intervals(
    pd.DataFrame(spread).T,
    roles,
    "How well a list of tokens predicts firing",
    "accuracy on held-out questions",
)

# %%
random_scores = scores["random model"].to_numpy()
trained_scores = scores["trained model, same width"].to_numpy()
interval = mi.metrics.difference_interval(random_scores, trained_scores)
claims.add(
    "A list of tokens explains latents of a random model better than those of the trained one",
    value=random_scores.mean(),
    control=trained_scores.mean(),
    interval=interval,
)

# %%
answers = ["the trained model's", "no difference", "the random model's"]
guess.reveal(answers[1 + (interval.low > 0) - (interval.high < 0)])

# %% [markdown]
# A list of tokens must fail the near misses, since they *are* those tokens: it can do worse than guessing. Where it does
# well all the same, the latent needs no concept. And a mean hides the best: among the random model's latents, this is
# the one that a list of tokens explains best.

# %%
random_index.card(int(random_rules["sample accuracy"].idxmax()))

# %% [markdown]
# Whichever model won, a card that reads well is not yet evidence that the model computes what it seems to say. Compare
# it with the best card of a model that learned nothing.
#
# ## 5. What does it do? Ablate and boost
#
# We take one latent's contribution out where it fires, and compare with taking out *another* active latent of about the
# same size at the same place. Every change of that size does something; the question is whether it does more.

# %%
guess = mi.exercises.predict(
    "Ablating a token's most specific latent changes the prediction, compared with another active latent,",
    ["less", "as much", "more"],
)

# %%
active = observed.acts.tocsr()
n_ctx = text.tokens.shape[1]
rng = np.random.default_rng(SEED)


def a_case():
    """A place, its most specific latent, and the other latent there whose activation is nearest."""
    while True:
        place = int(rng.choice(np.flatnonzero(observed.kept)))
        latents, acts = active[[place]].indices, active[[place]].data
        if len(latents) > 3 and place % n_ctx > 4:
            break
    best = int(np.argmax(index.surprisal(latents, acts)))
    gaps = np.abs(acts - acts[best])
    gaps[best] = np.inf
    return place, int(latents[best]), int(latents[np.argmin(gaps)])


cases = [a_case() for _ in range(N_EFFECTS)]

# %%


@torch.no_grad()
def effects_of(place, latents):
    """KL of the next-token distribution when one latent, then another, is taken out at a place."""
    tokens = text.tokens[place // n_ctx][None, : place % n_ctx + 1].long()
    logits = [model(tokens, logits_to_keep=1)[0, -1]]
    for latent in latents:
        edit = mi.hooks.at_last(mi.latents.clamp(dictionary, latent, 0.0))
        with mi.hooks.intervene(model, {hook_name: edit}):
            logits.append(model(tokens, logits_to_keep=1)[0, -1])
    clean, *ablated = logits
    return mi.metrics.kl_divergence(
        clean.expand(len(latents), -1), torch.stack(ablated)
    ).tolist()


effects = pd.DataFrame(
    [effects_of(place, latents) for place, *latents in cases],
    columns=["most specific", "another of that size"],
)
difference = (effects["most specific"] - effects["another of that size"]).to_numpy()
interval = mi.metrics.bootstrap_interval(difference)
effects.describe().round(4)

# %%
claims.add(
    "Ablating the most specific latent of a token changes the next-token distribution more than another of its size",
    value=effects["most specific"].mean(),
    control=effects["another of that size"].mean(),
    interval=interval,
    unit="nats",
)

# %%
guess.reveal(["less", "as much", "more"][1 + (interval.low > 0) - (interval.high < 0)])

# %% [markdown]
# The card also lists the tokens whose logits a latent should raise, read off the weights alone. Does boosting it raise
# them, through eighteen more layers? We set the latent to its largest activation at the end of a plain prompt, and
# compare with a random direction of the same length, on the same tokens.

# %%
prompt = torch.tensor([model.tokenizer.encode("<|endoftext|>I would like to say that")])
W_U = mi.models.unembedding(model)
generator = torch.Generator().manual_seed(SEED)


@torch.no_grad()
def after(edit):
    """Logits after the prompt, with the end of it edited."""
    with mi.hooks.intervene(model, {hook_name: mi.hooks.at_last(edit)}):
        return model(prompt, logits_to_keep=1)[0, -1]


def raised(vector, tokens):
    gain = after(lambda x: x + vector) - unedited
    return (gain[tokens] - gain.mean()).mean().item()


unedited = after(lambda x: x)


# %%
def boost(latent):
    row, size = dictionary.W_dec[latent], float(table.max_act[latent])
    listed = (row @ W_U).topk(10).indices
    random = torch.nn.functional.normalize(torch.randn(len(row), generator=generator), dim=0)
    return raised(size * row, listed), raised(size * random, listed)


boosts = pd.DataFrame(
    [boost(int(latent)) for latent in chosen[:N_EFFECTS]],
    columns=["latent", "random direction"],
)
claims.add(
    "Boosting a latent raises the tokens on its card more than a random direction of the same length",
    value=boosts["latent"].mean(),
    control=boosts["random direction"].mean(),
    interval=mi.metrics.bootstrap_interval(
        (boosts["latent"] - boosts["random direction"]).to_numpy()
    ),
    unit="logits",
)
boosts.describe().round(2)

# %%
strongest = int(chosen[int(boosts["latent"].argmax())])
row, size = dictionary.W_dec[strongest], float(table.max_act[strongest])
logits = {"nothing": unedited, f"latent {strongest}": after(lambda x: x + size * row)}
said = {
    f"boosting {name}": mi.corpus.token_texts(model.tokenizer, each.topk(8).indices.tolist())
    for name, each in logits.items()
}
pd.DataFrame(said)

# %% [markdown]
# ## 6. The silent latent
#
# A latent for "begins with S" ought to fire on every word with S. A linear probe reads the first letter of words from
# this stream. Where the probe sees the letter, the letter's own latents are silent, and one more specific latent writes
# along the probe's direction instead, the letter was *absorbed*. As control we ask the same about the direction of
# another letter.

# %%
guess = mi.exercises.predict(
    "A wider dictionary has, compared with a narrow one,",
    ["less absorption", "as much", "more absorption"],
)

# %%
rows = mi.activations.harvest(model, text.tokens, [hook_name])
every = torch.arange(rows.n_rows)
x, origin = rows.rows(hook_name, every), rows.origin(every)
token = text.tokens[origin.context.long(), origin.position.long()].long()
letter = mi.absorption.first_letters(model.tokenizer, token)
words = letter >= 0
absorbed = {
    name: mi.absorption.absorption(mi.sae.load(name), x[words], letter[words], token[words])
    for name in dict.fromkeys([NARROWER, NAME])
}
pd.concat({name: a.letters for name, a in absorbed.items()}).groupby(level=0)[
    ["probe", "f1", "absorbed", "chance"]
].mean().astype(float).round(3)

# %%
wide, narrow_letters = absorbed[NAME].letters, absorbed[NARROWER].letters
shared = wide.index.intersection(narrow_letters.index)
change = (wide.absorbed[shared] - narrow_letters.absorbed[shared]).to_numpy(dtype=float)
interval = mi.metrics.bootstrap_interval(change)
answers = ["less absorption", "as much", "more absorption"]
answer = answers[1 + (interval.low > 0) - (interval.high < 0)]
by_chance = (wide.absorbed - wide.chance).to_numpy(dtype=float)
claims.add(
    "In the widest dictionary specific latents absorb first letters, more than another letter's direction would say",
    value=float(wide.absorbed.mean()),
    control=float(wide.chance.mean()),
    interval=mi.metrics.bootstrap_interval(by_chance),
)

# %%
guess.reveal(answer)

# %% [markdown]
# Look at the column `f1` before you praise a dictionary for little absorption: where no latent recognises the letter in
# the first place, there is hardly anything to absorb.
#
# ## 7. Your turn
#
# **The quiz** (10 minutes). Read, decide what the latent means, answer, and see whether you beat the list of tokens.

# %%
by_tokens = rules["sample accuracy"].sort_values()
hard = int(
    by_tokens.index[len(by_tokens) // 4]
)  # a latent that a list of tokens explains poorly
mi.explorers.explanation_quiz(mi.explanations.quiz(index, observed, hard, seed=SEED), index)

# %% [markdown]
# **Write a rule** (medium). Return whether the latent fires on the marked token, `snippet.tokens[snippet.mark]`; the
# tokens before it are there too. Can you beat the reference, which only looks at the token?


# %%
def my_rule(snippet):
    """Does the planted latent with two faces fire here?"""
    ...


def reference(snippet):
    return snippet.tokens[snippet.mark].strip() in planted.meaning[two_faces]


my_rule = mi.exercises.attempt(my_rule, reference=reference)
fresh = planted.text(200, seed=SEED + 1).tokens
seen = mi.explanations.observe(planted.model, planted.dictionary, fresh, planted.hook_name)
quiz = mi.explanations.quiz(planted_index, seen, two_faces, seed=SEED)
mi.exercises.check(my_rule, [(question.snippet,) for question in quiz.questions])

# %%
mi.exercises.hint(
    "The latent fires on two classes of words; the card of its random sample shows both.",
    "planted.meaning[two_faces] holds every word it fires on; tokens have a blank in front, so strip it.",
)

# %% [markdown]
# ## What this does not show
#
# - That latents with good marks are the units the model computes with. Marks say that firing is predictable.
# - That a list of tokens is the best explanation. A person, or a large model, would do better on many latents; the list
#   is the floor they have to beat.
# - That absorption is rare elsewhere. First letters are one relation, chosen because the truth is known.
# - That the examples are of the whole language: they come from one corpus.
#
# We would change our mind about "cards mislead" if rules read off the top found as many held-out firings as rules read
# off a random sample, and if the random model's latents were harder to explain than the trained one's.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - The strongest examples describe the strongest examples. Read a random sample before you name a latent.
# - Mark explanations: held-out firings, near misses, and the plainest rule beside yours.
# - What reads well on a random model's card is not a finding about a trained one.
# - What comes next is whether latents are atoms at all.
#
# **More exercises.** (easy) Move `SEED`: do the verdicts hold for other latents? (medium) Read a latent of the random
# model in the browser and try to prove that it is not a token detector. (hard) Find a latent with two faces in the real
# dictionary: high in `sample sensitivity`, low in `top sensitivity`.
#
# ## Sources
#
# Bills et al. (2023), *Language models can explain neurons in language models*. Paulo et al. (2024), *Automatically
# interpreting millions of features*. Chanin et al. (2024), *A is for Absorption*. Heap et al. (2025), *Sparse
# autoencoders can interpret randomly initialized transformers*. Templeton et al. (2024), *Scaling monosemanticity*.
