"""What the dashboard draws of runs, as numbers and text for JSON, with hidden characters made visible."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from labkit.training import Run, list_runs
from labstudio.runs.history import thinned
from labstudio.runs.tables import (
    RUNNING_WITHIN,
    checkpoints_table,
    compare_runs,
    comparison_warnings,
    loss_curve,
    run_settings,
    runs_table,
)
from labstudio.tables import HEADERS
from labstudio.visible import unhidden

POINTS = 300
"""Of a curve, at most."""

COLUMNS = ("parameters", "step", "total_steps", "val_loss", "perplexity", "state", "started")

Signature = tuple[object, ...]


class RunsList:
    """The runs of a folder as rows of a table; only runs whose files changed are read again."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs: dict[str, Run] = {}
        """By the name that is shown."""
        self._rows: dict[str, tuple[Signature, dict[str, Any]]] = {}

    def look(self) -> list[dict[str, Any]]:
        """The rows as of now, newest first."""
        self.runs = {unhidden(run.id): run for run in reversed(list_runs(self.root))}
        before, self._rows = self._rows, {}
        for name, run in self.runs.items():
            now = signature(run)
            known = before.get(name)
            self._rows[name] = known if known and known[0] == now else (now, _row(name, run))
        return [row for _, row in self._rows.values()]

    def find(self, name: object) -> Run:
        """The run that is shown under a name.  Raises ValueError when it is gone."""
        run = self.runs.get(name) if isinstance(name, str) else None
        if run is None:
            raise ValueError(f"There is no run {name!r} any more.")
        return run


def signature(run: Run) -> Signature:
    """Changes when the run's files change, or when it has been idle so long that it counts as stopped."""
    files = [run.path / name for name in ("config.json", "metrics.jsonl", "samples.jsonl", "checkpoints")]
    states = [file.stat() for file in files if file.exists()]
    newest = max((state.st_mtime for state in states), default=0.0)
    return *((state.st_mtime_ns, state.st_size) for state in states), time.time() - newest < RUNNING_WITHIN


def _row(name: str, run: Run) -> dict[str, Any]:
    found = runs_table([run]).to_dict("records")[0]
    names = sorted((unhidden(path.name) for path in run.checkpoints_path.glob("step-*")), reverse=True)
    return {"run": name, "checkpoints": names} | {column: plain(found[column]) for column in COLUMNS}


def plain(value: Any) -> Any:
    """A value as JSON holds it: missing numbers as None, times and what is nested as text."""
    if isinstance(value, dict | list | tuple):
        return unhidden(", ".join(map(str, value))) if not isinstance(value, dict) else unhidden(str(value))
    if value is None or value is pd.NA or value is pd.NaT:
        return None
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return f"{value:%Y-%m-%d %H:%M}" if isinstance(value, datetime) else unhidden(str(value))


def comparison(runs: Sequence[Run]) -> dict[str, Any]:
    """How runs differ: a table of settings and results, curves, and warnings about what does not compare."""
    table = compare_runs(runs).T
    table = table[table.notna().any(axis="columns")]
    names = [HEADERS.get(name, unhidden(name)) for name in table.index]
    rows = [[name, *map(plain, values)] for name, values in zip(names, table.to_numpy(), strict=True)]
    drawn = [curves(run) for run in runs]
    return {
        "runs": [unhidden(run.id) for run in runs],
        "rows": rows,
        "warnings": [unhidden(warning) for warning in comparison_warnings(runs)],
        "held_out": [each["held_out"] for each in drawn],
        "training": [each["training"] for each in drawn],
    }


def curves(run: Run) -> dict[str, list[list[float]]]:
    """Held-out and training loss (mean of 20 steps) as [tokens, loss]; empty where they cannot be read."""
    curve = loss_curve(run)
    return {"held_out": _points(curve.held_out), "training": _points(curve.training)}


def _points(curve: tuple[ArrayLike, ArrayLike]) -> list[list[float]]:
    points = np.stack([np.asarray(each, float) for each in curve], axis=1)
    kept: list[list[float]] = points[thinned(len(points), limit=POINTS)].tolist()
    return [point for point in kept if all(map(math.isfinite, point))]


def run_page(run: Run) -> dict[str, Any]:
    """One run's settings and checkpoints, newest first, and whether `labkit resume` can continue it."""
    checkpoints = checkpoints_table([run]).to_dict("records")
    resumable = False
    with suppress(OSError, ValueError):  # the table of runs says what is wrong
        resumable = bool(run.config().get("source"))
    return {
        "name": unhidden(run.id),
        "resumable": resumable,
        "settings": [[unhidden(name), plain(value)] for name, value in run_settings(run).items()],
        "checkpoints": [
            {"name": unhidden(Path(row["path"]).name)}
            | {column: plain(row[column]) for column in ("step", "val_loss", "megabytes", "state")}
            for row in reversed(checkpoints)
        ],
    }


def find_checkpoint(run: Run, name: object) -> Path:
    """The checkpoint folder that is shown under a name.  Raises ValueError when it is gone."""
    for path in run.checkpoints_path.glob("*step-*"):
        if unhidden(path.name) == name:
            return path
    raise ValueError(
        f"Run {run.id} has no checkpoint {name!r} any more: training keeps the newest and the best."
    )
