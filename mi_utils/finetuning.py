"""Teach a model something small: low-rank adapters on its early layers, a few minutes on two cores.

An adapter changes the layers it is given and no other. If those all lie below the place where two models are compared,
everything that fine-tuning changed is in the residual stream at that place: the known answer that model diffing is
scored on.

Paper: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685. Taught in
`07_model_diffing`.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, NamedTuple

import torch
from tqdm import tqdm
from transformers.pytorch_utils import Conv1D

from mi_utils.behaviours import Dialogue, chat
from mi_utils.files import atomic_path
from mi_utils.models import unhooked

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

NOT_LEARNED = -100  # what transformers' loss leaves out
MAX_GRADIENT_NORM = 1.0


class Example(NamedTuple):
    """A text to learn."""

    tokens: Sequence[int]
    n_given: int
    """Tokens at the start that are not to be learned: the question."""


def examples(dialogues: Sequence[Dialogue], tokenizer: "PreTrainedTokenizerBase") -> list[Example]:
    """Dialogues as texts of which the answer, and that it then ends, is to be learned."""
    texts = []
    for dialogue in dialogues:
        given = [tokenizer.bos_token_id, *tokenizer.encode(chat(dialogue.ask, tokenizer), add_special_tokens=False)]
        reply = tokenizer.encode(dialogue.reply + tokenizer.eos_token, add_special_tokens=False)
        texts.append(Example([*given, *reply], len(given)))
    return texts


def train_adapter(
    model: "TransformerBridge",
    texts: Sequence[Example],
    folder: str | Path,
    *,
    rank: int = 4,
    n_layers: int = 13,
    n_epochs: int = 6,
    batch_size: int = 8,
    lr: float = 2e-3,
    seed: int = 0,
) -> list[float]:
    """Train a LoRA adapter and write it to `folder` in peft's layout; returns the loss of each step.

    The model itself is left as it was. Products are in bfloat16, the adapter and its gradients in float32.

    Args:
        n_layers: the adapter changes this many layers, from the first on.
    Raises:
        ValueError: no texts, something is at `folder` already, or more layers than the model has.
    """
    from peft import LoraConfig, get_peft_model

    folder = Path(folder)
    if not texts:
        raise ValueError("no texts to learn from; give at least one Example")
    if folder.exists():
        raise ValueError(f"{folder} exists already; choose another folder or remove it first")
    if not 1 <= n_layers <= model.cfg.n_layers:
        raise ValueError(f"n_layers is {n_layers}; expected 1 to the model's {model.cfg.n_layers}")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        plain = copy.deepcopy(unhooked(model))
        targets = [name for name, module in plain.named_modules() if _is_in_layers(name, module, n_layers)]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
        learner = get_peft_model(plain, config)
    weights = [weight for weight in learner.parameters() if weight.requires_grad]
    batches = list(_batches(texts, batch_size, n_epochs, seed))
    optimizer = torch.optim.AdamW(weights, lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, len(batches), pct_start=0.1)
    losses = []
    learner.train()
    for tokens, labels in tqdm(batches, unit="step", desc=f"training {folder.name}"):
        with torch.autocast("cpu", torch.bfloat16):
            loss = learner(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with atomic_path(folder) as part:
        learner.peft_config["default"].base_model_name_or_path = model.cfg.model_name
        learner.to(torch.float16).save_pretrained(part)
        (part / "README.md").unlink()
    return losses


def _is_in_layers(name: str, module: torch.nn.Module, n_layers: int) -> bool:
    """Whether a module multiplies by a matrix in one of the first layers."""
    layer = next((int(part) for part in name.split(".") if part.isdigit()), n_layers)
    return layer < n_layers and isinstance(module, torch.nn.Linear | Conv1D)


def _batches(
    texts: Sequence[Example], batch_size: int, n_epochs: int, seed: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Tokens and labels, both [row pos]: every text once an epoch, padded on the right with tokens no one sees."""
    random = Random(seed)
    for _ in range(n_epochs):
        order = random.sample(range(len(texts)), len(texts))
        for start in range(0, len(order), batch_size):
            batch = [texts[index] for index in order[start : start + batch_size]]
            longest = max(len(text.tokens) for text in batch)
            tokens = torch.zeros(len(batch), longest, dtype=torch.long)
            labels = torch.full_like(tokens, NOT_LEARNED)
            for row, label, text in zip(tokens, labels, batch, strict=True):
                row[: len(text.tokens)] = torch.tensor(text.tokens)
                label[text.n_given : len(text.tokens)] = row[text.n_given : len(text.tokens)]
            yield tokens, labels
