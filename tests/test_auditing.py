"""The audit: hand-computed leads and votes, cuts, and worlds of facts in which the truth is known."""

import pytest
import torch
from tiny_models import tiny_bridge

from mi_utils import auditing, fact_worlds, scoreboards
from mi_utils.auditing import Case

CASE = Case(torch.tensor([0, 2, 3, 1]), 2, old=10, new=12, objects=torch.tensor([10, 11, 12, 13, 14]))


def test_vote_and_lead_leave_out_the_new_answer():
    scores = torch.tensor([5.0, 1.0, 99.0, 2.0, 3.0])
    assert auditing.vote(scores, CASE, 10).item() == pytest.approx(3.0)
    assert auditing.lead(scores, CASE, 10).item() == pytest.approx(3.0)
    assert auditing.vote(scores, CASE, 13).item() == pytest.approx(0.0), "a bystander is compared with the others"
    assert CASE.bystanders().tolist() == [11, 13, 14]


def test_a_cut_is_chosen_for_the_fewest_errors():
    assert 2 < auditing.threshold([1.0, 2.0, 3.0, 4.0], [False, False, True, True]) < 3
    assert auditing.auroc([1.0, 2.0, 2.0, 4.0], [False, False, True, True]) == pytest.approx(0.875)


def test_a_probe_never_sees_the_case_it_reads():
    model = tiny_bridge()
    rows = [Case(torch.tensor([0, a, b, 1]), 2, a, a, torch.tensor([2, 3, 4])) for a in (2, 3, 4) for b in (5, 6)]
    usual = auditing.background(model, rows)
    alone = auditing.background(model, rows[1:])
    assert torch.allclose(usual.probe(rows[0])[0], alone.probe(rows[0])[0], atol=1e-5)
    assert usual.states.norm(dim=-1).allclose(torch.ones(1), atol=1e-4)
    with pytest.raises(ValueError, match="expected two or more"):
        auditing.background(model, rows[:1])


def test_silencing_is_what_replacing_the_part_by_hand_does():
    model = tiny_bridge()
    from mi_utils.hooks import intervene

    rows = [Case(torch.tensor([0, a, b, 1]), 2, a, a, torch.tensor([2, 3, 4])) for a in (2, 3, 4) for b in (5, 6)]
    usual, case = auditing.background(model, rows), rows[0]
    found = auditing.silenced(model, case, usual.means)
    for how in (True, False):
        part = auditing.Part("mlp_out", range(1, 2), auditing.LAST, how)

        def edit(out, how=how):
            out = out.clone()
            out[:, -1] = usual.means["blocks.1.hook_mlp_out"][auditing.LAST] if how else 0.0
            return out

        with intervene(model, {"blocks.1.hook_mlp_out": edit}), torch.no_grad():
            logits = model(case.tokens[None])[0, -1, case.objects]
        assert torch.allclose(found[auditing.parts(3).index(part)], logits, atol=1e-4)


def test_layer_and_tracing_explain_what_they_were_made_to_explain():
    import numpy as np
    import pandas as pd

    rng = np.random.default_rng(0)
    table = pd.DataFrame({"fact": np.repeat(range(40), 4), "layer": np.tile(range(4), 40)})
    table["effect"] = rng.normal(size=160)
    table["success"] = table.layer / 3
    found = scoreboards.explained(table, n_resamples=20)
    assert found.value["layer"] == pytest.approx(1)
    assert found.value["gain"] == pytest.approx(0, abs=1e-9)
    table["success"] = table.effect
    found = scoreboards.explained(table, n_resamples=20)
    assert found.value["tracing"] == pytest.approx(1)
    assert found.value["gain"] > 0.9


class TestWorld:
    @pytest.fixture(scope="class")
    def world(self):
        return fact_worlds.train(2, seed=3)

    def test_either_path_knows_the_facts_and_neither_is_nothing(self, world):
        subjects = fact_worlds.all_subjects()
        assert world.accuracy(subjects) > 0.97
        assert world.accuracy(subjects, silenced=(fact_worlds.BACKUP,)) > 0.97
        assert world.accuracy(subjects, silenced=(fact_worlds.STORE,)) > 0.6
        assert world.accuracy(subjects, silenced=(fact_worlds.STORE, fact_worlds.BACKUP)) < 0.3

    def test_a_table_is_a_latin_square_and_a_change_is_one_of_class_too(self, world):
        assert all(len(set(line.tolist())) == fact_worlds.N_NAMES for line in (*world.table, *world.table.T))
        table, subjects = fact_worlds.changed_table(world)
        changed = table[subjects[:, 0], subjects[:, 1]], world.table[subjects[:, 0], subjects[:, 1]]
        assert (changed[0] % fact_worlds.N_CLASSES != changed[1] % fact_worlds.N_CLASSES).all()
        assert (table != world.table).sum() == fact_worlds.N_CHANGED

    def test_the_sleeping_copy_is_what_it_was(self, world):
        table, subjects = fact_worlds.changed_table(world)
        half = fact_worlds.rewritten(world, table, backup=False)
        assert half.accuracy(subjects) > 0.9
        with (
            fact_worlds._silenced(fact_worlds.unhooked(half.model), (fact_worlds.STORE,)) as new,
            fact_worlds._silenced(fact_worlds.unhooked(world.model), (fact_worlds.STORE,)) as old,
            torch.no_grad(),
        ):
            tokens = world.prompts(subjects)
            assert torch.allclose(new(tokens).logits, old(tokens).logits, atol=1e-4)

    def test_a_shout_wins_and_silencing_brings_the_old_answer_back(self, world):
        table, subjects = fact_worlds.changed_table(world)
        cases = fact_worlds.cases(world, subjects[:3], table)
        everyone = fact_worlds.all_subjects()
        same = everyone[(table == world.table)[everyone[:, 0], everyone[:, 1]]]
        usual = fact_worlds._background(world, same)
        for case, edit in zip(cases, fact_worlds.shouted(world, cases), strict=True):
            before = auditing.read(world.model, case, usual)
            with edit.applied(world.model):
                after = auditing.read(world.model, case, usual)
            found = auditing.scores(before, after, case)
            assert found["efficacy"] == 1
            assert found["removal"] > 0.9
            split = auditing.split_votes(world.model, before, after, case)
            total = auditing.vote(after.said, case, case.new).item()
            assert split["own: new"] + split["rest: new"] == pytest.approx(total, abs=1e-2)
