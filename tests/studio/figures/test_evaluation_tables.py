"""Evaluations as tables and in words: every number shown, foreign text as text."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from labkit.analysis.compare import Comparison, DocumentComparison, TokenGap
from labkit.analysis.evaluate import DocumentScore
from labkit.text import CharTokenizer
from labstudio.figures import (
    comparison_table,
    comparison_words,
    gaps_table,
    scores_table,
)

HOSTILE = "<b>$x$\u202e\U0001f600"
SHOWN = "<b>$x$U+202E\U0001f600"
NAMES = ("mine", "yours")


def pair(title: str, nats: float, other: float) -> DocumentComparison:
    return DocumentComparison(
        DocumentScore(title, 100, 200, nats), DocumentScore(title, 100, 200, other), better=0.75
    )


def comparison(nats: float = 90.0, error: float = 0.01, **changes: Any) -> Comparison:
    skipped = DocumentScore("gone", 0, 0, 0.0, "too short")
    documents = (pair(HOSTILE, nats, 100.0), DocumentComparison(skipped, skipped))
    gaps = (TokenGap(HOSTILE, 7, 1, f"a\n{HOSTILE}", 0.5, 4.25),)
    found = Comparison(documents, pair("total", nats, 100.0), 20, error, gaps, ())
    return replace(found, **changes)


def test_scores_have_a_row_each_and_titles_in_which_nothing_hides() -> None:
    table = scores_table([DocumentScore(HOSTILE, 10, 20, 30.0), DocumentScore("x", 0, 0, 0.0, "empty")])
    assert table["document"].tolist() == [SHOWN, "x"]
    assert table.iloc[0, 1:].tolist() == pytest.approx([10, 20, 3, math.exp(3), 30 / 20 / math.log(2)])
    assert table.iloc[1, 3:].isna().all()


def test_comparisons_have_a_row_each_and_one_for_all() -> None:
    table = comparison_table(comparison(), NAMES)
    assert table["document"].tolist() == [SHOWN, "gone", "total"]
    assert table["difference"].iloc[0] == pytest.approx((90 - 100) / 200 / math.log(2))
    assert table.iloc[0, -1] == 75
    without = comparison(total=replace(comparison().total, better=math.nan))
    assert list(comparison_table(without, NAMES)) == ["document", "bytes", *NAMES, "difference"]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (comparison(90.0), "mine predicts better than yours, by 0.0721 bits per byte (95 % interval 0.05"),
        (comparison(110.0), "yours predicts better than mine, by 0.0721 bits per byte (95 % interval 0.05"),
        (comparison(99.0), "mine needs 0.0072 bits per byte less here (95 % interval -0.01"),
        (comparison(101.0), "yours needs 0.0072 bits per byte less here (95 % interval -0.01"),
        (comparison(100.0, 0.0), "mine and yours predict this text equally well."),
        (comparison(90.0, stretches=4), "mine needs 0.0721 bits per byte less here, but 4 stretches of text"),
        (comparison(90.0, stretches=1), "mine needs 0.0721 bits per byte less here, but 1 stretch of text"),
    ],
)
def test_the_verdict_in_words(found: Comparison, words: str) -> None:
    text = comparison_words(found, NAMES)
    assert text.startswith(words)
    assert ("more than chance." in text) == (found.verdict in ("first", "other"))
    assert "Loss 0.9" in text or "Loss 1." in text
    assert "Loss" not in comparison_words(replace(found, total=replace(found.total, better=math.nan)), NAMES)


def test_tokens_are_shown_with_what_leads_to_them() -> None:
    [row] = gaps_table(comparison().ahead, CharTokenizer("a\n"), NAMES).to_numpy().tolist()
    assert row == [SHOWN, 7, f"a⏎{SHOWN}", "a", 0.5, 4.25]
