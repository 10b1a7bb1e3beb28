"""The corpus module by hand on a toy tokenizer, the text rules, and every shipped piece of text."""

import json
import lzma
import sys
import tarfile

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from mi_utils import corpus
from mi_utils.corpus import Document

sys.path.append(str(corpus.FOLDER))  # the builder's scripts stand beside the files they make

import build
import chat
import check
import clean
import fetch
import markup

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
WORDS = [*SPECIAL, *"abcdef", "user", *"<|>", "im_start", "endoftext"]
SEPARATOR, IM_START = 0, 1


@pytest.fixture(scope="module")
def tokenizer():
    """One token per word or sign; the first three are special."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<|endoftext|>"))
    signs = [pre_tokenizers.Split(sign, "isolated") for sign in "<|>"]
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), *signs])
    inner.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>")


@pytest.fixture(scope="module")
def documents():
    return corpus.load_corpus()


def pack(tokenizer, *texts, n_ctx=4, source="s"):
    return corpus.contexts([Document(str(i), source, text) for i, text in enumerate(texts)], tokenizer, n_ctx)


# ------------------------------------------------------------------------------------------ contexts
def test_contexts_by_hand(tokenizer):
    made = pack(tokenizer, "a b", "c d e f")  # S a b S | S c d e | S f, dropped
    assert made.tokens.tolist() == [[0, 3, 4, 0], [0, 5, 6, 7]]
    assert made.document_ids.tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    assert made.sources == ["s", "s"]


def test_a_context_that_ends_with_a_document_is_not_followed_by_two_separators(tokenizer):
    made = pack(tokenizer, "a b c", "d e f")
    assert made.tokens.tolist() == [[0, 3, 4, 5], [0, 6, 7, 8]]


@given(st.lists(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=9), min_size=1, max_size=6), st.integers(2, 7))
def test_contexts_lose_and_repeat_nothing(tokenizer, texts, n_ctx):
    """Every word once, in order, with the document it is from; only the last, incomplete context is missing."""
    assume(sum(len(text) + 1 for text in texts) >= n_ctx)
    made = pack(tokenizer, *map(" ".join, texts), n_ctx=n_ctx)
    assert (made.tokens[:, 0] == SEPARATOR).all()
    is_word = made.tokens != SEPARATOR
    words = list(zip(made.tokens[is_word].tolist(), made.document_ids[is_word].tolist(), strict=True))
    expected = [(WORDS.index(letter), i) for i, text in enumerate(texts) for letter in text]
    assert words == expected[: len(words)]
    assert len(expected) - len(words) < n_ctx


def test_sources_do_not_mix_except_at_their_border(tokenizer):
    given = [Document("0", "x", "a b c d"), Document("1", "y", "e f e f e"), Document("2", "x", "a b c")]
    made = corpus.contexts(given, tokenizer, 4)  # x: S a b c | S d S a | S b c S (opens y) | y: S e f e | S f e
    assert made.document_ids.tolist() == [[0, 0, 0, 0], [0, 0, 2, 2], [2, 2, 2, 1], [1, 1, 1, 1]]
    assert made.sources == ["x", "x", "mixed", "y"]


def test_chat_marks_are_special_in_chats_only(tokenizer):
    text = "<|im_start|> user a b"
    assert IM_START in pack(tokenizer, text, source="chat_x").tokens
    assert IM_START not in pack(tokenizer, text, source="x", n_ctx=5).tokens
    assert SEPARATOR not in pack(tokenizer, "a <|endoftext|> b c", n_ctx=5).tokens[:, 1:]


def test_real_tokenizer_treats_marks_likewise():
    from mi_utils.models import load_tokenizer

    tokenizer = load_tokenizer()
    im_start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    text = chat.format_chat("What is a lake?", "A lake is a body of water, <b>larger</b> than a pond.", "Be brief.")
    assert (pack(tokenizer, text, source="chat_x", n_ctx=16).tokens == im_start).sum() == 3
    assert (pack(tokenizer, text, source="x", n_ctx=16).tokens == im_start).sum() == 0
    made = pack(tokenizer, "The lake was calm.", "So were we.", n_ctx=10)
    assert tokenizer.decode(made.tokens[0]) == "<|endoftext|>The lake was calm.<|endoftext|>So were we"


def test_shuffling_keeps_rows_together(tokenizer):
    made = pack(tokenizer, "a b c", "d e f", "a a a", "b b b")
    shuffled = made.shuffled(seed=1)
    assert shuffled.tokens.tolist() != made.tokens.tolist()
    assert sorted(shuffled.tokens.tolist()) == sorted(made.tokens.tolist())
    for row, ids in zip(shuffled.tokens, shuffled.document_ids, strict=True):
        assert torch.equal(row, made.tokens[int(ids[0])])
    assert torch.equal(shuffled.tokens, made.shuffled(seed=1).tokens)
    assert len(made[1:3]) == 2


@pytest.mark.parametrize(
    ("texts", "n_ctx", "message"),
    [
        ([""], 4, "0 token"),
        (["a"], 4, "1 token"),
        (["a b"], 4, "fewer than a context"),
        ([], 4, "0 tokens"),
        (["a b"], 1, "n_ctx"),
    ],
)
def test_text_too_short_is_an_error(tokenizer, texts, n_ctx, message):
    with pytest.raises(ValueError, match=message):
        pack(tokenizer, *texts, n_ctx=n_ctx)


# ------------------------------------------------------------------------------------------ choosing documents
def test_held_out_side_depends_on_the_original_alone():
    documents = [Document(f"book/{i}#{j}", "s", "text") for i in range(500) for j in range(3)]
    split = corpus.split_held_out(documents, share=0.1)
    assert 100 < len(split.held_out) < 200
    originals = [{d.id.rsplit("#", 1)[0] for d in side} for side in (split.train, split.held_out)]
    assert not originals[0] & originals[1]
    few = corpus.split_held_out(documents[300:600], share=0.1)
    assert few.held_out == [d for d in split.held_out if d in documents[300:600]]
    assert corpus.split_held_out(documents, share=0.1, seed=1).held_out != split.held_out


def test_sample_keeps_the_mix(documents):
    chosen = corpus.sample(documents, 400_000, seed=3)

    def shares(some):
        sizes = {}
        for document in some:
            sizes[document.source] = sizes.get(document.source, 0) + len(document.text)
        return {source: size / sum(sizes.values()) for source, size in sizes.items()}

    wanted, got = shares(documents), shares(chosen)
    assert got.keys() == wanted.keys()
    assert max(abs(got[source] - wanted[source]) for source in wanted) < 0.005
    assert abs(sum(len(d.text) for d in chosen) / corpus.CHARACTERS_PER_TOKEN / 400_000 - 1) < 0.02
    assert chosen == corpus.sample(documents, 400_000, seed=3) != corpus.sample(documents, 400_000, seed=4)


def test_a_sample_larger_than_the_text_is_an_error(documents):
    with pytest.raises(ValueError, match="expected 1 to"):
        corpus.sample(documents[:5], 10_000_000)


# ------------------------------------------------------------------------------------------ loading
def make_bundle(folder, text="Lakes are wet."):
    rows = json.dumps({"id": "x/1#0", "source": "x", "text": text}) + "\n"
    (folder / "x.jsonl.xz").write_bytes(lzma.compress(rows.encode()))
    entry = {"sha256": corpus.sha256(folder / "x.jsonl.xz"), "sources": {"x": {"tokens": 4}}}
    (folder / "manifest.json").write_text(json.dumps({"x.jsonl.xz": entry}))


def test_a_whole_bundle_loads(tmp_path):
    make_bundle(tmp_path)
    assert corpus.load_corpus(folder=tmp_path) == [Document("x/1#0", "x", "Lakes are wet.")]
    assert corpus.source_sizes(tmp_path) == {"x": 4}


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "manifest"])
def test_a_damaged_bundle_is_an_error(tmp_path, damage):
    make_bundle(tmp_path)
    path = tmp_path / ("manifest.json" if damage == "manifest" else "x.jsonl.xz")
    content = path.read_bytes()
    path.unlink()
    if damage != "remove":
        path.write_bytes(content[:-7] if damage != "alter" else content[:30] + b"?" + content[31:])
    with pytest.raises(ValueError, match=r"[Rr]estore data/text"):
        corpus.load_corpus(folder=tmp_path)


def test_an_unknown_source_is_an_error():
    with pytest.raises(ValueError, match="moby_dick"):
        corpus.load_corpus(["moby_duck"])


def test_own_text(tmp_path):
    (tmp_path / "one.txt").write_text("A lake.")
    (tmp_path / "two.jsonl").write_text('{"text": "A pond."}\n{"id": "sea", "source": "salt", "text": "A sea."}\n')
    loaded = corpus.load_text(tmp_path)
    own = tmp_path.name
    assert [(d.source, d.text) for d in loaded] == [(own, "A lake."), (own, "A pond."), ("salt", "A sea.")]
    assert len({d.id for d in loaded}) == 3
    assert corpus.load_text(tmp_path / "one.txt")[0].source == "one"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", " \n", "no text"),
        ("a.jsonl", "{", "line 1"),
        ("a.jsonl", '{"words": 1}', "line 1"),
        ("a.pdf", "x", "Expected a .txt"),
    ],
)
def test_unreadable_own_text_is_an_error(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        corpus.load_text(tmp_path / name)


def test_a_path_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="Found no text"):
        corpus.load_text(tmp_path / "nowhere")


class FakeHub:
    """Stands in for the `datasets` library."""

    def __init__(self, answer):
        self.answer = answer

    def load_dataset(self, *_, **__):
        if isinstance(self.answer, Exception):
            raise self.answer
        return iter(self.answer)


def broken_stream():
    yield {"text": "lake"}
    raise OSError("connection lost")


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda *_, **__: None)

    def install(answer):
        monkeypatch.setitem(sys.modules, "datasets", FakeHub(answer))

    return install


def test_hub_stream(hub):
    hub({"text": f"lake {i}"} for i in range(100))
    assert [d.text for d in corpus.load_hub_dataset("some/lakes", n_documents=2)] == ["lake 0", "lake 1"]


@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        (OSError("no route"), ConnectionError, "load_corpus"),
        (broken_stream(), ConnectionError, "load_corpus"),
        (ValueError("no such split"), ValueError, "no such split"),
        ([{"words": "lake"}], ValueError, "words"),
        ([{"text": ""}], ValueError, "no text"),
    ],
)
def test_hub_errors_say_what_to_do(hub, answer, error, message):
    hub(answer)
    with pytest.raises(error, match=message):
        corpus.load_hub_dataset("some/lakes")


# ------------------------------------------------------------------------------------------ shipped text
def test_shipped_pieces_are_clean(documents):
    broken = [(d.id, problems) for d in documents if (problems := check.problems(d.source, d.text))]
    assert not broken[:10], f"{len(broken)} of {len(documents)} pieces"


def test_shipped_ids_and_texts_are_unique(documents):
    assert len({d.id for d in documents}) == len({" ".join(d.text.split()) for d in documents}) == len(documents)
    assert all(d.id.startswith(f"{d.source}/") and "#" in d.id for d in documents)


def test_shipped_chats_are_well_formed(documents):
    for document in documents:
        if document.source.startswith(corpus.CHAT):
            opened, closed = document.text.count("<|im_start|>"), document.text.count("<|im_end|>\n")
            assert opened == closed in (2, 3), document.id
            assert document.text.startswith("<|im_start|>"), document.id
        else:
            assert "<|im_" not in document.text, document.id


def test_size_of_the_corpus(documents):
    files = list(corpus.FOLDER.glob("*.xz"))
    assert sum(path.stat().st_size for path in files) < 20_000_000
    assert 12_000_000 < sum(corpus.source_sizes().values()) < 15_000_000
    assert {d.source for d in documents} == corpus.source_sizes().keys()


# ------------------------------------------------------------------------------------------ the builder's rules
def test_tidy():
    assert clean.tidy("Tab\there,\u00a0 two  blanks,\u200b mail joe@lake.org\r\n=======\nEnd \x07") == (
        "Tab here, two blanks, mail someone@example.com\nEnd"
    )
    assert clean.tidy("if x:\n    y =  1", code=True) == "if x:\n    y =  1"
    assert clean.tidy("mail me@example.com") == "mail me@example.com"


@pytest.mark.parametrize("border", ["\n\n", "\n", " "])
@pytest.mark.parametrize("code", [False, True])
def test_cut_loses_and_joins_no_words(border, code):
    text = border.join(f"Paragraph {i}. " + "word " * 150 + "end." for i in range(40))
    pieces = list(clean.cut(text, code))
    assert " ".join(pieces).split() == text.split()
    if not code or border != " ":
        assert len(pieces) > 4
        assert max(map(len, pieces)) <= clean.MAX_PIECE + clean.MIN_PIECE


def test_cut_drops_scraps():
    assert list(clean.cut("too short")) == []


def test_rst():
    source = """
.. _top:

Title
=====

Use :class:`~a.b.Thing` or ``x``,
joined::

    code  here

.. note:: Mind
    the gap.

====  ====
a     b
====  ====
"""
    assert markup.rst_to_text(source) == "Title\n\nUse Thing or `x`, joined:\n\n    code  here\n\nNote: Mind the gap."


def test_html():
    page = """<div class=nosearch><ul><li>Menu</ul></div><h1>Lake</h1><p>Cold &amp;
 wet<table><tr><td>1</table><pre>a
  b</pre>"""
    assert clean.tidy(markup.html_to_text(page)) == "Lake\n\nCold & wet\n\na\n  b"


def test_wiki():
    source = """'''Lake''' ({{lang|x}}) is [[water|wet]].<ref>Book</ref>

== Empty ==

== Depth ==
Deep .
* list
== See also ==
Pond"""
    assert clean.tidy(markup.wiki_to_text(source)) == "Lake is wet.\n\nDepth\n\nDeep."


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("bell \x07", "control characters"),
        ("\ufffd", "replacement character"),
        ("a <b>c</b>", "tags"),
        ("cafÃ©", "mojibake"),
        ("x@lake.org", "private address"),
        ("a\t", "tabs or blanks at line ends"),
        ("-----\nwords", "drawn lines"),
    ],
)
def test_the_check_can_fail(text, problem):
    assert problem in check.problems("moby_dick", text)


def test_an_archive_that_leads_outside_is_refused(tmp_path):
    with tarfile.open(tmp_path / "bad.tgz", "w:gz") as archive:
        archive.addfile(tarfile.TarInfo("../outside.txt"))
    with pytest.raises(ValueError, match="outside"):
        fetch.unpack(tmp_path / "bad.tgz", tmp_path / "inside")
    assert not (tmp_path / "outside.txt").exists()


def test_shipped_files_are_on_record():
    assert build.check_files() == []
    readme, manifest = build.README.read_text(), json.loads(build.MANIFEST.read_text())
    for entry in manifest.values():
        assert entry["sha256"] in readme
        assert all(f"| `{source}` |" in readme for source in entry["sources"])
