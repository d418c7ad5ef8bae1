"""Copy what texts quote of a sweep's finished runs into benchmarks/results/runs/.

    python benchmarks/keep_runs.py report base
    python benchmarks/keep_runs.py scaling --steps 30

Settings and measurements only, enough for write_report(name, runs=...); weights stay in runs/.  With --steps
a run keeps every evaluation, about so many of its steps, and the last 20, over which losses are averaged.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from labkit.training import runs_dir

KEPT = Path(__file__).parent / "results" / "runs"
FILES = ("config.json", "sweep.json", "environment.jsonl", "metrics.jsonl")


def keep(sweep: str, steps: int | None = None) -> list[str]:
    """Copy the runs of one sweep, in place of those kept before; returns their names."""
    for old in KEPT.glob("*/sweep.json"):
        if json.loads(old.read_text(encoding="utf-8"))["sweep"] == sweep:
            shutil.rmtree(old.parent)
    names = []
    for weights in sorted(runs_dir().glob("*/checkpoints/mini_gpt_*.safetensors")):
        run = weights.parents[1]
        if json.loads((run / "sweep.json").read_text(encoding="utf-8"))["sweep"] == sweep:
            (KEPT / run.name).mkdir(parents=True)
            for file in FILES:
                shutil.copyfile(run / file, KEPT / run.name / file)
            if steps:
                thin(KEPT / run.name / "metrics.jsonl", steps)
            names.append(run.name)
    return names


def thin(metrics: Path, steps: int) -> None:
    """Leave out most steps of a run's metrics.jsonl."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    total = max(row["step"] for row in rows)
    every = -(-total // steps)
    with metrics.open("w", encoding="utf-8") as file:
        for row in rows:
            if row["event"] != "step" or row["step"] % every == 0 or row["step"] > total - 20:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sweeps", nargs="+")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    for name in options.sweeps:
        print(f"{name}: {', '.join(keep(name, options.steps)) or 'no finished run'}")
