"""What the explorer of meta-latents shows and does, on the planted world; how it looks is in the browser test."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from mi_utils import indexing, language_worlds, meta
from mi_utils.markup import to_html
from mi_utils.meta_explorer import atom_tree, latent_tree, meta_explorer, near_tree, reading_explorer
from mi_utils.models import unembedding
from mi_utils.widgets import Stack

HOSTILE = '<img src=x onerror="window.hacked=1">\u202e'
META, TWIN = "meta-SAE", "random twin"
CITIES, COLOURS = 1, 0


@pytest.fixture(scope="module")
def planted():
    return language_worlds.planted_meanings()


@pytest.fixture(scope="module")
def folder(planted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    for name in ("big", "small"):
        dictionary = planted.dictionary if name == "big" else smaller(planted)
        indexing.build(planted.model, dictionary, planted.text(40), planted.hook_name, folder / name, progress=False)
    return folder


@pytest.fixture
def index(planted, folder):
    index = indexing.LatentIndex(folder / "big", planted.model.tokenizer)
    index.notes = {}
    return index


@pytest.fixture
def small(planted, folder):
    return indexing.LatentIndex(folder / "small", planted.model.tokenizer), smaller(planted)


def smaller(planted):
    """The last three latents, in reverse."""
    return language_worlds.PlantedDictionary(planted.dictionary.W_dec[[4, 3, 2]])


def decompose(rows, atoms, k):
    """Without a centre, and without the weights that are zero but for rounding."""
    found = meta.decompose(rows, atoms, k, torch.zeros(32))
    weights = torch.where(found.codes.weights > 1e-6, found.codes.weights, 0)
    return replace(found, codes=found.codes._replace(weights=weights))


@pytest.fixture
def decompositions(planted):
    """Atoms 0 and 1 are the rows of latents 0 and 1, atom 2 is between those of 2, 3 and 4."""
    rows = meta.unit_rows(planted.dictionary)
    atoms = torch.stack([rows[0], rows[1], rows[2] + rows[3] + 2 * rows[4]])
    return {
        META: decompose(rows, atoms, 2),
        TWIN: meta.decompose(rows, meta.random_rows(atoms, seed=5), 2, rows.mean(0)),
    }


class Opened:
    """An explorer and its parts by name."""

    def __init__(self, *arguments, **settings):
        self.stack = meta_explorer(*arguments, **settings)
        (self.number, self.choice), self.sum, self.card, self.atom, *self.near = (
            getattr(part, "children", None) or part for part in self.stack.children
        )

    def click(self, view, **data):
        view.clicked = {**{key: str(value) for key, value in data.items()}, "n": view.clicked.get("n", 0) + 1}


@pytest.fixture
def opened(planted, index, decompositions, small):
    return Opened(planted.model, index, decompositions, small, latent=4)


def test_a_latent_is_shown_with_the_weights_of_its_parts(index, decompositions):
    decomposition = decompositions[META]
    assert decomposition.parts(4) == pytest.approx({2: 2 / 6**0.5})
    html = to_html(latent_tree(index, META, decomposition, 4, 2))
    assert f'<span class="mi-val">{2 / 6**0.5:.2f}</span>' in html
    assert f'style="width:{2 / 6**0.5:.1%}"' in html
    assert "<small>cosine to its sum</small><b>0.82</b>" in html
    assert "<small>cosine to the centre alone</small><b>0.00</b>" in html
    assert html.count("data-atom") == html.count("mi-chosen") == 1
    for other in (2, 3):
        assert f"“{index.strongest_token(other)}”" in html.split("data-atom")[1]
    assert index.strongest_token(4) not in html.split("data-atom")[1]


def test_an_atom_lists_its_members_heaviest_first_and_agrees_with_cards(planted, index, decompositions):
    W_U = unembedding(planted.model)
    html = to_html(atom_tree(index, META, decompositions[META], 2, W_U, 4))
    members = html.split("direction of atom")[0]
    assert members.index('data-latent="4"') < min(members.index(f'data-latent="{other}"') for other in (2, 3))
    assert members.count("mi-row ") - members.count("mi-row-head") == members.count("mi-chosen") == 1
    assert "3 of 5 latents use it<" in html
    same = to_html(atom_tree(index, META, decompositions[META], COLOURS, W_U))  # its atom is the latent's own row
    card = index.card(COLOURS)
    for _, value in [*card.promoted, *card.suppressed]:
        assert f">{value:+.2f}<" in same
    assert f"a random direction reaches {index.about['random_effect']:.2f}" in same
    assert f'data-latent="{COLOURS}">{COLOURS} · 1.00' in same


def test_the_nearest_small_latents_are_those_of_the_cosine(small, decompositions):
    html = to_html(near_tree(*small, META, decompositions[META], 2, 0))
    cosine = small[1].W_dec @ decompositions[META].atoms[2]
    np.testing.assert_allclose(cosine, np.array([2, 1, 1]) / 6**0.5, atol=1e-5)
    assert html.index('data-latent="0"') < min(html.index(f'data-latent="{latent}"') for latent in (1, 2))
    assert f'<span class="mi-val">{2 / 6**0.5:.2f}</span>' in html
    assert f"a random direction reaches {small[0].about['random_cosine']:.2f}" in html
    assert "latent 0 of the smaller dictionary" in html
    assert f'data-atom="2" title="show atom 2">2 · {2 / 6**0.5:.2f}' in html


def test_an_atom_that_no_latent_uses_is_shown(planted, index):
    rows = meta.unit_rows(planted.dictionary)
    unused = decompose(rows, torch.stack([rows[0], -rows[1]]), 1)
    html = to_html(atom_tree(index, META, unused, 1, unembedding(planted.model)))
    assert "0 of 5 latents use it<" in html
    explorer = Opened(planted.model, index, {META: unused}, latent=CITIES)
    assert "centre alone" in to_html(explorer.atom.tree)


def test_links_lead_from_latents_to_atoms_and_back(opened):
    assert isinstance(opened.stack, Stack)
    assert "meta-SAE: atom 2" in to_html(opened.atom.tree)
    opened.click(opened.atom, latent=3)
    assert opened.number.value == "3"
    assert "<h3>latent 3</h3>" in to_html(opened.sum.tree)
    assert "<h3>latent 3</h3>" in to_html(opened.card.tree)
    assert "meta-SAE: atom 2" in to_html(opened.atom.tree)  # which both latents use
    assert "<details><summary>card of latent 3:" in to_html(opened.card.tree)
    opened.click(opened.card, latent=CITIES)
    assert '<details open=""><summary>card of latent 1:' in to_html(opened.card.tree)
    assert "meta-SAE: atom 1" in to_html(opened.atom.tree)
    opened.number.value = "4"
    assert 'mi-chosen" data-atom="2"' in to_html(opened.sum.tree)
    opened.click(opened.sum, atom=2)
    assert opened.number.value == "4"


def test_a_small_latent_is_not_mistaken_for_one_of_the_big_dictionary(opened):
    (near,) = opened.near
    opened.click(near, latent=1)
    assert "<h3>latent 1 of the smaller dictionary</h3>" in to_html(near.tree)
    assert "<h3>latent 4</h3>" in to_html(opened.card.tree)
    assert opened.number.value == "4"
    opened.click(near, latent=2)
    assert "<h3>latent 2 of the smaller dictionary</h3>" in to_html(near.tree)
    opened.click(near, atom=COLOURS)
    assert "meta-SAE: atom 0" in to_html(opened.atom.tree)
    assert "latent 2 of the smaller" not in to_html(near.tree)
    assert "mi-chosen" not in to_html(opened.sum.tree)  # latent 4 does not use it
    opened.click(near, latent=0)
    opened.choice.value = TWIN
    assert "latent 0 of the smaller dictionary" not in to_html(near.tree)


def test_the_twin_keeps_the_latent_and_takes_its_heaviest_atom(opened, decompositions):
    opened.click(opened.card, latent=3)
    opened.choice.value = TWIN
    assert "<details open" in to_html(opened.card.tree)
    heaviest = next(iter(decompositions[TWIN].parts(3)))
    assert "<h3>latent 3</h3>" in to_html(opened.sum.tree)
    assert f"random twin: atom {heaviest}" in to_html(opened.atom.tree)
    assert f"<b>{TWIN}</b>" in to_html(opened.sum.tree)
    for weight in decompositions[TWIN].parts(3).values():
        assert f'<span class="mi-val">{weight:.2f}</span>' in to_html(opened.sum.tree)
    opened.choice.value = META
    assert "meta-SAE: atom 2" in to_html(opened.atom.tree)


@pytest.mark.parametrize("text", ["", "x", "-1", "5", "1.5", "9" * 5000])
def test_a_number_that_is_none_is_named_and_nothing_is_lost(opened, text):
    before = to_html(opened.sum.tree)
    opened.number.value = text or " "
    assert "latent" in opened.sum.message or "digits" in opened.sum.message
    assert to_html(opened.sum.tree) == before
    opened.number.value = " 04 "
    assert (opened.sum.message, opened.number.value) == ("", "4")
    opened.number.value = text or " "
    opened.click(opened.atom, latent=2)
    assert (opened.sum.message, opened.number.value) == ("", "2")


def test_hostile_labels_and_names_stay_text(planted, index, decompositions, small):
    index.notes = {latent: {"label": HOSTILE, "note": HOSTILE} for latent in range(5)}
    explorer = Opened(planted.model, index, {HOSTILE: decompositions[META]}, small, latent=4)
    page = explorer.stack.static_html()
    assert "<img" not in page
    assert "&lt;img" in page
    assert page.count("latent 4") >= 2


def test_it_opens_without_a_small_dictionary_at_an_ordinary_latent(planted, index, decompositions):
    explorer = Opened(planted.model, index, decompositions)
    assert explorer.near == []
    assert int(explorer.number.value) in range(5)
    explorer.click(explorer.atom, latent=0)
    assert explorer.number.value == "0"


def test_what_does_not_fit_is_refused(planted, index, decompositions, small):
    whole = decompositions[META]
    part = meta.decompose(whole.rows[:4], whole.atoms, 2, whole.centre)
    for given, near, complaint in (
        ({}, None, "no decomposition"),
        ({META: whole, TWIN: part}, None, "'random twin' is of 4 x 32 rows; .* 5 x 32"),
        ({META: whole}, (small[0], planted.dictionary), "small dictionary has rows of 5 x 32; .* 3 x 32"),
        ({META: whole}, (small[0], language_worlds.PlantedDictionary(torch.eye(3, 16))), "rows of 3 x 16"),
    ):
        with pytest.raises(ValueError, match=complaint):
            meta_explorer(planted.model, index, given, near)
    with pytest.raises(ValueError, match="no latent 5"):
        meta_explorer(planted.model, index, decompositions, latent=5)


def test_the_reading_follows_the_sliders():
    curves = pd.DataFrame({"m": [0.2, 0.30], "r": [0.2, 0.25], "f": [0.1, 0.1]}, index=[1, 2])
    stack = reading_explorer(curves, "m", "r", "f", k=2)
    atoms, margin = stack.children[0].children
    view = stack.children[1]
    assert "▶ the meta-SAE finds more" in view.static_html()
    margin.value = 0.06
    assert "▶ same structure" in view.static_html()
    atoms.value, margin.value = 1, 0.1
    assert "▶ neither beats the floor" in view.static_html()
    with pytest.raises(ValueError, match="no column"):
        reading_explorer(curves, "m", "r", "x", k=2)
    with pytest.raises(ValueError, match="do not reach k 9"):
        reading_explorer(curves, "m", "r", "f", k=9)


def test_a_page_without_a_kernel_holds_the_twin_too(planted, index, decompositions):
    opened = Opened(planted.model, index, decompositions, latent=3)
    page = opened.stack.static_html()
    assert f"<summary>the same by {TWIN}</summary>" in page
    opened.choice.value = TWIN
    assert f"<summary>the same by {META}</summary>" in opened.stack.static_html()
