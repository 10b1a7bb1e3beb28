"""What a GPU computes is what the CPU computes, up to the order of sums. Skipped where there is none."""

import pandas as pd
import pytest
import torch
from tiny_models import save_tiny_model

from mi_utils import activations, indexing, models, sae, training
from mi_utils.hooks import hook_name
from mi_utils.worlds import superposition

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that CUDA drives")

HOOK = hook_name("resid_post", 1)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "model")
    return {device: models.load_model(folder, device=device) for device in ("cpu", "cuda")}


@pytest.fixture(scope="module")
def tokens():
    return torch.randint(1, 7, (32, 16), generator=torch.Generator().manual_seed(0))


def test_a_harvest(tmp_path, both, tokens):
    rows = {}
    for device, model in both.items():
        store = activations.harvest(model, tokens, [HOOK], tmp_path / device, progress=False)
        rows[device] = torch.cat(list(store.batches(HOOK, 64, scaled=False)))
    assert rows["cuda"].device.type == "cpu"
    assert (rows["cuda"] - rows["cpu"]).abs().max() < 1e-2 * rows["cpu"].abs().max()  # stored in float16


@pytest.mark.parametrize("architecture", ["batchtopk", "topk", "jumprelu", "standard"])
def test_a_training(architecture):
    world = superposition(64, 32, density=0.05)
    last = {}
    for device in ("cpu", "cuda"):
        dictionary = sae.build(architecture, 32, 64, 4, device=device)
        curves = training.train(dictionary, world.batches(512), 200)
        last[device] = curves.fvu.iloc[-1]
        assert curves.fvu.iloc[-1] < 0.9 * curves.fvu.iloc[0]
    assert last["cuda"] == pytest.approx(last["cpu"], abs=0.02)


def test_a_training_goes_on_from_its_checkpoint_and_is_read_on_the_cpu(tmp_path):
    world, half = superposition(64, 32, density=0.05), tmp_path / "checkpoint"
    whole, parts = (sae.build("batchtopk", 32, 64, 4, device="cuda") for _ in range(2))
    training.train(whole, world.batches(512), 200)
    with pytest.raises(InterruptedError):
        training.train(parts, world.batches(512), 200, checkpoint=half, checkpoint_every=50, on_log=_end_at(120))
    parts = sae.build("batchtopk", 32, 64, 4, device="cuda")
    training.train(parts, world.batches(512), 200, checkpoint=half, checkpoint_every=50)
    assert (parts.W_dec - whole.W_dec).abs().max() < 1e-2
    sae.save(training.to_inference(whole, centre=torch.zeros(32)), tmp_path / "saved")
    read = sae.load(tmp_path / "saved")
    x = next(iter(world.batches(512)))
    assert read.W_dec.device.type == "cpu"
    assert (read.encode(x) > 0).sum().item() / len(x) == pytest.approx(4, abs=1)


def _end_at(step):
    def stop(curves: pd.DataFrame) -> None:
        if curves.step.iloc[-1] >= step:
            raise InterruptedError

    return stop


def test_what_fires(both, tokens):
    weights = sae.build("topk", 16, 64, 4)
    found = {}
    for device, model in both.items():
        dictionary = training.to_inference(weights).to(device)
        batches = indexing.fired(model, dictionary, tokens, HOOK)
        found[device] = {(w, n): a for b in batches for w, n, a in zip(b.where, b.latent, b.act, strict=True)}
    shared = found["cpu"].keys() & found["cuda"].keys()
    assert len(shared) > 0.98 * max(map(len, found.values()))
    assert max(abs(found["cpu"][key] - found["cuda"][key]) for key in shared) < 1e-3
