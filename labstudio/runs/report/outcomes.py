"""What the runs of a sweep came to, read from their folders."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from labkit.training import Run, runs_dir
from labstudio.runs.sweep import RECORD


@dataclass(frozen=True)
class Outcome:
    """One experiment's finished runs, one per seed. Losses in nats per token, means over the seeds."""

    about: dict[str, Any]
    """The first seed's sweep.json."""
    config: dict[str, Any]
    """The first seed's config.json."""
    environment: dict[str, Any]
    """Hardware and versions of the first seed; empty without its environment.jsonl."""
    seeds: tuple[int, ...]
    steps: tuple[pd.DataFrame, ...]
    evaluations: tuple[pd.DataFrame, ...]

    @property
    def name(self) -> str:
        """The experiment's name."""
        return str(self.about["experiment"])

    @property
    def parameters(self) -> int:
        """Weights of the model, frozen ones too."""
        return int(self.config["parameters"])

    @property
    def total_steps(self) -> int:
        """Optimizer steps of each run."""
        return int(self.config["total_steps"])

    @property
    def window(self) -> int:
        """Steps whose training losses are averaged: a twentieth of all, at most 20."""
        return max(1, min(20, self.total_steps // 20))

    @property
    def tokens(self) -> int:
        """Tokens trained on in each run, counted as often as they were seen."""
        return int(self.steps[0]["tokens"].iloc[-1])

    @cached_property
    def val_losses(self) -> tuple[float, ...]:
        """The held-out loss at the end, per seed."""
        return tuple(float(each["val_loss"].iloc[-1]) for each in self.evaluations)

    @property
    def val_loss(self) -> float:
        """The held-out loss at the end."""
        return sum(self.val_losses) / len(self.val_losses)

    @property
    def spread(self) -> float | None:
        """Largest minus smallest held-out loss over the seeds; None for a single seed."""
        return max(self.val_losses) - min(self.val_losses) if len(self.seeds) > 1 else None

    @property
    def perplexity(self) -> float:
        """exp of the held-out loss."""
        return math.exp(self.val_loss)

    @property
    def train_loss(self) -> float:
        """The training loss of the last steps."""
        return float(self.smooth_loss().iloc[-1])

    @property
    def seconds(self) -> float:
        """Time of one run, evaluations included; of a resumed run, of its parts together."""
        return float(sum(each["seconds"].iloc[-1] for each in self.steps) / len(self.steps))

    def loss(self) -> pd.Series:
        """The training loss of each step."""
        return pd.concat([each["loss"] for each in self.steps], axis="columns").mean(axis="columns")

    def smooth_loss(self) -> pd.Series:
        """The training loss of each step, averaged over the steps before it."""
        return self.loss().rolling(self.window, min_periods=1).mean()

    def held_out(self) -> pd.DataFrame:
        """step, tokens and val_loss of each evaluation."""
        losses = pd.concat([each["val_loss"] for each in self.evaluations], axis="columns")
        steps = self.evaluations[0]["step"]
        tokens = steps * self.tokens / self.total_steps
        return pd.DataFrame({"step": steps, "tokens": tokens, "val_loss": losses.mean(axis="columns")})

    def held_out_text(self) -> tuple[Any, ...]:
        """What the held-out loss was measured on; losses on different text do not compare."""
        data = self.about["settings"]["data"]
        return tuple(str(data[name]) for name in ("corpus", "tokenizer", "val_groups", "sequences"))


def read_outcomes(sweep: str, root: Path | None = None) -> tuple[list[Outcome], list[str]]:
    """The experiments of a sweep in the order of its file, and the names of runs that have not finished.

    root: the folder of the run folders.  Raises ValueError when no run of this sweep has finished.
    """
    root = root or runs_dir()
    found: dict[str, list[tuple[dict[str, Any], Run]]] = defaultdict(list)
    unfinished = []
    records = [(_read(path), Run(path.parent)) for path in sorted(root.glob(f"*/{RECORD}"))]
    for about, run in sorted(records, key=lambda record: record[0]["order"]):
        if about["sweep"] != sweep:
            continue
        if _finished(run):
            found[about["experiment"]].append((about, run))
        else:
            unfinished.append(run.id)
    if not found:
        raise ValueError(
            f"report: {root} has no finished run of a sweep {sweep!r}. Run: labkit sweep {sweep}"
        )
    outcomes = []
    for runs in found.values():
        runs.sort(key=lambda record: record[0]["seed"])
        outcomes.append(
            Outcome(
                about=runs[0][0],
                config=runs[0][1].config(),
                environment=next(iter(runs[0][1].rows("environment")), {}),
                seeds=tuple(about["seed"] for about, _ in runs),
                steps=tuple(run.metrics("step") for _, run in runs),
                evaluations=tuple(run.metrics("evaluation") for _, run in runs),
            )
        )
    return outcomes, unfinished


def results_table(outcomes: list[Outcome]) -> pd.DataFrame:
    """One row per experiment."""
    return pd.DataFrame(
        {
            "experiment": each.name,
            "seeds": len(each.seeds),
            "parameters": each.parameters,
            "steps": each.total_steps,
            "tokens": each.tokens,
            "train_loss": each.train_loss,
            "val_loss": each.val_loss,
            "val_loss_spread": each.spread,
            "perplexity": each.perplexity,
            "best_val_loss": float(each.held_out()["val_loss"].min()),
            "seconds": each.seconds,
        }
        for each in outcomes
    )


def noise(outcomes: list[Outcome]) -> float | None:
    """The widest spread over seeds of any experiment that was run with several; None where none was."""
    return max((each.spread for each in outcomes if each.spread is not None), default=None)


def _read(path: Path) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return about


def _finished(run: Run) -> bool:
    """Whether the last step and the evaluation after it are recorded."""
    if not (run.path / "config.json").is_file():
        return False
    rows = run.rows("metrics")
    total = run.config()["total_steps"]
    return {"step", "evaluation"} <= {row["event"] for row in rows if row["step"] == total}
