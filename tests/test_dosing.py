import numpy as np
import pandas as pd
import pytest
import torch

from mi_utils import concepts, dosing, language_worlds
from mi_utils.dosing import Bench, Budget, additivity, at_budget, orthogonal
from mi_utils.steering import Addition, Gauge


@pytest.fixture(scope="module")
def world():
    return language_worlds.planted_concepts()


@pytest.fixture(scope="module")
def bench(world):
    return Bench(world.model, world.hook_name, world.neutral, doses=(0.0, 0.1, 0.2), n_tokens=4)


@pytest.fixture(scope="module")
def curve(world, bench):
    return bench.dose_curve(Gauge(world.model, world.concepts["one"]), world.directions["one"])


def made(effect, cost, repeats=(0, 0, 0)):
    """A curve with the same numbers for each of four prompts."""
    return pd.DataFrame(
        [
            {"dose": d, "prompt": p, "effect": float(e), "cost": 3.0 + c, "repeats": r, "off_target": 0.1 * d}
            for d, e, c, r in zip((0.0, 0.5, 1.0), effect, cost, repeats, strict=True)
            for p in range(4)
        ]
    )


class TestCurve:
    def test_effect_rises_with_the_dose_and_is_zero_at_none(self, curve):
        means = curve.groupby("dose").effect.mean()
        assert abs(means[0.0]) < 1e-4
        assert means[0.2] > 1.8 * means[0.1] > 1.0

    def test_rows_are_those_of_each_dose_alone(self, world, bench, curve):
        gauge = Gauge(world.model, world.concepts["one"])
        alone = gauge([Addition(world.hook_name, 0.1 * bench.unit * world.directions["one"])])
        assert np.allclose(curve[curve.dose == 0.1].effect, alone, atol=1e-4)

    def test_off_target_is_zero_without_a_dose_and_grows(self, curve):
        means = curve.groupby("dose").off_target.mean()
        assert means[0.0] == 0.0
        assert means[0.2] > means[0.1] > 0.0

    def test_the_prompted_curve_holds_the_instruction_as_its_one_dose(self, world, bench):
        gauge = Gauge(world.model, world.concepts["one"])
        prompted = bench.prompted(gauge)
        assert np.allclose(prompted[prompted.dose == 1.0].effect, gauge.prompted(), atol=1e-4)


class TestAtBudget:
    def test_takes_the_largest_effect_that_can_be_paid(self):
        assert at_budget(made((0, 1, 5), (0, 0.5, 1.5)), Budget(cost=1.0)).dose == 0.5
        assert at_budget(made((0, 1, 5), (0, 0.5, 1.5)), Budget(cost=2.0)).dose == 1.0

    def test_repeats_are_part_of_the_budget(self):
        assert at_budget(made((0, 1, 5), (0, 0, 0), (0, 0.0, 0.4)), Budget()).dose == 0.5

    def test_what_only_destroys_is_reported_without_effect(self):
        result = at_budget(made((0, 1, 5), (0, 3, 3)), Budget())
        assert (result.dose, result.effect, result.wrong_way) == (0.0, 0.0, 0.0)

    def test_chooses_on_the_first_half_and_reports_the_second(self):
        curve = made((0, 1, 2), (0, 0, 0))
        curve.loc[(curve.dose == 1.0) & (curve.prompt >= 2), "effect"] = [-1.0, -3.0]
        result = at_budget(curve)
        assert (result.dose, result.effect, result.wrong_way) == (1.0, -2.0, 1.0)

    def test_refuses_a_curve_without_a_dose_of_zero(self):
        with pytest.raises(ValueError, match="dose of 0"):
            at_budget(made((0, 1, 5), (0, 0, 0)).query("dose > 0"))


class TestAdditivity:
    def test_only_the_gated_pair_fails_to_add(self, world, bench):
        gauges = {name: Gauge(world.model, concept) for name, concept in world.concepts.items()}
        table = additivity(gauges, additions(world, bench)).set_index(["concept", "other"])
        gap = table.observed - table.predicted
        assert gap[("gated", "gate")] < -1.0
        assert gap.drop(("gated", "gate")).abs().max() < 0.1
        assert ((table.low <= gap + 1e-6) & (gap - 1e-6 <= table.high)).all()

    def test_orthogonal_keeps_the_length_and_drops_what_is_shared(self, world):
        one, two = world.directions["one"], world.directions["two"]
        first, second = orthogonal(Addition("a", one), Addition("a", 3 * (one + two)))
        assert torch.equal(first.vector, one)
        assert second.vector.norm().item() == pytest.approx(3 * 2**0.5, rel=1e-4)
        assert abs(float(second.vector @ one)) < 1e-4

    def test_seconds_are_what_is_added_second(self, world, bench):
        gauges = {"one": Gauge(world.model, world.concepts["one"])}
        nothing = {name: Addition(world.hook_name, torch.zeros(64)) for name in world.directions}
        table = additivity(gauges, additions(world, bench), seconds=nothing)
        assert (table.cross == 0).all()
        assert np.allclose(table.observed, table.own)


def additions(world, bench):
    return {name: Addition(world.hook_name, 0.15 * bench.unit * v) for name, v in world.directions.items()}


class TestRecord:
    def test_holds_every_concept_and_every_way(self):
        measured = dosing.measured()
        assert set(measured.concept) == set(concepts.load())
        assert len(measured) == measured.groupby(["concept", "direction", "dose", "prompt"]).ngroups
        assert measured.groupby("concept").direction.nunique().eq(11).all()

    def test_the_table_is_at_budget_of_each(self):
        measured = dosing.measured()
        one = measured[(measured.concept == "tense") & (measured.direction == "CAA")]
        row = dosing.table(measured).loc[("tense", "CAA")]
        assert row.effect == at_budget(one).effect
        assert row.low <= row.effect <= row.high

    def test_pairs_are_all_ordered_pairs_and_three_random_directions_in_three_ways(self):
        pairs, n = dosing.measured_pairs(), len(concepts.load())
        assert pairs.groupby("how").size().eq(n * (n - 1) + 3 * n).all()
        assert pairs.how.nunique() == 3
        assert np.allclose(pairs.predicted, pairs.own + pairs.cross, atol=2e-4)
        gap = pairs.observed - pairs.predicted
        assert ((pairs.low - 2e-4 <= gap) & (gap <= pairs.high + 2e-4)).all()
