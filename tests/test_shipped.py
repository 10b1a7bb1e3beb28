"""The dictionaries in data/saes are what their cards say, checked on a little held-out text."""

import json

import pytest
import torch

from mi_utils import activations, corpus, latents, meta, models, sae
from mi_utils.evaluation import reconstruction

NAMES = sorted(sae.shipped())
N_TOKENS = 4_000


@pytest.fixture(scope="module")
def model():
    return models.load_model()


@pytest.fixture(scope="module")
def rows(model, tmp_path_factory):
    """Held-out activations of the model and of its random twin, by whether they are the twin's."""
    documents = corpus.split_held_out(corpus.load_corpus()).held_out
    text = corpus.contexts(corpus.sample(documents, N_TOKENS, 0), model.tokenizer).shuffled(0)
    hook = sae.load(NAMES[0]).cfg.metadata.hook_name
    out = {}
    for random in (False, True):
        reader = models.random_twin(model, 0) if random else model
        folder = tmp_path_factory.mktemp("rows") / "store"
        store = activations.harvest(reader, text.tokens, [hook], folder, progress=False)
        every = torch.arange(store.n_rows)
        out[random] = store.rows(hook, every), store.origin(every).context
    return out


@pytest.mark.parametrize("name", NAMES)
def test_a_dictionary_does_what_its_card_says(name, rows):
    card = sae.shipped_cards().loc[name]
    dictionary = sae.load(name)
    report = reconstruction(dictionary, *rows[name.endswith("random_model")])
    assert report.fvu == pytest.approx(card.fvu, abs=0.05)
    assert report.l0 == pytest.approx(card.l0, rel=0.25)
    assert dictionary.W_dec.shape[0] == card.d_sae
    assert torch.allclose(dictionary.W_dec.norm(dim=1), torch.ones(int(card.d_sae)), atol=2e-3)


@pytest.mark.parametrize("name", NAMES)
def test_an_index_belongs_to_its_dictionary_and_shows_every_latent(name, model):
    index = latents.LatentIndex(sae.shipped()[name] / "index", model.tokenizer, sae.load(name))
    for latent in (0, index.d_sae // 2, index.d_sae - 1):
        assert f"latent {latent}" in index.card(latent)._repr_html_()
    assert index.n_tokens > 350_000


@pytest.mark.parametrize("name", NAMES)
def test_active_equals_dense_encoding(name, rows):
    dictionary, x = sae.load(name), rows[name.endswith("random_model")][0][:200]
    dense, found = dictionary.encode(x), sae.active(dictionary, x)
    again = torch.zeros_like(dense)
    again[found.tokens, found.latents] = found.acts
    differs = (again - dense).abs() > 1e-3 * dense.abs().max()
    assert differs.sum() <= 2  # one at the very threshold may round over it


def test_a_control_shares_its_budget_with_the_trained_twin():
    cards = sae.shipped_cards()
    for name in cards.index[cards.index.str.contains("_1152_")]:
        assert cards.samples[name] == cards.samples["resid12_1152"]
        assert cards.d_sae[name] == cards.d_sae["resid12_1152"]


def test_frozen_rows_are_those_of_a_fresh_start():
    name = "resid12_1152_frozen_decoder"
    plan = json.loads((sae.shipped()[name] / sae.CONFIG).read_text())["metadata"]
    assert plan["frozen"] == ["W_dec"]
    fresh = sae.build("batchtopk", 576, 1152, 32, seed=plan["seed"]).W_dec.detach()
    assert torch.allclose(torch.nn.functional.normalize(fresh, dim=1), sae.load(name).W_dec, atol=1e-3)


def test_the_table_of_meta_saes_covers_every_dictionary_and_can_be_measured_again():
    table = meta.measured()
    shipped = table[table.dictionary.isin(sae.shipped())]
    seeds = shipped[shipped.rows.isin(["real", "gaussian"])].groupby(["dictionary", "ratio", "k", "rows"]).seed
    assert (seeds.nunique() == 3).all()
    assert len(seeds) == len(sae.shipped()) * 2 * 3 * 2  # ratios, k, kinds of rows
    again = meta.score(meta.unit_rows(sae.load("resid12_1152")), 1152 // 21, 4, seed=1)
    was = table[(table.dictionary == "resid12_1152") & (table.ratio == 21) & (table.k == 4) & (table.seed == 1)]
    was = was.set_index("rows").loc["real"]
    assert again.held_out == pytest.approx(was.held_out, abs=0.005)  # the order of sums differs between machines
    assert again.own == pytest.approx(was.own, abs=0.005)
