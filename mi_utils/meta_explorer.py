"""What a latent is made of: its atoms, the latents that share them, and how convincing noise looks in their place.

An atom is a direction that decoder rows are taken apart into: a meta-latent of a meta-SAE, or in its random twin a
direction drawn at random. Every panel can be drawn from either, and one click changes from one to the other.

Read: Bussmann et al. (2024), Showing SAE latents are not atomic using meta-SAEs. Taught in `03_meta_saes`
and `04_dictionaries_in_dictionaries`.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import ipywidgets
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from mi_utils.cards import Card, fact
from mi_utils.corpus import token_texts
from mi_utils.explorers import typical
from mi_utils.indexing import N_LISTED, RANDOM_DIRECTIONS
from mi_utils.latents import LatentIndex
from mi_utils.markup import Node, element, to_fragment, visible
from mi_utils.meta import READINGS, Decomposition, reading
from mi_utils.models import unembedding
from mi_utils.sae import Dictionary
from mi_utils.widgets import Stack, TreeView, beside

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

N_MEMBERS = 12
N_NEAREST = 8
N_HINTS = 3  # heaviest members that hint at what an atom is


def meta_explorer(
    model: "TransformerBridge",
    index: LatentIndex,
    decompositions: Mapping[str, Decomposition],
    small: tuple[LatentIndex, Dictionary] | None = None,
    *,
    latent: int | None = None,
) -> Stack:
    """Pick a latent, see its atoms; pick an atom, see the latents that use it; change to the random twin and compare.

    Args:
        decompositions: of the rows of the indexed dictionary, by name. The first is shown first.
        small: a smaller dictionary with its index, in which to look for latents near each atom.
        latent: shown first; by default that of median density.
    Raises:
        ValueError: no decomposition, or one of other rows than the index's; a `small` that does not fit.
    """
    W_U = unembedding(model).float().cpu()
    _check_decompositions(index, decompositions, len(W_U))
    if small is not None:
        _check_small(*small, d_in=len(W_U))
    latent = typical(index) if latent is None else index.check(latent)
    return _Explorer(index, decompositions, W_U, small, latent).stack


def _check_decompositions(index: LatentIndex, decompositions: Mapping[str, Decomposition], d_in: int) -> None:
    if not decompositions:
        raise ValueError('got no decomposition; give one or more by name, {"meta-SAE": meta.decompose(...)}')
    for name, decomposition in decompositions.items():
        if decomposition.rows.shape != (index.d_sae, d_in):
            raise ValueError(
                f"decomposition {name!r} is of {' x '.join(map(str, decomposition.rows.shape))} rows; the index and "
                f"the model have {index.d_sae} x {d_in}: decompose all rows of the indexed dictionary, in their order"
            )


def _check_small(index: LatentIndex, dictionary: Dictionary, d_in: int) -> None:
    if dictionary.W_dec.shape != (index.d_sae, d_in):
        raise ValueError(
            f"the small dictionary has rows of {' x '.join(map(str, dictionary.W_dec.shape))}; its index and the model "
            f"have {index.d_sae} x {d_in}: give a dictionary of the same model and the index that was made of it"
        )


class _ExplorerStack(Stack):
    """The explorer's views. A page without a kernel has no switch, so there the other decompositions are folded in."""

    def __init__(self, children: list, explorer: "_Explorer") -> None:
        super().__init__(children)
        self._explorer = explorer

    def static_html(self) -> str:
        """What is shown now, and the same latent by every other decomposition."""
        return super().static_html() + "".join(to_fragment(tree) for tree in self._explorer.other_trees())


class _Explorer:
    """What is chosen, and the views that show it. Each dictionary has views of its own: their numbers differ."""

    def __init__(
        self,
        index: LatentIndex,
        decompositions: Mapping[str, Decomposition],
        W_U: Float[Tensor, "d_in d_vocab"],
        small: tuple[LatentIndex, Dictionary] | None,
        latent: int,
    ) -> None:
        self.index, self.decompositions, self.W_U, self.small = index, dict(decompositions), W_U, small
        for decomposition in self.decompositions.values():
            _ = decomposition.members, decomposition.cosine  # kept from here on, so that no click waits for them
        self.atom: int | None = None
        self.near: int | None = None
        self.number = ipywidgets.Text(str(latent), description="latent", continuous_update=False)
        self.choice = ipywidgets.ToggleButtons(options=list(decompositions), style={"button_width": "auto"})
        self.sum_view, self.atom_view, self.near_view, self.card_view = (TreeView() for _ in range(4))
        self.number.observe(self._read_number, "value")
        self.choice.observe(self._switch, "value")
        for view in (self.sum_view, self.atom_view):
            view.on_click(self._click)
        self.card_view.on_click(self._click_card)
        self.near_view.on_click(self._click_near)
        self.show_latent(latent)
        controls = beside(self.number, self.choice)
        views = [self.sum_view, self.card_view, self.atom_view, *([self.near_view] if small else [])]
        self.stack = _ExplorerStack([controls, *views], self)

    @property
    def decomposition(self) -> Decomposition:
        return self.decompositions[self.choice.value]

    def other_trees(self) -> list[Node]:
        """The chosen latent and its heaviest atom by each decomposition that is not shown, folded."""
        trees = []
        for name, decomposition in self.decompositions.items():
            heaviest = next(iter(decomposition.parts(self.latent)), None)
            if name != self.choice.value and heaviest is not None:
                parts = latent_tree(self.index, name, decomposition, self.latent, heaviest)
                atom = atom_tree(self.index, name, decomposition, heaviest, self.W_U, self.latent)
                trees.append(element("details", "", element("summary", "", f"the same by {name}"), parts, atom))
        return trees

    def show_latent(self, latent: int, *, with_card: bool = False) -> None:
        """Show a latent; the chosen atom stays chosen if the latent has it."""
        summary = element("summary", "", f"card of latent {latent}: activations, examples, neighbours")
        unfolded = {"open": ""} if with_card else {}
        self.card_view.tree = element("details", unfolded, summary, self.index.card(latent).tree())
        self.latent = latent
        self.show_atom(self.atom if self.atom in self.decomposition.parts(latent) else self._heaviest())

    def _heaviest(self) -> int | None:
        return next(iter(self.decomposition.parts(self.latent)), None)

    def show_atom(self, atom: int | None) -> None:
        """Show an atom of the chosen decomposition, or that there is none."""
        if atom != self.atom:
            self.atom, self.near = atom, None
        name, decomposition = self.choice.value, self.decomposition
        self.number.value, self.sum_view.message = str(self.latent), ""
        self.sum_view.tree = latent_tree(self.index, name, decomposition, self.latent, atom)
        if atom is None:
            self.atom_view.tree = element("p", "mi-note", "No atom fits this latent: its sum is the centre alone.")
        else:
            self.atom_view.tree = atom_tree(self.index, name, decomposition, atom, self.W_U, self.latent)
        self.show_near(self.near)

    def show_near(self, near: int | None) -> None:
        """Show a latent of the small dictionary, or none."""
        self.near = near
        if self.small and self.atom is not None:
            self.near_view.tree = near_tree(*self.small, self.choice.value, self.decomposition, self.atom, near)
        else:
            self.near_view.tree = ""

    def _read_number(self, change: dict) -> None:
        text = change["new"].strip()
        if text == str(self.latent):
            self.sum_view.message = ""
            return
        try:
            if not text.isdecimal():
                raise ValueError(f"{text!r} is no number of a latent; write one from 0 to {self.index.d_sae - 1}")
            self.show_latent(self.index.check(int(text)))
        except ValueError as error:
            self.sum_view.message = str(error)

    def _switch(self, _change: dict) -> None:
        self.near = None
        self.show_atom(self._heaviest())

    def _click(self, clicked: dict) -> None:
        if "latent" in clicked:
            self.show_latent(int(clicked["latent"]))
        elif "atom" in clicked:
            self.show_atom(int(clicked["atom"]))

    def _click_card(self, clicked: dict) -> None:
        if "latent" in clicked:
            self.show_latent(int(clicked["latent"]), with_card=True)

    def _click_near(self, clicked: dict) -> None:
        if "latent" in clicked:
            self.show_near(int(clicked["latent"]))
        elif "atom" in clicked:
            self.show_atom(int(clicked["atom"]))


# -------------------------------------------------------------------------------------------------------- drawing
def latent_tree(
    index: LatentIndex, name: str, decomposition: Decomposition, latent: int, chosen: int | None = None
) -> Node:
    """A latent as a sum: a row per atom with its weight and the tokens of the other latents that use it most.

    Args:
        name: of the decomposition.
        chosen: the atom that is marked.
    """
    row, parts = decomposition.rows[latent], decomposition.parts(latent)
    facts = {
        "taken apart by": name,
        "cosine to its sum": f"{decomposition.cosine[latent]:.2f}",
        "its mean over latents": f"{decomposition.cosine.mean():.2f}",
        "cosine to the centre alone": f"{cosine_similarity(row, decomposition.centre, dim=0):.2f}",
    }
    rows = [
        _row(
            "atom",
            atom,
            weight,
            f"{len(decomposition.members[atom]):,}",
            _hints(index, decomposition, atom, latent),
            chosen=atom == chosen,
        )
        for atom, weight in parts.items()
    ]
    return element(
        "div",
        "",
        element("div", "mi-card-head", element("h3", "", f"latent {latent}"), "strongest on ", _meaning(index, latent)),
        element("div", "mi-facts", (fact(*pair) for pair in facts.items())),
        _rows(("atom", "", "weight", "latents", "its heaviest other latents fire on"), rows),
    )


def atom_tree(
    index: LatentIndex,
    name: str,
    decomposition: Decomposition,
    atom: int,
    W_U: Float[Tensor, "d_in d_vocab"],
    latent: int | None = None,
) -> Node:
    """An atom: the latents that use it most, what its direction does to the logits, and the rows nearest to it.

    Args:
        W_U: from `models.unembedding`.
        latent: the member that is marked.
    """
    members = decomposition.members[atom].tolist()
    rows = [
        _row(
            "latent",
            member,
            decomposition.parts(member)[atom],
            f"{100 * index.table.density[member]:.3g}%",
            _meaning(index, member),
            chosen=member == latent,
        )
        for member in members[:N_MEMBERS]
    ]
    heaviest = f"; the heaviest {len(rows)}:" if len(members) > len(rows) else ""
    count = f"{len(members):,} of {index.d_sae:,} latents use it{heaviest}"
    table = _rows(("latent", "", "weight", "density", "strongest on"), rows) if rows else None
    box = element("div", "mi-card", element("h3", "", f"{name}: atom {atom}"), element("p", "", count), table)
    return element(
        "div", "", element("div", "mi-section", box), _direction(index, name, decomposition, atom, W_U).tree()
    )


def _direction(index: LatentIndex, name: str, decomposition: Decomposition, atom: int, W_U: Tensor) -> Card:
    direction = decomposition.atoms[atom]
    effects = direction @ W_U
    return Card(
        f"{name}: direction of atom {atom}",
        promoted=_largest(effects, index.tokenizer),
        suppressed=[(token, -value) for token, value in _largest(-effects, index.tokenizer)],
        effect_of_chance=index.about["random_effect"],
        neighbours=_nearest(direction, decomposition.rows),
        cosine_of_chance=index.about["random_cosine"],
        names=index.labels,
    )


def near_tree(
    index: LatentIndex,
    dictionary: Dictionary,
    name: str,
    decomposition: Decomposition,
    atom: int,
    chosen: int | None = None,
) -> Node:
    """The latents of a smaller dictionary nearest to an atom, and the chosen one: its nearest atoms and its card.

    Args:
        index, dictionary: of the smaller dictionary.
    """
    with torch.no_grad():
        found = index.find_similar(dictionary, decomposition.atoms[atom], N_NEAREST)
    rows = [
        _row("latent", latent, cosine, f"{100 * density:.3g}%", _meaning(index, latent), chosen=latent == chosen)
        for latent, cosine, density in zip(found.index.tolist(), found.cosine, found.density, strict=True)
    ]
    box = element(
        "div",
        "mi-card",
        element("h3", "", f"Smaller dictionary of {index.d_sae:,} latents: nearest to atom {atom}"),
        _chance(index.about["random_cosine"]),
        _rows(("latent", "", "cosine", "density", "strongest on"), rows),
        None if chosen is None else _near_atoms(name, decomposition, dictionary, chosen),
    )
    card = None if chosen is None else replace(index.card(chosen), title=f"latent {chosen} of the smaller dictionary")
    return element("div", "", element("div", "mi-section", box), card and card.tree())


def _near_atoms(name: str, decomposition: Decomposition, dictionary: Dictionary, latent: int) -> list[Node]:
    row = normalize(dictionary.W_dec[latent].detach().float(), dim=0)
    chips = [
        element("span", {"class": "mi-chip", "data-atom": atom, "title": f"show atom {atom}"}, f"{atom} · {cosine:.2f}")
        for atom, cosine in _nearest(row, decomposition.atoms)
    ]
    heading = element("h4", "", f"{name}: atoms nearest to latent {latent} of the smaller dictionary (cosine)")
    return [heading, *chips, _chance(_reach(decomposition.atoms))]


def _rows(titles: tuple[str, ...], rows: list[Node]) -> Node:
    head = element("div", "mi-row mi-row-head", (element("span", "", title) for title in titles))
    return element("div", "mi-parts", head, rows)


def _row(kind: str, number: int, value: float, more: str, text: list[Node], *, chosen: bool) -> Node:
    """A latent or an atom to click: its number, a bar that is full at 1, its value, another one, what it means."""
    return element(
        "div",
        {
            "class": "mi-row mi-chosen" if chosen else "mi-row",
            f"data-{kind}": number,
            "title": f"show {kind} {number}",
        },
        element("span", "mi-id", str(number)),
        element("span", "", element("span", {"class": "mi-bar", "style": f"width:{min(value, 1):.1%}"})),
        element("span", "mi-val", f"{value:.2f}"),
        element("span", "mi-val", more),
        element("span", "mi-name", text),
    )


def _hints(index: LatentIndex, decomposition: Decomposition, atom: int, latent: int) -> list[Node]:
    others = [member for member in decomposition.members[atom][: N_HINTS + 1].tolist() if member != latent]
    return [part for member in others[:N_HINTS] for part in (", ", _token(index, member))][1:] or ["no other latent"]


def _meaning(index: LatentIndex, latent: int) -> list[Node]:
    label = index.labels.get(latent)
    return [_token(index, latent), *([" ", element("b", "", visible(label))] if label else [])]


def _token(index: LatentIndex, latent: int) -> Node:
    token = index.strongest_token(latent)
    return element("span", "mi-id", f"“{visible(token)}”") if token else element("small", "", "nothing")


def _chance(cosine: float) -> Node:
    return element("p", "mi-note", f"a random direction reaches {cosine:.2f}")


# -------------------------------------------------------------------------------------------------------- verdict
def reading_explorer(curves: pd.DataFrame, meta: str, regression: str, floor: str, *, k: int = 4) -> Stack:
    """Choose the number of atoms and what difference counts; see which reading of the debate the numbers support.

    Args:
        curves: explained variance, a row per number of atoms, a column per set of atoms.
        meta, regression, floor: the columns to read.
        k: shown first.
    Raises:
        ValueError: a column or `k` that the curves do not have.
    """
    if missing := [name for name in (meta, regression, floor) if name not in curves]:
        raise ValueError(f"the curves have no column {missing}; they have {list(curves.columns)}")
    if k not in curves.index:
        raise ValueError(f"the curves do not reach k {k}; they have {list(curves.index)}")
    atoms = ipywidgets.SelectionSlider(options=[int(n) for n in curves.index], value=k, description="atoms a row")
    margin = ipywidgets.FloatSlider(0.02, min=0, max=0.1, step=0.005, description="counts from", readout_format=".3f")
    view = TreeView()

    def show(_change: object = None) -> None:
        shares = curves.loc[atoms.value, [meta, regression, floor]].astype(float)
        view.tree = reading_tree(shares.to_dict(), reading(*shares.tolist(), margin=margin.value))

    for control in (atoms, margin):
        control.observe(show, "value")
    show()
    return Stack([beside(atoms, margin), view])


def reading_tree(shares: Mapping[str, float], chosen: str) -> Node:
    """The three shares, and all readings with the chosen one marked."""
    items = (element("p", "", element("b", "", f"▶ {text}") if text == chosen else text) for text in READINGS)
    values = (fact(name, f"{share:.3f}") for name, share in shares.items())
    return element("div", "mi-card", element("div", "mi-facts", values), element("div", "", items))


# -------------------------------------------------------------------------------------------------------- numbers
def _largest(effects: Float[Tensor, " d_vocab"], tokenizer: "PreTrainedTokenizerBase") -> list[tuple[str, float]]:
    values, ids = effects.topk(min(N_LISTED, len(effects)))
    texts = token_texts(tokenizer, ids.tolist())
    return [(text, value) for text, value in zip(texts, values.tolist(), strict=True) if value > 0]


def _nearest(direction: Float[Tensor, " d_in"], rows: Float[Tensor, "row d_in"]) -> list[tuple[int, float]]:
    """The unit rows nearest to a direction, with their cosine."""
    values, ids = (rows @ direction).topk(min(N_NEAREST, len(rows)))
    return list(zip(ids.tolist(), values.tolist(), strict=True))


def _reach(rows: Float[Tensor, "row d_in"]) -> float:
    """The cosine to its nearest row that a random direction reaches, as an index counts it."""
    random = torch.randn(RANDOM_DIRECTIONS, rows.shape[1], generator=torch.Generator().manual_seed(0))
    return float((normalize(random, dim=1) @ rows.T).max(1).values.median())
