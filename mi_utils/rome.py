"""Rank-one edits of a fact: the key that stands for the subject, and a value that makes the model say something else.

    W <- W + delta (C^-1 k)^T / (k^T C^-1 k)

at one layer, where k is the key of the subject's last token, C the second moment of keys on ordinary text, and delta
what gradient descent found to make the new answer likely. At the subject's key the matrix now writes delta more.

Settings are those of the released code where the paper differs: 20 Adam steps at rate 0.5, stop at a loss of 0.05,
delta at most four times as long as the MLP's own output, divergence on "{subject} is a" at weight 0.0625, decay 0.5
|delta| / |value|^2; the paper's appendix gives other weights for both and counts layers from 1. The second moment comes
from our corpus, and fewer of its tokens. In a gated MLP the key is what the output matrix reads, `mlp_post`.

Paper: Meng et al. 2022, "Locating and Editing Factual Associations in GPT", arXiv:2202.05262. Taught in
`09_edit_a_fact`.
"""

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor

from mi_utils.corpus import contexts, load_corpus, sample, split_held_out
from mi_utils.edits import Edit, Request, Site, plain_of
from mi_utils.files import atomic_path, cache_dir
from mi_utils.hooks import hook_name, run_with_cache

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

N_STEPS, RATE, ENOUGH = 20, 0.5, 0.05
LARGEST = 4.0  # lengths of the MLP's own output
KL_WEIGHT, DECAY = 0.0625, 0.5
N_MOMENT_TOKENS, N_CTX = 16_384, 128
GATES = ("key", "subject", "everywhere")
Result = TypeVar("Result")


def second_moments(
    model: "TransformerBridge", sites: Sequence[Site], n_tokens: int = N_MOMENT_TOKENS
) -> list[Float[Tensor, "d_key d_key"]]:
    """E[k k^T] of what each site's matrix reads, on so many tokens of our corpus; kept in the cache folder.

    One pass makes all that are missing. The model's name stands for its weights.
    """
    name = model.cfg.model_name.replace("/", "_")
    paths = {
        site: cache_dir() / "moments" / f"{name}_{site.layer}_{site.kind}_{n_tokens}.safetensors" for site in sites
    }
    if missing := sorted({(site.layer, site.kind) for site, path in paths.items() if not path.exists()}):
        documents = sample(split_held_out(load_corpus()).train, 2 * n_tokens)
        tokens = contexts(documents, model.tokenizer, N_CTX).shuffled(0).tokens[: n_tokens // N_CTX].long()
        for (layer, kind), moment in moments_on(model, tokens, missing).items():
            path = cache_dir() / "moments" / f"{name}_{layer}_{kind}_{n_tokens}.safetensors"
            with atomic_path(path) as part:
                save_file({"moment": moment}, part, {"n_tokens": str(tokens.numel())})
    plain = plain_of(model)
    return [load_file(paths[site])["moment"][site.columns(plain), site.columns(plain)] for site in sites]


@torch.no_grad()
def moments_on(
    model: "TransformerBridge", tokens: Int[Tensor, "context pos"], places: Sequence[tuple[int, str]]
) -> dict[tuple[int, str], Float[Tensor, "d_key d_key"]]:
    """E[k k^T] over all tokens but the first of each context, whose norms are outliers.

    Args:
        places: layer, and "mlp" or "attn".
    """
    sums, names = {}, {place: hook_name("mlp_post" if place[1] == "mlp" else "z", place[0]) for place in places}
    for rows in tokens.split(8):
        found = run_with_cache(model, rows, names.values())
        for place, name in names.items():
            keys = found[name][:, 1:].flatten(0, 1).flatten(1)
            sums[place] = sums.get(place, 0) + keys.T @ keys
    return {place: total / tokens[:, 1:].numel() for place, total in sums.items()}


def edit(
    model: "TransformerBridge", requests: Sequence[Request], sites: Site | Sequence[Site], **settings
) -> list[Edit]:
    """One edit per request, optimised together: each is found as if it were alone. Settings are those of `search`."""
    return finish(search(model, requests, sites, **settings))


def finish(steps: Generator[float, None, Result]) -> Result:
    """Run a search to its end and return what it found."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def search(
    model: "TransformerBridge",
    requests: Sequence[Request],
    sites: Site | Sequence[Site],
    *,
    gate: str = "key",
    moments: Sequence[Float[Tensor, "d_key d_key"]] | None = None,
    unit: float | None = None,
    method: str = "ROME",
) -> Generator[float, None, list[Edit]]:
    """Like `edit`, a step at a time: yields the largest loss after each.

    Args:
        sites: where, for all or for each request; of one layer and kind, where the whole batch starts.
        gate: when the found vector is written: by a rank-one change when the key is like the subject's ("key"), after
            the subject's tokens ("subject"), or at every token, as a bias would ("everywhere").
        moments: second moments of the keys, by request; from our corpus if not given.
        unit: the length of which the vector may have four times; that of the MLP's own output if not given.
    Raises:
        ValueError: an unknown gate, a layer or head that is not there, or a model that is not laid out like a Llama.
    """
    plain = plain_of(model)
    sites = [sites] * len(requests) if isinstance(sites, Site) else list(sites)
    _check(plain, sites, gate)
    run = _Run(plain, requests, sites[0], gate)
    deltas = yield from run.descend(unit)
    found = [Edit(method, site, delta) for site, delta in zip(sites, deltas, strict=True)]
    if gate == "subject":
        return [replace(one, subject=asked.subject) for one, asked in zip(found, requests, strict=True)]
    if gate == "everywhere":
        return found
    moments = second_moments(model, sites) if moments is None else moments
    return [
        replace(one, key=_reading(run.keys(row, one.site), moment))
        for row, (one, moment) in enumerate(zip(found, moments, strict=True))
    ]


def _reading(keys: Float[Tensor, "row d_key"], moment: Float[Tensor, "d_key d_key"]) -> Float[Tensor, " d_key"]:
    """C^-1 k, scaled to read 1 at the bare prompt's key; k is the mean over prefixes."""
    ridge = 1e-6 * moment.diagonal().mean() * torch.eye(len(moment))
    direction = torch.linalg.solve((moment + ridge).double(), keys.mean(0).double()).float()
    return direction / (direction @ keys[0])


def _check(plain: "PreTrainedModel", sites: Sequence[Site], gate: str) -> None:
    if gate not in GATES:
        raise ValueError(f"unknown gate {gate!r}; expected one of {', '.join(GATES)}")
    try:
        n_layers = len(plain.model.layers)
        plain.model.layers[0].mlp.down_proj, plain.model.layers[0].self_attn.o_proj
    except AttributeError as error:
        raise ValueError(
            f"{type(plain).__name__} is not laid out like a Llama (model.layers[i].mlp.down_proj); "
            "edits are made for Llama, Qwen2, Mistral and their kin"
        ) from error
    if len({(site.layer, site.kind) for site in sites}) > 1:
        raise ValueError("the sites of one call must share layer and kind; call once for each")
    n_heads = plain.config.num_attention_heads
    for site in sites:
        if not 0 <= site.layer < n_layers or (site.head is not None and not 0 <= site.head < n_heads):
            raise ValueError(f"there is no {site}; the model has {n_layers} layers of {n_heads} heads")


class _Run:
    """The part of a batch of passes that an edit can change: from its layer and the subject on.

    What comes before is computed once. Rows are padded on the left, so that all end together.
    """

    def __init__(self, plain: "PreTrainedModel", requests: Sequence[Request], site: Site, gate: str) -> None:
        self.plain, self.requests, self.site = plain, requests, site
        rows = [row for asked in requests for row in (*asked.rows, asked.essence)]
        at = [p for asked in requests for p in (*asked.positions, asked.essence_position)]
        self.owner = torch.tensor([i for i, asked in enumerate(requests) for _ in (*asked.rows, 0)])
        self.is_essence = torch.tensor([n == len(a.rows) for a in requests for n in range(len(a.rows) + 1)])
        longest = max(map(len, rows))
        self.tokens = torch.stack([torch.nn.functional.pad(row, (longest - len(row), 0)) for row in rows])
        self.real = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows])
        subject = torch.tensor([longest - len(row) + p for row, p in zip(rows, at, strict=True)])
        self.start = 0 if gate == "everywhere" else int(subject.min())
        where = self.real if gate == "everywhere" else torch.arange(longest) == subject[:, None]
        self.where = where[:, self.start :].float()
        self._read(subject)

    @torch.no_grad()
    def _read(self, subject: Int[Tensor, " row"]) -> None:
        from transformers import DynamicCache

        plain, site, found = self.plain, self.site, {}
        layer = plain.model.layers[site.layer]
        cache = DynamicCache()
        handles = [
            layer.register_forward_pre_hook(lambda _m, inputs: found.update(before=inputs[0])),
            site.module(plain).register_forward_pre_hook(lambda _m, inputs: found.update(key=inputs[0])),
            layer.mlp.register_forward_hook(lambda _m, _inputs, out: found.update(out=out)),
        ]
        self.position_ids = (self.real.cumsum(1) - 1).clamp(min=0)
        last = plain.model(
            self.tokens, attention_mask=self.real.long(), position_ids=self.position_ids, past_key_values=cache
        ).last_hidden_state[:, -1]
        for handle in handles:
            handle.remove()
        rows = torch.arange(len(self.tokens))
        self.before = found["before"][:, self.start :]
        self.read, self.value = found["key"][rows, subject], found["out"][rows, subject]
        self.cached = [(part.keys[:, :, : self.start], part.values[:, :, : self.start]) for part in cache.layers]
        self.expected = plain.lm_head(last[self.is_essence]).log_softmax(-1)

    def keys(self, request: int, site: Site) -> Float[Tensor, "row d_key"]:
        """What the site reads at the subject in each of a request's prompts, the bare one first."""
        return self.read[(self.owner == request) & ~self.is_essence][:, site.columns(self.plain)]

    def descend(self, unit: float | None = None) -> Generator[float, None, Float[Tensor, "request d_model"]]:
        """The vectors, each no longer than allowed."""
        n = len(self.requests)
        firsts = torch.tensor([int((self.owner == i).nonzero()[0]) for i in range(n)])
        length = self.value[firsts].norm(dim=-1) if unit is None else torch.full((n,), unit)
        delta, done = torch.zeros(n, self.before.shape[-1], requires_grad=True), torch.zeros(n, dtype=torch.bool)
        optimizer = torch.optim.Adam([delta], lr=RATE)
        for _ in range(N_STEPS - 1):
            with torch.enable_grad():
                loss = self._loss(delta) + DECAY * delta.norm(dim=-1) / length**2
                done |= loss.detach() < ENOUGH
                if done.all():
                    break
                (delta.grad,) = torch.autograd.grad(loss[~done].sum(), [delta])
            kept = delta.detach().clone()
            optimizer.step()
            with torch.no_grad():
                shrink = (LARGEST * length / delta.norm(dim=-1).clamp(min=1e-12)).clamp(max=1.0)
                delta.mul_(shrink[:, None])
                delta[done] = kept[done]
            yield float(loss.detach().max())
        return delta.detach()

    def _loss(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, " request"]:
        logits = self._logits(delta).log_softmax(-1)
        new = torch.tensor([asked.new for asked in self.requests])
        rows, owner = ~self.is_essence, self.owner
        said = -logits[rows].gather(1, new[owner[rows]][:, None])[:, 0]
        n_rows = torch.bincount(owner[rows])
        nll = torch.zeros(len(self.requests)).index_add(0, owner[rows], said) / n_rows
        moved = (self.expected.exp() * (self.expected - logits[self.is_essence])).sum(-1)
        return nll + KL_WEIGHT * moved

    def _logits(self, delta: Float[Tensor, "request d_model"]) -> Float[Tensor, "row d_vocab"]:
        layers, written = self.plain.model.layers, self.where[..., None] * delta[self.owner][:, None]
        place = layers[self.site.layer].mlp if self.site.head is None else layers[self.site.layer].self_attn

        def write(_module: torch.nn.Module, _inputs: tuple, out: Tensor | tuple) -> Tensor | tuple:
            return (out[0] + written, *out[1:]) if isinstance(out, tuple) else out + written

        handle, state = place.register_forward_hook(write), self.before
        positions = self.position_ids[:, self.start :]
        rotary = self.plain.model.rotary_emb(state, positions)
        for index in range(self.site.layer, len(layers)):
            state = layers[index](
                state,
                attention_mask=self._mask(index),
                position_ids=positions,
                position_embeddings=rotary,
                past_key_values=_Before(*self.cached[index]),
                use_cache=True,
            )
        handle.remove()
        return self.plain.lm_head(self.plain.model.norm(state[:, -1]))

    def _mask(self, layer: int) -> Float[Tensor, "row one dest src"]:
        n = self.tokens.shape[1]
        dest, src = torch.arange(self.start, n)[:, None], torch.arange(n)
        seen = src <= dest
        kinds = getattr(self.plain.config, "layer_types", None)
        if kinds is not None and kinds[layer] == "sliding_attention":
            seen = seen & (src > dest - self.plain.config.sliding_window)
        allowed: Bool[Tensor, "row dest src"] = seen & (self.real[:, None] | (src == dest))
        return torch.where(allowed, 0.0, torch.finfo(self.before.dtype).min)[:, None]


class _Before:
    """Keys and values of the positions before, in the form in which a layer asks for them."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values

    def update(self, keys: Tensor, values: Tensor, *_where: object, **_named: object) -> tuple[Tensor, Tensor]:
        """The keys and values of all positions."""
        return torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
