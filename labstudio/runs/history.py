"""What is drawn of one run, read from its folder as the files grow: curves, numbers, samples."""

from __future__ import annotations

import math
import time
from array import array
from typing import Any

import numpy as np
import pandas as pd

from labkit.io import Tail
from labkit.training import Run
from labstudio.figures.losses import SMOOTH
from labstudio.runs.tables import RUNNING_WITHIN
from labstudio.visible import unhidden

POINTS = 400
"""Of a curve, at most."""

SAMPLES, LONGEST_SAMPLE = 60, 2000
"""Texts that are shown at most, and characters of each."""

STEP = ("step", "loss", "learning_rate", "grad_norm", "tokens", "seconds")
EVALUATION = ("step", "val_loss", "perplexity", "seconds")


class RunHistory:
    """One run as far as it has come.  `read` takes in what was added since."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._metrics, self._texts = Tail(run.path / "metrics.jsonl"), Tail(run.path / "samples.jsonl")
        self._steps = {name: array("d") for name in STEP}
        self._evaluations: list[list[float]] = []
        self._samples: list[dict[str, Any]] = []
        self.problem = ""
        """Why the run cannot be read; empty when it can."""
        self.total_steps = 0

    def read(self) -> None:
        """Take in new rows; a rewritten file is read from the start.  Errors are described in `problem`."""
        try:
            self.problem = ""
            if not self.total_steps:
                self.total_steps = int(self.run.config()["total_steps"])
            rows, restarted = self._metrics.new_rows()
            if restarted:
                self._steps = {name: array("d") for name in STEP}
                self._evaluations = []
            for row in rows:
                self._take(row.values)
            texts, restarted = self._texts.new_rows()
            self._samples = [] if restarted else self._samples
            self._samples += filter(None, (_shown_sample(row.values) for row in texts))
        except FileNotFoundError:
            self.problem = f"There is no run at {self.run.path}, or it has not begun."
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.problem = f"Run {self.run.id} cannot be read: {error}"

    @property
    def step(self) -> int:
        """The last step that is recorded."""
        return int(self._steps["step"][-1]) if self._steps["step"] else 0

    def state(self) -> str:
        """As far as files tell: finished, training (a row came within the last two minutes), or stopped."""
        if self.total_steps and self.step >= self.total_steps:
            return "finished"
        try:
            written = max(file.stat().st_mtime for file in self.run.path.glob("*.json*"))
        except (OSError, ValueError):
            return "stopped"
        return "training" if time.time() - written < RUNNING_WITHIN else "stopped"

    def curves(self) -> dict[str, list[float | None]]:
        """Step, loss (mean of 20 steps), learning rate, gradient norm (the largest between two points)."""
        steps = {name: np.frombuffer(values) for name, values in self._steps.items() if values}
        if not steps:
            return {}
        places = thinned(len(steps["step"]))
        starts = [0, *(place + 1 for place in places[:-1])]
        smooth = pd.Series(steps["loss"]).rolling(SMOOTH, min_periods=1).mean().to_numpy()
        return {
            "step": _numbers(steps["step"][places]),
            "loss": _numbers(smooth[places]),
            "learning_rate": _numbers(steps["learning_rate"][places]),
            "grad_norm": _numbers(np.maximum.reduceat(steps["grad_norm"], starts)),
        }

    def evaluations(self) -> list[list[float | None]]:
        """Step, held-out loss and perplexity."""
        places = thinned(len(self._evaluations))
        return [_numbers(np.array(self._evaluations[place][:3])) for place in places]

    def samples(self) -> list[dict[str, Any]]:
        """What the model wrote during training, hidden characters made visible."""
        return [self._samples[place] for place in thinned(len(self._samples), limit=SAMPLES)]

    def latest(self) -> dict[str, float | None]:
        """The newest numbers; tokens per second and seconds left follow from the last steps."""
        found: dict[str, float | None] = {}
        if self._evaluations:
            found["val_loss"], found["perplexity"] = _numbers(np.array(self._evaluations[-1][1:3]))
        if self.step:
            last = {name: np.frombuffer(values[-200:]) for name, values in self._steps.items()}
            found["loss"] = _numbers(last["loss"][-SMOOTH:].mean(keepdims=True))[0]
            for name in ("learning_rate", "grad_norm"):
                found[name] = _numbers(last[name][-1:])[0]
            if speed := tokens_per_second(last["tokens"], last["seconds"]):
                per_step = last["tokens"][-1] / self.step
                found["tokens_per_second"] = speed
                found["seconds_left"] = max(0.0, (self.total_steps - self.step) * per_step / speed)
        return found

    def _take(self, row: dict[str, Any]) -> None:
        """Take in one row of metrics; one that lacks a number is left out."""
        try:
            names = {"step": STEP, "evaluation": EVALUATION}[row["event"]]
            values = [float(row[name]) for name in names]
        except (KeyError, TypeError, ValueError):
            return
        if names is EVALUATION:
            self._evaluations.append(values)
        else:
            for name, value in zip(names, values, strict=True):
                self._steps[name].append(value)


def thinned(count: int, limit: int = POINTS) -> list[int]:
    """At most `limit` of the places 0 to count - 1: the first, the last, and every n-th.

    n is a power of two, so that a growing curve keeps the points it has.
    """
    stride = 1
    while count > limit and math.ceil(count / stride) + 1 > limit:
        stride *= 2
    return sorted({*range(0, count, stride), *range(count)[-1:]})


def tokens_per_second(tokens: np.ndarray, seconds: np.ndarray) -> float | None:
    """Speed over some steps; each counts at most about ten times the median, so that pauses do not."""
    taken = np.diff(seconds)
    if not len(taken):
        return None
    total = float(np.minimum(taken, 10 * np.median(taken) + 0.5).sum())
    return float(tokens[-1] - tokens[0]) / total if total > 0 else None


def _numbers(values: np.ndarray) -> list[float | None]:
    """Five digits of each, None for what JSON has no number for."""
    return [float(f"{value:.5g}") if math.isfinite(value) else None for value in values.tolist()]


def _shown_sample(row: dict[str, Any]) -> dict[str, Any] | None:
    """A row of samples as it is shown; None where it is no sample."""
    match row:
        case {"step": int(step), "prompt": str(prompt), "text": str(text)}:
            shown = {"step": step, "prompt": unhidden(prompt), "text": unhidden(text[:LONGEST_SAMPLE])}
            return shown | {"asked": row.get("event") == "asked"}
    return None
