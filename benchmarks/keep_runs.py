"""Copy what texts quote of a sweep's finished runs into benchmarks/results/runs/.

    python benchmarks/keep_runs.py report base

Settings and measurements only, enough for write_report(name, runs=...); weights stay in runs/.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from labkit.training import runs_dir

KEPT = Path(__file__).parent / "results" / "runs"
FILES = ("config.json", "sweep.json", "environment.jsonl", "metrics.jsonl")


def keep(sweep: str) -> list[str]:
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
            names.append(run.name)
    return names


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(f"{name}: {', '.join(keep(name)) or 'no finished run'}")
