"""How long does the way from text to batches take, beside the usual one, and beside a training step?

Batches: random crops of a million and a half ids of 16 bits, in memory and in a file, against reference.py's
list of crops; their share of a `char-mini` training step on one thread; as a limit a plain copy of as many
bytes.  Text to ids of 16 bits with GPT-2's tokenizer: the plays once, the plays up to 50 MB, and Python's own
library, against tiktoken's encode_ordinary_batch with as many threads as there are cores, which ends in
lists; the ids are compared.  As a limit one thread's rate times the cores.  Learning 4,096 pieces from the
plays.

    python benchmarks/data_path.py [--rounds 9] [--quick]
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sysconfig
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch
from machine import BUSY, alternately, calibrate, ratio, save
from reference import list_built_batch

from labkit import GPT, GPTConfig, TrainConfig, Trainer
from labkit.text import GPT2Tokenizer, TokenStream, load_corpus, train_bpe
from labkit.training import Step

SHAPES = ((12, 64), (64, 256))
REPEATS = 500
LARGE = 50_000_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="3 rounds, busy or not; writes nothing")
    options = parser.parse_args()
    rounds, busy = (3, None) if options.quick else (options.rounds, BUSY)
    if busy is not None:
        calibrate()
    torch.set_num_threads(1)
    step = training_step(rounds)
    batches = [batch_row(shape, mapped, step, rounds, busy) for shape in SHAPES for mapped in (False, True)]
    print_table(batches)
    encodings = [encoding_row(*each, rounds, busy) for each in texts(options.quick)]
    print_table(encodings)
    bpe = bpe_row(rounds, busy)
    print_table([bpe])
    if not options.quick:
        result = {"rounds": rounds, "step_ms": round(1e3 * step, 2), "batches": batches}
        libraries = {name: version(name) for name in ("numpy", "tiktoken")}
        save("data_path", result | {"encoding": encodings, "bpe": bpe, "versions": libraries})


def training_step(rounds: int) -> float:
    """Seconds of a step of `char-mini` with 12 sequences of 64, all of it: the median of some."""
    ids = np.random.default_rng(0).integers(0, 80, 100_000)
    model = GPT(GPTConfig.preset("char-mini", vocab_size=80))
    config = TrainConfig(batch_size=12, max_steps=20 * rounds, eval_every=0, threads=1, precision="fp32")
    times = []
    began = time.perf_counter()
    for event in itertools.islice(
        Trainer(model, ids, ids[:1000], config, device="cpu").events(), 20 * rounds
    ):
        if isinstance(event, Step):
            times.append(time.perf_counter() - began)
        began = time.perf_counter()
    return statistics.median(times)


def batch_row(
    shape: tuple[int, int], mapped: bool, step: float, rounds: int, busy: float | None
) -> dict[str, Any]:
    batch_size, context = shape
    ids = np.random.default_rng(0).integers(0, 50257, 1_500_000).astype(np.uint16)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ids.bin"
        ids.tofile(path)
        data = np.memmap(path, dtype=np.uint16, mode="r") if mapped else ids
        stream = TokenStream(data, context, batch_size)
        numbers = itertools.count()
        source = np.zeros((2, batch_size, context), dtype=np.int64)
        contestants = {
            "list": repeated(lambda: list_built_batch(data, context, batch_size)),
            "labkit": repeated(lambda: stream.batch(next(numbers))),
            "copy": repeated(source.copy),
        }
        seconds = alternately(rounds, contestants, busy)
    middle = {name: statistics.median(times) / REPEATS for name, times in seconds.items()}
    row = {"batch": f"{batch_size} x {context}", "ids": "file" if mapped else "memory"}
    row |= {f"{name}_us": round(1e6 * each, 2) for name, each in middle.items()}
    row |= {"list_over_labkit": ratio(seconds["list"], seconds["labkit"])}
    row |= {"share_of_copying": round(middle["copy"] / middle["labkit"], 3)}
    return row | ({"percent_of_step": round(100 * middle["labkit"] / step, 4)} if shape == (12, 64) else {})


def repeated(call: Callable[[], Any]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(REPEATS):
            call()

    return run


def texts(quick: bool) -> list[tuple[str, list[str]]]:
    plays = [document.text for document in load_corpus("shakespeare").documents]
    size = sum(len(text.encode()) for text in plays)
    sources = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    library = [path.read_text(encoding="utf-8") for path in sources]
    rows = [("plays", plays), ("Python's library", library)]
    return rows if quick else [*rows, ("plays, 50 MB", plays * (LARGE // size))]


def encoding_row(name: str, documents: list[str], rounds: int, busy: float | None) -> dict[str, Any]:
    cores = os.cpu_count() or 1
    tokenizer, plain = GPT2Tokenizer(), tiktoken.get_encoding("gpt2")

    def encode() -> np.ndarray:
        return np.concatenate(tokenizer.encode_batch(documents), dtype=np.uint16, casting="unsafe")

    def by_one_thread() -> np.ndarray:
        return np.concatenate([tokenizer._encode(text).astype(np.uint16) for text in documents])

    contestants = {
        "tiktoken": lambda: plain.encode_ordinary_batch(documents, num_threads=cores),
        "labkit": encode,
        "one_thread": by_one_thread,
    }
    np.testing.assert_array_equal(
        np.fromiter(itertools.chain.from_iterable(contestants["tiktoken"]()), np.uint16), encode()
    )
    seconds = alternately(rounds, contestants, busy)
    size = sum(len(text.encode()) for text in documents)
    rate = {each: size / statistics.median(times) / 1e6 for each, times in seconds.items()}
    return (
        {"text": name, "megabytes": round(size / 1e6, 1), "threads": cores}
        | {f"{each}_mb_per_s": round(value, 2) for each, value in rate.items()}
        | {"tiktoken_over_labkit": ratio(seconds["tiktoken"], seconds["labkit"])}
        | {"share_of_cores": round(rate["labkit"] / rate["one_thread"] / cores, 3)}
    )


def bpe_row(rounds: int, busy: float | None) -> dict[str, Any]:
    text = load_corpus("shakespeare").text()
    seconds = alternately(rounds, {"train": lambda: train_bpe(text, 4096, progress=False)}, busy)["train"]
    low, middle, high = (round(each, 2) for each in statistics.quantiles(seconds, n=4))
    megabytes = round(len(text.encode()) / 1e6, 1)
    return {"pieces": 4096, "megabytes": megabytes, "seconds": {"median": middle, "low": low, "high": high}}


def print_table(rows: list[dict[str, Any]]) -> None:
    for name in rows[0]:
        cells = [row.get(name, "") for row in rows]
        shown = [cell["median"] if isinstance(cell, dict) else cell for cell in cells]
        print(f"{name:22}", *(f"{cell!s:>18}" for cell in shown))
    print()


if __name__ == "__main__":
    main()
