# %% [markdown]
# # What is in the residual stream, and can one direction change what the model says?
#
# *A tour in ten minutes: one picture from each topic.*
#
# Two minutes to run on two CPU cores, no network. You should have met PyTorch and the idea of a transformer.
#
# After this notebook you will be able to
# - say what the residual stream is and watch an answer appear in it, layer by layer;
# - say what a sparse autoencoder (SAE) does to it, and what a *latent* is;
# - change what the model says by adding one direction, and name the control without which that means little;
# - choose the notebook you want next.
#
# Two habits run through everything. **Planted truth**: each method first works on a small world whose answer is known.
# **Controls**: every number stands beside what chance, or a plainer method, would have reached.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
NAME = "resid12_1152" if FAST else "resid12_18432"  # the shipped dictionary we look through
QUESTION, ANSWER, OTHER = "The capital of France is", " Paris", " London"
PROMPT = "The Eiffel Tower is in Paris, the capital of France."
N_RANDOM = 4 if FAST else 20  # random directions that the chosen one has to beat

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("00_start_here")

# %% [markdown]
# ## 1. A model, and an answer that appears in it
#
# SmolLM2-135M is small enough to run here and large enough to know some facts. Every layer reads a vector per token,
# the *residual stream*, and adds something to it. If we unembed the stream early, as if the model ended there, we see
# when an answer turns up (the *logit lens*).

# %%
model = mi.models.load_model()
tokens = torch.tensor([model.tokenizer.encode("<|endoftext|>" + QUESTION)])
names = [mi.hooks.hook_name("resid_post", layer) for layer in range(model.cfg.n_layers)]
with torch.no_grad():
    stream = mi.hooks.run_with_cache(model, tokens, names)
    by_layer = torch.stack([model.unembed(model.ln_final(x[:, -1:])) for x in stream.values()])
probability = by_layer[:, 0, 0].softmax(-1)

# %%
guess = mi.exercises.predict(
    "In which third of the layers does the answer become the likeliest token?",
    ["the first", "the second", "the last", "never"],
)

# %%
ids = {word: model.tokenizer.encode(word)[0] for word in (ANSWER, OTHER)}
curves = {word: pd.DataFrame({"value": probability[:, i].numpy()}) for word, i in ids.items()}
mi.plots.curves_with_bands(
    curves,
    {ANSWER: "clean", OTHER: "baseline"},
    f"“{QUESTION}”, read off each layer",
    "layer",
    "probability",
)

# %%
first = (probability.argmax(-1) == ids[ANSWER]).nonzero()
thirds = ["the first", "the second", "the last"]
guess.reveal(thirds[int(first[0]) * 3 // len(names)] if len(first) else "never")

# %% [markdown]
# One prompt is an anecdote, and reading is not intervening: `08_locate_a_fact` takes many facts, and intervenes.
#
# ## 2. A dictionary for the stream
#
# Each vector in the stream is a sum of many things. An SAE tries to write it as a sum of *few* rows of a dictionary;
# each row is a latent. Does that find what is there? Where the truth is planted, we can look: every true direction
# (a row of the picture) should have a latent of its own (a dark square), and random rows should have none.

# %%
world = mi.worlds.superposition(seed=SEED)
learned = mi.worlds.train_on(world, d_sae=64, k=3.2, seed=SEED)
found = mi.worlds.recovery(world.directions, learned.W_dec)
control = mi.worlds.recovery(world.directions, mi.worlds.random_dictionary(64, 32, SEED))
mi.plots.recovery_matrix(found.cosines, "True features against learned rows")

# %%
is_found, by_chance = ((r.best.numpy() > 0.9).astype(float) for r in (found, control))
claims.add(
    "A sparse dictionary finds planted features, random rows do not",
    value=is_found.mean(),
    control=by_chance.mean(),
    interval=mi.metrics.bootstrap_interval(is_found - by_chance),
    margin=0.5,
    kind="planted",
)

# %% [markdown]
# `01_train_an_sae` makes such dictionaries fail on purpose, trains one on the real model, and sets controls beside it.
#
# ## 3. Latents of the real model
#
# The suite ships dictionaries of the stream after layer 12. Type a prompt; click a token for its latents, click a latent
# for its card.

# %%
dictionary = mi.sae.load(NAME)
index = mi.latents.shipped_index(NAME, model.tokenizer)
hook_name = index.about["hook_name"]
mi.explorers.prompt_explorer(model, dictionary, index, PROMPT)

# %% [markdown]
# Cards are easy to believe. `02_inspect_latents` marks explanations on text nobody has looked at, and shows you the
# convincing cards of a model with random weights.
#
# ## 4. One direction changes what the model says
#
# A latent's row is a direction; we can add it to the stream. We take the most specific latent on the last word of a
# sentence, add it while the model continues another one, and ask whether the tokens on its card become likelier. Any
# vector of that length disturbs the model, so random directions stand beside it.

# %%
seen = mi.latents.read_prompt(
    model, dictionary, index, "Add the flour, the butter and the sugar"
)
last = pd.DataFrame(
    {"bits": seen.bits[-1], "act": seen.acts[-1]},
    index=pd.Index(seen.latents[-1], name="latent"),
).sort_values("bits", ascending=False)
latent = int(last.index[0])
row, size = dictionary.W_dec[latent], float(last.act.iloc[0])
listed = (row @ mi.models.unembedding(model)).topk(10).indices
print("latent", latent, "should raise", mi.corpus.token_texts(model.tokenizer, listed.tolist()))

# %%
guess = mi.exercises.predict(
    "Added at the strength it has in the recipe, will the latent raise its tokens more than every random direction?",
    ["yes", "no"],
)

# %%
neutral = torch.tensor([model.tokenizer.encode("<|endoftext|>Yesterday I went to see my")])
doses = np.array([0.0, 0.5, 1.0, 2.0, 4.0])


@torch.no_grad()
def raised(direction, dose):
    edit = mi.hooks.at_last(lambda x: x + dose * size * direction)
    with mi.hooks.intervene(model, {hook_name: edit}):
        logits = model(neutral)[0, -1]
    return (logits[listed] - logits.mean()).mean().item()


generator = torch.Generator().manual_seed(SEED)
others = torch.nn.functional.normalize(
    torch.randn(N_RANDOM, len(row), generator=generator), dim=1
)
by_latent = np.array([raised(row, dose) for dose in doses])
by_random = np.array([[raised(other, dose) for dose in doses] for other in others])

# %%
gain, chance = by_latent - by_latent[0], by_random - by_random[:, :1]
curves = {
    f"latent {latent}": pd.DataFrame({"value": gain}, index=doses),
    "random directions": pd.DataFrame(
        {"value": chance.mean(0), "low": chance.min(0), "high": chance.max(0)}, index=doses
    ),
}
roles = dict(zip(curves, ["trained", "control"], strict=True))
mi.plots.curves_with_bands(
    curves,
    roles,
    "Logits of the tokens on the card, as the direction is added",
    "strength, in units of the latent's activation in the recipe",
    "mean logit gained",
)

# %%
at_one = int(np.flatnonzero(doses == 1)[0])
claims.add(
    "Adding a latent raises the tokens on its card more than random directions of the same length do",
    value=gain[at_one],
    control=chance[:, at_one].mean(),
    interval=mi.metrics.bootstrap_interval(gain[at_one] - chance[:, at_one]),
    unit="logits",
)

# %%
guess.reveal("yes" if gain[at_one] > chance[:, at_one].max() else "no")

# %%
said = {}
for name, direction, dose in (
    ("nothing added", row, 0.0),
    (f"latent {latent}, 4 times", row, 4.0),
    ("a random direction, 4 times", others[0], 4.0),
):
    with mi.hooks.intervene(
        model, {hook_name: lambda x, d=direction, s=dose: x + s * size * d}
    ):
        said[name] = mi.models.continue_greedily(model, "Yesterday I went to see my", 14)
pd.Series(said, name="Yesterday I went to see my ...").to_frame()

# %% [markdown]
# One latent, one prompt, one dose: an anecdote again, this time with its control. `02_inspect_latents` does it for many
# latents; whole concepts, and the price in fluency, are for `05_steering`.
#
# ## What this does not show
#
# - That the direction *is* the concept. It raised some tokens on one prompt.
# - That the latent is a unit of the model. Whether latents are atoms is a question of its own.
# - That the logit lens reads what the model "knows" early: it reads what the unembedding can see.

# %%
claims.table()

# %% [markdown]
# ## The whole, as a map
#
# Every notebook asks one question, first where the answer is planted, then on a real model. Start with `01` and `02`;
# after them the order is free, and a group can take one each.
#
# | notebook | question | planted first | after |
# |---|---|---|---|
# | `01_train_an_sae` | What does a sparse dictionary learn, and how do we know it learned anything? | features that split, absorb and merge | `00` |
# | `02_inspect_latents` | What does one latent mean, and how would we find out that it doesn't? | latents whose meaning we wrote | `01` |
# | `03_meta_saes` | Are latents atoms? | latents that are sums, and latents that are not | `01` |
# | `04_dictionaries_in_dictionaries` | Is a big dictionary just sums of a small one? | a dictionary made of another one's rows | `03` |
# | `05_steering` | Which directions steer, do they add up, and what do they break? | a language with concepts of our own | `00` |
# | `06_probes` | Does a dictionary beat a linear probe? | a faint label beside a loud cue | `00` |
# | `07_model_diffing` | What did fine-tuning change? | a pair of models with known differences | `01` |
# | `08_locate_a_fact` | Where does the model look a fact up? | a store of facts in known layers | `00` |
# | `09_edit_a_fact` | Was the fact rewritten, or shouted over? | edits that rewrite, and edits that shout | `08` |
# | `10_fact_finding` | Can factual recall be read off neurons? | four ways to remember | `08` |
# | `11_othello` | Does a model of moves hold a model of the board? | a board written into a model | `06` |
#
# Every notebook ends in a table like the one above. This is what all of them said when they were last put on record:

# %%
record = json.loads(Path("verdicts.json").read_text(encoding="utf8"))
verdicts = {name: pd.Series(found).value_counts() for name, found in record.items()}
pd.DataFrame(verdicts).T[["holds", "undecided", "does not hold"]].fillna(0).astype(int)

# %% [markdown]
# The claims that came out *no* are not mistakes that wait for a better seed. Some are what a method's users hope for.
#
# **Exercises.** (easy) Change `QUESTION`, `ANSWER` and `OTHER` to a fact of your choice. Does the model know it? (easy)
# Find a latent that fires on one word of a prompt only. (medium) Replace the recipe by a sentence of another kind and
# predict, before you run it, which tokens the latent on its last word raises.
#
# ## Sources
#
# nostalgebraist (2020), *Interpreting GPT: the logit lens*. Bricken et al. (2023), *Towards monosemanticity*. Turner et
# al. (2023), *Activation addition*. Model: SmolLM2-135M-Instruct (Allal et al. 2025), from 4-bit weights.
