"""The report of a sweep, from its run folders alone: tables, curves, text, and a section of the log."""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

from labkit.io import output_dir
from labstudio.runs.report.figures import save_figures
from labstudio.runs.report.observations import changes, observations
from labstudio.runs.report.outcomes import Outcome, read_outcomes, results_table
from labstudio.runs.report.sections import (
    data_section,
    entry_parts,
    figures_section,
    log_entries,
    model_section,
    plain,
    results_section,
    setup_section,
)

__all__ = [
    "Outcome",
    "changes",
    "entry_parts",
    "log_report",
    "observations",
    "read_outcomes",
    "results_table",
    "write_report",
]

LESSON = "08_experiments"


def write_report(sweep: str, *, runs: Path | None = None, log: bool = True) -> Path:
    """Write visualizations/<sweep>/ and the sweep's section of experiments_log.md; returns report.md.

    The folder then has results_table.txt and .csv, loss_curve_<experiment>.png and
    perplexity_curve_<experiment>.png, comparison_<topic>.png, loss_curves.png, perplexity_curves.png and
    report.md.
    runs: the folder of the run folders, for example kept_runs(); where training writes them
    when not given.  log: False leaves experiments_log.md alone.
    Raises ValueError when no run of this sweep has finished.
    """
    outcomes, unfinished = read_outcomes(sweep, runs)
    folder = output_dir() / "visualizations" / sweep
    folder.mkdir(parents=True, exist_ok=True)
    table = results_table(outcomes)
    table.round(6).to_csv(folder / "results_table.csv", index=False, lineterminator="\n")
    (folder / "results_table.txt").write_text(plain(table), encoding="utf-8")
    save_figures(outcomes, folder)

    title = outcomes[0].about["title"]
    data, setup = data_section(outcomes), setup_section(outcomes)
    results, observed = results_section(table, unfinished), "\n\n".join(observations(outcomes))
    parts = {
        f"# {title}\n\n## 1. Model and parameters": model_section(outcomes),
        "## 2. Data": data,
        "## 3. Set-up and experiments": setup,
        "## 4. Results": f"{results}\n\n{figures_section(outcomes)}",
        "## 5. Observations": observed,
    }
    report = folder / "report.md"
    text = "\n\n".join(f"{heading}\n\n{body}" for heading, body in parts.items())
    report.write_text(text + "\n", encoding="utf-8")
    if log:
        log_report(sweep, runs=runs)
    return report


def log_report(sweep: str, *, runs: Path | None = None) -> Path:
    """Write the sweep's section of experiments_log.md from its run folders, and return that file.

    Raises ValueError when no run of this sweep has finished.
    """
    outcomes, unfinished = read_outcomes(sweep, runs)
    body = log_entries(outcomes)
    if unfinished:
        body += f"\n\nNot finished, so not shown: {', '.join(unfinished)}."
    writers = entry_points(group="labstudio.log")
    if not writers:
        raise RuntimeError(
            "Nothing installed writes experiments_log.md. Install the course: pip install -e ."
        )
    written: Path = next(iter(writers)).load()(
        LESSON, sweep, f"Sweep {sweep}: {outcomes[0].about['title']}", body
    )
    return written
