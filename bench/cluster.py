"""What a second worker brings: tokens harvested and samples trained a second, by this process alone and through Ray.

./lab bench cluster            a table
./lab bench cluster --json     one JSON object

Alone means all cores in one process, as everywhere else in the suite; a worker has one core. All do the same harvest
and train the same SAE on it. Rates are over the second half of each, when every worker has its model; what comes before
is the start, in seconds of its own. Needs the extra `cluster`.
"""

import tempfile
import time
from pathlib import Path

import pandas as pd

import mi_utils as mi
from bench import show
from bench.harvest import N_CTX, some_tokens

LAYER, SHARD, N_SHARDS = 12, 8, 30
D_SAE, K, BATCH, N_STEPS, LOG_EVERY = 4608, 32, 2048, 60, 10


def costs() -> dict[str, float]:
    hook_name = mi.hooks.hook_name("resid_post", LAYER)
    tokens = some_tokens(N_SHARDS * SHARD, mi.models.load_model().cfg.d_vocab)
    asked = {"shard_contexts": SHARD, "batch_size": SHARD // 2, "progress": False}  # alone, two passes at a time
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / "alone"
        start = time.time()
        store = mi.activations.harvest(mi.models.load_model(), tokens, [hook_name], alone, **asked)
        found |= harvested("alone", alone, start)
        start = time.perf_counter()
        batches = store.batches(hook_name, BATCH, epochs=None)
        curves = mi.training.train(new_sae(store, hook_name), batches, N_STEPS, log_every=LOG_EVERY)
        found |= trained("alone", curves, time.perf_counter() - start)
        for n in (1, 2):
            name, start = f"{n} worker{'s' if n > 1 else ''}", time.time()
            with mi.cluster.local(n):
                mi.cluster.harvest(mi.models.load_model, tokens, [hook_name], Path(folder) / name, **asked)
                found |= harvested(name, Path(folder) / name, start)
                start, sae = time.perf_counter(), new_sae(store, hook_name)
                given = {"batch_size": BATCH, "n_workers": n, "log_every": LOG_EVERY}
                curves = mi.cluster.train(sae, store, hook_name, N_STEPS, Path(folder) / f"train {n}", **given)
                found |= trained(name, curves, time.perf_counter() - start)
    return found


def new_sae(store: mi.stores.ActivationStore, hook_name: str):
    return mi.sae.build("batchtopk", store.d_in(hook_name), D_SAE, K)


def harvested(name: str, folder: Path, start: float) -> dict[str, float]:
    """Tokens a second over the second half of the shards, and seconds until the first was there."""
    written = sorted(path.stat().st_mtime for path in folder.glob("shard-*.safetensors"))
    middle = len(written) // 2
    n_tokens = (len(written) - 1 - middle) * SHARD * N_CTX
    return {
        f"harvest, {name}: tokens a second": n_tokens / (written[-1] - written[middle]),
        f"harvest, {name}: seconds until the first shard": written[0] - start,
    }


def trained(name: str, curves: pd.DataFrame, seconds: float) -> dict[str, float]:
    """Samples a second over the second half of the steps, and seconds that were not spent in steps."""
    half = curves[len(curves) // 2 :]
    rate = (half.tokens.iloc[-1] - half.tokens.iloc[0]) / (half.seconds.iloc[-1] - half.seconds.iloc[0])
    return {
        f"training, {name}: samples a second": rate,
        f"training, {name}: seconds beside the steps": seconds - curves.seconds.iloc[-1],
    }


if __name__ == "__main__":
    show("One process, one worker, two workers.", costs)
