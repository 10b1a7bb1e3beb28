"""Fit what notebook 11 reads the shipped Othello-GPT with: probes for all layers, and two dictionaries.

    OMP_NUM_THREADS=1 nice python data/othello/fit.py                # everything, into data/othello/6x6
    OMP_NUM_THREADS=1 nice python data/othello/fit.py --games 300    # a quick try, into the same place

All are fitted on games that the notebook does not test on. The control is a model of the same architecture that was
never trained; it has probes and a dictionary of its own.
"""

import argparse
import shutil
import time

import torch

import mi_utils as mi
from mi_utils.othello_model import DEFAULT, SHIPPED, ModelPlayer
from mi_utils.othello_probes import ABSOLUTE, RELATIVE

SEED, SEED_DICTIONARY = 10, 11
N_HIDDEN = 192
N_FIT, N_FIT_HIDDEN = 600, 1500  # steps
D_SAE, K, N_STEPS, BATCH = 768, 20, 1000, 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", type=int, default=2000)
    parser.add_argument("--name", default=DEFAULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.monotonic()
    player = mi.othello_model.load(arguments.name)
    players = {"trained": player, "random": player.untrained()}
    games = mi.othello_games.replay(mi.othello_games.play_random(arguments.games, player.size, SEED), player.size)
    rows = mi.othello_probes.positions(games)
    probes = {}
    for who, one in players.items():
        for layer, states in one.states(games.tokens, range(player.n_layers)).items():
            x = rows.take(states)
            for target in (RELATIVE, ABSOLUTE):
                for kind, n_hidden in (("linear", 0), ("hidden", N_HIDDEN)):
                    if who == "random" and target == ABSOLUTE:
                        continue
                    probe = mi.othello_probes.fit(
                        x, rows.targets[target], n_hidden=n_hidden, n_steps=N_FIT_HIDDEN if n_hidden else N_FIT
                    )
                    probes[f"{who} {kind} {target} {layer}"] = probe
            probes[f"{who} linear turned {layer}"] = mi.othello_probes.fit(x, rows.turned.astype(int), n_steps=N_FIT)
            print(
                f"probes of the {who} model, layer {layer}: {(time.monotonic() - start) / 60:.1f} minutes", flush=True
            )
    mi.othello_probes.save(probes, SHIPPED / arguments.name / "probes.safetensors")
    for who, one in players.items():
        dictionary(one, who, 4 * arguments.games, arguments.name)
        print(f"dictionary of the {who} model: {(time.monotonic() - start) / 60:.1f} minutes", flush=True)


def dictionary(player: ModelPlayer, who: str, n_games: int, name: str) -> None:
    """A BatchTopK dictionary on the states in the middle of the model."""
    layer = player.n_layers // 2
    tokens = mi.othello_games.play_random(n_games, player.size, SEED_DICTIONARY)
    rows = mi.othello_probes.positions(mi.othello_games.replay(tokens, player.size))
    x = rows.take(player.states(tokens, [layer])[layer])
    mean, scale = x.mean(0), float((x - x.mean(0)).norm(dim=1).mean() / x.shape[1] ** 0.5)
    x = (x - mean) / scale
    sae = mi.sae.build("batchtopk", x.shape[1], D_SAE, K, seed=0)
    mi.sae.initialise_from_data(sae, x[:8192], 0)
    generator = torch.Generator().manual_seed(0)
    batches = (x[torch.randint(len(x), (BATCH,), generator=generator)] for _ in range(N_STEPS))
    curves = mi.training.train(sae, batches, N_STEPS, lr=1e-3, log_every=500)
    print(curves.to_string(), flush=True)
    folder = SHIPPED / name / f"sae_{who}"
    shutil.rmtree(folder, ignore_errors=True)
    hook_name = mi.hooks.hook_name("resid_post", layer)
    mi.sae.save(
        mi.training.to_inference(sae, mean, scale), folder, dtype=torch.float16, hook_name=hook_name, model_name=who
    )


if __name__ == "__main__":
    main()
