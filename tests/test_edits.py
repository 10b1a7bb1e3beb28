"""Edits: what is refused, what is written where, and that a model is what it was afterwards."""

from dataclasses import replace

import pytest
import torch
from tiny_models import tiny_bridge

from mi_utils import editing, edits, rome
from mi_utils.facts import Asked, Fact
from mi_utils.models import unhooked


def a_fact(model, **changes):
    """Whatever the tiny model says after "b c a", told to be something else."""
    fact = Fact("tiny", "b c", "{} a", "d", "e", ("b c d",), (), (Asked("d a", "a"),), (), (), "test")
    with torch.no_grad():
        said = model.tokenizer.decode([int(model(model.to_tokens("b c a", prepend_bos=True))[0, -1].argmax())])
    other = next(word for word in "abcdef" if word != said)
    return replace(fact, **{"target_true": said, "target_false": other} | changes)


@pytest.fixture
def model():
    return tiny_bridge()


@pytest.fixture
def asked(model):
    return edits.request(model, a_fact(model), ["d e ", "f "])


def moment(model):
    return torch.eye(unhooked(model).config.intermediate_size)


def weights(model):
    return {name: value.clone() for name, value in model.original_model.state_dict().items()}


def said(model, asked):
    with torch.no_grad():
        return model(asked.rows[0][None])[0, -1]


def test_a_request_knows_where_the_subject_ends(asked):
    assert asked.rows[0].tolist()[1:] == [2, 3, 1]
    assert asked.positions == (2, 4, 3)
    assert asked.subject.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "d a"}, "does not occur in the prompt"),
        ({"target_false": "d e"}, "is 2 tokens"),
        ({"target_true": "f", "target_false": "e"}, "the model does not know"),
    ],
)
def test_what_cannot_be_edited_is_refused(model, changes, message):
    fact = a_fact(model, **changes)
    if changes.get("target_true") == a_fact(model).target_true:
        pytest.skip("the tiny model happens to say this")
    with pytest.raises(ValueError, match=message):
        edits.request(model, fact)


@pytest.mark.parametrize("gate", rome.GATES)
def test_an_edit_makes_the_answer_likelier_and_leaves_no_trace(model, asked, gate):
    before, clean = weights(model), said(model, asked)
    (edit,) = rome.edit(model, [asked], edits.Site(0), gate=gate, moments=[moment(model)], unit=10.0)
    with edit.applied(model):
        changed = said(model, asked)
    assert changed.log_softmax(-1)[asked.new] > clean.log_softmax(-1)[asked.new] + 0.5
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert torch.equal(said(model, asked), clean)


def test_the_model_is_restored_when_the_block_raises(model, asked):
    before = weights(model)
    (edit,) = rome.edit(model, [asked], edits.Site(1), moments=[moment(model)])
    with pytest.raises(KeyError), edit.applied(model):
        raise KeyError
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_rank_one_edit_writes_its_vector_at_the_subjects_key(model, asked):
    (edit,) = rome.edit(model, [asked], edits.Site(1), moments=[moment(model)], unit=10.0)
    names = ["blocks.1.mlp.hook_post", "blocks.1.hook_mlp_out"]
    from mi_utils.hooks import run_with_cache

    clean = run_with_cache(model, asked.rows[0][None], names)
    with edit.applied(model):
        changed = run_with_cache(model, asked.rows[0][None], names)
    assert torch.allclose(edit.key @ clean[names[0]][0, asked.positions[0]], torch.tensor(1.0), atol=1e-4)
    written = (changed[names[1]] - clean[names[1]])[0, asked.positions[0]]
    assert torch.allclose(written, edit.delta, atol=1e-4)
    (change,) = edit.changes(unhooked(model)).values()
    assert torch.linalg.matrix_rank(change) == 1


def test_edits_that_are_sought_together_are_those_that_are_sought_alone(model, asked):
    other = edits.request(model, a_fact(model), ["a b c "])
    both = rome.edit(model, [asked, other], edits.Site(1), moments=[moment(model)] * 2)
    for one, request in zip(both, (asked, other), strict=True):
        (alone,) = rome.edit(model, [request], edits.Site(1), moments=[moment(model)])
        assert torch.allclose(one.delta, alone.delta, atol=1e-4)


def test_the_vector_is_no_longer_than_allowed(model, asked):
    (edit,) = rome.edit(model, [asked], edits.Site(0), moments=[moment(model)], unit=0.01)
    assert edit.delta.norm() <= rome.LARGEST * 0.01 + 1e-6


def test_what_runs_from_the_edited_layer_on_is_what_the_whole_model_does(model, asked):
    run = rome._Run(unhooked(model), [asked], edits.Site(1), "key")
    logits = run._logits(torch.zeros(1, 16))
    for row, tokens in zip(logits, (*asked.rows, asked.essence), strict=True):
        assert torch.allclose(row, model(tokens[None])[0, -1], atol=1e-4)


def test_a_vector_after_the_subject_is_written_at_its_last_token_only():
    ends = edits._ends(torch.tensor([[0, 2, 3, 1, 3, 2, 3]]), torch.tensor([2, 3]))
    assert ends.tolist() == [[0, 0, 1, 0, 0, 0, 1]]
    assert edits._ends(torch.tensor([[0, 2]]), None).tolist() == [[1, 1]]


def test_second_moments_are_means_over_tokens_without_the_first(model):
    tokens = torch.tensor([[0, 1, 2, 3], [0, 4, 5, 6]])
    (found,) = rome.moments_on(model, tokens, [(1, "mlp")]).values()
    from mi_utils.hooks import run_with_cache

    keys = run_with_cache(model, tokens, ["blocks.1.mlp.hook_post"])["blocks.1.mlp.hook_post"][:, 1:].flatten(0, 1)
    assert torch.allclose(found, keys.T @ keys / 6, atol=1e-5)
    (heads,) = rome.moments_on(model, tokens, [(1, "attn")]).values()
    assert heads.shape == (16, 16)


@pytest.mark.parametrize("names", [["model.layers.0.mlp.down_proj"], ["model.layers.0.mlp.up_proj", "lm_head"][:1]])
def test_fine_tuning_moves_no_weight_too_far_and_leaves_the_model(model, asked, names):
    before = weights(model)
    edit = rome.finish(editing.fine_tune(model, asked, names))
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    (change,) = edit.changes(unhooked(model)).values()
    assert 0 < change.abs().max() <= editing.LARGEST_CHANGE + 1e-9
    with edit.applied(model):
        changed = said(model, asked).log_softmax(-1)[asked.new]
    assert changed > said(model, asked).log_softmax(-1)[asked.new]


def test_unknown_methods_sites_gates_and_modules_are_refused(model, asked):
    with pytest.raises(ValueError, match="unknown method 'magic'"):
        editing.edited(model, [asked], "magic", 0)
    with pytest.raises(ValueError, match="the model has 3 layers"):
        rome.edit(model, [asked], edits.Site(3))
    with pytest.raises(ValueError, match="unknown gate"):
        rome.edit(model, [asked], edits.Site(0), gate="door")
    with pytest.raises(ValueError, match="no linear modules"):
        rome.finish(editing.fine_tune(model, asked, ["model.layers.0.mlp.nothing"]))
