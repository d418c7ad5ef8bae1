"""How long after a slider moves does the playground have its new bars?

Measures, in Python and without a browser, the time from setting a trait to the changed distribution, with
every setting at work, for a vocabulary of 4,096 pieces and for GPT-2's 50,257, for one setting and for two
side by side, on one thread (as in the lessons) and on as many as there are cores. The model is as small as
can be: while a slider moves its logits are kept, and the settings alone are worked on.

    python benchmarks/playground.py
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import torch
from machine import OtherLoad, save

from labkit import GPT, GPTConfig
from labkit.text import GPT2Tokenizer, Tokenizer
from labkit.weights import load_pretrained
from labstudio import SamplingPlayground

NOTE = "other_load_cores: how many cores other work took meanwhile; with 2 threads that weighs most."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--moves", type=int, default=21, help="moves of a slider per row")
    options = parser.parse_args()
    load = OtherLoad()
    with tempfile.TemporaryDirectory() as empty:
        os.environ["LABKIT_OUT"] = empty  # no runs to list
        rows = [
            measure(tokenizer, compare, options.moves, threads)
            for threads in sorted({1, os.cpu_count() or 1})
            for tokenizer in (load_pretrained()[1], GPT2Tokenizer())
            for compare in (False, True)
        ]
    print_table(rows)
    result = {"rows": rows, "torch": torch.__version__, "other_load_cores": load.cores(), "note": NOTE}
    save("playground", result)


def measure(tokenizer: Tokenizer, compare: bool, moves: int, threads: int) -> dict[str, object]:
    torch.set_num_threads(threads)
    vocab = tokenizer.vocab_size
    config = GPTConfig(vocab_size=vocab, context_length=16, d_model=16, n_layers=1, n_heads=1)
    torch.manual_seed(0)
    playground = SamplingPlayground(GPT(config), tokenizer, "ROMEO.\n", max_new_tokens=1)
    for column in ("", "_b"):
        settings = {"top_k": vocab - 1, "top_p": 0.95, "min_p": 0.001, "repetition_penalty": 1.1}
        for name, value in settings.items():
            setattr(playground, name + column, value)
    playground.compare = compare
    playground.wait()
    seconds = []
    for move in range(moves):
        before = playground.distribution
        start = time.perf_counter()
        playground.temperature = round(0.5 + 0.05 * move, 2)
        seconds.append(time.perf_counter() - start)
        assert playground.distribution != before
        assert not playground.error
        playground.wait()
    return {
        "threads": threads,
        "vocabulary": vocab,
        "columns": 2 if compare else 1,
        "moves": moves,
        "median_ms": round(1000 * statistics.median(seconds), 1),
        "slowest_ms": round(1000 * max(seconds), 1),
    }


def print_table(rows: list[dict[str, object]]) -> None:
    for name in rows[0]:
        print(f"{name:12}", *(f"{row[name]!s:>10}" for row in rows))


if __name__ == "__main__":
    main()
