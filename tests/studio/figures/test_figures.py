"""Figures say what they show: title, axes, and words for those who cannot see them."""

from __future__ import annotations

import base64
import io
import math
import struct
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from labcourse import show
from labstudio.figures import heatmap, new_figure, probability_bars, training_curves
from labstudio.figures.losses import LossCurve, draw_losses
from labstudio.visible import visible

STEPS = pd.DataFrame({"step": range(1, 31), "loss": [3 / n for n in range(1, 31)], "learning_rate": 1e-3})
EVALUATIONS = pd.DataFrame({"step": [0, 15, 30], "val_loss": [3.0, 2.0, 1.5], "perplexity": [20.1, 7.4, 4.5]})


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, Any]]:
    """What is handed to the notebook: (data, metadata) of each display."""
    calls: list[tuple[Any, Any]] = []
    monkeypatch.setattr(
        "IPython.display.display", lambda data, *, metadata, raw: calls.append((data, metadata))
    )
    return calls


@pytest.mark.parametrize("alt", ["", "  \n"])
def test_a_figure_without_words_is_refused(alt: str, shown: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"show: alt is empty. Say in a sentence what the figure shows"):
        show(new_figure(), alt=alt, save="x.png")
    assert shown == []


def test_the_words_are_printed_and_attached_to_the_image(
    shown: list[tuple[Any, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    show(new_figure(), alt="A line that falls.")
    assert capsys.readouterr().out == "Figure: A line that falls.\n"
    [(data, metadata)] = shown
    assert metadata["image/png"]["alt"] == "A line that falls."
    assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_a_figure_is_saved_under_the_output_folder_the_same_bytes_each_time(
    shown: list[tuple[Any, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    images = set()
    for _ in range(2):
        show(training_curves(STEPS, EVALUATIONS), alt="Loss falls.", save="03_curves.png")
        images.add((tmp_path / "visualizations" / "03_curves.png").read_bytes())
    assert [path.name for path in tmp_path.rglob("*.png")] == ["03_curves.png"]
    [image] = images
    assert base64.b64decode(shown[0][0]["image/png"]) == image
    assert b"Software" not in image  # a version there would change the file
    assert struct.unpack(">II", image[16:24]) == (1200, 350)


def test_nothing_is_saved_unless_asked_for(
    shown: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    show(new_figure(), alt="A line.")
    assert list(tmp_path.iterdir()) == []


def test_training_curves_have_titles_labels_and_the_data() -> None:
    figure = training_curves(STEPS, EVALUATIONS)
    assert len(figure.axes) == 3
    for axes in figure.axes:
        assert axes.get_title().endswith("?")
        assert axes.get_xlabel() == "step"
        assert axes.get_ylabel()
    assert "nats per token" in figure.axes[0].get_ylabel()
    train, held_out = figure.axes[0].get_lines()
    assert held_out.get_ydata().tolist() == [3.0, 2.0, 1.5]
    assert train.get_ydata()[0] == 3.0
    assert train.get_ydata()[-1] == pytest.approx(sum(3 / n for n in range(11, 31)) / 20)
    assert held_out.get_linestyle() != train.get_linestyle()  # told apart without colour
    assert figure.axes[1].get_lines()[0].get_ydata().tolist() == [20.1, 7.4, 4.5]
    assert figure.axes[1].get_yscale() == "log"


def test_runs_are_told_apart_by_colour_and_line_and_losses_by_their_axes() -> None:
    curves = [LossCurve(f"run{n}", ([1, 2], [3.0, 2.0 - n]), ([0, 2], [4.0, 3.0])) for n in range(3)]
    training, held_out = new_figure(2).axes
    draw_losses([*curves, LossCurve("unreadable")], training, held_out)
    for axes in (training, held_out):
        assert len({line.get_color() for line in axes.get_lines()}) == 4
        assert len({line.get_linestyle() for line in axes.get_lines()}) == 4
        assert [line.get_label() for line in axes.get_lines()][:2] == ["run0", "run1"]
    assert training.get_lines()[1].get_ydata().tolist() == [3.0, 1.0]
    assert held_out.get_lines()[1].get_xdata().tolist() == [0, 2]


def test_on_the_same_axes_held_out_losses_have_marks_and_a_colour_of_their_own() -> None:
    [axes] = new_figure().axes
    curves = [LossCurve(f"(seed {seed})", ([1], [3.0]), ([0], [2.0])) for seed in (4, 7)]
    draw_losses(curves, axes, axes, smooth=5, perplexity=True)
    training, held_out, *_ = axes.get_lines()
    assert training.get_ydata()[0] == pytest.approx(math.exp(3.0))
    assert (training.get_marker(), held_out.get_marker()) == ("", "o")
    assert training.get_color() != held_out.get_color()
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == [
        "mean of 5 steps (seed 4)", "held-out (seed 4)", "mean of 5 steps (seed 7)", "held-out (seed 7)",
    ]  # fmt: skip


def test_figures_are_made_without_pyplot() -> None:
    """pyplot keeps every figure alive and is not safe in callbacks."""
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    assert isinstance(new_figure(2, rows=3), Figure)
    assert len(new_figure(2, rows=3).axes) == 6
    assert plt.get_fignums() == before


@pytest.mark.parametrize("numbers", [True, False])
def test_a_heatmap_names_its_rows_and_columns(numbers: bool) -> None:
    figure = new_figure()
    values = torch.tensor([[0.1, 0.9, -torch.inf], [0.5, 0.25, 0.25]])
    heatmap(figure.axes[0], values, rows=["to", " be"], columns=["a", "\n", "$x$"], numbers=numbers)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["to", "␣be"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "⏎", r"\$x\$"]
    expected = ["0.10", "0.90", "-inf", "0.50", "0.25", "0.25"] if numbers else []
    assert [text.get_text() for text in axes.texts] == expected
    assert len(figure.axes) == 2  # a colour bar says what the colours mean
    figure.savefig(io.BytesIO())


def luminance(colour: str | tuple[float, ...]) -> float:
    """Relative luminance, as WCAG 2.2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_numbers_are_read_on_every_colour_of_a_heatmap() -> None:
    figure = new_figure()
    values = torch.linspace(-3, 5, 203).view(7, 29)
    heatmap(figure.axes[0], values, rows=["a"] * 7, columns=["b"] * 29, numbers=True)
    for text, value in zip(figure.axes[0].texts, values.flatten(), strict=True):
        ground = luminance(colormaps["cividis"]((value.item() + 3) / 8))
        dark, light = sorted([ground, luminance(text.get_color())])  # type: ignore[arg-type]
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (value, text.get_color())


def test_probability_bars_have_the_likeliest_on_top() -> None:
    figure = new_figure()
    table = pd.DataFrame({"token": [" the", "$", "\t"], "probability": [0.6, 0.3, 0.1]})
    probability_bars(figure.axes[0], table)
    axes = figure.axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.6, 0.3, 0.1]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["␣the", r"\$", "⇥"]
    assert axes.yaxis_inverted()
    assert axes.get_xlabel() == "probability"
    figure.savefig(io.BytesIO())  # a lone $ would fail as mathematics


@pytest.mark.parametrize(
    ("token", "seen"), [(" a b", "␣a␣b"), ("\n\t", "⏎⇥"), ("5$", r"5\$"), ("é🎭", "é🎭")]
)
def test_blanks_become_visible(token: str, seen: str) -> None:
    assert visible(token) == seen
