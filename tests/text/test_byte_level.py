"""Byte-level tokenizers on many texts at once: the ids are those of another library."""

import threading

import numpy as np
import pytest

from labkit.text import load_corpus


def test_a_batch_of_long_and_short_texts_keeps_their_order(gpt2, reference):
    play = load_corpus("shakespeare").test[0].text
    texts = [play[:3000], "", "short", play[3000:3700], " \n ", play[5000:9000]]
    batch = gpt2.encode_batch(iter(texts))
    assert [ids.tolist() for ids in batch] == [reference.encode(text).ids for text in texts]
    assert {ids.dtype for ids in batch} == {np.dtype(np.int64)}


def test_the_texts_of_a_batch_are_encoded_by_several_threads(gpt2, monkeypatch):
    """Each waits until another one is at work too."""
    meeting = threading.Barrier(2, timeout=60)
    real = gpt2._encoding

    class Meeting:
        def encode_to_numpy(self, text: str, **settings: object) -> np.ndarray:
            meeting.wait()
            return real.encode_to_numpy(text, **settings)

    monkeypatch.setattr(gpt2, "_encoding", Meeting())
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert [ids.tolist() for ids in gpt2.encode_batch(["hello world", "hello"])] == [[31373, 995], [31373]]


def test_no_text_of_a_batch_may_hold_half_a_character(gpt2):
    with pytest.raises(ValueError, match=r"lone surrogate U\+D800 at position 2"):
        gpt2.encode_batch(["fine", "ab\ud800"])
