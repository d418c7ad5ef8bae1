"""The tokenizers in published models' folders and GGUF files: read, recognised, and written for others."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.io import write_text_atomically
from labkit.text.assets import ASSETS, AssetError, asset_path
from labkit.text.bpe import BPETokenizer, GPT2Tokenizer, _printable_bytes
from labkit.text.cleaning import read_text
from labkit.text.hf import (
    BYTE_LEVEL,
    WAY_OUT,
    HFTokenizer,
    Json,
    byte_level,
    deciding_parts,
    in_library_form,
    load_tokenizer,
    pieces,
)
from labkit.text.tokenizers import (
    END_OF_TEXT,
    FORMAT,
    LARGEST_FILE,
    CharTokenizer,
    Tokenizer,
    UnsupportedTokenizerError,
    named,
    read_json,
)

GPT2_FILES = ("vocab.json", "merges.txt")
OTHER_FILES = ("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model")

SPLIT = {"type": "Split", "behavior": "Isolated", "invert": False}
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
SINGLE_DIGITS = [{"type": "Digits", "individual_digits": True}, BYTE_LEVEL]
LLAMA3_STEPS = [SPLIT | {"pattern": {"Regex": LLAMA3}}, BYTE_LEVEL | {"use_regex": False}]
GGUF_PRE_TOKENIZERS: dict[str, Json] = {
    "gpt-2": BYTE_LEVEL,
    "smollm": {"type": "Sequence", "pretokenizers": SINGLE_DIGITS},
    "llama-bpe": {"type": "Sequence", "pretokenizers": LLAMA3_STEPS},
}


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
        known = {*pieces(content), *(token["content"] for token in content.get("added_tokens") or [])}
        eos, bos = (settings.get(f"{role}_token") for role in ("eos", "bos"))
        eos, bos = (each["content"] if isinstance(each, dict) else each for each in (eos, bos))
        eos = END_OF_TEXT if eos is None and END_OF_TEXT in known else eos
        bos = bos if bos in known else None
        content, template = in_library_form(content, eos, bos), settings["chat_template"]
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
        kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
        if len(kinds) != len(tokens) or len(set(tokens)) < len(tokens):
            raise ValueError(f"{len(tokens)} tokens have {len(kinds)} types and {len(set(tokens))} texts.")
        ends = {}
        for role in ("eos", "bos"):
            if (token_id := metadata.get(f"tokenizer.ggml.{role}_token_id")) is not None:
                if not 0 <= token_id < len(tokens):
                    raise ValueError(f"{role}_token_id={token_id} is outside 0 .. {len(tokens) - 1}.")
                ends[role] = tokens[token_id]
        control, user_defined, unused = 3, 4, 5
        content = byte_level(
            {token: i for i, token in enumerate(tokens) if kinds[i] != unused},
            metadata["tokenizer.ggml.merges"],
            {token: i for i, token in enumerate(tokens) if kinds[i] == control},
            in_every_text={token: i for i, token in enumerate(tokens) if kinds[i] == user_defined},
            pre_tokenizer=GGUF_PRE_TOKENIZERS[pre],
            ignore_merges=pre == "llama-bpe",
        )
        content = in_library_form(content, **ends)
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
        content = content_of(tokenizer)
        config |= {"eos_token": END_OF_TEXT}
    if isinstance(tokenizer, BPETokenizer):  # lines, as GPT-2's files have them, take less room than pairs
        content["model"]["merges"] = tokenizer._definition()["merges"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*OTHER_FILES, *GPT2_FILES):
        (folder / name).unlink(missing_ok=True)
    write_text_atomically(folder / "tokenizer.json", json.dumps(content, ensure_ascii=False))
    write_text_atomically(folder / "tokenizer_config.json", json.dumps(config, ensure_ascii=False, indent=2))


def content_of(tokenizer: Tokenizer) -> Json:
    """What the library needs to do the same as one of labkit's own tokenizers."""
    end = dict(tokenizer.special_tokens)
    if isinstance(tokenizer, GPT2Tokenizer):
        folder, names = asset_path("gpt2-tokenizer"), ASSETS["gpt2-tokenizer"].rename
        content = _from_gpt2_files(folder / names["encoder.json"], folder / names["vocab.bpe"], {})
    elif isinstance(tokenizer, BPETokenizer):
        lines = tokenizer._definition()["merges"]
        shown = [letter for _, letter in sorted(_printable_bytes().items())]
        shown += [line.replace(" ", "") for line in lines]
        content = byte_level({piece: i for i, piece in enumerate(shown)} | end, lines, end)
    elif isinstance(tokenizer, CharTokenizer):
        # Each character is a word; without `unknown` the library, too, fails on any other.
        vocabulary = {text: i for i, text in enumerate(tokenizer.characters)} | end
        content = {
            "pre_tokenizer": SPLIT | {"pattern": {"Regex": r"[\s\S]"}},
            "decoder": {"type": "Fuse"},
            "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokenizer.unknown or "<unk>"},
        }
    else:
        raise ValueError(f"{type(tokenizer).__name__} has no form that other libraries read.")
    return in_library_form(content, END_OF_TEXT)


def _own(content: Json) -> Tokenizer | None:
    """labkit's own tokenizer where the content is what that has, so that both have the same fingerprint."""
    vocabulary, model = pieces(content), content["model"]
    own: Tokenizer
    try:
        if model["type"] == "WordLevel":
            unknown = model["unk_token"] if model["unk_token"] in vocabulary else None
            own = CharTokenizer((text for text in vocabulary if text != END_OF_TEXT), unknown=unknown)
        elif len({*vocabulary, END_OF_TEXT}) == 50257:
            own = GPT2Tokenizer()
        else:
            own = BPETokenizer((vocabulary[left], vocabulary[right]) for left, right in model["merges"])
        return own if deciding_parts(content_of(own)) == deciding_parts(content) else None
    except (ValueError, KeyError, AssetError):
        return None


def _from_gpt2_files(vocabulary: Path, merges: Path, settings: Mapping[str, Any]) -> Json:
    if settings.get("add_prefix_space"):
        raise UnsupportedTokenizerError(
            f"without a tokenizer.json labkit reads no tokenizer with add_prefix_space. {WAY_OUT}"
        )
    lines = read_text(merges, LARGEST_FILE).split("\n")
    pairs = [line for line in lines if line and not line.startswith("#version")]
    special = {token["content"]: int(i) for i, token in settings.get("added_tokens_decoder", {}).items()}
    return byte_level(read_json(vocabulary) | special, pairs, special)


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
        template = read_text(path, LARGEST_FILE)
    return settings | {"chat_template": template}
