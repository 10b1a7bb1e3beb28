# %% [markdown]
# # Does a model of moves hold a model of the board?
#
# *A transformer that has seen nothing but legal games: read the board off it, change the board in it, watch its moves.*
#
# Four minutes on two CPU cores, no network. You should know what a linear probe is (`06_probes`).
#
# After this notebook you will be able to
# - say why the same board is easy to read under one naming and impossible under another;
# - change one tile of what a model believes, and score its moves against the board it should now believe in;
# - put beside every edit what the same push does in a random direction and for another tile;
# - score a dictionary and single neurons where every right answer is known.
#
# Background: an *Othello-GPT* reads a game as a list of squares and says which square comes next. It was trained on random
# legal games and never saw a board or a rule. Ours plays on six squares a side and is small: half an hour of a busy CPU.
# In Othello a move must enclose discs of the other colour in a straight line; enclosed discs are turned.

# %%
try:
    import mi_utils as mi
except ModuleNotFoundError:
    remedy = "Here: ./lab open. On Colab or Binder: the README's section on them."
    raise ModuleNotFoundError(f"This kernel has no mi_utils. {remedy}") from None

# %% tags=["parameters"]
FAST = False
SEED = 0
SIZE = 6  # squares a side
N_WORLDS = 3 if FAST else 5  # planted players
N_PLANTED = 60 if FAST else 150  # games that a planted player's probe is fitted on
N_TEST = 60 if FAST else 250  # held-out games
N_LIVE = 80 if FAST else 500  # games that a probe is fitted on here and now
N_CASES = 60 if FAST else 250  # positions with one tile to change
N_SWEEP = 24 if FAST else 60  # of them, for sweeps
N_NEURONS, N_RULES = (12, 4) if FAST else (48, 12)
DOSES = [0.1, 0.4, 1.6] if FAST else [0.05, 0.1, 0.2, 0.3, 0.45, 0.7, 1.0, 1.6]

# %%
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from mi_utils.othello_editing import ADDITION, ERASE, FLIP, NOTHING, OTHER, RANDOM, TURN_BACK
from mi_utils.othello_probes import ABSOLUTE, RELATIVE

session = mi.session.start(seed=SEED)
claims = mi.claims.ClaimTable("11_othello")


def played(n_games, seed):
    """Random games with the board after each move, and their positions."""
    tokens = mi.othello_games.play_random(n_games, SIZE, seed)
    games = mi.othello_games.replay(tokens, SIZE)
    return games, mi.othello_probes.positions(games)


# %% [markdown]
# ## 1. A board that we wrote in ourselves
#
# A planted player: its state is a sum of known directions, two for each square, one for a disc *of the side to move* and
# one for a disc of the other side, plus noise. Its moves come from reading those directions. So the board is there, and is
# used. A second player holds the same board and moves by the true one: there the board is there, and is *not* used.

# %%
guess = mi.exercises.predict(
    "A linear probe is asked for the colour of every square. With which names will it work?",
    ["mine and yours", "black and white", "both alike"],
)


# %%
def planted(seed):
    """A planted player, and how to read it: states at all positions of games, and a probe for either pair of names."""
    world = mi.othello_worlds.planted_player(SIZE, seed=seed)
    games, rows = played(N_PLANTED, 100 + seed)
    x = rows.take(world.states(games.tokens)[0])
    fitted = {
        target: mi.othello_probes.fit(x, rows.targets[target], n_steps=200)
        for target in (RELATIVE, ABSOLUTE)
    }
    return world, games, rows, fitted


def planted_reading(seed):
    """How well the board is read under both names, and what the majority of each square and move says."""
    world, _, rows, fitted = players[seed]
    tests, held = played(60, 200 + seed)
    x = held.take(world.states(tests.tokens)[0])
    for target, probe in fitted.items():
        guesses = mi.othello_probes.majority(rows, held, target)
        for reader, said in (("linear probe", probe.predict(x)), ("majority", guesses)):
            right = float((said == held.targets[target]).mean())
            yield {"seed": seed, "names": target, "reader": reader, "accuracy": right}


# %%
players = {seed: planted(seed) for seed in range(SEED, SEED + N_WORLDS)}
worlds = pd.DataFrame([row for seed in players for row in planted_reading(seed)])
by_name = worlds.pivot_table(index="names", columns="reader", values="accuracy", sort=False)
by_name.style.format("{:.1%}")

# %%
gap = by_name.loc[RELATIVE, "linear probe"] - by_name.loc[ABSOLUTE, "linear probe"]
guess.reveal(
    "both alike" if abs(gap) < 0.02 else "mine and yours" if gap > 0 else "black and white",
    "Black or white is mine or yours times whose turn it is, and a product is not linear.",
)

# %%
wide = worlds.pivot(index="seed", columns=["names", "reader"], values="accuracy")[RELATIVE]
claims.add(
    "A linear probe reads a planted board; the majority of each square and move does not",
    value=wide["linear probe"].mean(),
    control=wide["majority"].mean(),
    interval=mi.metrics.mean_interval(wide["linear probe"] - wide["majority"]),
    margin=0.2,
    kind="planted",
)

# %% [markdown]
# Now *write*. One tile of the state is turned: the push is along the probe's direction for that tile, after every layer
# that we choose, at the last position. The score counts wrong squares. Where the changed board allows N moves, take the N
# likeliest squares: each one that is not allowed is an error, and each allowed one that is missing is another.


# %%
def planted_edits(seed):
    """Mean error of turning one tile in players that use their board and in players that do not."""
    world, games, _, fitted = players[seed]
    cases = mi.othello_editing.find_cases(played(80, 300 + seed)[0], 40, FLIP, seed=seed)
    length = mi.othello_editing.typical_lengths(world, games, [0])[0]
    edits = mi.othello_editing.arms({0: fitted[RELATIVE]}, cases, {0: 0.2 * length})
    for is_used, board in ((True, "used"), (False, "not used")):
        mover = replace(world, is_used=is_used)
        for arm, edit in edits.items():
            error = mi.othello_editing.score(mover, cases, edit).mean()
            yield {"seed": seed, "board": board, "arm": arm, "error": error}


edited = pd.DataFrame([row for seed in players for row in planted_edits(seed)])
edited.pivot_table(index="arm", columns="board", values="error", sort=False).round(2)

# %%
wide = edited.pivot(index="seed", columns=["board", "arm"], values="error")
claims.add(
    "Turning a tile of a planted board that is used changes the moves to those of the changed board",
    value=wide["used"][ADDITION].mean(),
    control=wide["used"][NOTHING].mean(),
    interval=mi.metrics.mean_interval(wide["used"][ADDITION] - wide["used"][NOTHING]),
    direction="less",
    margin=1.0,
    kind="planted",
)

# %%
gap = wide["not used"][ADDITION] - wide["not used"][NOTHING]
claims.add(
    "Turning a tile of a planted board that is read as well but not used changes nothing",
    value=wide["not used"][ADDITION].mean(),
    control=wide["not used"][NOTHING].mean(),
    interval=None if np.ptp(gap) == 0 else mi.metrics.mean_interval(gap),
    direction="within",
    margin=0.05,
    kind="planted",
)

# %% [markdown]
# Keep this pair in mind: a probe says that something is *there*. Only an edit says that it is *used*.
#
# ## 2. The player
#
# Trained from scratch by one command on games that were never used twice. What it cost is on its card.

# %%
player = mi.othello_model.load()
untrained = player.untrained(SEED)
games, rows = played(N_TEST, 20)
plan = {key: value for key, value in player.card.items() if key != "plan"}
pd.Series({**plan, **player.card["plan"]}, name="card").to_frame()

# %%
guess = mi.exercises.predict(
    "How often is its likeliest square a legal move, in games that it has never seen?",
    ["less than half", "half to nine in ten", "nine in ten or more"],
)

# %%
legal = mi.othello_model.legality(player, games)
legal_untrained = mi.othello_model.legality(untrained, games)
is_empty = games.boards[:, :-1] == 0
chance = (games.legal[:, :-1].sum(-1) / is_empty.sum(-1).clip(1))[games.open()[:, :-1]].mean()
pd.DataFrame(
    {
        "likeliest square is legal": [legal.likeliest.mean(), legal_untrained.likeliest.mean()],
        "probability of all legal squares": [legal.mass.mean(), legal_untrained.mass.mean()],
    },
    index=["trained", "never trained"],
).style.format("{:.1%}").set_caption(
    f"A random empty square is legal in {chance:.1%} of cases."
)

# %%
rate = legal.likeliest.mean()
guess.reveal(
    "less than half"
    if rate < 0.5
    else "half to nine in ten"
    if rate < 0.9
    else "nine in ten or more"
)

# %%
claims.add(
    "The likeliest square is a legal move in at least nine of ten positions of unseen games",
    value=rate,
    control=0.9,
    interval=[end - 0.9 for end in mi.metrics.bootstrap_interval(legal.likeliest)],
)

# %% [markdown]
# ## 3. Is the board in there?
#
# Probes for every layer, fitted on other games and shipped: linear and with one hidden layer, under both names, and the
# same on a model of the same shape that was never trained. The majority of each square and move is what a reader knows who
# sees nothing but the move number.

# %%
guess = mi.exercises.predict(
    "A probe with a hidden layer on black and white, against a linear one on mine and yours: which reads more?",
    ["the hidden layer", "the linear one", "both alike, within a percentage point"],
)

# %%
probes = mi.othello_probes.load(
    mi.othello_model.SHIPPED / f"{SIZE}x{SIZE}" / "probes.safetensors"
)
layers = list(range(player.n_layers))
states = {
    "trained": player.states(games.tokens, layers),
    "random": untrained.states(games.tokens, layers),
}
x = {(who, layer): rows.take(s) for who, found in states.items() for layer, s in found.items()}


def right(name, target, layer):
    """Which squares a shipped probe reads rightly."""
    who = name.split()[0]
    return probes[f"{name} {target} {layer}"].predict(x[who, layer]) == rows.targets[target]


# %%
READERS = {
    "linear, mine/yours": ("trained linear", RELATIVE, "trained"),
    "hidden layer, mine/yours": ("trained hidden", RELATIVE, "second_seed"),
    "linear, black/white": ("trained linear", ABSOLUTE, "corrupted"),
    "hidden layer, black/white": ("trained hidden", ABSOLUTE, "patched"),
    "untrained model, linear, mine/yours": ("random linear", RELATIVE, "random_model"),
    "untrained model, hidden layer, mine/yours": ("random hidden", RELATIVE, "control"),
}
accuracy = {
    reader: pd.DataFrame(
        {
            layer: mi.othello_probes.accuracy(right(name, target, layer), rows.game)
            for layer in layers
        }
    ).T
    for reader, (name, target, _) in READERS.items()
}
known, fitted_rows = played(max(N_LIVE, 200), 30)
guessed = mi.othello_probes.majority(fitted_rows, rows) == rows.targets[RELATIVE]
floor = mi.othello_probes.accuracy(guessed, rows.game)
accuracy["majority of square and move"] = pd.DataFrame(dict.fromkeys(layers, floor)).T

# %%
roles = {reader: role for reader, (_, _, role) in READERS.items()}
mi.plots.curves_with_bands(
    accuracy,
    roles | {"majority of square and move": "chance"},
    "Squares that a probe reads rightly (band: 95 % over games)",
    "after layer",
    "accuracy",
)

# %%
table = pd.DataFrame({reader: found.value for reader, found in accuracy.items()}).T
table.style.format("{:.1%}")

# %%
hidden, linear = (
    table.loc[name].max() for name in ("hidden layer, black/white", "linear, mine/yours")
)
guess.reveal(
    "both alike, within a percentage point"
    if abs(hidden - linear) < 0.01
    else "the hidden layer"
    if hidden > linear
    else "the linear one"
)

# %% [markdown]
# The layer is chosen on games of its own, before any claim is made on these.

# %%
others, other_rows = played(60, 40)
other_states = player.states(others.tokens, layers)
reached = {
    layer: (
        probes[f"trained linear {RELATIVE} {layer}"].predict(
            other_rows.take(other_states[layer])
        )
        == other_rows.targets[RELATIVE]
    ).mean()
    for layer in layers
}
best = max(reached, key=reached.get)


def per_game(is_right):
    """Accuracy of each game, for intervals over games."""
    return pd.Series(is_right.mean(1)).groupby(rows.game).mean().to_numpy()


ours = per_game(right("trained linear", RELATIVE, best))
print(f"best layer on other games: {best}")

# %%
theirs = per_game(right("random linear", RELATIVE, best))
claims.add(
    "A linear probe reads mine and yours better off the trained model than off an untrained one",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.bootstrap_interval(ours - theirs),
    margin=0.05,
)

# %%
theirs = per_game(right("random hidden", RELATIVE, best))
claims.add(
    "A linear probe on the trained model reads more than one with a hidden layer on an untrained model",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.bootstrap_interval(ours - theirs),
    margin=0.05,
)

# %%
theirs = per_game(guessed)
claims.add(
    "A linear probe on mine and yours reads more than the majority of each square and move",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.bootstrap_interval(ours - theirs),
    margin=0.05,
)

# %%
theirs = per_game(right("trained linear", ABSOLUTE, best))
claims.add(
    "Mine and yours is read better than black and white, both linear, on the same states",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.bootstrap_interval(ours - theirs),
    margin=0.05,
)

# %% [markdown]
# Do not trust shipped probes: fit one here.

# %%
live_states = player.states(known.tokens, [best])[best]
live = mi.othello_probes.fit(fitted_rows.take(live_states), fitted_rows.targets[RELATIVE])
pd.Series(
    {
        "fitted here": (live.predict(x["trained", best]) == rows.targets[RELATIVE]).mean(),
        "shipped": ours.mean(),
    }
).to_frame("accuracy").style.format("{:.1%}")

# %% [markdown]
# ## 4. Where it is hard
#
# Early squares are empty and easy. A disc that was turned often is a disc whose colour takes more bookkeeping. First all
# squares by move; then only squares with discs, by how often they were turned.

# %%
readers = {
    "linear, mine/yours": right("trained linear", RELATIVE, best),
    "untrained model, linear, mine/yours": right("random linear", RELATIVE, best),
    "majority of square and move": guessed,
}
by_move = np.broadcast_to(rows.move[:, None] + 1, guessed.shape)
has_disc = rows.targets[RELATIVE] != mi.othello_probes.EMPTY
mi.plots.curves_with_bands(
    {
        name: mi.othello_probes.accuracy_by(is_right, rows.game, by_move)
        for name, is_right in readers.items()
    },
    roles | {"majority of square and move": "chance"},
    f"All squares by moves played, layer {best}",
    "moves played",
    "accuracy",
)

# %%
by_flips = {
    name: mi.othello_probes.accuracy_by(is_right, rows.game, rows.n_flips, has_disc)
    for name, is_right in readers.items()
}
mi.plots.curves_with_bands(
    by_flips,
    roles | {"majority of square and move": "chance"},
    f"Squares with discs, by how often they were turned, layer {best}",
    "times turned so far",
    "accuracy",
)

# %%
often = rows.n_flips >= 3


def share(is_right, where):
    """Hits over tries of each game."""
    hits, tries = (np.bincount(rows.game, count.sum(1)) for count in (is_right & where, where))
    return hits / tries.clip(1)


both = [share(readers["linear, mine/yours"], has_disc & w) for w in (often, rows.n_flips == 0)]
claims.add(
    "A disc that was turned three times or more is read worse than one that was never turned",
    value=both[0].mean(),
    control=both[1].mean(),
    interval=mi.metrics.bootstrap_interval(both[0] - both[1]),
    direction="less",
)

# %% [markdown]
# Mine and yours change sides with every move, except for the discs that the move turned. So a model that keeps them up to
# date needs to know which discs were *just turned*. Is that there too, as a direction? The
# untrained model is a hard control here: its state is a scrambled copy of the moves, and the last of them says much about
# what it turned.


# %%
def turned(who, layer):
    """Which discs a linear probe takes for just turned."""
    return probes[f"{who} linear turned {layer}"].predict(x[who, layer]) == 1


flipped = {
    name: pd.DataFrame(
        {
            layer: mi.othello_probes.f1(turned(who, layer), rows.turned, rows.game)
            for layer in layers
        }
    ).T
    for name, who in (("trained", "trained"), ("untrained model", "random"))
}
mi.plots.curves_with_bands(
    flipped,
    {"trained": "trained", "untrained model": "random_model"},
    "Discs that the last move turned, read by a linear probe",
    "after layer",
    "F1",
)

# %%
ours, theirs = (
    mi.othello_probes.f1_of_games(turned(who, best), rows.turned, rows.game)
    for who in ("trained", "random")
)
claims.add(
    "Which discs were just turned is read better off the trained model than off an untrained one",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.bootstrap_interval(ours - theirs),
    margin=0.05,
)

# %% [markdown]
# Does it need the whole board? Positions by third of the game: in how many every square is read rightly, and how often the
# likeliest square is legal where the board is read rightly and where it is not. Legal moves from a board that is not
# (yet) right are a warning: there may be more ways to a legal move than through the board.

# %%
said = player.logits(games.tokens)[torch.from_numpy(rows.game), torch.from_numpy(rows.move)]
is_legal = rows.legal[np.arange(len(rows.move)), said.argmax(-1).numpy()]
whole = readers["linear, mine/yours"].all(1)
third = pd.cut(rows.move, 3, labels=["first third", "second", "last"])
by_third = pd.DataFrame({"whole": whole, "legal": is_legal, "part": third}).groupby(
    "part", observed=True
)
pd.DataFrame(
    {
        "whole board right": by_third.whole.mean(),
        "legal, board right": by_third[["whole", "legal"]].apply(
            lambda g: g.legal[g.whole].mean()
        ),
        "legal, board wrong": by_third[["whole", "legal"]].apply(
            lambda g: g.legal[~g.whole].mean()
        ),
    }
).style.format("{:.1%}", na_rep="–")

# %% [markdown]
# ## 5. Change its mind
#
# Play, and click. On the left the true board; in the middle what the probe reads; on the right where the player would move,
# with rings where the board that it should believe in allows a move. A click on a disc in the middle turns it in the
# player's mind. Push harder with the dose; choose after which layers.

# %%
lengths = mi.othello_editing.typical_lengths(player, others, layers)
linear = {layer: probes[f"trained linear {RELATIVE} {layer}"] for layer in layers}
mi.othello_board.othello_board(player, linear, lengths, n_played=11, seed=SEED + 4)

# %% [markdown]
# ## 6. Does it move by the board that we gave it?
#
# Cases are drawn at random from unseen games: a position, and a disc to turn, such that the changed board passes every test
# that real boards pass, allows a move, and does not allow the same moves as before. Doing nothing has an error too.
#
# First the sweeps, on cases of their own: where to push, and how hard.

# %%
guess = mi.exercises.predict(
    "Which layers should be pushed, for the fewest errors?",
    ["early ones", "late ones", "all of them"],
)

# %%
pool = played(N_CASES, 50)[0]
sweep_cases = mi.othello_editing.find_cases(played(N_SWEEP, 51)[0], N_SWEEP, FLIP)
nothing = mi.othello_editing.score(player, sweep_cases).mean()


def pushed(first, last, dose):
    """Lengths of a push after each of some layers."""
    return {layer: dose * lengths[layer] for layer in range(first, last + 1)}


def swept(first, last, dose):
    vectors = mi.othello_editing.pushes(linear, sweep_cases, pushed(first, last, dose))
    edits = mi.othello_editing.adding(vectors, sweep_cases)
    return mi.othello_editing.score(player, sweep_cases, edits).mean()


# %%
spans = [(first, last) for first in layers for last in layers if first <= last]
sweep = pd.DataFrame(
    [
        {"first": first, "last": last, "dose": dose, "error": swept(first, last, dose)}
        for first, last in spans
        for dose in DOSES
    ]
)
lowest = sweep.loc[sweep.error.idxmin()]
first, last, dose = int(lowest["first"]), int(lowest["last"]), float(lowest.dose)
pushed_after = f"layer {first}" if first == last else f"layers {first} to {last}"
removed = 1 - sweep.groupby(["first", "last"]).error.min().unstack() / nothing
removed.index, removed.columns = (
    [f"from layer {layer}" for layer in removed.index],
    [f"to layer {layer}" for layer in removed.columns],
)
mi.plots.share_grid(
    removed, "Share of the error that turning a tile removes, at its best dose", "share"
)

# %%
guess.reveal(
    "all of them"
    if last - first == layers[-1]
    else "early ones"
    if (first + last) / 2 < layers[-1] / 2
    else "late ones",
    f"Best here: after {pushed_after}, at a dose of {dose:g}.",
)


# %% [markdown]
# How hard: the same layers, every dose, and beside it the same push in a random direction and the push for another tile.


# %%
def curve(arm):
    """Mean error by dose, with its interval over cases."""
    found = {}
    for each in [0.0, *DOSES]:
        edits = mi.othello_editing.arms(linear, sweep_cases, pushed(first, last, each), SEED)
        errors = mi.othello_editing.score(player, sweep_cases, edits[arm])
        low, high = mi.metrics.bootstrap_interval(errors, n_resamples=200)
        found[each] = {"value": errors.mean(), "low": low, "high": high}
    return pd.DataFrame(found).T


mi.plots.curves_with_bands(
    {arm: curve(arm) for arm in (ADDITION, RANDOM, OTHER)},
    {ADDITION: "trained", RANDOM: "control", OTHER: "corrupted"},
    f"Too little and too much, after {pushed_after}",
    "dose, in typical lengths of the state",
    "wrong squares",
)

# %% [markdown]
# Now the table, on other cases, at the layers and the dose chosen above. *Gradient edit*: instead of one straight push,
# twenty steps down the gradient of a probe with a hidden layer, on a way as long. *Turn back*: only discs that the last
# move turned; beside the tile's own direction, the one of a probe that reads "was just turned".

# %%
guess = mi.exercises.predict(
    "Which edit leaves the fewest wrong squares when a disc is turned?",
    [ADDITION, "gradient edit", OTHER],
)


# %%
def edit_errors(kind):
    """The error of every case, by arm."""
    cases = mi.othello_editing.find_cases(pool, N_CASES // 2, kind, seed=SEED)
    push = pushed(first, last, dose)
    edits = mi.othello_editing.arms(linear, cases, push, SEED)
    hidden = {layer: probes[f"trained hidden {RELATIVE} {layer}"] for layer in layers}
    edits["gradient edit"] = mi.othello_editing.descending(hidden, cases, push)
    if kind == TURN_BACK:
        turned = {layer: probes[f"trained linear turned {layer}"] for layer in layers}
        vectors = {
            layer: torch.stack(
                [length * turned[layer].direction(int(square), 1, 0) for square in cases.square]
            )
            for layer, length in push.items()
        }
        edits["flipped direction"] = mi.othello_editing.adding(vectors, cases)
    return pd.DataFrame(
        {arm: mi.othello_editing.score(player, cases, edit) for arm, edit in edits.items()}
    )


errors = {kind: edit_errors(kind) for kind in (FLIP, ERASE, TURN_BACK)}

# %%
cells = {
    kind: {
        arm: f"{found[arm].mean():.2f} ({low:.2f} to {high:.2f})"
        for arm in found
        for low, high in [mi.metrics.bootstrap_interval(found[arm])]
    }
    for kind, found in errors.items()
}
pd.DataFrame(cells).fillna("").style.set_caption("Wrong squares a case (95 % over cases)")

# %%
compared = errors[FLIP][[ADDITION, "gradient edit", OTHER]].mean()
guess.reveal(compared.idxmin())


# %%
def claim_edit(text, kind, control, margin=0.0):
    """A claim that an addition leaves fewer wrong squares than something else, over the same cases."""
    ours, theirs = errors[kind][ADDITION], errors[kind][control]
    return claims.add(
        text,
        value=ours.mean(),
        control=theirs.mean(),
        interval=mi.metrics.bootstrap_interval(ours - theirs),
        direction="less",
        margin=margin,
    )


claim_edit("Turning a tile leaves fewer wrong squares than doing nothing", FLIP, NOTHING)

# %%
claim_edit("Turning a tile leaves fewer wrong squares than a random push as long", FLIP, RANDOM)

# %%
claim_edit("Turning a tile leaves fewer wrong squares than turning another tile", FLIP, OTHER)

# %%
claim_edit("Erasing a disc leaves fewer wrong squares than doing nothing", ERASE, NOTHING)

# %%
claim_edit(
    "Erasing a disc leaves fewer wrong squares than a random push as long", ERASE, RANDOM
)

# %%
ours, theirs = errors[TURN_BACK]["flipped direction"], errors[TURN_BACK][NOTHING]
claims.add(
    "Pushing against 'was just turned' leaves fewer wrong squares than doing nothing",
    value=ours.mean(),
    control=theirs.mean(),
    interval=mi.metrics.bootstrap_interval(ours - theirs),
    direction="less",
)

# %% [markdown]
# ## 7. A dictionary, scored against the board
#
# On text nobody knows which features are right. Here we do: for each square mine, yours, empty. *Coverage*: for each of
# these properties the F1 of the best single latent, chosen on some games and scored on others. *Reconstruction*: the F1 of
# the board that all precise latents say together. Beside the dictionary: random rows with as many active latents, a
# dictionary of an untrained model, and the neurons of the same layer. A linear probe was told the answers: the ceiling.

# %%
guess = mi.exercises.predict(
    "Whose best latents come closest to single properties of the board?",
    ["the dictionary", "random rows", "the neurons"],
)

# %%
middle_layer = player.n_layers // 2
folder = mi.othello_model.SHIPPED / f"{SIZE}x{SIZE}"
sae = {who: mi.sae.load(folder / f"sae_{who}") for who in ("trained", "random")}
chosen, chosen_rows = played(N_TEST, 60)
neurons = mi.hooks.hook_name("mlp_post", middle_layer)


def activations(games, rows):
    """What each arm says at all positions of some games."""
    here = rows.take(player.states(games.tokens, [middle_layer])[middle_layer])
    there = rows.take(untrained.states(games.tokens, [middle_layer])[middle_layer])
    tokens = torch.from_numpy(games.tokens[:, :-1])
    read = mi.hooks.run_with_cache(player.model, tokens, [neurons])[neurons]
    k = mi.metrics.l0(sae["trained"].encode(here)).mean()
    shuffled = mi.othello_features.random_dictionary(here, sae["trained"].cfg.d_sae, float(k))
    return {
        "dictionary": sae["trained"].encode(here),
        "random rows": shuffled.encode(here),
        "dictionary of the untrained model": sae["random"].encode(there),
        "neurons": rows.take(read).relu(),
        "linear probe": linear[middle_layer](here).softmax(-1).flatten(1),
    }


# %%
with torch.no_grad():
    acts, other_acts = activations(chosen, chosen_rows), activations(games, rows)
truth, names = mi.othello_features.properties(chosen_rows)
other_truth, _ = mi.othello_features.properties(rows)
covered = {
    arm: mi.othello_features.coverage(acts[arm], truth, other_acts[arm], other_truth)
    for arm in acts
}
rebuilt = {
    arm: pd.Series(
        mi.othello_features.board_reconstruction(acts[arm], truth, other_acts[arm], other_truth)
    )
    .groupby(rows.game)
    .mean()
    for arm in acts
}

# %%
scores = pd.DataFrame({arm: {"value": f1.mean()} for arm, f1 in covered.items()}).T
ends = {arm: mi.metrics.bootstrap_interval(f1) for arm, f1 in covered.items()}
scores["low"], scores["high"] = ([ends[arm][n] for arm in scores.index] for n in (0, 1))
scores["reconstruction"] = [rebuilt[arm].mean() for arm in scores.index]
scores["latents"] = [acts[arm].shape[1] for arm in scores.index]
scores["active"] = [float((acts[arm] > 0).float().sum(1).mean()) for arm in scores.index]
roles_of = dict(
    zip(scores.index, ["trained", "control", "random_model", "pca", "truth"], strict=True)
)
mi.plots.dots_with_intervals(
    scores, roles_of, "Coverage of board properties by single latents", "F1"
)

# %%
scores.rename(columns={"value": "coverage"}).round(3)

# %%
guess.reveal(
    {"dictionary": "the dictionary", "random rows": "random rows", "neurons": "the neurons"}[
        scores.value[["dictionary", "random rows", "neurons"]].idxmax()
    ]
)


# %%
def claim_coverage(text, control):
    gap = covered["dictionary"] - covered[control]
    return claims.add(
        text,
        value=covered["dictionary"].mean(),
        control=covered[control].mean(),
        interval=mi.metrics.bootstrap_interval(gap),
    )


claim_coverage(
    "A dictionary's latents cover the board better than random rows do", "random rows"
)

# %%
claim_coverage(
    "A dictionary of the trained model covers the board better than one of an untrained model",
    "dictionary of the untrained model",
)

# %%
gap = rebuilt["dictionary"] - rebuilt["random rows"]
claims.add(
    "Precise latents of the dictionary rebuild more of the board than those of random rows",
    value=rebuilt["dictionary"].mean(),
    control=rebuilt["random rows"].mean(),
    interval=mi.metrics.bootstrap_interval(gap),
)

# %% [markdown]
# ## 8. Neurons as rules
#
# Can a neuron be written down as a small decision tree on the board? Neurons are drawn at random from one layer. The
# control gives the tree the board of another game at the same move: what the move number alone would tell.

# %%
drawn = torch.randperm(acts["neurons"].shape[1], generator=torch.Generator().manual_seed(SEED))
pre = rows.take(
    mi.hooks.run_with_cache(player.model, torch.from_numpy(games.tokens[:, :-1]), [neurons])[
        neurons
    ]
)
is_train = rows.game < N_TEST // 2
rules = [
    mi.othello_features.rule(int(n), pre[:, n], rows, is_train, depth=3, seed=SEED)
    for n in drawn[:N_NEURONS]
]
r2 = pd.DataFrame(
    {"board": [r.r2 for r in rules], "another game's board": [r.shuffled_r2 for r in rules]}
)
r2.describe().loc[["mean", "25%", "50%", "75%", "max"]].round(2)

# %%
claims.add(
    "A small tree on the board says more of a neuron than one on another game's board at the same move",
    value=r2["board"].mean(),
    control=r2["another game's board"].mean(),
    interval=mi.metrics.bootstrap_interval(r2["board"] - r2["another game's board"]),
)

# %%
best_rules = sorted(rules, key=lambda r: -r.r2)[:N_RULES]
print(f"neuron {best_rules[0].neuron}, explains {best_rules[0].r2:.0%} of its variance\n")
print(best_rules[0].text)

# %% [markdown]
# A description may be true and idle. So hold each of the best described neurons at its mean, and ask whether predictions
# move more where its rule fires than elsewhere. The control: hold another of these neurons, and look at the same places.

# %%
few = mi.othello_games.replay(games.tokens[N_TEST // 2 :][:60], SIZE)
few_rows = mi.othello_probes.positions(few)
moved = mi.othello_features.ablation_effects(
    player, few, middle_layer, [r.neuron for r in best_rules]
).numpy()


def contrast(effects, fires):
    """Mean effect where a rule fires, minus elsewhere, in nats."""
    return effects[fires].mean() - effects[~fires].mean()


fires = [mi.othello_features.fires(r, few_rows) for r in best_rules]
n = len(best_rules)
own = np.array([contrast(moved[i], fires[i]) for i in range(n)])
foreign = np.array(
    [np.mean([contrast(moved[j], fires[i]) for j in range(n) if j != i]) for i in range(n)]
)
pd.DataFrame({"own neuron": own, "other neurons, same places": foreign}).describe().loc[
    ["mean", "min", "max"]
]

# %%
claims.add(
    "Holding a neuron at its mean matters more where its own rule fires than holding other neurons does there",
    value=own.mean(),
    control=foreign.mean(),
    interval=mi.metrics.bootstrap_interval(own - foreign),
    unit="nats",
)

# %% [markdown]
# ## 9. Your turn
#
# **Mine and yours** (easy). Write the board as the side to move sees it, from black and white and whose turn it is.


# %%
def as_seen(boards, to_move):
    """Boards [board square] of 1 black, -1 white, 0 empty; to_move [board] of 1 and -1. Mine is 1, yours -1."""
    ...


as_seen = mi.exercises.attempt(
    as_seen, reference=lambda boards, to_move: boards * to_move[:, None]
)
mi.exercises.check(as_seen, [(games.boards[:5, 7], games.to_move[:5, 7])])

# %%
mi.exercises.hint(
    "If black is to move, nothing changes. If white is, every sign does.",
    "Give to_move a second axis with to_move[:, None].",
)

# %% [markdown]
# **Wrong squares** (medium). The error of a prediction: false positives plus false negatives of its N likeliest squares,
# where N squares are legal.


# %%
def wrong_squares(logits, legal):
    """Logits [case square] as a tensor, legal [case square] as booleans of numpy; one whole number a case."""
    ...


wrong_squares = mi.exercises.attempt(wrong_squares, reference=mi.othello_editing.errors)
examples = mi.othello_editing.predictions(player, sweep_cases)
mi.exercises.check(
    wrong_squares,
    [
        (torch.tensor([[3.0, 2.0, 1.0, 0.0]]), np.array([[True, False, True, False]])),
        (examples[:8], sweep_cases.legal[:8]),
    ],
)

# %%
mi.exercises.hint(
    "Each likeliest square that is not legal pushes out one that is: both kinds of error are equally many.",
    "Sort each row, keep its first N squares, count the legal ones among them: 2 * (N - hits).",
)

# %% [markdown]
# ## What this does not show
#
# - That the published model on eight squares a side is the same. `mi.othello_model.load("othello-gpt")` loads it where the
#   hub is in reach, and everything above takes it; probes and dictionaries must be fitted to it first.
# - Where the board is computed. A push after several layers is no localisation: it overrides what those layers say.
# - That edited boards were ever reached. They pass the tests that reached boards pass; no more is known.
# - That the model plays *only* by the board. Late in a game much can be said from which squares are left.
# - That one dictionary, at one layer and one width, is what dictionaries can do.
#
# We would change our mind about the board being used if a random push, or one for another tile, did as well as the tile's
# own.

# %%
claims.table()

# %% [markdown]
# ## Summary
#
# - The same states are readable or not, depending on the names that the probe brings: mine and yours, not black and white.
# - Readable is not used. The planted player that ignores its board is as readable as the one that moves by it.
# - Score an edit against doing nothing, against a random push, and against a push for another tile.
# - Where the truth is known a dictionary can be marked like an exam, and so can the control dictionaries.
#
# **More exercises.** (easy) Erase instead of turn in the board above: which layers matter now? (medium) Find positions at
# which the likeliest square is legal although the probe's board is wrong. (hard) Train on four squares a side with
# `python data/othello/train.py --size 4`, where all boards can be listed, and edit boards that no game reaches.
#
# ## Sources
#
# Li et al. (2023), *Emergent world representations*, arXiv:2210.13382: the model, non-linear probes, gradient edits. Nanda,
# Lee, Wattenberg (2023), *Emergent linear representations in world models of self-supervised sequence models*,
# arXiv:2309.00941: mine and yours, additions, the flipped direction; there the best linear probe reads 99.6 % on a model of
# eight squares a side, and turning a tile brings 2.72 errors to 0.10. Karvonen et al. (2024), arXiv:2408.00113: coverage and
# reconstruction. Rules for neurons: arXiv:2511.00059. Muon: Jordan et al. (2024).
