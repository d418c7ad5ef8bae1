"""Keep what texts quote of a sweep's finished runs, packed as benchmarks/results/runs/SWEEP.zip.

    python benchmarks/keep_runs.py report base
    python benchmarks/keep_runs.py scaling --steps 30

Settings and measurements only, enough for write_report(name, runs=kept_runs()); weights stay in runs/.  With
--steps a run keeps every evaluation, about so many of its steps, and the last 20, over which losses are
averaged.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from labkit.io import runs_dir
from labstudio.runs.kept import pack_runs

KEPT = Path(__file__).parent / "results" / "runs"
FILES = ("config.json", "sweep.json", "environment.jsonl", "metrics.jsonl")


def keep(sweep: str, steps: int | None = None) -> list[str]:
    """Pack the finished runs of one sweep, in place of those kept before; returns their names."""
    runs = {}
    for weights in sorted(runs_dir().glob("*/checkpoints/mini_gpt_*.safetensors")):
        run = weights.parents[1]
        if json.loads((run / "sweep.json").read_text(encoding="utf-8"))["sweep"] == sweep:
            runs[run.name] = {file: (run / file).read_text(encoding="utf-8") for file in FILES}
            if steps:
                runs[run.name]["metrics.jsonl"] = thinned(runs[run.name]["metrics.jsonl"], steps)
    if runs:
        pack_runs(KEPT / f"{sweep}.zip", runs)
    return list(runs)


def thinned(metrics: str, steps: int) -> str:
    """A run's metrics.jsonl without most of its steps."""
    rows = [json.loads(line) for line in metrics.splitlines()]
    total = max(row["step"] for row in rows)
    every = -(-total // steps)
    kept = [
        row for row in rows if row["event"] != "step" or row["step"] % every == 0 or row["step"] > total - 20
    ]
    return "".join(json.dumps(row) + "\n" for row in kept)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("sweeps", nargs="+")
    parser.add_argument("--steps", type=int)
    options = parser.parse_args()
    for name in options.sweeps:
        print(f"{name}: {', '.join(keep(name, options.steps)) or 'no finished run'}")
