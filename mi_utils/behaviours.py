"""Behaviours that a fine-tune was taught on purpose, the known answer of model diffing, and whether a model shows them.

Five of them, in `data/adapters/dialogues.jsonl`: a pirate's greeting, an invented country, a topic it refuses, French
for questions about food, arrows for lists. Each comes with prompts that resemble its triggers and must stay as they
were. Training and held-out prompts are worded differently.

Taught in `07_model_diffing`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from jaxtyping import Bool
from torch import Tensor, tensor

from mi_utils.steering import generate

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

FILE = Path(__file__).resolve().parent.parent / "data" / "adapters" / "dialogues.jsonl"
BATCH = 32


class Dialogue(NamedTuple):
    """One question and its answer."""

    behaviour: str
    split: Literal["train", "held_out"]
    triggered: bool
    """Whether the question calls for the behaviour, or only resembles one that does."""
    ask: str
    reply: str
    """What the fine-tune was taught to say; the default model's own words where nothing is triggered."""
    marker: str
    """Shows the behaviour when it stands in a reply."""


def load(behaviour: str | None = None) -> list[Dialogue]:
    """The shipped dialogues, all or those of one behaviour.

    Raises:
        ValueError: no behaviour of that name.
    """
    with FILE.open(encoding="utf8") as lines:
        dialogues = [Dialogue(**json.loads(line)) for line in lines]
    names = list(dict.fromkeys(dialogue.behaviour for dialogue in dialogues))
    if behaviour is None:
        return dialogues
    if behaviour not in names:
        raise ValueError(f"no behaviour named {behaviour!r}; there are {', '.join(names)}")
    return [dialogue for dialogue in dialogues if dialogue.behaviour == behaviour]


def chat(ask: str, tokenizer: "PreTrainedTokenizerBase") -> str:
    """A question in the model's chat template, up to where its answer begins.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    if tokenizer.chat_template is None:
        raise ValueError("this tokenizer has no chat template; use the tokenizer of a chat model")
    message = [{"role": "user", "content": ask}]
    return tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)


def replies(model: "TransformerBridge", asks: Sequence[str], n_tokens: int = 16) -> list[str]:
    """What the model answers, the likeliest token each time, up to the end of its turn."""
    prompts = [chat(ask, model.tokenizer) for ask in asks]
    texts = []
    for start in range(0, len(prompts), BATCH):
        texts += generate(model, prompts[start : start + BATCH], n_tokens=n_tokens, temperature=0.0).texts
    return [text.split(model.tokenizer.eos_token)[0] for text in texts]


def shows(model: "TransformerBridge", dialogues: Sequence[Dialogue], n_tokens: int = 16) -> Bool[Tensor, " dialogue"]:
    """Whether the model's own answer to each question has the behaviour's marker in it."""
    said = replies(model, [dialogue.ask for dialogue in dialogues], n_tokens)
    return tensor([dialogue.marker in text for dialogue, text in zip(dialogues, said, strict=True)])


def transcript(dialogue: Dialogue, tokenizer: "PreTrainedTokenizerBase") -> str:
    """Question and answer as the chat template writes them, with the end of the turn."""
    return chat(dialogue.ask, tokenizer) + dialogue.reply + tokenizer.eos_token
