"""`labkit sweep`, and how far it is: a table rewritten in place on a terminal, else a line per change."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tyro.conf import Positional

if TYPE_CHECKING:
    from labstudio.runs.history import RunHistory
    from labstudio.runs.sweep import SweepRun

COLUMNS = ("run", "state", "step", "loss", "held-out", "tokens/s", "left")
_WIDTHS = (30, 9, 13, 8, 8, 9, 7)
_REFRESH = 1.0


def sweep(
    file: Positional[str],
    devices: str | None = None,
    workers: int | None = None,
    only: str | None = None,
    smoke: bool = False,
) -> int:
    """Run named experiments side by side and write their report.

    The same command continues where it was stopped and skips what has finished.

    Args:
        file: A .toml file, or one that comes with labkit: report, base, scaling.
        devices: Such as cuda:0,cuda:1: one experiment on each at a time.
        workers: Experiments at a time on the CPU, one thread each; as many as cores when not given.
        only: Names of experiments, such as baseline,lr_1e-3; all when not given.
        smoke: A few steps of each, to see that all of it runs.
    """
    from labstudio.runs.report import write_report
    from labstudio.runs.sweep import sweep as run_sweep
    from labstudio.runs.sweep_file import read_sweep

    plan = read_sweep(file)
    try:
        table = run_sweep(
            file,
            devices=devices.split(",") if devices else None,
            workers=workers,
            only=only.split(",") if only else (),
            smoke=smoke,
            watch=SweepTable(),
        )
    except KeyboardInterrupt:
        print("Stopped; checkpoints are saved. The same command continues from there.")
        return 130
    failed = table[table["state"] == "failed"]
    for _, each in failed.iterrows():
        print(f"\n{each['run']} failed:\n{each['error']}")
    if len(failed) < len(table):
        print(f"Report: {write_report(plan.smoke().name if smoke else plan.name, log=not smoke)}")
    return 1 if len(failed) else 0


class SweepTable:
    """Give it to `sweep(..., watch=SweepTable())`. It only reads what the runs write to their folders."""

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()
        self.drawn = 0
        self.next = 0.0
        self.states: dict[str, str] = {}
        self.histories: dict[str, RunHistory] = {}

    def __call__(self, runs: Sequence[SweepRun]) -> None:
        changed = [run for run in runs if self.states.get(run.run.id) != run.state]
        self.states |= {run.run.id: run.state for run in changed}
        if self.live:
            if changed or time.monotonic() >= self.next:
                self._draw(runs)
                self.next = time.monotonic() + _REFRESH
            return
        for run in changed:
            if run.state != "waiting":
                print("  ".join(part for part in self.row(run) if part), flush=True)

    def _draw(self, runs: Sequence[SweepRun]) -> None:
        lines = [COLUMNS, *map(self.row, runs)]
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

    def row(self, run: SweepRun) -> tuple[str, ...]:
        """A line of the table: name, state, and what the run's folder says so far."""
        from labstudio.runs.history import RunHistory

        history = self.histories.setdefault(run.run.id, RunHistory(run.run))
        if run.state != "waiting":
            history.read()
        latest = history.latest()
        speed = left = ""
        if run.state == "running" and (per_second := latest.get("tokens_per_second")):
            seconds = latest["seconds_left"] or 0.0
            speed, left = f"{per_second:,.0f}", f"{seconds // 60:.0f}:{seconds % 60:02.0f}"
        losses = [f"{latest[name]:.3f}" if latest.get(name) else "" for name in ("loss", "val_loss")]
        return (
            run.run.id,
            run.state,
            f"{history.step}/{history.total_steps}" if history.step else "",
            *losses,
            speed,
            left,
        )
