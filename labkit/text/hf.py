"""Tokenizers in files: those of published models, by the `tokenizers` library, and labkit's own."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from labkit.io import write_text_atomically
from labkit.text.assets import ASSETS, AssetError, asset_path
from labkit.text.bpe import BPETokenizer, GPT2Tokenizer, _printable_bytes
from labkit.text.tokenizers import (
    END_OF_TEXT,
    FORMAT,
    CharTokenizer,
    Tokenizer,
    UnsupportedTokenizerError,
    named,
    read_json,
    read_text,
)

if TYPE_CHECKING:
    import tokenizers

Json = dict[str, Any]

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS: dict[str, Json] = {
    "gpt2": BYTE_LEVEL,
    "smollm": {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL],
    },
    "llama3": {
        "type": "Sequence",
        "pretokenizers": [SPLIT | {"pattern": {"Regex": LLAMA3}}, BYTE_LEVEL | {"use_regex": False}],
    },
    "characters": SPLIT | {"pattern": {"Regex": r"[\s\S]"}},
}
GGUF_PRE_TOKENIZERS = {"gpt-2": "gpt2", "smollm": "smollm", "llama-bpe": "llama3"}
BPE_DEFAULTS = {
    **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
    **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
}
MODELS = ("BPE", "Unigram", "WordLevel")
DECODERS = {"ByteLevel", "Metaspace", "Replace", "ByteFallback", "Fuse", "Strip"}
"""With these a token spells the same text whatever stands beside it."""

GPT2_FILES = ("vocab.json", "merges.txt")
OTHER_FILES = ("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model")
WAY_OUT = "The model itself can be loaded without it, and given ids instead of text."


class HFTokenizer(Tokenizer):
    """A published tokenizer, run by the `tokenizers` library.

    content: what tokenizer.json holds.  eos, bos: the tokens that end and begin a text; they become special.
    vocab_size may exceed the tokens, where a model's tables are padded: an id that stands for nothing
    decodes to nothing.

    Ids are the library's, but a text gets no tokens that are not in it (no start, no padding), is never cut,
    and special tokens in it are text unless `encode` is told to allow them.  What the published tokenizer
    changes in a text, such as its Unicode normal form, or cannot spell, stays changed after `decode`.
    Raises ValueError for content that contradicts itself or that the library refuses,
    `UnsupportedTokenizerError` for kinds whose single tokens spell no text.
    """

    name = "hf"
    kinds = ("hf", "published")

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
        self.eos, self.bos, self.chat_template = eos, bos, chat_template
        self.content = _checked(content, eos, bos)
        self._older: Json | None = None
        self._plain = _run_by_library(self.content)
        self._plain.encode_special_tokens = True  # as ordinary text

        self._pieces: dict[int, str] = {}
        for piece, token_id in sorted(self._plain.get_vocab().items()):
            if self._pieces.setdefault(token_id, piece) != piece:
                raise ValueError(f"id {token_id} stands for both {self._pieces[token_id]!r} and {piece!r}.")
        if not self._pieces:
            raise ValueError("the vocabulary is empty.")
        self.vocab_size = max(vocab_size, 1 + max(self._pieces))
        ids = {piece: token_id for token_id, piece in self._pieces.items()}
        for token in self.content["added_tokens"]:
            if (own := ids.get(token["content"])) != token["id"]:
                raise ValueError(
                    f"{token['content']!r} has id {token['id']}, but the library gives it {own}."
                )
        special = [token["content"] for token in self.content["added_tokens"] if token["special"]]
        self._special = {token: ids[token] for token in special}
        self.eos_id = None if eos is None else self._special[eos]

        self._byte_of = {letter: byte for byte, letter in _printable_bytes().items()}
        words = (piece for piece in self._pieces.values() if piece.isascii() and piece.isalpha())
        self._word = min((word for word in words if word not in self._special), key=len, default="")
        self._before = [ids[self._word]] if self._word else []
        self._bytes: dict[int, bytes] = {}

    @property
    def special_tokens(self) -> Mapping[str, int]:
        return self._special

    @cached_property
    def _with_special(self) -> tokenizers.Tokenizer:
        return _run_by_library(self.content)

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
        with _library_errors("hf: this text has no ids"):
            ids = self._plain.encode(text, add_special_tokens=False).ids
            if not set(self._special.values()).isdisjoint(ids):
                ids = [each for token_id in ids for each in self._spelled.get(token_id, [token_id])]
        return np.array(ids, dtype=np.int64)

    def _encode_special(self, text: str) -> np.ndarray:
        with _library_errors("hf: this text has no ids"):
            return np.array(self._with_special.encode(text, add_special_tokens=False).ids, dtype=np.int64)

    def token_bytes(self, token_id: int) -> bytes:
        self._check_id(token_id)
        token_id = int(token_id)
        if token_id not in self._bytes:
            self._bytes[token_id] = self._spell(token_id)
        return self._bytes[token_id]

    def _spell(self, token_id: int) -> bytes:
        piece = self._pieces.get(token_id, "")
        if piece in self._special:
            return piece.encode()
        if _is_byte_level(self.content):
            known = all(letter in self._byte_of for letter in piece)
            return bytes(self._byte_of[letter] for letter in piece) if known else piece.encode()
        if "ByteFallback" in _types(self.content, "decoder") and re.fullmatch("<0x[0-9A-F]{2}>", piece):
            return bytes.fromhex(piece[3:5])
        # Behind a word, since the first token of a text may lose its space.
        text = self._plain.decode([*self._before, token_id], skip_special_tokens=False)
        return text[len(self._word) :].encode()

    @cached_property
    def _prefix(self) -> str:
        """The space that SentencePiece's kind puts before a text, and takes away from it again."""
        if _is_byte_level(self.content) or not self._word:
            return ""
        ids = self._encode(self._word).tolist()
        return super().decode(ids).removesuffix(self._plain.decode(ids, skip_special_tokens=False))

    def decode(self, ids: Any) -> str:
        return super().decode(ids).removeprefix(self._prefix)

    def _definition(self) -> Json:
        settings = {"eos": self.eos, "bos": self.bos, "vocab_size": self.vocab_size}
        new = {"kind": "hf", **settings, "chat_template": self.chat_template, "tokenizer": self.content}
        return self._older or new

    def _meaning(self) -> Json:
        meaning = {key: value for key, value in self._definition().items() if key != "chat_template"}
        return meaning if self._older else meaning | {"tokenizer": _meaning(self.content)}

    @classmethod
    def _from_definition(cls, definition: Json) -> Self:
        settings = {key: definition[key] for key in ("eos", "bos", "chat_template", "vocab_size")}
        if definition["kind"] == "hf":
            return cls(definition["tokenizer"], **settings)
        special, ignore_merges = definition["special"], definition["ignore_merges"]
        pieces = definition["vocabulary"] | special
        content = _byte_level(
            pieces, definition["merges"], definition["pattern"], special, ignore_merges=ignore_merges
        )
        tokenizer = cls(content, **settings)
        tokenizer._older = {k: v for k, v in definition.items() if k not in ("format", "fingerprint")}
        return tokenizer


KINDS: dict[str, type[Tokenizer]] = {
    kind: each for each in (CharTokenizer, BPETokenizer, GPT2Tokenizer, HFTokenizer) for kind in each.kinds
}


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read any tokenizer that `Tokenizer.save` wrote.

    Raises ValueError where the file is missing, is not such a file, or was changed since.
    """
    definition = read_json(path)
    if (kind := definition.get("kind")) not in KINDS:
        raise ValueError(f"{path}: is not a tokenizer file of kind {', '.join(KINDS)}, but of {kind!r}.")
    return KINDS[kind]._restore(definition, path)


def load_published_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer in a model's folder; None where there is none.

    Read are tokenizer.json, the `tokenizers` library's or labkit's own, and GPT-2's vocab.json with
    merges.txt; the end of a text and the chat template stand in tokenizer_config.json.  Where a file holds
    what one of labkit's own tokenizers does, it is that one.
    Raises ValueError for damaged files, `UnsupportedTokenizerError` (a ValueError) for kinds not read.
    """
    source, vocabulary, merges = (Path(folder) / name for name in ("tokenizer.json", *GPT2_FILES))
    settings = _settings(Path(folder))
    if source.is_file():
        content = read_json(source)
        if content.get("format") == FORMAT:
            return load_tokenizer(source)
    elif vocabulary.is_file() and merges.is_file():
        source = vocabulary
        with named(source):
            content = _from_gpt2_files(vocabulary, merges, settings)
    elif found := [name for name in ("tokenizer.model", *GPT2_FILES) if (Path(folder) / name).is_file()]:
        raise UnsupportedTokenizerError(
            f"{folder}: has {found[0]}, but neither tokenizer.json nor {' and '.join(GPT2_FILES)}. {WAY_OUT}"
        )
    else:
        return None
    with named(source):
        known = {*_vocabulary(content), *(token["content"] for token in content.get("added_tokens") or [])}
        eos, bos = (_token(settings.get(f"{role}_token")) for role in ("eos", "bos"))
        eos = END_OF_TEXT if eos is None and END_OF_TEXT in known else eos
        bos = bos if bos in known else None
        template = settings.get("chat_template")
        own = _own(content) if (eos, bos, template) == (END_OF_TEXT, None, None) else None
        return own or HFTokenizer(content, eos=eos, bos=bos, chat_template=template)


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> HFTokenizer:
    """The tokenizer that a GGUF file's metadata describes (its keys "tokenizer.ggml.*").

    Raises ValueError for metadata that contradicts itself, `UnsupportedTokenizerError` for kinds not read.
    """
    with named("tokenizer.ggml"):
        kind, pre = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre")
        if kind != "gpt2" or pre not in GGUF_PRE_TOKENIZERS:
            raise UnsupportedTokenizerError(
                f"the tokenizer is of model {kind!r} with pre {pre!r}; labkit reads model 'gpt2' with pre "
                f"{', '.join(GGUF_PRE_TOKENIZERS)}. {WAY_OUT}"
            )
        tokens = metadata["tokenizer.ggml.tokens"]
        types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
        if len(types) != len(tokens) or len(set(tokens)) < len(tokens):
            raise ValueError(f"{len(tokens)} tokens have {len(types)} types and {len(set(tokens))} texts.")
        ends = {}
        for role in ("eos", "bos"):
            if (token_id := metadata.get(f"tokenizer.ggml.{role}_token_id")) is not None:
                if not 0 <= token_id < len(tokens):
                    raise ValueError(f"{role}_token_id={token_id} is outside 0 .. {len(tokens) - 1}.")
                ends[role] = tokens[token_id]
        control, user_defined, unused = 3, 4, 5
        content = _byte_level(
            {token: i for i, token in enumerate(tokens) if types[i] != unused},
            metadata["tokenizer.ggml.merges"],
            GGUF_PRE_TOKENIZERS[pre],
            {token: i for i, token in enumerate(tokens) if types[i] == control},
            in_every_text={token: i for i, token in enumerate(tokens) if types[i] == user_defined},
            ignore_merges=pre == "llama-bpe",
        )
        template = metadata.get("tokenizer.chat_template")
        return HFTokenizer(content, **ends, chat_template=template, vocab_size=len(tokens))


def save_published_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, so that transformers' AutoTokenizer gives the same ids.

    Each file appears whole or not at all; files of another tokenizer in the folder are removed.  There,
    special tokens in a text are always special: what `encode` does when told to allow them.
    Raises ValueError for a kind of tokenizer that has no such form.
    """
    folder = Path(folder)
    config: Json = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    if isinstance(tokenizer, HFTokenizer):
        content = tokenizer.content
        config |= {"eos_token": tokenizer.eos, "bos_token": tokenizer.bos}
        config |= {"chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    else:
        content = _content_of(tokenizer)
        config |= {"eos_token": END_OF_TEXT}
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*OTHER_FILES, *GPT2_FILES):
        (folder / name).unlink(missing_ok=True)
    write_text_atomically(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False))
    write_text_atomically(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))


def _checked(content: Json, eos: str | None, bos: str | None) -> Json:
    """The content in the newest form of the file, with the end and the start of a text special."""
    model, decoders, vocabulary = content["model"], _types(content, "decoder"), _vocabulary(content)
    kind, is_byte_level = model.get("type") or "BPE", _is_byte_level(content)
    spells = is_byte_level or (decoders and set(decoders) <= DECODERS)
    decoder = (
        f"a decoder of type {', '.join(decoders)}" if decoders else "to be told how its tokens are decoded"
    )
    needs = {f"a model of type {kind}": kind not in MODELS, decoder: not spells}
    needs |= {
        name: model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
    }
    if unsupported := [need for need, present in needs.items() if present]:
        raise UnsupportedTokenizerError(
            f"the tokenizer needs {', '.join(unsupported)}; labkit reads models of type {', '.join(MODELS)} "
            f"whose tokens spell text by themselves. {WAY_OUT}"
        )
    if kind == "BPE":
        merges = [line.split(" ") if isinstance(line, str) else line for line in model["merges"]]
        for number, pair in enumerate(merges):
            if len(pair) != 2 or not all(isinstance(piece, str) for piece in pair):
                raise ValueError(f"merge {number} is {pair!r:.60}; expected two pieces, as 'a b'.")
            for piece in (*pair, "".join(pair)):
                if piece not in vocabulary:
                    raise ValueError(f"merge {number} {pair} needs {piece!r}, which is no token.")
        model = BPE_DEFAULTS | model | {"merges": merges}
    added = {token["content"]: token for token in content.get("added_tokens") or []}
    for role, token in (("eos", eos), ("bos", bos)):
        if token is not None:
            if token not in added and token not in vocabulary:
                raise ValueError(f"{role}={token!r} is none of the tokens; added are {list(added)[:8]}.")
            added[token] = (added.get(token) or _added(token, vocabulary[token])) | {"special": True}
    pre = content.get("pre_tokenizer")
    if _types(content, "pre_tokenizer") == ["ByteLevel"]:
        pre = {"use_regex": True, **content["pre_tokenizer"]}
    return content | {
        "model": model | {"type": kind},
        "added_tokens": sorted(added.values(), key=lambda token: token["id"]),
        "pre_tokenizer": pre,
        "decoder": content.get("decoder") or BYTE_LEVEL,
        "truncation": None,
        "padding": None,
    }


def _vocabulary(content: Json) -> dict[str, int]:
    """The ids of the model's own pieces; Unigram lists them in order, each with its score."""
    vocabulary = content["model"]["vocab"]
    return (
        vocabulary if isinstance(vocabulary, dict) else {piece: i for i, (piece, _) in enumerate(vocabulary)}
    )


def _types(content: Json, part: str) -> list[str]:
    """What the pre-tokenizer or the decoder does, step by step."""
    whole = content.get(part) or {"type": "Sequence"}
    steps = whole.get(f"{part.replace('_', '')}s") or [] if whole["type"] == "Sequence" else [whole]
    return [step["type"] for step in steps]


def _is_byte_level(content: Json) -> bool:
    return "ByteLevel" in (_types(content, "decoder") or _types(content, "pre_tokenizer"))


def _meaning(content: Json) -> Json:
    """The part of a checked content that decides which ids a text has."""
    return {part: content.get(part) for part in ("model", "normalizer", "pre_tokenizer", "added_tokens")}


def _own(content: Json) -> Tokenizer | None:
    """labkit's own tokenizer where the content is what that has, so that both have the same fingerprint."""
    vocabulary, model = _vocabulary(content), _checked(content, END_OF_TEXT, None)["model"]
    own: Tokenizer
    try:
        if model["type"] == "WordLevel":
            unknown = model["unk_token"] if model["unk_token"] in vocabulary else None
            own = CharTokenizer((text for text in vocabulary if text != END_OF_TEXT), unknown=unknown)
        elif len({*vocabulary, END_OF_TEXT}) == 50257:
            own = GPT2Tokenizer()
        else:
            own = BPETokenizer((vocabulary[left], vocabulary[right]) for left, right in model["merges"])
        theirs, ours = (_meaning(_checked(each, END_OF_TEXT, None)) for each in (content, _content_of(own)))
    except (ValueError, KeyError, AssetError):
        return None
    return own if ours == theirs else None


def _content_of(tokenizer: Tokenizer) -> Json:
    """What the library needs to do the same as one of labkit's own tokenizers."""
    if isinstance(tokenizer, GPT2Tokenizer):
        folder, names = asset_path("gpt2-tokenizer"), ASSETS["gpt2-tokenizer"].rename
        content = _from_gpt2_files(folder / names["encoder.json"], folder / names["vocab.bpe"], {})
        return _checked(content, END_OF_TEXT, None)
    end = dict(tokenizer.special_tokens)
    if isinstance(tokenizer, BPETokenizer):
        lines = tokenizer._definition()["merges"]
        pieces = [letter for _, letter in sorted(_printable_bytes().items())]
        pieces += [line.replace(" ", "") for line in lines]
        return _byte_level({piece: i for i, piece in enumerate(pieces)} | end, lines, "gpt2", end)
    if isinstance(tokenizer, CharTokenizer):
        vocabulary = {text: i for i, text in enumerate(tokenizer.characters)} | end
        # Each character is a word; without `unknown` the library, too, fails on any other.
        model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokenizer.unknown or "<unk>"}
        return _content(
            model, PRE_TOKENIZERS["characters"], {"type": "Fuse"}, [_added(*each) for each in end.items()]
        )
    raise ValueError(f"{type(tokenizer).__name__} has no form that other libraries read.")


def _byte_level(
    vocabulary: Mapping[str, int],
    merges: Iterable[Any],
    pre_tokenizer: str,
    special: Mapping[str, int],
    *,
    in_every_text: Mapping[str, int] | None = None,
    ignore_merges: bool = False,
) -> Json:
    """Byte-level BPE.  vocabulary: all tokens.  in_every_text: those that are found in a text always."""
    pieces = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    model = {"type": "BPE", **BPE_DEFAULTS, "ignore_merges": ignore_merges, "vocab": pieces}
    added = [_added(*each) for each in special.items()]
    added += [_added(*each) | {"special": False} for each in (in_every_text or {}).items()]
    return _content(model | {"merges": list(merges)}, PRE_TOKENIZERS[pre_tokenizer], BYTE_LEVEL, added)


def _content(model: Json, pre_tokenizer: Json, decoder: Json, added: list[Json]) -> Json:
    unset = dict.fromkeys(("truncation", "padding", "normalizer", "post_processor"))
    parts = {"added_tokens": added, "pre_tokenizer": pre_tokenizer, "decoder": decoder, "model": model}
    return {"version": "1.0", **unset, **parts}


def _added(token: str, token_id: int) -> Json:
    kind = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {"id": token_id, "content": token, **kind}


def _from_gpt2_files(vocabulary: Path, merges: Path, settings: Mapping[str, Any]) -> Json:
    kind = settings.get("tokenizer_class") or "GPT2Tokenizer"
    if not str(kind).startswith("GPT2Tokenizer") or settings.get("add_prefix_space"):
        raise UnsupportedTokenizerError(
            f"belongs to a {kind} with add_prefix_space={settings.get('add_prefix_space')}; without a "
            f"tokenizer.json labkit reads GPT2Tokenizer without it only. {WAY_OUT}"
        )
    lines = [line.rstrip("\r") for line in read_text(merges).split("\n")]
    pairs = [line for line in lines if line and not line.startswith("#version")]
    special = {token["content"]: int(i) for i, token in settings.get("added_tokens_decoder", {}).items()}
    return _byte_level(read_json(vocabulary) | special, pairs, "gpt2", special)


def _settings(folder: Path) -> Json:
    """What stands beside the vocabulary: names of special tokens, and the chat template as a string."""
    settings: Json = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings |= read_json(folder / name) if (folder / name).is_file() else {}
    template = settings.get("chat_template")
    if isinstance(template, list):
        with named(folder / "tokenizer_config.json"):
            template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if (path := folder / "chat_template.jinja").is_file():
        template = read_text(path)
    return settings | {"chat_template": template}


def _token(value: Any) -> str | None:
    text = value["content"] if isinstance(value, dict) else value
    if not isinstance(text, str | None):
        raise ValueError(f"a special token is {value!r:.60}; expected its text.")
    return text


def _run_by_library(content: Json) -> tokenizers.Tokenizer:
    import tokenizers

    with _library_errors("the tokenizers library does not read this"):
        return tokenizers.Tokenizer.from_str(json.dumps(content))


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Errors of the library, bare Exceptions and panics, as ValueErrors."""
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ValueError(f"{what} ({error!s:.200}).") from error
