"""What a reader sees and moves: figures, tables of runs, and widgets."""

from labkit.ui.attention_pictures import attention_figure
from labkit.ui.attention_view import AttentionExplorer
from labkit.ui.evaluation_views import (
    comparison_figure,
    comparison_table,
    comparison_words,
    gaps_table,
    layers_figure,
    scores_table,
)
from labkit.ui.figures import COLOURS, LINES, heatmap, new_figure, probability_bars, show, training_curves
from labkit.ui.inspect_views import (
    embedding_figure,
    heads_figure,
    heads_table,
    lens_figure,
    lens_table,
    losses_figure,
    losses_table,
)
from labkit.ui.live_run import LiveRun
from labkit.ui.playground import SamplingPlayground
from labkit.ui.run_monitor import RunMonitor
from labkit.ui.run_views import checkpoints_table, compare_runs, comparison_curves, runs_table
from labkit.ui.sampling_stages import SamplingStages, next_token_table, sampling_stages, stage_bars

__all__ = [
    "COLOURS",
    "LINES",
    "AttentionExplorer",
    "LiveRun",
    "RunMonitor",
    "SamplingPlayground",
    "SamplingStages",
    "attention_figure",
    "checkpoints_table",
    "compare_runs",
    "comparison_curves",
    "comparison_figure",
    "comparison_table",
    "comparison_words",
    "embedding_figure",
    "gaps_table",
    "heads_figure",
    "heads_table",
    "heatmap",
    "layers_figure",
    "lens_figure",
    "lens_table",
    "losses_figure",
    "losses_table",
    "new_figure",
    "next_token_table",
    "probability_bars",
    "runs_table",
    "sampling_stages",
    "scores_table",
    "show",
    "stage_bars",
    "training_curves",
]
