import pytest
import torch
from tiny_models import tiny_bridge

from mi_utils import attribution, patching, paths
from mi_utils.hooks import hook_name, intervene, run_with_cache

CLEAN, CORRUPTED = torch.tensor([[0, 1, 2, 3, 4, 5]]), torch.tensor([[0, 1, 6, 1, 4, 5]])
N_POS = CLEAN.shape[1]
ODDS = patching.log_odds(1, 2)


@pytest.fixture(scope="module")
def stack():
    return patching.Stack(tiny_bridge())


@pytest.fixture(scope="module")
def runs(stack):
    return [stack.read(stack.embed(tokens)) for tokens in (CLEAN, CORRUPTED)]


@torch.no_grad()
def by_hooks(kind, layers, position):
    """The same patch with the library's own hooks on a whole pass."""
    model, names = tiny_bridge(), [hook_name(kind, layer) for layer in layers]
    given = run_with_cache(model, CLEAN, names)

    def edit(name):
        def put(act):
            act = act.clone()
            act[:, position] = given[name][:, position]
            return act

        return put

    with intervene(model, {name: edit(name) for name in names}):
        return ODDS(model(CORRUPTED)[:, -1])


def test_a_run_ends_where_the_model_ends(runs):
    with torch.no_grad():
        assert torch.allclose(runs[0].logits, tiny_bridge()(CLEAN)[:, -1], atol=1e-5)


@pytest.mark.parametrize("kind", patching.KINDS)
@pytest.mark.parametrize("skips", [True, False])
def test_patched_passes_equal_hooked_ones(stack, runs, kind, skips, monkeypatch):
    monkeypatch.setattr(stack, "_skips", skips)
    clean, corrupted = runs
    values = patching.sweep(stack, corrupted, clean, ODDS, patching.each_position(N_POS), kind=kind)
    assert values.shape == (N_POS, 3, 1)
    for layer in range(3):
        for position in range(N_POS):
            expected = by_hooks(kind, [layer], position)
            assert torch.allclose(values[position, layer], expected, atol=1e-4), (layer, position)


def test_a_window_patches_its_layers_together(stack, runs):
    clean, corrupted = runs
    site = patching.at([3], N_POS)[None]
    values = patching.sweep(stack, corrupted, clean, ODDS, site, kind="mlp_out", width=2)
    for layer in range(3):
        assert torch.allclose(values[0, layer], by_hooks("mlp_out", patching.window(layer, 2, 3), 3), atol=1e-4)


def test_how_many_layers_go_into_a_pass_makes_no_difference(stack, runs, monkeypatch):
    clean, corrupted = runs
    sites = patching.each_position(N_POS)
    together = patching.sweep(stack, corrupted, clean, ODDS, sites, kind="mlp_out", width=3)
    monkeypatch.setattr(patching, "AT_ONCE", 1)
    assert torch.allclose(
        patching.sweep(stack, corrupted, clean, ODDS, sites, kind="mlp_out", width=3), together, atol=1e-5
    )


def test_all_positions_at_once_bring_everything_back_and_an_unchanged_token_nothing(stack, runs):
    clean, corrupted = runs
    sites = torch.stack([torch.ones(N_POS, dtype=torch.bool), patching.at([1], N_POS)])
    values = patching.sweep(stack, corrupted, clean, ODDS, sites)[..., 0]
    assert torch.allclose(values[0], ODDS(clean.logits).expand(3), atol=1e-4)
    assert torch.allclose(values[1], ODDS(corrupted.logits).expand(3), atol=1e-4)


def test_rows_of_the_base_and_of_the_donor_may_differ_in_number(stack, runs):
    clean, corrupted = runs
    several = stack.read(torch.cat([corrupted.embeds, 0.5 * corrupted.embeds]))
    site = patching.at([-2], N_POS)[None]
    denoised = patching.sweep(stack, several, clean, ODDS, site)
    noised = patching.sweep(stack, clean, several, ODDS, site)
    assert denoised.shape == noised.shape == (1, 3, 2)
    assert torch.allclose(denoised[..., :1], patching.sweep(stack, corrupted, clean, ODDS, site), atol=1e-4)


def test_chosen_layers_and_a_metric_of_two_numbers(stack, runs):
    clean, corrupted = runs
    both = lambda logits: torch.stack([ODDS(logits), patching.probability(1)(logits)], -1)  # noqa: E731
    found = patching.sweep(stack, corrupted, clean, both, patching.each_position(N_POS), layers=[2, 0])
    alone = patching.sweep(stack, corrupted, clean, ODDS, patching.each_position(N_POS))
    assert found.shape == (N_POS, 2, 1, 2)
    assert torch.allclose(found[:, 1, :, 0], alone[:, 0])


def test_patching_leaves_the_model_as_it_was(runs):
    model = tiny_bridge()
    with torch.no_grad():
        before = model(CLEAN)
        own = patching.Stack(model)
        patching.sweep(own, own.read(own.embed(CLEAN)), runs[1], ODDS, patching.each_position(N_POS), kind="z")
        assert torch.equal(model(CLEAN), before)


def test_attribution_is_exact_for_a_small_step(stack, runs):
    clean, corrupted = runs
    step = 1e-3
    near = stack.read(corrupted.embeds + step * (clean.embeds - corrupted.embeds))
    guessed = attribution.attribution(stack, corrupted, near, ODDS, ["mlp_out", "resid_post"])
    for kind, changes in guessed.items():
        exact = patching.sweep(stack, corrupted, near, ODDS, patching.each_position(N_POS), kind=kind)
        exact = exact - ODDS(corrupted.logits)
        assert torch.allclose(changes[:, 0].T / step, exact[..., 0] / step, atol=0.02)


def test_agreement_by_hand():
    exact, guessed = torch.tensor([3.0, 0.0, -4.0]), torch.tensor([3.0, 1.0, -2.0])
    found = attribution.agreement(guessed, exact)
    assert found.error == pytest.approx(5 / 25)
    assert found.rank == pytest.approx(1.0)
    assert found.same_peak
    with pytest.raises(ValueError, match="no patch has an effect"):
        attribution.agreement(guessed, torch.zeros(3))


@torch.no_grad()
def test_a_head_that_reads_everything_anew_is_a_patched_head(stack, runs):
    """In layer 0 the last token is the same in both runs, so that its heads differ by what they read alone."""
    clean, corrupted = runs
    read = paths.reading(stack, corrupted, clean, ODDS, range(N_POS - 1), layers=[0])
    model, name = tiny_bridge(), hook_name("z", 0)
    given = run_with_cache(model, CLEAN, [name])[name]
    for head in range(4):

        def put(z, head=head):
            z = z.clone()
            z[:, -1, head] = given[:, -1, head]
            return z

        with intervene(model, {name: put}):
            assert torch.allclose(read[0, head], ODDS(model(CORRUPTED)[:, -1]), atol=1e-4)


def test_a_head_that_reads_the_same_changes_nothing(stack, runs):
    corrupted = runs[1]
    read = paths.reading(stack, corrupted, corrupted, ODDS, [2, 3])
    assert torch.allclose(read, ODDS(corrupted.logits).expand(3, 4, 1), atol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s, a, b: patching.sweep(s, a, b, ODDS, patching.each_position(5)), "equal length"),
        (lambda s, a, b: patching.sweep(s, a, b, ODDS, patching.each_position(6), kind="q"), "cannot patch 'q'"),
        (lambda s, a, b: patching.sweep(s, a, b, ODDS, torch.zeros(1, 6, dtype=torch.bool)), "patches nothing"),
        (lambda s, a, b: patching.sweep(s, a, b, ODDS, patching.each_position(6), width=3), "window of 3"),
        (lambda s, a, b: patching.at([6], 6), "6 tokens"),
        (lambda s, a, b: patching.at([], 6), "expected positions"),
        (lambda s, a, b: paths.reading(s, a, b, ODDS, [5]), "the one that reads"),
        (lambda s, a, b: paths.reading(s, a, b, ODDS, [2], parts=["queries"]), "expected some of"),
    ],
)
def test_bad_input_says_what_is_wrong(stack, runs, call, message):
    with pytest.raises(ValueError, match=message):
        call(stack, *runs)


def test_a_model_with_hooks_in_force_is_refused():
    model = tiny_bridge()
    with (
        pytest.raises(ValueError, match="hooks in force"),
        intervene(model, {hook_name("mlp_out", 0): lambda act: act}),
    ):
        patching.Stack(model)
