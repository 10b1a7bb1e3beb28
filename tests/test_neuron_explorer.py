import numpy as np
import pytest
import torch
from tiny_models import tiny_bridge

from mi_utils import facts, name_facts, name_neurons, neuron_explorer
from mi_utils.effective_models import Recall
from mi_utils.markup import to_html
from mi_utils.neuron_explorer import AT_RANDOM, BY_EFFECT, BY_SELECTIVITY

NAMES, ANSWERS = ["a b", "b c", "c a", "d a", "a c", "f b"], ["d", "e", "f"]
TRUTH = torch.tensor([0, 1, 2, 0, 1, 2])


def asked():
    recall = Recall(tiny_bridge(), "e {} f", NAMES, ANSWERS)
    return name_facts.Asked(recall, "e {} f", TRUTH, recall.ask().right(TRUTH).numpy() > 0)


@pytest.fixture(scope="module")
def reading():
    found = name_neurons.neurons(asked().recall, [0, 1], torch.randn(16, 3, generator=torch.Generator().manual_seed(0)))
    tokens = torch.randint(1, 7, (5, 12), generator=torch.Generator().manual_seed(1))
    return neuron_explorer.read_neurons(asked(), found, torch.cat([torch.zeros(5, 1).long(), tokens], 1), n_each=4)


def test_neurons_of_each_kind_are_there_once(reading):
    assert reading.table.found.value_counts().to_dict() == {BY_EFFECT: 4, BY_SELECTIVITY: 4, AT_RANDOM: 4}
    assert reading.table.index.is_unique
    kinds = reading.table.groupby("found").effect
    assert kinds.min()[BY_EFFECT] >= kinds.max()[BY_SELECTIVITY]


def test_level_and_stray_are_what_they_are_said_to_be(reading):
    neuron = int(reading.table.index[0])
    row, column = reading.table.loc[neuron], reading.column(neuron)
    own = ANSWERS.index(row.answer) == TRUTH
    assert abs(float(reading.on_names[own, column].mean()) - row.level) < 1e-5
    assert reading.on_names[own, column].mean() > reading.on_names[~own, column].mean()
    assert abs(float((reading.on_text[..., column] >= row.level).float().mean()) - row.stray / 1000) < 1e-6


def test_text_activations_are_the_model_s_own(reading):
    neuron = int(reading.table.index[3])
    layer, number = divmod(neuron, 24)
    bos = torch.zeros(5, 1).long()
    _, cache = tiny_bridge().run_with_cache(torch.cat([bos, reading.tokens], 1))
    expected = cache[f"blocks.{layer}.mlp.hook_post"][:, 1:, number] * reading.table.loc[neuron, "sign"]
    torch.testing.assert_close(reading.on_text[..., reading.column(neuron)], expected, rtol=1e-4, atol=1e-5)


def test_a_card_shows_names_of_the_answer_others_and_text(reading):
    neuron = int(reading.table.index[0])
    card = reading.card(neuron)
    bands = {snippet.band for snippet in card.snippets}
    own = f"names: {reading.table.loc[neuron, 'answer']}"
    assert bands == {own, "names: other answers", "any text, where it is most active"}
    with pytest.raises(ValueError, match="was not read"):
        reading.card(10**6)


def test_the_widget_follows_a_click_and_has_a_static_twin(reading):
    stack = neuron_explorer.neuron_explorer(reading)
    kind, listing, strip, card = stack.children
    first, other = map(int, reading.table.index[:2])
    assert reading.table.loc[first, "label"] in to_html(card.tree)
    listing.clicked = {"latent": str(other), "n": 1}
    assert reading.table.loc[other, "label"] in to_html(card.tree)
    assert reading.table.loc[other, "label"] in to_html(strip.tree)
    before = listing.tree
    kind.value = AT_RANDOM
    assert listing.tree != before
    for part in ("any text", reading.table.loc[other, "label"]):
        assert part in stack.static_html()


def test_too_many_neurons_are_refused(reading):
    found = name_neurons.neurons(asked().recall, [0], torch.randn(16, 3))
    with pytest.raises(ValueError, match="there are 24"):
        neuron_explorer.read_neurons(asked(), found, reading.tokens, n_each=9)


class TestNameFacts:
    def test_asks_for_frequent_one_token_answers_only(self, monkeypatch):
        model, wanted = tiny_bridge(), facts.load("us_city_state")[0]
        pairs = [("a b", "d"), ("b c", "d"), ("c a", "e"), ("d a", "e"), ("a c", "f"), ("f b", "d e")]
        made = [_fact(wanted, subject, answer) for subject, answer in pairs]
        monkeypatch.setattr(name_facts.facts, "load", lambda _relation, shots: made)
        found = name_facts.ask_for(model, "any", least=2)
        assert sorted(found.recall.names) == ["a b", "b c", "c a", "d a"]
        assert found.answers == ["d", "e"]
        right = {
            name: found.answers[label] for name, label in zip(found.recall.names, found.truth.tolist(), strict=True)
        }
        assert right == dict(pairs[:4])
        assert len(name_facts.ask_for(model, "any", least=1, most=3).truth) == 3

    def test_every_readout_is_scored_on_every_layer(self):
        names = list("abcdef")
        recall = Recall(tiny_bridge(), "e {} f", names, ANSWERS)
        truth = torch.tensor([0, 1, 0, 1, 0, 1])
        found = name_facts.readable(
            name_facts.Asked(recall, "e {} f", truth, np.ones(6, bool)), tiny_bridge(1), [0], (1, 2)
        )
        layers = found[found.on == "all"].groupby("method").layer.agg(list).to_dict()
        assert layers.pop("bag of tokens") == [-1]
        assert set(layers) == {"trained probe", "shuffled labels", "untrained model", "head readout", "unembedding"}
        assert all(some == [0, 1, 2] for some in layers.values())
        assert found.accuracy.between(0, 1).all()


def _fact(like, subject, answer):
    from dataclasses import replace

    return replace(like, subject=subject, target_true=answer, prompt="e {} f")
