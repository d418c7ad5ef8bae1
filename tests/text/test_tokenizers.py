"""What every tokenizer promises, and that GPT-2's ids are GPT-2's."""

import ast
import os
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.text import (
    END_OF_TEXT,
    CharTokenizer,
    Tokenizer,
    load_corpus,
    load_tokenizer,
    train_bpe,
)

TEXTS = [
    "",
    " ",
    "Hello, world!",
    "   leading and  double   spaces ",
    "line\nbreaks\r\n\n\n\tand tabs",
    "don't you'll we've I'm he'd it's 'S",
    "naïve façade, Ærøskøbing, ἀρχή, Привет",
    "日本語とか한국어 中文",
    "emoji 😀👩‍👩‍👧‍👦🇩🇪❤️",
    "1234567890 3.14159 1,000,000",
    "مرحبا بالعالم שלום",
    "cafe\u0301 (combining)",
    END_OF_TEXT,
    f"one{END_OF_TEXT}two{END_OF_TEXT}{END_OF_TEXT}three",
    "<|endoftext", "|>", "\x00\x07\x1b[0m",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" * 20,
    "def f(x):\n    return x ** 2  # comment\n",
]  # fmt: skip

# Characters assigned before Unicode 10, where the libraries' tables of letters agree; no surrogates.
letters = st.text(
    st.one_of(
        st.characters(max_codepoint=0x24F, exclude_characters="\x1c\x1d\x1e\x1f\x85"),
        st.sampled_from("日本語한국Приветשלום😀👩‍🇩🇪\u0301\u00a0\u3000 \n'"),
    ),
    max_size=60,
)

# White space of every kind and length between words, numbers, marks and contractions. U+001C is white space
# to Python and to nobody else; letters of Unicode 10 at the latest, where the libraries agree.
PARTS = ["word", "'ll", "'S", "é", "日本", "3", "1234", ",", "!?", "<|endoftext|>", "\u0301", "\x1c", "😀"]
SPACES = [" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "  ", "\n\n", "   ", "\n\n\n", " \n ", "\t "]
hard = st.lists(st.sampled_from(PARTS + SPACES), max_size=40).map("".join)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(load_corpus("tiny").text(), 500, progress=False)


@pytest.fixture(scope="module")
def characters() -> CharTokenizer:
    return CharTokenizer.from_text(load_corpus("tiny").text("all"))


@pytest.fixture(params=["characters", "bpe", "gpt2"])
def any_tokenizer(request) -> Tokenizer:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("text", TEXTS)
def test_gpt2_ids_are_those_of_another_library(gpt2, reference, text):
    assert gpt2.encode(text) == reference.encode(text).ids


@settings(max_examples=700, deadline=None)
@given(text=letters | hard)
def test_gpt2_ids_are_those_of_another_library_on_any_text(gpt2, reference, text):
    assert gpt2.encode(text) == reference.encode(text).ids


def test_gpt2_ids_of_a_whole_play_are_those_of_another_library(gpt2, reference):
    play = load_corpus("shakespeare").test[0].text
    assert gpt2.encode(play) == reference.encode(play).ids


def test_gpt2_ids_with_special_tokens_are_those_of_another_library(gpt2, reference):
    special = tokenizers.Tokenizer.from_str(reference.to_str())
    special.add_special_tokens([END_OF_TEXT])
    for text in TEXTS:
        assert gpt2.encode(text, allow_special=True) == special.encode(text).ids


def test_gpt2_has_the_published_size(gpt2):
    assert (gpt2.vocab_size, gpt2.eos_id) == (50257, 50256)
    assert gpt2.encode("hello world") == [31373, 995]
    assert gpt2.tokenize("hello world") == ["hello", " world"]


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=80))
def test_bytes_come_back_whatever_the_text(gpt2, bpe, text):
    assert gpt2.decode(gpt2.encode(text)) == text
    assert bpe.decode(bpe.encode(text)) == text


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=80))
def test_characters_come_back_from_their_own_alphabet(text):
    tokenizer = CharTokenizer.from_text(text + "x")
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text)


@settings(max_examples=100, deadline=None)
@given(text=st.text(alphabet="ab<|endoftx>", max_size=40), cut=st.integers(0, 5))
def test_text_that_looks_special_comes_back_as_text(gpt2, bpe, text, cut):
    text = text[:cut] + END_OF_TEXT + text[cut:]
    for tokenizer in (gpt2, bpe, CharTokenizer.from_text(text)):
        ids = tokenizer.encode(text)
        assert tokenizer.eos_id not in ids
        assert tokenizer.decode(ids) == text
        marked = tokenizer.encode(text, allow_special=True)
        assert marked.count(tokenizer.eos_id) == text.count(END_OF_TEXT)
        assert tokenizer.decode(marked) == text


def test_a_batch_is_its_texts_one_by_one(any_tokenizer):
    texts = ["The old man", "", "walked home\n\nto the mill", "a"]
    batch = any_tokenizer.encode_batch(texts)
    assert [ids.tolist() for ids in batch] == [any_tokenizer.encode(text) for text in texts]
    assert all(isinstance(ids, np.ndarray) and ids.dtype == np.int64 for ids in batch)


def test_pieces_join_to_the_text_and_match_the_ids(any_tokenizer):
    text = "She took the long way round."
    pieces = any_tokenizer.tokenize(text)
    ids = any_tokenizer.encode(text)
    assert "".join(pieces) == text
    assert [piece.encode() for piece in pieces] == [any_tokenizer.token_bytes(i) for i in ids]


def test_a_piece_that_cuts_a_character_shows_its_bytes(gpt2):
    assert gpt2.tokenize("é😀") == ["é", "\\xf0\\x9f\\x98", "\\x80"]
    assert gpt2.decode(gpt2.encode("😀")[:1]) == "\ufffd"


@pytest.mark.parametrize("wrap", [list, tuple, np.array, torch.tensor, lambda ids: np.array(ids, np.uint16)])
def test_decode_takes_lists_arrays_and_tensors(any_tokenizer, wrap):
    assert any_tokenizer.decode(wrap(any_tokenizer.encode("the mill"))) == "the mill"


def test_every_id_has_bytes_and_none_lies_outside(any_tokenizer):
    for token_id in (0, 1, any_tokenizer.vocab_size - 2):
        assert any_tokenizer.decode([token_id]) == any_tokenizer.token_bytes(token_id).decode(
            "utf-8", "replace"
        )
    assert any_tokenizer.eos_id == any_tokenizer.vocab_size - 1
    assert any_tokenizer.decode([any_tokenizer.eos_id]) == END_OF_TEXT


def test_a_tokenizer_comes_back_from_its_file(any_tokenizer, tmp_path):
    path = tmp_path / "deep" / "tokenizer.json"
    any_tokenizer.save(path)
    text = "Nora and Tom, by the river.\n"
    back = load_tokenizer(path)
    assert type(back) is type(any_tokenizer)
    assert back.fingerprint == any_tokenizer.fingerprint
    assert back.encode(text) == any_tokenizer.encode(text)
    assert (back.vocab_size, back.eos_id) == (any_tokenizer.vocab_size, any_tokenizer.eos_id)
    assert [file.name for file in path.parent.iterdir()] == ["tokenizer.json"]


def test_a_save_that_fails_leaves_the_old_file(characters, tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.json"
    characters.save(path)
    before = path.read_bytes()
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        CharTokenizer("xyz").save(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["tokenizer.json"]


def test_fingerprints_differ_when_ids_mean_something_else(bpe, gpt2):
    prints = {
        CharTokenizer("abc").fingerprint,
        CharTokenizer("abd").fingerprint,
        CharTokenizer("abc", unknown="a").fingerprint,
        bpe.fingerprint,
        gpt2.fingerprint,
        train_bpe(load_corpus("tiny").text(), 499, progress=False).fingerprint,
    }
    assert len(prints) == 6
    assert CharTokenizer("cab").fingerprint == CharTokenizer("abcabc").fingerprint


def test_characters_are_numbered_in_order_with_the_end_last():
    tokenizer = CharTokenizer.from_text("banana, 日本 😀")
    assert tokenizer.characters == " ,abn日本😀"
    assert tokenizer.encode("ban😀") == [3, 2, 4, 7]
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (8, 9)


def test_unknown_characters_are_replaced_only_on_request():
    tokenizer = CharTokenizer("abc?", unknown="?")
    assert tokenizer.decode(tokenizer.encode("abz\U0010ffffc")) == "ab??c"


@pytest.mark.skipif(os.name == "nt", reason="modes are those of POSIX")
def test_a_saved_tokenizer_can_be_read_by_others(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        CharTokenizer("abc").save(tmp_path / "tokenizer.json")
    finally:
        os.umask(before)
    assert (tmp_path / "tokenizer.json").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]


def test_the_modules_of_text_import_one_way() -> None:
    """Wherever in a module the import stands: tokenizers, then bpe, then hf."""
    folder = Path(__file__).parents[2] / "labkit" / "text"
    edges: dict[str, set[str]] = {}
    for path in folder.glob("[a-z]*.py"):
        found = [node.module or "" for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                 if isinstance(node, ast.ImportFrom)]  # fmt: skip
        edges[path.stem] = {name.split(".")[2] for name in found if name.startswith("labkit.text.")}
    assert "tokenizers" in edges["bpe"]
    assert {"bpe", "tokenizers"} <= edges["hf"]

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"circle: {' -> '.join((*trail, module))}"
        for after in edges.get(module, set()):
            visit(after, (*trail, module))

    for module in edges:
        visit(module, ())
