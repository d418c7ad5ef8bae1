"""Recorded runs as tables and curves, read from the run folders; also while these are being written."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from labkit.training import Run
from labstudio.figures.base import new_figure
from labstudio.figures.losses import SMOOTH, LossCurve, draw_losses, label_losses

RUNNING_WITHIN = 120  # seconds since the last row; files cannot tell more

COUNTS = ["parameters", "step", "total_steps", "tokens"]
MEASURES = ["val_loss", "perplexity", "bits_per_byte"]
RESULTS = [*COUNTS, "seconds", *MEASURES, "best_val_loss", "best_perplexity", "started", "state"]

_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError)


def runs_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run: size, progress, and the last and best held-out loss in nats per token.

    state: finished, "running?" (a row came within the last two minutes), stopped, or "unreadable: why".
    bits_per_byte: NaN where the run did not record it.
    """
    table = pd.DataFrame([_summary(run) for run in runs], columns=["run", *RESULTS])
    return table.astype(dict.fromkeys(COUNTS, "Int64"))


def evaluations_table(run: Run) -> pd.DataFrame:
    """One row per evaluation of a run: step, seconds since the start, and what was measured."""
    table = pd.DataFrame(_progress(run)[0], columns=["step", "seconds", *MEASURES])
    return table.dropna(axis="columns", how="all")


def run_settings(run: Run) -> dict[str, Any]:
    """What a run was started with, as `section.field`; empty when that cannot be read."""
    settings: dict[str, Any] = {}
    with suppress(*_DAMAGED):
        config = run.config()
        source = config.pop("source", None) or {}
        config |= {name: source[name] for name in ("preset", "init_from", "data") if name in source}
        for section, value in config.items():
            if isinstance(value, dict):
                settings |= {f"{section}.{name}": each for name, each in value.items()}
            elif section not in RESULTS:
                settings[section] = value
    return settings


def compare_runs(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: the settings in which the runs differ, then the columns of `runs_table`."""
    settings = [run_settings(run) for run in runs]
    readable = [each for each in settings if each]
    names = dict.fromkeys(name for each in readable for name in each)
    differing = [name for name in names if any(each.get(name) != readable[0].get(name) for each in readable)]
    rows = [{name: each.get(name) for name in differing} for each in settings]
    return pd.DataFrame(rows, columns=differing, dtype=object).join(runs_table(runs)).set_index("run")


def comparison_warnings(runs: Sequence[Run]) -> list[str]:
    """Why numbers of these runs do not compare; empty when they do."""
    settings = [run_settings(run) for run in runs]

    def differ(name: str) -> bool:
        return len({json.dumps(each[name]) for each in settings if name in each}) > 1

    warnings = []
    if differ("tokenizer"):
        warnings.append("The tokenizers differ, so losses and perplexities do not compare; bits per byte do.")
    if any(map(differ, ("data.corpus", "data.val_groups", "data.sequences"))):
        warnings.append("The held-out texts differ, so how well they are predicted does not compare.")
    return warnings


def loss_curve(run: Run, *, smooth: int = SMOOTH) -> LossCurve:
    """A run's losses over the tokens it was trained on; empty where they cannot be read.

    smooth: steps that the training loss is averaged over.
    """
    with suppress(*_DAMAGED):
        steps, evaluations = run.metrics("step"), run.metrics("evaluation")
        loss = steps["loss"].rolling(smooth, min_periods=1).mean()
        if not len(evaluations):
            return LossCurve(run.id, (steps["tokens"], loss))
        tokens = np.interp(evaluations["step"], [0, *steps["step"]], [0, *steps["tokens"]])
        return LossCurve(run.id, (steps["tokens"], loss), (tokens, evaluations["val_loss"]))
    return LossCurve(run.id)


def comparison_curves(runs: Sequence[Run], *, smooth: int = SMOOTH) -> Figure:
    """Held-out and training loss of several runs over the tokens they were trained on.

    smooth: steps that the training loss is averaged over.  A run that cannot be read has no curve.
    """
    figure = new_figure(2, width=12, height=4)
    held_out, training = figure.axes
    draw_losses([loss_curve(run, smooth=smooth) for run in runs], training, held_out)
    x = "tokens trained on"
    label_losses(held_out, "Which run predicts held-out text best?", x, kind="held-out ")
    label_losses(training, "Which run learns fastest?", x)
    training.set_ylabel(f"training loss (mean of {smooth} steps)")
    lines = held_out.get_lines()
    held_out.legend(lines, [str(line.get_label()) for line in lines])  # also names that begin with _
    return figure


def checkpoints_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per checkpoint folder, oldest first: its held-out loss, size and state.

    state: latest, best, damaged, temporary (being written or replaced), "unreadable: why", or empty.
    """
    rows = [row for run in runs for row in _checkpoints(run)]
    table = pd.DataFrame(rows, columns=["run", "step", "val_loss", "megabytes", "state", "path"])
    return table.astype({"step": "Int64", "val_loss": float})


def _summary(run: Run) -> dict[str, Any]:
    try:
        config = run.config()
        evaluations, last = _progress(run)
        measured = pd.DataFrame(evaluations or [{}], columns=MEASURES, dtype=float)
        best = measured.min()
        step, total = int(last.get("step", 0)), int(config["total_steps"])
        started = (run.path / "config.json").stat().st_mtime
        written = max((file.stat().st_mtime for file in run.path.glob("metrics.jsonl")), default=started)
        unfinished = "running?" if time.time() - written < RUNNING_WITHIN else "stopped"
        return {
            "run": run.id,
            "parameters": int(config["parameters"]),
            "step": step,
            "total_steps": total,
            "tokens": int(last.get("tokens", 0)),
            "seconds": float(last.get("seconds", 0)),
            **measured.iloc[-1],
            "best_val_loss": best["val_loss"],
            "best_perplexity": best["perplexity"],
            "started": datetime.fromtimestamp(int(started)),
            "state": "finished" if step == total else unfinished,
        }
    except _DAMAGED as error:
        return {"run": run.id, "state": _unreadable(error)}


def _progress(run: Run) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The evaluations and the last step, without parsing the thousands of steps before it."""
    path = run.path / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    evaluations = list(_whole_rows(line for line in lines if b'"evaluation"' in line))
    return evaluations, next((row for row in _whole_rows(reversed(lines)) if row["event"] == "step"), {})


def _whole_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        with suppress(ValueError):  # torn, or being written
            row = json.loads(line)
            if isinstance(row, dict) and "event" in row:
                yield row


def _checkpoints(run: Run) -> Iterator[dict[str, Any]]:
    paths = sorted(run.checkpoints_path.glob("*step-*"))
    known = {info.path: info for info in run.checkpoints()}
    pointers = {name: run.pointer(name) for name in ("latest", "best")}
    for path in paths:
        info = known.get(path)
        if path.name.startswith("."):
            state = "temporary"
        elif path.name.startswith("damaged"):
            state = "damaged"
        elif info is None:
            state = "unreadable: checkpoint.json is missing or damaged"
        else:
            state = ", ".join(name for name, target in pointers.items() if target == path)
        with suppress(FileNotFoundError):  # pruned since it was listed
            yield {
                "run": run.id,
                "step": info and info.step,
                "val_loss": info and info.val_loss,
                "megabytes": sum(file.stat().st_size for file in path.iterdir()) / 1e6,
                "state": state,
                "path": str(_from_here(path)),
            }


def _from_here(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _unreadable(error: Exception) -> str:
    if error.__cause__ is not None:  # the rest of config's message is too long for a row
        reason = f"config.json: {error.__cause__}"
    else:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return f"unreadable: {' '.join(reason.split())}"
