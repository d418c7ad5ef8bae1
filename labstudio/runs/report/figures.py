"""The curves of a sweep as image files."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from labstudio.figures.base import COLOURS, new_figure
from labstudio.figures.losses import LossCurve, draw_losses, label_losses
from labstudio.runs.report.outcomes import Outcome


def save_figures(outcomes: list[Outcome], folder: Path) -> None:
    """Write loss_curve_<name>.png and perplexity_curve_<name>.png of each experiment, and all overlaid.

    comparison_<topic>.png shows those of one topic, or a single one, next to what they are compared with.
    """
    for each in outcomes:
        _save(_curve(each, perplexity=False), folder / f"loss_curve_{each.name}.png")
        _save(_curve(each, perplexity=True), folder / f"perplexity_curve_{each.name}.png")
    groups = topics(outcomes)
    _save(_overlaid(groups, perplexity=False), folder / "loss_curves.png")
    _save(_overlaid(groups, perplexity=True), folder / "perplexity_curves.png")
    for title, own in by_topic(outcomes).items():
        drawn = with_compared(own, outcomes)
        if len(drawn) > 1:
            _save(_overlaid({title: drawn}, perplexity=False), folder / figure_name(title, drawn))


def figure_name(title: str, drawn: list[Outcome]) -> str:
    """The file that shows the losses of these experiments."""
    if len(drawn) == 1:
        return f"loss_curve_{drawn[0].name}.png"
    return f"comparison_{re.sub(r'[^0-9A-Za-z_.-]+', '_', title)}.png"


def by_topic(outcomes: list[Outcome]) -> dict[str, list[Outcome]]:
    """The experiments of each topic; one without a topic stands by itself, under its own name."""
    found: dict[str, list[Outcome]] = {}
    for each in outcomes:
        found.setdefault(each.about["topic"] or each.name, []).append(each)
    return found


def with_compared(own: list[Outcome], outcomes: list[Outcome]) -> list[Outcome]:
    """Some experiments after those that they are compared with."""
    by_name = {each.name: each for each in outcomes}
    others = [by_name[each.about["against"]] for each in own if each.about["against"] in by_name]
    return list({each.name: each for each in [*others, *own]}.values())


def topics(outcomes: list[Outcome]) -> dict[str, list[Outcome]]:
    """The experiments to draw together: each topic's own, after those that they are compared with."""
    found = {
        title: with_compared(own, outcomes)
        for title, own in by_topic(outcomes).items()
        if own[0].about["topic"]
    }
    if not found:
        return {"": outcomes}
    if rest := [each for each in outcomes if all(each not in drawn for drawn in found.values())]:
        found["others"] = rest
    return found


def _curve(outcome: Outcome, *, perplexity: bool) -> Figure:
    """Each step's loss or perplexity, its running mean, and the held-out one; per seed."""
    figure = new_figure(width=5.5, height=3.2)
    [axes] = figure.axes
    first = outcome.steps[0]
    loss = np.exp(first["loss"]) if perplexity else first["loss"]
    axes.plot(first["step"], loss, color=COLOURS[5], linewidth=0.5, label="training, each step")
    curves = [
        LossCurve(
            f"(seed {seed})" if len(outcome.seeds) > 1 else "",
            (steps["step"], steps["loss"].rolling(outcome.window, min_periods=1).mean()),
            (evaluations["step"], evaluations["val_loss"]),
        )
        for seed, steps, evaluations in zip(outcome.seeds, outcome.steps, outcome.evaluations, strict=True)
    ]
    draw_losses(curves, axes, axes, smooth=outcome.window, perplexity=perplexity)
    label_losses(axes, f"How does {outcome.name} learn?", "step", perplexity=perplexity)
    axes.legend(fontsize=7)
    return figure


def _overlaid(groups: dict[str, list[Outcome]], *, perplexity: bool) -> Figure:
    """Training and held-out curves over the tokens seen, a row of axes per topic."""
    figure = new_figure(2, rows=len(groups), width=10, height=3.4 * len(groups))
    rows = np.array(figure.axes).reshape(len(groups), 2)
    for (topic, drawn), (training, held_out) in zip(groups.items(), rows, strict=True):
        curves, late = [], []
        for each in drawn:
            tokens, losses, curve = each.steps[0]["tokens"], each.smooth_loss(), each.held_out()
            curves.append(LossCurve(each.name, (tokens, losses), (curve["tokens"], curve["val_loss"])))
            late += [*losses[tokens >= each.tokens / 10]]
            late += [*curve["val_loss"][curve["tokens"] >= each.tokens / 10]]
        draw_losses(curves, training, held_out, perplexity=perplexity)
        ends = np.exp([min(late), max(late)]) if perplexity else (min(late), max(late))
        questions = ("which learns fastest?", "which predicts new text best?")
        for axes, question, kind in zip((training, held_out), questions, ("", "held-out "), strict=True):
            title = f"{topic}: {question}" if topic else question
            label_losses(
                axes, title[0].upper() + title[1:], "training tokens", kind=kind, perplexity=perplexity
            )
            # The fall from the first, random guesses would flatten the rest.
            axes.set_ylim(ends[0] * 0.98, ends[1] * 1.02)
        training.legend(fontsize=7)
    return figure


def _save(figure: Figure, path: Path) -> None:
    """Write a PNG of 256 colours, a third of the size of one with millions."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=80, format="png")
    Image.open(buffer).convert("RGB").quantize(dither=Image.Dither.NONE).save(path, optimize=True)
