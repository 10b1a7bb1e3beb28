"""One dictionary for two models: an ordinary SAE on [base, tuned], whose decoder rows are split afterwards.

The losses in use differ in three places, and each is an argument of `train_pair`:

- what is sparse: a fixed number of active latents (`batchtopk`); an L1 penalty on each latent's joint decoder norm
  (`l1 joint`), which is a plain SAE's; or on the sum of both models' norms (`l1 sum`), which is the crosscoder's.
- what is to be rebuilt: `tilt` moves from both models alike (0) to their difference alone (1, a diff-SAE). With errors
  e, the loss is |e_base|² + |e_tuned|² - 2 tilt e_base·e_tuned, which is (1 - tilt) |e_sum|² + (1 + tilt) |e_diff|² for
  the normalised sum and difference: a plain SAE in coordinates that are stretched by the roots of these weights.

Paper: Lindsey et al. 2024, "Sparse Crosscoders for Cross-Layer Features and Model Diffing"; Minder et al. 2025,
arXiv:2504.02922. Taught in `07_model_diffing`.
"""

from collections.abc import Iterable
from itertools import chain, islice
from typing import NamedTuple

import torch
from jaxtyping import Float
from sae_lens import SAE, StandardTrainingSAE, TrainingSAE
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor

from mi_utils.models import SHIPPED_ADAPTERS
from mi_utils.sae import build, initialise_from_data
from mi_utils.stores import Statistics
from mi_utils.training import to_inference, train

SPARSITIES = ("batchtopk", "l1 joint", "l1 sum")
SHIPPED = SHIPPED_ADAPTERS / "pair12_768"
"""The shipped dictionary of the default model and its broad fine-tune, for `sae.load`."""
N_START = 8  # batches that the dictionary is initialised from


class Halves(NamedTuple):
    """A pair dictionary's decoder rows, by model."""

    base: Float[Tensor, "latent d_model"]
    tuned: Float[Tensor, "latent d_model"]


class SummedNormTrainingSAE(StandardTrainingSAE):
    """sae-lens's standard SAE with the crosscoder's penalty: activation times the sum of both halves' norms."""

    def calculate_aux_loss(
        self, step_input: TrainStepInput, feature_acts: Tensor, hidden_pre: Tensor, sae_out: Tensor
    ) -> dict[str, Tensor]:
        del hidden_pre, sae_out
        norms = sum(half.norm(dim=1) for half in self.W_dec.chunk(2, dim=1))
        return {"l1_loss": (step_input.coefficients["l1"] * (feature_acts * norms).sum(-1)).mean()}


def train_pair(
    batches: Iterable[Float[Tensor, "token two_d_model"]],
    d_sae: int,
    k: int | float = 32,
    *,
    sparsity: str = "batchtopk",
    tilt: float = 0.0,
    l1_coefficient: float = 0.1,
    n_steps: int = 2000,
    lr: float = 1e-3,
    seed: int = 0,
) -> SAE:
    """Train a dictionary on pairs, centred and scaled, and return it ready for use on such pairs.

    Args:
        batches: at least `n_steps` batches.
        sparsity: one of `SPARSITIES`, as above.
        k: active latents a token, for `batchtopk`.
        l1_coefficient: weight of the penalty, for the other two.
    Raises:
        ValueError: an unknown sparsity, a tilt outside [0, 1], an odd width, or as `training.train`.
    """
    if not 0 <= tilt <= 1:
        raise ValueError(f"tilt is {tilt}; expected 0 (both models alike) to 1 (their difference alone)")
    batches = iter(batches)
    start = [_tilted(x, tilt) for x in islice(batches, N_START)]
    if not start or start[0].shape[1] % 2:
        raise ValueError("expected batches [token, 2 d_model]: the base model's half, then the tuned model's")
    sae = _untrained(sparsity, start[0].shape[1], d_sae, k, l1_coefficient, seed)
    initialise_from_data(sae, torch.cat(start), seed)
    train(sae, chain(start, (_tilted(x, tilt) for x in batches)), n_steps, lr=lr)
    return _straightened(to_inference(sae), tilt)


def in_model_units(sae: SAE, statistics: tuple[Statistics, Statistics]) -> SAE:
    """The dictionary for raw residual streams, [base, tuned] as the models have them; its activations stay the same.

    Args:
        statistics: what the pairs were centred and scaled with, base and tuned.
    """
    scale = torch.cat([torch.full_like(own.mean, own.scale) for own in statistics])
    mean = torch.cat([own.mean for own in statistics])
    raw = SAE.from_dict(sae.cfg.to_dict())
    raw.load_state_dict(sae.state_dict())
    raw.W_enc.data = sae.W_enc / scale[:, None]
    raw.W_dec.data = sae.W_dec * scale
    raw.b_dec.data = sae.b_dec * scale + mean
    return raw.eval().requires_grad_(False)


def halves(sae: SAE) -> Halves:
    """The decoder rows of each model.

    Raises:
        ValueError: the dictionary's width is odd, so that it belongs to no pair.
    """
    if sae.cfg.d_in % 2:
        raise ValueError(f"a dictionary of width {sae.cfg.d_in} is of no pair of models; expected 2 d_model")
    return Halves(*sae.W_dec.detach().chunk(2, dim=1))


def _untrained(sparsity: str, d_in: int, d_sae: int, k: int | float, l1_coefficient: float, seed: int) -> TrainingSAE:
    if sparsity not in SPARSITIES:
        raise ValueError(f"unknown sparsity {sparsity!r}; choose one of {', '.join(SPARSITIES)}")
    if sparsity == "batchtopk":
        return build("batchtopk", d_in, d_sae, k, seed=seed)
    sae = build("standard", d_in, d_sae, 1, seed=seed, l1_coefficient=l1_coefficient)
    return sae if sparsity == "l1 joint" else SummedNormTrainingSAE(sae.cfg)


def _stretch(d_in: int, tilt: float) -> Float[Tensor, " d_in"]:
    """By how much each coordinate of sum and difference is stretched."""
    return torch.tensor([(1 - tilt) ** 0.5, (1 + tilt) ** 0.5]).repeat_interleave(d_in // 2)


def _rotated(x: Tensor) -> Tensor:
    """[base, tuned] to [sum, difference], both over the root of 2; the last dimension is the pair's."""
    base, tuned = x.chunk(2, dim=-1)
    return torch.cat([tuned + base, tuned - base], -1) / 2**0.5


def _rotated_back(x: Tensor) -> Tensor:
    total, difference = x.chunk(2, dim=-1)
    return torch.cat([total - difference, total + difference], -1) / 2**0.5


def _tilted(x: Float[Tensor, "token d_in"], tilt: float) -> Float[Tensor, "token d_in"]:
    return _rotated(x) * _stretch(x.shape[1], tilt) if tilt else x


def _straightened(sae: SAE, tilt: float) -> SAE:
    """A dictionary trained on tilted pairs, for pairs as they are; where nothing was asked for, rows are 0."""
    if not tilt:
        return sae
    stretch = _stretch(sae.cfg.d_in, tilt)
    back = torch.where(stretch > 0, 1 / stretch, 0.0)
    sae.W_enc.data = _rotated_back(sae.W_enc.T * stretch).T.contiguous()
    sae.W_dec.data = _rotated_back(sae.W_dec * back)
    sae.b_dec.data = _rotated_back(sae.b_dec * back)
    return sae
