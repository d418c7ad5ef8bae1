"""How well models predict documents, and how a training goes layer by layer, as tables and figures."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd
from matplotlib.figure import Figure

from labkit.analysis.compare import Comparison, TokenGap
from labkit.analysis.evaluate import DocumentScore
from labkit.text import Tokenizer
from labstudio.figures.base import COLOURS, LINES, new_figure
from labstudio.visible import blanks, token_label, unhidden


def scores_table(scores: Iterable[DocumentScore]) -> pd.DataFrame:
    """One row per document: title, tokens, bytes, loss (nats per token), perplexity, bits per byte.

    Titles are as they may be shown; what was not measured is not a number.
    """
    rows = [
        (unhidden(each.title), each.tokens, each.n_bytes, each.loss, each.perplexity, each.bits_per_byte)
        for each in scores
    ]
    columns = ["document", "tokens", "bytes", "loss", "perplexity", "bits_per_byte"]
    return pd.DataFrame(rows, columns=columns)


def comparison_table(comparison: Comparison, names: tuple[str, str]) -> pd.DataFrame:
    """One row per document and one for all: bits per byte of both, their difference, tokens better (percent).

    names: of the first model and the other.
    """
    rows = [
        (
            unhidden(each.score.title),
            each.score.n_bytes,
            each.score.bits_per_byte,
            each.other.bits_per_byte,
            each.difference,
            100 * each.better,
        )
        for each in (*comparison.documents, comparison.total)
    ]
    columns = ["document", "bytes", *names, "difference", f"tokens that {names[0]} predicts better (%)"]
    table = pd.DataFrame(rows, columns=columns)
    return table if not math.isnan(comparison.total.better) else table.iloc[:, :-1]


def comparison_words(comparison: Comparison, names: tuple[str, str]) -> str:
    """In plain words: which model predicts better, by how much, whether by more than chance."""
    first, other = names
    total, ends = comparison.total, comparison.interval
    by = f"{abs(total.difference):.4f} bits per byte"
    stretches = f"{comparison.stretches} stretch{'es' if comparison.stretches > 1 else ''} of text"
    better, worse = (first, other) if total.difference < 0 else (other, first)
    low, high = sorted(end if better == other else -end for end in ends)
    interval = f"95 % interval {low:.4f} to {high:.4f}, from {stretches}"
    words = {
        "equal": f"{first} and {other} predict this text equally well.",
        "unknown": f"{better} needs {by} less here, but {stretches} is too little to tell that from chance.",
        "chance": f"{better} needs {by} less here ({interval}): no more than chance would explain.",
    }.get(
        comparison.verdict, f"{better} predicts better than {worse}, by {by} ({interval}): more than chance."
    )
    if not math.isnan(total.better):
        words += (
            f"\nLoss {total.score.loss:.4f} against {total.other.loss:.4f} nats per token, perplexity "
            f"{total.score.perplexity:.2f} against {total.other.perplexity:.2f}."
        )
    return words


def gaps_table(gaps: Iterable[TokenGap], tokenizer: Tokenizer, names: tuple[str, str]) -> pd.DataFrame:
    """One row per token: its document and place, the text before it, itself, and its nats in both models."""
    rows = [
        (
            unhidden(gap.title),
            gap.position,
            blanks(unhidden(gap.before[-30:])),
            blanks(token_label(tokenizer, gap.token)),
            gap.loss,
            gap.other_loss,
        )
        for gap in gaps
    ]
    return pd.DataFrame(rows, columns=["document", "token no.", "after", "token", *names])


def comparison_figure(comparison: Comparison, names: tuple[str, str]) -> Figure:
    """Bits per byte that the first model needs less (left) or more (right) than the other, per document."""
    measured = [each for each in comparison.documents if each.score.tokens]
    figure = new_figure(height=1.2 + 0.35 * (len(measured) + 1))
    [axes] = figure.axes
    titles = [_plain(each.score.title) for each in measured]
    values = [each.difference for each in (*measured, comparison.total)]
    colours = [COLOURS[0] if value < 0 else COLOURS[1] for value in values]
    bars = axes.barh(range(len(values)), values, color=colours)
    for bar, value in zip(bars, values, strict=True):
        bar.set_hatch("" if value < 0 else "///")
    low, high = comparison.interval
    if not math.isnan(comparison.standard_error):
        axes.errorbar(
            comparison.total.difference, len(measured), xerr=(high - low) / 2, color="black", capsize=4
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(range(len(values)), [*titles, "total, 95 % interval"])
    axes.invert_yaxis()
    first, other = map(_plain, names)
    axes.set(
        title=f"Does {first} predict better than {other}?", xlabel="bits per byte less (left) or more (right)"
    )
    return figure


def _plain(name: str) -> str:
    """A name with hidden characters shown, safe from the mathematics of figure titles."""
    return unhidden(name).replace("$", r"\$")


def layers_figure(table: pd.DataFrame) -> Figure:
    """Activations, gradients and dead units of every layer over the watched steps.

    table: as from `LayerWatch.table`.
    """
    figure = new_figure(3, width=13, height=4)
    panels = {
        "activation_rms": ("Do activations grow?", "root mean square after the layer"),
        "gradient_to_weight": ("Which layers learn?", "gradient / weight (root mean squares)"),
        "dead_share": ("Do units fall silent?", "dead hidden units (%)"),
    }
    for axes, (column, (title, label)) in zip(figure.axes, panels.items(), strict=True):
        for number, (layer, rows) in enumerate(table.groupby("layer", sort=False)):
            if rows[column].notna().any():
                values = rows[column] * (100 if column == "dead_share" else 1)
                line, colour = LINES[number % len(LINES)], COLOURS[number % len(COLOURS)]
                axes.plot(rows["step"], values, line, color=colour, marker=".", label=str(layer))
        axes.set(title=title, xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
        if column == "dead_share":
            axes.set_ylim(-2, 102)
        elif (table[column] > 0).any():
            axes.set_yscale("log")
    if len(table):
        figure.legend(
            *figure.axes[0].get_legend_handles_labels(), loc="outside right upper", fontsize="small"
        )
    return figure
