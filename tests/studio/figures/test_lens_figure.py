"""The figure of the logit lens says what the numbers say, and shows foreign text as text."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from labkit.analysis import logit_lens
from labkit.text import CharTokenizer
from labstudio.figures import lens_figure
from tests.variants import CONTEXT, VOCAB, variant

PLAIN = CharTokenizer.from_text("abcdefgh i\n$<")  # with the end of text, 14 tokens
HOSTILE = "a<b>$x_1$\u202eא\u200b🙂中\n"
STRANGE = CharTokenizer.from_text(HOSTILE)


def drawn(figure: Figure) -> None:
    """Draw it; a sign that the font lacks, or a formula that cannot be read, is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.canvas.draw()


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def some_lens() -> tuple[Tensor, Tensor]:
    """Three readings of "abca": the first always says b, the second and third know more."""
    ids = torch.tensor([PLAIN.encode("abca")])[0]
    says = ["bbbb", "bcbb", "bcab"]
    lens = torch.zeros(3, 4, PLAIN.vocab_size)
    for layer, row in enumerate(says):
        for position, token in enumerate(PLAIN.encode(row)):
            lens[layer, position, token] = math.log(9 * (PLAIN.vocab_size - 1))
    return lens, ids


def test_the_lens_figure_frames_what_is_right_and_counts_it() -> None:
    lens, ids = some_lens()
    figure = lens_figure(lens, ids, PLAIN)
    drawn(figure)
    grid, curves = figure.axes[:2]
    assert texts(grid) == list("bbb" + "bcb" + "bca")
    framed = {(round(p.get_x() + 0.46), round(p.get_y() + 0.44)) for p in grid.patches}
    assert framed == {(0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2)}
    small = 0.1 / (PLAIN.vocab_size - 1)
    shown = torch.tensor(grid.images[0].get_array().tolist())
    expected = [[0.9, small, small], [0.9, 0.9, small], [0.9, 0.9, 0.9]]
    torch.testing.assert_close(shown, torch.tensor(expected), atol=1e-6, rtol=0)
    assert [label.get_text() for label in grid.get_xticklabels()] == ["a", "b", "c"]
    assert [label.get_text() for label in grid.get_yticklabels()] == ["embedding", "block 1", "block 2"]
    mean, right = (line.get_ydata() for line in curves.lines)
    assert list(mean) == pytest.approx([sum(row) / 3 for row in expected])
    assert list(curves.lines[0].get_xdata()) == [0, 1, 2]
    assert list(right) == pytest.approx([1 / 3, 2 / 3, 1])
    assert [label.get_text() for label in curves.get_legend().get_texts()] == [
        "probability of the true token",
        "likeliest token is right",
    ]


def test_the_lens_figure_takes_what_the_lens_gives() -> None:
    model = variant("llama")
    ids = torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    lens = logit_lens(model, ids)
    drawn(lens_figure(lens[:, 1], ids[1], PLAIN))
    with pytest.raises(ValueError, match=r"lens \(3, 3, 11, 13\) and ids \(3, 11\): expected \(layers \+ 1"):
        lens_figure(lens, ids, PLAIN)
    with pytest.raises(ValueError, match="seq at least 2"):
        lens_figure(lens[:, 1, :1], ids[1, :1], PLAIN)


def test_foreign_text_is_text() -> None:
    ids = torch.tensor(STRANGE.encode(HOSTILE))
    lens = torch.zeros(2, len(ids), STRANGE.vocab_size)
    lens[:, torch.arange(len(ids) - 1), ids[1:]] = 5  # each layer expects what comes
    shown = [
        "a",
        "<",
        "b",
        ">",
        r"\$",
        "x",
        "_",
        "1",
        r"\$",
        "U+202E",
        "א",
        "U+200B",
        "U+1F642",
        "U+4E2D",
        "⏎",
    ]

    figure = lens_figure(lens, ids, STRANGE)
    drawn(figure)
    assert texts(figure.axes[0])[: len(ids) - 1] == [
        each if len(each) <= 7 else f"{each[:6]}…" for each in shown[1:]
    ]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == shown[:-1]
