"""Text to train and measure on: the bundled corpus, text of your own, or a hub dataset, cut into fixed contexts.

The bundled corpus is described in `data/README.md`: 13.8 million tokens of freely licensed English from about
twenty sources, checked against recorded checksums when loaded. Documents are split into training and held-out parts
before anything is tokenised, so that no held-out document shares a context with a training one.

Contexts are made as in pretraining: every document opens with the separator `<|endoftext|>`, documents follow one
another, and every context starts with a separator even where it cuts a document. `notebooks/01_train_an_sae` uses it.
"""

import hashlib
import json
import lzma
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Int, Int32
from torch import Tensor

from mi_utils.files import sha256

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = Path(__file__).parent.parent / "data" / "text"
SEPARATOR = "<|endoftext|>"
CHAT = "chat_"  # sources with this prefix are written in the chat template: their marks become special tokens
MIXED = "mixed"
CHARACTERS_PER_TOKEN = 4.0  # the bundled corpus has 4.01 with the default model's tokenizer
BATCH = 1_000  # documents tokenised at once


@dataclass(frozen=True)
class Document:
    """One piece of text."""

    id: str
    """Unique. What stands before the last `#` names the original (a chapter, an article): its pieces stay together."""
    source: str
    """Where it comes from; a name that starts with `chat_` says that chat marks in the text are meant."""
    text: str


@dataclass(frozen=True)
class Split:
    """Two lists of documents that share no original document."""

    train: list[Document]
    held_out: list[Document]


@dataclass(frozen=True)
class Contexts:
    """Token contexts of equal length, ready for a model."""

    tokens: Int32[Tensor, "context pos"]
    """Token ids; position 0 is always the separator."""
    document_ids: Int32[Tensor, "context pos"]
    """Index into the list of documents given to `contexts`; a separator belongs to the document after it."""
    sources: list[str]
    """Per context: the source all its documents share, or `mixed` at the border between two sources."""

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: slice | Sequence[int] | Tensor) -> "Contexts":
        """The contexts at a slice or a list of positions."""
        if isinstance(index, int):
            raise ValueError(f"Got the position {index}; expected a slice or a list: contexts[{index} : {index + 1}].")
        rows = torch.arange(len(self))[index]
        return Contexts(self.tokens[rows], self.document_ids[rows], [self.sources[i] for i in rows.tolist()])

    def shuffled(self, seed: int) -> "Contexts":
        """The same contexts in a random order."""
        return self[torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))]


# ------------------------------------------------------------------------------------------ where documents come from
def load_corpus(sources: Iterable[str] | None = None, *, folder: str | Path = FOLDER) -> list[Document]:
    """The bundled documents, after their files have been compared with the recorded checksums.

    Args:
        sources: names to keep, see `source_sizes`; all when not given.
        folder: where the files and their `manifest.json` are.
    Raises:
        ValueError: a file is missing, truncated or altered, or a source is unknown.
    """
    wanted = None if sources is None else set(sources)
    known = source_sizes(folder)
    if wanted is not None and (unknown := wanted - known.keys()):
        raise ValueError(f"There is no source {sorted(unknown)}. Expected some of: {', '.join(known)}.")
    documents = []
    for path, parts in _verified_files(Path(folder)):
        if wanted is None or wanted & parts.keys():
            rows = map(json.loads, lzma.decompress(path.read_bytes()).decode("utf-8").splitlines())
            documents += [Document(**row) for row in rows if wanted is None or row["source"] in wanted]
    return documents


def source_sizes(folder: str | Path = FOLDER) -> dict[str, int]:
    """Tokens per bundled source, counted with the default model's tokenizer when the files were built."""
    manifest = _manifest(Path(folder))
    return {name: part["tokens"] for entry in manifest.values() for name, part in entry["sources"].items()}


def load_text(path: str | Path) -> list[Document]:
    """Your own text: a `.txt` or `.md` file (one document), a `.jsonl` file (one per line), or a folder of them.

    A line of a `.jsonl` file is an object with "text", and "id" and "source" if you like. Documents without a source
    take the name of the file or folder.

    Raises:
        ValueError: no such path, nothing readable in it, a line that is no such object, or an empty text.
    """
    path = Path(path).expanduser()
    kinds = (".txt", ".md", ".jsonl")
    files = sorted(p for p in path.rglob("*") if p.suffix in kinds) if path.is_dir() else [path]
    if not files or not all(p.is_file() and p.suffix in kinds for p in files):
        raise ValueError(f"Found no text at {path}. Expected a {', '.join(kinds)} file, or a folder of them.")
    documents = [document for file in files for document in _read_file(file, path)]
    for document in documents:
        _check_not_empty(document)
    return documents


def load_hub_dataset(
    name: str, config: str | None = None, *, split: str = "train", column: str = "text", n_documents: int = 1_000
) -> list[Document]:
    """The first documents of a dataset on the Hugging Face hub, streamed, so that only these are transferred.

    Raises:
        ConnectionError: the hub is out of reach.
        ValueError: there is no such dataset, split or text column, or a document is empty.
    """
    documents = []
    for number, row in enumerate(_first_rows(name, config, split, n_documents)):
        if not isinstance(row.get(column), str):
            raise ValueError(f"{name} has no text column {column!r}; it has {', '.join(row)}. Pass column=...")
        documents.append(Document(f"{name}/{number}", name, row[column]))
        _check_not_empty(documents[-1])
    return documents


def _first_rows(name: str, config: str | None, split: str, n_rows: int) -> list[dict[str, Any]]:
    import datasets
    from huggingface_hub import dataset_info
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        dataset_info(name, timeout=10)  # answers at once, where the stream would retry for minutes
        return list(islice(datasets.load_dataset(name, config, split=split, streaming=True), n_rows))
    except (RepositoryNotFoundError, HFValidationError, ValueError) as error:
        raise ValueError(f"The hub has no dataset {name!r} ({config=}, {split=}): {error}") from error
    except Exception as error:  # each HTTP client has its own family of network errors
        raise ConnectionError(
            f"The hub is out of reach ({type(error).__name__}), so {name!r} cannot be streamed. Check the network and "
            "HF_HUB_OFFLINE, or use the bundled text: load_corpus()."
        ) from error


def _manifest(folder: Path) -> dict[str, dict]:
    try:
        return json.loads((folder / "manifest.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"No readable manifest.json in {folder}. Restore data/text, or run `./lab data`.") from error


def _verified_files(folder: Path) -> Iterator[tuple[Path, dict[str, dict]]]:
    for name, entry in _manifest(folder).items():
        path = folder / name
        found = sha256(path) if path.exists() else "no file"
        if found != entry["sha256"]:
            raise ValueError(
                f"{path} is not the file on record: expected SHA-256 {entry['sha256']}, found {found}. It is missing, "
                "truncated or altered: restore data/text from version control, or run `./lab data`."
            )
        yield path, entry["sources"]


def _read_file(file: Path, given: Path) -> Iterator[Document]:
    name, source = str(file.relative_to(given.parent)), given.stem
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".jsonl":
        yield Document(name, source, text)
        return
    for number, line in enumerate(text.splitlines(), start=1):
        try:
            row = json.loads(line)
            yield Document(str(row.get("id", f"{name}:{number}")), str(row.get("source", source)), row["text"])
        except (json.JSONDecodeError, KeyError, AttributeError) as error:
            expected = 'expected an object such as {"text": "..."}'
            raise ValueError(f"{file}, line {number}: {expected}, got {line[:80]!r}") from error


def _check_not_empty(document: Document) -> None:
    if not document.text.strip():
        raise ValueError(f"Document {document.id!r} has no text. Leave it out.")


# ------------------------------------------------------------------------------------------ choosing documents
def split_held_out(documents: Iterable[Document], share: float = 0.02, seed: int = 0) -> Split:
    """Holds back about `share` of the original documents; pieces of one original go to the same side.

    The side depends on the id and the seed alone, never on what else is in the list.

    Raises:
        ValueError: `share` is not between 0 and 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"Got share={share}; expected a number between 0 and 1, such as 0.02.")
    split = Split([], [])
    for document in documents:
        original = document.id.rsplit("#", 1)[0]
        number = int.from_bytes(hashlib.sha256(f"{seed} {original}".encode()).digest()[:8], "big")
        (split.held_out if number < share * 2**64 else split.train).append(document)
    return split


def sample(documents: Sequence[Document], n_tokens: int, seed: int = 0) -> list[Document]:
    """A random choice of whole documents with about `n_tokens` tokens in all and the same mix of sources.

    Tokens are estimated as characters / 4, so that nothing need be tokenised; every source gives at least one document.

    Raises:
        ValueError: there are no documents, or not enough text.
    """
    available = sum(len(document.text) for document in documents) / CHARACTERS_PER_TOKEN
    if not 0 < n_tokens <= available:
        raise ValueError(f"Got n_tokens={n_tokens:,}; expected 1 to {int(available):,}, about what there is.")
    by_source: dict[str, list[int]] = {}
    for index, document in enumerate(documents):
        by_source.setdefault(document.source, []).append(index)
    chosen: list[int] = []
    for source, indices in by_source.items():
        random.Random(f"{seed} {source}").shuffle(indices)
        chosen += _fill(indices, documents, share=n_tokens / available)
    return [documents[index] for index in sorted(chosen)]


def _fill(indices: list[int], documents: Sequence[Document], share: float) -> list[int]:
    """The first indices whose texts make up `share` of the characters, to within half a document."""
    sizes = np.cumsum([len(documents[index].text) for index in indices])
    return indices[: int(np.abs(sizes - share * sizes[-1]).argmin()) + 1]


# ------------------------------------------------------------------------------------------ contexts
def contexts(documents: Sequence[Document], tokenizer: "PreTrainedTokenizerBase", n_ctx: int = 128) -> Contexts:
    """Tokenises documents and packs them into contexts of `n_ctx` tokens, source by source.

    The layout, with S for the separator and n_ctx = 4, for the documents `a b` and `c d e f`:

        S a b S | S c d e | (S f is dropped: the last context must be full)

    Chat marks such as `<|im_start|>` become special tokens in documents from `chat_...` sources; anywhere else the
    same characters are ordinary text. Contexts come in the order of the sources: shuffle before training.

    Args:
        n_ctx: length of a context in tokens, the separator at position 0 included.
    Raises:
        ValueError: a document has fewer than two tokens, or all of them together do not fill one context.
    """
    if n_ctx < 2:
        raise ValueError(f"Got n_ctx={n_ctx}; expected at least 2: a separator and a token.")
    places = {source: place for place, source in enumerate(dict.fromkeys(d.source for d in documents))}
    order = sorted(range(len(documents)), key=lambda index: places[documents[index].source])
    separator = _separator(tokenizer)
    stream, owners = _pack_stream([documents[index] for index in order], tokenizer, separator)
    rows = _rows(stream == separator, n_ctx)
    if len(rows) == 0:
        raise ValueError(f"The text has {len(stream)} tokens, fewer than a context of {n_ctx}: lower n_ctx, add text.")
    tokens, document_ids = stream[rows], np.array(order, dtype=np.int32)[owners[rows]]
    tokens[:, 0] = separator
    labels = _labels(document_ids, documents, places)
    return Contexts(torch.from_numpy(tokens), torch.from_numpy(document_ids), labels)


def one_per_context(
    texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase", n_ctx: int = 96
) -> Int[Tensor, "context pos"]:
    """One text a context, cut to fit and filled up with separators; chat marks become special tokens.

    Every harvest leaves separators out, and what stands before them does not see them.

    Raises:
        ValueError: no texts, or no room for a token.
    """
    if not texts or n_ctx < 2:
        raise ValueError(f"got {len(texts)} texts and n_ctx={n_ctx}; expected a text and room for a token at least")
    rows = torch.full((len(texts), n_ctx), _separator(tokenizer))
    for row, text in zip(rows, texts, strict=True):
        ids = tokenizer.encode(text, add_special_tokens=False)[: n_ctx - 1]
        row[1 : 1 + len(ids)] = torch.tensor(ids)
    return rows


def held_out_contexts(
    tokenizer: "PreTrainedTokenizerBase", n_contexts: int, n_ctx: int = 128, seed: int = 0
) -> Contexts:
    """Contexts of the shipped corpus that nothing was trained on, at random over its sources.

    Raises:
        ValueError: more contexts than the held-out text fills.
    """
    documents = split_held_out(load_corpus()).held_out
    found = contexts(documents, tokenizer, n_ctx)
    if not 0 < n_contexts <= len(found):
        raise ValueError(f"Got n_contexts={n_contexts}; expected 1 to {len(found)}, all that is held out.")
    return found.shuffled(seed)[:n_contexts]


def token_texts(tokenizer: "PreTrainedTokenizerBase", ids: Iterable[int]) -> list[str]:
    """What each token says by itself; one that holds only part of a character shows its bytes, as in `<f0 9f>`."""
    ids = [int(i) for i in ids]
    texts = [tokenizer.decode([i]) for i in ids]
    if any("\ufffd" in text for text in texts):
        pieces = tokenizer.convert_ids_to_tokens(ids)
        texts = [
            text if "\ufffd" not in text else _bytes_shown(piece) or text
            for text, piece in zip(texts, pieces, strict=True)
        ]
    return texts


def _bytes_shown(piece: str) -> str | None:
    """The bytes of a piece of byte-level BPE, which writes each byte as a printable letter."""
    values = [_byte_of_letter().get(letter) for letter in piece]
    return None if None in values else f"<{' '.join(f'{value:02x}' for value in values)}>"


@cache
def _byte_of_letter() -> dict[str, int]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [value for value in range(256) if value not in printable]
    return {chr(value): value for value in printable} | {chr(256 + n): value for n, value in enumerate(others)}


def _separator(tokenizer: "PreTrainedTokenizerBase") -> int:
    """`<|endoftext|>` where the vocabulary has it, else the beginning- or end-of-text token."""
    candidates = (tokenizer.get_vocab().get(SEPARATOR), tokenizer.bos_token_id, tokenizer.eos_token_id)
    if (separator := next((c for c in candidates if c is not None), None)) is None:
        raise ValueError(f"The tokenizer has neither {SEPARATOR} nor a token for the beginning or end of a text.")
    return separator


def _pack_stream(
    documents: list[Document], tokenizer: "PreTrainedTokenizerBase", separator: int
) -> tuple[np.ndarray, np.ndarray]:
    """All tokens in a row, a separator in front of each document, and the document each belongs to."""
    parts, lengths = [], []
    for document, ids in zip(documents, _encode(documents, tokenizer), strict=True):
        if len(ids) < 2:
            raise ValueError(f"Document {document.id!r} has {len(ids)} token(s); expected at least 2. Leave it out.")
        parts.append(np.array([separator, *ids], dtype=np.int32))
        lengths.append(len(ids) + 1)
    stream = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
    return stream, np.repeat(np.arange(len(documents), dtype=np.int32), lengths)


def _encode(documents: list[Document], tokenizer: "PreTrainedTokenizerBase") -> Iterator[list[int]]:
    """Token ids per document, in batches of one source each."""
    for source, group in groupby(documents, key=lambda document: document.source):
        texts = [document.text for document in group]
        for start in range(0, len(texts), BATCH):
            batch = texts[start : start + BATCH]
            plain = not source.startswith(CHAT)
            yield from tokenizer(batch, add_special_tokens=False, split_special_tokens=plain, verbose=False).input_ids


def _rows(opens_document: np.ndarray, n_ctx: int) -> np.ndarray:
    """For each context the positions in the stream; the first is one too early, or the document's own separator."""
    starts, position = [], 0
    while True:
        start = position if opens_document[position : position + 1].any() else position - 1
        position = start + n_ctx
        if position > len(opens_document):
            break
        starts.append(start)
    return np.array(starts, dtype=np.int64)[:, None] + np.arange(n_ctx)


def _labels(document_ids: np.ndarray, documents: Sequence[Document], places: dict[str, int]) -> list[str]:
    place = np.array([places[document.source] for document in documents], dtype=np.int32)[document_ids]
    names = list(places)
    pure = (place == place[:, :1]).all(axis=1)
    return [names[first] if same else MIXED for first, same in zip(place[:, 0], pure, strict=True)]
