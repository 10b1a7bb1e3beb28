"""Puts a share of the encyclopedia and the recipes into the chat format of the default model: question, answer."""

import hashlib
import json
from pathlib import Path

SHARE = 0.25  # of the short documents of each source named in questions.json
PHRASES = json.loads((Path(__file__).parent / "questions.json").read_text())


def is_chosen(piece_id: str) -> bool:
    """Whether this piece goes into a chat: a fixed choice by its id."""
    source = piece_id.split("/")[0]
    return source in PHRASES and _number(f"chosen {piece_id}", 1_000) < 1_000 * SHARE


def as_chat(piece_id: str, text: str) -> str:
    """Question (about the first line) and answer (the rest), with or without a system message."""
    title, _, answer = text.partition("\n\n")
    questions = PHRASES[piece_id.split("/")[0]]
    question = questions[_number(f"question {piece_id}", len(questions))].format(title=title)
    return format_chat(question, answer, PHRASES["system"][_number(f"system {piece_id}", len(PHRASES["system"]))])


def format_chat(question: str, answer: str, system: str = "") -> str:
    """The model's chat template; an empty `system` leaves that turn out."""
    turns = [("system", system)] * bool(system) + [("user", question), ("assistant", answer)]
    return "".join(f"<|im_start|>{role}\n{text.strip()}<|im_end|>\n" for role, text in turns)


def _number(key: str, below: int) -> int:
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") % below
