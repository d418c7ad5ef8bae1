"""`labkit runs`: what was trained, how one run went, how several differ."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional

from labstudio.tables import HEADERS, aligned_table, cell_text

RunName = Annotated[str, tyro.conf.arg(metavar="RUN")]
RunNames = Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN RUN ...")]

runs = tyro.extras.SubcommandApp()


@runs.command(name="list", is_default=True)
def list_all() -> int:
    """List the runs, oldest first."""
    from labkit.training import list_runs
    from labstudio.runs import runs_table

    table = runs_table(list_runs())
    steps = [
        f"{cell_text(step)}/{cell_text(total)}"
        for step, total in zip(table["step"], table["total_steps"], strict=True)
    ]
    table.insert(2, "steps", steps)
    shown = table.drop(columns=["step", "total_steps", "seconds", "bits_per_byte"])
    print(aligned_table(shown) if len(table) else "No runs yet: labkit train")
    return 0


@runs.command
def show(run: Positional[RunName]) -> int:
    """Show one run: settings, environment, held-out loss over time, checkpoints, last sample.

    Args:
        run: Its name or folder.
    """
    from labkit.training import Run
    from labstudio.runs.history import thinned
    from labstudio.runs.tables import checkpoints_table, evaluations_table, run_settings, runs_table

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
    few = evaluations.iloc[thinned(len(evaluations), limit=20)]
    title = (
        "evaluations" if len(few) == len(evaluations) else f"evaluations ({len(few)} of {len(evaluations)})"
    )
    _section(title, aligned_table(few))
    _section("checkpoints", aligned_table(checkpoints_table([opened]).drop(columns="run")))
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
    from labstudio.runs.tables import compare_runs, comparison_curves, comparison_warnings

    if len(names) < 2:
        raise ValueError("runs compare: name two runs or more. `labkit runs` lists them.")
    chosen = [Run.open(name) for name in names]
    table = compare_runs(chosen).T
    print(aligned_table(table[table.notna().any(axis="columns")].rename(index=HEADERS).reset_index(names="")))
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
    print(aligned_table(table) if len(table) else "No checkpoints yet.")
    return 0


def _section(title: str, body: str) -> None:
    if body:
        print(f"{title}\n{textwrap.indent(body, '  ')}\n")


def _lines(values: dict[str, Any]) -> str:
    """One `name  value` a line, the values below each other."""
    names = [HEADERS.get(name, name) for name in values]
    width = max(map(len, names), default=0)
    return "\n".join(
        f"{name:<{width}}  {cell_text(value)}" for name, value in zip(names, values.values(), strict=True)
    )
