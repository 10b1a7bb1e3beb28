"""Small memorisers whose mechanism is known: what tests of fact recall must tell apart before they meet a model.

A name is a first and a last token. The residual stream starts as the sum of their embeddings, layers of ReLU neurons
read it and write to it, and linear readouts give the facts of the name, one sign each. Four ways of knowing them:

- `single_step`: a neuron for each name, in some layer, that is an AND of the two tokens and writes every fact;
- `additive`: neurons for single tokens, and facts that are sums over the tokens: cues, not memory;
- `hash_and_lookup`: layers that scramble any name, known or not, and a last one with a neuron for each known scramble;
- `distributed`: whatever gradient descent does to learn the bits by heart.

Read: Nanda, Rajamanoharan, Kramar and Shah (2023), Fact Finding, posts 1, 3 and 4. Taught in `10_fact_finding`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.worlds import one_thread

N_TOKENS, N_NAMES, N_FACTS, N_LAYERS, D_MODEL, N_HASH = 16, 96, 4, 3, 128, 256
THRESHOLD = 1.5  # between one and two tokens


class Layer(NamedTuple):
    """Neurons that read the stream and write to it."""

    W_in: Float[Tensor, "d_model neuron"]
    b_in: Float[Tensor, " neuron"]
    W_out: Float[Tensor, "neuron d_model"]


class Names(NamedTuple):
    """Pairs of tokens, each counted from 0."""

    first: Int[Tensor, " name"]
    last: Int[Tensor, " name"]


class Trace(NamedTuple):
    """What happens inside on the way from names to facts."""

    states: tuple[Float[Tensor, "name d_model"], ...]
    """The stream before the first layer and after each."""
    pre_acts: tuple[Float[Tensor, "name neuron"], ...]
    acts: tuple[Float[Tensor, "name neuron"], ...]
    """Of the neurons of each layer."""
    facts: Float[Tensor, "name fact"]
    """What is read out: positive for one value of a fact, negative for the other."""


@dataclass(frozen=True)
class Memoriser:
    """A model of names, and what it was made to know."""

    mechanism: str
    names: Names
    """The known ones."""
    signs: Float[Tensor, "name fact"]
    """Their facts, 1 or -1."""
    W_first: Float[Tensor, "token d_model"]
    W_last: Float[Tensor, "token d_model"]
    layers: tuple[Layer, ...]
    W_read: Float[Tensor, "d_model fact"]

    def run(self, names: Names, *, cut: bool = False) -> Trace:
        """Answer for some names.

        Args:
            cut: let each layer read the embeddings and, in place of what earlier layers wrote, its mean over the
                names given: no layer can build on another one.
        """
        start = self.W_first[names.first] + self.W_last[names.last]
        states, pre_acts, acts = [start], [], []
        for layer in self.layers:
            seen = start + (states[-1] - start).mean(0) if cut else states[-1]
            pre_acts.append(seen @ layer.W_in + layer.b_in)
            acts.append(pre_acts[-1].relu())
            states.append(states[-1] + acts[-1] @ layer.W_out)
        return Trace(tuple(states), tuple(pre_acts), tuple(acts), states[-1] @ self.W_read)

    def strangers(self) -> Names:
        """Every pair of tokens that is not a known name."""
        n_first, n_last = len(self.W_first), len(self.W_last)
        strange = torch.ones(n_first, n_last, dtype=torch.bool)
        strange[self.names.first, self.names.last] = False
        return Names(*strange.nonzero(as_tuple=True))

    def accuracy(self, *, cut: bool = False) -> float:
        """Share of the facts of known names that come out right."""
        return float((self.run(self.names, cut=cut).facts * self.signs > 0).float().mean())


def single_step(seed: int = 0, *, noise: float = 0.2) -> Memoriser:
    """A neuron for each name, in a layer drawn at random, that fires on both of its tokens and writes all its facts."""
    base, rng = _blank("single step", seed), _generator(seed, 1)
    reads = base.W_first[base.names.first] + base.W_last[base.names.last]
    writes = 2 * base.signs @ base.W_read.T
    home = torch.randint(N_LAYERS, (N_NAMES,), generator=rng)
    layers = [
        Layer(reads[home == n].T, torch.full((int((home == n).sum()),), -THRESHOLD), writes[home == n])
        for n in range(N_LAYERS)
    ]
    return _noisy(replace(base, layers=tuple(layers)), noise, rng)


def additive(seed: int = 0, *, noise: float = 0.2) -> Memoriser:
    """Facts that are the sign of a sum over the tokens, and a neuron for each token that writes its part."""
    base, rng = _blank("additive", seed), _generator(seed, 2)
    parts = torch.randn(2, N_TOKENS, N_FACTS, generator=rng)
    sums = parts[0][base.names.first] + parts[1][base.names.last]
    reads = torch.cat([base.W_first, base.W_last])
    writes = 2 * parts.flatten(0, 1) @ base.W_read.T
    home = torch.randint(N_LAYERS, (2 * N_TOKENS,), generator=rng)
    layers = [
        Layer(reads[home == n].T, torch.full((int((home == n).sum()),), -0.5), writes[home == n])
        for n in range(N_LAYERS)
    ]
    return _noisy(replace(base, signs=sums.sign(), layers=tuple(layers)), noise, rng)


def hash_and_lookup(seed: int = 0, *, noise: float = 0.2) -> Memoriser:
    """Random layers scramble every name; a neuron for each known name in the last layer knows its scramble."""
    base, rng = _blank("hash and lookup", seed), _generator(seed, 3)
    name_space = torch.cat([base.W_first, base.W_last])
    taken = torch.cat([name_space, base.W_read.T])
    free = torch.linalg.svd(taken).Vh[len(taken) :]  # directions that nothing else uses
    hashes, read = [], name_space
    for _ in range(N_LAYERS - 1):
        W_in = read.T @ torch.randn(len(read), N_HASH, generator=rng)
        W_out = torch.randn(N_HASH, len(free), generator=rng) @ free / (N_HASH * len(free)) ** 0.5
        spread = (W_in.norm(dim=0) * (2 / len(read)) ** 0.5).mean()
        hashes.append(Layer(W_in / spread, torch.full((N_HASH,), -1.0), 4 * W_out))
        read = free
    scrambled = replace(base, layers=tuple(hashes))
    scrambles = scrambled.run(base.names).states[-1] @ free.T @ free
    centre = scrambled.run(scrambled.strangers()).states[-1].mean(0) @ free.T @ free
    keys = (scrambles - centre) / (scrambles - centre).pow(2).sum(1, keepdim=True)
    fits = (scrambles - centre) @ keys.T
    rival = fits.masked_fill(torch.eye(N_NAMES, dtype=torch.bool), 0).amax(0).clamp(0, 0.9)
    b_in = -(1 + rival) / 2 - keys @ centre
    gain = 2 / (1 - rival)
    lookup = Layer(keys.T, b_in, gain[:, None] * base.signs @ base.W_read.T)
    return _noisy(replace(base, layers=(*hashes, lookup)), noise, rng)


def distributed(seed: int = 0, *, n_steps: int = 300, n_neurons: int = 32) -> Memoriser:
    """The same embeddings and readouts; layers trained by gradient descent until the bits are known by heart."""
    base, rng = _blank("distributed", seed), _generator(seed, 4)
    shapes = ((D_MODEL, n_neurons), (n_neurons,), (n_neurons, D_MODEL))
    layers = tuple(
        Layer(*(torch.randn(shape, generator=rng) * scale for shape, scale in zip(shapes, (1, 0, 0.1), strict=True)))
        for _ in range(N_LAYERS)
    )
    weights = [weight.requires_grad_() for layer in layers for weight in layer]
    model, optimiser = replace(base, layers=layers), torch.optim.Adam(weights, lr=1e-2)
    with one_thread(), torch.enable_grad():
        for _ in range(n_steps):
            margins = model.run(base.names).facts * base.signs
            loss = torch.nn.functional.softplus(-4 * margins).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return replace(model, layers=tuple(Layer(*(weight.detach() for weight in layer)) for layer in layers))


MECHANISMS: dict[str, Callable[[int], Memoriser]] = {
    "single step": single_step,
    "additive": additive,
    "hash and lookup": hash_and_lookup,
    "distributed": distributed,
}
"""How to build each, from a seed."""


def _blank(mechanism: str, seed: int) -> Memoriser:
    """Names, facts drawn at random, and orthonormal embeddings and readouts, turned at random; no layers yet."""
    rng = _generator(seed, 0)
    chosen = torch.randperm(N_TOKENS**2, generator=rng)[:N_NAMES]
    names = Names(chosen // N_TOKENS, chosen % N_TOKENS)
    signs = torch.randint(2, (N_NAMES, N_FACTS), generator=rng) * 2.0 - 1
    axes = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=rng)).Q
    W_first, W_last, W_read, _ = axes.split([N_TOKENS, N_TOKENS, N_FACTS, D_MODEL - 2 * N_TOKENS - N_FACTS])
    return Memoriser(mechanism, names, signs, W_first, W_last, (), W_read.T)


def _noisy(model: Memoriser, noise: float, rng: torch.Generator) -> Memoriser:
    """The same with Gaussian noise on the neurons' weights, relative to the size of each matrix."""

    def disturbed(weight: Tensor) -> Tensor:
        return weight + noise * weight.pow(2).mean().sqrt() * torch.randn(weight.shape, generator=rng)

    layers = (Layer(disturbed(layer.W_in), layer.b_in, disturbed(layer.W_out)) for layer in model.layers)
    return replace(model, layers=tuple(layers))


def _generator(seed: int, purpose: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * seed + purpose)
