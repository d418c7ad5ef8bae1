"""Text to ids and back: what every tokenizer can do, and the simplest one, characters."""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from labkit.io import write_text_atomically
from labkit.text.cleaning import read_text

if TYPE_CHECKING:
    from torch import Tensor

END_OF_TEXT = "<|endoftext|>"
FORMAT = "labkit-tokenizer"
LARGEST_FILE = 2**27
"""Bytes that a file beside a model, such as its tokenizer, has at most."""


class UnsupportedTokenizerError(ValueError):
    """A tokenizer of a kind that labkit does not read; the model beside it can still be loaded."""


class Tokenizer(ABC):
    """Turns text into ids in 0 .. vocab_size - 1, and ids into text.

    `decode(encode(text)) == text` for every text that `encode` accepts, unless the tokenizer was told
    to replace unknown characters.
    """

    name: str
    """What files call this kind of tokenizer."""
    vocab_size: int
    eos_id: int | None
    """The id that stands for the end of a document, if there is one."""

    @property
    def special_tokens(self) -> Mapping[str, int]:
        """Texts that stand for one id where `encode` is told to allow them, and those ids."""
        return {} if self.eos_id is None else {END_OF_TEXT: self.eos_id}

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of a text. Special tokens in it, as "<|endoftext|>", are text unless allow_special is set.

        Raises TypeError for anything but a str, ValueError for surrogates (the halves into which UTF-16
        splits a character; no UTF-8 text holds them) and, with characters, for unknown ones.
        """
        self._check(text)
        return (self._encode_special(text) if allow_special else self._encode(text)).tolist()

    def encode_batch(self, texts: Iterable[str]) -> list[np.ndarray]:
        """The ids of several texts, each an int64 array; special tokens are ordinary text."""
        if isinstance(texts, str):
            raise TypeError(f"{self.name}: encode_batch takes a list of texts, not one text.")
        texts = list(texts)
        for text in texts:
            self._check(text)
        return [ids.astype(np.int64) for ids in self._encode_all(texts)]

    def decode(self, ids: Sequence[int] | np.ndarray | Tensor) -> str:
        """The text of one sequence of ids (list, array or tensor).

        Bytes that are no UTF-8, as when a character's tokens are cut apart, become U+FFFD.
        Raises ValueError for ids outside the vocabulary.
        """
        return b"".join(map(self.token_bytes, self._checked_ids(ids))).decode("utf-8", "replace")

    def tokenize(self, text: str) -> list[str]:
        """The pieces of a text, as text; bytes of a cut character are shown as \\xNN."""
        return [self.token_bytes(i).decode("utf-8", "backslashreplace") for i in self.encode(text)]

    @abstractmethod
    def token_bytes(self, token_id: int) -> bytes:
        """The bytes one id stands for. Raises ValueError for an id outside the vocabulary."""

    @abstractmethod
    def _encode(self, text: str) -> np.ndarray:
        """The ids of a text that has been checked, special tokens as ordinary text."""

    def _encode_special(self, text: str) -> np.ndarray:
        """The ids of a text that has been checked, special tokens in it as the ids they stand for."""
        if self.eos_id is None:
            return self._encode(text)
        parts = re.split(f"({re.escape(END_OF_TEXT)})", text)
        ends = [self.eos_id]
        return np.concatenate([ends if part == END_OF_TEXT else self._encode(part) for part in parts])

    def _encode_all(self, texts: list[str]) -> list[np.ndarray]:
        """What `_encode` gives for each of several texts."""
        return [self._encode(text) for text in texts]

    @abstractmethod
    def _definition(self) -> dict[str, Any]:
        """Everything that defines the tokenizer, ready for JSON, under the key "kind" its class."""

    @classmethod
    @abstractmethod
    def _from_definition(cls, definition: dict[str, Any]) -> Self: ...

    def _meaning(self) -> dict[str, Any]:
        """The part of the definition that says which ids a text has."""
        return self._definition()

    @property
    def fingerprint(self) -> str:
        """sha256, in hex, of what defines the tokenizer: equal exactly when its ids mean the same."""
        text = json.dumps(self._meaning(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as readable JSON; the file appears whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        content = {"format": FORMAT, "fingerprint": self.fingerprint} | self._definition()
        write_text_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def __repr__(self) -> str:
        return f"{type(self).__name__}(vocab_size={self.vocab_size})"

    def _check(self, text: str) -> None:
        if not isinstance(text, str):
            raise TypeError(f"{self.name}: text must be a str, not {type(text).__name__}.")
        refuse_surrogates(text, self.name)

    def _checked_ids(self, ids: Sequence[int] | np.ndarray | Tensor) -> list[int]:
        values = ids.tolist() if hasattr(ids, "tolist") else list(ids)
        if not isinstance(values, list) or any(isinstance(value, list) for value in values):
            raise ValueError(f"{self.name}: decode takes one sequence of ids at a time (one dimension).")
        return [self._check_id(value, f" at position {place}") for place, value in enumerate(values)]

    def _check_id(self, value: Any, where: str = "") -> int:
        try:
            token_id = index(value)
        except TypeError as error:
            raise ValueError(f"{self.name}: id {value!r}{where} is not a whole number.") from error
        if not 0 <= token_id < self.vocab_size:
            raise ValueError(f"{self.name}: id {token_id}{where} is outside 0 .. {self.vocab_size - 1}.")
        return token_id


class CharTokenizer(Tokenizer):
    """One id per character, in order of their code points, and a last id for the end of a text.

    characters: the alphabet.  unknown: a character of it that stands in for every other one; without
    it an unknown character is an error.
    """

    name = "characters"

    def __init__(self, characters: Iterable[str], *, unknown: str | None = None) -> None:
        alphabet = sorted(set(characters))
        if not alphabet:
            raise ValueError("characters: the alphabet is empty; give a text with at least one character.")
        if long := [character for character in alphabet if len(character) != 1]:
            raise ValueError(f"characters: {long[0]!r} is not one character.")
        refuse_surrogates("".join(alphabet), self.name)
        if unknown is not None and unknown not in alphabet:
            raise ValueError(f"characters: unknown={unknown!r} is not in the alphabet.")
        self.characters = "".join(alphabet)
        self.unknown = unknown
        self.eos_id = len(alphabet)
        self.vocab_size = len(alphabet) + 1
        codes = np.array([ord(character) for character in alphabet])
        # id of each code point up to the highest one known, and one more place for all that lie above
        self._ids = np.full(codes[-1] + 2, -1 if unknown is None else alphabet.index(unknown), dtype=np.int64)
        self._ids[codes] = np.arange(len(codes))

    @classmethod
    def from_text(cls, text: str, *, unknown: str | None = None) -> CharTokenizer:
        """The tokenizer whose alphabet is the distinct characters of a text."""
        if not isinstance(text, str):
            raise TypeError(f"characters: text must be a str, not {type(text).__name__}.")
        return cls(set(text), unknown=unknown)

    def _encode(self, text: str) -> np.ndarray:
        codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
        ids = self._ids[np.minimum(codes, len(self._ids) - 1)]
        if (ids < 0).any():
            at = int(np.argmax(ids < 0))
            strange = "".join(sorted({chr(code) for code in codes[ids < 0]}))
            raise ValueError(
                f"characters: {strange[:20]!r} {'is' if len(strange) == 1 else 'are'} not in the alphabet "
                f"(first at position {at}). Build the tokenizer from a text that has them, or give "
                "unknown='?' (a known character) to replace them."
            )
        return ids

    def token_bytes(self, token_id: int) -> bytes:
        token_id = self._check_id(token_id)
        return (END_OF_TEXT if token_id == self.eos_id else self.characters[token_id]).encode()

    def _definition(self) -> dict[str, Any]:
        return {"kind": "characters", "characters": self.characters, "unknown": self.unknown}

    @classmethod
    def _from_definition(cls, definition: dict[str, Any]) -> Self:
        return cls(definition["characters"], unknown=definition["unknown"])


def read_json(path: str | Path) -> dict[str, Any]:
    """The JSON object in a file beside a model.  Raises ValueError, naming the file, for anything else."""
    try:
        content = json.loads(read_text(path, LARGEST_FILE))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is no JSON text ({error}). Fetch the file again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a JSON object {{...}}.")
    return content


@contextmanager
def named(source: str | Path) -> Iterator[None]:
    """Errors raised inside name the source, and are ValueErrors where the content has another form."""
    try:
        yield
    except ValueError as error:
        kind = UnsupportedTokenizerError if isinstance(error, UnsupportedTokenizerError) else ValueError
        raise kind(f"{source}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source}: is incomplete or damaged ({error!r}).") from error


def refuse_surrogates(text: str, name: str) -> None:
    """Raise ValueError for a text that no file in UTF-8 can hold."""
    if not (found := re.search("[\ud800-\udbff][\udc00-\udfff]|[\ud800-\udfff]", text)):
        return
    codes = " ".join(f"U+{ord(half):04X}" for half in found[0])
    if len(found[0]) == 2:
        raise ValueError(
            f"{name}: the text has the surrogates {codes} at position {found.start()}, which are one "
            "character in UTF-16. Join them: text.encode('utf-16', 'surrogatepass').decode('utf-16')."
        )
    raise ValueError(
        f"{name}: the text has a lone surrogate {codes} at position {found.start()}, which "
        "is half of a character. Decode the source as UTF-8, or with errors='replace'."
    )
