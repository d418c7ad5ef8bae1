"""The tokenizers of published models: byte-level BPE with ids, merges and special tokens of its own.

tiktoken runs the merges. It joins two neighbours whenever their bytes make a piece that it knows, while
the published files say which two pieces a merge joins. `_ranks` makes sure that this is the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import regex  # type: ignore[import-untyped]
import tiktoken

from labkit.text.bpe import PATTERN, _ByteLevelTokenizer, _printable_bytes
from labkit.text.tokenizer import END_OF_TEXT, Tokenizer, _refuse_surrogates

# How a text is cut before anything is merged: the published patterns, with possessive quantifiers where
# going back could not help, so that long runs cost linear time.
PATTERNS = {
    "gpt2": PATTERN,
    # Digits are cut out first, one by one, then GPT-2's pattern cuts what lies between them. So white
    # space before a digit stays whole, as it does at the end of a text.
    "smollm": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++|\p{N}| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?![^\s\p{N}])|\s",
    # Contractions in either case, digits by threes, line breaks with the white space before them.
    "llama3": (
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
        r"|\s*[\r\n]|\s++$|\s+(?!\S)|\s"
    ),
}
LARGEST_ID = 2**24
LONGEST_PIECE = 1024
WAY_OUT = "The model itself can be loaded without it, and given ids instead of text."
Merge = tuple[str, str]


class UnsupportedTokenizerError(ValueError):
    """A tokenizer of a kind that labkit does not read; the model beside it can still be loaded."""


class PublishedTokenizer(_ByteLevelTokenizer):
    """Byte-level BPE as published models bring it.

    vocabulary: id of every piece, its bytes written in GPT-2's letters (a space is "Ġ").  merges: pairs
    of pieces, first learned first.  pattern: a key of `PATTERNS`.  special: id of every special token.
    eos, bos: which special tokens end and begin a text.  ignore_merges: a whole pre-token that is a piece
    is that piece, whether or not merging leads there.

    vocab_size may exceed the pieces, where a model's tables are padded: an id that stands for nothing
    decodes to nothing.  A byte without a piece (SmolLM2 has none for six control characters and for
    the unassigned planes of Unicode) is dropped by `encode`, as the published tokenizers do.
    Raises ValueError for a vocabulary that contradicts itself, `UnsupportedTokenizerError` for merges whose
    result labkit could not guarantee.
    """

    name = "published"

    def __init__(
        self,
        vocabulary: Mapping[str, int],
        merges: Iterable[Merge],
        *,
        pattern: str,
        special: Mapping[str, int],
        eos: str | None = None,
        bos: str | None = None,
        chat_template: str | None = None,
        ignore_merges: bool = False,
        vocab_size: int = 0,
    ) -> None:
        if pattern not in PATTERNS:
            raise ValueError(f"published: pattern={pattern!r} is not one of {', '.join(PATTERNS)}.")
        if not isinstance(chat_template, str | None):
            raise ValueError(f"published: chat_template is a {type(chat_template).__name__}, not a string.")
        _check_vocabulary(vocabulary, special)
        for role, token in (("eos", eos), ("bos", bos)):
            if token is not None and token not in special:
                raise ValueError(
                    f"published: {role}={token!r} is none of the special tokens {list(special)[:8]}."
                )
        self.merges = [(left, right) for left, right in merges]
        joined = {left + right for left, right in self.merges}
        self.vocabulary = {
            piece: i
            for piece, i in vocabulary.items()
            if piece not in special or piece in joined or len(piece) == 1
        }
        self.pattern, self.ignore_merges = pattern, ignore_merges
        self.eos, self.bos, self.chat_template = eos, bos, chat_template
        self._special = dict(sorted(special.items(), key=lambda item: item[1]))
        self.eos_id = None if eos is None else special[eos]
        self.vocab_size = max(vocab_size, 1 + max([*self.vocabulary.values(), *special.values()]))

        byte_of = {letter: byte for byte, letter in _printable_bytes().items()}
        try:
            piece_bytes = {piece: bytes(byte_of[letter] for letter in piece) for piece in self.vocabulary}
        except KeyError as error:
            raise UnsupportedTokenizerError(
                f"published: a piece holds {error.args[0]!r}, which is no letter of GPT-2's for a byte."
            ) from None
        self._bytes = {i: piece_bytes[piece] for piece, i in self.vocabulary.items()}
        self._bytes |= {i: text.encode() for text, i in self._special.items()}
        self._missing = bytes(byte for letter, byte in byte_of.items() if letter not in self.vocabulary)
        if ignore_merges and self._missing:
            raise UnsupportedTokenizerError(
                "published: with ignore_merges every byte needs a piece of its own."
            )

        ranks = _ranks(self.vocabulary, self.merges, ignore_merges)
        self._ids = np.full(256 + len(self.merges) + len(self.vocabulary), -1)
        self._ids[[256 + rank for rank in ranks.values()]] = [self.vocabulary[piece] for piece in ranks]
        for letter, byte in byte_of.items():
            self._ids[byte] = self.vocabulary.get(letter, -1)
        self._encoding = tiktoken.Encoding(
            "labkit-published",
            pat_str=PATTERNS[pattern],
            mergeable_ranks={bytes([byte]): byte for byte in range(256)}
            | {piece_bytes[piece]: 256 + rank for piece, rank in ranks.items()},
            special_tokens={END_OF_TEXT: len(self._ids)},  # tiktoken wants one; it is never looked for
        )

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special

    def _encode(self, text: str) -> np.ndarray:
        if self._missing and len(text.encode().translate(None, self._missing)) < len(text.encode()):
            return self._encode_known_bytes(text)
        return self._ids[super()._encode(text)]

    def _encode_known_bytes(self, text: str) -> np.ndarray:
        """The ids of a text in which some bytes have no piece: they go after the text has been cut."""
        ranks: list[int] = []
        for piece in regex.findall(PATTERNS[self.pattern], text):
            if known := piece.encode().translate(None, self._missing):
                ranks += self._encoding._encode_single_piece(known)
        return self._ids[ranks] if ranks else np.empty(0, dtype=np.int64)

    def token_bytes(self, token_id: int) -> bytes:
        self._check_id(token_id)
        return self._bytes.get(int(token_id), b"")

    decode = Tokenizer.decode

    def _definition(self) -> dict[str, Any]:
        return {
            "kind": "published",
            "pattern": self.pattern,
            "ignore_merges": self.ignore_merges,
            "special": self._special,
            "eos": self.eos,
            "bos": self.bos,
            "vocab_size": self.vocab_size,
            "chat_template": self.chat_template,
            "vocabulary": self.vocabulary,
            "merges": [f"{left} {right}" for left, right in self.merges],
        }

    @classmethod
    def _from_definition(cls, definition: dict[str, Any]) -> PublishedTokenizer:
        settings = {
            key: value for key, value in definition.items() if key not in ("format", "fingerprint", "kind")
        }
        return cls(**settings | {"merges": [line.split(" ") for line in definition["merges"]]})


def _check_vocabulary(vocabulary: Mapping[str, int], special: Mapping[str, int]) -> None:
    taken: dict[int, str] = {}
    for piece, token_id in (*vocabulary.items(), *special.items()):
        if type(token_id) is not int or not 0 <= token_id < LARGEST_ID:
            raise ValueError(f"published: {piece!r} has id {token_id!r}; expected 0 .. {LARGEST_ID - 1}.")
        if taken.setdefault(token_id, piece) != piece:
            raise ValueError(f"published: id {token_id} stands for both {taken[token_id]!r} and {piece!r}.")
        if not 0 < len(piece) <= LONGEST_PIECE:
            raise ValueError(
                f"published: id {token_id} stands for {len(piece)} letters; expected 1 to {LONGEST_PIECE}."
            )
    for token, token_id in special.items():
        _refuse_surrogates(token, "published")
        if vocabulary.get(token, token_id) != token_id:
            raise ValueError(f"published: {token!r} has the ids {vocabulary[token]} and {token_id}.")
    if not taken:
        raise ValueError("published: the vocabulary is empty.")


def _ranks(vocabulary: Mapping[str, int], merges: list[Merge], ignore_merges: bool) -> dict[str, int]:
    """The rank by which tiktoken merges each piece, such that it does what the merges say.

    Merging a piece's own text always takes the same course. Where that course ends with one of the
    piece's merges, any two neighbours with the piece's bytes, in whatever text, are the two of that merge:
    had they come about otherwise, they would have in the piece's own text too. So the rank of that merge
    is the piece's, other merges of it never happen, and a piece without such a merge is never made.

    That needs merges of pieces that earlier merges made. Files made from tiktoken's have others too, and
    pieces that no merge makes, but list every way to make a piece, one after the other: what tiktoken does.
    """
    order = {pair: rank for rank, pair in enumerate(merges)}
    if len(order) < len(merges):
        raise ValueError("published: a merge is listed twice.")
    made: dict[str, tuple[int, str, str]] = {}
    first: dict[str, int] = {}
    in_order = True
    for rank, (left, right) in enumerate(merges):
        if missing := [piece for piece in (left, right, left + right) if piece not in vocabulary]:
            raise ValueError(
                f"published: merge {rank} ({left!r}, {right!r}) needs {missing[0]!r}, which is not in the "
                "vocabulary."
            )
        in_order = in_order and all(len(part) == 1 or part in first for part in (left, right))
        first.setdefault(left + right, rank)
        if left + right not in made and _happens(left, right, rank, made, order):
            made[left + right] = (rank, left, right)
    whole = [piece for piece in vocabulary if len(piece) > 1] if ignore_merges else []
    if in_order and all(piece in made for piece in whole):
        return {piece: rank for piece, (rank, _, _) in made.items()}
    if not ignore_merges:
        raise UnsupportedTokenizerError(f"published: a merge needs what only later merges make. {WAY_OUT}")
    for piece in whole:
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        ways = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
        if {order.get(way, -1) - first.get(piece, 0) for way in ways} != set(range(len(ways))):
            raise UnsupportedTokenizerError(
                f"published: the piece {piece!r} can be made in {len(ways)} ways, which are not all merges, "
                f"one after the other; labkit cannot promise the same ids. {WAY_OUT}"
            )
    return first | {piece: len(merges) + i for i, piece in enumerate(whole) if piece not in first}


def _happens(
    left: str, right: str, rank: int, made: Mapping[str, tuple[int, str, str]], order: Mapping[Merge, int]
) -> bool:
    """Whether merging the text of left + right comes to these two: nothing is merged across their border.

    Goes back in time: takes apart what was made last at the border, and asks whether what then met there
    would have been merged before. Of equal ranks the leftmost is merged first.
    """
    never = (-1, "", "")
    if any(len(piece) > 1 and piece not in made for piece in (left, right)):
        return False
    while True:
        last_left, last_right = made.get(left, never), made.get(right, never)
        if last_left == last_right == never:
            return True
        if last_right[0] >= last_left[0]:
            right = last_right[1]
            crossed = order.get((left, right), len(order)) <= last_right[0]
        else:
            left = last_left[2]
            crossed = order.get((left, right), len(order)) < last_left[0]
        if crossed:
            return False
