"""Bad input: each row is a mistake a reader can make, and words its message must hold."""

import json
import os

import numpy as np
import pytest
import torch

import labkit.text.corpus as module
from labkit.text import (
    BPETokenizer,
    CharTokenizer,
    Corpus,
    CorpusError,
    Document,
    GPT2Tokenizer,
    SequenceDataset,
    TokenStream,
    WindowDataset,
    fetch,
    load_corpus,
    load_token_sequences,
    load_tokenizer,
    train_bpe,
)
from labkit.text.corpus import check_split

FILES = {
    "latin.txt": b"caf\xe9 au lait",
    "bom_latin.txt": b"\xef\xbb\xbfab\xff",
    "cut.txt": b"abc\xe2\x82",
    "binary.txt": b"PK\x03\x04\x00\x01",
    "utf16.txt": "abc".encode("utf-16"),
    "empty.txt": b"",
    "blank.md": b"\xef\xbb\xbf \r\n\t\n",
    "letter.docx": b"words",
    "one.txt": b"just one paragraph\nof two lines\n",
    "not_json.json": b"hello",
    "other.json": b'{"format": "something"}',
    "half.json": b'{"format": "labkit-tokenizer", "kind": "bpe"}',
    "broken.pt": b"not a tensor",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "no_texts").mkdir()
    (tmp_path / "twins").mkdir()
    for name in "abcdefghij":
        text = "the same words" if name in "ah" else f"words of {name}"
        (tmp_path / "twins" / f"{name}.txt").write_text(text)
    CharTokenizer("abc").save("chars.json")
    changed = json.loads((tmp_path / "chars.json").read_text())
    (tmp_path / "changed.json").write_text(json.dumps(changed | {"characters": "abd"}))
    torch.save({"labels": torch.ones(3)}, "no_ids.pt")
    torch.save([], "no_rows.pt")
    torch.save([torch.rand(5)], "floats.pt")
    torch.save([torch.tensor([1, 2, -3])], "negative.pt")
    torch.save({"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.ones(3, 4)}, "masks.pt")
    torch.save({"input_ids": torch.ones(2, 4).long(), "attention_mask": torch.ones(2, 3)}, "narrow.pt")
    torch.save(5, "number.pt")
    torch.save([os.system], "code.pt")
    torch.save([torch.arange(9)], "good.pt")


def pt(name, context=32, **options):
    return load_token_sequences(name, context, **{"pad_id": 0} | options)


ONE, TWO = Document("one", "same"), Document("two", "same")
ROWS = [
    # corpora
    (lambda: load_corpus("shakespear"), CorpusError, "'shakespear' is neither a corpus .*tiny.* nor a path"),
    (lambda: load_corpus("latin.txt"), CorpusError, r"latin.txt: byte offset 3 \(0xe9\) is not UTF-8"),
    (lambda: load_corpus("bom_latin.txt"), CorpusError, r"byte offset 5 \(0xff\)"),
    (lambda: load_corpus("cut.txt"), CorpusError, r"byte offset 3 \(0xe2\)"),
    (lambda: load_corpus("binary.txt"), CorpusError, "binary.txt: byte offset 4 is NUL"),
    (lambda: load_corpus("utf16.txt"), CorpusError, "utf16.txt: byte offset 0 starts UTF-16"),
    (lambda: load_corpus("empty.txt"), CorpusError, "empty.txt: the file is empty"),
    (lambda: load_corpus("blank.md"), CorpusError, "blank.md: the file is empty"),
    (lambda: load_corpus("letter.docx"), CorpusError, "only .txt and .md"),
    (lambda: load_corpus("no_texts"), CorpusError, "no_texts: the folder has no .txt or .md"),
    (lambda: load_corpus("one.txt"), CorpusError, r"one: 1 paragraph\(s\) cannot be split into 3"),
    (lambda: load_corpus("twins"), CorpusError, "same text as '[ah]'"),
    (lambda: load_corpus("tiny").text("dev"), CorpusError, "split='dev' is not known"),
    (lambda: load_corpus("one.txt", val_fraction=1.5), CorpusError, r"val_fraction=1.5 must be in \[0, 1\)"),
    (lambda: load_corpus("one.txt", test_fraction=-0.1), CorpusError, "test_fraction=-0.1"),
    (
        lambda: load_corpus("one.txt", val_fraction=0.6, test_fraction=0.4),
        CorpusError,
        "leave nothing to train",
    ),
    (lambda: check_split(Corpus("c", ())), CorpusError, "no documents to train on"),
    (
        lambda: check_split(Corpus("c", (ONE,), val=(TWO,))),
        CorpusError,
        r"'two' \(val\) has the same text as 'one'",
    ),
    (
        lambda: fetch(["shakespeare", "milton"]),
        ValueError,
        "'milton' is not an asset. Choose from gpt2-tokenizer",
    ),
    # tokenizers
    (
        lambda: CharTokenizer("abc").encode("abz€"),
        ValueError,
        r"'z€' are not in the alphabet \(first at position 2\)",
    ),
    (lambda: CharTokenizer("abc").encode("a\U0010ffff"), ValueError, "is not in the alphabet"),
    (lambda: CharTokenizer("abc", unknown="?"), ValueError, "unknown='\\?' is not in the alphabet"),
    (lambda: CharTokenizer(""), ValueError, "the alphabet is empty"),
    (lambda: CharTokenizer(["ab"]), ValueError, "'ab' is not one character"),
    (lambda: CharTokenizer.from_text(b"abc"), TypeError, "must be a str, not bytes"),
    (lambda: CharTokenizer("abc").encode(["a"]), TypeError, "must be a str, not list"),
    (lambda: CharTokenizer("abc").encode_batch("abc"), TypeError, "takes a list of texts"),
    (lambda: CharTokenizer("abc").decode([0, 4]), ValueError, "id 4 at position 1 is outside 0 .. 3"),
    (lambda: CharTokenizer("abc").decode([-1]), ValueError, "id -1 at position 0"),
    (
        lambda: CharTokenizer("abc").decode(torch.tensor([[0, 1]])),
        ValueError,
        "one sequence of ids at a time",
    ),
    (lambda: CharTokenizer("abc").decode(np.array(1)), ValueError, "one sequence of ids at a time"),
    (lambda: CharTokenizer("abc").decode([0.5]), ValueError, "id 0.5 at position 0 is not a whole number"),
    (lambda: CharTokenizer("abc").token_bytes(9), ValueError, "id 9 is outside"),
    (lambda: GPT2Tokenizer().encode("ab\ude00\ud83d"), ValueError, r"lone surrogate U\+DE00 at position 2"),
    (lambda: GPT2Tokenizer().encode("ab\ud83d"), ValueError, r"lone surrogate U\+D83D at position 2"),
    (
        lambda: GPT2Tokenizer().encode("ab\ud83d\ude00"),
        ValueError,
        r"surrogates U\+D83D U\+DE00 at position 2, which are one character in UTF-16",
    ),
    (lambda: GPT2Tokenizer().encode("\ude00\ud83d"), ValueError, r"lone surrogate U\+DE00 at position 0"),
    (
        lambda: GPT2Tokenizer().decode([50257]),
        ValueError,
        "gpt2: id 50257 at position 0 is outside 0 .. 50256",
    ),
    (lambda: train_bpe("abab", 200), ValueError, "vocab_size=200 is below 257"),
    (lambda: train_bpe("abab", 300), ValueError, "no pair left after 2 merges.*vocab_size=259"),
    (lambda: train_bpe("\udfff", 300), ValueError, "lone surrogate"),
    (lambda: BPETokenizer([(97, 256)]), ValueError, r"merge 0 is \(97, 256\), but only 256 ids exist"),
    (lambda: BPETokenizer([(97, 97), (97, 97)]), ValueError, "two merges make the same bytes"),
    (lambda: load_tokenizer("nowhere.json"), ValueError, "nowhere.json: cannot be read"),
    (lambda: load_tokenizer("not_json.json"), ValueError, "not_json.json: is no JSON text"),
    (lambda: load_tokenizer("latin.txt"), ValueError, "latin.txt: byte offset 3 \\(0xe9\\) is not UTF-8"),
    (lambda: load_tokenizer("other.json"), ValueError, "is not a tokenizer file"),
    (lambda: load_tokenizer("half.json"), ValueError, "half.json: is incomplete or damaged"),
    (lambda: load_tokenizer("changed.json"), ValueError, "was changed after it was saved"),
    # windows and streams
    (lambda: WindowDataset(range(8), 8), ValueError, "8 ids are too few for context_length=8, which needs 9"),
    (lambda: WindowDataset([1], 8, keep_tail=True), ValueError, "1 ids are too few.*needs 2"),
    (lambda: WindowDataset([], 8), ValueError, "0 ids are too few"),
    (lambda: WindowDataset(range(9), 0), ValueError, "context_length=0 must be a whole number of at least 1"),
    (lambda: WindowDataset(range(9), 4, stride=0), ValueError, "stride=0"),
    (lambda: WindowDataset(range(9), 4, stride=1.5), ValueError, "stride=1.5"),
    (
        lambda: WindowDataset(range(9), 4, pad_id=-1),
        ValueError,
        "pad_id=-1 must be a whole number of at least 0",
    ),
    (lambda: WindowDataset(torch.rand(9), 4), ValueError, "ids are float32 of shape .*; whole numbers"),
    (lambda: WindowDataset(torch.ones(3, 3).long(), 2), ValueError, r"of shape \(3, 3\)"),
    (lambda: WindowDataset([1, -2, 3], 2), ValueError, "id -2 is negative"),
    (
        lambda: WindowDataset("a text", 2),
        ValueError,
        "WindowDataset: ids are <U6 of shape .*whole numbers are needed",
    ),
    (
        lambda: WindowDataset(range(9), 4).batches(0),
        ValueError,
        "batch_size=0 must be a whole number of at least 1",
    ),
    (
        lambda: WindowDataset(range(9), 4).batches(2, limit=0),
        ValueError,
        "limit=0 must be a whole number of at least 1",
    ),
    (
        lambda: TokenStream(range(8), 8, 2),
        ValueError,
        "8 ids are too few for context_length=8, which needs 9",
    ),
    (lambda: TokenStream(range(9), 4, 0), ValueError, "batch_size=0"),
    (lambda: TokenStream(range(9), 4, 2, seed=-1), ValueError, "seed=-1"),
    (lambda: TokenStream(range(9), 4, 2).batch(-1), ValueError, "step=-1"),
    (lambda: TokenStream(np.ones(9), 4, 2), ValueError, "whole numbers are needed"),
    (lambda: TokenStream([5] * 8 + [-2], 4, 2), ValueError, "TokenStream: id -2 is negative"),
    (lambda: TokenStream(torch.tensor([5] * 8 + [-2]), 4, 2), ValueError, "id -2 is negative"),
    (lambda: TokenStream(np.array([5] * 8 + [-2], np.int32), 4, 2), ValueError, "id -2 is negative"),
    (
        lambda: SequenceDataset(torch.tensor([[1, -100]]), torch.tensor([[1, 2]])),
        ValueError,
        "SequenceDataset: inputs: id -100 is negative",
    ),
    (
        lambda: SequenceDataset(torch.tensor([[1, 2]]), torch.tensor([[-1, -100]])),
        ValueError,
        "SequenceDataset: targets: id -1 is negative",
    ),
    (
        lambda: SequenceDataset(torch.ones(2, 3).long(), torch.ones(2, 4).long()),
        ValueError,
        r"inputs \(2, 3\) and targets \(2, 4\) must both be \(windows, context_length\)",
    ),
    # data tokenised by others
    (lambda: pt("good.pt", 16), ValueError, r"context_length=16 is outside 32 \.\. 128"),
    (lambda: pt("good.pt", 129), ValueError, r"context_length=129 is outside 32 \.\. 128"),
    (lambda: pt("good.pt", pad_id=-100), ValueError, "pad_id=-100"),
    (lambda: pt("nowhere.pt"), ValueError, "nowhere.pt: cannot be read"),
    (lambda: pt("broken.pt"), ValueError, "broken.pt: "),
    (lambda: pt("code.pt"), ValueError, "code.pt: refused, since it holds Python objects"),
    (lambda: pt("no_ids.pt"), ValueError, "no_ids.pt: the dict has no 'input_ids', only 'labels'"),
    (lambda: pt("no_rows.pt"), ValueError, "no sequence of at least 2 ids"),
    (lambda: pt("floats.pt"), ValueError, "floats.pt, item 0: ids are float32"),
    (lambda: pt("negative.pt"), ValueError, "item 0: id -3 is negative"),
    (lambda: pt("masks.pt"), ValueError, "attention_mask has 3 rows, input_ids 2"),
    (lambda: pt("narrow.pt"), ValueError, "row 0: attention_mask and input_ids differ"),
    (lambda: pt("number.pt"), ValueError, "number.pt: holds a int"),
]


@pytest.mark.parametrize(
    ("call", "kind", "message"), ROWS, ids=[f"{n}: {row[2][:40]}" for n, row in enumerate(ROWS)]
)
def test_a_mistake_is_named(call, kind, message):
    with pytest.raises(kind, match=message):
        call()


def test_a_missing_verdict_says_where_to_put_it(tmp_path, monkeypatch):
    registry, _ = module._registry()
    monkeypatch.setattr(module, "_registry", lambda: (registry, tmp_path))
    with pytest.raises(CorpusError) as caught:
        load_corpus("verdict")
    for part in (
        str(tmp_path / "corpus" / "the-verdict.txt"),
        "b41e41a68f0398a3",
        "Wharton",
        "1908",
        "public domain",
    ):
        assert part in str(caught.value)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "the-verdict.txt").write_text("Another edition.")
    with pytest.raises(CorpusError, match="another edition or was changed"):
        load_corpus("verdict")
