"""A folder of texts to encode."""

from __future__ import annotations

from pathlib import Path

import pytest
from encoded import WORDS

from labkit.text import (
    units,
)


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
    monkeypatch.setattr(units, "BLOCK", 256)
