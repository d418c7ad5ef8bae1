"""What a reader sees and moves: figures and widgets."""

from labkit.ui.figures import COLOURS, LINES, heatmap, new_figure, probability_bars, show, training_curves
from labkit.ui.playground import SamplingPlayground, next_token_table, render_sample

__all__ = [
    "COLOURS",
    "LINES",
    "SamplingPlayground",
    "heatmap",
    "new_figure",
    "next_token_table",
    "probability_bars",
    "render_sample",
    "show",
    "training_curves",
]
