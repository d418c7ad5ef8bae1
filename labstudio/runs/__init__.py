"""Runs as tables and curves, sweeps of runs, and their reports."""

from labstudio.runs.kept import kept_runs
from labstudio.runs.sweep import sweep
from labstudio.runs.tables import checkpoints_table, compare_runs, comparison_curves, runs_table

__all__ = ["checkpoints_table", "compare_runs", "comparison_curves", "kept_runs", "runs_table", "sweep"]
