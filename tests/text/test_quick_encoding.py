"""Long texts and many texts take another way through tiktoken: the ids stay those of another library."""

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.text import bpe, load_corpus, train_bpe

# White space of every kind and length between words, numbers, marks and contractions. U+001C is white space
# to Python and to nobody else; letters of Unicode 10 at the latest, where the libraries agree.
PARTS = ["word", "'ll", "'S", "é", "日本", "3", "1234", ",", "!?", "<|endoftext|>", "\u0301", "\x1c", "😀"]
SPACES = [" ", "\n", "\t", "\r\n", "\u00a0", "\u3000", "\u2028", "  ", "\n\n", "   ", "\n\n\n", " \n ", "\t "]
hard = st.lists(st.sampled_from(PARTS + SPACES), max_size=40).map("".join)


@pytest.fixture
def tiny_blocks(monkeypatch) -> None:
    """Every text is cut as often as can be."""
    monkeypatch.setattr(bpe, "_BLOCK", 1)


@settings(max_examples=300, deadline=None)
@given(text=hard)
def test_hard_text_has_the_ids_of_another_library(gpt2, reference, text):
    assert gpt2.encode(text) == reference.encode(text).ids


def test_text_cut_into_blocks_has_the_ids_of_the_whole(gpt2, reference, tiny_blocks):
    @settings(max_examples=300, deadline=None)
    @given(text=hard)
    def check(text):
        assert gpt2.encode(text) == reference.encode(text).ids

    check()


def test_blocks_are_the_text_and_are_cut_only_before_white_space_after_a_word(tiny_blocks):
    blocks = list(bpe._blocks("one two\n\nthree   four\tfive ,\x1c six"))
    assert blocks == ["one", " two", "\n\nthree", "   four\tfive", " ,\x1c six"]
    assert list(bpe._blocks("")) == [""]


def test_the_quick_pattern_is_left_where_several_spaces_are_one_piece(gpt2, monkeypatch):
    taken = []
    for name in ("_encoding", "_quick_encoding"):

        class Noted:
            def __init__(self, name: str) -> None:
                self.name, self.real = name, getattr(gpt2, name)

            def encode_to_numpy(self, text: str, **settings: object) -> np.ndarray:
                taken.append(self.name)
                return self.real.encode_to_numpy(text, **settings)

        monkeypatch.setattr(gpt2, name, Noted(name))
    for text, expected in {
        "plain  words,\n\nas in a play": "_quick_encoding",
        "def f():\n    return 1": "_encoding",
        "ends in two\n\n": "_encoding",
        "ends in one\n": "_quick_encoding",
    }.items():
        taken.clear()
        gpt2.encode(text)
        assert taken == [expected], text


def test_a_batch_of_long_and_short_texts_keeps_their_order(gpt2, reference, monkeypatch):
    monkeypatch.setattr(bpe, "_BLOCK", 50)
    play = load_corpus("shakespeare").test[0].text
    texts = [play[:3000], "", "short", play[3000:3700], " \n ", play[5000:9000]]
    batch = gpt2.encode_batch(iter(texts))
    assert [ids.tolist() for ids in batch] == [reference.encode(text).ids for text in texts]
    assert {ids.dtype for ids in batch} == {np.dtype(np.int64)}


def test_the_texts_of_a_batch_are_encoded_by_several_threads(gpt2, monkeypatch):
    """Each waits until another one is at work too."""
    meeting = threading.Barrier(2, timeout=60)
    real = gpt2._quick_encoding

    class Meeting:
        def encode_to_numpy(self, text: str, **settings: object) -> np.ndarray:
            meeting.wait()
            return real.encode_to_numpy(text, **settings)

    monkeypatch.setattr(gpt2, "_quick_encoding", Meeting())
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert [ids.tolist() for ids in gpt2.encode_batch(["hello world", "hello"])] == [[31373, 995], [31373]]


def test_pieces_learned_here_take_the_same_way(tiny_blocks):
    text = load_corpus("tiny").text()
    tokenizer = train_bpe(text, 300, progress=False)
    whole = tokenizer._encoding.encode_ordinary(text)  # the pattern that looks ahead, in one go
    assert tokenizer.encode(text) == whole
    assert tokenizer.encode_batch([text, "a"])[0].tolist() == whole


def test_no_text_of_a_batch_may_hold_half_a_character(gpt2):
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at position 2"):
        gpt2.encode_batch(["fine", "ab\ud800"])
