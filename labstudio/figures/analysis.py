"""What a model does inside, as tables and figures: kinds of heads, the logit lens, losses, embeddings."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from functools import cache

import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from labkit.analysis import EmbeddingMap
from labkit.text import Tokenizer
from labstudio.figures.base import COLOURS, heatmap, ink_on_cividis, new_figure
from labstudio.visible import blanks, token_label, unhidden, visible

KIND_FROM, NEARBY_TO, SPREAD_FROM = 0.4, 4.0, 2.0  # share of weight, tokens, bits
WIDTH = 80  # characters in a line of a text's picture
KINDS = {"induction": "induction", "previous_token": "previous token", "first_token": "first token"}
QUESTIONS = {
    "entropy": "How undecided? (bits)",
    "distance": "How far away? (tokens)",
    "first_token": "Weight on the first token?",
    "previous_token": "Weight on the token before?",
    "induction": "Weight on what followed last time?",
}


def heads_table(scores: dict[str, Tensor]) -> pd.DataFrame:
    """One row per head: layer and head (from 0), its scores, and in plain words its kind.

    kind: the first of induction, previous token and first token that has a weight of at least 0.4 (induction
    comes first, since such heads rest on the first token where nothing repeats); else "nearby tokens" up to
    a mean distance of 4; else "spread out" from 2 bits on, as over four positions alike; else "something
    else".  A text of twenty tokens or more tells these apart.
    scores: as from `labkit.analysis.head_scores`.  To judge induction on `repeated_ids` and the rest on a
    text, join two of them: head_scores(…) | {"induction": head_scores(…)["induction"]}.
    """
    layers, heads = scores["entropy"].shape
    columns = {"layer": [layer for layer in range(layers) for _ in range(heads)]}
    columns |= {"head": list(range(heads)) * layers}
    table = pd.DataFrame(columns | {name: values.flatten().tolist() for name, values in scores.items()})
    table["kind"] = [_kind(row) for row in table.to_dict("records")]
    return table


def _kind(row: Mapping[Hashable, float]) -> str:
    for name, kind in KINDS.items():
        if row[name] >= KIND_FROM:
            return kind
    if row["distance"] <= NEARBY_TO:
        return "nearby tokens"
    return "spread out" if row["entropy"] >= SPREAD_FROM else "something else"


def heads_figure(scores: dict[str, Tensor]) -> Figure:
    """Every score of every head, layers down and heads across; without induction where it is not defined."""
    drawn = {name: values for name, values in scores.items() if not values.isnan().all()}
    layers, heads = scores["entropy"].shape
    width, height = 1.5 + 0.45 * heads, 1.1 + 0.3 * layers
    columns = max(1, min(len(drawn), int(14 / width)))
    rows = -(-len(drawn) // columns)
    figure = new_figure(columns, rows=rows, width=columns * width, height=rows * height)
    for axes, (name, values) in zip(figure.axes, drawn.items(), strict=False):
        heatmap(
            axes,
            values,
            rows=[str(layer) for layer in range(layers)],
            columns=[str(head) for head in range(heads)],
            numbers=True,
            limits=(0, 1) if name in KINDS else None,
        )
        axes.set_title(QUESTIONS[name], fontsize=10)
        axes.set(xlabel="head", ylabel="layer")
        axes.tick_params(axis="x", rotation=0)
    for axes in figure.axes[len(drawn) : rows * columns]:
        axes.set_axis_off()
    return figure


def lens_table(lens: Tensor, ids: Tensor, tokenizer: Tokenizer) -> pd.DataFrame:
    """One row per position: the token read, the one that really comes next, and what each layer expects.

    lens: (layers + 1, seq, vocab), that of one text: logit_lens(model, ids)[:, 0].  ids: (seq,).
    Columns: pairs; for each layer the likeliest token and its probability.
    """
    _check_lens(lens, ids)
    labels = [blanks(token_label(tokenizer, token)) for token in ids.tolist()]
    columns: dict[tuple[str, str], list[str] | list[float]] = {("text", "read"): labels}
    columns["text", "next"] = [*labels[1:], ""]
    for name, logits in zip(_layer_names(lens), lens, strict=True):
        best = logits.double().softmax(-1).max(-1)
        columns[name, "token"] = [blanks(token_label(tokenizer, token)) for token in best.indices.tolist()]
        columns[name, "probability"] = [round(each, 3) for each in best.values.tolist()]
    return pd.DataFrame(columns)


def lens_figure(lens: Tensor, ids: Tensor, tokenizer: Tokenizer) -> Figure:
    """From which layer on is the next token clear?  lens and ids as for `lens_table`, two tokens at least.

    Left: what each layer holds for the likeliest next token, coloured by the probability of the true one and
    framed where it is right.  Right: the mean of that probability, and how often the likeliest is right.
    """
    _check_lens(lens, ids, at_least=2)
    names = _layer_names(lens)
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
                _frame(grid, column, row)
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


def _check_lens(lens: Tensor, ids: Tensor, at_least: int = 1) -> None:
    if lens.ndim != 3 or ids.shape != (lens.shape[1],) or len(ids) < at_least:
        raise ValueError(
            f"lens {tuple(lens.shape)} and ids {tuple(ids.shape)}: expected (layers + 1, seq, vocab) and "
            f"(seq,) of one text, seq at least {at_least}: logit_lens(model, ids)[:, 0] and ids[0]."
        )


def _layer_names(lens: Tensor) -> list[str]:
    return ["embedding", *(f"block {number}" for number in range(1, len(lens)))]


def _frame(axes: Axes, column: int, row: int) -> None:
    axes.add_patch(Rectangle((column - 0.46, row - 0.44), 0.92, 0.88, fill=False, edgecolor="#E69F00", lw=2))


def losses_table(losses: Tensor, ids: Tensor, tokenizer: Tokenizer) -> pd.DataFrame:
    """One row per token after the first: the token, its loss in nats, and the probability it was given.

    losses: (seq - 1,), those of one text: token_losses(model, ids)[0].  ids: (seq,).
    """
    _check_losses(losses, ids)
    tokens = [blanks(token_label(tokenizer, token)) for token in ids[1:].tolist()]
    rows = {"token": tokens, "loss": losses.tolist(), "probability": losses.neg().exp().tolist()}
    return pd.DataFrame(rows, index=pd.RangeIndex(1, len(ids), name="position"))


def losses_figure(losses: Tensor, ids: Tensor, tokenizer: Tokenizer) -> Figure:
    """The text, each token on the colour of its loss: what surprised the model?  Arguments: `losses_table`.

    Light is a large loss.  The first token, which nothing predicts, has no colour.
    """
    _check_losses(losses, ids)
    values = losses.double().cpu()
    scale = Normalize(0, float(values.max()))
    tokens = [_drawable(token_label(tokenizer, token)) for token in ids.tolist()]
    places = _typeset(tokens)
    lines = 1 + places[-1][1]
    figure = new_figure(width=10, height=1 + 0.27 * lines)
    [axes] = figure.axes
    for number, (token, (x, y)) in enumerate(zip(tokens, places, strict=True)):
        value = scale(float(values[number - 1])) if number else 0.0
        face = colormaps["cividis"](value) if number else "none"
        axes.add_patch(Rectangle((x, y), len(token), 0.92, facecolor=face, edgecolor="white", lw=0.5))
        text = axes.text(x + len(token) / 2, y + 0.46, visible(token), ha="center", va="center", fontsize=10)
        text.set(family=["DejaVu Sans Mono", "DejaVu Sans"])
        text.set_color(ink_on_cividis(value) if number else "black")
    axes.set(xlim=(0, WIDTH), ylim=(lines, 0), title="What surprised the model?")
    axes.set_axis_off()
    bar = ScalarMappable(scale, "cividis")
    figure.colorbar(bar, ax=axes, label="loss (nats)", fraction=0.03)
    return figure


def _typeset(tokens: Sequence[str]) -> list[tuple[int, int]]:
    """Column and line of each token's beginning, in lines of WIDTH characters."""
    places, column, line = [], 0, 0
    for token in tokens:
        if column and column + len(token) > WIDTH:
            column, line = 0, line + 1
        places.append((column, line))
        column += len(token)
        if token.endswith("⏎"):
            column, line = 0, line + 1
    return places


def _check_losses(losses: Tensor, ids: Tensor) -> None:
    if losses.ndim != 1 or ids.shape != (len(losses) + 1,) or not len(losses):
        raise ValueError(
            f"losses {tuple(losses.shape)} and ids {tuple(ids.shape)}: expected (seq - 1,) and (seq,) of one "
            "text of at least two tokens: token_losses(model, ids)[0] and ids[0]."
        )


def embedding_figure(mapped: EmbeddingMap, labels: Sequence[str], titles: Sequence[str]) -> Figure:
    """Maps of embeddings side by side: which tokens does the model hold for alike?

    labels: of the tokens, the rows of each embedding.  titles: of each embedding, such as "before training".
    Each map has its own scale; its title says how much of the variance the two axes show.
    """
    wrong = [len(points) for points in mapped.points if len(points) != len(labels)]
    if wrong or len(titles) != len(mapped.points):
        raise ValueError(
            f"embedding_figure: {len(labels)} labels and {len(titles)} titles for maps of "
            f"{[len(points) for points in mapped.points]} tokens. Give a label per token and a title per map."
        )
    columns = len(titles)
    figure = new_figure(columns, width=5 * columns, height=4.6)
    names = [visible(_drawable(unhidden(label))) for label in labels]
    for axes, points, shares, title in zip(figure.axes, mapped.points, mapped.shares, titles, strict=True):
        axes.scatter(points[:, 0], points[:, 1], s=6, color=COLOURS[0])
        for name, (x, y) in zip(names, points.tolist(), strict=True):
            axes.annotate(name, (x, y), xytext=(2, 2), textcoords="offset points", fontsize=9)
        axes.set_title(f"{title}: {float(shares.sum()):.0%} of the variance", fontsize=10)
        first, second = shares.tolist()
        axes.set(xlabel=f"first axis ({first:.0%})", ylabel=f"second axis ({second:.0%})")
        axes.grid(alpha=0.3)
    return figure


@cache
def _font() -> FT2Font:
    return FT2Font(findfont(FontProperties()))


def _drawable(label: str) -> str:
    """A label with visible blanks, and a code point for each sign that the figures' font does not have."""
    return "".join(
        sign if _font().get_char_index(ord(sign)) else f"U+{ord(sign):04X}" for sign in blanks(label)
    )
