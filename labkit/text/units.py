"""Text larger than memory in units of work, and the ids of each, by several processes.

The ids are those of `Corpus.encode`: every .txt or .md file is a document, line ends at its borders are
dropped, and the tokenizer's end-of-text id follows it. A file is read in pieces of one to two MiB, each cut
before the first white space after a visible character. GPT-2's pattern, which `BPETokenizer` shares, begins
a new pre-token there whatever came before, and characters know no context: the ids of the pieces are exactly
those of the whole file. Only where a MiB holds no such place is the cut made within a word or a run of white
space, and a few ids beside it may differ.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm.auto import tqdm

from labkit.text.cleaning import CorpusError, decode_text
from labkit.text.hf import load_tokenizer
from labkit.text.tokenizers import Tokenizer

BLOCK = 2**21
# Not after white space, nor after a byte that may end a white-space character of Unicode.
_BREAK = re.compile(rb"(?<![\s\x80-\x8a\x9f\xa0\xa8\xa9\xaf])[ \r\n]")


class Span(NamedTuple):
    """Part of a source file that is encoded in one go."""

    name: str
    start: int
    size: int
    last: bool
    digest: str


Unit = list[Span]


class Result(NamedTuple):
    """What a unit of work gives."""

    ids: np.ndarray
    documents: np.ndarray
    """The places in the ids at which documents begin."""
    source_bytes: int


def survey(
    root: Path, files: list[Path], alphabet: set[str] | None, progress: bool
) -> tuple[list[Unit], bytes]:
    """Read every file once: the units of work, and sources.jsonl. Bad text shows here, before any work.

    A unit is one piece of a large file, or small files until there is a MiB of them.
    """
    units: list[Unit] = []
    sources, filled = [], BLOCK
    total = sum(file.stat().st_size for file in files)
    with tqdm(desc="read", total=total, unit="B", unit_scale=True, disable=not progress) as bar:
        for file in files:
            name, digest, size, blank = file.relative_to(root).as_posix(), hashlib.sha256(), 0, True
            for start, raw, last in _pieces(file):
                text = decode_text(raw, file, start)
                blank = blank and not text.strip()
                if alphabet is not None:
                    alphabet.update(text)
                digest.update(raw)
                size += len(raw)
                if filled >= BLOCK // 2:
                    units.append([])
                    filled = 0
                units[-1].append(Span(name, start, len(raw), last, digest_of(raw)))
                filled += len(raw)
                bar.update(len(raw))
            if blank:
                raise CorpusError(f"{file}: the file is empty.")
            sources.append(json.dumps({"name": name, "bytes": size, "sha256": digest.hexdigest()}) + "\n")
    return units, "".join(sources).encode()


def _pieces(file: Path) -> Iterator[tuple[int, bytes, bool]]:
    """A file in pieces: the offset of each, its bytes, and whether it is the last."""
    start, rest = 0, b""
    with _readable(file), file.open("rb") as handle:
        while block := rest + handle.read(BLOCK - len(rest)):
            last = len(block) < BLOCK
            cut = len(block) if last else _place_to_cut(block)
            yield start, block[:cut], last
            start, rest = start + cut, block[cut:]


def _place_to_cut(block: bytes) -> int:
    if found := _BREAK.search(block, len(block) // 2):
        return found.start()
    cut = len(block) - 1
    while cut > len(block) - 4 and block[cut] & 0xC0 == 0x80:  # not within a character
        cut -= 1
    return cut


def encode_units(
    units: list[Unit], workers: int, root: Path, tokenizer_file: Path
) -> Generator[Result, None, None]:
    """The results of all units, in order; few of them wait, whichever worker is the slowest."""
    if min(workers, len(units)) <= 1:
        tokenizer = load_tokenizer(tokenizer_file)
        yield from (_encode_unit(root, tokenizer, unit) for unit in units)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker, (root, tokenizer_file)) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for unit in units:
                waiting.append(pool.submit(_work, unit))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise CorpusError(
                "encode: a worker process ended, perhaps for want of memory. Finished shards are kept: run "
                "the same command again, with fewer --workers."
            ) from error


_worker: tuple[Path, Tokenizer]
"""In a worker process: where the text is, and the tokenizer."""


def _start_worker(root: Path, tokenizer_file: Path) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends the work
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = root, load_tokenizer(tokenizer_file)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        os._exit(1)


def _work(unit: Unit) -> Result:
    return _encode_unit(*_worker, unit)


def _encode_unit(root: Path, tokenizer: Tokenizer, unit: Unit) -> Result:
    pieces: list[np.ndarray] = []
    documents, length = [], 0
    for span in unit:
        text = read_span(root, span)
        try:
            ids = tokenizer._encode(text)  # by this process alone; encode_batch takes all cores
        except ValueError as error:
            raise CorpusError(f"{root / span.name}: from byte {span.start} on: {error}") from error
        if span.last and tokenizer.eos_id is not None:
            ids = np.append(ids, tokenizer.eos_id)
        if span.start == 0:
            documents.append(length)
        length += len(ids)
        pieces.append(ids.astype(id_dtype(tokenizer)))
    return Result(np.concatenate(pieces), np.array(documents, dtype=np.int64), unit_bytes(unit))


def read_span(root: Path, span: Span) -> str:
    """The text of a span, without line ends at the borders of its document."""
    file = root / span.name
    with _readable(file), file.open("rb") as handle:
        handle.seek(span.start)
        raw = handle.read(span.size)
    if digest_of(raw) != span.digest:
        raise CorpusError(f"{file}: was changed while it was encoded. Start again, with another --out.")
    text = decode_text(raw, file, span.start)
    text = text if span.start else text.lstrip("\n")
    return text.rstrip("\n") if span.last else text


def unit_bytes(unit: Unit) -> int:
    return sum(span.size for span in unit)


def id_dtype(tokenizer: Tokenizer) -> str:
    return "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"


def digest_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read ({error.strerror or error}).") from error
