import pandas as pd
import pytest
import torch

from mi_utils import fact_finding, memorisers
from mi_utils.fact_finding import Square, agreement, and_share, errors, examine, interaction_share, partners


def square(name, other_last, other_first, other):
    return Square(*(torch.tensor(values) for values in (name, other_last, other_first, other)))


class TestSquare:
    def test_by_hand(self):
        values = square([7.0], [4.0], [3.0], [1.0])
        assert values.additive().tolist() == [6.0]
        assert values.interaction().tolist() == [1.0]

    def test_a_sum_has_no_interaction_and_an_and_nothing_else(self):
        assert and_share(square([5.0, 7.0], [3.0, 2.0], [2.0, 5.0], [0.0, 0.0])) == 0
        assert and_share(square([2.0, 4.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])) == 1

    def test_names_that_are_not_known_have_no_share(self):
        with pytest.raises(ValueError, match="names that are known"):
            and_share(square([0.0], [0.0], [0.0], [1.0]))

    def test_variance_share_ends_at_0_and_1_and_is_a_third_without_structure(self):
        assert interaction_share(square([3.0], [1.0], [2.0], [0.0])) == 0
        assert interaction_share(square([1.0], [0.0], [0.0], [1.0])) == 1
        values = torch.randn(4, 2000, 8, generator=torch.Generator().manual_seed(0))
        assert abs(interaction_share(Square(*values)) - 1 / 3) < 0.01
        assert interaction_share(square([2.0], [2.0], [2.0], [2.0])) == 0


def test_partners_share_no_token():
    first, last = torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2])
    other = partners(first, last)
    assert ((first != first[other]) & (last != last[other])).all()
    with pytest.raises(ValueError, match="every other name"):
        partners(torch.zeros(3, dtype=torch.long), torch.arange(3))


def test_agreement_by_hand():
    effects = torch.tensor([[[1.0, 0.0, 2.0, 0.0]], [[2.0, 0.0, 4.0, 0.0]]])
    torch.testing.assert_close(agreement(effects), torch.tensor([1.0]))
    effects[1] = -effects[1]
    torch.testing.assert_close(agreement(effects), torch.tensor([-1.0]))


def test_each_test_comes_out_on_the_side_that_was_planted():
    found = pd.DataFrame(
        [
            {"mechanism": name, "seed": seed} | examine(build(seed), seed)
            for name, build in memorisers.MECHANISMS.items()
            for seed in range(2)
        ]
    )
    judged = errors(found, calibrated_on=[0])
    assert list(judged.index) == list(fact_finding.EXPECTED)
    assert (judged.errors == 0).all()
    assert (judged.high > judged.low + 0.1).all()


def test_errors_counts_what_is_on_the_wrong_side():
    kinds = {name: (0.0 if name == "additive" else 1.0) for name in memorisers.MECHANISMS}
    rows = [
        {"mechanism": name, "seed": seed} | dict.fromkeys(fact_finding.EXPECTED, value)
        for name, value in kinds.items()
        for seed in (0, 1)
    ]
    examined = pd.DataFrame(rows)
    assert errors(examined, [0]).loc["AND", ["errors", "of", "boundary"]].tolist() == [0, 4, 0.5]
    examined.loc[(examined.mechanism == "distributed") & (examined.seed == 1), "AND"] = 0.2
    assert errors(examined, [0]).errors["AND"] == 1
    with pytest.raises(ValueError, match="more seeds"):
        errors(examined, [0, 1])
