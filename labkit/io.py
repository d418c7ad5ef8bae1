"""Where the project reads and writes, and writing so that a crash leaves the old or the new, never half."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    """Replace a file's text."""
    fresh = path.with_name(f".new-{path.name}")
    try:
        fresh.write_text(text, encoding="utf-8")
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
