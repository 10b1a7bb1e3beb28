"""A board to play on, with what a player believes beside it: change the belief by a click and watch its moves change.

On the left the true board; a click on a marked square plays there. In the middle what a probe reads off the player's
last edited layer; a click on a disc turns it in the player's mind, a second click takes it away, a third puts it back.
On the right the player's moves: the darker, the likelier, with rings where the believed board allows a move. Below,
what every layer believes.

Taught in `11_othello`.
"""

from collections.abc import Mapping

import ipywidgets
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from mi_utils.hooks import Edit
from mi_utils.markup import Node, element
from mi_utils.othello_editing import errors
from mi_utils.othello_games import PAD, check_board, legal_moves, n_moves, play_random, playable, replay, square_name
from mi_utils.othello_model import Player
from mi_utils.othello_probes import EMPTY, MINE, YOURS, BoardProbe
from mi_utils.widgets import Stack, TreeView, beside

TRUE, BELIEVED = "play", "change"
NEXT = {MINE: YOURS, YOURS: MINE}
AS_SEEN = np.array([0, 1, -1], dtype=np.int8)  # classes as a board that the side to move sees
DISCS = {1: "mi-black", -1: "mi-white"}


def othello_board(
    player: Player,
    probes: Mapping[int, BoardProbe],
    lengths: Mapping[int, float],
    *,
    dose: float = 0.3,
    layers: tuple[int, int] | None = None,
    n_played: int = 8,
    seed: int = 0,
) -> Stack:
    """The board, the belief and the moves.

    Args:
        probes: linear ones for mine and yours, one for each layer.
        lengths: what a dose of 1 is, by layer, as `othello_editing.typical_lengths` gives it.
        dose: to begin with.
        layers: first and last layer after which the belief is pushed; the first half of the layers if None.
        n_played: moves of a random game that are played to begin with.
    Raises:
        ValueError: a layer without a probe, or one that the player does not have.
    """
    expected = set(range(player.n_layers))
    if set(probes) != expected or set(lengths) != expected:
        raise ValueError(
            f"expected a probe and a length for each of the layers {sorted(expected)}, got {sorted(probes)}"
        )
    layers = layers or (0, max(0, player.n_layers // 2 - 1))
    if not 0 <= layers[0] <= layers[1] < player.n_layers:
        raise ValueError(f"layers {layers} are not first and last of 0 to {player.n_layers - 1}")
    return _Board(player, probes, lengths, dose, layers, n_played, seed).stack


class _Board:
    """The game so far, the changes to the belief, and the views of both."""

    def __init__(
        self,
        player: Player,
        probes: Mapping[int, BoardProbe],
        lengths: Mapping[int, float],
        dose: float,
        layers: tuple[int, int],
        n_played: int,
        seed: int,
    ) -> None:
        self.player, self.probes, self.lengths, self.seed = player, probes, lengths, seed
        self.game = play_random(1, player.size, seed)[0]
        self.n_played = n_played
        self.changed: dict[int, int] = {}
        wide = {"continuous_update": True, "layout": ipywidgets.Layout(width="380px")}
        self.dose = ipywidgets.FloatSlider(
            value=dose, min=0, max=1.5, step=0.05, description="dose", readout_format=".2f", **wide
        )
        self.layers = ipywidgets.IntRangeSlider(
            value=layers, min=0, max=max(1, player.n_layers - 1), description="after layers", **wide
        )
        self.back = ipywidgets.Button(description="◀ one move back", tooltip="take the last move back")
        self.forward = ipywidgets.Button(description="a random move ▶", tooltip="play a random legal move")
        self.new = ipywidgets.Button(description="new game", tooltip="another random game")
        self.reset = ipywidgets.Button(description="undo all changes", tooltip="believe the true board again")
        self.view = TreeView()
        self.back.on_click(lambda _: self.step(-1))
        self.forward.on_click(lambda _: self.step(1))
        self.new.on_click(lambda _: self.begin())
        self.reset.on_click(lambda _: self.restore())
        self.dose.observe(lambda _: self.show(), "value")
        self.layers.observe(lambda _: self.show(), "value")
        self.view.on_click(self.clicked)
        self.stack = Stack(
            [
                beside(self.back, self.forward, self.new),
                self.view,
                beside(self.dose, self.layers, self.reset),
            ]
        )
        self.show()

    def clicked(self, data: dict) -> None:
        """A square of the true board plays there; one of the believed board changes the belief."""
        kind, _, square = str(data.get("row", "")).partition(" ")
        if kind == TRUE:
            self.play(int(square))
        elif kind == BELIEVED:
            self.change(int(square))

    def step(self, by: int) -> None:
        """Take a move back, or play the next one of the game."""
        wanted = self.n_played + by
        if 1 <= wanted < min((self.game != PAD).sum() + 1, n_moves(self.player.size)):
            self.n_played = wanted
            self.restore()

    def begin(self) -> None:
        """Another random game, as far along as this one."""
        self.seed += 1
        self.game = play_random(1, self.player.size, self.seed)[0]
        self.restore()

    def play(self, square: int) -> None:
        """Play on a square; what came after in the game is another random continuation, and may be played with ▶.

        Raises:
            ValueError: the move is illegal.
        """
        played = np.append(self.game[: self.n_played], np.flatnonzero(playable(self.player.size) == square) + 1)
        self.game = play_random(1, self.player.size, self.seed, opening=played)[0]
        self.n_played += 1
        self.restore()

    def restore(self) -> None:
        """No changes to the belief."""
        self.changed = {}
        self.show()

    def change(self, square: int) -> None:
        """Turn the disc, take it away, put it back: one further with each click.

        Raises:
            ValueError: there is no disc, or no game leads to the changed board; the belief stays as it was.
        """
        classes = self.truth()
        now = int(classes[square])
        if now == EMPTY:
            name = square_name(square, self.player.size)
            raise ValueError(
                f"{name} is empty on the true board: there is no disc to turn or to take away; click on another"
            )
        order = [now, NEXT[now], EMPTY]
        wanted = order[(order.index(self.changed.get(square, now)) + 1) % 3]
        kept = {other: to for other, to in self.changed.items() if other != square}
        changed = kept if wanted == now else {**kept, square: wanted}
        check_board(AS_SEEN[_with(classes, changed)], self.player.size)
        self.changed = changed
        self.show()

    def truth(self) -> Int[np.ndarray, " square"]:
        """Classes of the true board for the side to move."""
        games = replay(self.game[None, : self.n_played], self.player.size)
        return games.relative()[0, -1] % 3 + 0

    def edits(self, classes: Int[np.ndarray, " square"]) -> dict[int, Edit]:
        """What carries out the changes: at the last position, after each of the chosen layers."""
        if not self.changed or not self.dose.value:
            return {}
        first, last = self.layers.value
        return {
            layer: _added(self.vector(layer, classes)) for layer in range(first, min(last, len(self.probes) - 1) + 1)
        }

    def vector(self, layer: int, classes: Int[np.ndarray, " square"]) -> Float[Tensor, " d_model"]:
        """The sum of all changes at one layer, in units of the activation."""
        steps = [self.probes[layer].direction(square, int(classes[square]), to) for square, to in self.changed.items()]
        return self.dose.value * self.lengths[layer] * torch.stack(steps).sum(0)

    def show(self) -> None:
        """Compute and draw."""
        tokens, size = self.game[None, : self.n_played], self.player.size
        games = replay(tokens, size)
        if not games.open()[0, -1]:
            self.view.message = "The game is over: take a move back, or begin a new one."
            return
        self.view.message = ""
        classes, to_move = self.truth(), int(games.to_move[0, -1])
        edits = self.edits(classes)
        states = self.player.states(tokens, range(self.player.n_layers), edits)
        beliefs = {layer: self.probes[layer].predict(state[0, -1]) for layer, state in states.items()}
        logits = self.player.logits(tokens, edits)[0, -1]
        wanted = _with(classes, self.changed)
        legal = legal_moves(AS_SEEN[wanted][None], size)[0]
        self.view.tree = board_tree(
            size,
            to_move,
            classes,
            wanted,
            beliefs,
            logits,
            games.legal[0, -1],
            legal,
            self.layers.value[1],
            self.changed,
        )


def board_tree(
    size: int,
    to_move: int,
    classes: Int[np.ndarray, " square"],
    wanted: Int[np.ndarray, " square"],
    beliefs: Mapping[int, Int[np.ndarray, " square"]],
    logits: Float[Tensor, " square"],
    legal_before: Bool[np.ndarray, " square"],
    legal: Bool[np.ndarray, " square"],
    shown_layer: int,
    changed: Mapping[int, int],
) -> Node:
    """Three boards side by side and a small one for each layer.

    Args:
        to_move: 1 black, -1 white; classes are as that side sees them.
        shown_layer: the one whose belief stands in the middle.
    """
    side = "black" if to_move == 1 else "white"
    probabilities = logits.softmax(-1).numpy()
    true, asked = (AS_SEEN[board] * to_move for board in (classes, wanted))
    seen = AS_SEEN[beliefs[min(shown_layer, len(beliefs) - 1)]] * to_move
    lasting = [
        element(
            "div",
            "mi-section",
            element("small", "", f"layer {layer}: {int((belief != wanted).sum())} wrong"),
            _board(size, AS_SEEN[belief] * to_move, wrong=belief != wanted, small=True),
        )
        for layer, belief in beliefs.items()
    ]
    return element(
        "div",
        "",
        element(
            "div",
            "mi-boards",
            _titled(
                f"True board, {side} to move",
                "Click a dotted square to play there.",
                _board(size, true, dots=legal_before, click=TRUE),
            ),
            _titled(
                "What the player believes",
                "Click a disc: it turns, then goes, then comes back." if not changed else _asked(size, changed, asked),
                _board(
                    size,
                    seen,
                    wrong=beliefs[min(shown_layer, len(beliefs) - 1)] != wanted,
                    marked=changed,
                    click=BELIEVED,
                ),
            ),
            _titled(
                "Where it would move",
                _scored(logits, legal_before, legal, bool(changed)),
                _board(size, np.zeros_like(true), shades=probabilities, rings=legal),
            ),
        ),
        element("h4", "", "What each layer believes (crosses: other than the board it should believe in)"),
        element("div", "mi-boards", lasting),
    )


def _asked(size: int, changed: Mapping[int, int], asked: Int8[np.ndarray, " square"]) -> str:
    words = {0: "gone", 1: "black", -1: "white"}
    return "It should believe: " + ", ".join(f"{square_name(s, size)} {words[int(asked[s])]}" for s in changed)


def _scored(
    logits: Float[Tensor, " square"],
    before: Bool[np.ndarray, " square"],
    legal: Bool[np.ndarray, " square"],
    edited: bool,
) -> str:
    """Errors of the N likeliest squares, on the true board and on the one it should believe in."""
    if not legal.any():
        return "That board allows no move."
    wrong = [int(errors(logits[None], board[None])[0]) for board in (before, legal)]
    told = f"{wrong[1]} on that board, {wrong[0]} on the true one" if edited else str(wrong[1])
    return f"In per cent. Rings: allowed on the board it should believe in. Wrong squares: {told}."


def _titled(title: str, note: str, board: Node) -> Node:
    return element("div", "mi-section", element("h4", "", title), element("p", "mi-note", note), board)


def _board(
    size: int,
    discs: Int8[np.ndarray, " square"],
    *,
    dots: Bool[np.ndarray, " square"] | None = None,
    rings: Bool[np.ndarray, " square"] | None = None,
    shades: Float[np.ndarray, " square"] | None = None,
    wrong: Bool[np.ndarray, " square"] | None = None,
    marked: Mapping[int, int] | None = None,
    click: str = "",
    small: bool = False,
) -> Node:
    """A table of squares: discs, dots where one may play, rings, shades of probability, crosses."""

    def cell(square: int) -> Node:
        disc, name = int(discs[square]), square_name(square, size)
        inside, says = None, {1: "black", -1: "white", 0: "empty"}[disc]
        if disc:
            inside = element("span", f"mi-disc {DISCS[disc]}", "×" if wrong is not None and wrong[square] else "")
        elif wrong is not None and wrong[square]:
            inside = element("span", "mi-cross", "×")
        elif shades is not None and shades[square] >= 0.01:
            inside, says = f"{100 * shades[square]:.0f}", f"{shades[square]:.0%}"
        elif dots is not None and dots[square]:
            inside, says = element("span", "mi-dot", ""), "you may play here"
        look = "mi-tile" + " mi-ring" * bool(rings is not None and rings[square])
        attributes = {"class": look + " mi-changed" * bool(marked and square in marked)}
        if click == BELIEVED or (click == TRUE and dots is not None and dots[square]):
            attributes |= {"data-row": f"{click} {square}", "aria-label": f"{name}: {says}"}
        if shades is not None:
            attributes |= {"style": f"background:rgba(0,114,178,{min(1.0, 2 * float(shades[square])):.2f})"}
        return element("td", {**attributes, "title": f"{name}: {says}"}, inside)

    def row(number: int) -> Node:
        label = None if small else element("th", "", str(number + 1))
        return element("tr", "", label, [cell(number * size + column) for column in range(size)])

    head = (
        None if small else element("tr", "", element("th", "", ""), [element("th", "", c) for c in "abcdefgh"[:size]])
    )
    return element("table", "mi-board" + " mi-small" * small, head, [row(number) for number in range(size)])


def _with(classes: Int[np.ndarray, " square"], changed: Mapping[int, int]) -> Int[np.ndarray, " square"]:
    edited = classes.copy()
    for square, to in changed.items():
        edited[square] = to
    return edited


def _added(vector: Float[Tensor, " d_model"]) -> Edit:
    """An edit that adds a vector at the last position."""

    def edit(state: Float[Tensor, "game move d_model"]) -> Float[Tensor, "game move d_model"]:
        edited = state.clone()
        edited[:, -1] += vector
        return edited

    return edit
