"""`labkit runs`: what was trained, how one run went, how several differ."""

from __future__ import annotations

import math
import textwrap
from datetime import datetime
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional

if TYPE_CHECKING:
    import pandas as pd

RunName = Annotated[str, tyro.conf.arg(metavar="RUN")]
RunNames = Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN RUN ...")]

runs = tyro.extras.SubcommandApp()

_HEADERS = {
    "total_steps": "total steps",
    "val_loss": "held-out loss",
    "best_val_loss": "best loss",
    "best_perplexity": "best perplexity",
    "bits_per_byte": "bits per byte",
    "megabytes": "MB",
}


@runs.command(name="list", is_default=True)
def list_all() -> int:
    """List the runs, oldest first."""
    from labkit.training import list_runs
    from labstudio.runs import runs_table

    table = runs_table(list_runs())
    steps = [
        f"{_cell(step)}/{_cell(total)}"
        for step, total in zip(table["step"], table["total_steps"], strict=True)
    ]
    table.insert(2, "steps", steps)
    shown = table.drop(columns=["step", "total_steps", "seconds", "bits_per_byte"])
    print(_aligned(shown) if len(table) else "No runs yet: labkit train")
    return 0


@runs.command
def show(run: Positional[RunName]) -> int:
    """Show one run: settings, environment, held-out loss over time, checkpoints, last sample.

    Args:
        run: Its name or folder.
    """
    from labkit.training import Run
    from labstudio.runs.run_views import checkpoints_table, evaluations_table, run_settings, runs_table

    opened = Run.open(run)
    opened.config()  # says what to do where it is damaged
    summary: dict[str, Any] = runs_table([opened]).to_dict("records")[0]  # type: ignore[assignment]
    if summary["state"].startswith("unreadable"):
        raise ValueError(f"Run {opened.id} is {summary['state']}")
    sections: dict[str, dict[str, Any]] = {"run": summary, "model": {}, "train": {}, "data": {}}
    for name, value in run_settings(opened).items():
        section, _, field = name.rpartition(".")
        sections.setdefault(section or "run", {})[field] = value
    starts = opened.rows("environment")
    sections |= {f"environment of start {number}": row for number, row in enumerate(starts, start=1)}
    for section, values in sections.items():
        _section("training" if section == "train" else section, _lines(values))
    evaluations = evaluations_table(opened)
    few = _thinned(evaluations)
    title = (
        "evaluations" if len(few) == len(evaluations) else f"evaluations ({len(few)} of {len(evaluations)})"
    )
    _section(title, _aligned(few))
    _section("checkpoints", _aligned(checkpoints_table([opened]).drop(columns="run")))
    for row in opened.rows("samples")[-1:]:
        _section(f"sample at step {row.get('step')}", str(row.get("text")))
    return 0


@runs.command
def compare(names: Positional[RunNames], figure: Path | None = None) -> int:
    """Show in which settings runs differ and how they did, and draw their curves.

    Args:
        names: Names or folders of two runs or more.
        figure: The PNG with the curves; runs-compare.png beside the runs when not given.
    """
    from labkit.training import Run, runs_dir
    from labstudio.runs.run_views import compare_runs, comparison_curves, comparison_warnings

    if len(names) < 2:
        raise ValueError("runs compare: name two runs or more. `labkit runs` lists them.")
    chosen = [Run.open(name) for name in names]
    table = compare_runs(chosen).T
    print(_aligned(table[table.notna().any(axis="columns")].rename(index=_HEADERS).reset_index(names="")))
    for warning in comparison_warnings(chosen):
        print(f"Note: {warning}")
    path = figure or runs_dir() / "runs-compare.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    comparison_curves(chosen).savefig(path)
    print(f"Curves: {path}")
    return 0


@runs.command
def checkpoints(run: Positional[RunName | None] = None) -> int:
    """List the checkpoints of one run, or of all.

    Args:
        run: Its name or folder; all runs when not given.
    """
    from labkit.training import Run, list_runs
    from labstudio.runs import checkpoints_table

    table = checkpoints_table([Run.open(run)] if run else list_runs())
    print(_aligned(table) if len(table) else "No checkpoints yet.")
    return 0


def _thinned(table: pd.DataFrame) -> pd.DataFrame:
    """At most 20 rows, evenly spread, the first and the last among them."""
    stride = max(1, math.ceil((len(table) - 1) / 19))
    return table[(table.index % stride == 0) | (table.index == len(table) - 1)]


def _section(title: str, body: str) -> None:
    if body:
        print(f"{title}\n{textwrap.indent(body, '  ')}\n")


def _lines(values: dict[str, Any]) -> str:
    """One `name  value` a line, the values below each other."""
    names = [_HEADERS.get(name, name) for name in values]
    width = max(map(len, names), default=0)
    return "\n".join(
        f"{name:<{width}}  {_cell(value)}" for name, value in zip(names, values.values(), strict=True)
    )


def _aligned(table: pd.DataFrame) -> str:
    """The table as text: columns of numbers to the right, others to the left."""
    columns = []
    for name, values in table.items():
        cells = [_HEADERS.get(str(name), str(name)), *map(_cell, values)]
        width = max(map(len, cells))
        right = all(isinstance(value, Real) or _missing(value) for value in values)
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True)) if len(table) else ""


def _missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _cell(value: Any) -> str:
    """A value for people: digits in groups, about four of them behind the point, - for what is missing."""
    if _missing(value):
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(_cell, value)) or "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, Integral) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) >= 1 else f"{value:.4g}"
    text = str(value)
    return text if text.isprintable() else repr(text)
