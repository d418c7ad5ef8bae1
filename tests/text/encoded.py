"""What the tests of encoded text share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labkit.text import (
    Corpus,
    encode_folder,
)
from labkit.text.loading import _read_documents

WORDS = "A word, and another.\n\nThen a line\r\nand more of it -- naïve, 東京 and so on.\n"


def encode(
    source: Path, out: Path, tokenizer: Any = "char", workers: int = 1, shard_tokens: int = 797
) -> Any:
    return encode_folder(
        source, out, tokenizer, workers=workers, shard_tokens=shard_tokens, progress=False
    ).shards


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_corpus(folder: Path) -> Corpus:
    return Corpus("all", train=tuple(_read_documents(folder)))
