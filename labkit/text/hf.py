"""Published tokenizers of every kind behind the interface of `Tokenizer`, run by the `tokenizers` library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from labkit.text.bpe import BPETokenizer, GPT2Tokenizer, _printable_bytes
from labkit.text.tokenizers import (
    FORMAT,
    CharTokenizer,
    Tokenizer,
    UnsupportedTokenizerError,
    named,
    read_json,
)

if TYPE_CHECKING:
    import tokenizers

Json = dict[str, Any]

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
MODELS = ("BPE", "Unigram", "WordLevel")
DECODERS = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
"""With these a token spells the same text whatever stands beside it."""

WAY_OUT = "The model itself can be loaded without it, and given ids instead of text."


class HFTokenizer(Tokenizer):
    """A published tokenizer, run by the `tokenizers` library.

    content: what tokenizer.json holds, as `in_library_form` gives it.  eos, bos: the special tokens that end
    and begin a text.  vocab_size may exceed the tokens, where a model's tables are padded: an id that stands
    for nothing decodes to nothing.

    Ids are the library's, but a text gets no tokens that are not in it (no start, no padding), is never cut,
    and special tokens in it are text unless `encode` is told to allow them.  What the published tokenizer
    changes in a text, such as its Unicode normal form, or cannot spell, stays changed after `decode`.
    """

    name = "hf"

    def __init__(
        self,
        content: Json,
        *,
        eos: str | None = None,
        bos: str | None = None,
        chat_template: str | None = None,
        vocab_size: int = 0,
    ) -> None:
        if not isinstance(chat_template, str | None):
            raise ValueError(f"chat_template is a {type(chat_template).__name__}, not a string.")
        self.content, self.eos, self.bos, self.chat_template = content, eos, bos, chat_template
        self._plain = run_by_library(self.content)
        self._plain.encode_special_tokens = True  # as ordinary text

        ids = self._plain.get_vocab()
        self._pieces = {token_id: piece for piece, token_id in ids.items()}
        self.vocab_size = max(vocab_size, 1 + max(self._pieces))
        added = sorted(self._plain.get_added_tokens_decoder().items())
        self._special = {token.content: token_id for token_id, token in added if token.special}
        self.eos_id = None if eos is None else self._special[eos]

        self._byte_of = {letter: byte for byte, letter in _printable_bytes().items()}
        words = (piece for piece in sorted(ids) if piece.isascii() and piece.isalpha())
        self._word = min((word for word in words if word not in self._special), key=len, default="")
        self._before = [ids[self._word]] if self._word else []
        self._bytes: dict[int, bytes] = {}

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special

    @cached_property
    def _with_special(self) -> tokenizers.Tokenizer:
        return run_by_library(self.content)

    @cached_property
    def _spelled(self) -> dict[int, list[int]]:
        """The ids of each special token's letters, for models that would find the token itself in a text."""
        model = self.content["model"]
        return {
            token_id: [piece.id for letter in token for piece in self._plain.model.tokenize(letter)]
            for token, token_id in self._special.items()
            if token_id != model.get("unk_id") and token != model.get("unk_token")
        }

    def _encode(self, text: str) -> np.ndarray:
        with library_errors("hf: this text has no ids"):
            ids = self._plain.encode(text, add_special_tokens=False).ids
            if not set(self._special.values()).isdisjoint(ids):
                ids = [each for token_id in ids for each in self._spelled.get(token_id, [token_id])]
        return np.array(ids, dtype=np.int64)

    def _encode_special(self, text: str) -> np.ndarray:
        with library_errors("hf: this text has no ids"):
            return np.array(self._with_special.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def token_bytes(self, token_id: int) -> bytes:
        token_id = self._check_id(token_id)
        if token_id not in self._bytes:
            self._bytes[token_id] = self._spell(token_id)
        return self._bytes[token_id]

    def _spell(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id, "")
        if piece in self._special:
            return piece.encode()
        if is_byte_level(self.content):
            known = all(letter in self._byte_of for letter in piece)
            return bytes(self._byte_of[letter] for letter in piece) if known else piece.encode()
        if "ByteFallback" in types(self.content, "decoder") and re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return bytes.fromhex(piece[3:5])
        # Behind a word, since the first token of a text may lose its space.
        text = self._plain.decode([*self._before, token_id], skip_special_tokens=False)
        return text[len(self._word) :].encode()

    @cached_property
    def _prefix(self) -> str:
        """The space that SentencePiece's kind puts before a text, and takes away from it again."""
        if is_byte_level(self.content) or not self._word:
            return ""
        ids = self._encode(self._word).tolist()
        return super().decode(ids).removesuffix(self._plain.decode(ids, skip_special_tokens=False))

    def decode(self, ids: Any) -> str:
        return super().decode(ids).removeprefix(self._prefix)

    def _definition(self) -> Json:
        settings = {"eos": self.eos, "bos": self.bos, "vocab_size": self.vocab_size}
        return {"kind": "hf", **settings, "chat_template": self.chat_template, "tokenizer": self.content}

    def _meaning(self) -> Json:
        meaning = self._definition() | {"tokenizer": deciding_parts(self.content)}
        del meaning["chat_template"]
        return meaning

    @classmethod
    def _from_definition(cls, definition: Json) -> Self:
        settings = {key: definition[key] for key in ("eos", "bos", "chat_template", "vocab_size")}
        return cls(definition["tokenizer"], **settings)


KINDS: dict[str, type[Tokenizer]] = {
    each.name: each for each in (CharTokenizer, BPETokenizer, GPT2Tokenizer, HFTokenizer)
}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read any tokenizer that `Tokenizer.save` wrote.

    Raises ValueError where the file is missing, is not such a file, or was changed since.
    """
    definition = read_json(path)
    kind = definition.get("kind") if definition.get("format") == FORMAT else None
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(
            f"{path}: is not a tokenizer file of kind {', '.join(KINDS)}, but {kind!r}. A file of an older "
            "version of labkit is written anew by `labkit import` or `labkit train`."
        )
    with named(path):
        tokenizer = KINDS[kind]._from_definition(definition)
    if tokenizer.fingerprint != definition.get("fingerprint"):
        raise ValueError(f"{path}: was changed after it was saved; its fingerprint does not match.")
    return tokenizer


def in_library_form(content: Json, eos: str | None = None, bos: str | None = None) -> Json:
    """A published content as the library writes it itself, whatever version has written the file.

    eos, bos: tokens that become special.  Nothing is left that cuts or pads a text.
    Raises `UnsupportedTokenizerError` for kinds whose single tokens spell no text, ValueError for damage.
    """
    model, decoders = content["model"], types(content, "decoder")
    kind = model.get("type") or "BPE"
    spells = is_byte_level(content) or (decoders and set(decoders) <= DECODERS)
    needs = {
        f"a model of type {kind}": kind not in MODELS,
        f"a decoder of type {', '.join(decoders)}": decoders and not spells,
        "to be told how its tokens are decoded": not decoders and not spells,
    }
    needs |= {
        name: model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    }
    if unsupported := [need for need, present in needs.items() if present]:
        raise UnsupportedTokenizerError(
            f"the tokenizer needs {', '.join(unsupported)}; labkit reads models of type {', '.join(MODELS)} "
            f"whose tokens spell text by themselves. {WAY_OUT}"
        )
    vocabulary = pieces(content)
    if (count := len(set(vocabulary.values()))) < max(1, len(vocabulary)):
        raise ValueError(f"{len(vocabulary)} tokens have {count} ids; expected one each, at least 1.")
    tokenizer = run_by_library(content)
    for token in content.get("added_tokens") or []:
        if (own := tokenizer.token_to_id(token["content"])) != token["id"]:
            raise ValueError(f"{token['content']!r} has id {token['id']}, but the library gives it {own}.")
    special = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    for role, end in (("eos", eos), ("bos", bos)):
        if end is not None and tokenizer.token_to_id(end) is None:
            raise ValueError(f"{role}={end!r} is none of the tokens; added are {list(special)[:8]}.")
    tokenizer.add_special_tokens([end for end in (eos, bos) if end is not None and not special.get(end)])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    written: Json = json.loads(tokenizer.to_str())
    return written | {"decoder": written["decoder"] or BYTE_LEVEL}


def byte_level(
    vocabulary: Mapping[str, int],
    merges: Iterable[str],
    special: Mapping[str, int],
    *,
    in_every_text: Mapping[str, int] | None = None,
    pre_tokenizer: Json = BYTE_LEVEL,
    ignore_merges: bool = False,
) -> Json:
    """Byte-level BPE.  vocabulary: all tokens.  in_every_text: those that are found in a text always."""
    model = {"type": "BPE", "vocab": vocabulary, "merges": list(merges), "ignore_merges": ignore_merges}
    added = [added_token(*each) for each in special.items()]
    added += [added_token(*each) | {"special": False} for each in (in_every_text or {}).items()]
    return {"added_tokens": added, "pre_tokenizer": pre_tokenizer, "decoder": BYTE_LEVEL, "model": model}


def added_token(token: str, token_id: int) -> Json:
    kind = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {"id": token_id, "content": token, **kind}


def pieces(content: Json) -> dict[str, int]:
    """The ids of the model's own pieces; Unigram lists them in order, each with its score."""
    vocabulary = content["model"]["vocab"]
    return (
        vocabulary if isinstance(vocabulary, dict) else {piece: i for i, (piece, _) in enumerate(vocabulary)}
    )


def types(content: Json, part: str) -> list[str]:
    """What the pre-tokenizer or the decoder does, step by step."""
    whole = content.get(part) or {"type": "Sequence"}
    steps = whole.get(f"{part.replace('_', '')}s") or [] if whole["type"] == "Sequence" else [whole]
    return [step["type"] for step in steps]


def is_byte_level(content: Json) -> bool:
    return "ByteLevel" in (types(content, "decoder") or types(content, "pre_tokenizer"))


def deciding_parts(content: Json) -> Json:
    """The part of a content that decides which ids a text has."""
    return {part: content.get(part) for part in ("model", "normalizer", "pre_tokenizer", "added_tokens")}


def run_by_library(content: Json) -> tokenizers.Tokenizer:
    import tokenizers

    with library_errors("the tokenizers library does not read this"):
        return tokenizers.Tokenizer.from_str(json.dumps(content))


@contextmanager
def library_errors(what: str) -> Iterator[None]:
    """Errors of the library, bare Exceptions and panics, as ValueErrors."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what} ({error!s:.200}).") from error
