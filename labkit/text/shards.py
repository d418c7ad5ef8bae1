"""A folder of ids larger than memory, as `labkit encode` writes it, read where a model looks.

The folder holds shard-00000.npy … (ids; all but the last of equal length), documents-00000.npy … (where the
documents that begin in that shard begin, counted over all shards), sources.jsonl (a line per document),
tokenizer.json and index.json, which is called progress.json until everything is there.
"""

from __future__ import annotations

import json
from copy import copy
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from labkit.text.cleaning import CorpusError
from labkit.text.tokenizers import Tokenizer

FORMAT = {"format": "labkit-shards", "version": 1}


class ShardRecord(NamedTuple):
    """A shard on disk, and where the next one begins: in which unit of work, after how many of its ids."""

    tokens: int
    file_bytes: int
    unit: int
    skip: int


class Shards:
    """The ids of a folder, memory-mapped shard by shard.

    Indexed like an array of shape (tokens,): by a number, a slice, or whole numbers of any shape.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        if not (self.folder / "index.json").exists() and (self.folder / "progress.json").exists():
            raise CorpusError(f"{self.folder}: is not finished. Run the same `labkit encode` again.")
        index, self._records = read_state(self.folder / "index.json")
        self.dtype, self.fingerprint = np.dtype(index["dtype"]), str(index["fingerprint"])
        self.source_bytes, self._shard_tokens = int(index["bytes"]), int(index["shard_tokens"])
        self._tokenizer = index["tokenizer"]
        for number, record in enumerate(self._records):
            if not is_there(self.folder, number, record):
                raise CorpusError(
                    f"{shard_path(self.folder, number)}: is missing or not {record.file_bytes} bytes long. "
                    "Copy the folder again, or encode the text again into another one."
                )
        self._length = sum(record.tokens for record in self._records)
        self._shard = lru_cache(maxsize=256)(self._open)  # a mapped file stays open

    def __len__(self) -> int:
        return self._length

    def head(self, tokens: int) -> Shards:
        """The same ids up to a place."""
        shorter = copy(self)
        shorter._length = min(tokens, len(self))
        shorter.fingerprint = f"{self.fingerprint}[:{shorter._length}]"
        return shorter

    def __getitem__(self, places: Any) -> Any:
        if isinstance(places, slice):
            start, stop, step = places.indices(len(self))
            if step == 1:
                return self._between(start, max(start, stop))
            places = np.arange(start, stop, step)
        places = np.asarray(places)
        if places.dtype.kind not in "iu":
            raise IndexError(f"{self.folder}: ids are looked up by whole numbers, not {places.dtype}.")
        flat = places.ravel().astype(np.int64)
        flat = np.where(flat < 0, flat + len(self), flat)
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"{self.folder}: a place lies outside its {len(self)} ids.")
        ids = np.empty(flat.size, self.dtype)
        which, within = np.divmod(flat, self._shard_tokens)
        for number in np.flatnonzero(np.bincount(which)):
            here = which == number
            ids[here] = self._shard(int(number))[within[here]]
        return ids.reshape(places.shape)[()]

    @cached_property
    def documents(self) -> np.ndarray:
        """The place at which each document begins, (documents,) int64, in the order of sources.jsonl."""
        paths = [documents_path(self.folder, number) for number in range(len(self._records))]
        return np.concatenate([_load(path) for path in paths])

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids.  Raises CorpusError where tokenizer.json is another one."""
        from labkit.text.hf import load_tokenizer

        path = self.folder / "tokenizer.json"
        tokenizer = load_tokenizer(path)
        if tokenizer.fingerprint != self._tokenizer:
            raise CorpusError(f"{path}: is not the tokenizer that made these shards. Copy the folder again.")
        return tokenizer

    def _between(self, start: int, stop: int) -> np.ndarray:
        parts = [np.empty(0, self.dtype)]
        for number in range(start // self._shard_tokens, -(-stop // self._shard_tokens)):
            first = number * self._shard_tokens
            parts.append(self._shard(number)[max(start - first, 0) : stop - first])
        return np.concatenate(parts)

    def _open(self, number: int) -> np.ndarray:
        path = shard_path(self.folder, number)
        ids = _load(path)
        if ids.shape != (self._records[number].tokens,) or ids.dtype != self.dtype:
            raise CorpusError(f"{path}: holds {ids.dtype} of shape {ids.shape}; it is not of this folder.")
        return ids


def open_shards(folder: str | Path) -> Shards:
    """The ids in a folder that `labkit encode` wrote; they are read from disk where they are asked for.

    Raises CorpusError where the folder is another one, is not finished, or a shard is missing or cut short.
    """
    return Shards(folder)


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:05}.npy"


def documents_path(folder: Path, number: int) -> Path:
    return folder / f"documents-{number:05}.npy"


def is_there(folder: Path, number: int, record: ShardRecord) -> bool:
    """Whether a shard is on disk, in its full length, with its documents."""
    path = shard_path(folder, number)
    whole = path.is_file() and path.stat().st_size == record.file_bytes
    return whole and documents_path(folder, number).is_file()


def read_state(path: Path) -> tuple[dict[str, Any], list[ShardRecord]]:
    """What index.json or progress.json says, and the shards in it.

    Raises CorpusError for a file that is missing, damaged or of another program or version.
    """
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        if state.get("format") != FORMAT["format"]:
            raise CorpusError(f"{path}: was not written by `labkit encode`.")
        if state["version"] != FORMAT["version"]:
            raise CorpusError(f"{path}: version {state['version']} is not known here. Update labkit.")
        needed = {"tokenizer", "sources", "fingerprint", "dtype", "shard_tokens", "bytes"}
        if missing := needed - state.keys():
            raise CorpusError(f"{path}: is damaged ({', '.join(sorted(missing))} not there).")
        return state, [ShardRecord(*row) for row in state["shards"]]
    except CorpusError:
        raise
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorpusError(f"{path}: is damaged ({error}).") from error


def _load(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise CorpusError(f"{path}: is damaged ({error}). Copy the folder again.") from error
