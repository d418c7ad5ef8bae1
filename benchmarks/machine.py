"""What every benchmark says about the machine it ran on, and how it says its result."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"


def hardware() -> dict[str, Any]:
    return {"cpu": cpu_model(), "cores": os.cpu_count(), "memory_gb": memory_gb()}


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
    """Of this process and of those it started and waited for."""
    return sum(os.times()[:4])


def alternately(rounds: int, contestants: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each contestant in each round, all of them once per round, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            began = time.perf_counter()
            contestant()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(slower: list[float], faster: list[float]) -> dict[str, float]:
    """Median over the rounds of slower / faster, with the quartiles between which half of the rounds lie."""
    ratios = [one / other for one, other in zip(slower, faster, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return {"median": round(middle, 2), "low": round(low, 2), "high": round(high, 2)}


def save(name: str, result: dict[str, Any]) -> None:
    """Write results/NAME.json, and print the result as the last line."""
    RESULTS.mkdir(exist_ok=True)
    result = {"benchmark": name} | result | {"hardware": hardware(), "python": platform.python_version()}
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))
