"""Two processes that share each batch train what one trains. `cluster` starts such processes; nothing does here."""

import os
from functools import partial

import pytest
import torch.distributed as dist
from faults import at_once
from safetensors.torch import load_file, save_file

from mi_utils import peers, sae, training
from mi_utils.worlds import superposition

N_STEPS, BATCH, N_PEERS = 60, 256, 2
DEAD_AFTER = 5  # so that dead latents learn too


def trained(architecture):
    dictionary = sae.build(architecture, 32, 256, 4)
    batches = (peers.own(x) for x in superposition(64, 32, density=0.05).batches(BATCH))
    return dictionary, training.train(dictionary, batches, N_STEPS, dead_after=DEAD_AFTER)


def share(architecture, folder, rank):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=N_PEERS)
    dictionary, curves = trained(architecture)
    save_file({name: value.contiguous() for name, value in dictionary.state_dict().items()}, folder / f"{rank}")
    curves.drop(columns="seconds").to_json(folder / f"{rank}.json", orient="values")
    dist.destroy_process_group()


@pytest.mark.parametrize("architecture", ["batchtopk", "topk"])
def test_two_processes_train_what_one_trains(tmp_path, architecture):
    assert at_once(*(partial(share, architecture, tmp_path, rank) for rank in range(N_PEERS))) == [0, 0]
    alone, curves = trained(architecture)
    assert curves.dead_share.max() > 0.05
    both = [load_file(tmp_path / f"{rank}") for rank in range(N_PEERS)]
    for name, value in alone.state_dict().items():
        assert (both[0][name] == both[1][name]).all(), name
        assert (both[0][name] - value).abs().max() < 1e-5, name
    assert (tmp_path / "0.json").read_text() == (tmp_path / "1.json").read_text()
