"""Where the prompt of `labkit sample` comes from."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from pathlib import Path


def prompt_text(prompt: str | None, file: Path | None) -> str:
    """What to continue: the prompt, the file's text, or what is piped in; else a line break.

    Raises ValueError for a prompt and a file at once, and for a file that is no readable UTF-8 text.
    """
    if prompt is not None and file is not None:
        raise ValueError("sample: give --prompt or --prompt-file, not both.")
    if prompt is not None:
        return prompt
    if file is None and not _piped():
        return "\n"
    if file is None or str(file) == "-":
        return _read(sys.stdin.buffer.read(), "standard input")
    try:
        return _read(file.read_bytes(), str(file))
    except OSError as error:
        raise ValueError(f"sample: {file} cannot be read ({error.strerror}).") from error


def _read(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"sample: {source} is not UTF-8 text ({error}).") from error
    return text if text == "\n" else text.removesuffix("\n")


def _piped() -> bool:
    """Whether standard input is a pipe or a file, rather than a keyboard or nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        mode = os.fstat(sys.stdin.fileno()).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
    return False
