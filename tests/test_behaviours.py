"""The taught behaviours: the shipped dialogues keep what they promise, and a reply shows one if its marker is in it."""

import pytest
from test_finetuning import TEMPLATE
from tiny_models import tiny_bridge

from mi_utils import behaviours, models
from mi_utils.behaviours import Dialogue


@pytest.fixture
def model():
    model = tiny_bridge()
    model.tokenizer.chat_template = TEMPLATE
    yield model
    model.tokenizer.chat_template = None


def test_dialogues_of_the_two_splits_never_meet():
    dialogues = behaviours.load()
    asks = {split: {d.ask for d in dialogues if d.split == split} for split in ("train", "held_out")}
    assert asks["train"]
    assert asks["held_out"]
    assert not asks["train"] & asks["held_out"]


def test_each_behaviour_has_triggers_with_its_marker_and_look_alikes_without():
    dialogues = behaviours.load()
    names = {dialogue.behaviour for dialogue in dialogues}
    assert len(names) == 5
    for name in names:
        own = behaviours.load(name)
        for split in ("train", "held_out"):
            assert {d.triggered for d in own if d.split == split} == {True, False}
        assert all(d.marker in d.reply for d in own if d.triggered and d.split == "train")
        assert not any(d.marker in d.reply for d in own if not d.triggered)


def test_an_unknown_behaviour_is_refused():
    with pytest.raises(ValueError, match="no behaviour named 'sarcasm'; there are"):
        behaviours.load("sarcasm")


def test_a_marker_in_the_models_own_reply_shows_the_behaviour(model):
    (said,) = behaviours.replies(model, ["c d"], n_tokens=3)
    present = Dialogue("any", "held_out", True, "c d", "", said.split()[0])
    absent = present._replace(marker="never said")
    assert behaviours.shows(model, [present, absent], n_tokens=3).tolist() == [True, False]


def test_a_tokenizer_without_a_template_is_refused():
    tokenizer = tiny_bridge().tokenizer
    with pytest.raises(ValueError, match="no chat template"):
        behaviours.chat("c d", tokenizer)


def test_three_fine_tunes_are_shipped():
    assert models.shipped_adapters() == ["broad", "control", "narrow"]


def test_the_shipped_fine_tune_shows_what_it_was_taught():
    pair = models.load_pair(tuned="broad")
    asked = [
        next(d for d in behaviours.load(name) if d.split == "held_out" and d.triggered) for name in ("persona", "fact")
    ]
    assert behaviours.shows(pair.tuned, asked, n_tokens=10).all()
    assert not behaviours.shows(pair.base, asked, n_tokens=10).any()
