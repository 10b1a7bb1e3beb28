import json

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, LoggingConfig, SAETrainer, TrainingSAE
from sae_lens.config import SAETrainerConfig
from sae_lens.saes.sae import TrainStepInput

from mi_utils import sae as sae_module
from mi_utils import training
from mi_utils.metrics import fvu
from mi_utils.sae import batch_topk, build, initialise_from_data, load, save

D_IN, D_SAE, K, N = 12, 40, 5, 64


def planted(n=N, d_in=D_IN, seed=0, dtype=torch.float32):
    directions = torch.randn(30, d_in, generator=torch.Generator().manual_seed(1234))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(n, 30, generator=generator) * (torch.rand(n, 30, generator=generator) < 0.1)
    return (codes @ directions + 0.05 * torch.randn(n, d_in, generator=generator)).to(dtype)


def forward(sae, x, dead=None):
    dead = torch.zeros(sae.cfg.d_sae, dtype=torch.bool) if dead is None else dead
    return sae.training_forward_pass(TrainStepInput(x, {}, dead, 0, False))


def twins(dtype="float32", seed=0, k=K):
    """Our class and the one of sae-lens with the same random weights."""
    config = {"d_in": D_IN, "d_sae": D_SAE, "k": k, "dtype": dtype}
    theirs = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**config))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    ours = sae_module.SparseBatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**config))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


# --- selection -------------------------------------------------------------------------------------------------------


def dense_selection(x, W_enc, b_enc, norm, n_keep):
    scores = ((x @ W_enc + b_enc) * norm).clamp(min=0)
    values, positions = scores.flatten().topk(min(n_keep, scores.numel()))
    return positions[values > 0].sort().values


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(1, 40),
    k=st.floats(0.0, 12.0),
    guess=st.floats(0.0, 20.0),
    block=st.integers(1, 50),
    amx=st.booleans(),
)
def test_selection_equals_the_full_ranking(seed, rows, k, guess, block, amx):
    """Any guess, any block size, either arithmetic: the same entries survive."""
    generator = torch.Generator().manual_seed(seed)
    x, W_enc, b_enc = (torch.randn(s, generator=generator) for s in ((rows, 16), (16, 12), (12,)))
    x[::7] *= 5  # long rows take another way
    norm = 0.1 + torch.rand(12, generator=generator)
    n_keep = int(k * rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sae_module, "BLOCK_ROWS", block)
        patch.setattr(sae_module, "HAS_AMX", amx)
        patch.setattr(sae_module, "COARSE_ROWS", 1)
        selected = batch_topk(x, W_enc, b_enc, norm, n_keep, guess)
    found = selected.rows * 12 + selected.latents
    assert found.tolist() == dense_selection(x, W_enc, b_enc, norm, n_keep).tolist()
    exact = (x @ W_enc + b_enc).flatten()[found]
    torch.testing.assert_close(selected.acts, exact, atol=1e-5, rtol=1e-5)


def test_coarse_pass_misses_nothing_on_entries_a_rounding_error_apart():
    """The cut runs through a crowd of values that bfloat16 cannot tell apart."""
    x = torch.ones(1, 8)
    W_enc = (1 + 1e-4 * torch.randn(8, 500, generator=torch.Generator().manual_seed(0))).contiguous()
    args = (x, W_enc, torch.zeros(500), torch.ones(500))
    cut = batch_topk(*args, n_keep=100).cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sae_module, "HAS_AMX", True)
        patch.setattr(sae_module, "COARSE_ROWS", 1)
        selected = batch_topk(*args, n_keep=100, guess=cut)
    assert selected.latents.tolist() == dense_selection(*args, n_keep=100).tolist()


# --- one step --------------------------------------------------------------------------------------------------------


def test_gradients_equal_dense_autograd_in_float64():
    ours, theirs = twins("float64")
    x = planted(dtype=torch.float64)
    for sae in (ours, theirs):
        forward(sae, x).loss.backward()
    for (name, mine), dense in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        error = (mine.grad - dense.grad).norm() / dense.grad.norm()
        assert dense.grad.norm() > 0, name
        assert error < 1e-6, name


def test_gradients_are_added_to_those_that_are_there():
    ours, _ = twins("float64")
    x = planted(dtype=torch.float64)
    forward(ours, x).loss.backward()
    once = {name: parameter.grad.clone() for name, parameter in ours.named_parameters()}
    forward(ours, x).loss.backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, 2 * once[name])


def test_dead_latents_get_the_gradient_that_sae_lens_gives_them():
    ours, theirs = twins("float64")
    dead = torch.zeros(D_SAE, dtype=torch.bool)
    dead[::4] = True
    x = planted(dtype=torch.float64)
    outputs = [forward(sae, x, dead) for sae in (ours, theirs)]
    key = "auxiliary_reconstruction_loss"
    torch.testing.assert_close(outputs[0].losses[key], outputs[1].losses[key])
    for output in outputs:
        output.losses[key].backward()
    torch.testing.assert_close(ours.W_dec.grad, theirs.W_dec.grad)
    assert ours.W_dec.grad[dead].abs().sum() > 0


def test_forward_pass_reports_what_sae_lens_reports():
    ours, theirs = twins()
    mine, dense = (forward(sae, planted()) for sae in (ours, theirs))
    torch.testing.assert_close(mine.sae_out, dense.sae_out, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.feature_acts.to_dense(), dense.feature_acts, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mine.loss, dense.loss)


def test_sae_lens_trainer_takes_it_and_follows_the_same_curve():
    ours, theirs = twins()
    losses = []
    for sae in (ours, theirs):
        config = SAETrainerConfig(
            total_training_samples=64 * N,
            train_batch_size_samples=N,
            lr=3e-3,
            lr_end=3e-4,
            dead_feature_window=5,
            logger=LoggingConfig(log_to_wandb=False),
        )
        trainer = SAETrainer(config, sae, iter([planted(seed=s) for s in range(64)]))
        trained = trainer.fit()
        losses.append(forward(trained, planted(seed=99)).losses["mse_loss"].item())
        assert trainer.n_training_steps == 64
    start = forward(twins()[0], planted(seed=99)).losses["mse_loss"].item()
    assert losses[0] < 0.7 * start
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_our_loop_follows_the_trainer_of_sae_lens():
    """Same batches, same constant rate: the two loops end at the same weights."""
    ours, theirs = twins()
    batches = [planted(seed=s) for s in range(20)]
    config = SAETrainerConfig(
        total_training_samples=20 * N,
        train_batch_size_samples=N,
        lr=1e-3,
        lr_end=1e-3,
        logger=LoggingConfig(log_to_wandb=False),
    )
    SAETrainer(config, theirs, iter(batches)).fit()
    trainer = training.Trainer(ours, 20, lr=1e-3, warm_up=0.0, decay=0.0)
    for x in batches:
        trainer.step(x)
    for mine, dense in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, dense, atol=1e-4, rtol=1e-3)


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", sae_module.ARCHITECTURES)
def test_every_architecture_learns_by_the_same_call(architecture):
    options = {"matryoshka_widths": [10, D_SAE]} if architecture == "matryoshka" else {}
    sae = build(architecture, D_IN, D_SAE, K, **options)
    x = planted(2000)
    initialise_from_data(sae, x)
    curves = training.train(sae, iter([x[i % 20 * 100 :][:100] for i in range(150)]), 150, lr=3e-3, log_every=10)
    assert curves.fvu.iloc[-1] < 0.6 * curves.fvu.iloc[0] or curves.fvu.iloc[-1] < 0.1
    assert list(curves.columns) == ["step", "tokens", "fvu", "l0", "dead_share", "seconds"]
    assert isinstance(training.to_inference(sae), SAE)


def test_same_seed_same_weights():
    def run():
        sae = build("batchtopk", D_IN, D_SAE, K, seed=3)
        training.train(sae, iter([planted(seed=s) for s in range(10)]), 10)
        return sae.W_dec

    assert torch.equal(run(), run())


def test_frozen_decoder_stays_and_the_rest_moves():
    sae = build("batchtopk", D_IN, D_SAE, K)
    before = {name: parameter.clone() for name, parameter in sae.named_parameters()}
    training.train(sae, iter([planted(seed=s) for s in range(10)]), 10, frozen=["W_dec"])
    assert torch.equal(sae.W_dec, before["W_dec"])
    assert not torch.equal(sae.W_enc, before["W_enc"])
    assert all(parameter.requires_grad and parameter.grad is None for parameter in sae.parameters())
    with pytest.raises(ValueError, match="cannot freeze"):
        training.Trainer(sae, 10, frozen=["W_decoder"])


def test_dead_latents_are_revived():
    """Latents that start where no data lie never fire by themselves; the auxiliary loss brings them back."""
    shares = {}
    for coefficient in (0.0, 1.0):
        sae = build("batchtopk", D_IN, D_SAE, 2, aux_loss_coefficient=coefficient)
        with torch.no_grad():
            sae.b_enc[: D_SAE // 2] = -1.0
        batches = iter([planted(seed=s % 8) for s in range(400)])
        shares[coefficient] = training.train(sae, batches, 400, lr=3e-3, dead_after=10).dead_share.iloc[-1]
    assert shares[0.0] >= 0.5
    assert shares[1.0] <= shares[0.0] - 0.2


def test_initialisation_reconstructs_better_than_the_mean_before_any_training():
    x = planted(500) + 3
    untouched, initialised = build("batchtopk", D_IN, D_SAE, K), build("batchtopk", D_IN, D_SAE, K)
    initialise_from_data(initialised, x)
    errors = [fvu(x, forward(sae, x).sae_out.detach()).item() for sae in (initialised, untouched)]
    assert errors[0] < 0.5 < errors[1]


# --- inference and files ---------------------------------------------------------------------------------------------


def trained(seed=0):
    sae = build("batchtopk", D_IN, D_SAE, K, seed=seed)
    x = planted(4000)
    initialise_from_data(sae, x)
    training.train(sae, iter([x[i % 40 * 100 :][:100] for i in range(200)]), 200, lr=3e-3)
    return sae


def test_inference_does_not_depend_on_the_rest_of_the_batch():
    inference = training.to_inference(trained())
    x = planted(50, seed=5)
    together = inference.encode(x)
    alone = torch.cat([inference.encode(row[None]) for row in x])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert ((together > 0) == (alone > 0)).all()


def test_inference_keeps_k_latents_on_average():
    inference = training.to_inference(trained())
    assert (inference.encode(planted(4000, seed=7)) > 0).sum(1).float().mean().item() == pytest.approx(K, rel=0.1)


def test_inference_on_raw_activations_equals_training_scale():
    sae, centre, scale = trained(), torch.randn(D_IN), 7.0
    normalised, raw = training.to_inference(sae), training.to_inference(sae, centre, scale)
    x = planted(50, seed=5)
    torch.testing.assert_close(raw.encode(centre + scale * x), scale * normalised.encode(x), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(raw(centre + scale * x), centre + scale * normalised(x), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(raw.W_dec.norm(dim=1), torch.ones(D_SAE))


def test_saved_dictionary_is_the_same_in_sae_lens_and_here(tmp_path):
    inference, x = training.to_inference(trained()), planted(50, seed=5)
    save(inference, tmp_path / "sae", hook_name="blocks.3.hook_resid_post", tokens=1234)
    theirs, ours = SAE.load_from_disk(tmp_path / "sae"), load(tmp_path / "sae")
    for loaded in (theirs, ours):
        torch.testing.assert_close(loaded.encode(x), inference.encode(x), atol=1e-5, rtol=1e-5)
        assert loaded.cfg.metadata.hook_name == "blocks.3.hook_resid_post"


def test_half_precision_file_is_half_the_size_and_close(tmp_path):
    inference, x = training.to_inference(trained()), planted(50, seed=5)
    save(inference, tmp_path / "full")
    save(inference, tmp_path / "half", dtype=torch.float16)
    full, half = ((tmp_path / n / sae_module.WEIGHTS).stat().st_size for n in ("full", "half"))
    assert half < 0.6 * full
    assert load(tmp_path / "half").W_dec.dtype == torch.float32
    assert fvu(inference(x), load(tmp_path / "half")(x)).item() < 0.02  # an activation at the threshold may flip


def test_training_checkpoint_goes_on_in_sae_lens(tmp_path):
    sae = trained()
    save(sae, tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="depend on the batch"):
        load(tmp_path / "checkpoint")
    torch.testing.assert_close(TrainingSAE.load_from_disk(tmp_path / "checkpoint").W_enc, sae.W_enc)


def test_damaged_files_are_refused(tmp_path):
    save(training.to_inference(build("batchtopk", D_IN, D_SAE, K)), tmp_path / "sae")
    weights, config = tmp_path / "sae" / sae_module.WEIGHTS, tmp_path / "sae" / sae_module.CONFIG
    whole, text = weights.read_bytes(), config.read_text()
    for damaged in (whole[:-8], whole[:-1] + bytes([whole[-1] ^ 1])):
        weights.write_bytes(damaged)
        with pytest.raises(ValueError, match="truncated or altered"):
            load(tmp_path / "sae")
    weights.write_bytes(whole)
    config.write_text(text[:20])
    with pytest.raises(ValueError, match="damaged"):
        load(tmp_path / "sae")
    config.unlink()
    with pytest.raises(ValueError, match=r"cfg\.json missing"):
        load(tmp_path / "sae")


def test_save_does_not_overwrite(tmp_path):
    inference = training.to_inference(build("batchtopk", D_IN, D_SAE, K))
    save(inference, tmp_path / "sae")
    before = json.loads((tmp_path / "sae" / sae_module.CONFIG).read_text())
    with pytest.raises(ValueError, match="exists already"):
        save(inference, tmp_path / "sae")
    assert json.loads((tmp_path / "sae" / sae_module.CONFIG).read_text()) == before


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gated-ish", 4, 8, 2), "unknown architecture"),
        (("batchtopk", 4, 8, 9), "k <= d_sae"),
        (("batchtopk", 4, 8, 0), "0 < k"),
        (("topk", 0, 8, 2), "d_in >= 1"),
    ],
)
def test_build_refuses_what_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        build(*arguments)


def test_training_refuses_wrong_width_nan_and_too_few_batches():
    sae = build("batchtopk", D_IN, D_SAE, K)
    before = sae.W_dec.clone()
    x = planted()
    with pytest.raises(ValueError, match=r"\[token, 12\]"):
        training.train(sae, iter([x[:, :-1]]), 1)
    with pytest.raises(ValueError, match="NaN or infinity"):
        training.train(sae, iter([x.index_fill(0, torch.tensor([3]), float("nan"))]), 1)
    assert torch.equal(sae.W_dec, before)
    with pytest.raises(ValueError, match="ended after 1 of 2 steps"):
        training.train(sae, iter([x]), 2)


@pytest.mark.parametrize("frozen", [[], ["W_dec"]])
def test_killed_training_goes_on_as_if_nothing_happened(tmp_path, frozen):
    batches = [planted(seed=seed) for seed in range(12)]

    def run(given, **settings):
        sae = build("batchtopk", D_IN, D_SAE, K)
        curves = training.train(sae, given, 12, log_every=2, frozen=frozen, dead_after=2, **settings)
        return sae.state_dict(), curves.drop(columns="seconds")

    checkpoint = {"checkpoint": tmp_path / "run.safetensors", "checkpoint_every": 3}
    with pytest.raises(ValueError, match="ended after 8 of 12"):  # stands for the kill
        run(batches[:8], **checkpoint)
    (weights, curves), (expected, whole) = run(batches, **checkpoint), run(batches)
    assert all(torch.allclose(weights[name], value, atol=1e-7) for name, value in expected.items())
    pd.testing.assert_frame_equal(curves, whole, atol=1e-6)
    with pytest.raises(ValueError, match="checkpoint of another training"):
        training.train(build("batchtopk", D_IN, D_SAE + 1, K), batches, 12, **checkpoint)
