"""Each hook name reaches what it names, and edits leave no trace."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from tiny_models import tiny_bridge

from mi_utils import hooks

TOKENS = torch.tensor([[0, 1, 2, 3, 4], [0, 5, 4, 3, 2]])
LAYER = 1


@pytest.fixture
def model():
    model = tiny_bridge()
    before, weights = model(TOKENS), {name: value.clone() for name, value in model.state_dict().items()}
    yield model
    assert torch.equal(model(TOKENS), before), "the model was left altered"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not any(point.has_hooks() for point in model.hook_dict.values())


def noise_like(activation):
    return activation + 0.1 * torch.arange(activation.numel()).view(activation.shape).sin()


@pytest.mark.parametrize("kind", hooks.KINDS)
def test_every_kind_moves_the_logits(model, kind):
    name, before = hooks.hook_name(kind, LAYER), model(TOKENS)
    with hooks.intervene(model, {name: noise_like}):
        assert (model(TOKENS) - before).abs().max() > 0.01
    with hooks.intervene(model, {name: lambda activation: activation}):
        assert torch.equal(model(TOKENS), before)


@pytest.mark.parametrize("kind", hooks.KINDS)
def test_both_names_of_a_place_do_the_same(model, kind):
    classic = hooks.hook_name(kind, LAYER)
    own = hooks.resolve(model, classic)
    assert own != classic or kind in ("attn_scores", "pattern")
    assert hooks.resolve(model, own) == own
    read = hooks.run_with_cache(model, TOKENS, [classic, own])
    assert torch.equal(read[classic], read[own])


def test_an_edit_reaches_the_residual_stream_at_each_point(model):
    """Zeroing the stream leaves exactly what is added later."""
    for kind, later in {"resid_pre": ["attn_out", "mlp_out"], "resid_mid": ["mlp_out"], "resid_post": []}.items():
        with hooks.intervene(model, {hooks.hook_name(kind, LAYER): torch.zeros_like}):
            names = [hooks.hook_name(part, LAYER) for part in ("attn_out", "mlp_out")]
            stream = hooks.hook_name("resid_post", LAYER)
            read = hooks.run_with_cache(model, TOKENS, [*names, stream])
        expected = sum((read[hooks.hook_name(part, LAYER)] for part in later), torch.zeros(()))
        torch.testing.assert_close(read[stream], expected.expand_as(read[stream]), atol=1e-5, rtol=0)


def test_the_stream_is_the_sum_of_its_parts(model):
    names = {kind: hooks.hook_name(kind, LAYER) for kind in hooks.KINDS}
    read = hooks.run_with_cache(model, TOKENS, names.values())
    torch.testing.assert_close(read[names["resid_mid"]], read[names["resid_pre"]] + read[names["attn_out"]])
    torch.testing.assert_close(read[names["resid_post"]], read[names["resid_mid"]] + read[names["mlp_out"]])
    torch.testing.assert_close(read[names["pattern"]].sum(-1), torch.ones(2, 4, 5))


def test_shapes_are_the_documented_ones(model):
    shapes = {
        "resid_pre": (2, 5, 16),
        "attn_out": (2, 5, 16),
        "q": (2, 5, 4, 4),
        "k": (2, 5, 2, 4),
        "z": (2, 5, 4, 4),
        "attn_scores": (2, 4, 5, 5),
        "pattern": (2, 4, 5, 5),
        "mlp_pre": (2, 5, 24),
        "mlp_post": (2, 5, 24),
    }
    for kind, shape in shapes.items():
        name = hooks.hook_name(kind, LAYER)
        assert hooks.run_with_cache(model, TOKENS, [name])[name].shape == shape


def test_reading_stops_at_the_deepest_hook(model):
    reached = []
    watch = [(f"blocks.{layer}.hook_in", lambda activation, hook: reached.append(hook.name)) for layer in range(3)]
    with model.hooks(fwd_hooks=watch):
        hooks.run_with_cache(model, TOKENS, [hooks.hook_name("resid_pre", 0), hooks.hook_name("resid_post", 1)])
    assert reached == ["blocks.0.hook_in", "blocks.1.hook_in"]


def test_reading_the_last_layer_does_not_unembed(model):
    reached = []
    with model.hooks(fwd_hooks=[("unembed.hook_in", lambda activation, hook: reached.append(hook.name))]):
        hooks.run_with_cache(model, TOKENS, [hooks.hook_name("resid_post", 2)])
    assert reached == []


@pytest.mark.parametrize("kind", hooks.KINDS)
def test_the_fast_reader_reads_the_same(model, kind):
    name = hooks.hook_name(kind, LAYER)
    read = hooks.fast_reader(model, [name], TOKENS[:1])
    expected = hooks.run_with_cache(model, TOKENS, [name])[name]
    torch.testing.assert_close(read(TOKENS)[name], expected, atol=1e-5, rtol=1e-5)
    runs_plain = kind in ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "mlp_pre", "mlp_post")
    assert read.in_threads == runs_plain


def test_the_fast_reader_may_be_used_by_several_threads(model):
    names = [hooks.hook_name("resid_pre", LAYER), hooks.hook_name("resid_post", LAYER)]
    read = hooks.fast_reader(model, names, TOKENS[:1])
    batches = [TOKENS.roll(shift, 1) for shift in range(40)]
    expected = [read(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(pool.map(read, batches), expected, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in names)


def test_the_fast_reader_keeps_to_the_bridge_where_the_plain_model_differs(model):
    name = hooks.hook_name("resid_post", LAYER)
    with hooks.intervene(model, {hooks.hook_name("mlp_out", 0): torch.zeros_like}):
        assert hooks.fast_reader(model, [name], TOKENS).in_threads is False
    other = hooks.unhooked(tiny_bridge(seed=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooks, "unhooked", lambda model: other)
        assert hooks.fast_reader(model, [name], TOKENS).in_threads is False


def test_reading_sees_edits(model):
    name = hooks.hook_name("resid_post", LAYER)
    with hooks.intervene(model, {name: torch.zeros_like}):
        assert hooks.run_with_cache(model, TOKENS, [name])[name].abs().max() == 0


def test_edits_nest(model):
    name = hooks.hook_name("resid_post", LAYER)
    with hooks.intervene(model, {name: lambda activation: activation * 0 + 1}):
        outer = model(TOKENS)
        with hooks.intervene(model, {name: lambda activation: activation + 1}):
            assert hooks.run_with_cache(model, TOKENS, [name])[name].unique().tolist() == [2]
        assert torch.equal(model(TOKENS), outer)


def test_edits_that_write_in_place_count(model):
    for kind in ("resid_mid", "resid_post"):
        name = hooks.hook_name(kind, LAYER)
        with hooks.intervene(model, {name: lambda activation: activation.zero_()}):
            in_place = model(TOKENS)
        with hooks.intervene(model, {name: torch.zeros_like}):
            torch.testing.assert_close(in_place, model(TOKENS))


def test_the_model_is_restored_after_an_error(model):
    def fail(activation):
        raise RuntimeError("in the middle of the pass")

    with (
        pytest.raises(RuntimeError, match="in the middle"),
        hooks.intervene(model, {hooks.hook_name("resid_mid", 0): noise_like, hooks.hook_name("mlp_out", LAYER): fail}),
    ):
        model(TOKENS)


def test_gradients_flow_through_edits(model):
    push = torch.zeros(16, requires_grad=True)
    with hooks.intervene(model, {hooks.hook_name("resid_mid", 0): lambda activation: activation + push}):
        model(TOKENS).sum().backward()
    assert push.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blocks.1.hook_resid_pots", "did you mean 'blocks.1.hook_resid_post'"),
        ("blocks.3.hook_resid_post", "of 3 layers has no hook 'blocks.3.hook_resid_post'"),
        ("blocks.1.attn.hook_result", "set_use_attn_result"),
    ],
)
def test_a_name_that_attaches_nowhere_is_an_error(model, name, message):
    with pytest.raises(ValueError, match=message):
        hooks.run_with_cache(model, TOKENS, [name])
    with pytest.raises(ValueError, match=message), hooks.intervene(model, {name: noise_like}):
        model(TOKENS)


def test_a_place_that_is_never_reached_is_an_error(model):
    with pytest.raises(ValueError, match="never reaches.*hook_hidden_states"):
        hooks.run_with_cache(model, TOKENS, ["blocks.1.attn.hook_hidden_states"])
    with (
        pytest.raises(ValueError, match="never used"),
        hooks.intervene(model, {"blocks.1.attn.hook_hidden_states": noise_like}),
    ):
        model(TOKENS)


@pytest.mark.parametrize("edit", [lambda activation: activation[:, :1], lambda activation: None])
def test_an_edit_of_another_shape_is_an_error(model, edit):
    with (
        pytest.raises(ValueError, match=r"must return a tensor of shape \(2, 5, 16\), got"),
        hooks.intervene(model, {hooks.hook_name("resid_post", 0): edit}),
    ):
        model(TOKENS)


def test_bad_arguments_are_errors(model):
    with pytest.raises(ValueError, match="unknown kind 'resid_pots'; did you mean 'resid_post'"):
        hooks.hook_name("resid_pots", 0)
    with pytest.raises(ValueError, match="layer -1 is negative"):
        hooks.hook_name("resid_post", -1)
    with pytest.raises(ValueError, match="'unembed.hook_in' belongs to no layer"):
        hooks.layer_of("unembed.hook_in")
    with pytest.raises(ValueError, match="no hook names given"):
        hooks.run_with_cache(model, TOKENS, [])


def test_layer_of_reads_both_kinds_of_name():
    assert [hooks.layer_of(name) for name in ("blocks.12.hook_out", hooks.hook_name("q", 7))] == [12, 7]


def test_at_last_edits_only_the_last_position():
    activation = torch.ones(2, 4, 3)
    edited = hooks.at_last(lambda last: 5 * last)(activation)
    assert edited[:, :-1].eq(1).all()
    assert edited[:, -1].eq(5).all()
    assert activation.eq(1).all()
