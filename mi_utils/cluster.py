"""The same harvest and the same training on several workers, of this machine or of many, through Ray.

A harvest is a task per shard: whichever worker is free writes the next one, and a worker that dies costs the shard it
was at. Training is data-parallel: each worker takes its rows of every batch, and the selection, the gradients and the
count of dead latents are those of the whole batch, so that the result is that of one process up to the order of sums.

Workers read and write one folder, which on several machines must be on a file system that all of them see. With one
machine use `local`, which listens on this machine only; with many, `ray.init(address)` of a cluster that runs.

Needs the extra `cluster`: `pip install -e '.[cluster]'`. Source: https://docs.ray.io.
"""

import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from uuid import uuid4

import pandas as pd
import torch
import torch.distributed as dist
from sae_lens import TrainingSAE
from safetensors.torch import load_file, save_file
from torch import Tensor

from mi_utils import peers
from mi_utils.activations import Exclusion, Job
from mi_utils.files import atomic_path, write_json
from mi_utils.sae import AUX_ROWS
from mi_utils.stores import ActivationStore
from mi_utils.training import train as train_alone

if TYPE_CHECKING:
    import ray
    from transformer_lens.model_bridge import TransformerBridge

LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_agent_register_timeout_ms": "120000",  # a busy machine
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "GLOO_SOCKET_IFNAME": "lo",
}
ALONE = ("matryoshka_batchtopk",)  # select within a batch in code that is not ours
_jobs: dict[str, Job] = {}


@contextmanager
def local(n_workers: int = 2) -> Iterator[None]:
    """A cluster of this machine's processors, for as long as the block runs. It listens on the loopback address only,
    shows no dashboard, and reports to nobody.

    Raises:
        ValueError: this process is connected to a cluster already, or no worker was asked for.
    """
    ray = _ray()
    if ray.is_initialized():
        raise ValueError(
            "this process is connected to a Ray cluster already; leave its block, or ray.shutdown(), first"
        )
    if n_workers < 1:
        raise ValueError(f"{n_workers} workers were asked for; expected one or more")
    with (
        patch.dict(os.environ, LOCAL),
        # Ray replaces the loopback address by one that other machines reach
        patch("ray._private.services.resolve_ip_for_localhost", lambda host: host),
    ):
        ray.init(
            num_cpus=n_workers,
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            logging_level=logging.ERROR,
            log_to_driver=False,
            runtime_env={"env_vars": LOCAL},
        )
        try:
            yield
        finally:
            ray.shutdown()


def harvest(
    load: Callable[[], "TransformerBridge"],
    tokens: Tensor,
    hook_names: Sequence[str],
    folder: str | Path,
    *,
    batch_size: int = 16,
    shard_contexts: int = 256,
    dtype: torch.dtype = torch.float16,
    products: torch.dtype = torch.float32,
    exclusion: Exclusion = Exclusion(),
    progress: bool = True,
) -> ActivationStore:
    """`activations.harvest`, shard by shard on the workers of the cluster that this process is connected to.

    The store is byte for byte that of one process, and either may finish what the other began. A worker that dies is
    replaced; its shard is made again.

    Args:
        load: loads the model, once in each worker and once here: `models.load_model`, or a partial of it.
    Raises:
        ValueError, OSError: as `activations.harvest`; or no cluster is there.
    """
    ray = _connected()
    asked = (list(hook_names), Path(folder).resolve(), batch_size, shard_contexts, dtype, products, exclusion)
    job = Job(load(), tokens, *asked)
    with job.begun() as missing, job.bar(missing, progress) as bar:
        write = ray.remote(num_cpus=1, max_retries=-1)(_write_shard)
        given = ray.put((load, tokens, asked, job.plan))
        first = 1 if missing[:1] == [0] else 0  # the first shard decides for all which rows are too long
        for part in (missing[:first], missing[first:]):
            waiting = [write.remote([given], k) for k in part]
            while waiting:
                done, waiting = ray.wait(waiting)
                bar.update(sum(map(_result, done)))
    return ActivationStore(job.folder)


def _write_shard(given: list["ray.ObjectRef"], k: int) -> int:
    """Write one shard with this worker's job; returns how many tokens it had."""
    ray, key = _ray(), given[0].hex()
    if key not in _jobs:
        load, tokens, asked, plan = ray.get(given[0])
        job = Job(load(), tokens, *asked)
        if job.plan != plan:
            different = sorted(name for name in plan if job.plan[name] != plan[name])
            raise ValueError(f"this worker differs from the process that asked, in {different}; use the same on all")
        _jobs.clear()
        _jobs[key] = job
    done: list[int] = []
    _jobs[key].write_shard(k, done.append)
    return sum(done)


def train(
    sae: TrainingSAE,
    store: ActivationStore,
    hook_name: str,
    n_steps: int,
    folder: str | Path,
    *,
    batch_size: int = 4096,
    n_workers: int = 2,
    seed: int = 0,
    checkpoint_every: int = 1000,
    **settings: Any,
) -> pd.DataFrame:
    """`training.train` on the batches of a store, each shared by the workers; the SAE is trained in place.

    Weights differ from those of one process by the order in which sums are taken. A worker that dies is replaced, and
    all go on from the last checkpoint.

    Args:
        folder: for the checkpoint and the result; the same call goes on from what is there.
        settings: of `training.train`.
    Returns:
        The curves, as `training.train`.
    Raises:
        ValueError: an SAE on another device or of an architecture that cannot share a batch, a batch that the workers
            cannot share evenly, or no cluster.
    """
    ray = _connected()
    _check_shared(sae, batch_size, n_workers)
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    folder = Path(folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    asked = {
        "sae": sae,
        "store": store.folder.resolve(),
        "hook_name": hook_name,
        "n_steps": n_steps,
        "folder": folder,
        "batches": {"batch_size": batch_size, "seed": seed, "epochs": None},
        "settings": {"checkpoint": folder / "checkpoint.safetensors", "checkpoint_every": checkpoint_every} | settings,
    }
    trainer = DataParallelTrainer(
        _train_here,
        train_loop_config=asked,
        scaling_config=ScalingConfig(num_workers=n_workers),
        run_config=RunConfig(
            name=uuid4().hex, storage_path=str(folder / "ray"), failure_config=FailureConfig(max_failures=3)
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        raise next(iter(error.worker_failures.values())) from None
    sae.load_state_dict(load_file(folder / "trained.safetensors"))
    sae.eval()
    return pd.DataFrame(json.loads((folder / "curves.json").read_text()))


def _train_here(asked: dict) -> None:
    """What each worker does."""
    from ray.train import get_context
    from ray.train.collective import broadcast_from_rank_zero

    context = get_context()
    meeting = broadcast_from_rank_zero(f"{asked['folder'] / uuid4().hex}.meeting")
    where = {"rank": context.get_world_rank(), "world_size": context.get_world_size()}
    dist.init_process_group("gloo", init_method=f"file://{meeting}", **where)
    try:
        sae, store = asked["sae"], ActivationStore(asked["store"])
        batches = (peers.own(rows).contiguous() for rows in store.batches(asked["hook_name"], **asked["batches"]))
        curves = train_alone(sae, batches, asked["n_steps"], **asked["settings"])
        if peers.rank() == 0:
            state = {name: value.contiguous() for name, value in sae.state_dict().items()}
            with atomic_path(asked["folder"] / "trained.safetensors") as part:
                save_file(state, part)
            write_json(asked["folder"] / "curves.json", curves.to_dict("records"))
    finally:
        dist.destroy_process_group()
        Path(meeting).unlink(missing_ok=True)


def _result(reference: "ray.ObjectRef") -> int:
    """What a task returned; what it raised is raised as if it had happened here."""
    ray = _ray()
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _ray() -> ModuleType:
    try:
        import ray
    except ModuleNotFoundError:
        raise ModuleNotFoundError("workers need Ray: pip install -e '.[cluster]'", name="ray") from None
    return ray


def _connected() -> ModuleType:
    ray = _ray()
    if not ray.is_initialized():
        raise ValueError("no cluster: put this into `with cluster.local(n_workers):`, or call ray.init(address) first")
    return ray


def _check_shared(sae: TrainingSAE, batch_size: int, n_workers: int) -> None:
    if n_workers < 1 or batch_size % n_workers or AUX_ROWS % n_workers:
        raise ValueError(
            f"{n_workers} workers cannot share batches of {batch_size} evenly; give a power of two that divides it"
        )
    if sae.W_dec.device.type != "cpu":
        raise ValueError(
            f"the SAE is on {sae.W_dec.device}; workers share batches on processors only: move it to 'cpu'"
        )
    if sae.cfg.architecture() in ALONE:
        raise ValueError(
            f"{sae.cfg.architecture()} selects within the rows of one worker, not of the batch; use batchtopk"
        )
