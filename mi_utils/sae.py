"""Sparse autoencoders: a fast BatchTopK training class, the other architectures by the same call, saving and loading.

A BatchTopK SAE keeps the `k * batch` largest activations of a batch, about one value in 300. sae-lens computes every
step densely; here only the encoder product is dense, and all that follows the selection runs on the survivors.
Parameters, loss and files are those of sae-lens, so its trainer and its loader take them as their own.

Read: Bussmann et al. (2024), BatchTopK Sparse Autoencoders, arXiv 2412.06410. Taught in `01_train_an_sae`.
"""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from jaxtyping import Bool, Float, Int
from sae_lens import SAE, BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, JumpReLUSAE, TrainingSAE
from sae_lens.registry import get_sae_training_class
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from safetensors.torch import save_file
from torch import Tensor

from mi_utils import peers
from mi_utils.files import atomic_path, sha256

ARCHITECTURES = ("batchtopk", "matryoshka", "topk", "jumprelu", "standard")
SHIPPED = Path(__file__).parent.parent / "data" / "saes"
CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"  # the sae-lens layout
BLOCK_ROWS = 2048  # rows encoded at a time: a bounded buffer, still large enough for full speed
CANDIDATE_MARGIN = 0.95  # a candidate exceeds this share of the last cut: loose enough that winners are rarely missed
LONG_ROW = 2.0  # times the median norm: such rows are multiplied in float32
COARSE_ROWS = 64  # fewer rows are not worth rounding all weights for
BF16_PRODUCT_ERROR = 2.0**-8 + 2.0**-13  # two factors rounded to 8 bits and a float32 sum, relative to |x| |w|
AUX_ROWS = 512  # rows of a batch on which dead latents learn the residual

# Processors with matrix units (AMX) multiply bfloat16 eight times faster than float32; on others it is slower.
HAS_AMX = bool(getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"))

warnings.filterwarnings("ignore", message="Sparse (CSR tensor support|invariant checks).*")  # notices of a beta


@runtime_checkable
class Dictionary(Protocol):
    """Anything that turns activations into latents and back."""

    def encode(self, x: Tensor) -> Tensor: ...
    def decode(self, feature_acts: Tensor) -> Tensor: ...


class Selected(NamedTuple):
    """The activations that survive the selection, ordered by row and latent."""

    rows: Int[Tensor, " kept"]
    latents: Int[Tensor, " kept"]
    acts: Float[Tensor, " kept"]
    """Activations as the decoder uses them (its norm not multiplied in)."""
    cut: float
    """The smallest surviving activation times its decoder norm; 0 if nothing survived."""


def batch_topk(
    x: Float[Tensor, "token d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    decoder_norm: Float[Tensor, " d_sae"],
    n_keep: int,
    guess: float = 0.0,
) -> Selected:
    """Keep the `n_keep` largest positive values of `(x @ W_enc + b_enc) * decoder_norm`, over all rows together.

    Where processes share a batch, `x` holds this one's rows, and all of them select from all rows.

    Exact, without ranking the full matrix: entries above `guess` are collected block by block, and the cut is found
    among those. If they are fewer than `n_keep`, the pass is repeated with 0.

    Args:
        guess: expected lower bound of the cut, in activation units. It changes the time taken, never the result.
    Source: Bussmann et al. (2024), section 2; the candidate pass is ours.
    """
    for floor in (guess, 0.0):
        positions, acts = _candidates(x, W_enc, b_enc, floor / decoder_norm)
        scores = acts * decoder_norm[positions % len(b_enc)]
        if floor == 0 or peers.total((scores >= floor).sum()) >= n_keep:
            break
    everyone, start = peers.gathered(scores)
    keep = torch.from_numpy(_largest_positive(everyone.numpy(), n_keep))
    cut = everyone[keep].min().item() if len(keep) else 0.0
    keep = keep[(keep >= start) & (keep < start + len(scores))] - start
    return Selected(positions[keep] // len(b_enc), positions[keep] % len(b_enc), acts[keep], cut)


def _largest_positive(scores: np.ndarray, n_keep: int) -> np.ndarray:
    """Ascending indices of the `n_keep` largest scores, without those that are not positive."""
    if len(scores) > n_keep:
        first = len(scores) - n_keep
        keep = np.sort(np.argpartition(scores, first)[first:]) if n_keep else np.empty(0, int)
        return keep[scores[keep] > 0]
    return np.flatnonzero(scores > 0)


def _candidates(x: Tensor, W_enc: Tensor, b_enc: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """Flat positions, ascending, and exact values of all entries of `x @ W_enc + b_enc` at or above a floor per latent.

    Some entries below the floor may be among them; none at or above it is missing.
    """
    if not HAS_AMX or x.dtype != torch.float32 or len(x) < COARSE_ROWS:
        return _exact_candidates(x, W_enc, b_enc, floor)
    norm = x.norm(dim=1)
    is_long = norm > LONG_ROW * norm.median()  # few, and one alone would spoil the error bound of all
    rounding_error = BF16_PRODUCT_ERROR * (norm[~is_long].max() * W_enc.norm(dim=0) + b_enc.abs())
    if not (floor > rounding_error).all():
        return _exact_candidates(x, W_enc, b_enc, floor)
    if not is_long.any():
        return _coarse_candidates(x, W_enc, b_enc, floor - rounding_error)
    found = [
        (rows[positions // len(b_enc)] * len(b_enc) + positions % len(b_enc), values)
        for rows, (positions, values) in (
            ((~is_long).nonzero()[:, 0], _coarse_candidates(x[~is_long], W_enc, b_enc, floor - rounding_error)),
            (is_long.nonzero()[:, 0], _exact_candidates(x[is_long], W_enc, b_enc, floor)),
        )
    ]
    positions, order = torch.cat([positions for positions, _ in found]).sort()
    return positions, torch.cat([values for _, values in found])[order]


def _exact_candidates(x: Tensor, W_enc: Tensor, b_enc: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """`_candidates` in the precision of `x` throughout."""
    positions, values = [], []
    limit = (floor - b_enc).numpy()  # adding the bias to the survivors alone saves a pass over the whole matrix
    pre_acts = x.new_empty(min(BLOCK_ROWS, len(x)), len(b_enc))
    is_hit = np.empty(pre_acts.shape, dtype=bool)
    for start in range(0, len(x), BLOCK_ROWS):
        block = x[start : start + BLOCK_ROWS]
        pre = torch.mm(block, W_enc, out=pre_acts[: len(block)])
        hits = np.greater_equal(pre.numpy(), limit, out=is_hit[: len(block)])
        hits = torch.from_numpy(np.flatnonzero(hits))
        positions.append(hits + start * len(b_enc))
        values.append(pre.view(-1)[hits])
    positions = torch.cat(positions)
    return positions, torch.cat(values) + b_enc[positions % len(b_enc)]


def _coarse_candidates(x: Tensor, W_enc: Tensor, b_enc: Tensor, floor: Tensor) -> tuple[Tensor, Tensor]:
    """`_candidates` where bfloat16 products are fast: find them in bfloat16, then compute their values in float32.

    The floor is positive and already lowered by the largest possible rounding error, so nothing is missed. Positive
    bfloat16 numbers are ordered as their bits are, and integers compare six times faster.
    """
    d_sae = len(b_enc)
    x_and_one = torch.cat([x, x.new_ones(len(x), 1)], 1).bfloat16()
    weights = torch.cat([W_enc.T, b_enc[:, None]], 1).bfloat16()
    floor_bits = (floor.view(torch.int32).numpy() >> 16).astype(np.int16)  # cutting bits off rounds down
    pre_acts = torch.empty(min(BLOCK_ROWS, len(x)), d_sae, dtype=torch.bfloat16)
    is_hit = np.empty(pre_acts.shape, dtype=bool)
    positions = []
    for start in range(0, len(x), BLOCK_ROWS):
        block = x_and_one[start : start + BLOCK_ROWS]
        pre = torch.mm(block, weights.T, out=pre_acts[: len(block)])
        hits = np.greater_equal(pre.view(torch.int16).numpy(), floor_bits, out=is_hit[: len(block)])
        positions.append(np.flatnonzero(hits) + start * d_sae)
    positions = torch.from_numpy(np.concatenate(positions))
    latents = positions % d_sae
    pattern = csr(positions // d_sae, latents, x.new_zeros(len(positions)), (len(x), d_sae))
    return positions, torch.sparse.sampled_addmm(pattern, x, W_enc).values() + b_enc[latents]


class Active(NamedTuple):
    """All activations above zero, ordered by token and latent."""

    tokens: Int[Tensor, " active"]
    latents: Int[Tensor, " active"]
    acts: Float[Tensor, " active"]


@torch.no_grad()
def active(dictionary: Dictionary, x: Float[Tensor, "token d_in"]) -> Active:
    """What `dictionary.encode(x)` holds apart from zeros, without the zeros.

    Of a dictionary with thresholds on the CPU only candidates are computed, as in training; the activations are the
    same up to float32 rounding. Anything else with an `encode` is encoded densely, some rows at a time.
    """
    if not _has_plain_thresholds(dictionary) or x.device.type != "cpu":
        return Active(*map(torch.cat, zip(*_dense_blocks(dictionary, x), strict=True)))
    threshold = dictionary.threshold.clamp(min=0)
    positions, values = _candidates(x - dictionary.b_dec, dictionary.W_enc, dictionary.b_enc, threshold)
    latents = positions % len(threshold)
    fires = values > threshold[latents]
    return Active((positions // len(threshold))[fires], latents[fires], values[fires])


def _dense_blocks(dictionary: Dictionary, x: Tensor) -> Iterator[Active]:
    for number, block in enumerate(x.split(BLOCK_ROWS)):
        acts = dictionary.encode(block)
        tokens, latents = (acts > 0).nonzero(as_tuple=True)
        yield Active(tokens + number * BLOCK_ROWS, latents, acts[tokens, latents])


def _has_plain_thresholds(dictionary: Dictionary) -> bool:
    cfg = getattr(dictionary, "cfg", None)
    return (
        isinstance(dictionary, JumpReLUSAE)
        and cfg.apply_b_dec_to_input
        and cfg.normalize_activations == "none"
        and not cfg.reshape_activations.startswith("hook_z")
    )


class _SparseAutoencode(torch.autograd.Function):
    """Decode the selected activations; the backward pass visits the selected entries only."""

    @staticmethod
    def forward(ctx, x_centred, W_enc, b_enc, W_dec, b_dec, selected):
        ctx.acts = csr(selected.rows, selected.latents, selected.acts, (len(x_centred), len(b_enc)))
        ctx.inputs = x_centred, W_enc, W_dec
        return torch.addmm(b_dec, ctx.acts, W_dec)

    @staticmethod
    @torch.no_grad()
    def backward(ctx, grad_x_hat):
        x_centred, W_enc, W_dec = ctx.inputs
        grad_acts = torch.sparse.sampled_addmm(ctx.acts, grad_x_hat, W_dec.T, beta=0.0)
        latents = ctx.acts.col_indices()
        grad_b_enc = torch.zeros(len(W_dec), dtype=W_dec.dtype).index_add_(0, latents, grad_acts.values())
        grad_b_dec = grad_x_hat.sum(0) - W_enc @ grad_b_enc
        grad_W_dec = _add_product(W_dec.grad, _transposed(ctx.acts), grad_x_hat)
        encoder_grad = None if W_enc.grad is None else W_enc.grad.T
        grad_W_enc = _add_product(encoder_grad, _transposed(grad_acts), x_centred)
        return None, None if grad_W_enc is None else grad_W_enc.T, grad_b_enc, grad_W_dec, grad_b_dec, None


def _add_product(grad: Tensor | None, sparse: Tensor, dense: Tensor) -> Tensor | None:
    """The product as a new gradient, or added in place where a buffer exists: fresh memory costs more than the sum."""
    if grad is None:
        return sparse @ dense
    grad.addmm_(sparse, dense)
    return None


def csr(rows: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    """A sparse matrix of entries that are ordered by row, then column."""
    row_starts = torch.zeros(shape[0] + 1, dtype=torch.int32)
    row_starts[1:] = torch.bincount(rows, minlength=shape[0]).cumsum(0)
    return torch.sparse_csr_tensor(row_starts, columns.int(), values, shape, check_invariants=False)


def _transposed(matrix: Tensor) -> Tensor:
    """The transpose of a CSR matrix as CSR: a counting sort, which scipy does ten times faster than torch."""
    parts = (matrix.values().numpy(), matrix.col_indices().numpy(), matrix.crow_indices().numpy())
    csc = scipy.sparse.csr_matrix(parts, shape=matrix.shape).tocsc()
    shape = (matrix.shape[1], matrix.shape[0])
    parts = (torch.from_numpy(part) for part in (csc.indptr, csc.indices, csc.data))
    return torch.sparse_csr_tensor(*parts, shape, check_invariants=False)


class SparseBatchTopKTrainingSAE(BatchTopKTrainingSAE):
    """sae-lens's BatchTopK training class with a sparse step: same parameters, same loss, same gradients.

    On the CPU a step costs little more than its encoder product. On any other device the dense step of the parent
    runs. Dead latents learn the residual of the first `AUX_ROWS` rows of a batch rather than of all.
    """

    def __init__(self, cfg: BatchTopKTrainingSAEConfig, use_error_term: bool = False):
        super().__init__(cfg, use_error_term)
        # Laid out by latent in memory, under its usual shape: both weight gradients are then sums of whole rows.
        self.W_enc = torch.nn.Parameter(self.W_enc.data.T.contiguous().T)
        self.last_cut = 0.0

    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        x = step_input.sae_in
        if x.device.type != "cpu":
            return super().training_forward_pass(step_input)
        decoder_norm = self.W_dec.detach().norm(dim=-1)
        with torch.no_grad():
            n_keep = int(self.cfg.k * len(x) * peers.count())
            x_centred = x - self.b_dec
            guess = CANDIDATE_MARGIN * self.last_cut
            selected = batch_topk(x_centred, self.W_enc, self.b_enc, decoder_norm, n_keep, guess)
        self._follow_cut(selected.cut)
        x_hat = _SparseAutoencode.apply(x_centred, self.W_enc, self.b_enc, self.W_dec, self.b_dec, selected)
        losses = {"mse_loss": torch.nn.functional.mse_loss(x_hat, x, reduction="sum") / len(x)}
        dead = step_input.dead_neuron_mask
        if dead is not None and dead.any():
            some = slice(AUX_ROWS // peers.count())
            losses["auxiliary_reconstruction_loss"] = self.dead_latent_loss(x[some], x_hat[some], dead)
        feature_acts = torch.sparse_coo_tensor(
            torch.stack([selected.rows, selected.latents]),
            selected.acts * decoder_norm[selected.latents],
            (len(x), self.cfg.d_sae),
            is_coalesced=True,
            check_invariants=False,
        )
        return TrainStepOutput(
            sae_in=x,
            sae_out=x_hat,
            feature_acts=feature_acts,
            hidden_pre=feature_acts,
            loss=sum(losses.values()),
            losses=losses,
            metrics={"topk_threshold": self.topk_threshold},
        )

    def _follow_cut(self, cut: float) -> None:
        self.last_cut = cut
        if cut > 0:
            rate = self.cfg.topk_threshold_lr
            self.topk_threshold = (1 - rate) * self.topk_threshold + rate * cut

    def dead_latent_loss(
        self, x: Float[Tensor, "token d_in"], x_hat: Float[Tensor, "token d_in"], is_dead: Bool[Tensor, " d_sae"]
    ) -> Float[Tensor, ""]:
        """Squared error of the best `d_in / 2` dead latents at predicting what the living ones left over.

        Source: Gao et al. (2024), Scaling and evaluating sparse autoencoders, appendix A.2; scaled as in sae-lens.
        """
        dead = is_dead.nonzero().squeeze(1)
        residual = (x - x_hat).detach()
        k_aux = min(self.cfg.d_in // 2, len(dead))
        pre_acts = (x - self.b_dec) @ self.W_enc[:, dead] + self.b_enc[dead]
        scores = pre_acts.detach() * self.W_dec[dead].detach().norm(dim=-1)
        winners = scores.topk(k_aux, dim=-1, sorted=False).indices
        acts = torch.zeros_like(pre_acts).scatter(1, winners, pre_acts.gather(1, winners))
        error = (acts @ self.W_dec[dead] - residual).pow(2).sum(-1).mean()
        return self.cfg.aux_loss_coefficient * min(len(dead) / (self.cfg.d_in // 2), 1.0) * error

    def process_state_dict_for_saving(self, state_dict: dict) -> None:
        super().process_state_dict_for_saving(state_dict)
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()


def build(
    architecture: str, d_in: int, d_sae: int, k: int | float = 32, *, seed: int = 0, device: str = "cpu", **options
) -> TrainingSAE:
    """A new SAE to train; every architecture by the same call.

    Args:
        architecture: "batchtopk" (ours), "matryoshka", "topk", "jumprelu" or "standard" (from sae-lens).
        k: mean number of active latents per token. "jumprelu" aims at it, "standard" has an `l1_coefficient` instead.
        device: where to put it; the same seed gives the same weights on any.
        options: further fields of the sae-lens configuration, for instance `matryoshka_widths=[144, 576, 2304]`.
    Raises:
        ValueError: an unknown architecture, or sizes that cannot be.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}; choose one of {', '.join(ARCHITECTURES)}")
    if d_in < 1 or d_sae < 1 or not 0 < k <= d_sae:
        raise ValueError(f"need d_in >= 1 and 0 < k <= d_sae, got d_in {d_in}, d_sae {d_sae}, k {k}")
    sae_class, config_class = _classes(architecture)
    if architecture in ("batchtopk", "topk", "matryoshka"):
        options["k"] = k
    elif architecture == "jumprelu":
        options.setdefault("target_l0", k)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return sae_class(config_class(d_in=d_in, d_sae=d_sae, **options)).to(device)


def _classes(architecture: str) -> tuple[type, type]:
    if architecture == "batchtopk":
        return SparseBatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    return get_sae_training_class({"matryoshka": "matryoshka_batchtopk"}.get(architecture, architecture))


@torch.no_grad()
def initialise_from_data(sae: TrainingSAE, x: Float[Tensor, "token d_in"], seed: int = 0) -> None:
    """Start the decoder rows on directions the data has, and the encoder on the same rows, scaled to reconstruct.

    Each row is a data point about the mean, mixed with as much noise, at unit length; `b_dec` is the mean. Rows that
    point where data lie receive a gradient from the first batch on, so that few latents die. The encoder's scale is
    the one at which the first reconstruction of `x` is best.

    Raises:
        ValueError: the data have another width than the SAE, or fewer than two points.
    """
    check_activations(x, sae.cfg.d_in)
    generator = torch.Generator().manual_seed(seed)
    mean = x.mean(0)
    chosen = x[torch.randint(len(x), (sae.cfg.d_sae,), generator=generator)] - mean
    noise = torch.randn(chosen.shape, generator=generator)
    rows = torch.nn.functional.normalize(chosen, dim=1) + torch.nn.functional.normalize(noise, dim=1)
    rows = torch.nn.functional.normalize(rows, dim=1)
    first = batch_topk(x - mean, rows.T, torch.zeros(len(rows)), torch.ones(len(rows)), int(len(x) * _k(sae)))
    x_hat = csr(first.rows, first.latents, first.acts, (len(x), len(rows))) @ rows
    sae.W_dec.copy_(rows)
    sae.W_enc.copy_(rows.T * (((x - mean) * x_hat).sum() / x_hat.pow(2).sum()))
    sae.b_dec.copy_(mean)


def _k(sae: TrainingSAE) -> float:
    """Active latents a token the SAE aims at; a usual number where its architecture has no such target."""
    return float(getattr(sae.cfg, "k", None) or getattr(sae.cfg, "target_l0", None) or min(32, sae.cfg.d_sae))


def check_activations(x: Tensor, d_in: int) -> None:
    """Raise a ValueError unless `x` is a non-empty `[token d_in]` of finite numbers."""
    if x.ndim != 2 or x.shape[1] != d_in or len(x) == 0:
        raise ValueError(
            f"expected activations of shape [token, {d_in}], got {tuple(x.shape)}; "
            "build the SAE with the d_in of the hook point that was harvested"
        )
    if not torch.isfinite(x.sum()):
        raise ValueError("activations hold NaN or infinity; harvest them again, and in float32 if they overflowed")


def save(sae: SAE, folder: str | Path, *, dtype: torch.dtype = torch.float32, **metadata) -> Path:
    """Write a dictionary in the sae-lens layout (`cfg.json`, `sae_weights.safetensors`), whole or not at all.

    Args:
        sae: for use, from `to_inference`; or a training SAE, to go on with.
        dtype: of the stored weights; `torch.float16` halves the file. They are float32 again when loaded.
        metadata: what a reader must know, for instance `model_name`, `hook_name`, `tokens`.
    Raises:
        ValueError: something is already at `folder`.
    """
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another folder or remove it first")
    state = {name: value.clone() for name, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving(state)
    state = {name: value.to(dtype) if value.ndim else value for name, value in state.items()}
    with atomic_path(folder) as part:
        part.mkdir()
        save_file(state, part / WEIGHTS)
        config = sae.cfg.to_dict()
        config["metadata"] = {**config["metadata"], **metadata, "weights_sha256": sha256(part / WEIGHTS)}
        (part / CONFIG).write_text(json.dumps(config, indent=1))
    return folder


def shipped() -> dict[str, Path]:
    """The dictionaries in `data/saes`: their names, which `load` takes, and their folders."""
    return {path.parent.name: path.parent for path in sorted(SHIPPED.glob(f"*/{CONFIG}"))}


def shipped_cards() -> pd.DataFrame:
    """What was measured of each shipped dictionary on held-out text: a row each, narrowest first."""
    cards = {name: folder / "card.json" for name, folder in shipped().items()}
    rows = {name: json.loads(path.read_text()) for name, path in cards.items() if path.is_file()}
    return pd.DataFrame(rows).T.infer_objects().sort_values(["d_sae"], kind="stable")


def load(folder: str | Path, *, device: str = "cpu") -> SAE:
    """Read a dictionary that `save`, or sae-lens, wrote, or a shipped one by its name.

    Raises:
        ValueError: no dictionary there, a damaged or altered file, or one that still needs its training batch.
    """
    folder = shipped().get(str(folder), Path(folder))
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise ValueError(
            f"no dictionary in {folder}: {', '.join(missing)} missing; expected the folder `save` wrote, "
            f"or the name of a shipped one: {', '.join(shipped()) or 'none is here'}"
        )
    try:
        config = json.loads((folder / CONFIG).read_text())
        recorded = config.get("metadata", {}).get("weights_sha256")
    except (json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{folder / CONFIG} is damaged ({error}); copy or train the dictionary again") from error
    if recorded is not None and recorded != sha256(folder / WEIGHTS):
        raise ValueError(
            f"{folder / WEIGHTS} is truncated or altered: its checksum differs from the one in {CONFIG}; "
            "copy or train the dictionary again"
        )
    if config.get("architecture") in ("batchtopk", "matryoshka_batchtopk"):
        raise ValueError(
            f"{folder} holds a training checkpoint, whose latents depend on the batch; "
            "load it with sae_lens.TrainingSAE.load_from_disk and pass it to training.to_inference"
        )
    try:
        return SAE.load_from_disk(folder, device=device).eval().requires_grad_(False)
    except Exception as error:  # sae-lens and safetensors raise whatever they stumble over
        raise ValueError(
            f"{CONFIG} and {WEIGHTS} in {folder} do not fit each other ({error}); copy it again"
        ) from error


def load_hub(release: str, sae_id: str, *, device: str = "cpu") -> SAE:
    """A dictionary from sae-lens's list of public ones, fetched from the Hugging Face hub the first time.

    The ladder of the feature-splitting experiment, one hook point of GPT-2 small at widths 768, 1536, ... 98304, is
    `load_hub("gpt2-small-res-jb-feature-splitting", f"blocks.8.hook_resid_pre_{width}")`; its model is
    `models.load_model("gpt2")`.

    Raises:
        ValueError: no such dictionary on the list, or the hub is out of reach and it was never fetched.
    """
    try:
        return SAE.from_pretrained(release, sae_id, device=device).eval().requires_grad_(False)
    except ValueError as error:
        raise ValueError(f"sae-lens lists no dictionary {sae_id!r} in release {release!r}: {error}") from error
    except Exception as error:  # a connection fails in the words of whichever library the client uses
        raise ValueError(
            f"the hub is out of reach and {release!r}, {sae_id!r} is not on this machine ({error}); connect once, or "
            f"load a folder or a shipped one: {', '.join(shipped())}"
        ) from error
