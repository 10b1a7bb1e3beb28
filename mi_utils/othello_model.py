"""Othello-GPTs: the one trained here, any folder of the same kind, and the published one, all by the same call.

A player reads a game as tokens and says where the next move goes. Its residual stream can be read and edited after
each layer, at every position; position `i` has seen moves 1 to `i + 1`.

Papers: Li et al. 2023, arXiv:2210.13382; Nanda et al. 2023, "Emergent Linear Representations", arXiv:2309.00941.
Taught in `11_othello`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.hooks import Edit, hook_name, intervene, run_with_cache
from mi_utils.models import bridge, random_twin
from mi_utils.othello_games import SIZES, Replay, n_moves, playable
from mi_utils.othello_training import plain_model

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import GPT2LMHeadModel

SHIPPED = Path(__file__).parent.parent / "data" / "othello"
DEFAULT = "6x6"
PUBLISHED = "othello-gpt"
PUBLISHED_AT = ("NeelNanda/Othello-GPT-Transformer-Lens", "synthetic_model.pth")
"""The 8 × 8 model of Li et al., in the layout of TransformerLens (101 MB)."""
BATCH = 256  # games in a pass


@runtime_checkable
class Player(Protocol):
    """What plays: a model, or a planted world that stands in for one."""

    size: int
    n_layers: int

    def states(
        self, tokens: Int[np.ndarray, "game move"], layers: Sequence[int], edits: Mapping[int, Edit] | None = None
    ) -> dict[int, Float[Tensor, "game readable d_model"]]:
        """The residual stream after the given layers, after the edits there."""

    def logits(
        self, tokens: Int[np.ndarray, "game move"], edits: Mapping[int, Edit] | None = None
    ) -> Float[Tensor, "game readable square"]:
        """For each square the logit of the next move, minus infinity in the middle; edits act after their layers."""


@dataclass(frozen=True)
class ModelPlayer:
    """A player that is a transformer. `model` takes every function of `hooks`."""

    model: "TransformerBridge"
    size: int
    card: dict
    """What is known about its training; empty if nothing is."""

    @property
    def n_layers(self) -> int:
        return self.model.cfg.n_layers

    @torch.no_grad()
    def states(
        self, tokens: Int[np.ndarray, "game move"], layers: Sequence[int], edits: Mapping[int, Edit] | None = None
    ) -> dict[int, Float[Tensor, "game readable d_model"]]:
        """The residual stream after the given layers, after the edits there.

        Raises:
            ValueError: games that this player cannot read, a layer it does not have, or an edit after the last of
                the given layers, which would not be reached.
        """
        names = {layer: hook_name("resid_post", layer) for layer in layers}
        readable = self._readable(tokens)
        with intervene(self.model, _at_layers(edits)):
            batches = [readable] if edits else readable.split(BATCH)
            parts = [run_with_cache(self.model, batch, names.values()) for batch in batches]
        return {layer: torch.cat([part[name] for part in parts]) for layer, name in names.items()}

    @torch.no_grad()
    def logits(
        self, tokens: Int[np.ndarray, "game move"], edits: Mapping[int, Edit] | None = None
    ) -> Float[Tensor, "game readable square"]:
        """For each square the logit of the next move, minus infinity in the middle; edits act after their layers.

        With edits all games go through in one pass, so that an edit sees them in order.

        Raises:
            ValueError: games that this player cannot read, or a layer it does not have.
        """
        readable = self._readable(tokens)
        with intervene(self.model, _at_layers(edits)):
            batches = [readable] if edits else readable.split(BATCH)
            return on_squares(torch.cat([self.model(batch) for batch in batches]), self.size)

    def untrained(self, seed: int = 0) -> "ModelPlayer":
        """The same architecture with fresh weights: the control for training."""
        return ModelPlayer(random_twin(self.model, seed), self.size, {})

    def _readable(self, tokens: Int[np.ndarray, "game move"]) -> Int[Tensor, "game readable"]:
        """The games as a tensor, without the last move of full games, after which there is nothing to predict."""
        most = n_moves(self.size)
        if not 0 < tokens.shape[1] <= most or tokens.min() < 0 or tokens.max() > most:
            raise ValueError(
                f"got games of {tokens.shape[1]} moves with tokens {tokens.min()} to {tokens.max()}; this player knows "
                f"{self.size} × {self.size} squares: 1 to {most} moves, tokens 0 to {most}"
            )
        return torch.from_numpy(tokens[:, : most - 1])


class Legality(NamedTuple):
    """How legal a player's predictions are, one number a game, for intervals over games."""

    likeliest: Float[np.ndarray, " game"]
    """Share of positions at which the likeliest square is legal."""
    mass: Float[np.ndarray, " game"]
    """Mean probability of all legal squares together."""


def load(name: str | Path = DEFAULT) -> ModelPlayer:
    """Load a player.

    Args:
        name: a shipped one ("6x6"); "othello-gpt", the published 8 × 8 model, from the hub; or a folder that holds
            either `config.json` and `model.safetensors`, as `data/othello/train.py` writes them, or the published
            model's file.
    Raises:
        ValueError: no such player, hub out of reach, or weights that do not fit.
    """
    if name == PUBLISHED:
        return _published(_from_hub())
    folder = SHIPPED / name if (SHIPPED / name / "config.json").exists() else Path(name).expanduser()
    if (folder / PUBLISHED_AT[1]).exists():
        return _published(folder / PUBLISHED_AT[1])
    if not (folder / "config.json").exists() or not (folder / "model.safetensors").exists():
        shipped = ", ".join(sorted(path.parent.name for path in SHIPPED.glob("*/config.json"))) or "none"
        raise ValueError(
            f"no player {str(name)!r}: expected a shipped one ({shipped}), {PUBLISHED!r}, or a folder with config.json "
            f"and model.safetensors, or with {PUBLISHED_AT[1]}"
        )
    return _own(folder)


def on_squares(logits: Float[Tensor, "game move d_vocab"], size: int) -> Float[Tensor, "game move square"]:
    """Logits of tokens put on their squares; the four in the middle, which no token stands for, get minus infinity."""
    squares = logits.new_full((*logits.shape[:2], n_moves(size) + 4), -torch.inf)
    squares[:, :, playable(size)] = logits[:, :, 1:]
    return squares


def legality(player: Player, games: Replay) -> Legality:
    """How legal the predictions are at all positions after which the game goes on.

    Raises:
        ValueError: games on another board.
    """
    check_size(player, games.size)
    probabilities = player.logits(games.tokens).softmax(-1).numpy()
    n_positions = probabilities.shape[1]
    legal, is_open = games.legal[:, :n_positions], games.open()[:, :n_positions]
    likeliest = np.take_along_axis(legal, probabilities.argmax(-1)[..., None], axis=-1)[..., 0]
    return Legality(_mean_where(likeliest, is_open), _mean_where((probabilities * legal).sum(-1), is_open))


def check_size(player: Player, size: int) -> None:
    """Refuse games on another board.

    Raises:
        ValueError: the sizes differ.
    """
    if player.size != size:
        raise ValueError(
            f"the games are on {size} × {size} squares, the player knows {player.size} × {player.size}; "
            f"play games with size={player.size}"
        )


def _at_layers(edits: Mapping[int, Edit] | None) -> dict[str, Edit]:
    return {hook_name("resid_post", layer): edit for layer, edit in (edits or {}).items()}


def _mean_where(values: np.ndarray, where: np.ndarray) -> Float[np.ndarray, " game"]:
    return (values * where).sum(1) / where.sum(1)


# --- files ---


def _own(folder: Path) -> ModelPlayer:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = json.loads((folder / "config.json").read_text())
        size = _size_of(config["vocab_size"])
        plain = plain_model(size, n_layers=config["n_layer"], d_model=config["n_embd"], n_heads=config["n_head"])
        weights = load_file(folder / "model.safetensors")
        plain.load_state_dict({key: weight.float() for key, weight in weights.items()})
    except (KeyError, RuntimeError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"the player in {folder} is damaged ({error}); train it again, or copy it again") from error
    card = folder / "card.json"
    return _player(plain, size, folder.name, json.loads(card.read_text()) if card.exists() else {})


def _player(plain: "GPT2LMHeadModel", size: int, name: str, card: dict) -> ModelPlayer:
    plain.config._attn_implementation = "eager"  # the bridge's hooks look into the attention
    return ModelPlayer(bridge(plain.eval(), None, f"Othello-GPT {name}"), size, card)


def _size_of(d_vocab: int) -> int:
    """The board's side from the number of tokens.

    Raises:
        ValueError: no board has so many squares.
    """
    for size in SIZES:
        if n_moves(size) + 1 == d_vocab:
            return size
    raise ValueError(f"{d_vocab} tokens belong to no board; expected one of {[n_moves(size) + 1 for size in SIZES]}")


def _from_hub() -> Path:
    from huggingface_hub import hf_hub_download, model_info

    repository, file = PUBLISHED_AT
    offline = None
    try:
        model_info(repository, timeout=10)  # answers at once, where a download would go on trying for half a minute
    except Exception as error:  # noqa: BLE001 - a connection fails in the words of whichever library the client uses
        offline = error
    try:
        return Path(hf_hub_download(repository, file, local_files_only=offline is not None))
    except OSError as error:
        raise ValueError(
            f"the hub is out of reach and {repository}/{file} is not on this machine ({offline or error}). Connect "
            f"once, give a folder that holds {file}, or load the shipped player {DEFAULT!r}"
        ) from error


def _published(path: Path) -> ModelPlayer:
    """A player from a state dict in TransformerLens's layout with normalisation folded in."""
    from pickle import UnpicklingError

    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)  # tensors only: nothing in it can run
        size = _size_of(len(weights["embed.W_E"]))
        n_layers = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))
        n_heads, d_model, _ = weights["blocks.0.attn.W_Q"].shape
        plain = plain_model(size, n_layers=n_layers, d_model=d_model, n_heads=n_heads)
        plain.load_state_dict(_as_gpt2(weights, n_layers, d_model))
    except (KeyError, RuntimeError, ValueError, UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} does not hold the published player's weights ({error}); fetch it again") from error
    return _player(plain, size, path.stem, {})


def _as_gpt2(weights: Mapping[str, Tensor], n_layers: int, d_model: int) -> dict[str, Tensor]:
    one, zero = torch.ones(d_model), torch.zeros(d_model)
    state = {
        "transformer.wte.weight": weights["embed.W_E"],
        "transformer.wpe.weight": weights["pos_embed.W_pos"],
        "transformer.ln_f.weight": one,
        "transformer.ln_f.bias": _bias_before(weights["unembed.W_U"], weights["unembed.b_U"]),
        "lm_head.weight": weights["unembed.W_U"].T,
    }
    for layer in range(n_layers):
        ours, theirs = f"transformer.h.{layer}.", f"blocks.{layer}."
        attention = {key: weights[f"{theirs}attn.{key}"] for key in ("W_Q", "W_K", "W_V", "b_Q", "b_K", "b_V", "W_O")}
        state |= {f"{ours}ln_{n}.weight": one for n in (1, 2)} | {f"{ours}ln_{n}.bias": zero for n in (1, 2)}
        state |= {
            f"{ours}attn.c_attn.weight": torch.cat(
                [attention[key].permute(1, 0, 2).flatten(1) for key in ("W_Q", "W_K", "W_V")], dim=1
            ),
            f"{ours}attn.c_attn.bias": torch.cat([attention[key].flatten() for key in ("b_Q", "b_K", "b_V")]),
            f"{ours}attn.c_proj.weight": attention["W_O"].flatten(0, 1),
            f"{ours}attn.c_proj.bias": weights[f"{theirs}attn.b_O"],
            f"{ours}mlp.c_fc.weight": weights[f"{theirs}mlp.W_in"],
            f"{ours}mlp.c_fc.bias": weights[f"{theirs}mlp.b_in"],
            f"{ours}mlp.c_proj.weight": weights[f"{theirs}mlp.W_out"],
            f"{ours}mlp.c_proj.bias": weights[f"{theirs}mlp.b_out"],
        }
    return {key: weight.contiguous() for key, weight in state.items()}


def _bias_before(W_U: Float[Tensor, "d_model d_vocab"], b_U: Float[Tensor, " d_vocab"]) -> Float[Tensor, " d_model"]:
    """The bias that does before the unembedding what `b_U` does after it: GPT-2 has none there.

    Raises:
        ValueError: there is no such bias.
    """
    bias = torch.linalg.lstsq(W_U.T.double(), b_U[:, None].double(), driver="gelsd").solution[:, 0].float()
    if not torch.allclose(bias @ W_U, b_U, atol=1e-4):
        raise ValueError(
            "the unembedding's bias cannot be moved before it; this model has fewer dimensions than tokens"
        )
    return bias
