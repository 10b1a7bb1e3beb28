"""What is left of a model when it recalls a fact by its simplest parts: ablation switches at the tokens of a name.

`Recall` asks a model for one attribute of many names in one prompt. `Switches` take parts away at the name's tokens
only: attention or an MLP of some layers goes on with its mean over the names, or the name is read alone, without the
prompt around it. The rest of the model runs as it is and has to make do with what is left. What the name's last token
says is also read directly, by the head that carries it to the end of the prompt: `W_V W_O W_U`, with no training.

Paper: Nanda, Rajamanoharan, Kramar and Shah 2023, "Fact Finding", post 2, simplifying the circuit. Taught in
`10_fact_finding`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.facts import answer_tokens, encode, subject_positions
from mi_utils.hooks import Edit, hook_name, intervene
from mi_utils.models import unhooked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

BATCH = 32


@dataclass(frozen=True)
class Switches:
    """What is taken away at a name's tokens; nothing by default."""

    attention: Collection[int] = ()
    """Layers whose attention writes the same for all names."""
    mlps: Collection[int] = ()
    """Layers whose MLP writes the same for all names."""
    alone: bool = False
    """Whether the name is read without the prompt, right after the beginning-of-text token."""

    @property
    def places(self) -> list[str]:
        """The hook names of every output that is replaced."""
        kinds = {"attn_out": self.attention, "mlp_out": self.mlps}
        return [hook_name(kind, layer) for kind, layers in kinds.items() for layer in sorted(layers)]

    def at_random(self, n_layers: int, seed: int = 0) -> "Switches":
        """As many attention layers and as many MLPs, but any."""
        rng = np.random.default_rng(seed)
        chosen = (rng.choice(n_layers, len(part), replace=False).tolist() for part in (self.attention, self.mlps))
        return Switches(*chosen, self.alone)


NOTHING = Switches()


@dataclass(frozen=True)
class Group:
    """Names whose prompts are equally long and have the name at the same place."""

    rows: list[int]
    tokens: Int[Tensor, "name pos"]
    """What follows the tokens that all prompts share."""
    start: int
    stop: int
    """Where the name stands in it."""


Edits = Callable[[Group], Mapping[str, Edit]]


class Answers(NamedTuple):
    """What a model says at the end of each name's prompt."""

    logits: Float[Tensor, "name answer"]
    """Of the candidates' first tokens."""
    top: Int[Tensor, " name"]
    """The likeliest of all tokens."""
    read: dict[str, Tensor]
    """By hook name, what was read at each name's last token: [name ...]."""
    read_end: dict[str, Tensor]
    """The same at the end of the prompt."""

    def right(self, truth: Int[Tensor, " name"]) -> Float[Tensor, " name"]:
        """1 where the right candidate is the likeliest of them, else 0."""
        return (self.logits.argmax(1) == truth).float()

    def margins(self, truth: Int[Tensor, " name"]) -> Float[Tensor, " name"]:
        """Logit of the right candidate over the mean of all, in nats."""
        return self.logits.gather(1, truth[:, None])[:, 0] - self.logits.mean(1)


class Recall:
    """One attribute of many names, asked for in one prompt.

    Args:
        prompt: with `{}` for the name; examples stand before it.
        names: what to fill in.
        answers: the candidates, told apart by their first tokens.
    Raises:
        ValueError: no names, a prompt without `{}`, fewer than two answers, two that begin with the same token, or a
            name whose tokens cannot be told from what stands around it.
    """

    def __init__(self, model: "TransformerBridge", prompt: str, names: Sequence[str], answers: Sequence[str]):
        if not names or "{}" not in prompt:
            raise ValueError(
                f"got {len(names)} names and the prompt {prompt!r}; expected names and a place for them: {{}}"
            )
        self.model, self.names, self.answers = model, list(names), list(answers)
        self.answer_ids = torch.tensor([int(answer_tokens(model.tokenizer, answer)[0]) for answer in answers])
        if len(answers) < 2 or len(set(self.answer_ids.tolist())) < len(answers):
            raise ValueError(
                f"expected two or more answers that begin with different tokens, got {list(answers)}; drop those that "
                "share their first token"
            )
        texts = [prompt.replace("{}", name) for name in self.names]
        tokens = [encode(model.tokenizer, text).tolist() for text in texts]
        places = [subject_positions(model.tokenizer, text, name) for text, name in zip(texts, names, strict=True)]
        self.name_tokens = [row[place.start : place.stop] for row, place in zip(tokens, places, strict=True)]
        self.in_prompt = _Prompts(model, tokens, places)
        start = int(model.tokenizer.bos_token_id is not None)
        by_itself = [[*row[:start], *name] for row, name in zip(tokens, self.name_tokens, strict=True)]
        self.alone = _Prompts(model, by_itself, [range(start, len(row)) for row in by_itself])

    @torch.no_grad()
    def ask(
        self,
        switches: Switches = NOTHING,
        *,
        edits: Edits | None = None,
        read: Sequence[str] = (),
        read_end: Sequence[str] = (),
    ) -> Answers:
        """Ask for every name.

        Args:
            switches: what is taken away at the names' tokens. A name that is read alone brings its states after every
                layer into the prompt, and whatever else is read or edited is so there.
            edits: further ones, for each group of names; see `hooks.intervene`.
            read, read_end: hooks to read at the names' last tokens, and at the last token of the prompts.
        """
        simplified = self._states_alone(switches) if switches.alone else None

        def all_edits(group: Group) -> dict[str, Edit]:
            if simplified is None:
                taken = self.in_prompt.to_means(group, switches.places)
            else:
                layers = range(self.model.cfg.n_layers)
                states = torch.stack([simplified[row] for row in group.rows])
                taken = {hook_name("resid_post", n): _put(states[:, n], group) for n in layers}
            return taken | (dict(edits(group)) if edits else {})

        logits, read, read_end = self.in_prompt.run(all_edits, read, read_end)
        return Answers(logits[:, self.answer_ids], logits.argmax(1), read, read_end)

    def read_alone(self, hook_names: Sequence[str], switches: Switches = NOTHING) -> dict[str, Tensor]:
        """Activations at each name's last token when it is read alone: [name ...]."""
        with torch.no_grad():
            return self.alone.run(lambda group: self.alone.to_means(group, switches.places), hook_names, ())[1]

    def without_paths(self, layers: Collection[int]) -> Edits:
        """Edits under which no MLP of the layers reads, at the name's tokens, what another one of them wrote.

        In its place each reads the mean over the names. All else still reads everything. [path patching]
        """

        def edits(group: Group) -> dict[str, Edit]:
            written: list[Tensor] = []

            def hide(activation: Tensor) -> Tensor:
                edited = activation.clone()
                edited[:, group.start : group.stop] -= sum(written)
                return edited

            def note(name: str) -> Edit:
                means = self.in_prompt.spread(name, group)

                def edit(activation: Tensor) -> Tensor:
                    written.append(activation[:, group.start : group.stop] - means)
                    return activation

                return edit

            found = {}
            for layer in sorted(layers):
                if layer != min(layers):
                    found[f"blocks.{layer}.ln2.hook_in"] = hide
                found[hook_name("mlp_out", layer)] = note(hook_name("mlp_out", layer))
            return found

        return edits

    def _states_alone(self, switches: Switches) -> list[Float[Tensor, "layer token d_model"]]:
        """For each name, the stream after every layer at its tokens when nothing stands before it."""
        found: list[Tensor | None] = [None] * len(self.names)
        for group in self.alone.groups:
            kept: dict[str, Tensor] = {}
            places = [hook_name("resid_post", layer) for layer in range(self.model.cfg.n_layers)]
            keepers = {place: _keep(kept, place, slice(group.start, group.stop)) for place in places}
            with intervene(self.model, self.alone.to_means(group, switches.places)), intervene(self.model, keepers):
                self.alone.forward(group)
            for i, row in enumerate(group.rows):
                found[row] = torch.stack([kept[place][i] for place in places])
        return found


def simplified(recall: Recall, truth: Int[Tensor, " name"], steps: Mapping[str, Switches]) -> pd.DataFrame:
    """Whether each name's answer comes out right after each simplification, a row per name and a column per step."""
    return pd.DataFrame(
        {step: recall.ask(switches).right(truth).numpy() for step, switches in steps.items()}, index=recall.names
    )


class _Prompts:
    """Tokenised prompts in groups that can be run together; what they all begin with is run once."""

    def __init__(self, model: "TransformerBridge", tokens: Sequence[Sequence[int]], places: Sequence[range]):
        self.model = model
        alike_so_far = takewhile(lambda column: len(set(column)) == 1, zip(*tokens, strict=False))
        shared = min(len(list(alike_so_far)), *(place.start for place in places))
        self.prefix, self.n_rows = list(tokens[0][:shared]), len(tokens)
        alike: dict[tuple[int, int, int], list[int]] = {}
        for i, (row, place) in enumerate(zip(tokens, places, strict=True)):
            alike.setdefault((len(row), place.start, place.stop), []).append(i)
        self.groups = [
            Group(some, torch.tensor([tokens[i][shared:] for i in some]), start - shared, stop - shared)
            for (_, start, stop), rows in alike.items()
            for some in (rows[n : n + BATCH] for n in range(0, len(rows), BATCH))
        ]

    @cached_property
    def cache(self) -> Any:
        """Keys and values of what all prompts begin with; None if that is nothing."""
        if not self.prefix:
            return None
        with torch.no_grad():
            tokens = torch.tensor([self.prefix], device=self.model.cfg.device)
            return unhooked(self.model)(tokens, use_cache=True).past_key_values

    def forward(self, group: Group) -> Float[Tensor, "name pos d_vocab"]:
        """The logits after the shared tokens."""
        tokens = group.tokens.to(self.model.cfg.device)
        if self.cache is None:
            return self.model(tokens)
        cache = deepcopy(self.cache)
        cache.batch_repeat_interleave(len(tokens))
        return self.model(tokens, past_key_values=cache, use_cache=True)

    def run(
        self, edits: Edits, read: Sequence[str], read_end: Sequence[str]
    ) -> tuple[Float[Tensor, "name d_vocab"], dict[str, Tensor], dict[str, Tensor]]:
        """The last logits of every prompt, and what was read at its name's last token and at its own."""
        logits: list[Tensor | None] = [None] * self.n_rows
        found = [{name: list(logits) for name in names} for names in (read, read_end)]
        for group in self.groups:
            kept: list[dict[str, Tensor]] = [{}, {}]
            at_name = {name: _keep(kept[0], name, group.stop - 1) for name in read}
            at_end = {name: _keep(kept[1], name, -1) for name in read_end}
            with intervene(self.model, edits(group)), intervene(self.model, at_name), intervene(self.model, at_end):
                last = self.forward(group)[:, -1]
            for i, row in enumerate(group.rows):
                logits[row] = last[i].cpu()
                for values, seen in zip(found, kept, strict=True):
                    for name in values:
                        values[name][row] = seen[name][i].cpu()
        stacked = ({name: torch.stack(rows) for name, rows in values.items()} for values in found)
        return torch.stack(logits), *stacked

    @cached_property
    def means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """What each attention and MLP writes, averaged over the names: at their earlier tokens, and at the last."""
        layers = range(self.model.cfg.n_layers)
        places = [hook_name(kind, layer) for kind in ("attn_out", "mlp_out") for layer in layers]
        sums: dict[str, list[Any]] = {place: [0.0, 0, 0.0, 0] for place in places}
        for group in self.groups:
            kept: dict[str, Tensor] = {}
            keepers = {place: _keep(kept, place, slice(group.start, group.stop)) for place in places}
            with torch.no_grad(), intervene(self.model, keepers):
                self.forward(group)
            for place, written in kept.items():
                earlier, last = written[:, :-1].flatten(0, 1), written[:, -1]
                new = [earlier.sum(0), len(earlier), last.sum(0), len(last)]
                sums[place] = [old + more for old, more in zip(sums[place], new, strict=True)]
        return {place: (total[0] / max(total[1], 1), total[2] / total[3]) for place, total in sums.items()}

    def spread(self, place: str, group: Group) -> Float[Tensor, "token d_model"]:
        """The means of a place at the tokens of a group's names."""
        earlier, last = self.means[place]
        return torch.stack([earlier] * (group.stop - group.start - 1) + [last])

    def to_means(self, group: Group, places: Sequence[str]) -> dict[str, Edit]:
        """Edits that put the means in place of what the places write at the names' tokens."""
        return {place: _put(self.spread(place, group), group) for place in places}


def _put(values: Float[Tensor, "*name token d_model"], group: Group) -> Edit:
    def edit(activation: Tensor) -> Tensor:
        edited = activation.clone()
        edited[:, group.start : group.stop] = values
        return edited

    return edit


def _keep(kept: dict[str, Tensor], name: str, position: int | slice) -> Edit:
    def keep(activation: Tensor) -> Tensor:
        kept[name] = activation[:, position].clone()
        return activation

    return keep
