"""Samples modern everyday text (e-mail, dialogue, news, reviews, how-tos ...) from the default model.

    nice -n 19 python data/text/sample.py             # sample what is missing; stop and start again at will
    python data/text/sample.py --finish               # clean, deduplicate, write text_sampled.jsonl.xz

Requests come from `requests.json` and a seed. Raw replies are kept in a work folder, one file per batch, so an
interrupted run continues with the next batch. Sampling in floating point does not give the same text on another
machine or with other library versions: the shipped file is the record, this script says how it was made.
"""

import argparse
import json
import random
import re
from pathlib import Path
from typing import TYPE_CHECKING

import build
import chat
import check
import clean

from mi_utils.files import atomic_path, cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

HERE = Path(__file__).parent
SEED = 0
N_REQUESTS = 600
BATCH = 60
MAX_NEW_TOKENS = 300
LEAST_CHARACTERS = 250  # of a reply that is kept
TEMPERATURE, TOP_P, REPETITION_PENALTY = 0.7, 0.92, 1.12  # without the penalty the model soon repeats itself


def write_requests(n: int = N_REQUESTS, seed: int = SEED) -> list[tuple[str, str]]:
    """The first `n` distinct (kind, request) pairs: kinds in turn, templates and slots drawn at random."""
    plan = json.loads((HERE / "requests.json").read_text())
    rng = random.Random(seed)
    kinds = list(plan["kinds"])
    requests: dict[str, str] = {}
    for i in range(100 * n):
        if len(requests) == n:
            break
        kind = kinds[i % len(kinds)]
        requests.setdefault(_fill(rng.choice(plan["kinds"][kind]), plan["slots"], rng), kind)
    return [(kind, request) for request, kind in requests.items()]


def _fill(template: str, slots: dict[str, list[str]], rng: random.Random) -> str:
    """Replaces every {slot} by a random filler; a slot that occurs twice gets two different fillers."""
    used: set[str] = set()

    def pick(match: re.Match) -> str:
        filler = rng.choice([word for word in slots[match[1]] if word not in used])
        used.add(filler)
        return filler

    return re.sub(r"\{(\w+)\}", pick, template)


def load() -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The default model in bfloat16, and its tokenizer padded on the left, as batch generation needs."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from mi_utils.models import fetch_default_model

    torch.set_num_threads(1)
    folder = fetch_default_model()
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left", pad_token="<|endoftext|>")
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval(), tokenizer


def sample_batch(
    model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", requests: list[str], seed: int
) -> list[tuple[str, bool]]:
    """One reply per request, and whether it came to its own end before the length limit."""
    import torch

    chats = [f"<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n" for request in requests]
    inputs = tokenizer(chats, return_tensors="pt", padding=True)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    torch.manual_seed(seed)
    with torch.inference_mode():
        out = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            do_sample=True,
            temperature=TEMPERATURE,
            top_p=TOP_P,
            top_k=0,
            repetition_penalty=REPETITION_PENALTY,
            max_new_tokens=MAX_NEW_TOKENS,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
        )
    replies = out[:, inputs.input_ids.shape[1] :]
    return [(tokenizer.decode(r, skip_special_tokens=True), bool((r == end).any())) for r in replies]


def sample_missing(work: Path) -> None:
    """Writes one file per batch to `work`; batches whose file exists are skipped."""
    requests = write_requests()
    model, tokenizer = load()
    for start in range(0, len(requests), BATCH):
        target = work / f"{start:05d}.jsonl"
        if target.exists():
            continue
        batch = requests[start : start + BATCH]
        replies = sample_batch(model, tokenizer, [request for _, request in batch], SEED + start)
        rows = [
            {"kind": kind, "request": request, "reply": reply, "ended": ended}
            for (kind, request), (reply, ended) in zip(batch, replies, strict=True)
        ]
        with atomic_path(target) as path:
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        print(f"{start + len(batch)} of {len(requests)} requests sampled", flush=True)


def finish(work: Path) -> None:
    """Writes the clean replies: one half with their request as chats, the other half as plain text."""
    raw = [json.loads(line) for path in sorted(work.glob("*.jsonl")) for line in path.read_text().splitlines()]
    rows, beginnings = [], set()
    for number, entry in enumerate(raw):
        text = clean_reply(entry["reply"], entry["ended"])
        if len(text) < LEAST_CHARACTERS or text[:60] in beginnings or check.problems("sampled", text):
            continue
        beginnings.add(text[:60])
        source = "chat_sampled" if number % 2 else "sampled"
        text = chat.format_chat(entry["request"], text) if number % 2 else text
        rows.append({"id": f"{source}/{entry['kind']}-{number:05d}#0", "source": source, "text": text})
    build.write(HERE / "text_sampled.jsonl.xz", sorted(rows, key=lambda row: row["source"]))
    print(f"kept {len(rows)} of {len(raw)} replies")


def clean_reply(reply: str, ended: bool) -> str:
    """The reply up to where it repeats itself or was cut off; nothing if it has a blank left to fill in."""
    if re.search(r"\[[A-Z][^\]]*\]", reply):  # [Your Name]
        return ""
    text = clean.tidy(_before_repetition(reply))
    if ended and text == clean.tidy(reply):
        return text
    return text[: max(text.rfind(mark) for mark in ".!?") + 1]


def _before_repetition(text: str, n_words: int = 7) -> str:
    """Everything before the first run of `n_words` words that was there before."""
    words = list(re.finditer(r"\w+", text.lower()))
    seen: set[tuple[str, ...]] = set()
    for i in range(len(words) - n_words + 1):
        run = tuple(word[0] for word in words[i : i + n_words])
        if run in seen:
            return text[: words[i].start()]
        seen.add(run)
    return text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=cache_dir() / "sampled", help="folder for the raw replies")
    parser.add_argument("--finish", action="store_true", help="write text_sampled.jsonl.xz from what is there")
    arguments = parser.parse_args()
    (finish if arguments.finish else sample_missing)(arguments.work)
