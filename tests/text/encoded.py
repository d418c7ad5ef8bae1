"""What the tests of encoded text share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labkit.text import Corpus, EncodedText, encode_folder
from labkit.text.corpus import _read_documents

WORDS = "A word, and another.\n\nThen a line\r\nand more of it -- naïve, 東京 and so on.\n"


def encode(source: Path, out: Path, tokenizer: Any = "char", workers: int = 1) -> EncodedText:
    return encode_folder(source, out, tokenizer, workers=workers, progress=False)[0]


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_corpus(folder: Path) -> Corpus:
    return Corpus("all", train=tuple(_read_documents(folder)))
