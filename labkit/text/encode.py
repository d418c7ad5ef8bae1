"""Text of any size to ids on disk, by several threads; stopped at any moment, it goes on where it was.

A folder of ids holds ids.bin (uint16 or uint32), documents.bin (int64, where each document begins),
sources.jsonl (a line per document), tokenizer.json and encoded.json.  Until that is written, progress.jsonl
has a line for every finished group of documents: its end, in ids and bytes of text, and where documents
begin in it.

The ids are those of `Corpus.encode`: every .txt or .md file is a document, line ends at its borders are
dropped, and the tokenizer's end-of-text id follows it.  A file is read in pieces of one to two MiB, each cut
before the first white space after a visible character.  GPT-2's pattern, which `BPETokenizer` shares, begins
a new pre-token there whatever came before, and characters know no context: the ids of the pieces are exactly
those of the whole file.  Only where a MiB holds no such place is the cut made within a word or a run of white
space, and a few ids beside it may differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from labkit.io import write_atomically, write_text_atomically
from labkit.text.bpe import GPT2Tokenizer, train_bpe
from labkit.text.cleaning import CorpusError, decode_text
from labkit.text.corpus import text_files
from labkit.text.hf import load_tokenizer
from labkit.text.tokenizers import CharTokenizer, Tokenizer

FORMAT = "labkit-ids-1"
BLOCK = 2**21
"""Bytes of text that are read at once; a group of documents has at least half of that."""
# Not after white space, nor after a byte that may end a white-space character of Unicode.
_BREAK = re.compile(rb"(?<![\s\x80-\x8a\x9f\xa0\xa8\xa9\xaf])[ \r\n]")
_ANEW = "Copy the folder again, or encode the text again into another one."


class EncodedText:
    """The ids in a folder that `labkit encode` wrote, memory-mapped: only what is looked at is read.

    ids: (tokens,), uint16 or uint32.  documents: (documents,) int64, the place in ids at which each begins,
    in the order of sources.jsonl.
    Raises CorpusError for a folder of another kind, one that is not finished, and a damaged one.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).expanduser()
        path = self.folder / "encoded.json"
        if not path.exists():
            if (self.folder / "progress.jsonl").exists():
                raise CorpusError(f"{self.folder}: is not finished. Run the same `labkit encode` again.")
            raise CorpusError(f"{self.folder}: was not made by `labkit encode`; it has no encoded.json.")
        described = _read_lines(path)[0]
        try:
            self.source_bytes, self._tokenizer = int(described["bytes"]), str(described["tokenizer"])
            self.ids = _map(self.folder / "ids.bin", described["dtype"], described["tokens"])
            self.documents = _map(self.folder / "documents.bin", "<i8", described["documents"])
            whole = described["checksum"] == checksum(self.ids, self.documents)
        except (KeyError, TypeError) as error:
            raise CorpusError(f"{path}: is damaged ({error!r}). {_ANEW}") from error
        if not whole:
            raise CorpusError(f"{self.folder}: ids.bin or documents.bin is damaged. {_ANEW}")

    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids.  Raises ValueError where tokenizer.json is a different one."""
        tokenizer = load_tokenizer(self.folder / "tokenizer.json")
        if tokenizer.fingerprint != self._tokenizer:
            raise CorpusError(f"{self.folder / 'tokenizer.json'}: did not make these ids. {_ANEW}")
        return tokenizer


def is_encoded(folder: str | Path) -> bool:
    """Whether `labkit encode` made a folder, finished or not."""
    folder = Path(folder).expanduser()
    return any((folder / name).is_file() for name in ("encoded.json", "progress.jsonl"))


def encode_folder(
    source: str | Path,
    out: str | Path,
    tokenizer: str | Tokenizer = "gpt2",
    *,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[EncodedText, int]:
    """Encode a .txt or .md file, or every one below a folder.

    tokenizer: "gpt2", "char" (the characters of the text), "bpe" (4,096 pieces, learned from some 10 MB out
    of the whole text), the path of a tokenizer.json, or a tokenizer.  workers: threads, one per CPU when
    not given; tiktoken works without Python's lock.
    Stopped at any moment and called again it goes on after the last finished group of documents; what it
    writes depends neither on that nor on the workers.
    Returns the ids, and how many bytes of text this call encoded.
    Raises CorpusError for text or a folder that cannot be used, naming it; what is finished is kept.
    """
    source, out = Path(source).expanduser(), Path(out).expanduser()
    workers = (os.cpu_count() or 1) if workers is None else workers
    if workers < 1:
        raise CorpusError(f"encode: workers={workers} must be at least 1.")
    if not source.exists():
        raise CorpusError(f"encode: {source} does not exist.")
    root = source if source.is_dir() else source.parent
    alphabet: set[str] | None = set() if tokenizer == "char" else None
    files = tqdm(text_files(source), desc="read", unit="file", disable=not progress)
    sources = [_survey(file, file.relative_to(root).as_posix(), alphabet) for file in files]
    if not isinstance(tokenizer, Tokenizer):
        tokenizer = _build_tokenizer(tokenizer, root, sources, alphabet, progress)
    job = {
        "format": FORMAT,
        "tokenizer": tokenizer.fingerprint,
        "pieces": BLOCK,
        "sources": hashlib.sha256(_lines(sources).encode()).hexdigest(),
        "dtype": "<u2" if tokenizer.vocab_size <= 2**16 else "<u4",
        "bytes": sum(document["bytes"] for document in sources),
    }
    finished = _claim(out, job, sources)
    if (out / "encoded.json").exists():
        (out / "progress.jsonl").unlink(missing_ok=True)
        return EncodedText(out), 0
    done = finished[-1][1] if finished else 0
    with (
        _named(out, "written", " What is finished is kept: make room, then run the same command again."),
        tqdm(desc="encode", total=job["bytes"], unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        write_text_atomically(out / "progress.jsonl", _lines([job, *finished]))
        write_text_atomically(out / "sources.jsonl", _lines(sources))
        tokenizer.save(out / "tokenizer.json")
        left = islice(_groups(root, sources), len(finished), None)
        _append(out, job, finished, left, tokenizer, workers, bar)
        begins = np.array([begin for _, _, group in finished for begin in group], dtype="<i8")
        write_atomically(out / "documents.bin", begins.tobytes())
        tokens = finished[-1][0]
        whole = checksum(_map(out / "ids.bin", job["dtype"], tokens), begins)
        counts = {"tokens": tokens, "documents": len(begins), "checksum": whole}
        write_text_atomically(out / "encoded.json", _lines([job | counts]))
        (out / "progress.jsonl").unlink()
    return EncodedText(out), job["bytes"] - done


def checksum(*arrays: Any) -> str:
    """SHA-256 of whole numbers whatever their dtype; of very long ones, of 4,096 blocks spread over them."""
    digest, block = hashlib.sha256(), 4096
    for array in arrays:
        digest.update(f"{tuple(np.shape(array))};".encode())
        starts = np.unique(np.linspace(0, max(0, len(array) - block), 4096, dtype=np.int64))
        short = len(array) <= block * len(starts)
        for start in range(0, len(array), block) if short else starts:
            digest.update(np.asarray(array[start : start + block]).astype("<i8").tobytes())
    return digest.hexdigest()


def _survey(file: Path, name: str, alphabet: set[str] | None) -> dict[str, Any]:
    """Read a file once, for its line in sources.jsonl: bad text shows here, before any work."""
    digest, size, blank = hashlib.sha256(), 0, True
    for start, raw, _ in _pieces(file):
        text = decode_text(raw, file, start)
        blank = blank and not text.strip()
        digest.update(raw)
        size += len(raw)
        if alphabet is not None:
            alphabet.update(text)
    if blank:
        raise CorpusError(f"{file}: the file is empty.")
    return {"name": name, "bytes": size, "sha256": digest.hexdigest()}


def _build_tokenizer(
    name: str, root: Path, sources: list[dict[str, Any]], alphabet: set[str] | None, progress: bool
) -> Tokenizer:
    if alphabet is not None:
        return CharTokenizer(alphabet)
    if name == "gpt2":
        return GPT2Tokenizer()
    if name == "bpe":
        step = 1 + sum(document["bytes"] for document in sources) // (8 * BLOCK)
        some = islice(_groups(root, sources), 0, None, step)
        return train_bpe([part.text for group in some for part in group], 4096, progress=progress)
    if not Path(name).is_file():
        raise CorpusError(f"tokenizer {name!r} is neither char, bpe or gpt2 nor a file.")
    return load_tokenizer(name)


def _claim(out: Path, job: dict[str, Any], sources: list[dict[str, Any]]) -> list[Any]:
    """Make the folder ours, or find which groups an earlier call with the same arguments has finished."""
    with _named(out, "made a folder"):
        out.mkdir(parents=True, exist_ok=True)
    found = next((out / name for name in ("encoded.json", "progress.jsonl") if (out / name).exists()), None)
    if found is None:
        if strange := sorted(path.name for path in out.iterdir() if not path.name.startswith(".new-")):
            raise CorpusError(
                f"{out}: is not empty (it holds {strange[0]}) and was not made by `labkit encode`. "
                "Choose another --out."
            )
        return []
    begun, *finished = _read_lines(found)
    for key, what in (("tokenizer", "another tokenizer"), ("pieces", "another version of labkit")):
        if begun.get(key) != job[key]:
            raise CorpusError(f"{out}: was begun with {what}. Use the same arguments, or another --out.")
    if begun.get("sources") != job["sources"]:
        listed = out / "sources.jsonl"
        before = set(listed.read_text(encoding="utf-8").splitlines()) if listed.exists() else set()
        changed = sorted(json.loads(line)["name"] for line in before ^ set(_lines(sources).splitlines()))
        raise CorpusError(
            f"{out}: was begun with other text; {changed[0]} is not as it was. Put the text back, or choose "
            "another --out."
        )
    for stray in out.glob(".new-*"):
        stray.unlink()
    ids, width = out / "ids.bin", np.dtype(job["dtype"]).itemsize
    there = ids.stat().st_size // width if ids.exists() else 0
    return [group for group in finished if group[0] <= there]


def _append(
    out: Path,
    job: dict[str, Any],
    finished: list[Any],
    groups: Iterator[list[_Part]],
    tokenizer: Tokenizer,
    workers: int,
    bar: tqdm[Any],
) -> None:
    """Encode groups and write their ids behind those finished; a line in progress.jsonl makes each count."""
    tokens, size, _ = finished[-1] if finished else (0, 0, [])
    with (
        (out / "ids.bin").open("ab") as ids_file,
        (out / "progress.jsonl").open("a", encoding="utf-8") as progress_file,
        ThreadPoolExecutor(workers) as pool,
    ):
        ids_file.truncate(tokens * np.dtype(job["dtype"]).itemsize)
        bar.update(size)
        while some := list(islice(groups, 8 * workers)):
            for ids, begins, source_bytes in pool.map(partial(_encode_group, tokenizer), some):
                ids_file.write(ids.astype(job["dtype"]).tobytes())
                ids_file.flush()
                os.fsync(ids_file.fileno())
                begins = [tokens + begin for begin in begins]
                tokens, size = tokens + len(ids), size + source_bytes
                finished.append([tokens, size, begins])
                progress_file.write(_lines(finished[-1:]))
                progress_file.flush()
                bar.update(source_bytes)


def _lines(values: Iterable[Any]) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


def _read_lines(path: Path) -> list[Any]:
    """The JSON lines of encoded.json or progress.jsonl, up to one that a crash left unfinished."""
    lines: list[Any] = []
    with _named(path, "read"), suppress(ValueError):
        for line in path.read_bytes().split(b"\n")[:-1]:
            lines.append(json.loads(line))
    if not lines or not isinstance(lines[0], dict) or lines[0].get("format") != FORMAT:
        raise CorpusError(f"{path}: is damaged, or was not written by this version of labkit. {_ANEW}")
    return lines


def _map(path: Path, dtype: str, count: int) -> np.ndarray:
    size = count * np.dtype(dtype).itemsize
    if not path.is_file() or path.stat().st_size != size:
        raise CorpusError(f"{path}: is missing or not {size} bytes long. {_ANEW}")
    return np.memmap(path, dtype, "r", shape=(count,))


@contextmanager
def _named(path: Path, what: str, way_out: str = "") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorpusError(f"{path}: cannot be {what} ({error.strerror or error}).{way_out}") from error


class _Part(NamedTuple):
    """A document, or a piece of one, without line ends at the document's borders."""

    where: str
    text: str
    source_bytes: int
    is_first: bool
    is_last: bool


def _groups(root: Path, sources: list[dict[str, Any]]) -> Iterator[list[_Part]]:
    """The text in groups that are encoded in one go: documents together, or a piece of a long one."""
    group: list[_Part] = []
    filled = 0
    for document in sources:
        file, digest = root / document["name"], hashlib.sha256()
        for start, raw, is_last in _pieces(file):
            if filled >= BLOCK // 2:
                yield group
                group, filled = [], 0
            text = decode_text(raw, file, start)
            text = text if start else text.lstrip("\n")
            text = text.rstrip("\n") if is_last else text
            group.append(_Part(f"{file}: from byte {start} on", text, len(raw), not start, is_last))
            filled += len(raw)
            digest.update(raw)
        if digest.hexdigest() != document["sha256"]:
            raise CorpusError(f"{file}: was changed while it was encoded. Start again, with another --out.")
    yield group


def _pieces(file: Path) -> Iterator[tuple[int, bytes, bool]]:
    """A file in pieces: the offset of each, its bytes, and whether it is the last."""
    start, rest = 0, b""
    with _named(file, "read"), file.open("rb") as handle:
        while block := rest + handle.read(BLOCK - len(rest)):
            is_last = len(block) < BLOCK
            cut = len(block) if is_last else _place_to_cut(block)
            yield start, block[:cut], is_last
            start, rest = start + cut, block[cut:]


def _place_to_cut(block: bytes) -> int:
    if found := _BREAK.search(block, len(block) // 2):
        return found.start()
    cut = len(block) - 1
    while cut > len(block) - 4 and block[cut] & 0xC0 == 0x80:  # not within a character
        cut -= 1
    return cut


def _encode_group(tokenizer: Tokenizer, group: list[_Part]) -> tuple[np.ndarray, list[int], int]:
    """The ids of a group, the places in them at which documents begin, and the size of its text."""
    pieces, begins, length = [], [], 0
    for part in group:
        try:
            ids = tokenizer._encode(part.text)
        except ValueError as error:
            raise CorpusError(f"{part.where}: {error}") from error
        if part.is_last and tokenizer.eos_id is not None:
            ids = np.append(ids, tokenizer.eos_id)
        if part.is_first:
            begins.append(length)
        length += len(ids)
        pieces.append(ids)
    return np.concatenate(pieces), begins, sum(part.source_bytes for part in group)
