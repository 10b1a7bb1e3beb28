"""Run a model from any layer on with states of another run put in: exact activation patching, at the least cost.

`Stack` runs the layers of a model; what a pass leaves behind is a `Run`. `sweep` puts the states of one run, the donor,
into another, the base, at one site after the other, and reads the outcome. If the base is corrupted and the donor
clean, a site that restores the answer is *sufficient* (denoising); the other way round, a site that destroys it is
*necessary* (noising). The two need not agree. A patched pass starts at the patched layer and the patched token, since
nothing before them changes.

Paper: Heimersheim & Nanda 2024, "How to use and interpret activation patching", arXiv:2404.15255. Taught in
`08_locate_a_fact`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from mi_utils.hooks import Edit, hook_name, plain_place
from mi_utils.models import unhooked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import DynamicCache

KINDS = ("resid_post", "mlp_out", "attn_out", "z")
TOLERANCE = 1e-4
AT_ONCE, N_STATES = 8, 400  # layers patched in one pass, in rows of their own, and states in a pass: many small passes
# waste the weights that each has to read, one large pass begins too early for most of its layers

Metric = Callable[[Float[Tensor, "row d_vocab"]], Float[Tensor, "row ..."]]
"""What to read off the logits at the last position; `probability` and `log_odds` make the usual ones."""


@dataclass(frozen=True)
class Run:
    """What one pass left behind. Rows are draws of noise, or just one."""

    embeds: Float[Tensor, "row pos d_model"]
    """What the pass was given."""
    resid_pre: Float[Tensor, "entry row pos d_model"]
    """What each layer read and, one more, what the last one left."""
    outputs: dict[str, Float[Tensor, "layer row pos d_out"]]
    """By kind: `resid_post`, `mlp_out`, `attn_out`, and `z`, the heads' outputs side by side."""
    keys: Float[Tensor, "layer row head pos d_head"]
    values: Float[Tensor, "layer row head pos d_head"]
    logits: Float[Tensor, "row d_vocab"]
    """At the last position."""


class Cell(NamedTuple):
    """One patched pass."""

    site: int
    layer: int
    values: Float[Tensor, "row ..."]
    """The metric, by row."""


class Stack:
    """The layers of a model, to be run from any of them on. Shares the model's weights; sees edits of them.

    Raises:
        ValueError: the model has hooks in force, which would not be obeyed, or its layers cannot be found.
    """

    def __init__(self, model: "TransformerBridge") -> None:
        if any(point.has_hooks() for point in model.hook_dict.values()):
            raise ValueError("the model has hooks in force, which patched passes would not obey; leave their block")
        self.plain, self.n_layers, self.n_heads = unhooked(model), model.cfg.n_layers, model.cfg.n_heads
        self._places = {
            (kind, layer): self._place(model, kind, layer) for kind in KINDS for layer in range(self.n_layers)
        }
        self._layers = [self._places["resid_post", layer][0] for layer in range(self.n_layers)]
        lists = [
            name
            for name, child in self.plain.base_model.named_children()
            if isinstance(child, torch.nn.ModuleList) and list(child) == self._layers
        ]
        if not lists:
            raise ValueError(
                f"found no list of {self.n_layers} layers in {type(self.plain).__name__}; use another model"
            )
        self._list = lists[0]
        self._skips = True
        self._skips = self._can_skip()

    def _place(self, model: "TransformerBridge", kind: str, layer: int) -> tuple[torch.nn.Module, str]:
        path, side = plain_place(model, hook_name(kind, layer))
        return self.plain.get_submodule(path), side

    @torch.no_grad()
    def _can_skip(self) -> bool:
        """Whether a pass that begins at a later layer gives what the whole pass gives; not so in all models."""
        run = self.read(self.embed(torch.arange(4)[None]))
        middle = self.n_layers // 2
        return bool(torch.allclose(self.resume(run.resid_pre[middle], middle), run.logits, atol=TOLERANCE))

    def embed(self, tokens: Int[Tensor, "row pos"]) -> Float[Tensor, "row pos d_model"]:
        """What the first layer is given, before any position is added."""
        return self.plain.get_input_embeddings()(tokens.to(self.plain.device)).detach().clone()

    @torch.no_grad()
    def read(self, embeds: Float[Tensor, "row pos d_model"]) -> Run:
        """One whole pass, remembered."""
        kept: dict[tuple[str, int], Tensor] = {}
        entered: list[Tensor] = []

        def keep(place: tuple[str, int]) -> Edit:
            return lambda activation: kept.setdefault(place, activation)

        with ExitStack() as hooks:
            for place in self._places:
                hooks.enter_context(self.edited(place, keep(place)))
            for layer in self._layers:
                hooks.enter_context(_entering(layer, lambda activation: entered.append(activation) or activation))
            output = self.plain(inputs_embeds=embeds, use_cache=True, logits_to_keep=1)
        past = output.past_key_values.layers
        return Run(
            embeds,
            torch.stack([*entered, kept["resid_post", self.n_layers - 1]]),
            {kind: torch.stack([kept[kind, layer] for layer in range(self.n_layers)]) for kind in KINDS},
            torch.stack([layer.keys for layer in past]),
            torch.stack([layer.values for layer in past]),
            output.logits[:, -1],
        )

    def resume(
        self,
        states: Float[Tensor, "row pos d_model"],
        start: int,
        *,
        past: "DynamicCache | None" = None,
        edits: Mapping[tuple[str, int], Edit] | None = None,
    ) -> Float[Tensor, "row d_vocab"]:
        """Logits at the last position of a pass that enters layer `start` with these states.

        Args:
            past: keys and values of the tokens before, if the states are those of later tokens only; from `past`.
            edits: by kind and layer, what becomes of the activation there.
        """
        with ExitStack() as hooks:
            hooks.enter_context(self._from(start, states))
            for place, edit in (edits or {}).items():
                hooks.enter_context(self.edited(place, edit))
            # the last states are a strided view, over which the unembedding is several times as slow
            hooks.enter_context(_entering(self.plain.get_output_embeddings(), torch.Tensor.contiguous))
            return self.plain(
                inputs_embeds=states, past_key_values=past, use_cache=past is not None, logits_to_keep=1
            ).logits[:, -1]

    def past(self, run: Run, n_pos: int, n_copies: int = 1) -> "DynamicCache | None":
        """The keys and values of a run's first tokens, for passes over the later ones of so many copies of its rows."""
        from transformers import DynamicCache

        if n_pos == 0:
            return None
        cache = DynamicCache()
        for layer in range(self.n_layers):
            both = (states[layer, :, :, :n_pos].repeat(n_copies, 1, 1, 1) for states in (run.keys, run.values))
            cache.update(*both, layer)
        return cache

    @contextmanager
    def _from(self, start: int, states: Tensor) -> Iterator[None]:
        base = self.plain.base_model
        if self._skips:
            setattr(base, self._list, torch.nn.ModuleList(self._layers[start:]))
            try:
                yield
            finally:
                setattr(base, self._list, torch.nn.ModuleList(self._layers))
        elif start == self.n_layers:
            with self.edited(("resid_post", start - 1), lambda _: states):
                yield
        else:
            with _entering(self._layers[start], lambda given: states if start else given):
                yield

    @contextmanager
    def edited(self, place: tuple[str, int], edit: Edit) -> Iterator[None]:
        """While the block runs, the activation of a kind and layer becomes what `edit` makes of it."""
        module, side = self._places[place]
        if side == "hook_in":
            with _entering(module, edit):
                yield
            return

        def leaving(_module: torch.nn.Module, _inputs: tuple, output: Tensor | tuple) -> Tensor | tuple:
            return (edit(output[0]), *output[1:]) if isinstance(output, tuple) else edit(output)

        handle = module.register_forward_hook(leaving)
        try:
            yield
        finally:
            handle.remove()


def probability(token: int) -> Metric:
    """The probability of a token, in [0, 1]."""
    return lambda logits: logits.softmax(-1)[:, token]


def log_odds(true: int, false: int) -> Metric:
    """The logit of one token minus that of another, in nats."""
    return lambda logits: logits[:, true] - logits[:, false]


def window(layer: int, width: int, n_layers: int) -> range:
    """The layers of a window around a layer, cut off at the ends; an even width reaches further down.

    Source: Meng et al., arXiv:2202.05262, released code.

    >>> window(4, 5, 30), window(0, 10, 30)
    (range(2, 7), range(0, 5))
    """
    return range(max(0, layer - width // 2), min(n_layers, layer - (-width // 2)))


def at(positions: Sequence[int], n_pos: int) -> Bool[Tensor, " pos"]:
    """A site: these positions together, negative ones counted from the end.

    Raises:
        ValueError: no positions, or one beyond the prompt.
    """
    if not len(positions) or not all(-n_pos <= position < n_pos for position in positions):
        raise ValueError(f"expected positions in a prompt of {n_pos} tokens, got {list(positions)}")
    site = torch.zeros(n_pos, dtype=torch.bool)
    site[list(positions)] = True
    return site


def each_position(n_pos: int) -> Bool[Tensor, "site pos"]:
    """A site per position."""
    return torch.eye(n_pos, dtype=torch.bool)


def cells(
    stack: Stack,
    base: Run,
    donor: Run,
    metric: Metric,
    sites: Bool[Tensor, "site pos"],
    *,
    kind: str = "resid_post",
    width: int = 1,
    layers: Sequence[int] | None = None,
) -> Iterator[Cell]:
    """Patched passes one by one, layer by layer, for whoever wants to show them as they come; see `sweep`."""
    _check(stack, base, donor, sites, kind, width)
    layers = range(stack.n_layers) if layers is None else layers
    n_rows = max(base.logits.shape[0], donor.logits.shape[0])
    base, donor = with_rows(base, n_rows), with_rows(donor, n_rows)
    changed = (base.resid_pre[0] != donor.resid_pre[0]).any(-1).any(0)
    first_change = int(changed.nonzero()[0]) if changed.any() else len(changed)
    untouched = metric(base.logits)
    size = max(1, min(AT_ONCE, N_STATES // (n_rows * sites.shape[1])))
    for begin in range(0, len(layers), size):
        chunk = layers[begin : begin + size]
        for n, site in enumerate(sites):
            if not site[first_change:].any():  # both runs are the same there
                yield from (Cell(n, layer, untouched) for layer in chunk)
                continue
            windows = [window(layer, width, stack.n_layers) for layer in chunk]
            values = metric(_patched(stack, base, donor, site, kind, windows))
            yield from (Cell(n, layer, rows) for layer, rows in zip(chunk, values.split(n_rows), strict=True))


def sweep(
    stack: Stack,
    base: Run,
    donor: Run,
    metric: Metric,
    sites: Bool[Tensor, "site pos"],
    *,
    kind: str = "resid_post",
    width: int = 1,
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "site layer row ..."]:
    """The metric after the donor's states were put into the base, for every site and layer.

    Args:
        base: the run that is changed; a single row serves every row of the donor, and the other way round.
        sites: which positions are patched together.
        kind: which activation; for `mlp_out`, `attn_out` and `z` a window of layers may be patched together.
        width: layers in the window, around each layer.
        layers: only these; all if not given.
    Raises:
        ValueError: prompts of different length, an unknown kind, an empty site, a width below 1 or, for the residual
            stream, above it.
    """
    layers = range(stack.n_layers) if layers is None else layers
    every = cells(stack, base, donor, metric, sites, kind=kind, width=width, layers=layers)
    found = {(cell.site, cell.layer): cell.values for cell in every}
    return torch.stack([torch.stack([found[n, layer] for layer in layers]) for n in range(len(sites))])


@torch.no_grad()
def _patched(
    stack: Stack, base: Run, donor: Run, site: Bool[Tensor, " pos"], kind: str, windows: Sequence[range]
) -> Float[Tensor, "row d_vocab"]:
    """Logits of one pass in which every window has its own rows, window by window."""
    start, begin, n = min(layers[0] for layers in windows), int(site.nonzero()[0]), len(windows)
    edits = {}
    for layer in sorted(set().union(*windows)):
        mine = torch.tensor([layer in layers for layers in windows]).repeat_interleave(len(base.embeds))
        here = mine[:, None, None] & site[begin:, None]
        given = donor.outputs[kind][layer][:, begin:].repeat(n, 1, 1)
        edits[kind, layer] = lambda act, here=here, given=given: torch.where(here, given, act)
    states = base.resid_pre[start][:, begin:].repeat(n, 1, 1)
    return stack.resume(states, start, past=stack.past(base, begin, n), edits=edits)


def with_rows(run: Run, n_rows: int) -> Run:
    """A run of one row, as if it had been made several times."""

    def repeated(states: Tensor) -> Tensor:
        return states.expand(-1, n_rows, *states.shape[2:])

    outputs = {kind: repeated(states) for kind, states in run.outputs.items()}
    embeds, logits = repeated(run.embeds[None])[0], repeated(run.logits[None])[0]
    return Run(embeds, repeated(run.resid_pre), outputs, repeated(run.keys), repeated(run.values), logits)


def _check(stack: Stack, base: Run, donor: Run, sites: Bool[Tensor, "site pos"], kind: str, width: int) -> None:
    lengths = base.resid_pre.shape[2], donor.resid_pre.shape[2], sites.shape[1]
    if len(set(lengths)) > 1:
        raise ValueError(f"base, donor and sites have {lengths} positions; patching needs prompts of equal length")
    if kind not in KINDS:
        raise ValueError(f"cannot patch {kind!r}; expected one of {', '.join(KINDS)}")
    if not len(sites) or not sites.any(1).all():
        raise ValueError("a site without positions patches nothing; give at least one position to each")
    if not 1 <= width <= (1 if kind == "resid_post" else stack.n_layers):
        raise ValueError(f"got a window of {width} layers; the residual stream takes 1, others up to {stack.n_layers}")


@contextmanager
def _entering(module: torch.nn.Module, edit: Edit) -> Iterator[None]:
    """What a module is given becomes what `edit` makes of it."""

    def enter(_module: torch.nn.Module, inputs: tuple, named: dict) -> tuple[tuple, dict]:
        if inputs:
            return (edit(inputs[0]), *inputs[1:]), named
        return inputs, named | {"hidden_states": edit(named["hidden_states"])}

    handle = module.register_forward_pre_hook(enter, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
