"""Tokenizers written in the files that `tokenizers` and `transformers` read; neither is needed here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.text.assets import ASSETS, asset_path
from labkit.text.bpe import BPETokenizer, GPT2Tokenizer, _printable_bytes
from labkit.text.published import PublishedTokenizer
from labkit.text.published_files import (
    BYTE_LEVEL,
    CHARACTERS,
    GPT2_FILES,
    PRE_TOKENIZERS,
    _build,
    _merges,
    _read_gpt2_files,
)
from labkit.text.tokenizer import END_OF_TEXT, CharTokenizer, Tokenizer, _write_atomic

OTHER_FILES = ("added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "tokenizer.model")


def save_published_tokenizer(tokenizer: Tokenizer, folder: str | Path) -> None:
    """Write a tokenizer so that `transformers.AutoTokenizer.from_pretrained(folder)` gives the same ids.

    Each file appears whole or not at all; files of another tokenizer in the folder are removed. There,
    special tokens in a text are always special: what `encode` does when told to allow them.
    Raises ValueError for a kind of tokenizer that has no such form.
    """
    folder = Path(folder)
    config: dict[str, Any] = {
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    gpt2_files: dict[str, str] = {}
    if isinstance(tokenizer, CharTokenizer):
        content = _character_file(tokenizer)
        config["eos_token"] = END_OF_TEXT
    else:
        published = _as_published(tokenizer)
        content = _tokenizer_file(published)
        config |= {"eos_token": published.eos, "bos_token": published.bos}
        config |= {"chat_template": published.chat_template} if published.chat_template else {}
        if published.pattern == "gpt2":
            config |= {"add_prefix_space": False, "tokenizer_class": "GPT2Tokenizer"}
            lines = ["#version: 0.2", *(f"{left} {right}" for left, right in published.merges), ""]
            vocabulary = json.dumps(content["model"]["vocab"], ensure_ascii=False)
            gpt2_files = dict(zip(GPT2_FILES, (vocabulary, "\n".join(lines)), strict=True))
    for name in (*OTHER_FILES, *GPT2_FILES):
        (folder / name).unlink(missing_ok=True)
    files = gpt2_files | {"tokenizer.json": json.dumps(content, ensure_ascii=False)}
    files |= {"tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2)}
    for name, text in files.items():
        _write_atomic(folder / name, text)


def _as_published(tokenizer: Tokenizer) -> PublishedTokenizer:
    if isinstance(tokenizer, PublishedTokenizer):
        return tokenizer
    if isinstance(tokenizer, GPT2Tokenizer):
        files, names = asset_path("gpt2-tokenizer"), ASSETS["gpt2-tokenizer"].rename
        return _read_gpt2_files(files / names["encoder.json"], files / names["vocab.bpe"], {})
    if isinstance(tokenizer, BPETokenizer):
        merges = _merges(tokenizer._definition()["merges"])
        pieces = [
            *(letter for _, letter in sorted(_printable_bytes().items())),
            *(left + right for left, right in merges),
            END_OF_TEXT,
        ]
        vocabulary = {piece: i for i, piece in enumerate(pieces)}
        return _build(vocabulary, merges, "gpt2", {}, {})
    raise ValueError(f"{type(tokenizer).__name__} has no form that other libraries read.")


def _tokenizer_file(published: PublishedTokenizer) -> dict[str, Any]:
    vocabulary = {**published.vocabulary, **published.special_tokens}
    steps = PRE_TOKENIZERS[published.pattern]
    model = {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix")),
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": published.ignore_merges,
        "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])),
        "merges": [list(pair) for pair in published.merges],
    }
    pre = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": steps}
    return _file(published.special_tokens, pre, BYTE_LEVEL, model)


def _character_file(tokenizer: CharTokenizer) -> dict[str, Any]:
    """Every character is a word of its own. The library, too, then fails on an unknown one."""
    vocabulary = {text: i for i, text in enumerate((*tokenizer.characters, END_OF_TEXT))}
    model = {"type": "WordLevel", "vocab": vocabulary, "unk_token": tokenizer.unknown or "<unk>"}
    return _file(tokenizer.special_tokens, CHARACTERS, {"type": "Fuse"}, model)


def _file(
    special: Mapping[str, int], pre: dict[str, Any], decoder: dict[str, Any], model: dict[str, Any]
) -> dict[str, Any]:
    kind = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": token, **kind} for token, i in special.items()],
        "normalizer": None,
        "pre_tokenizer": pre,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }
