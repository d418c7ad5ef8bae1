"""How long it takes until labkit can be used: importing it, --help, the first step of a training.

Claims: `import labkit` takes at most 1.05 times as long as `import torch`, also with the names that a user
imports; --help takes at most 0.5 s and loads no torch; from the shell to the first recorded step of
char-mini on Shakespeare takes at most 6 s.

Every try is a process of its own; all contestants have one turn per round, and the first round, which also
compiles Python files, is not counted.  Beside the seconds on the clock stands the time of the processors,
which other work disturbs less.

    python benchmarks/startup.py [--rounds 9] [--quick]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import BUSY, OtherLoad, calibrate, ratio, save

NAMES = "from labkit import GPT, GPTConfig, TrainConfig, SampleConfig, Trainer, generate"
CONTESTANTS = {
    "import torch": ["-c", "import torch"],
    "import labkit": ["-c", "import labkit"],
    "import labkit's names": ["-c", NAMES],
    "labkit --help": ["-m", "labstudio", "--help"],
    "labkit train --help": ["-m", "labstudio", "train", "--help"],
    "labkit sample --help": ["-m", "labstudio", "sample", "--help"],
}
TRAINING = (
    "-m labstudio train --preset char-mini --corpus shakespeare --max-steps 1000 --name first --device cpu"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="three rounds on any machine, no result written")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    if not options.quick:
        calibrate()
    with tempfile.TemporaryDirectory() as folder:
        seconds, cpu = measure(rounds, Path(folder), None if options.quick else BUSY)
    torch = seconds["import torch"]
    rows = {
        name: {
            "seconds": quartiles(each),
            "cpu_seconds": quartiles(cpu[name]),
            "of_torch": ratio(each, torch),
        }
        for name, each in seconds.items()
    }
    print(f"{'':28}{'seconds':>22}{'CPU':>8}{'of import torch':>22}")
    for name, row in rows.items():
        low, middle, high = row["seconds"].values()
        part = row["of_torch"]
        clock, share = f"{middle} ({low} to {high})", f"{part['median']} ({part['low']} to {part['high']})"
        print(f"{name:28}{clock:>22}{row['cpu_seconds']['median']:>8}{share:>22}")
    if not options.quick:
        save("startup", {"rounds": rounds, "rows": rows})


def measure(
    rounds: int, folder: Path, busy: float | None
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds on the clock and of the processors of each contestant in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in (*CONTESTANTS, "first step")}
    cpu: dict[str, list[float]] = {name: [] for name in seconds}
    for number in range(3 * rounds + 1):
        load, taken = OtherLoad(), {}
        for name, arguments in CONTESTANTS.items():
            taken[name] = timed(arguments, folder)
        taken["first step"] = first_step(folder)
        if not number or (busy is not None and load.cores() > busy):
            continue
        for name, (clock, used) in taken.items():
            seconds[name].append(clock)
            cpu[name].append(used)
        if len(seconds["import torch"]) == rounds:
            return seconds, cpu
    sys.exit("Too few rounds were quiet. Try again when nothing else runs.")


def environment(folder: Path) -> dict[str, str]:
    """As a user has it: compiled Python files are kept, here in a folder that is empty at first."""
    own = os.environ | {"PYTHONPYCACHEPREFIX": str(folder / "compiled"), "LABKIT_OUT": str(folder)}
    own.pop("PYTHONDONTWRITEBYTECODE", None)
    return own


def timed(arguments: list[str], folder: Path) -> tuple[float, float]:
    before, began = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], env=environment(folder), stdout=subprocess.DEVNULL, check=True
    )
    return time.perf_counter() - began, spent(before)


def first_step(folder: Path) -> tuple[float, float]:
    """Until the first step is in metrics.jsonl; the process is stopped then, and its run removed."""
    import shutil

    before, began = os.times(), time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *TRAINING.split()],
        env=environment(folder),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    rows = folder / "runs" / "first" / "metrics.jsonl"
    while not (rows.exists() and b'"step", "step": 1,' in rows.read_bytes()):
        if process.poll() is not None:
            sys.exit(f"The training ended before its first step.\n{process.communicate()[1].decode()}")
        time.sleep(0.01)
    clock = time.perf_counter() - began
    process.kill()
    process.communicate()
    shutil.rmtree(folder / "runs")
    return clock, spent(before)


def spent(before: Any) -> float:
    """Processor seconds of the processes that have been waited for since."""
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def quartiles(seconds: list[float]) -> dict[str, float]:
    low, middle, high = (round(each, 2) for each in statistics.quantiles(seconds, n=4))
    return {"low": low, "median": middle, "high": high}


if __name__ == "__main__":
    main()
