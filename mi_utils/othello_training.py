"""Train an Othello-GPT on nothing but random games: fresh ones in every batch, stopped and resumed at will.

The model is a plain GPT-2 without dropout. It never sees a board, a rule or a score, only which square came next.
Matrices inside the blocks learn by Muon, which needs far fewer games than AdamW; the rest learns by AdamW.

Papers: Li et al. 2023, "Emergent World Representations", arXiv:2210.13382; Jordan et al. 2024, "Muon"; Liu et al. 2025,
arXiv:2502.16982, for the scale of its steps. Taught in `11_othello`.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mi_utils.files import atomic_path
from mi_utils.othello_games import PAD, n_moves, play_random

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel

BETAS = (0.9, 0.95)
MOMENTUM = 0.95
NEWTON_SCHULZ = (3.4445, -4.775, 2.0315)
"""Coefficients of the iteration that brings all singular values near 1, from Jordan et al."""


@dataclass(frozen=True)
class Plan:
    """A training run; together with the software it settles every weight."""

    size: int = 6
    n_layers: int = 5
    d_model: int = 96
    n_heads: int = 4
    n_steps: int = 4500
    batch_size: int = 64
    """Games in a batch."""
    lr: float = 4e-3
    """Learning rate between the warm-up and the decay, which goes down to zero on a straight line."""
    warm_up: int = 50
    decay: float = 2 / 3
    """Share of the steps, at the end, in which the learning rate falls."""
    seed: int = 0

    def lr_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        left = (self.n_steps - step) / (self.decay * self.n_steps)
        return self.lr * min(1.0, (step + 1) / self.warm_up, left)

    def games(self, step: int) -> Int[Tensor, "game move"]:
        """The games of a step. Seeds below a million are never used here: hold out games with them."""
        return torch.from_numpy(play_random(self.batch_size, self.size, (self.seed + 1) * 1_000_000 + step))


def plain_model(
    size: int = 6, *, n_layers: int = 5, d_model: int = 96, n_heads: int = 4, seed: int = 0
) -> "GPT2LMHeadModel":
    """An untrained GPT-2 with one token for each playable square and one for padding.

    Raises:
        ValueError: a board size that is not supported, or a width that the heads do not divide.
    """
    from transformers import GPT2Config, GPT2LMHeadModel

    if d_model % n_heads:
        raise ValueError(f"d_model {d_model} cannot be divided among {n_heads} heads")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = GPT2Config(
            vocab_size=n_moves(size) + 1,
            n_positions=n_moves(size) - 1,
            n_embd=d_model,
            n_layer=n_layers,
            n_head=n_heads,
            activation_function="gelu",
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
        return GPT2LMHeadModel(config)


def train(
    plain: "GPT2LMHeadModel", plan: Plan, checkpoint: Path | None = None, *, save_every: int = 200
) -> Iterator[tuple[int, float, float]]:
    """Train in place; after each step yields its number, its loss in nats per move, and seconds spent so far.

    With a checkpoint, a run that was stopped goes on from its last saved step, to the same weights; seconds count
    over all runs. The learning rate follows the plan as given, so a later plan with other `n_steps` may be passed.

    Raises:
        ValueError: a checkpoint that is damaged or belongs to another architecture.
    """
    optimisers = _optimisers(plain)
    first, spent = _resume(plain, optimisers, checkpoint) if checkpoint and checkpoint.exists() else (0, 0.0)
    began = time.monotonic() - spent
    plain.train()
    for step in range(first, plan.n_steps):
        loss = next_move_loss(plain, plan.games(step))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = plan.lr_at(step)
            optimiser.step()
            optimiser.zero_grad()
        spent = time.monotonic() - began
        if checkpoint and ((step + 1) % save_every == 0 or step + 1 == plan.n_steps):
            _save(plain, optimisers, checkpoint, step + 1, spent)
        yield step, loss.item(), spent
    plain.eval()


def next_move_loss(plain: "GPT2LMHeadModel", games: Int[Tensor, "game move"]) -> Float[Tensor, ""]:
    """Cross-entropy of the next move, in nats, over the moves that were played; padding is not predicted."""
    logits = plain(games[:, :-1]).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), games[:, 1:].flatten(), ignore_index=PAD)


class Muon(torch.optim.Optimizer):
    """Steps whose singular values are all alike: the momentum of each matrix, made nearly orthogonal.

    A step is as long as one of AdamW usually is, so that both share a learning rate. torch has it too, in bfloat16,
    which a processor without matrix units multiplies slowly; this is float32.
    """

    def __init__(self, parameters: Iterable[torch.nn.Parameter], lr: float):
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                ahead = matrix.grad.lerp(momentum, MOMENTUM)
                matrix.sub_(orthogonalised(ahead), alpha=0.2 * group["lr"] * max(matrix.shape) ** 0.5)


def orthogonalised(matrix: Float[Tensor, "row column"]) -> Float[Tensor, "row column"]:
    """The matrix with all singular values brought between about 0.7 and 1.2, by five Newton-Schulz steps."""
    a, b, c = NEWTON_SCHULZ
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def _optimisers(plain: "GPT2LMHeadModel") -> list[torch.optim.Optimizer]:
    inside = {name for name, parameter in plain.named_parameters() if ".h." in name and parameter.ndim == 2}
    matrices = [parameter for name, parameter in plain.named_parameters() if name in inside]
    others = [parameter for name, parameter in plain.named_parameters() if name not in inside]
    return [Muon(matrices, lr=0.0), torch.optim.AdamW(others, lr=0.0, betas=BETAS, weight_decay=0.0)]


def _save(
    plain: "GPT2LMHeadModel",
    optimisers: list[torch.optim.Optimizer],
    checkpoint: Path,
    step: int,
    seconds: float,
) -> None:
    tensors = {f"weight/{name}": parameter.detach() for name, parameter in plain.named_parameters()}
    states = {parameter: state for optimiser in optimisers for parameter, state in optimiser.state.items()}
    for name, parameter in plain.named_parameters():
        tensors |= {f"{key}/{name}": value for key, value in states[parameter].items()}
    with atomic_path(checkpoint) as part:
        save_file(tensors, part, metadata={"step": str(step), "seconds": str(seconds)})


def _resume(plain: "GPT2LMHeadModel", optimisers: list[torch.optim.Optimizer], checkpoint: Path) -> tuple[int, float]:
    """Put weights and optimisers where the checkpoint left them; the next step and the seconds spent until then."""
    names = {parameter: name for name, parameter in plain.named_parameters()}
    try:
        with safe_open(checkpoint, framework="pt") as file, torch.no_grad():
            for optimiser in optimisers:
                keys = ("momentum",) if isinstance(optimiser, Muon) else ("step", "exp_avg", "exp_avg_sq")
                for parameter in optimiser.param_groups[0]["params"]:
                    name = names[parameter]
                    parameter.copy_(file.get_tensor(f"weight/{name}"))
                    optimiser.state[parameter] = {key: file.get_tensor(f"{key}/{name}") for key in keys}
            return int(file.metadata()["step"]), float(file.metadata()["seconds"])
    except (SafetensorError, RuntimeError, TypeError, KeyError) as error:
        raise ValueError(
            f"the checkpoint {checkpoint} is damaged or of another model ({error}); delete it to start over"
        ) from error
