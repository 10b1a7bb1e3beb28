"""What the explorer of a pair dictionary shows and does, on two tiny models; how it looks is in the browser test."""

import pytest
import torch
from tiny_models import tiny_bridge

from mi_utils import diff_explorer, hooks
from mi_utils.crosscoders import in_model_units, train_pair
from mi_utils.markup import to_html
from mi_utils.models import ModelPair
from mi_utils.paired_activations import harvest_pair
from mi_utils.restoring import states

HOOK = hooks.hook_name("resid_post", 1)
TOKENS = torch.randint(1, 7, (30, 8), generator=torch.Generator().manual_seed(0))
TOKENS[:, 0] = 0
NAMES = ["first half"] * 15 + ['<img src=x onerror="window.hacked=1">'] * 15


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    pair = ModelPair(tiny_bridge(), tiny_bridge(1))
    store = harvest_pair(pair, TOKENS, HOOK, tmp_path_factory.mktemp("pair"), progress=False)
    found = train_pair(store.batches(32, epochs=None), 24, 4, n_steps=80)
    return diff_explorer.read_texts(pair, in_model_units(found, store.statistics), HOOK, TOKENS, NAMES)


def test_acts_are_those_of_the_dictionary_and_none_at_the_beginning(reading):
    x = torch.cat(states(reading.pair, TOKENS, HOOK), -1)
    torch.testing.assert_close(reading.acts[:, 1:], reading.sae.encode(x)[:, 1:])
    assert not reading.acts[:, 0].any()
    assert (reading.acts > 0).any()


def test_both_halves_and_the_bias_make_up_an_activation(reading):
    active = reading.acts > 0
    whole = sum(reading.shares) + reading.sae.b_enc
    torch.testing.assert_close(whole[active], reading.acts[active], atol=1e-3, rtol=1e-3)


def test_a_card_shows_where_the_latent_is_strongest_for_both_models(reading):
    latent = int(reading.table.density.idxmax())
    card = reading.card(latent)
    assert [snippet.source for snippet in card.snippets[:3]] == ["latent", "base", "tuned"]
    shown = [snippet.acts[snippet.mark] for snippet in card.snippets if snippet.source == "latent"]
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == pytest.approx(reading.acts[:, :, latent].max().item())
    assert {"kind", "relative norm", "nu error", "tuned minus base raises"} <= card.facts.keys()
    with pytest.raises(ValueError, match="no latent 99"):
        reading.card(99)


def test_names_are_text_and_never_markup(reading):
    strongest = reading.acts[15:].amax((0, 1)).argmax().item()
    html = to_html(reading.card(strongest).tree())
    assert "&lt;img" in html
    assert "<img" not in html


def test_a_click_on_a_point_opens_its_card_and_marks_it(reading):
    stack = diff_explorer.diff_explorer(reading, latent=int(reading.table.density.idxmax()))
    points, _, _, card = stack.children
    other = int(reading.table[reading.table.kind != "dead"].density.idxmin())
    points.clicked = {"latent": str(other), "n": 1}
    assert f"pair latent {other}" in to_html(card.tree)
    assert to_html(points.tree).count("mi-chosen") == 1
    assert f"pair latent {other}" in stack.static_html()


def test_the_list_follows_the_order_and_the_filter(reading):
    _, (by, only), ranking, _ = (
        getattr(part, "children", None) or part for part in diff_explorer.diff_explorer(reading).children
    )
    alive = reading.table[reading.table.kind != "dead"]
    assert f'data-latent="{alive.relative_norm.idxmax()}"' in to_html(ranking.tree).split("</tr>")[1]
    by.value = "energy"
    assert f'data-latent="{alive.energy.idxmax()}"' in to_html(ranking.tree).split("</tr>")[1]
    only.value = True
    assert to_html(ranking.tree).count("data-latent") == min(8, int(alive.confirmed.sum()))


def test_every_live_latent_is_one_point(reading):
    alive = reading.table[reading.table.kind != "dead"]
    html = to_html(diff_explorer.scatter_tree(alive, int(alive.index[0])))
    assert html.count("data-latent") == len(alive)


def test_each_context_needs_a_name(reading):
    with pytest.raises(ValueError, match="29 names for 30 contexts"):
        diff_explorer.read_texts(reading.pair, reading.sae, HOOK, TOKENS, NAMES[1:])
