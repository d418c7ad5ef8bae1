"""A folder of texts to encode, and GPT-2's tokenizer by us and by another library."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from encoded import WORDS

from labkit.text import GPT2Tokenizer, asset_path, encode


@pytest.fixture(scope="module")
def gpt2() -> GPT2Tokenizer:
    return GPT2Tokenizer()


@pytest.fixture(scope="module")
def reference() -> tokenizers.Tokenizer:
    """GPT-2 by the `tokenizers` library, from the same two files."""
    folder = asset_path("gpt2-tokenizer")
    vocabulary = folder / "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6"
    merges = folder / "6d1cbeee0f20b3d9449abfede4726ed8212e3aee"
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE.from_file(str(vocabulary), str(merges)))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return tokenizer


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Seven documents in two folders, one of them several pieces long."""
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.txt").write_bytes((WORDS * (number + 1)).encode())
    (folder / "more" / "long.md").write_bytes(b"\xef\xbb\xbf\r\n\n" + (WORDS * 40).encode() + b"\n\n")
    (folder / "more" / "short.txt").write_text("x")
    (folder / "left out.pdf").write_bytes(b"\xff")
    (folder / ".hidden.txt").write_bytes(b"\xff")
    return folder


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "BLOCK", 256)
