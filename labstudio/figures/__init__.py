"""Figures and tables as pure functions: nothing here knows a kernel, a widget or a page."""

from labstudio.figures.analysis import (
    embedding_figure,
    heads_figure,
    heads_table,
    lens_figure,
    lens_table,
    losses_figure,
    losses_table,
)
from labstudio.figures.base import COLOURS, LINES, heatmap, new_figure, probability_bars
from labstudio.figures.evaluation import (
    comparison_figure,
    comparison_table,
    comparison_words,
    gaps_table,
    layers_figure,
    scores_table,
)
from labstudio.figures.losses import training_curves
from labstudio.figures.sampling import SamplingStages, next_token_table, sampling_stages, stage_bars

__all__ = [
    "COLOURS",
    "LINES",
    "SamplingStages",
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
    "sampling_stages",
    "scores_table",
    "stage_bars",
    "training_curves",
]
