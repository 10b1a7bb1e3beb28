"""Named places in a model: read them in one short pass, or change them inside a `with` block.

A name is either the classic TransformerLens one (`blocks.3.hook_resid_post`), which `hook_name` builds, or the
bridge's own (`blocks.3.hook_out`). The libraries ignore a name they do not know and attach nothing; here it is an
error, and so is a place that the pass never reached.

Paper: Geiger et al. 2021, "Causal Abstractions of Neural Networks", arXiv:2106.02997.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from difflib import get_close_matches
from threading import local
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.models import unhooked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

AGREEMENT = 1e-5

Edit = Callable[[Tensor], Tensor]

KINDS = {
    "resid_pre": "hook_resid_pre",
    "resid_mid": "hook_resid_mid",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "q": "attn.hook_q",
    "k": "attn.hook_k",
    "v": "attn.hook_v",
    "z": "attn.hook_z",
    "attn_scores": "attn.hook_attn_scores",
    "pattern": "attn.hook_pattern",
    "mlp_pre": "mlp.hook_pre",
    "mlp_post": "mlp.hook_post",
}


@dataclass(frozen=True)
class Reader:
    """Reads activations at places that are settled beforehand."""

    read: Callable[[Int[Tensor, "batch pos"]], dict[str, Tensor]]
    """From tokens to activations, keyed by hook name."""
    in_threads: bool
    """Whether several threads may read at once."""

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> dict[str, Tensor]:
        return self.read(tokens)


def hook_name(kind: str, layer: int) -> str:
    """The name of a place in one layer, counted from 0.

    Residual stream `resid_pre`, `resid_mid`, `resid_post` and sublayer outputs `attn_out`, `mlp_out` are
    [batch pos d_model]; `q`, `k`, `v`, `z` are [batch pos head d_head]; `attn_scores` (before the softmax) and
    `pattern` are [batch head dest src]; `mlp_pre` (what the activation function reads) and `mlp_post` (what the
    output weights read) are [batch pos d_mlp].

    Raises:
        ValueError: unknown kind, or a negative layer.

    >>> hook_name("resid_post", 12)
    'blocks.12.hook_resid_post'
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}{_suggestion(kind, KINDS)}; expected one of {', '.join(KINDS)}")
    if layer < 0:
        raise ValueError(f"layer {layer} is negative; layers count from 0")
    return f"blocks.{layer}.{KINDS[kind]}"


def layer_of(name: str) -> int:
    """The layer a hook name belongs to.

    Raises:
        ValueError: the name belongs to no layer.

    >>> layer_of("blocks.12.hook_resid_post")
    12
    """
    if not (match := re.match(r"blocks\.(\d+)\.", name)):
        raise ValueError(f"{name!r} belongs to no layer; expected a name such as {hook_name('resid_post', 0)!r}")
    return int(match[1])


def resolve(model: "TransformerBridge", name: str) -> str:
    """The model's own name for a hook, under which it really attaches.

    Raises:
        ValueError: the model has no such hook, or computes it only when asked to by a setter that is named.
    """
    return _resolved(model, name, model.hook_dict)


def _resolved(model: "TransformerBridge", name: str, points: Mapping[str, torch.nn.Module]) -> str:
    """As `resolve`, given all hook points, which take the library a while to gather."""
    if name not in points:
        raise ValueError(
            f"the model {model.cfg.model_name} of {model.cfg.n_layers} layers has no hook "
            f"{name!r}{_suggestion(name, points)}"
        )
    canonical = points[name].name
    model.check_hooks_to_add(canonical)
    return canonical


def run_with_cache(
    model: "TransformerBridge", tokens: Int[Tensor, "batch pos"], hook_names: Iterable[str]
) -> dict[str, Tensor]:
    """Activations at the named hooks, keyed by the names as given. Runs no deeper than the deepest of them.

    Gradients follow the caller's setting.

    Raises:
        ValueError: an unknown hook, no hook at all, or one that the pass does not reach.
    """
    from transformer_lens.model_bridge.exceptions import StopAtLayerException

    points = model.hook_dict
    canonical = {name: _resolved(model, name, points) for name in hook_names}
    wanted = set(canonical.values())
    if not wanted:
        raise ValueError("no hook names given; expected at least one, such as hook_name('resid_post', 0)")
    kept = {}

    def keep(activation: Tensor, hook: torch.nn.Module) -> None:
        kept[hook.name] = activation.clone()  # some models write on into the same memory
        if len(kept) == len(wanted):
            raise StopAtLayerException(activation)

    with model.hooks(fwd_hooks=[(wanted.__contains__, keep)]):
        model(tokens)
    if unreached := wanted - kept.keys():
        raise ValueError(f"the forward pass never reaches {sorted(unreached)}; choose another place to read")
    return {name: kept[place] for name, place in canonical.items()}


def fast_reader(model: "TransformerBridge", hook_names: Iterable[str], sample: Int[Tensor, "batch pos"]) -> Reader:
    """A function that reads like `run_with_cache(model, tokens, hook_names)`, as fast as it can be done.

    Where each place is the input or output of a module of the plain model, that model is run in place of the bridge,
    which is a quarter faster and may be done in several threads at once; but only if on `sample` every activation
    vector agrees to 1e-5 of its length, and the bridge has no hooks that would have to act. Otherwise the bridge runs.

    Raises:
        ValueError: as `run_with_cache`.
    """
    hook_names = list(hook_names)
    expected = run_with_cache(model, sample, hook_names)
    places = {name: plain_place(model, name) for name in hook_names}
    if None not in places.values() and not any(point.has_hooks() for point in model.hook_dict.values()):
        read = _plain_reader(unhooked(model), places)
        if _agree(read(sample), expected):
            return Reader(read, in_threads=True)
    return Reader(lambda tokens: run_with_cache(model, tokens, hook_names), in_threads=False)


@contextmanager
def intervene(model: "TransformerBridge", edits: Mapping[str, Edit]) -> Iterator[None]:
    """Change activations while the block runs: at each named hook the model goes on with what the function returns.

    Functions see the activation and return one of the same shape. Blocks nest; the inner one sees what the outer
    one returned. Afterwards the model is what it was, also when the block raised.

    Raises:
        ValueError: an unknown hook, a function that returns another shape, or a hook that nothing in the block ran
            through, so that the edit did nothing.
    """
    ran, points = set(), model.hook_dict
    attached: dict[str, list[Callable]] = {}
    for name, edit in edits.items():
        for place, function in _attach(model, name, edit, ran, points):
            attached.setdefault(place, []).append(function)

    def apply_all(activation: Tensor, hook: torch.nn.Module) -> Tensor:
        for function in attached[hook.name]:
            edited = function(activation, hook)
            activation = activation if edited is None else edited
        return activation

    # One filter for all: the library gathers its hook points anew for every name it is given.
    with model.hooks(fwd_hooks=[(attached.__contains__, apply_all)]):
        yield
    if idle := [name for name in edits if name not in ran]:
        raise ValueError(f"the edit at {idle} was never used: no forward pass in the block reached that place")


def at_position(edit: Edit, position: int) -> Edit:
    """The same edit at one position only, counted from the end if negative; activations are [batch pos ...]."""

    def edit_there(activation: Tensor) -> Tensor:
        edited = activation.clone()
        edited[:, [position]] = edit(activation[:, [position]])
        return edited

    return edit_there


def at_last(edit: Edit) -> Edit:
    """The same edit at the last position only."""
    return at_position(edit, -1)


def plain_place(model: "TransformerBridge", name: str) -> tuple[str, str] | None:
    """Where a hook sits in the plain model: the path of a module, and the side of it, `hook_in` or `hook_out`.

    `None` where a hook looks at something inside of a module.

    Raises:
        ValueError: an unknown hook.
    """
    *path, side = resolve(model, name).split(".")
    if side not in ("hook_in", "hook_out"):
        return None
    parts = [".".join(path[: n + 1]) for n in range(len(path)) if ".".join(path[: n + 1]) != "blocks"]
    return ".".join(model.get_submodule(part).name for part in parts), side


def _attach(
    model: "TransformerBridge", name: str, edit: Edit, ran: set[str], points: Mapping[str, torch.nn.Module]
) -> list[tuple[str, Callable]]:
    """The pairs of hook name and library-style function that carry out one edit."""

    def apply(activation: Tensor) -> Tensor:
        ran.add(name)
        edited = edit(activation)
        if getattr(edited, "shape", None) != activation.shape:
            raise ValueError(
                f"the edit at {name!r} must return a tensor of shape {tuple(activation.shape)}, "
                f"got {tuple(edited.shape) if isinstance(edited, Tensor) else type(edited).__name__}"
            )
        return edited

    canonical = _resolved(model, name, points)
    if name.endswith(".hook_resid_mid"):
        return _attach_resid_mid(model, name, apply)
    return [(canonical, lambda activation, hook: apply(activation))]


def _attach_resid_mid(model: "TransformerBridge", name: str, apply: Edit) -> list[tuple[str, Callable]]:
    # The bridge's own resid_mid is what the MLP's normalisation reads: changing it there leaves the residual stream
    # as it was. What reaches both is the attention's output, so the change is added to that.
    block, resid_pre = name.removesuffix("hook_resid_mid"), []

    def remember(activation: Float[Tensor, "batch pos d_model"], hook: torch.nn.Module) -> None:
        resid_pre[:] = [activation]

    def change(attn_out: Float[Tensor, "batch pos d_model"], hook: torch.nn.Module) -> Tensor:
        resid_mid = resid_pre.pop() + attn_out
        return attn_out + (apply(resid_mid.clone()) - resid_mid)

    return [(resolve(model, f"{block}ln1.hook_in"), remember), (resolve(model, f"{block}hook_attn_out"), change)]


class _ReadEnough(Exception):
    """Ends a pass of the plain model."""


def _plain_reader(
    plain: torch.nn.Module, places: Mapping[str, tuple[str, str]]
) -> Callable[[Int[Tensor, "batch pos"]], dict[str, Tensor]]:
    wanted, thread = set(places.values()), local()

    def keep(place: tuple[str, str], activation: Tensor | tuple) -> None:
        thread.kept[place] = (activation[0] if isinstance(activation, tuple) else activation).clone()
        if len(thread.kept) == len(wanted):
            raise _ReadEnough

    for place in wanted:
        path, side = place
        if side == "hook_out":
            hook = lambda _module, _inputs, output, place=place: keep(place, output)  # noqa: E731
            plain.get_submodule(path).register_forward_hook(hook)
        else:
            hook = lambda _module, inputs, named, place=place: keep(place, inputs or named["hidden_states"])  # noqa: E731
            plain.get_submodule(path).register_forward_pre_hook(hook, with_kwargs=True)

    def read(tokens: Int[Tensor, "batch pos"]) -> dict[str, Tensor]:
        thread.kept = {}
        with suppress(_ReadEnough):
            plain(tokens, use_cache=False)
        return {name: thread.kept[place] for name, place in places.items()}

    return read


def _agree(read: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return all(
        read[name].shape == vectors.shape
        and bool(((read[name] - vectors).norm(dim=-1) <= AGREEMENT * vectors.norm(dim=-1)).all())
        for name, vectors in expected.items()
    )


def _suggestion(name: str, known: Iterable[str]) -> str:
    close = get_close_matches(name, known, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
