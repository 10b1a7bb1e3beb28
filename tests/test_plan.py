"""The planning page's numbers, by hand."""

import pytest

from bench.plan import Hardware, Shares, Work, plan

WORK = Work(n_tokens=36_000, layers_run=2, layer_parameters=100, d_in=10, d_sae=50, batch_size=360)
MACHINE = Hardware("a slow one", flops=1000, network=100, storage=10, shares=Shares(harvest=0.5, training=0.25))


def test_bytes_and_operations():
    assert WORK.harvest_flop == 2 * 36_000 * 200
    assert WORK.training_flop == 2 * 36_000 * 500
    assert WORK.store_bytes == 720_000
    assert WORK.sae_bytes == 4 * 1060


def test_one_machine_sends_nothing():
    assert plan(WORK, MACHINE, 1) == pytest.approx(
        {
            "hours of harvest": 14_400_000 / 500 / 3600,
            "hours of training: computing": 36_000_000 / 250 / 3600,
            "hours of training: sending gradients": 0,
            "hours of training: reading": 20,
            "hours of training": 20 + 40,
            "GB of memory for training": (4 * 4240 + 8 * 4 * 360 * 50) / 1e9,
        }
    )


def test_four_machines_share_the_products_and_send_in_a_ring():
    alone, four = (plan(WORK, MACHINE, n) for n in (1, 4))
    assert four["hours of harvest"] == alone["hours of harvest"] / 4
    assert four["hours of training: computing"] == 10
    assert four["hours of training: reading"] == 20
    assert four["hours of training: sending gradients"] == pytest.approx(100 * 1.5 * 4240 / 100 / 3600)
