"""What a reader sees and moves: figures, tables of runs, and widgets."""

from labkit.ui.figures import COLOURS, LINES, heatmap, new_figure, probability_bars, show, training_curves
from labkit.ui.playground import SamplingPlayground, next_token_table, render_sample
from labkit.ui.run_views import checkpoints_table, compare_runs, comparison_curves, runs_table

__all__ = [
    "COLOURS",
    "LINES",
    "SamplingPlayground",
    "checkpoints_table",
    "compare_runs",
    "comparison_curves",
    "heatmap",
    "new_figure",
    "next_token_table",
    "probability_bars",
    "render_sample",
    "runs_table",
    "show",
    "training_curves",
]
