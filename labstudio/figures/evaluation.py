"""How well models predict documents, as tables and in words."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd

from labkit.analysis.compare import Comparison, TokenGap
from labkit.analysis.evaluate import DocumentScore
from labkit.text import Tokenizer
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
