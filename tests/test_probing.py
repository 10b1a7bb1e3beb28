import numpy as np
import pandas as pd
import pytest
import torch

from mi_utils import language_worlds, models, probing
from mi_utils.probes import METHODS
from mi_utils.probing import HELD_OUT, Dataset, Features, Regime, evaluate, paired, selectivity


@pytest.fixture(scope="module")
def world():
    return language_worlds.planted_concepts()


@pytest.fixture(scope="module")
def data(world):
    twin = models.random_twin(world.model)
    return probing.read(world.model, twin, world.dictionary, world.hook_name, world.concepts["one"])


def made(labels, groups, informative=True):
    from mi_utils.concepts import Rows

    rng = np.random.default_rng(0)
    x = rng.normal(size=(len(labels), 4)).astype(np.float32)
    x[:, 0] += 5.0 * labels * informative
    return Dataset("made", Features({"states": x}, Rows([""] * len(labels), labels, groups)), {})


DENSE = {"dense": METHODS["dense"]}


class TestRead:
    def test_views_are_those_of_the_last_token(self, world, data):
        text = data.within.rows.texts[3]
        with torch.no_grad():
            state = models.unhooked(world.model).model.embed_tokens(world.model.to_tokens(text, prepend_bos=True))[
                0, -1
            ]
        assert np.allclose(data.within.views["states"][3], state, atol=1e-5)
        assert np.allclose(data.within.views["latents"][3], world.dictionary.encode(state[None])[0], atol=1e-5)

    def test_words_are_those_of_the_training_texts(self, data):
        counts = data.within.views["words"]
        assert set(np.unique(counts)) == {0.0, 1.0}
        assert (counts.sum(1) == 2).all()


class TestEvaluate:
    def test_planted_concepts_are_read_from_states_and_latents_but_not_from_unseen_words(self, data):
        scores = evaluate(data, seed=0).set_index("method").auroc
        assert scores["dense"] > 0.95
        assert scores["1 latent"] > 0.95
        assert scores["bag of words"] == 0.5  # each word belongs to one group

    def test_one_row_for_each_method_and_test_set(self):
        data = made(np.tile([0, 1], 40), np.repeat(np.arange(20), 4))
        shifted = Dataset("made", data.within, {"other": data.within})
        table = evaluate(shifted, methods=DENSE)
        assert table.on.tolist() == [HELD_OUT, "other"]
        assert table.n_labels.tolist() == [64, 64]

    def test_the_same_seed_gives_the_same_table(self, data):
        pd.testing.assert_frame_equal(evaluate(data, seed=3), evaluate(data, seed=3))


class TestRegime:
    data = made(np.tile([0, 1], 200), np.arange(400))

    def test_gives_as_many_labels_as_asked_for_and_as_many_of_them_positive(self):
        rows = self.data.within.rows
        train, seen = probing._labelled(rows.labels, np.ones(400, bool), Regime(n_labels=40, positive=0.1), 0)
        assert (train.sum(), seen[train].sum()) == (40, 4)

    def test_flips_the_share_asked_for_among_training_rows_alone(self):
        rows = self.data.within.rows
        known = np.arange(400) < 300
        train, seen = probing._labelled(rows.labels, known, Regime(flipped=0.25), 0)
        assert (train == known).all()
        assert (seen != rows.labels).sum() == 75
        assert (seen[~known] == rows.labels[~known]).all()

    def test_wrong_labels_hurt(self):
        good, bad = (evaluate(self.data, regime=Regime(flipped=share), methods=DENSE).auroc[0] for share in (0.0, 0.5))
        assert good > 0.95 > bad + 0.1

    @pytest.mark.parametrize("regime", [Regime(n_labels=2), Regime(n_labels=900), Regime(n_labels=20, positive=0.0)])
    def test_refuses_what_there_are_no_labels_for(self, regime):
        with pytest.raises(ValueError, match="positive and"):
            evaluate(self.data, regime=regime, methods=DENSE)


def test_selectivity_is_high_where_there_is_something_to_understand_and_nothing_to_remember():
    table = selectivity(made(np.tile([0, 1], 200), np.repeat(np.arange(100), 4)), methods=DENSE)
    assert table.task[0] > 0.95
    assert 0.3 < table.control[0] < 0.7
    assert table.selectivity[0] == table.task[0] - table.control[0]


def test_paired_joins_by_name_whatever_the_order():
    rows = [
        {"data": data, "on": HELD_OUT, "seed": seed, "method": method, "auroc": value + seed}
        for data, a, b in (("x", 0.9, 0.7), ("y", 0.5, 0.6))
        for method, value in (("a", a), ("b", b))
        for seed in (0, 1)
    ]
    shuffled = pd.DataFrame(rows).sample(frac=1, random_state=0)
    table = paired(shuffled, "a", "b").sort_index()
    assert table.value.round(6).tolist() == [0.2, -0.1]
