import numpy as np
import pytest
import torch
from tiny_models import tiny_bridge

from mi_utils import evaluation, metrics
from mi_utils.evaluation import PCA, fit_pca, fvu_difference, reconstruction


class Halver:
    """A dictionary that reconstructs half of its input and has two latents, the second always dead."""

    def encode(self, x):
        return torch.stack([x[:, 0], torch.zeros(len(x))], 1)

    def decode(self, acts):
        return torch.stack([acts[:, 0], torch.zeros(len(acts))], 1)


X = torch.tensor([[1.0, 1.0], [-1.0, -1.0], [3.0, 3.0], [-3.0, -3.0]])
CONTEXT = torch.tensor([7, 7, 9, 9])


def test_reconstruction_by_hand():
    report = reconstruction(Halver(), X, CONTEXT)
    assert report.errors.tolist() == [2, 18]
    assert report.deviations.tolist() == [4, 36]
    assert report.fvu == pytest.approx(0.5)
    assert (report.l0, report.dead_share, report.dense_share) == (1, 0.5, 0.5)
    assert report.fvu_interval == pytest.approx((0.5, 0.5))


def test_chunks_do_not_change_the_result(monkeypatch):
    whole = reconstruction(Halver(), X, CONTEXT)
    monkeypatch.setattr(evaluation, "CHUNK", 3)
    assert reconstruction(Halver(), X, CONTEXT).fvu == whole.fvu


def test_fvu_difference_of_a_dictionary_with_itself_is_zero():
    report = reconstruction(Halver(), X, CONTEXT)
    assert fvu_difference(report, report) == (0, 0)


def test_pca_keeps_the_variance_of_its_components():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 3, generator=generator) * torch.tensor([3.0, 2.0, 1.0]) + 5
    for k, left in ((1, 5 / 14), (2, 1 / 14), (3, 0.0)):
        pca = fit_pca(x, k)
        assert metrics.fvu(x, pca.decode(pca.encode(x))).item() == pytest.approx(left, abs=0.02)
    torch.testing.assert_close(pca.components @ pca.components.T, torch.eye(3))
    with pytest.raises(ValueError, match="d_in = 3"):
        fit_pca(x, 4)


def test_pca_beats_any_other_directions():
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) @ torch.diag(torch.arange(1.0, 7.0))
    best = fit_pca(x, 2)
    random = PCA(best.mean, torch.linalg.qr(torch.randn(6, 2, generator=torch.Generator().manual_seed(1)))[0].T)
    context = torch.arange(500) // 10
    assert reconstruction(best, x, context).fvu < reconstruction(random, x, context).fvu


def test_ce_recovered_has_its_value_inside_its_interval():
    import pandas as pd

    rng = np.random.default_rng(0)
    clean = rng.normal(3, 0.3, 40)
    losses = pd.DataFrame({"clean": clean, "sae": clean + 0.1, "mean": clean + rng.normal(2, 0.2, 40)})
    value, interval = evaluation.ce_recovered(losses, "sae", "mean")
    assert value == pytest.approx(1 - 0.1 / (losses["mean"] - clean).mean())
    assert interval.low < value < interval.high
    assert evaluation.ce_recovered(losses, "mean", "mean")[0] == 0


def test_spliced_losses_leave_excluded_positions_and_the_model_alone():
    tiny_model = tiny_bridge()
    tokens = torch.randint(0, 7, (5, 8), generator=torch.Generator().manual_seed(0))
    keep = torch.ones(5, 8, dtype=torch.bool)
    keep[0] = False
    before = tiny_model(tokens)
    losses = evaluation.spliced_losses(
        tiny_model,
        tokens,
        "blocks.1.hook_resid_post",
        {"same": lambda x: x, "zero": torch.zeros_like},
        keep,
        batch_size=2,
    )
    assert torch.equal(tiny_model(tokens), before)
    assert losses["same"].tolist() == losses["clean"].tolist()
    assert losses["zero"][0] == losses["clean"][0]
    assert (losses["zero"][1:] != losses["clean"][1:]).all()
    by_hand = metrics.cross_entropy(before, tokens).mean(1)
    np.testing.assert_allclose(losses["clean"], by_hand, rtol=1e-5)


def test_example_contexts_are_the_top_ones_and_then_the_middle_ones():
    context, position = torch.arange(40) // 8, torch.arange(40) % 8
    acts = torch.stack([torch.arange(40.0).clamp(min=9) - 9, torch.zeros(40)], 1)  # 30 positive, the last the largest
    tokens = torch.arange(40).reshape(5, 8)
    examples = evaluation.example_contexts(acts, context, position, tokens, n_each=2, before=3, after=1)
    chosen = {kind: [int(e.tokens[e.position]) for e in examples if e.kind == kind] for kind in ("top", "middle")}
    assert chosen == {"top": [39, 38], "middle": [25, 24]}
    assert {e.latent for e in examples} == {0}
    assert examples[0].tokens.tolist() == [36, 37, 38, 39]
    assert examples[0].acts.tolist() == [27, 28, 29, 30]


def test_tables_have_a_row_per_arm_and_its_interval():
    import pandas as pd

    table = evaluation.comparison({"half": reconstruction(Halver(), X, CONTEXT)})
    assert table.loc["half"].to_dict() == pytest.approx(
        {"value": 0.5, "low": 0.5, "high": 0.5, "L0": 1, "dead": 0.5, "dense": 0.5}
    )
    losses = pd.DataFrame({"clean": [3.0, 3.2], "sae": [3.5, 3.7], "mean": [5.0, 5.2], "zero": [8.0, 8.2]})
    table = evaluation.ce_recovered_table(losses, ["sae"], ["mean", "zero"])
    assert table.loc["sae"].to_dict() == pytest.approx({"value": 0.75, "low": 0.75, "high": 0.75, "against zero": 0.9})
