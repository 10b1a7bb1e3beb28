"""The index against everything counted by hand on the same text, its searches, its notes, and what it refuses."""

import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from tiny_models import tiny_bridge

from mi_utils import indexing, latents
from mi_utils.corpus import Contexts
from mi_utils.hooks import hook_name, run_with_cache
from mi_utils.latents import EDGES, LatentIndex, Settings, bins_of, read_prompt

HOOK = hook_name("resid_post", 1)
N_CONTEXTS, N_CTX, D_SAE = 60, 16, 25
SETTINGS = Settings(n_top=4, n_sample=6, before=3, after=2)


@dataclass
class ReluDictionary:
    """Random rows whose latents fire on a third of the tokens."""

    W_dec: torch.Tensor

    def encode(self, x):
        return torch.relu(x @ self.W_dec.T - 0.4)

    def decode(self, feature_acts):
        return feature_acts @ self.W_dec


@pytest.fixture(scope="module")
def model():
    return tiny_bridge()


@pytest.fixture(scope="module")
def dictionary():
    rows = torch.randn(D_SAE, 16, generator=torch.Generator().manual_seed(1))
    return ReluDictionary(torch.nn.functional.normalize(rows, dim=1))


@pytest.fixture(scope="module")
def text():
    tokens = torch.randint(1, 7, (N_CONTEXTS, N_CTX), generator=torch.Generator().manual_seed(2), dtype=torch.int32)
    tokens[:, 0] = 0
    sources = ["novels" if i % 3 else "recipes" for i in range(N_CONTEXTS)]
    return Contexts(tokens, torch.zeros_like(tokens), sources)


@pytest.fixture(scope="module")
def index(model, dictionary, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("index") / "made"
    return indexing.build(model, dictionary, text, HOOK, folder, settings=SETTINGS, batch_size=7, progress=False)


@pytest.fixture(scope="module")
def acts(model, dictionary, text):
    """All activations at once, [context pos latent]; position 0 is left out of everything."""
    x = run_with_cache(model, text.tokens.long(), [HOOK])[HOOK]
    acts = dictionary.encode(x).detach().numpy()
    acts[:, 0] = 0
    return acts


def test_counts_equal_those_of_the_whole_text(index, acts):
    fires = acts > 0
    assert index.n_tokens == N_CONTEXTS * (N_CTX - 1)
    np.testing.assert_array_equal(index.table.density * index.n_tokens, fires.sum((0, 1)))
    np.testing.assert_allclose(index.table.max_act, acts.max((0, 1)), rtol=1e-4)
    means = acts.sum((0, 1)) / np.maximum(fires.sum((0, 1)), 1)
    np.testing.assert_allclose(index.table.mean_act, means, rtol=1e-4)
    latent = int(fires.sum((0, 1)).argmax())
    expected, _ = np.histogram(acts[..., latent][fires[..., latent]], EDGES)
    assert index.card(latent).histogram.counts.sum() == expected.sum() == fires[..., latent].sum()
    assert np.abs(index.card(latent).histogram.counts - expected).sum() <= 2  # a value on an edge may round over it


def test_top_examples_are_the_strongest_of_each_context(index, acts):
    for latent in range(D_SAE):
        per_context = np.sort(acts[..., latent].max(1))[::-1][: SETTINGS.n_top]
        expected = per_context[per_context > 0]
        found = [snippet.acts[snippet.mark] for snippet in index.examples(latent) if snippet.band == "top"]
        np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_snippets_show_the_text_and_the_activations_that_are_there(index, acts, text):
    rows = {tuple(row[row > 0].tolist()): n for n, row in enumerate(text.tokens.numpy())}
    words = ["<|endoftext|>", "a", "b", "c", "d", "e", "f"]
    seen = 0
    for latent in range(D_SAE):
        for place in range(SETTINGS.n_top + SETTINGS.n_sample):
            where = int(index._examples["where"][latent, place])
            if where < 0:
                continue
            context, position = divmod(where, N_CTX)
            snippet = index._snippet("top", where, index._examples["acts"][latent, place])
            span = slice(max(0, position - SETTINGS.before), position + SETTINGS.after + 1)
            assert list(snippet.tokens) == [words[i] for i in text.tokens[context, span]]
            np.testing.assert_allclose(snippet.acts, acts[context, span, latent], rtol=2e-3, atol=1e-3)
            assert snippet.mark == position - span.start
            assert snippet.source == text.sources[context]
            seen += 1
    assert seen > 100
    assert len(rows) == N_CONTEXTS


def test_the_sample_is_uniform_over_firings(model, dictionary, text, acts, tmp_path):
    latent = int((acts > 0).sum((0, 1)).argmax())
    firings = np.flatnonzero((acts[..., latent] > 0).reshape(-1))
    counts = np.zeros(N_CONTEXTS * N_CTX)
    for seed in range(60):
        made = indexing.build(
            model, dictionary, text, HOOK, tmp_path / str(seed), settings=SETTINGS, seed=seed, progress=False
        )
        counts[made._examples["where"][latent, SETTINGS.n_top :]] += 1
    assert counts.sum() == counts[firings].sum() == 60 * SETTINGS.n_sample
    early = counts[firings][: len(firings) // 2]
    expected = 60 * SETTINGS.n_sample * len(early) / len(firings)
    spread = np.sqrt(60 * SETTINGS.n_sample) / 2
    assert abs(early.sum() - expected) < 4 * spread  # no favour for what came first
    strong = acts[..., latent].reshape(-1)[firings] > np.median(acts[..., latent].reshape(-1)[firings])
    assert abs(counts[firings][strong].sum() - expected) < 4 * spread + 60  # nor for what is strong


def test_co_firing_is_the_correlation_of_firing(index, acts):
    fires = (acts[:, 1:] > 0).reshape(-1, D_SAE)
    fires = fires[fires.any(1)]  # as in the index: tokens on which something fires
    phi = np.nan_to_num(np.corrcoef(fires.T))
    np.fill_diagonal(phi, 0)
    for latent in range(D_SAE):
        card = index.card(latent)
        for other, value in card.co_firing:
            assert value == pytest.approx(phi[latent, other], abs=1e-3)
        if card.co_firing and (fires[:, latent].sum() > 20):
            assert card.co_firing[0][1] == pytest.approx(phi[latent].max(), abs=1e-3)


def test_rates_by_source(index, acts, text):
    latent = int((acts > 0).sum((0, 1)).argmax())
    is_recipe = np.array([source == "recipes" for source in text.sources])
    rates = dict(index.card(latent).sources)
    assert rates["recipes"] == pytest.approx((acts[is_recipe, 1:, latent] > 0).mean())
    assert rates["novels"] == pytest.approx((acts[~is_recipe, 1:, latent] > 0).mean())


def test_logit_effects_and_neighbours_follow_from_the_weights(index, model, dictionary):
    norm = model.original_model.model.norm
    norm = getattr(norm, "original_component", norm)
    effect = model.unembed(dictionary.W_dec * norm.weight).detach()
    effect = effect - effect.mean(1, keepdim=True)
    cosine = (dictionary.W_dec @ dictionary.W_dec.T).fill_diagonal_(-1)
    for latent in range(D_SAE):
        card = index.card(latent)
        assert card.promoted[0][1] == pytest.approx(effect[latent].max().item(), abs=1e-4)
        assert card.suppressed[0][1] == pytest.approx(effect[latent].min().item(), abs=1e-4)
        assert card.neighbours[0] == (
            int(cosine[latent].argmax()),
            pytest.approx(cosine[latent].max().item(), abs=1e-4),
        )


def test_surprisal_is_the_share_of_tokens_as_active(index, acts):
    latent = int((acts > 0).sum((0, 1)).argmax())
    values = acts[:, 1:, latent].reshape(-1)
    chosen = np.quantile(values[values > 0], [0.1, 0.5, 0.95])
    bits = index.surprisal(np.full(3, latent), chosen)
    for value, found in zip(chosen, bits, strict=True):
        low, high = EDGES[bins_of(np.array([value]))[0]], EDGES[bins_of(np.array([value]))[0] + 1]
        assert -np.log2((values >= low).mean()) - 1e-6 <= found <= -np.log2(max((values >= high).mean(), 1e-9))


def test_prompt_shows_what_fires_most_specific_first(index, model, dictionary):
    prompt = read_prompt(model, dictionary, index, "a b c a")
    x = run_with_cache(model, torch.tensor([[0, 1, 2, 3, 1]]), [HOOK])[HOOK][0, 1:]
    expected = dictionary.encode(x)
    assert prompt.tokens == ["a", "b", "c", "a"]
    for place in range(4):
        assert prompt.latents[place] == expected[place].nonzero()[:, 0].tolist()
        np.testing.assert_allclose(prompt.acts[place], expected[place][expected[place] > 0].detach(), atol=1e-3)
    best = prompt.most_specific()
    assert best.bits.is_monotonic_decreasing
    assert best.bits.max() == max(bit for bits in prompt.bits for bit in bits)
    assert not best.index.duplicated().any()


def test_find_token_counts_the_sample(index):
    found = index.find_token("c", n=D_SAE)
    assert len(found)
    for latent, row in found.iterrows():
        on_token = [snippet.tokens[snippet.mark] == "c" for snippet in index.sample(latent)]
        assert row.share == pytest.approx(np.mean(on_token))
    assert found.share.is_monotonic_decreasing


def test_find_similar_finds_the_row_itself(index, dictionary):
    found = index.find_similar(dictionary, dictionary.W_dec[7], n=3)
    assert found.index[0] == 7
    assert found.cosine.iloc[0] == pytest.approx(1)


def test_find_density_stays_within_bounds(index):
    found = index.find_density(0.1, 0.3, n=D_SAE)
    expected = index.table.density.between(0.1, 0.3)
    assert set(found.index) == set(index.table.index[expected])


def test_notes_are_saved_beside_the_index_and_travel(index, dictionary, model):
    index.annotate(3, label='<img src=x onerror="alert(1)">', note="fires on c")
    again = LatentIndex(index.folder, model.tokenizer, dictionary)
    assert again.card(3).note == "fires on c"
    assert "<img" not in again.card(3)._repr_html_()
    again.annotate(3)
    assert LatentIndex(index.folder, model.tokenizer).notes == {}


def test_damaged_notes_are_kept_and_named(index, model):
    path = index.folder / latents.NOTES
    path.write_text("{broken")
    with pytest.raises(ValueError, match="damaged"):
        LatentIndex(index.folder, model.tokenizer).notes  # noqa: B018
    assert path.read_text() == "{broken"
    path.unlink()


def test_memory_does_not_grow_with_the_text(model, dictionary, text):
    def kept(n):
        watch = indexing._Watch(D_SAE, 2, (n * N_CONTEXTS, N_CTX), SETTINGS, 0)
        return sum(value.nbytes for value in vars(watch).values() if isinstance(value, np.ndarray))

    assert kept(1) == kept(1000)
    assert indexing._Watch(D_SAE, 2, (10**6, 128), SETTINGS, 0).stride > 1000  # co-firing counts are thinned out


def test_a_text_in_which_nothing_fires(model, text, tmp_path):
    silent = ReluDictionary(torch.zeros(5, 16))
    made = indexing.build(model, silent, text, HOOK, tmp_path / "silent", settings=SETTINGS, progress=False)
    card = made.card(0)
    assert card.facts["fires on"] == "no token of this text"
    assert not card.snippets
    assert "never fired" in card._repr_html_()


@pytest.mark.parametrize("prompt", ["", "a " * 20])
def test_prompts_that_do_not_fit_are_refused(index, model, dictionary, prompt):
    with pytest.raises(ValueError, match="expected 1 to 15"):
        read_prompt(model, dictionary, index, prompt)


def test_what_is_refused(index, model, dictionary, text, tmp_path):
    with pytest.raises(ValueError, match="no latent 25"):
        index.card(25)
    with pytest.raises(ValueError, match="2 tokens"):
        index.find_token("a b")
    with pytest.raises(ValueError, match="no index"):
        LatentIndex(tmp_path, model.tokenizer)
    with pytest.raises(ValueError, match="another dictionary"):
        LatentIndex(index.folder, model.tokenizer, ReluDictionary(torch.eye(16)))
    with pytest.raises(ValueError, match="exists already"):
        indexing.build(model, dictionary, text, HOOK, index.folder)
    with pytest.raises(ValueError, match="no contexts"):
        indexing.build(model, dictionary, text[:0], HOOK, tmp_path / "new")


def test_altered_and_truncated_files_are_refused(index, model, tmp_path):
    for name in json.loads((index.folder / latents.ABOUT).read_text())["sha256"]:
        copy = tmp_path / name
        copy.mkdir()
        for path in index.folder.iterdir():
            if path.is_file():
                (copy / path.name).write_bytes(path.read_bytes())
        (copy / name).write_bytes((copy / name).read_bytes()[:-1])
        with pytest.raises(ValueError, match=name):
            LatentIndex(copy, model.tokenizer)


def test_a_killed_build_leaves_nothing(model, dictionary, text, tmp_path, monkeypatch):
    monkeypatch.setattr(indexing, "_from_weights", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        indexing.build(model, dictionary, text, HOOK, tmp_path / "x", settings=SETTINGS, progress=False)
    assert not (tmp_path / "x").exists()


def test_ordinary_latents_are_neither_rare_nor_dense(index):
    density = index.table.density
    found = index.ordinary(least_firings=30, densest=0.4)
    assert 0 < len(found) < index.d_sae
    assert found.tolist() == [i for i in density.index if density[i] * index.n_tokens > 30 and density[i] < 0.4]
