"""Training learns and resumes exactly; players load from each layout, read, and can be edited at every layer."""

import json
import warnings
from itertools import islice

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mi_utils import hooks, othello_model, othello_training
from mi_utils.othello_games import play_random, replay
from mi_utils.othello_training import Plan, orthogonalised, plain_model, train

TINY = {"n_layers": 2, "d_model": 32, "n_heads": 4}
PLAN = Plan(size=4, n_steps=6, batch_size=8, **TINY)


def tiny_folder(folder, size=4, seed=0):
    plain = plain_model(size, seed=seed, **TINY)
    folder.mkdir(exist_ok=True)
    weights = {name: weight.half().contiguous() for name, weight in plain.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(plain.config.to_json_string())
    (folder / "card.json").write_text(json.dumps({"minutes": 1}))
    return folder


@pytest.fixture(scope="module")
def player(tmp_path_factory):
    return othello_model.load(tiny_folder(tmp_path_factory.mktemp("player")))


class TestTraining:
    def test_lowers_the_loss_far_below_a_guess(self):
        plan = Plan(size=4, n_layers=1, d_model=32, n_steps=80, batch_size=32)
        losses = [loss for _, loss, _ in train(plain_model(4, n_layers=1, d_model=32), plan)]
        assert losses[0] == pytest.approx(np.log(13), abs=0.3)
        assert np.mean(losses[-10:]) < 2.2

    def test_goes_on_from_a_checkpoint_to_the_same_weights(self, tmp_path):
        whole, stopped, resumed = (plain_model(4, seed=seed, **TINY) for seed in (0, 0, 5))
        list(train(whole, PLAN))
        list(islice(train(stopped, PLAN, tmp_path / "c", save_every=3), 4))
        assert [step for step, _, _ in train(resumed, PLAN, tmp_path / "c")] == [3, 4, 5]
        for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=0)

    def test_refuses_a_damaged_checkpoint_and_one_of_another_model(self, tmp_path):
        list(train(plain_model(4, **TINY), PLAN, tmp_path / "c"))
        with pytest.raises(ValueError, match="damaged or of another model"):
            next(train(plain_model(4, n_layers=3, d_model=32), PLAN, tmp_path / "c"))
        (tmp_path / "c").write_bytes((tmp_path / "c").read_bytes()[:-50])
        with pytest.raises(ValueError, match="damaged"):
            next(train(plain_model(4, **TINY), PLAN, tmp_path / "c"))

    def test_never_plays_the_same_games_twice_nor_those_held_out(self):
        steps = [PLAN.games(step) for step in (0, 1)]
        assert not torch.equal(*steps)
        assert not torch.equal(steps[0], torch.from_numpy(play_random(8, 4, 0)))

    def test_learning_rate_rises_stays_and_falls(self):
        plan = Plan(n_steps=100, warm_up=10, decay=0.5, lr=1.0)
        assert [plan.lr_at(step) for step in (0, 9, 49, 75, 99)] == pytest.approx([0.1, 1, 1, 0.5, 0.02])

    def test_steps_have_singular_values_near_one(self):
        for shape in ((8, 32), (32, 8)):
            matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            values = torch.linalg.svdvals(orthogonalised(matrix))
            assert ((values > 0.5) & (values < 1.3)).all()

    def test_a_width_the_heads_do_not_divide_is_told(self):
        with pytest.raises(ValueError, match="cannot be divided"):
            plain_model(4, d_model=30)


class TestPlayer:
    tokens = play_random(6, 4, seed=1)

    def test_predicts_squares_and_never_the_middle(self, player):
        logits = player.logits(self.tokens)
        assert logits.shape == (6, 11, 16)
        assert torch.isinf(logits[:, :, [5, 6, 9, 10]]).all()
        plain = player.model(torch.from_numpy(self.tokens[:, :-1]))
        torch.testing.assert_close(logits[..., 0], plain[..., 1])

    def test_an_edit_changes_its_position_and_later_ones_and_is_gone_afterwards(self, player):
        before = player.logits(self.tokens)
        during = player.logits(self.tokens, {0: hooks.at_position(lambda x: x + 5 * torch.eye(32)[0], 4)})
        changed = (during != before).any(-1).any(0)
        assert changed.tolist() == [False] * 4 + [True] * 7
        torch.testing.assert_close(player.logits(self.tokens), before, rtol=0, atol=0)

    def test_states_show_the_edits_of_earlier_layers(self, player):
        push = torch.arange(32.0)
        before = player.states(self.tokens, [0, 1])
        after = player.states(self.tokens, [0, 1], {0: lambda x: x + push})
        torch.testing.assert_close(after[0], before[0] + push)
        assert not torch.allclose(after[1], before[1] + push)
        with pytest.raises(ValueError, match="never used"):
            player.states(self.tokens, [0], {1: lambda x: x})

    @pytest.mark.parametrize("kind", hooks.KINDS)
    def test_every_place_of_hooks_moves_the_logits(self, player, kind):
        tokens, name = torch.from_numpy(self.tokens[:, :-1]), hooks.hook_name(kind, 1)
        clean = player.model(tokens)
        assert torch.isfinite(hooks.run_with_cache(player.model, tokens, [name])[name][:, -1]).any()
        with hooks.intervene(player.model, {name: lambda x: 1.5 * x}):
            assert not torch.allclose(player.model(tokens), clean, atol=1e-6)

    def test_the_untrained_twin_is_another_one_of_the_same_shape(self, player):
        twin = player.untrained()
        assert twin.logits(self.tokens).shape == (6, 11, 16)
        assert not torch.equal(twin.logits(self.tokens), player.logits(self.tokens))

    def test_refuses_games_of_another_board(self, player):
        with pytest.raises(ValueError, match="this player knows 4 × 4"):
            player.logits(play_random(1, 6))
        with pytest.raises(ValueError, match="games are on 6 × 6 squares, the player knows 4 × 4"):
            othello_model.legality(player, replay(play_random(2, 6), 6))


class Oracle:
    """A player that gives all legal squares the same, and one illegal square twice as much if asked."""

    size, n_layers = 4, 1

    def __init__(self, games, cheats):
        self.legal, self.cheats = games.legal[:, :11], cheats

    def states(self, tokens, layers, edits=None):
        raise NotImplementedError

    def logits(self, tokens, edits=None):
        logits = torch.where(torch.from_numpy(self.legal), 0.0, -torch.inf)
        logits[:, :, 5] = np.log(2.0) if self.cheats else -torch.inf  # a middle square, which is never legal
        return logits


def test_legality_by_hand():
    games = replay(play_random(4, 4, seed=2), 4)
    honest = othello_model.legality(Oracle(games, False), games)
    assert (honest.likeliest == 1).all()
    assert honest.mass == pytest.approx(1)
    cheating = othello_model.legality(Oracle(games, True), games)
    assert (cheating.likeliest == 0).all()
    n_legal, is_open = games.legal[:, :11].sum(-1), games.open()[:, :11]
    expected = (n_legal / (n_legal + 2) * is_open).sum(1) / is_open.sum(1)
    assert cheating.mass == pytest.approx(expected)


class TestLoading:
    def test_the_card_comes_along(self, player):
        assert player.card == {"minutes": 1}

    def test_a_missing_player_is_told_with_what_there_is(self):
        with pytest.raises(ValueError, match="no player 'nowhere': expected a shipped one"):
            othello_model.load("nowhere")

    def test_damaged_weights_are_told(self, tmp_path):
        folder = tiny_folder(tmp_path / "player")
        (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])
        with pytest.raises(ValueError, match="is damaged"):
            othello_model.load(folder)

    def test_weights_of_another_board_are_told(self, tmp_path):
        folder = tiny_folder(tmp_path / "player")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 33}))
        with pytest.raises(ValueError, match="is damaged"):
            othello_model.load(folder)
        (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 22}))
        with pytest.raises(ValueError, match="22 tokens belong to no board"):
            othello_model.load(folder)


class TestPublished:
    @pytest.fixture
    def original(self):
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        config = HookedTransformerConfig(
            n_layers=2,
            d_model=32,
            d_head=8,
            n_heads=4,
            d_mlp=128,
            d_vocab=13,
            n_ctx=11,
            act_fn="gelu",
            normalization_type="LNPre",
            device="cpu",
        )
        with warnings.catch_warnings(), torch.random.fork_rng():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.manual_seed(0)
            model = HookedTransformer(config)
            for parameter in model.parameters():
                parameter.data = 0.3 * torch.randn_like(parameter)
        return model

    def test_its_layout_gives_the_same_logits(self, original, tmp_path):
        torch.save(original.state_dict(), tmp_path / "synthetic_model.pth")
        player = othello_model.load(tmp_path)
        tokens = torch.from_numpy(play_random(5, 4)[:, :-1])
        torch.testing.assert_close(player.model(tokens), original(tokens), rtol=1e-4, atol=1e-4)
        assert player.size == 4

    def test_a_damaged_file_is_told(self, original, tmp_path):
        torch.save({"embed.W_E": torch.zeros(13, 4)}, tmp_path / "synthetic_model.pth")
        with pytest.raises(ValueError, match="does not hold the published player"):
            othello_model.load(tmp_path)
        (tmp_path / "synthetic_model.pth").write_bytes(b"nonsense")
        with pytest.raises(ValueError, match="does not hold the published player"):
            othello_model.load(tmp_path)

    def test_without_the_hub_it_says_what_to_do(self, monkeypatch, tmp_path):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ValueError, match="hub is out of reach"):
            othello_model.load("othello-gpt")


def test_training_plan_is_what_the_shipped_card_says():
    card = othello_model.SHIPPED / othello_model.DEFAULT / "card.json"
    if not card.exists():
        pytest.skip("no shipped player yet")
    assert json.loads(card.read_text())["plan"] == vars(othello_training.Plan())
