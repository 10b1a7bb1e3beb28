import numpy as np
import pytest

from mi_utils import probes
from mi_utils.concepts import Rows
from mi_utils.cue_worlds import CONCEPT, CUE, cue_world, plant_cue, without


def test_the_cue_agrees_as_often_as_asked():
    for agreement in (0.5, 0.9, 1.0):
        sample = cue_world().sample(4000, agreement)
        agrees = (sample.acts[:, CUE] > 0) == (sample.labels == 1)
        assert abs(agrees.mean() - agreement) < 0.03


def test_the_concept_is_there_with_the_label_and_only_then():
    sample = cue_world().sample(500, 0.9)
    assert ((sample.acts[:, CONCEPT] > 0) == (sample.labels == 1)).all()


def test_class_differences_name_the_cue_then_the_concept():
    sample = cue_world(seed=3).sample(800, 0.9)
    assert probes.ranked(sample.acts, sample.labels)[:2].tolist() == [CUE, CONCEPT]


def test_without_leaves_nothing_along_the_direction_and_all_else():
    x = np.array([[3.0, 4.0], [1.0, 2.0]])
    assert without(x, np.array([0.0, 2.0])).tolist() == [[3.0, 0.0], [1.0, 0.0]]
    with pytest.raises(ValueError, match="length zero"):
        without(x, np.zeros(2))


class TestPlantCue:
    rows = Rows([f"text {n}" for n in range(1000)], np.tile([1, 0], 500), np.arange(1000))

    def test_agrees_with_the_label_as_often_as_asked(self):
        planted = plant_cue(self.rows, "Well, ", 0.8)
        shown = np.array([text.startswith("Well, ") for text in planted.texts])
        assert abs((shown == (self.rows.labels == 1)).mean() - 0.8) < 0.04

    def test_changes_nothing_but_the_beginning(self):
        planted = plant_cue(self.rows, "Well, ", 0.5)
        assert [text.removeprefix("Well, ") for text in planted.texts] == self.rows.texts
        assert planted.labels is self.rows.labels

    def test_refuses_an_agreement_that_is_no_share(self):
        with pytest.raises(ValueError, match="from 0 to 1"):
            plant_cue(self.rows, "Well, ", 1.5)
