import pytest
import torch

from mi_utils import facts, patching, paths, recall_worlds, tracing


@pytest.fixture(scope="module")
def world():
    return recall_worlds.recall_world(0)


@pytest.fixture(scope="module")
def stack(world):
    return patching.Stack(world.model)


def peak(stack, world, way):
    """Token and layer of the strongest mean effect of an MLP over all facts, by exchange of subjects."""
    total = 0
    for fact in world.facts:
        asked = tracing.question(world.model.tokenizer, fact)
        other = tracing.twin(world.model.tokenizer, fact, world.facts)
        pair = tracing.swap(stack, asked, other)
        base, donor = (pair.corrupted, pair.clean) if way == "denoise" else (pair.clean, pair.corrupted)
        metric = patching.log_odds(pair.asked.true, pair.asked.false)
        sites = patching.each_position(len(asked.tokens))
        values = patching.sweep(stack, base, donor, metric, sites, kind="mlp_out")[..., 0] - metric(base.logits)
        total = total + (values if way == "denoise" else -values)
    return divmod(int(total.argmax()), total.shape[1])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("way", ["denoise", "noise"])
def test_both_directions_name_the_planted_store(seed, way):
    world = recall_worlds.recall_world(seed)
    last_of_subject = 4  # beginning, "the", "person", first, last
    assert peak(patching.Stack(world.model), world, way) == (last_of_subject, world.store[0])


@pytest.mark.parametrize("store", ["one", "backup", "split"])
def test_the_planted_model_knows_its_facts(store):
    world = recall_worlds.recall_world(3, store)
    measured = facts.measure(world.model, world.facts)
    assert measured.known.all()
    assert (world.backup is None) == (store != "backup")
    assert len(world.store) == (2 if store == "split" else 1)
    assert world.decoy not in (*world.store, world.backup)


def test_a_backup_hides_the_store_from_noising_and_not_from_denoising():
    effects = {}
    for store in ("one", "backup"):
        world = recall_worlds.recall_world(1, store)
        stack = patching.Stack(world.model)
        asked = tracing.question(world.model.tokenizer, world.facts[0])
        pair = tracing.corrupt(stack, asked, noise=0.5, n_draws=8)
        p = patching.probability(asked.true)
        site = patching.at([asked.subject[-1]], len(asked.tokens))[None]
        broken = patching.sweep(stack, pair.clean, pair.corrupted, p, site, kind="mlp_out", layers=world.store)
        effects[store] = float(p(pair.clean.logits).mean() - broken.mean())
    assert effects["one"] > 0.2
    assert effects["backup"] < 0.5 * effects["one"]


def test_the_planted_handover_is_found_by_the_path_from_the_subject(world, stack):
    asked = tracing.question(world.model.tokenizer, world.facts[0])
    pair = tracing.swap(stack, asked, tracing.twin(world.model.tokenizer, world.facts[0], world.facts))
    metric = patching.log_odds(pair.asked.true, pair.asked.false)
    read = paths.reading(stack, pair.corrupted, pair.clean, metric, list(asked.subject))
    layer, head = divmod(int(read[..., 0].argmax()), stack.n_heads)
    assert (layer, head) == (world.handover, 0)


def test_the_last_token_takes_over_at_the_handover(world, stack):
    asked = tracing.question(world.model.tokenizer, world.facts[0])
    pair = tracing.swap(stack, asked, tracing.twin(world.model.tokenizer, world.facts[0], world.facts))
    metric = patching.log_odds(pair.asked.true, pair.asked.false)
    sites = torch.stack([patching.at([place], len(asked.tokens)) for place in (asked.subject[-1], -1)])
    values = patching.sweep(stack, pair.corrupted, pair.clean, metric, sites)[..., 0]
    shares = tracing.share_recovered(values, float(metric(pair.corrupted.logits)), float(metric(pair.clean.logits)))
    assert (shares[0, world.store[0] : world.handover] > 0.8).all()
    assert (shares[1, : world.handover] < 0.2).all()
    assert (shares[1, world.handover :] > 0.8).all()


def test_noise_is_where_it_should_be_as_loud_as_asked_and_repeats_by_seed(world, stack):
    asked = tracing.question(world.model.tokenizer, world.facts[0])
    clean = stack.embed(asked.tokens[None])
    noise = tracing.noised(stack, asked, noise=2.0, n_draws=64) - clean
    size = float(stack.plain.get_input_embeddings().weight.std())
    assert noise[:, list(asked.subject)].std() == pytest.approx(2 * size, rel=0.05)
    outside = [place for place in range(len(asked.tokens)) if place not in asked.subject]
    assert not noise[:, outside].any()
    again = tracing.noised(stack, asked, noise=2.0, n_draws=64)
    assert torch.equal(again - clean, noise)
    assert not torch.equal(tracing.noised(stack, asked, n_draws=64, seed=1) - clean, noise)
    elsewhere = tracing.noised(stack, asked, positions=[1]) - clean
    assert elsewhere[:, 1].any()
    assert not elsewhere[:, 2:].any()


def test_a_twin_has_the_same_shape_and_another_answer(world):
    tokenizer = world.model.tokenizer
    for fact in world.facts:
        asked, other = tracing.question(tokenizer, fact), tracing.twin(tokenizer, fact, world.facts)
        assert other.subject == asked.subject
        assert other.true != asked.true == other.false
    assert tracing.twin(tokenizer, world.facts[0], world.facts[:1]) is None


def test_share_recovered_by_hand():
    shares = tracing.share_recovered(torch.tensor([0.1, 0.5, 0.9]), 0.1, 0.9)
    assert shares.tolist() == pytest.approx([0, 0.5, 1])
    with pytest.raises(ValueError, match="both score"):
        tracing.share_recovered(torch.zeros(1), 0.5, 0.5)


def test_bad_input_says_what_is_wrong(world, stack):
    asked = tracing.question(world.model.tokenizer, world.facts[0])
    with pytest.raises(ValueError, match="noise above 0"):
        tracing.noised(stack, asked, noise=0.0)
    with pytest.raises(ValueError, match="6 layers or more|give 6 or more"):
        recall_worlds.recall_world(n_layers=5)
    longer = asked._replace(tokens=torch.cat([asked.tokens, asked.tokens[-1:]]))
    with pytest.raises(ValueError, match="choose a twin"):
        tracing.swap(stack, asked, longer)
