"""How far a sweep is: a table that is rewritten in place on a terminal, else a line per change."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from labkit.training.runs import Run
from labstudio.runs.sweep import SweepRun

COLUMNS = ("run", "state", "step", "loss", "held-out", "steps/s", "left")
_WIDTHS = (30, 9, 13, 8, 8, 8, 7)
_REFRESH = 1.0


class SweepTable:
    """Give it to `sweep(..., watch=SweepTable())`. It only reads what the runs write to their folders."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.drawn = 0
        self.next = 0.0
        self.states: dict[str, str] = {}

    def __call__(self, jobs: Sequence[SweepRun]) -> None:
        changed = [job for job in jobs if self.states.get(job.run.id) != job.state]
        self.states |= {job.run.id: job.state for job in changed}
        if self.live:
            if changed or time.monotonic() >= self.next:
                self._draw(jobs)
                self.next = time.monotonic() + _REFRESH
            return
        for job in changed:
            if job.state != "waiting":
                print("  ".join(part for part in row(job) if part), flush=True)

    def _draw(self, jobs: Sequence[SweepRun]) -> None:
        lines = [COLUMNS, *map(row, jobs)]
        text = "\n".join(
            "  ".join(
                cell[:width].ljust(width) if place < 2 else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, _WIDTHS, strict=True))
            )
            for line in lines
        )
        up = f"\x1b[{self.drawn}A\x1b[J" if self.drawn else ""
        print(f"{up}{text}", flush=True)
        self.drawn = len(lines)


def row(job: SweepRun) -> tuple[str, ...]:
    """A line of the table: name, state, and what the run's metrics file says so far."""
    metrics = [] if job.state == "waiting" else job.run.rows("metrics")
    steps = [each for each in metrics if each["event"] == "step"]
    losses = [each["val_loss"] for each in metrics if each["event"] == "evaluation"]
    held_out = f"{losses[-1]:.3f}" if losses else ""
    if not steps:
        return job.run.id, job.state, "", "", held_out, "", ""
    last, total = steps[-1], _total_steps(job.run)
    recent = [each for each in steps[-50:] if each["seconds"] <= last["seconds"]]
    seconds = last["seconds"] - recent[0]["seconds"]
    speed = (len(recent) - 1) / seconds if seconds > 0 else 0.0
    left = (total - last["step"]) / speed if speed and job.state == "running" else None
    return (
        job.run.id,
        job.state,
        f"{last['step']}/{total}",
        f"{last['loss']:.3f}",
        held_out,
        f"{speed:.1f}" if job.state == "running" else "",
        "" if left is None else f"{left // 60:.0f}:{left % 60:02.0f}",
    )


def _total_steps(run: Run) -> int:
    try:
        return int(run.config()["total_steps"])
    except (OSError, ValueError, KeyError):  # not yet written
        return 0
