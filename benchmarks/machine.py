"""What every benchmark says about the machine it ran on, and how it says its result."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch

BUSY = 0.25
"""Cores in use by other processes from which on a machine counts as busy."""

RESULTS = Path(__file__).parent / "results"


def hardware() -> dict[str, Any]:
    return {"cpu": cpu_model(), "cores": os.cpu_count(), "memory_gb": memory_gb()}


def versions() -> dict[str, str]:
    return {"python": platform.python_version(), "torch": torch.__version__}


def cpu_model() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()


def memory_gb() -> float:
    return round(psutil.virtual_memory().total / 1e9, 1)


class OtherLoad:
    """How many cores other processes used since this was made: 0.0 on a quiet machine."""

    def __init__(self) -> None:
        self.began, self.busy, self.own = time.perf_counter(), _busy_seconds(), _own_seconds()

    def cores(self) -> float:
        busy, own = _busy_seconds() - self.busy, _own_seconds() - self.own
        return round(max(0.0, (busy - own) / (time.perf_counter() - self.began)), 2)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq", "steal"))


def _own_seconds() -> float:
    """Of this process and of those it started, waited for or still at work."""
    at_work = 0.0
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            at_work += sum(child.cpu_times()[:2])
    return sum(os.times()[:4]) + at_work


def alternately(
    rounds: int, contestants: dict[str, Callable[[], Any]], busy: float | None = None
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, all of them once per round, after one round to warm up.

    busy: rounds in which other processes use more cores than this are dropped and taken again, at most twice
    as many as asked for; then the machine is too busy to measure on, which ends the program.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    kept = dropped = 0
    for number in range(3 * rounds + 1):
        load = OtherLoad()
        taken = {}
        for name, contestant in contestants.items():
            began = time.perf_counter()
            contestant()
            taken[name] = time.perf_counter() - began
        if not number:
            continue
        if busy is not None and load.cores() > busy:
            dropped += 1
            continue
        for name, each in taken.items():
            seconds[name].append(each)
        kept = len(seconds[name])
        if kept == rounds:
            break
    if dropped > 0:
        print(f"{dropped} rounds dropped: other processes used more than {busy} cores", file=sys.stderr)
    if kept < rounds:
        sys.exit(f"Only {kept} of {rounds} rounds were quiet. Try again when nothing else runs.")
    return seconds


def calibrate(seconds: float = 1.0, busy: float = BUSY) -> None:
    """Wait for a moment without other work; say so and end the program when there is none within a minute."""
    for _ in range(60):
        load = OtherLoad()
        time.sleep(seconds)
        if load.cores() <= busy:
            return
    sys.exit(f"Other processes use {load.cores()} cores; figures from a busy machine mislead. Try later.")


def matmul_limit(threads: int, shapes: dict[str, tuple[int, int, int]] | None = None) -> dict[str, float]:
    """GFLOP/s of float32 products (rows, inner) @ (inner, columns): large, and those of a model's layers.

    The best of many: what the machine can do when nothing disturbs it.
    """
    shapes = {"large": (2048, 2048, 2048)} | (shapes or {})
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    rates = {}
    for name, (rows, inner, columns) in shapes.items():
        a, b = torch.randn(rows, inner), torch.randn(inner, columns)
        operations = 2 * rows * inner * columns
        repeats = max(5, int(2e9 * threads / operations) * 10)
        rates[name] = round(operations / _best(lambda a=a, b=b: a @ b, repeats) / 1e9, 1)  # type: ignore[misc]
    torch.set_num_threads(before)
    return rates


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second of the faster of two ways to read a gigabyte once: a sum, and products with a row."""
    matrices = torch.randn(64, 4096, 1024, device=device)
    row = torch.randn(1, 1024, device=device)

    def products() -> None:
        for matrix in matrices:
            torch.nn.functional.linear(row, matrix)

    best = float("inf")
    with torch.inference_mode():
        for way in [matrices.sum, products] * 7:
            began = time.perf_counter()
            way()
            if device.type == "cuda":
                torch.cuda.synchronize()
            best = min(best, time.perf_counter() - began)
    return matrices.nbytes / best


def _best(call: Callable[[], Any], repeats: int) -> float:
    """Seconds of the fastest of some calls."""
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """Median over the rounds of slower / faster, with the quartiles between which half of the rounds lie."""
    ratios = [one / other for one, other in zip(slower, faster, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": round(middle, 2), "low": round(low, 2), "high": round(high, 2)}


def save(name: str, result: dict[str, Any]) -> None:
    """Write results/NAME.json, and print the result as the last line."""
    RESULTS.mkdir(exist_ok=True)
    result = (
        {"benchmark": name}
        | result
        | {"hardware": hardware(), "versions": versions() | result.get("versions", {})}
    )
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
