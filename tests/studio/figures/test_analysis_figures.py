"""Tables and figures of a model's inside say what the numbers say, and show foreign text as text."""

from __future__ import annotations

import math
import warnings

import pandas as pd
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from labkit.analysis import attention_maps, embedding_map, head_scores, logit_lens, repeated_ids
from labkit.text import CharTokenizer
from labstudio.figures import (
    embedding_figure,
    heads_figure,
    heads_table,
    lens_figure,
    lens_table,
    losses_figure,
    losses_table,
)
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


def some_scores(layers: int = 2, heads: int = 3, **changes: list[list[float]]) -> dict[str, Tensor]:
    scores = {
        "entropy": torch.full((layers, heads), 1.0),
        "distance": torch.full((layers, heads), 9.0),
        "first_token": torch.zeros(layers, heads),
        "previous_token": torch.zeros(layers, heads),
        "induction": torch.zeros(layers, heads),
    }
    return scores | {name: torch.tensor(values) for name, values in changes.items()}


# Heads


def test_each_head_has_a_row_with_its_scores_and_its_kind() -> None:
    scores = some_scores(
        induction=[[0.7, 0.0, 0.39], [0.45, math.nan, 0.0]],
        previous_token=[[0.9, 0.4, 0.39], [0.5, 0.1, 0.0]],
        first_token=[[0.0, 0.5, 0.0], [0.9, 0.9, 0.0]],
        entropy=[[3.0, 3.0, 2.0], [3.0, 3.0, 1.9]],
    )
    table = heads_table(scores)
    assert list(table.columns) == ["layer", "head", *scores, "kind"]
    assert table["layer"].tolist() == [0, 0, 0, 1, 1, 1]
    assert table["head"].tolist() == [0, 1, 2, 0, 1, 2]
    assert table["entropy"].tolist() == pytest.approx([3, 3, 2, 3, 3, 1.9])
    kinds = ["induction", "previous token", "spread out", "induction", "first token", "something else"]
    assert table["kind"].tolist() == kinds
    assert set(heads_table(scores | {"distance": torch.full((2, 3), 4.0)})["kind"]) == {
        *kinds[:2], "first token", "nearby tokens"
    }  # fmt: skip


def test_heads_made_by_hand_are_named() -> None:
    pytest.importorskip("transformers")
    from tests.analysis.reference_models import TOKENS, hand_made

    model, ids = hand_made(), repeated_ids(11, TOKENS, batch=3, seed=0)
    table = heads_table(head_scores(attention_maps(model, ids), ids))
    assert table["kind"].tolist() == [
        *("previous token", "first token", "spread out"),
        *("induction", "nearby tokens", "spread out"),  # the second looks at itself
    ]


def test_the_heads_figure_draws_each_score_that_is_defined() -> None:
    scores = some_scores(previous_token=[[0.5, 0.25, 0.125], [0.75, 0.9, 0.1]])
    figure = heads_figure(scores)
    drawn(figure)
    panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
    assert len(panels) == 5
    before = panels["Weight on the token before?"]
    assert texts(before) == ["0.50", "0.25", "0.12", "0.75", "0.90", "0.10"]
    assert before.images[0].get_clim() == (0, 1)  # a share is small or large in itself
    assert before.get_xlabel() == "head"
    assert before.get_ylabel() == "layer"

    nothing = torch.full((2, 3), math.nan)
    without = heads_figure(scores | {"induction": nothing})
    drawn(without)
    assert {axes.get_title() for axes in without.axes} - {""} == set(panels) - {
        "Weight on what followed last time?"
    }


@pytest.mark.parametrize(("layers", "heads"), [(1, 1), (12, 12)])
def test_the_heads_figure_grows_with_the_model(layers: int, heads: int) -> None:
    figure = heads_figure(some_scores(layers, heads))
    drawn(figure)
    assert len([axes for axes in figure.axes if axes.get_title()]) == 5
    width, height = figure.get_size_inches()
    assert 2 <= width <= 14
    assert 1 <= height <= 16


# The lens


def some_lens() -> tuple[Tensor, Tensor]:
    """Three readings of "abca": the first always says b, the second and third know more."""
    ids = torch.tensor([PLAIN.encode("abca")])[0]
    says = ["bbbb", "bcbb", "bcab"]
    lens = torch.zeros(3, 4, PLAIN.vocab_size)
    for layer, row in enumerate(says):
        for position, token in enumerate(PLAIN.encode(row)):
            lens[layer, position, token] = math.log(9 * (PLAIN.vocab_size - 1))
    return lens, ids


def test_the_lens_table_names_what_each_layer_expects() -> None:
    lens, ids = some_lens()
    table = lens_table(lens, ids, PLAIN)
    assert "".join(table["text", "read"]) == "abca"
    assert table["text", "next"].tolist() == ["b", "c", "a", ""]
    assert list(dict.fromkeys(table.columns.get_level_values(0))) == [
        "text",
        "embedding",
        "block 1",
        "block 2",
    ]
    assert "".join(table["embedding", "token"]) == "bbbb"
    assert "".join(table["block 2", "token"]) == "bcab"
    assert table["block 1", "probability"].tolist() == [0.9] * 4


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


def test_the_lens_views_take_what_the_lens_gives() -> None:
    model = variant("llama")
    ids = torch.randint(VOCAB, (3, CONTEXT), generator=torch.Generator().manual_seed(1))
    lens = logit_lens(model, ids)
    drawn(lens_figure(lens[:, 1], ids[1], PLAIN))
    assert len(lens_table(lens[:, 1], ids[1], PLAIN)) == CONTEXT
    with pytest.raises(ValueError, match=r"lens \(3, 3, 11, 13\) and ids \(3, 11\): expected \(layers \+ 1"):
        lens_table(lens, ids, PLAIN)
    with pytest.raises(ValueError, match="seq at least 2"):
        lens_figure(lens[:, 1, :1], ids[1, :1], PLAIN)
    assert len(lens_table(lens[:, 1, :1], ids[1, :1], PLAIN)) == 1


# Losses


def test_losses_stand_beside_their_tokens() -> None:
    ids = torch.tensor(PLAIN.encode("ab \n"))
    table = losses_table(torch.tensor([math.log(4), 0.0, math.log(2)]), ids, PLAIN)
    assert table["token"].tolist() == ["b", "␣", "⏎"]
    assert table.index.tolist() == [1, 2, 3]
    assert table["probability"].tolist() == pytest.approx([0.25, 1, 0.5])


def test_the_losses_figure_colours_each_token_and_breaks_lines_where_the_text_does() -> None:
    text = "ab\ncd\n" + "e" * 90
    ids = torch.tensor(PLAIN.encode(text))
    losses = torch.linspace(0, 6, len(text) - 1)
    figure = losses_figure(losses, ids, PLAIN)
    drawn(figure)
    axes = figure.axes[0]
    assert texts(axes) == list(text.replace("\n", "⏎"))
    cells = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    assert [cell.get_xy() for cell in cells[:7]] == [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2)]
    assert cells[-1].get_xy() == (9, 3)
    assert cells[0].get_facecolor() == to_rgba("none")
    assert sum(cells[1].get_facecolor()[:3]) < sum(cells[-1].get_facecolor()[:3])
    assert figure.axes[1].get_ylabel() == "loss (nats)"
    # Text is told from its ground everywhere.
    for cell, label in zip(cells[1:], axes.texts[1:], strict=True):
        ground, ink = (sum(to_rgba(each)[:3]) for each in (cell.get_facecolor(), label.get_color()))
        assert abs(ground - ink) > 1.0


@pytest.mark.parametrize("losses", [torch.ones(4), torch.ones(2), torch.ones(1, 3)])
def test_losses_of_another_text_are_refused(losses: Tensor) -> None:
    ids = torch.tensor(PLAIN.encode("abcd"))
    for view in (losses_table, losses_figure):
        with pytest.raises(ValueError, match=r"expected \(seq - 1,\) and \(seq,\) of one text"):
            view(losses, ids, PLAIN)


def test_a_text_without_surprise_can_be_drawn() -> None:
    drawn(losses_figure(torch.zeros(2), torch.tensor(PLAIN.encode("abc")), PLAIN))


# Embeddings


def test_tokens_stand_at_their_points_and_titles_say_how_much_is_seen() -> None:
    tables = [torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    mapped = embedding_map(*tables)
    figure = embedding_figure(mapped, ["a", " b", "\n", "$x$", "<i>"], ["before", "after"])
    drawn(figure)
    assert len(figure.axes) == 2
    for axes, points, shares, title in zip(
        figure.axes, mapped.points, mapped.shares, ["before", "after"], strict=True
    ):
        assert texts(axes) == ["a", "␣b", "⏎", r"\$x\$", "<i>"]
        assert [text.xy for text in axes.texts] == [tuple(point) for point in points.tolist()]
        assert axes.get_title() == f"{title}: {float(shares.sum()):.0%} of the variance"
        assert axes.get_xlabel() == f"first axis ({float(shares[0]):.0%})"


def test_labels_and_titles_that_are_missing_are_refused() -> None:
    mapped = embedding_map(torch.randn(5, 4, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match=r"4 labels and 1 titles for maps of \[5\] tokens"):
        embedding_figure(mapped, list("abcd"), ["after"])
    with pytest.raises(ValueError, match="5 labels and 2 titles"):
        embedding_figure(mapped, list("abcde"), ["before", "after"])


# Foreign text


def test_foreign_text_is_text_everywhere() -> None:
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
    losses = losses_figure(torch.ones(len(ids) - 1), ids, STRANGE)
    drawn(losses)
    assert texts(losses.axes[0]) == shown
    mapped = embedding_map(torch.randn(len(ids), 4, generator=torch.Generator().manual_seed(0)))
    embeddings = embedding_figure(mapped, list(HOSTILE), ["<b>all</b>"])
    drawn(embeddings)
    assert texts(embeddings.axes[0]) == shown

    in_table = [*"a<b>$x_1$", "U+202E", "א", "U+200B", "🙂", "中", "⏎"]  # browsers have more fonts
    table = lens_table(lens, ids, STRANGE)
    assert table["text", "read"].tolist() == in_table
    assert losses_table(torch.ones(len(ids) - 1), ids, STRANGE)["token"].tolist() == in_table[1:]
    page = pd.DataFrame(table)._repr_html_()  # type: ignore[operator]
    assert "<td>&lt;</td>" in page
    assert "\u202e" not in page
