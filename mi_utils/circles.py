"""Things in a cycle, such as weekdays, whose states lie on a circle: the bound on "a concept is a direction".

No single line orders a cycle. `fit` finds the plane of a set of states and says how well its order is the cycle's;
`swap_gain` moves states within a plane, or along a line, and asks the model what comes next.

Paper: Engels et al. 2024, "Not All Language Model Features Are Linear", arXiv:2405.14860. Taught in `05_steering`.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mi_utils.concepts import token_ids
from mi_utils.hooks import intervene, run_with_cache

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Circle(NamedTuple):
    """The plane that holds most of a set of states, in the order of their cycle."""

    plane: Float[Tensor, "2 d_model"]
    """Two orthonormal directions."""
    points: Float[Tensor, "item 2"]
    """Each state in the plane, the mean at the origin."""
    share: float
    """Of the states' variance that the plane holds."""
    neighbours: float
    """Share of the items whose next one around the circle is next in the cycle, in the better sense of rotation."""


def fit(states: Float[Tensor, "item d_model"]) -> Circle:
    """The first two principal components of one state per item.

    Raises:
        ValueError: fewer than four states: any three lie in order on a circle.
    """
    if len(states) < 4:
        raise ValueError(f"expected at least four states, got {len(states)}: three are always in order on a circle")
    centred = states - states.mean(0)
    _, singular, Vh = torch.linalg.svd(centred, full_matrices=False)
    points = centred @ Vh[:2].T
    share = float((singular[:2] ** 2).sum() / (singular**2).sum())
    return Circle(Vh[:2], points, share, neighbours_in_order(points))


def neighbours_in_order(points: Float[Tensor, "item 2"]) -> float:
    """Share of items followed, around the origin, by the next item of the cycle; the better of both senses."""
    order = torch.atan2(points[:, 1], points[:, 0]).argsort()
    steps = (order.roll(-1) - order) % len(order)
    return float(torch.stack([(steps == 1).float().mean(), (steps == len(order) - 1).float().mean()]).max())


class Cycle:
    """A prompt with a place for the items of a cycle, after which the model should say the next one.

    Args:
        template: with `{x}` where an item goes; what the model says next is its successor.
    Raises:
        ValueError: an item that is not one token, or prompts in which it does not stand at the same position.
    """

    def __init__(self, model: "TransformerBridge", template: str, items: Sequence[str], hook_name: str) -> None:
        self.model, self.hook_name = model, hook_name
        self.answers = torch.cat([token_ids([item], model.tokenizer) for item in items])
        self.tokens = torch.cat([model.to_tokens(template.replace("{x}", item), prepend_bos=True) for item in items])
        places = {int((row == answer).nonzero()[-1]) for row, answer in zip(self.tokens, self.answers, strict=True)}
        if len(places) != 1:
            raise ValueError(f"the items stand at positions {sorted(places)}; give a template that has one place")
        self.position = places.pop()
        with torch.no_grad():
            self.states = run_with_cache(model, self.tokens, [hook_name])[hook_name][:, self.position]
            self.at_rest = self._logits()

    def swap_gain(self, basis: Float[Tensor, "direction d_model"] | None) -> Float[Tensor, "shift item"]:
        """Gain in log-odds of the new item's successor against the old one's, when each state is moved to each other.

        Only what lies along the orthonormal `basis` moves; the whole state where there is none.
        """
        n = len(self.answers)
        return torch.stack([self._moved(shift, basis) for shift in range(1, n)])

    @torch.no_grad()
    def _moved(self, shift: int, basis: Tensor | None) -> Float[Tensor, " item"]:
        change = self.states.roll(-shift, 0) - self.states
        change = change if basis is None else change @ basis.T @ basis

        def edit(activation: Float[Tensor, "item pos d_model"]) -> Float[Tensor, "item pos d_model"]:
            activation = activation.clone()
            activation[:, self.position] += change
            return activation

        with intervene(self.model, {self.hook_name: edit}):
            gained = self._logits() - self.at_rest
        item, n = torch.arange(len(self.answers)), len(self.answers)
        return gained[item, (item + shift + 1) % n] - gained[item, (item + 1) % n]

    def _logits(self) -> Float[Tensor, "item answer"]:
        return self.model(self.tokens, logits_to_keep=1)[:, -1][:, self.answers]
