"""What does it cost to watch a training?

Claim: LiveRun takes at most 3 % longer than `fit` with a progress bar, recording the same run, and than the
plain loop over the trainer's events that records nothing but makes the same checkpoint.

`char-mini` at its usual batch, 12 sequences of 64, trains in a real kernel, as in a notebook: the widget's
state is serialised and sent as it is to a page, the bar's too, and a client reads all of it and counts.
Contestants take turns in one kernel; each training begins with a fresh model, is evaluated every 50 steps and
saved at the end.  What a browser does with the messages is not in it.

    python benchmarks/live_run.py [--rounds 9] [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from typing import Any

import psutil
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import start_new_kernel
from machine import BUSY, alternately, calibrate, save

SET_UP = """
import numpy as np, torch
from IPython.display import display
from labkit import GPT, GPTConfig, TrainConfig, Trainer
from labkit.training import Checkpoint, Run, fit
from labkit.training.resume import save
from labstudio import LiveRun

torch.set_num_threads({threads})
ids = np.random.default_rng(0).integers(0, 80, 1_000_000)

def trainer():
    torch.manual_seed(0)
    config = TrainConfig(
        batch_size=12, max_steps={steps}, eval_every=50, eval_windows=32, threads={threads}, precision="fp32"
    )
    return Trainer(GPT(GPTConfig.preset("char-mini", vocab_size=80)), ids, ids[:5000], config, device="cpu")

def plain():
    some, run = trainer(), Run.create("plain")
    for event in some.events():
        if isinstance(event, Checkpoint):
            save(some, run)

def with_bar():
    assert fit(trainer(), run=Run.create("fit"))

def live():
    some = LiveRun(trainer(), "live", blocking=False)
    display(some)
    assert some.wait()
    some.close()
"""
CONTESTANTS = {"plain loop": "plain()", "fit": "with_bar()", "LiveRun": "live()"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="3 short rounds, busy or not; writes nothing")
    options = parser.parse_args()
    rounds, steps, busy = (3, 60, None) if options.quick else (options.rounds, 200, BUSY)
    if busy is not None:
        calibrate()
    rows = []
    for threads in sorted({1, psutil.cpu_count(logical=False) or 1}):
        rows.append(measure(threads, steps, rounds, busy))
        print(rows[-1])
    if not options.quick:
        save("live_run", {"rows": rows, "rounds": rounds})


def measure(threads: int, steps: int, rounds: int, busy: float | None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        kernel = Kernel(folder)
        try:
            kernel.run(SET_UP.format(threads=threads, steps=steps))
            calls = {name: lambda code=code: kernel.run(code) for name, code in CONTESTANTS.items()}
            seconds = alternately(rounds, calls, busy)  # type: ignore[arg-type]
        finally:
            kernel.end()
    middle = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "threads": threads,
        "steps": steps,
        "ms_per_step": {name: round(1e3 * each / steps, 2) for name, each in middle.items()},
        "percent_longer_than_fit": percent_longer(seconds["LiveRun"], seconds["fit"]),
        "percent_longer_than_plain": percent_longer(seconds["LiveRun"], seconds["plain loop"]),
        "messages_per_s": round(kernel.messages / kernel.counted / middle["LiveRun"], 1),
        "kilobytes_per_s": round(kernel.bytes / 1e3 / kernel.counted / middle["LiveRun"], 1),
    }


def percent_longer(one: list[float], other: list[float]) -> dict[str, float]:
    """Median and quartiles over the rounds."""
    percents = [100 * (a / b - 1) for a, b in zip(one, other, strict=True)]
    low, middle, high = statistics.quantiles(percents, n=4)
    return {"median": round(middle, 2), "low": round(low, 2), "high": round(high, 2)}


class Kernel:
    """A kernel whose messages are read as a page would; those of widgets are counted."""

    def __init__(self, folder: str) -> None:
        self.client: BlockingKernelClient
        self.manager, self.client = start_new_kernel(env=os.environ | {"LABKIT_OUT": folder})  # type: ignore[assignment]
        self.messages = self.bytes = self.counted = 0

    def run(self, code: str) -> None:
        counts = code == CONTESTANTS["LiveRun"]
        self.counted += counts

        def read(message: dict[str, Any]) -> None:
            if message["msg_type"].startswith("comm_") and counts:
                self.messages += 1
                self.bytes += len(str(message["content"]))

        reply = self.client.execute_interactive(code, output_hook=read, timeout=None)
        if reply["content"]["status"] != "ok":
            sys.exit("\n".join(reply["content"]["traceback"]))

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=True)


if __name__ == "__main__":
    main()
