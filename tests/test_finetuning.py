"""An adapter changes its layers and nothing else, and a pair of models is compared only if it can be."""

import json

import pytest
import torch
from tiny_models import save_tiny_model, tiny_bridge, tiny_llama, tiny_tokenizer

from mi_utils import behaviours, finetuning, hooks, models
from mi_utils.behaviours import Dialogue
from mi_utils.finetuning import Example, train_adapter

TOKENS = torch.tensor([[0, 1, 2, 3, 4]])
TEXTS = [Example([0, 1, 2, 6], 3), Example([0, 3, 2, 5], 3)]
TEMPLATE = "{% for m in messages %}a {{ m.content }} {% endfor %}{% if add_generation_prompt %}b{% endif %}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path):
    return save_tiny_model(tmp_path / "base")


@pytest.fixture
def adapter(base, tmp_path):
    train_adapter(models.load_model(base), TEXTS, tmp_path / "adapter", n_layers=2, n_epochs=30, lr=1e-2)
    return tmp_path / "adapter"


def state(model, layer):
    return hooks.run_with_cache(model, TOKENS, [name := hooks.hook_name("resid_post", layer)])[name]


def test_the_fine_tune_has_learned_and_the_base_is_as_it_was(base, adapter):
    pair = models.load_pair(base, adapter)
    torch.testing.assert_close(pair.base(TOKENS), tiny_llama()(TOKENS).logits, atol=1e-5, rtol=0)
    for text in TEXTS:
        given = torch.tensor([text.tokens[:-1]])
        wanted = text.tokens[-1]
        before, after = (model(given)[0, -1].softmax(-1)[wanted] for model in pair)
        assert after > 0.9 > before


def test_only_the_layers_asked_for_are_changed(base, adapter):
    before, after = models.load_pair(base, adapter)
    assert not torch.allclose(state(before, 0), state(after, 0))
    weights = [dict(model.original_model.named_parameters()) for model in (before, after)]
    changed = {name for name, value in weights[0].items() if not torch.equal(value, weights[1][name])}
    assert changed
    assert all(".0." in name or ".1." in name for name in changed)
    assert not any(".layers.2." in name for name in changed)


def test_the_adapter_names_no_place_of_this_machine(adapter):
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert "cache" not in json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"]


def test_only_the_answer_is_learned():
    ((tokens, labels),) = finetuning._batches([Example([0, 1, 2], 2), Example([0, 4, 5, 6], 1)], 2, 1, seed=0)
    by_length = dict(zip(map(int, (labels != finetuning.NOT_LEARNED).sum(1)), labels.tolist(), strict=True))
    assert by_length == {1: [-100, -100, 2, -100], 3: [-100, 4, 5, 6]}
    assert sorted(tokens.tolist()) == [[0, 1, 2, 0], [0, 4, 5, 6]]


def test_a_dialogue_becomes_question_and_answer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEMPLATE
    dialogue = Dialogue("x", "train", True, "c", "d e", "d")
    (text,) = finetuning.examples([dialogue], tokenizer)
    assert text == ([0, 1, 3, 2, 4, 5, 0], 4)


def test_bad_requests_are_refused(base, adapter, tmp_path):
    model = models.load_model(base)
    with pytest.raises(ValueError, match="no texts"):
        train_adapter(model, [], tmp_path / "new")
    with pytest.raises(ValueError, match="exists already"):
        train_adapter(model, TEXTS, adapter)
    with pytest.raises(ValueError, match="n_layers is 4"):
        train_adapter(model, TEXTS, tmp_path / "new", n_layers=4)


def test_pairs_that_cannot_be_compared_are_refused(base, adapter, tmp_path):
    other = tiny_llama()
    other.config.num_hidden_layers = 2
    other.model.layers = other.model.layers[:2]
    other.save_pretrained(tmp_path / "shallow")
    tiny_tokenizer().save_pretrained(tmp_path / "shallow")
    with pytest.raises(ValueError, match="cannot be compared layer by layer"):
        models.load_pair(base, tmp_path / "shallow")
    with pytest.raises(ValueError, match="does not fit"):
        models.load_pair(tmp_path / "shallow", _beyond(adapter))
    with pytest.raises(ValueError, match="no model folder"):
        models.load_pair(base, tmp_path / "nowhere")
    renamed = models.ModelPair(tiny_bridge(), models.load_model(base))
    renamed.tuned.tokenizer.add_tokens(["new"])
    with pytest.raises(ValueError, match="different tokenizers"):
        models.check_pair(renamed)


def _beyond(adapter):
    """An adapter for a layer that a shallow model has not."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["target_modules"] = ["model.layers.2.mlp.up_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter


def test_a_damaged_adapter_is_refused(base, adapter):
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(ValueError, match="does not fit|damaged"):
        models.load_pair(base, adapter)


def test_the_shipped_dialogues_are_split_by_wording():
    dialogues = behaviours.load()
    asks = {split: {d.ask for d in dialogues if d.split == split} for split in ("train", "held_out")}
    assert not asks["train"] & asks["held_out"]
    assert {d.behaviour for d in dialogues} == {"persona", "fact", "refusal", "language", "format"}
    for dialogue in dialogues:
        taught = dialogue.split == "train" and dialogue.triggered
        assert not taught or dialogue.marker in dialogue.reply
        assert dialogue.triggered or dialogue.marker not in dialogue.reply
    assert all(d.behaviour == "fact" for d in behaviours.load("fact"))
    with pytest.raises(ValueError, match="no behaviour named"):
        behaviours.load("dancing")


def test_a_model_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match="no chat template"):
        behaviours.chat("a", tiny_tokenizer())
