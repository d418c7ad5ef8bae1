"""Text larger than memory to a folder of shards; stopped at any moment, it goes on where it was."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from labkit.text.bpe import GPT2Tokenizer, train_bpe
from labkit.text.cleaning import CorpusError
from labkit.text.hf import load_tokenizer
from labkit.text.loading import text_files
from labkit.text.shards import (
    FORMAT,
    ShardRecord,
    Shards,
    documents_path,
    is_there,
    open_shards,
    read_state,
    shard_path,
)
from labkit.text.tokenizers import CharTokenizer, Tokenizer
from labkit.text.units import (
    BLOCK,
    Result,
    Unit,
    digest_of,
    encode_units,
    id_dtype,
    read_span,
    survey,
    unit_bytes,
)

SHARD_TOKENS = 2**24
MAX_SHARD_TOKENS = 2**27
"""Of ids in one file; a shard is put together in memory."""


class Encoded(NamedTuple):
    """What `encode_folder` made, and how much of it this call had to do."""

    shards: Shards
    new_bytes: int
    """Bytes of text that this call encoded; fewer than all when it went on from an earlier one."""
    seconds: float


def encode_folder(
    source: str | Path,
    out: str | Path,
    tokenizer: str | Tokenizer = "gpt2",
    *,
    workers: int | None = None,
    shard_tokens: int = SHARD_TOKENS,
    progress: bool = True,
) -> Encoded:
    """Encode a .txt or .md file, or every one below a folder, into a folder of shards.

    tokenizer: "gpt2", "char" (the characters of the text), "bpe" (4,096 pieces, learned from some 10 MB out
    of the whole text), the path of a tokenizer.json, or a tokenizer.  workers: processes, one per CPU when
    not given; more than one needs `if __name__ == "__main__":` in a script.  shard_tokens: ids per file.
    Stopped at any moment and called again it goes on after the last finished shard; what it writes depends
    neither on that nor on the workers.
    Raises CorpusError for text or a folder that cannot be used, naming it; finished shards are kept.
    """
    began = time.perf_counter()
    source, out = Path(source).expanduser(), Path(out).expanduser()
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise CorpusError(f"encode: workers={workers} must be at least 1.")
    if not 1 <= shard_tokens <= MAX_SHARD_TOKENS:
        raise CorpusError(f"encode: shard_tokens={shard_tokens} must be in 1 .. {MAX_SHARD_TOKENS}.")
    if not source.exists():
        raise CorpusError(f"encode: {source} does not exist.")
    root = source if source.is_dir() else source.parent
    alphabet: set[str] | None = set() if tokenizer == "char" else None
    units, sources = survey(root, text_files(source), alphabet, progress)
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = _build_tokenizer(tokenizer, root, units, alphabet, progress)
    meaning = FORMAT | {"tokenizer": tokenizer.fingerprint, "block": BLOCK, "sources": digest_of(sources)}
    job: dict[str, Any] = meaning | {
        "fingerprint": digest_of(json.dumps(meaning).encode()),
        "dtype": id_dtype(tokenizer),
        "shard_tokens": shard_tokens,
        "bytes": sum(map(unit_bytes, units)),
    }
    records = _claim(out, job, sources)
    if (out / "index.json").exists():
        return Encoded(open_shards(out), 0, time.perf_counter() - began)
    _save_state(out, job, records)
    with _whole(out / "sources.jsonl") as part:
        part.write_bytes(sources)
    with _whole(out / "tokenizer.json") as part:
        tokenizer.save(part)
    first = records[-1].unit if records else 0
    left = sum(map(unit_bytes, units[first:]))
    with tqdm(desc="encode", total=job["bytes"], unit="B", unit_scale=True, disable=not progress) as bar:
        bar.update(job["bytes"] - left)
        with closing(encode_units(units[first:], workers, root, out / "tokenizer.json")) as results:
            _write(out, job, records, results, bar)
    (out / "progress.json").replace(out / "index.json")
    return Encoded(open_shards(out), left, time.perf_counter() - began)


def _build_tokenizer(
    name: str, root: Path, units: list[Unit], alphabet: set[str] | None, progress: bool
) -> Tokenizer:
    if alphabet is not None:
        return CharTokenizer(alphabet)
    if name == "gpt2":
        return GPT2Tokenizer()
    if name == "bpe":
        some = units[:: -(-len(units) // 8)]
        return train_bpe([read_span(root, span) for unit in some for span in unit], 4096, progress=progress)
    if not Path(name).is_file():
        raise CorpusError(f"tokenizer {name!r} is neither char, bpe or gpt2 nor a file.")
    return load_tokenizer(name)


def _claim(out: Path, job: dict[str, Any], sources: bytes) -> list[ShardRecord]:
    """Make the folder ours, or find what an earlier start with the same arguments has finished there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CorpusError(f"{out}: cannot be made a folder ({error.strerror or error}).") from error
    state_file = next((out / n for n in ("index.json", "progress.json") if (out / n).exists()), None)
    if state_file is None:
        if strange := sorted(path.name for path in out.iterdir() if path.name != "progress.json.part"):
            raise CorpusError(
                f"{out}: is not empty (it holds {strange[0]}) and was not made by `labkit encode`. "
                "Choose another --out."
            )
        return []
    state, records = read_state(state_file)
    for key, what in (
        ("tokenizer", "another tokenizer"),
        ("block", "another version of labkit"),
        ("shard_tokens", f"--shard-tokens {state['shard_tokens']}"),
    ):
        if state[key] != job[key]:
            raise CorpusError(f"{out}: was begun with {what}. Use the same arguments, or another --out.")
    if state["sources"] != job["sources"]:
        raise CorpusError(
            f"{out}: was begun with other text: {_first_difference(out / 'sources.jsonl', sources)}. "
            "Put the text back as it was, or choose another --out."
        )
    for stray in out.glob("*.part"):
        stray.unlink()
    whole = [is_there(out, number, record) for number, record in enumerate(records)]
    return records[: (*whole, False).index(False)]


def _first_difference(file: Path, sources: bytes) -> str:
    old, new = (
        {entry["name"]: entry for entry in map(json.loads, lines.splitlines())}
        for lines in (file.read_bytes() if file.exists() else b"", sources)
    )
    name = next((name for name in old | new if old.get(name) != new.get(name)), "a file")
    return f"{name} was {'added' if name not in old else 'removed' if name not in new else 'changed'}"


def _write(
    out: Path, job: dict[str, Any], records: list[ShardRecord], results: Iterator[Result], bar: tqdm[Any]
) -> None:
    """Cut the stream of ids into shards of equal length, each on disk before the next is begun."""
    shard = np.empty(job["shard_tokens"], job["dtype"])
    begins = np.empty(0, np.int64)  # of documents whose shard is not yet written
    unit, skip = records[-1][2:] if records else (0, 0)
    total, used = sum(record.tokens for record in records), 0

    def finish(unit: int, skip: int) -> None:
        nonlocal begins, used
        here, number = begins < total, len(records)
        with _whole(documents_path(out, number)) as part, part.open("wb") as sink:
            np.save(sink, begins[here])
        with _whole(shard_path(out, number)) as part, part.open("wb") as sink:
            np.save(sink, shard[:used])
        records.append(ShardRecord(used, shard_path(out, number).stat().st_size, unit, skip))
        _save_state(out, job, records)
        begins, used = begins[~here], 0

    for number, result in enumerate(results, unit):
        begins = np.append(begins, total - skip + result.documents[result.documents >= skip])
        while len(result.ids) > skip:
            taken = result.ids[skip : skip + len(shard) - used]
            shard[used : used + len(taken)] = taken
            total, used, skip = total + len(taken), used + len(taken), skip + len(taken)
            if used == len(shard):
                finish(number, skip)
        skip = 0
        bar.update(result.source_bytes)
    if used:
        finish(number + 1, 0)


def _save_state(out: Path, job: dict[str, Any], records: list[ShardRecord]) -> None:
    with _whole(out / "progress.json") as part:
        part.write_text(json.dumps(job | {"shards": records}, indent=1) + "\n", encoding="utf-8")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A name to write under; when all of it is on disk, the file takes the name it is meant to have."""
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with part.open("rb+") as handle:
            os.fsync(handle.fileno())
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise CorpusError(
            f"{path}: cannot be written ({error.strerror or error}). Finished shards are kept: make room, "
            "then run the same command again."
        ) from error
