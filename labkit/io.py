"""Where the project reads and writes: folders, names, and writing that a crash leaves whole, old or new."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple


def project_root() -> Path:
    """The checkout that this package runs from, else the current folder."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def output_dir() -> Path:
    """Where runs, figures, log and journal go: the folder in LABKIT_OUT, else the project's root."""
    chosen = os.environ.get("LABKIT_OUT")
    return Path(chosen).expanduser().resolve() if chosen else project_root()


def runs_dir() -> Path:
    """The folder that holds all runs: the one in LABKIT_RUNS, else runs/ where output goes."""
    chosen = os.environ.get("LABKIT_RUNS")
    return Path(chosen).expanduser().resolve() if chosen else output_dir() / "runs"


def cache_dir() -> Path:
    """Where what was fetched or measured is kept: LABKIT_CACHE when set, else the platform's cache folder."""
    chosen = os.environ.get("LABKIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("labkit"))


def check_name(name: str, what: str) -> None:
    """The one rule for names of runs, models and sweeps: they become folders and stand in commands.

    what: what has the name, for the message.  Raises ValueError for a name that could be taken for an option,
    a path or a hidden file, or that does not print as it is.
    """
    at_the_ends = name != name.strip() or name.startswith(("-", ".")) or name.endswith(".")
    inside = any(sign in '/\\:*?"<>|' or not sign.isprintable() for sign in name)
    if not name or at_the_ends or inside or len(name) > 100:
        raise ValueError(
            f"{what}={name!r} must be a plain folder name, such as 'first-try': at most 100 characters, none "
            'of / \\ : * ? " < > | or line breaks, no blank or dot at the ends, no - at the beginning.'
        )


@contextmanager
def fresh_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to fill; at the end of the block it takes the place of `folder` and all it held.

    It lies beside `folder`, is flushed to the disk, and is renamed.  After an error nothing has changed.
    """
    fresh, old = folder.with_name(f".new-{folder.name}"), folder.with_name(f".old-{folder.name}")
    try:
        if not folder.parent.exists():
            folder.parent.mkdir(parents=True)
            flush(folder.parent.parent)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        yield fresh
        for path in (*fresh.iterdir(), fresh):
            flush(path)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        fresh.rename(folder)
        flush(folder.parent)
    except Exception:
        shutil.rmtree(fresh, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Replace a file's text, in UTF-8."""
    write_atomically(path, text.encode("utf-8"))


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's contents; a link is followed, and the file keeps its mode."""
    path = path.resolve()
    fresh = path.with_name(f".new-{path.name}")
    try:
        fresh.write_bytes(data)
        if path.exists():
            shutil.copymode(path, fresh)
        flush(fresh)
        fresh.replace(path)
    except OSError:
        fresh.unlink(missing_ok=True)
        raise
    flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, timeout: float = 30) -> Iterator[None]:
    """One process at a time reads, changes and writes a file: others wait, in seconds (-1: without end)."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout):
        yield


class Row(NamedTuple):
    """One row of a JSON-lines file."""

    values: dict[str, Any]
    position: str
    """Where the row ends; a `Tail` that starts there goes on with the next row."""


class Tail:
    """Follows a JSON-lines file while it grows: gives each row once, and only when its line is whole.

    path: may not exist yet.  position: that of the last row already known, perhaps from another process;
    "" or one that does not fit this file means from the start.  Lines that are not a JSON object are skipped,
    as are those longer than LONGEST_LINE bytes.
    """

    LONGEST_LINE = 2**20
    _CHECKED = 256  # bytes before the position; when they are others, the file was rewritten

    def __init__(self, path: Path, position: str = "") -> None:
        self.path = path
        found = re.fullmatch(r"([0-9]{1,18})-([0-9a-f]{8})", position)
        self._offset, self._checksum = (int(found[1]), int(found[2], 16)) if found else (0, 0)

    def new_rows(self, limit: int | None = None) -> tuple[list[Row], bool]:
        """Rows since the last call; and whether they are all the rows, because what was read has changed.

        limit: bytes to read, rounded up to a whole line; everything when None.  Raises OSError.
        """
        rows: list[Row] = []
        try:
            file = self.path.open("rb")
        except (FileNotFoundError, IsADirectoryError):
            restarted = self._offset > 0
            self._offset = self._checksum = 0
            return rows, restarted
        with file:
            size = min(self._offset, self._CHECKED)
            file.seek(self._offset - size)
            before = file.read(size)
            restarted = len(before) < size or zlib.crc32(before) != self._checksum
            if restarted:
                self._offset, self._checksum, before = 0, 0, b""
                file.seek(0)
            end = None if limit is None else self._offset + limit
            while end is None or self._offset < end:
                line = file.readline(self.LONGEST_LINE)
                if not line.endswith(b"\n") and len(line) < self.LONGEST_LINE:
                    break
                self._offset += len(line)
                before = (before + line)[-self._CHECKED :]
                self._checksum = zlib.crc32(before)
                if (values := json_object(line)) is not None:
                    rows.append(Row(values, f"{self._offset}-{self._checksum:08x}"))
        return rows, restarted


def json_object(line: bytes | str) -> dict[str, Any] | None:
    """The JSON object that a line holds; None for one that is torn, damaged or something else."""
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None
