"""Does `labkit encode` turn a gigabyte of text into ids within a gigabyte of memory, killed on the way?

Makes a corpus of the plays, repeated and shuffled, once as a folder of files and once as one file. Each is
encoded with GPT-2's tokenizer, killed (SIGKILL) when half of the ids are there, and started again. The
memory of all its processes together is sampled five times a second. What the ids stand for is compared with
the text. Needs about 2.5 times the corpus on disk.

    python benchmarks/encode_corpus.py --out FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
from machine import save

from labkit.text import EncodedText, load_corpus

NOTE = (
    "The machine was shared with other work, so MB/s is a lower bound; it counts both starts, each of which "
    "reads and checks all of the text. PSS is resident memory with shared pages divided among their users; "
    "the sum of RSS counts them once per process. Sampled five times a second."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, help="where to make the corpus; it is deleted afterwards")
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=options.out, prefix="encode-") as scratch:
        for shape in ("folder", "file"):
            source = make_corpus(Path(scratch), shape, options.megabytes * 10**6)
            rows.append({"shape": shape} | measure(source, Path(scratch) / "ids", options.workers))
            shutil.rmtree(scratch, ignore_errors=True)
            Path(scratch).mkdir()
    result = {
        "tokenizer": "gpt2",
        "workers": options.workers,
        "rows": rows,
        "note": NOTE,
    }
    print_table(rows)
    save("encode_corpus", result)


def make_corpus(scratch: Path, shape: str, size: int) -> Path:
    """At least so many bytes of plays, each round of them in another order."""
    plays = [document.text.encode() for document in load_corpus("shakespeare").documents]
    shuffle, written, number = random.Random(0).shuffle, 0, 0
    folder = scratch / "text"
    folder.mkdir()
    one = folder / "all.txt"
    while written < size:
        shuffle(plays)
        for play in plays:
            if shape == "file":
                with one.open("ab") as sink:
                    written += sink.write(play + b"\n\n")
            else:
                written += (folder / f"{number:06}.txt").write_bytes(play)
            number += 1
    return one if shape == "file" else folder


def measure(source: Path, out: Path, workers: int) -> dict[str, object]:
    files = [source] if source.is_file() else sorted(source.iterdir())
    size = sum(file.stat().st_size for file in files)
    command = [sys.executable, "-m", "labstudio", "encode", str(source), "--out", str(out)]
    command += ["--workers", str(workers)]
    first, memory_before = run(command, kill_at=size // 3)
    kept = json.loads((out / "progress.jsonl").read_text().splitlines()[-1])[0]
    second, memory_after = run(command)
    encoded = EncodedText(out)
    compare(files, out)
    return {
        "documents": len(encoded.documents),
        "source_mb": round(size / 1e6, 1),
        "tokens": len(encoded.ids),
        "tokens_kept_over_the_kill": kept,
        "seconds_until_kill": round(first, 1),
        "seconds_after": round(second, 1),
        "mb_per_s": round(size / 1e6 / (first + second), 2),
        "peak_pss_mb": round(max(memory_before[0], memory_after[0]) / 1e6, 1),
        "peak_sum_of_rss_mb": round(max(memory_before[1], memory_after[1]) / 1e6, 1),
    }


def run(command: list[str], kill_at: int | None = None) -> tuple[float, list[int]]:
    """Seconds, the peaks of PSS and of summed RSS in bytes.

    kill_at: end the process once ids.bin has so many bytes; a third of the text's are about half of the ids.
    """
    ids = Path(command[command.index("--out") + 1]) / "ids.bin"
    began, peaks, ended = time.perf_counter(), [0, 0], threading.Event()
    process = psutil.Popen(command, stdout=subprocess.DEVNULL)

    def sample() -> None:
        while not ended.wait(0.2):
            found = [0, 0]
            for member in family(process):
                try:
                    memory = member.memory_full_info()
                except psutil.Error:
                    continue
                found[0] += memory.pss
                found[1] += memory.rss
            peaks[:] = map(max, peaks, found)

    sampler = threading.Thread(target=sample)
    sampler.start()
    while process.poll() is None:
        if kill_at and ids.exists() and ids.stat().st_size > kill_at:
            process.kill()
            break
        time.sleep(0.05)
    process.wait()
    ended.set()
    sampler.join()
    if kill_at is None and process.returncode:
        raise RuntimeError(f"labkit encode ended with {process.returncode}")
    return time.perf_counter() - began, peaks


def family(process: psutil.Process) -> list[psutil.Process]:
    try:
        return [process, *process.children(recursive=True)]
    except psutil.Error:
        return []


def compare(files: list[Path], out: Path) -> None:
    """Some documents are read back, and the bytes of all ids add up to those of all files."""
    encoded = EncodedText(out)
    ids, tokenizer = encoded.ids, encoded.tokenizer()
    lengths = np.array([len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size)])
    lengths[tokenizer.eos_id] = 0
    total = sum(int(lengths[ids[at : at + 10**7]].sum()) for at in range(0, len(ids), 10**7))
    assert total == sum(len(file.read_bytes().strip(b"\n")) for file in files)
    ends = [*encoded.documents[1:], len(ids)]
    for number in random.Random(1).sample(range(len(files)), min(20, len(files))):
        begin, end = int(encoded.documents[number]), int(ends[number])
        assert ids[end - 1] == tokenizer.eos_id
        end = min(end - 1, begin + 3 * 10**6)
        text = files[number].read_bytes()
        assert text.startswith(tokenizer.decode(ids[begin:end]).encode())


def print_table(rows: list[dict[str, object]]) -> None:
    for name in rows[0]:
        print(f"{name:28}", *(f"{row[name]!s:>14}" for row in rows))


if __name__ == "__main__":
    main()
