"""A planted player: its state holds the board along known directions, and its moves come from reading them.

Nothing is learned here. Probes must find the board, and changing the board in the state must change the moves to those
of the changed board. A second version holds the same board and does not use it: it moves by the true one. There
probes find just as much, and every edit must fail.

Taught in `11_othello`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.hooks import Edit
from mi_utils.othello_games import legal_moves, n_moves, replay

CERTAIN = 10.0  # logit of a legal square over an illegal one


@dataclass(frozen=True)
class PlantedPlayer:
    """A player of one layer, numbered 0, whose state is known."""

    size: int
    directions: Float[Tensor, "square 2 d_model"]
    """For each square the vector of a disc of mine, and of a disc of yours."""
    noise: float
    """Standard deviation of what is added to each dimension."""
    is_used: bool
    """Whether moves come from the board in the state; from the true board if not."""
    n_layers: int = 1

    def states(
        self,
        tokens: Int[np.ndarray, "game move"],
        layers: Sequence[int] = (0,),
        edits: Mapping[int, Edit] | None = None,
    ) -> dict[int, Float[Tensor, "game readable d_model"]]:
        """The state after the only layer and the edits there.

        Raises:
            ValueError: illegal games, or another layer.
        """
        edits = edits or {}
        if {*layers, *edits} - {0}:
            raise ValueError(f"a planted player has layer 0 only, got {sorted({*layers, *edits})}")
        boards = torch.from_numpy(replay(tokens, self.size).relative()[:, : n_moves(self.size) - 1])
        discs = torch.stack([boards == 1, boards == -1], dim=-1).float()
        clean = torch.einsum("gmsc,scd->gmd", discs, self.directions)
        generator = torch.Generator().manual_seed(int(tokens.sum()))
        state = clean + self.noise * torch.randn(clean.shape, generator=generator)
        return {0: edits[0](state) if edits else state}

    def logits(
        self, tokens: Int[np.ndarray, "game move"], edits: Mapping[int, Edit] | None = None
    ) -> Float[Tensor, "game readable square"]:
        """High where the board in the state, or the true one, allows a move; edits act on the state.

        Raises:
            ValueError: illegal games, or an edit at another layer.
        """
        state = self.states(tokens, edits=edits)[0]
        boards = self.board_in(state) if self.is_used else replay(tokens, self.size).relative()[:, : state.shape[1]]
        legal = legal_moves(boards.reshape(-1, self.size**2), self.size).reshape(boards.shape)
        return CERTAIN * torch.from_numpy(legal).float()

    def board_in(self, state: Float[Tensor, "game move d_model"]) -> np.ndarray:
        """The board that a state holds: least squares in the known directions, more than half counts as there."""
        coefficients = state @ torch.linalg.pinv(self.directions.flatten(0, 1))
        mine, yours = coefficients.unflatten(-1, (-1, 2)).unbind(-1)
        boards = torch.where(mine > yours, 1, -1) * (torch.maximum(mine, yours) > 0.5)
        return boards.numpy().astype(np.int8)


def planted_player(
    size: int = 6, d_model: int = 128, *, noise: float = 0.05, is_used: bool = True, seed: int = 0
) -> PlantedPlayer:
    """Random unit directions, two for each square.

    Raises:
        ValueError: fewer dimensions than directions, so that the board could not be read back.
    """
    if d_model < 2 * size**2:
        raise ValueError(f"{2 * size**2} directions need as many dimensions, got d_model {d_model}")
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(size**2, 2, d_model, generator=generator)
    return PlantedPlayer(size, torch.nn.functional.normalize(directions, dim=-1), noise, is_used)
