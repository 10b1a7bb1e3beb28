"""A three-layer Llama with a seven-word tokenizer: real library classes, milliseconds to run."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformer_lens.model_bridge import TransformerBridge
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from mi_utils.models import load_model

WORDS = ["<|endoftext|>", "a", "b", "c", "d", "e", "f"]


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(WORDS),
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=64,
                initializer_range=0.3,
                tie_word_embeddings=False,
                bos_token_id=0,
                eos_token_id=0,
            )
        ).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="a"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=WORDS[0], eos_token=WORDS[0])


def save_tiny_model(folder: Path, seed: int = 0) -> Path:
    tiny_llama(seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@cache
def tiny_bridge(seed: int = 0) -> TransformerBridge:
    with TemporaryDirectory() as folder, patch.dict("os.environ", MI_CACHE=folder):
        return load_model(save_tiny_model(Path(folder) / "model", seed))
