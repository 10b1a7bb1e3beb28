import pytest
import torch

from mi_utils import facts, patching, recall_worlds, trace_map
from mi_utils.markup import to_html
from mi_utils.widgets import TreeView

WORLD = recall_worlds.recall_world(0)
TOKENIZER = WORLD.model.tokenizer
FACT = WORLD.facts[0]
LAST_OF_SUBJECT = 4


@pytest.fixture(scope="module")
def layers():
    return patching.Stack(WORLD.model)


def twin():
    return next(fact for fact in WORLD.facts if fact.target_true != FACT.target_true)


def traced(layers, **setting):
    done = trace_map.begin(layers, TOKENIZER, trace_map.Setting(FACT.text, FACT.subject, **setting))
    for _ in trace_map.grow(layers, done):
        pass
    return done


def test_the_map_shows_the_planted_store(layers):
    done = traced(layers, instead=twin().subject, kind="mlp_out")
    assert done.p.isfinite().all()
    assert divmod(int(done.p.argmax()), layers.n_layers) == (LAST_OF_SUBJECT, WORLD.store[0])
    assert done.clean > 0.7 > 0.1 > done.corrupted


def test_without_an_answer_the_models_own_is_watched(layers):
    asked = trace_map.begin(layers, TOKENIZER, trace_map.Setting(FACT.text, FACT.subject)).pair.asked
    assert asked.true == facts.answer_token(TOKENIZER, FACT.target_true)
    other = trace_map.begin(layers, TOKENIZER, trace_map.Setting(FACT.text, FACT.subject, answer="Cairo")).pair.asked
    assert TOKENIZER.decode([other.true]).strip() == "Cairo"


def test_a_click_shows_what_the_patch_does(layers):
    done = traced(layers, instead=twin().subject, kind="mlp_out")
    shown = trace_map.after_patch(layers, TOKENIZER, done, LAST_OF_SUBJECT, WORLD.store[0])
    by_token = {row[0].strip(): row[1:] for row in shown.rows}
    clean, corrupted, patched = by_token[FACT.target_true]
    assert clean == pytest.approx(done.clean, abs=1e-5)
    assert corrupted == pytest.approx(done.corrupted, abs=1e-5)
    assert patched == pytest.approx(float(done.p[LAST_OF_SUBJECT, WORLD.store[0]]), abs=1e-5)
    with pytest.raises(ValueError, match="no layer 8"):
        trace_map.after_patch(layers, TOKENIZER, done, 1, 8)


def test_a_growing_map_can_be_drawn(layers):
    begun = trace_map.begin(layers, TOKENIZER, trace_map.Setting(FACT.text, FACT.subject))
    steps = trace_map.grow(layers, begun)
    for _ in range(10):
        next(steps)
    assert int(begun.p.isfinite().sum()) == 10
    drawn = to_html(trace_map.map_tree(begun, TOKENIZER))
    assert drawn.count("<rect") == begun.p.numel()
    assert drawn.count("data-row") == 10


class TestWidget:
    @pytest.fixture(scope="class")
    def stack(self):
        return trace_map.trace_map(WORLD.model, FACT.text, FACT.subject, kind="mlp_out")

    def view(self, stack):
        return next(part for part in stack.children if isinstance(part, TreeView))

    def control(self, stack, name):
        found = [part for part in stack.children if getattr(part, "description", "") == name]
        row = next(part for part in stack.children if hasattr(part, "children"))
        return (found + [part for part in row.children if getattr(part, "description", "") == name])[0]

    def test_begins_complete_and_its_page_shows_it(self, stack):
        assert "100%" in stack.static_html()
        assert stack.static_html().count("<rect") == 7 * 8

    def test_a_click_adds_the_table(self, stack):
        self.view(stack).clicked = {"token": "4", "row": "3", "n": 1}
        assert "patched here" in stack.static_html()

    def test_another_subject_in_its_place(self, stack):
        self.control(stack, "instead").value = twin().subject
        self.control(stack, "trace").click()
        assert f"“{twin().subject}” instead" in stack.static_html()

    @pytest.mark.parametrize(
        ("name", "value", "message"),
        [
            ("subject", "Zoe", "does not occur"),
            ("prompt", "", "empty"),
            ("instead", "Ada", "as many tokens"),
        ],
    )
    def test_what_cannot_be_traced_is_said(self, stack, name, value, message):
        box = self.control(stack, name)
        before, box.value = box.value, value
        self.control(stack, "trace").click()
        assert message in self.view(stack).message
        box.value = before

    def test_hostile_text_stays_text(self, stack):
        self.control(stack, "answer").value = "<img src=x onerror=alert(1)>"
        self.control(stack, "trace").click()
        assert "<img" not in stack.static_html()


def test_a_long_prompt_is_refused(layers):
    words = " ".join([FACT.subject] * 25)
    with pytest.raises(ValueError, match="at most 40"):
        trace_map.begin(layers, TOKENIZER, trace_map.Setting(words, FACT.subject))


def test_the_model_is_left_as_it_was(layers):
    tokens = torch.tensor([[0, 1, 2]])
    with torch.no_grad():
        before = WORLD.model(tokens)
        traced(layers)
        assert torch.equal(WORLD.model(tokens), before)
