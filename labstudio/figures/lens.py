"""The logit lens as a figure: which next token each layer expects."""

from __future__ import annotations

from functools import cache

from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from labkit.text import Tokenizer
from labstudio.figures.base import COLOURS, heatmap, ink_on_cividis, new_figure
from labstudio.visible import blanks, token_label, visible


def lens_figure(lens: Tensor, ids: Tensor, tokenizer: Tokenizer) -> Figure:
    """From which layer on is the next token clear?

    lens: (layers + 1, seq, vocab), that of one text: logit_lens(model, ids)[:, 0].
    ids: (seq,), two at least.
    Left: what each layer holds for the likeliest next token, coloured by the probability of the true one and
    framed where it is right.  Right: the mean of that probability, and how often the likeliest is right.
    """
    if lens.ndim != 3 or ids.shape != (lens.shape[1],) or len(ids) < 2:
        raise ValueError(
            f"lens {tuple(lens.shape)} and ids {tuple(ids.shape)}: expected (layers + 1, seq, vocab) and "
            "(seq,) of one text, seq at least 2: logit_lens(model, ids)[:, 0] and ids[0]."
        )
    names = ["embedding", *(f"block {number}" for number in range(1, len(lens)))]
    probabilities = lens[:, :-1].double().softmax(-1)  # (layers + 1, seq - 1, vocab)
    truth = ids[1:].expand(len(lens), -1)
    true = probabilities.gather(-1, truth[..., None])[..., 0]  # (layers + 1, seq - 1)
    likeliest = probabilities.argmax(-1)
    right = likeliest == truth
    guesses = [[_drawable(token_label(tokenizer, each)) for each in row] for row in likeliest.tolist()]
    labels = [_drawable(token_label(tokenizer, each)) for each in ids.tolist()]

    cell = 0.25 + 0.07 * max(len(guess[:7]) for row in guesses for guess in row)
    figure = new_figure(2, width=max(8, 5 + cell * len(labels)), height=1.9 + 0.32 * len(names))
    grid, curves = figure.axes
    grid.get_gridspec().set_width_ratios([cell * len(labels) + 1, 3])  # type: ignore[union-attr]
    heatmap(grid, true, rows=names, columns=labels[:-1], limits=(0, 1))
    grid.set_yticks(range(len(names)), names)  # no sign for the blanks in these
    figure.axes[-1].set_ylabel("probability of the true one")
    grid.tick_params(axis="x", rotation=0 if max(map(len, labels)) < 3 else 90)
    for row, line in enumerate(guesses):
        for column, guess in enumerate(line):
            short = guess if len(guess) <= 7 else f"{guess[:6]}…"
            ink = ink_on_cividis(float(true[row, column]))
            grid.text(column, row, visible(short), ha="center", va="center", color=ink, fontsize=9)
            if right[row, column]:
                corner = (column - 0.46, row - 0.44)
                grid.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor="#E69F00", lw=2))
    grid.set_title("Which next token does each layer expect? Framed where it is right", fontsize=10)
    grid.set(xlabel="token read", ylabel="read after")
    curves.plot(true.mean(1), "o-", color=COLOURS[0], label="probability of the true token")
    curves.plot(right.double().mean(1), "s--", color=COLOURS[1], label="likeliest token is right")
    curves.set(xlabel="read after block (0: embedding)", ylabel="mean over the text", ylim=(0, 1.02))
    curves.xaxis.set_major_locator(MaxNLocator(integer=True))
    curves.set_title("When does it become clear?", fontsize=10)
    curves.legend(fontsize=8)
    curves.grid(alpha=0.3)
    return figure


@cache
def _font() -> FT2Font:
    return FT2Font(findfont(FontProperties()))


def _drawable(label: str) -> str:
    """A label with visible blanks, and a code point for each sign that the figures' font does not have."""
    return "".join(
        sign if _font().get_char_index(ord(sign)) else f"U+{ord(sign):04X}" for sign in blanks(label)
    )
