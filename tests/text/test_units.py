"""Text in pieces: the ids of the pieces are those of the whole."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from encoded import WORDS, as_corpus, encode
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from labkit.text import (
    CharTokenizer,
    GPT2Tokenizer,
    Tokenizer,
    asset_path,
    train_bpe,
    units,
)
from labkit.text.cleaning import read_text

WHITE = ["\n", "\r\n", "\r", " ", "  ", "\t", "\n\n", " \n", "\xa0", "\u3000", "\u2028", "\x85", "\x1c"]
INK = ["a", "be", "it's", "'", "42", "é", "à", "東京", "…", "-", "\ufeff", "ß", "<|endoftext|>"]


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {
        "gpt2": GPT2Tokenizer(),
        # learned from runs of white space, so that a run cut in two has other ids
        "bpe": train_bpe("a".join(map("".join, product(WHITE, repeat=3))), 500, progress=False),
        "char": CharTokenizer({chr(code) for code in range(0x3100)} | {*WORDS, "\ufeff"}),
    }


@pytest.mark.parametrize("name", ["gpt2", "bpe", "char"])
def test_the_ids_are_those_of_the_corpus(name, texts, tmp_path, tokenizers, small_pieces):
    shards = encode(texts, tmp_path / "out", tokenizers[name])
    assert shards[:].tolist() == as_corpus(texts).encode(tokenizers[name]).tolist()
    assert shards.dtype == np.uint16
    assert shards.tokenizer().fingerprint == tokenizers[name].fingerprint


@pytest.mark.parametrize("name", ["gpt2", "char"])
def test_a_play_in_pieces_has_the_ids_of_the_whole(name, tmp_path, tokenizers, monkeypatch):
    monkeypatch.setattr(units, "BLOCK", 2**12)
    play = asset_path("shakespeare") / "tragedies" / "hamlet.md"
    shards = encode(play, tmp_path / "out", tokenizers[name], shard_tokens=10**5)
    whole = tokenizers[name].encode(read_text(play).strip("\n"))
    assert shards[:].tolist() == [*whole, tokenizers[name].eos_id]


@settings(max_examples=150)
@given(parts=st.lists(st.sampled_from(WHITE + INK), min_size=1, max_size=60))
def test_pieces_cut_before_white_space_have_the_ids_of_the_whole(parts, tmp_path, tokenizers):
    text = "".join(parts)
    assume(text.removeprefix("\ufeff").strip())
    file = tmp_path / "text.txt"
    file.write_bytes(raw := text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "BLOCK", 24)
        found, _ = units.survey(tmp_path, [file], None, False)
    spans = [span for unit in found for span in unit]
    assume(all(units._BREAK.match(raw, span.start) for span in spans[1:]))
    for tokenizer in tokenizers.values():
        ids = np.concatenate([units._encode_unit(tmp_path, tokenizer, unit).ids for unit in found])
        assert ids.tolist() == [*tokenizer.encode(read_text(file).strip("\n")), tokenizer.eos_id]


@pytest.mark.parametrize("character", ["x", "é", "東", "\U0001f600"])
def test_text_without_white_space_is_cut_between_characters(character, tmp_path, small_pieces):
    (tmp_path / "one.txt").write_text("-" + character * 1000, encoding="utf-8")
    shards = encode(tmp_path / "one.txt", tmp_path / "out")
    assert shards.tokenizer().decode(shards[:-1]) == "-" + character * 1000


def test_documents_begin_where_they_say(texts, tmp_path, small_pieces):
    shards = encode(texts, tmp_path / "out")
    ends = [*shards.documents[1:], len(shards)]
    names = [json.loads(line)["name"] for line in (tmp_path / "out" / "sources.jsonl").open()]
    assert names == ["0.txt", "1.txt", "2.txt", "3.txt", "4.txt", "more/long.md", "more/short.txt"]
    for begin, end, document in zip(shards.documents, ends, as_corpus(texts).documents, strict=True):
        assert shards.tokenizer().decode(shards[begin : end - 1]) == document.text


def test_a_document_at_the_border_of_two_shards_belongs_to_the_second(texts, tmp_path):
    border = int(encode(texts, tmp_path / "out").documents[1])
    whole = encode(texts, tmp_path / "cut", shard_tokens=border).documents
    for number, file in enumerate(sorted((tmp_path / "cut").glob("documents-*.npy"))):
        here = (whole >= number * border) & (whole < (number + 1) * border)
        assert np.load(file).tolist() == whole[here].tolist()


def test_bpe_is_learned_from_the_text(tmp_path):
    text = "\n".join(f"{number:x} {number * 7919:x}" for number in range(12_000))
    (tmp_path / "numbers.txt").write_text(text)
    shards = encode(tmp_path / "numbers.txt", tmp_path / "out", "bpe", shard_tokens=10**6)
    assert shards.tokenizer().fingerprint == train_bpe(text, 4096, progress=False).fingerprint


def test_a_large_vocabulary_takes_four_bytes(texts, tmp_path):
    tokenizer = CharTokenizer({chr(code) for code in range(0x10000, 0x20000)} | {*WORDS, "x"})
    shards = encode(texts, tmp_path / "out", tokenizer)
    assert shards.dtype == np.uint32
    assert shards[:].tolist() == as_corpus(texts).encode(tokenizer).tolist()
