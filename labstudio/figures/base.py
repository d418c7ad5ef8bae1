"""Figures that answer a question: each has a title, labelled axes, safe colours and a text alternative."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from labstudio.visible import visible

# Okabe & Ito (2008): told apart with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINES = ("-", "--", ":", "-.")


def new_figure(columns: int = 1, *, rows: int = 1, width: float = 8, height: float = 3.5) -> Figure:
    """A figure with `rows * columns` axes (in `figure.axes`); width and height in inches, for all of it."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=100)
    figure.subplots(rows, columns)
    return figure


def heatmap(
    axes: Axes,
    values: Tensor,
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    numbers: bool = False,
    limits: tuple[float, float] | None = None,
) -> None:
    """Draw a matrix (rows, columns) as colours from dark (low) to light (high), with a name on each side.

    numbers: write each value into its cell, for matrices small enough to read.
    limits: what the darkest and the lightest colour stand for, if not the smallest and the largest value.
    """
    low, high = limits or (None, None)
    array = values.detach().float().cpu().numpy()
    image = axes.imshow(array, cmap="cividis", aspect="auto", vmin=low, vmax=high)
    axes.set_xticks(range(len(columns)), [visible(name) for name in columns], rotation=90)
    axes.set_yticks(range(len(rows)), [visible(name) for name in rows])
    if numbers:
        for row, line in enumerate(values.tolist()):
            for column, value in enumerate(line):
                ink = ink_on_cividis(cast(float, image.norm(value)))
                axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=ink)
    assert axes.figure is not None
    axes.figure.colorbar(image, ax=axes)


def ink_on_cividis(height: float) -> str:
    """What is read best on the colour map's colour at a height from 0 to 1: contrast 4.5 or more."""
    return "black" if height > 0.465 else "white"


def probability_bars(axes: Axes, table: pd.DataFrame) -> None:
    """Horizontal bars of the columns `token` and `probability`, the likeliest on top."""
    names = [visible(token) for token in table["token"]]
    axes.barh(range(len(table)), table["probability"], color=COLOURS[0])
    axes.set_yticks(range(len(table)), names)
    axes.invert_yaxis()
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.set_xlabel("probability")
