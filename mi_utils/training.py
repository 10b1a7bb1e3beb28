"""Train a dictionary on batches of activations, and turn it into one that can be used anywhere.

While it trains, a BatchTopK SAE decides over a whole batch which activations survive. `to_inference` fixes that choice
as a threshold, so that what a latent does on a token never depends on the tokens beside it, and puts the model's own
mean and scale back into the weights.

Read: Gao et al. (2024), Scaling and evaluating sparse autoencoders. Taught in `01_train_an_sae`.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import pandas as pd
import torch
from jaxtyping import Bool, Float
from sae_lens import SAE, TrainingSAE
from sae_lens.saes.sae import TrainCoefficientConfig, TrainStepInput, TrainStepOutput
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mi_utils import peers
from mi_utils.files import atomic_path
from mi_utils.metrics import fvu
from mi_utils.sae import batch_topk, check_activations

MAX_GRADIENT_NORM = 1.0  # as in sae-lens
CALIBRATION_BATCHES = 8
ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")


def train(
    sae: TrainingSAE,
    batches: Iterable[Tensor],
    n_steps: int,
    *,
    log_every: int = 20,
    on_log: Callable[[pd.DataFrame], None] | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int = 1000,
    **settings,
) -> pd.DataFrame:
    """Train in place and return the curves: one row per logged step.

    Columns: `step`, `tokens`, `fvu` and `l0` on the batch, `dead_share`, `seconds` since the start.

    Args:
        batches: at least `n_steps` tensors `[token d_in]`, centred and scaled as the store gives them, on any device.
        on_log: called with the curves so far, for a figure that grows.
        checkpoint: a file to go on from if it is there. It is written every `checkpoint_every` steps and stays behind;
            the batches must be the same again, from their beginning.
        settings: of `Trainer`.
    Raises:
        ValueError: batches of another width, with NaN, or fewer than `n_steps`; the checkpoint of another training.
    """
    trainer, batches = Trainer(sae, n_steps, **settings), (x.to(sae.W_dec.device) for x in batches)
    curves = trainer.resume(checkpoint) if checkpoint is not None and Path(checkpoint).exists() else []
    start = time.perf_counter() - (curves[-1]["seconds"] if curves else 0)
    n_skipped = max(0, trainer.n_steps_done - CALIBRATION_BATCHES)
    recent = list(islice(batches, n_skipped, trainer.n_steps_done))
    for step in range(trainer.n_steps_done, n_steps):
        x = next(batches, None)
        if x is None:
            raise ValueError(f"the batches ended after {step} of {n_steps} steps; give endless batches or fewer steps")
        output = trainer.step(x)
        recent = [*recent[1 - CALIBRATION_BATCHES :], x]
        if step % log_every == 0 or step == n_steps - 1:
            curves.append({"step": step, "tokens": (step + 1) * len(x) * peers.count(), **_quality(output)})
            dead_share = trainer.is_dead().float().mean().item()
            curves[-1] |= {"dead_share": dead_share, "seconds": time.perf_counter() - start}
            if on_log is not None:
                on_log(pd.DataFrame(curves))
        if checkpoint is not None and (step + 1) % checkpoint_every == 0 and peers.rank() == 0:
            trainer.write_checkpoint(checkpoint, curves)
    trainer.finish()
    if hasattr(sae, "topk_threshold"):
        calibrate_threshold(sae, torch.cat(recent))
    return pd.DataFrame(curves)


class Trainer:
    """Adam on an SAE, one step at a time.

    Args:
        n_steps: planned length of the run, for the schedule.
        lr: peak learning rate; it rises over the first `warm_up` share of the steps and falls to 0 over the last
            `decay` share.
        dead_after: steps without firing after which a latent counts as dead and learns the residual instead.
        frozen: names of parameters to leave as they are, for instance `["W_dec"]` for the frozen-decoder control.
    """

    def __init__(
        self,
        sae: TrainingSAE,
        n_steps: int,
        *,
        lr: float = 1e-3,
        warm_up: float = 0.02,
        decay: float = 0.3,
        dead_after: int = 100,
        frozen: Sequence[str] = (),
    ):
        names = [name for name, _ in sae.named_parameters()]
        if unknown := set(frozen) - set(names):
            raise ValueError(f"cannot freeze {sorted(unknown)}: the parameters are {names}")
        self.sae, self.dead_after, self.n_steps, self.n_steps_done = sae, dead_after, n_steps, 0
        self.parameters = [_leaf(p) for name, p in sae.named_parameters() if name not in frozen]
        for name, parameter in sae.named_parameters():
            parameter.requires_grad_(name not in frozen)
        self.optimizer = torch.optim.Adam(self.parameters, lr=lr, fused=True)
        n_up, n_down = 1 + warm_up * n_steps, 1 + decay * n_steps
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: min(1.0, (step + 1) / n_up, (n_steps - step) / n_down)
        )
        self.steps_since_fired = torch.zeros(sae.cfg.d_sae, dtype=torch.long, device=sae.W_dec.device)
        sae.train()

    def step(self, x: Float[Tensor, "token d_in"]) -> TrainStepOutput:
        """One step on one batch.

        Raises:
            ValueError: `x` has another width than the SAE or holds NaN; the SAE is as it was.
        """
        check_activations(x, self.sae.cfg.d_in)
        self.optimizer.zero_grad(set_to_none=False)
        output = self.sae.training_forward_pass(
            TrainStepInput(
                sae_in=x,
                coefficients=self._coefficients(),
                dead_neuron_mask=self.is_dead(),
                n_training_steps=self.n_steps_done,
                is_logging_step=False,
            )
        )
        output.loss.backward()
        peers.average(parameter.grad for parameter in self.parameters)
        torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.schedule.step()
        fired = torch.zeros_like(self.steps_since_fired)
        fired[_active_latents(output.feature_acts.detach())] = 1
        self.steps_since_fired += 1
        self.steps_since_fired[peers.total(fired) > 0] = 0
        self.n_steps_done += 1
        return output

    def is_dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that have not fired for more than `dead_after` steps."""
        return self.steps_since_fired > self.dead_after

    def write_checkpoint(self, path: str | Path, curves: Sequence[dict]) -> None:
        """Everything that a later process needs to go on from here, in one file, written whole or not at all."""
        tensors = {f"sae|{name}": value.contiguous() for name, value in self.sae.state_dict().items()}
        for n, parameter in enumerate(self.parameters):
            moments = self.optimizer.state[parameter]
            tensors |= {f"adam|{n}|{name}": moments[name].contiguous() for name in ADAM_STATE}
        tensors["steps_since_fired"] = self.steps_since_fired
        progress = {"n_steps_done": self.n_steps_done, "n_steps": self.n_steps, "curves": list(curves)}
        with atomic_path(path) as part:
            save_file(tensors, part, {"progress": json.dumps(progress)})

    @torch.no_grad()
    def resume(self, path: str | Path) -> list[dict]:
        """Go on from a checkpoint; returns the curves so far.

        Raises:
            ValueError: the checkpoint belongs to another SAE or to a run of another length.
        """
        with safe_open(path, "pt", device=str(self.sae.W_dec.device)) as file:
            progress = json.loads(file.metadata()["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        shapes = {f"sae|{name}": value.shape for name, value in self.sae.state_dict().items()}
        found = {name: value.shape for name, value in tensors.items() if name.startswith("sae|")}
        if shapes != found or progress["n_steps"] != self.n_steps:
            raise ValueError(
                f"{path} is the checkpoint of another training ({progress['n_steps']} steps, {found}); "
                f"expected {self.n_steps} steps and {shapes}: delete it, or give another file"
            )
        for name, value in self.sae.state_dict().items():
            value.copy_(tensors[f"sae|{name}"])
        for n, parameter in enumerate(self.parameters):
            self.optimizer.state[parameter] = {name: tensors[f"adam|{n}|{name}"] for name in ADAM_STATE}
        self.steps_since_fired.copy_(tensors["steps_since_fired"])
        self.n_steps_done = progress["n_steps_done"]
        self.schedule.last_epoch = self.n_steps_done
        for group, rate in zip(self.optimizer.param_groups, self.schedule.base_lrs, strict=True):
            group["lr"] = rate * self.schedule.lr_lambdas[0](self.n_steps_done)
        return progress["curves"]

    def finish(self) -> None:
        """Free the gradients and make every parameter trainable again."""
        for parameter in self.sae.parameters():
            parameter.requires_grad_(True)
            parameter.grad = None
        self.sae.eval()

    def _coefficients(self) -> dict[str, float]:
        rates = {}
        for name, value in self.sae.get_coefficients().items():
            if isinstance(value, TrainCoefficientConfig):
                value = value.value * min(1.0, (self.n_steps_done + 1) / max(1, value.warm_up_steps))
            rates[name] = value
        return rates


def _leaf(parameter: torch.nn.Parameter) -> torch.nn.Parameter:
    """The parameter itself, or a contiguous view of the same memory: Adam is five times slower on a transposed one."""
    parameter.grad = torch.zeros_like(parameter)
    if parameter.is_contiguous():
        return parameter
    leaf = torch.nn.Parameter(parameter.data.T)
    leaf.grad = parameter.grad.T
    return leaf


def _active_latents(feature_acts: Tensor) -> Tensor:
    """Latent index of every activation above 0, sparse or dense."""
    if feature_acts.is_sparse:
        return feature_acts.indices()[1]
    return (feature_acts > 0).nonzero()[:, 1]


def _quality(output: TrainStepOutput) -> dict[str, float]:
    n_active = torch.tensor(len(_active_latents(output.feature_acts.detach())))
    x, x_hat = (_whole(rows.detach()) for rows in (output.sae_in, output.sae_out))
    return {"fvu": fvu(x, x_hat).item(), "l0": peers.total(n_active).item() / len(x)}


def _whole(rows: Float[Tensor, "own_token d_in"]) -> Float[Tensor, "token d_in"]:
    return peers.gathered(rows.flatten()).values.view(-1, rows.shape[1])


@torch.no_grad()
def calibrate_threshold(sae: TrainingSAE, x: Float[Tensor, "token d_in"]) -> float:
    """Set the inference threshold so that `x` has `k` active latents per token on average; return it.

    The running mean that training keeps starts at 0 and lags behind the weights; this is the cut of one large batch.

    Source: Bussmann et al. (2024), section 2, with the expectation taken over `x` instead of over past batches.
    """
    n_keep = int(sae.cfg.k * len(x) * peers.count())
    given = (x - sae.b_dec, sae.W_enc, sae.b_enc, sae.W_dec.norm(dim=-1))
    cut = batch_topk(*(tensor.cpu() for tensor in given), n_keep).cut
    sae.topk_threshold.fill_(cut)
    return cut


@torch.no_grad()
def to_inference(sae: TrainingSAE, centre: Float[Tensor, " d_in"] | None = None, scale: float = 1.0) -> SAE:
    """The dictionary for use on raw activations: fixed threshold, decoder rows of length 1, nothing to train.

    Args:
        centre: mean that was taken off the activations before training; default none.
        scale: what they were then divided by. With both, the result reads the model's own residual stream, and its
            activations are in the residual stream's units.
    """
    state = {name: value.clone() for name, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    inference = SAE.from_dict(sae.cfg.get_inference_sae_cfg_dict())
    inference.load_state_dict(state)
    for name in ("b_enc", "threshold", "b_dec"):
        if hasattr(inference, name):
            getattr(inference, name).mul_(scale)
    if centre is not None:
        inference.b_dec.add_(centre.to(inference.b_dec.device))
    return inference.eval().requires_grad_(False)
