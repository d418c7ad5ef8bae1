"""Figures and tables as pure functions: nothing here knows a kernel, a widget or a page."""

from labstudio.figures.base import COLOURS, LINES, heatmap, new_figure, probability_bars
from labstudio.figures.evaluation import (
    comparison_table,
    comparison_words,
    gaps_table,
    scores_table,
)
from labstudio.figures.lens import lens_figure
from labstudio.figures.losses import training_curves
from labstudio.figures.sampling import SamplingStages, next_token_table, sampling_stages, stage_bars

__all__ = [
    "COLOURS",
    "LINES",
    "SamplingStages",
    "comparison_table",
    "comparison_words",
    "gaps_table",
    "heatmap",
    "lens_figure",
    "new_figure",
    "next_token_table",
    "probability_bars",
    "sampling_stages",
    "scores_table",
    "stage_bars",
    "training_curves",
]
