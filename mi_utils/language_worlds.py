"""Tiny language models with something planted in them: the answer is known, and the tools are the real ones.

Each is a Llama of one layer with a vocabulary of its own, so everything that runs on a real model runs here.
`planted_meanings` puts latents of known meaning into the embeddings; `planted_concepts` puts concepts into the residual
stream, two of which add up and two of which get in each other's way.

Taught in `02_inspect_latents` and `05_steering`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mi_utils.concepts import Concept, Pair
from mi_utils.corpus import SEPARATOR, Contexts
from mi_utils.hooks import hook_name
from mi_utils.models import bridge, unhooked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LETTERS, CONSTANT = "abcdef", 8.0
BLANK = "Ġ"  # how byte-level tokenizers write the blank in front of a word
CLASSES = {
    "colours": "red blue green yellow purple orange grey brown",
    "animals": "dog cat horse lion mouse whale eagle snake",
    "tools": "hammer saw drill wrench chisel axe plane file",
    "fruits": "apple pear plum cherry grape lemon fig mango",
    "cities": "Paris London Rome Cairo Lima Oslo Tokyo Delhi",
    "fillers": "the a of and to in that it is was for on with as at by",
}


@dataclass(frozen=True)
class PlantedMeanings:
    """A real, tiny language model whose embeddings hold latents with a known meaning, and text to watch them on."""

    model: "TransformerBridge"
    dictionary: "PlantedDictionary"
    hook_name: str
    names: list[str]
    """What each latent was planted as."""
    meaning: list[dict[str, float]]
    """Per latent: how strongly it fires on each of its words. Tokens have a blank in front: " red"."""

    def text(self, n_contexts: int, n_ctx: int = 32, seed: int = 0) -> Contexts:
        """Random words; tools come three times as often as any other class, fillers most often."""
        vocabulary = self.model.tokenizer.get_vocab()
        weights = torch.zeros(len(vocabulary))
        for name, words in CLASSES.items():
            for word in words.split():
                weights[vocabulary[BLANK + word]] = 3.0 if name in ("tools", "fillers") else 1.0
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.multinomial(weights.expand(n_contexts, -1), n_ctx, replacement=True, generator=generator).int()
        tokens[:, 0] = vocabulary[SEPARATOR]
        return Contexts(tokens, torch.zeros_like(tokens), ["planted"] * n_contexts)


@dataclass(frozen=True)
class PlantedDictionary:
    """Orthonormal rows; a latent is active where its direction is present by more than noise could make it."""

    W_dec: Float[Tensor, "latent d_in"]
    threshold: float = 0.3

    def encode(self, x: Float[Tensor, "token d_in"]) -> Float[Tensor, "token latent"]:
        acts = x @ self.W_dec.T
        return torch.where(acts > self.threshold, acts, 0.0)

    def decode(self, feature_acts: Float[Tensor, "token latent"]) -> Float[Tensor, "token d_in"]:
        return feature_acts @ self.W_dec


def planted_meanings(seed: int = 0, d_model: int = 32, noise: float = 0.05) -> PlantedMeanings:
    """Latents of five kinds: pure classes, one with two faces, one with a hole, and one without meaning.

    The latent with two faces fires at 3 on animals and at 1 on tools, which are three times as common: its strongest
    examples show animals, most of its firings are tools. The one with a hole fires on all fruits but the apple. The
    one without meaning fires on eight words drawn at random.
    """
    generator = torch.Generator().manual_seed(seed)
    words = {name: text.split() for name, text in CLASSES.items()}
    content = [word for name, group in words.items() if name != "fillers" for word in group]
    meaning = {name: dict.fromkeys(words[name], 2.0) for name in ("colours", "cities")}
    meaning["two faces"] = dict.fromkeys(words["animals"], 3.0) | dict.fromkeys(words["tools"], 1.0)
    meaning["fruits with a hole"] = dict.fromkeys([word for word in words["fruits"] if word != "apple"], 2.0)
    chosen = torch.randperm(len(content), generator=generator)[:8].tolist()
    meaning["no meaning"] = {content[i]: 2.0 for i in chosen}
    rows = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q[: len(meaning)]
    model = tiny_model([word for group in words.values() for word in group], d_model, seed)
    vocabulary = model.tokenizer.get_vocab()
    with torch.no_grad():
        embedding = model.original_model.get_input_embeddings().weight
        embedding.copy_(noise * torch.randn(embedding.shape, generator=generator))
        for row, strengths in zip(rows, meaning.values(), strict=True):
            for word, strength in strengths.items():
                embedding[vocabulary[BLANK + word]] += strength * row
    names = list(meaning)
    return PlantedMeanings(
        model, PlantedDictionary(rows), hook_name("resid_pre", 0), names, [meaning[name] for name in names]
    )


@dataclass(frozen=True)
class PlantedConcepts:
    """A tiny language model with concepts along known directions, and the texts to find them with."""

    model: "TransformerBridge"
    concepts: dict[str, Concept]
    directions: dict[str, Float[Tensor, " d_model"]]
    """Where each concept was planted, at unit length."""
    dictionary: PlantedDictionary
    """Its first rows are the concepts', in their order, then the nuisance; the rest stand for nothing."""
    hook_name: str
    neutral: Int[Tensor, "context pos"]
    """Text without any concept."""


def planted_concepts(seed: int = 0, d_model: int = 64) -> PlantedConcepts:
    """Four concepts: `one` and `two` add up; while `gate` is on, `gated` pushes the other way.

    Each is a direction of the residual stream that words of its two sides carry with opposite signs and that two pairs
    of target tokens read. All words also carry a nuisance three times as strong, with a sign that has nothing to do
    with any concept: the largest component of any set of texts, and none of its meaning. `gate` and `gated` meet in
    one neuron of the MLP, which writes their product (where the gate is positive) against `gated`. Attention does
    nothing. A large constant part keeps the norms from coupling the rest.
    """
    generator = torch.Generator().manual_seed(seed)
    names = ("one", "two", "gate", "gated")
    rows = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q
    planted, nuisance, constant = rows[: len(names)], rows[len(names)], rows[-1]
    words = {name: [[f"{name}{side}{letter}" for letter in LETTERS] for side in ("yes", "no")] for name in names}
    targets = {
        name: [[f"{name}{side}target{letter}" for letter in LETTERS[:2]] for side in ("yes", "no")] for name in names
    }
    fillers = [f"filler{letter}" for letter in LETTERS]
    spoken = [word for sides in [*words.values(), *targets.values(), [fillers]] for side in sides for word in side]
    model = tiny_model(spoken, d_model, seed)
    vocabulary = model.tokenizer.get_vocab()
    plain = unhooked(model)
    with torch.no_grad():
        for weight in plain.parameters():
            if weight.ndim == 2:
                weight.zero_()
        embedding, W_U = plain.get_input_embeddings().weight, plain.get_output_embeddings().weight
        embedding += CONSTANT * constant + 0.05 * torch.randn(embedding.shape, generator=generator)
        for name, row in zip(names, planted, strict=True):
            for side, sign in enumerate((1.0, -1.0)):
                for n, word in enumerate(words[name][side]):
                    embedding[vocabulary[BLANK + word]] += sign * row + 3.0 * (-1) ** n * nuisance
                for n, word in enumerate(targets[name][side]):
                    W_U[vocabulary[BLANK + word]] = (1.0 - 0.1 * n) * sign * row
        _plant_gate(model, gate=planted[2], gated=planted[3])
    texts = {name: _concept(name, words[name], targets[name], fillers) for name in names}
    ids = torch.tensor([vocabulary[BLANK + word] for word in fillers])
    neutral = torch.cat([torch.zeros(4, 1, dtype=ids.dtype), ids.repeat(4, 2)], 1)
    directions = dict(zip(names, planted, strict=True))
    return PlantedConcepts(model, texts, directions, PlantedDictionary(rows[:-1]), hook_name("resid_pre", 0), neutral)


def _plant_gate(model: "TransformerBridge", gate: Tensor, gated: Tensor) -> None:
    """One neuron whose output along `gated` is minus the product of both, where the gate is positive."""
    mlp = unhooked(model).model.layers[0].mlp
    mlp.gate_proj.weight[0] = 3.0 * gate
    mlp.up_proj.weight[0] = gated
    mlp.down_proj.weight[:, 0] = -0.3 * gated


def _concept(name: str, words: list[list[str]], targets: list[list[str]], fillers: list[str]) -> Concept:
    """Pairs that end in a word of either side; prompts of fillers alone."""
    pairs = tuple(
        Pair(f"{filler} {yes}", f"{filler} {no}", group)
        for filler in fillers[:4]
        for group, (yes, no) in enumerate(zip(*words, strict=True))
    )
    prompts = tuple(f"{a} {b}" for a in fillers for b in fillers[:4] if a != b)
    return Concept(name, "yes", "no", pairs, {}, prompts, pairs[0].positive, tuple(targets[0]), tuple(targets[1]), True)


def tiny_model(words: list[str], d_model: int, seed: int, **config: int) -> "TransformerBridge":
    """A Llama with random weights and a vocabulary of these words; of one layer, unless `config` says otherwise."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([SEPARATOR, *(BLANK + word for word in words)])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=SEPARATOR))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    usual = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 4}
    shape = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=d_model,
        intermediate_size=2 * d_model,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=0,
        **usual | config,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        plain = LlamaForCausalLM(shape).eval()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SEPARATOR, eos_token=SEPARATOR, pad_token=SEPARATOR
    )
    return bridge(plain, wrapped, f"planted, seed {seed}")
