"""Training of byte-pair encoding, against a naive one and against another library."""

import json
from collections import Counter

import pytest
import regex
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.text import BPETokenizer, load_corpus, train_bpe
from labkit.text.bpe import PATTERN, _printable_bytes

# As OpenAI's code has it, without possessive repetition.
TEXTBOOK_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


def textbook_bpe(text: str, n_merges: int) -> list[tuple[int, int]]:
    """Count every pair anew before each merge; highest count first, then lowest ids."""
    words = Counter(tuple(word.encode()) for word in regex.findall(TEXTBOOK_PATTERN, text))
    merges = []
    for new_id in range(256, 256 + n_merges):
        pairs = Counter()
        for word, times in words.items():
            for i in range(len(word) - 1):
                pairs[word[i], word[i + 1]] += times
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        merged = Counter()
        for word, times in words.items():
            out, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    out.append(new_id)
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            merged[tuple(out)] += times
        words = merged
    return merges


def as_tokenizers(tokenizer: BPETokenizer) -> tokenizers.Tokenizer:
    """The same merges in the `tokenizers` library, ids equal."""
    show = _printable_bytes()
    shown = ["".join(show[byte] for byte in tokenizer.token_bytes(i)) for i in range(tokenizer.eos_id)]
    model = tokenizers.models.BPE(
        vocab={piece: i for i, piece in enumerate(shown)},
        merges=[(shown[left], shown[right]) for left, right in tokenizer.merges],
    )
    other = tokenizers.Tokenizer(model)
    other.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return other


@pytest.fixture(scope="module")
def tiny() -> str:
    return load_corpus("tiny").text("all")


@pytest.fixture(scope="module")
def trained(tiny) -> BPETokenizer:
    return train_bpe(tiny + "\nnaïve café, 日本語 日本 ёлка 😀😀 12345 1234\n", 700, progress=False)


def test_training_learns_the_merges_of_the_textbook_in_its_order(tiny):
    assert train_bpe(tiny, 257 + 300, progress=False).merges == textbook_bpe(tiny, 300)


@pytest.mark.parametrize(
    "text",
    ["aaaaaaaaaaa aaaa aaaaa aaa", "abababab abab cacaca caca", "a b c d a b c d", "xyxyx yxyxy xxyyxx"],
)
def test_overlaps_and_ties_are_settled_as_in_the_textbook(text):
    assert train_bpe(text, 257 + 2, progress=False).merges == textbook_bpe(text, 2)


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="ab c", min_size=12, max_size=120).filter(lambda text: "ab" in text))
def test_training_equals_the_textbook_on_any_small_text(text):
    assert train_bpe(text, 258, progress=False).merges == textbook_bpe(text, 1)


def test_several_texts_are_counted_together_but_not_across_their_borders():
    apart = train_bpe(["th", "th", "eth"], 258, progress=False)
    assert apart.token_bytes(256) == b"th"
    with pytest.raises(ValueError, match="no pair left after 0 merges"):
        train_bpe(["a", "b", "a", "b"], 258, progress=False)


def test_a_pattern_with_possessive_repetition_cuts_alike(tiny):
    text = tiny + "  \n\n x  y\t\tz   'll don't 'S 12ab !?… \n  "
    assert regex.findall(PATTERN, text) == regex.findall(TEXTBOOK_PATTERN, text)
    assert "".join(regex.findall(PATTERN, text)) == text


def test_training_twice_gives_the_same_tokenizer(tiny):
    assert (
        train_bpe(tiny, 400, progress=False).fingerprint == train_bpe([tiny], 400, progress=False).fingerprint
    )


def test_ids_equal_those_of_another_library_with_the_same_merges(trained, tiny):
    other = as_tokenizers(trained)
    for text in (tiny, "naïve 日本語 café 😀 1234567", "", "   two  spaces ", "\n\n\tx", "aaaaaaaaaaaaaaaaa"):
        assert trained.encode(text) == other.encode(text).ids


@settings(max_examples=150, deadline=None)
@given(text=st.text(alphabet="thesand wkoy.,'\nABé日😀0", max_size=80))
def test_ids_equal_those_of_another_library_on_any_text(trained, text):
    assert trained.encode(text) == as_tokenizers(trained).encode(text).ids


def test_the_vocabulary_counts_bytes_merges_and_the_end_of_text(trained):
    assert trained.vocab_size == 700 == 256 + len(trained.merges) + 1
    assert trained.eos_id == 699
    assert trained.token_bytes(699) == b"<|endoftext|>"
    assert [trained.token_bytes(i) for i in range(256)] == [bytes([i]) for i in range(256)]
    assert all(max(pair) < 256 + number for number, pair in enumerate(trained.merges))


def test_training_shortens_the_text_it_saw(trained, tiny):
    assert len(trained.encode(tiny)) < 0.6 * len(tiny.encode())


def test_the_file_shows_merges_as_gpt2_writes_them(trained, tmp_path):
    trained.save(tmp_path / "bpe.json")
    content = json.loads((tmp_path / "bpe.json").read_text(encoding="utf-8"))
    assert len(content["merges"]) == 443
    assert any(line.startswith("Ġ ") for line in content["merges"])


def test_every_piece_is_new_and_runs_of_one_letter_come_back():
    tokenizer = train_bpe("aaaaa aaaaaaa aaa aaaa aaaaaaaaaaaaa", 257 + 5, progress=False)
    pieces = [tokenizer.token_bytes(i) for i in range(tokenizer.eos_id)]
    assert len(set(pieces)) == len(pieces)
    for n in range(1, 30):
        assert tokenizer.decode(tokenizer.encode("a" * n)) == "a" * n
