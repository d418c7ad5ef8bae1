"""Which of two models predicts a text better, whether by more than chance, and where."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.analysis.documents import (
    DocumentScore,
    Progress,
    byte_lengths,
    encode_document,
    sliding_losses,
    total_score,
)
from labkit.model import GPT
from labkit.text import Document, Tokenizer

STRETCHES, SHORTEST = 30, 2048
"""Observations that the text is cut into, and the bytes that each has at least. Few long ones: verse and
prose, one scene and the next differ in how hard they are, so that neighbours are no independent witnesses."""

FEWEST = 5
"""Fewer stretches than this say nothing about chance."""
CONTEXT = 24
"""Tokens before a token that are shown with it."""

_Numbers = NDArray[np.float64]
_Costs = tuple[NDArray[np.int64], _Numbers]
"""Where each token ends, in bytes, and how many bits it costs."""


@dataclass(frozen=True)
class TokenGap:
    """A token that two models predict differently."""

    title: str
    """The document it stands in."""
    position: int
    """Its number in the document, from 0."""
    token: int
    before: str
    """The text that leads to it."""
    loss: float
    other_loss: float
    """Nats that it costs the first model, and the other."""


@dataclass(frozen=True)
class DocumentComparison:
    """One document, or all together, as two models predict it; both scores are of the same bytes."""

    score: DocumentScore
    other: DocumentScore
    better: float = math.nan
    """Share of the tokens that the first model predicts better; not a number with different tokenizers."""

    @property
    def difference(self) -> float:
        """Bits per byte of the first model less those of the other: below 0, the first predicts better."""
        return self.score.bits_per_byte - self.other.bits_per_byte


@dataclass(frozen=True)
class Comparison:
    """Two models on the same text."""

    documents: tuple[DocumentComparison, ...]
    """Those that could not be compared say why in `score.skipped`."""
    total: DocumentComparison
    stretches: int
    """Observations that the error is worked out from."""
    standard_error: float
    """Of total.difference, in bits per byte; not a number for fewer than two stretches."""
    ahead: tuple[TokenGap, ...]
    """Where the first model is most ahead, most first; nothing with different tokenizers."""
    behind: tuple[TokenGap, ...]
    """Where it is most behind."""

    @property
    def interval(self) -> tuple[float, float]:
        """Where the difference lies on other text of this kind, with 95 % confidence."""
        margin = _t_quantile(self.stretches - 1) * self.standard_error
        return self.total.difference - margin, self.total.difference + margin

    @property
    def verdict(self) -> str:
        """Who predicts better: "first", "other", "equal", "chance" or, of too little text, "unknown"."""
        if self.stretches < FEWEST:
            return "unknown"
        low, high = self.interval
        if low == high == 0:
            return "equal"
        return "first" if high < 0 else "other" if low > 0 else "chance"


def compare_models(
    model: GPT,
    other: GPT,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    other_tokenizer: Tokenizer | None = None,
    stride: int | None = None,
    batch_size: int = 16,
    rows: int = 10,
    progress: Progress | None = None,
) -> Comparison:
    """How much better or worse a model predicts documents than another one, and how sure that is.

    other_tokenizer: the other model's, where it has one of its own.  If it is not the same, bits per byte
    are compared, from the first byte on at which a token ends for both, and nothing is said of single tokens.
    stride, batch_size, progress: as for `sliding_losses`.  rows: tokens in `ahead` and in `behind`.

    The standard error is paired and clustered: the text is cut into about 30 stretches, short documents being
    one each, and what varies is the difference within a stretch. It says what other text of this kind would
    give, not what another seed of the training would.
    A document that a tokenizer cannot encode is named as skipped.  Raises ValueError where nothing is left to
    compare, and as `sliding_losses` does.
    Source: Miller (2024), "Adding Error Bars to Evals"; Schmeiser (1982) for the number of stretches; for
    ratios Cochran (1977), chapter 6.
    """
    theirs = other_tokenizer or tokenizer
    shared = theirs.fingerprint == tokenizer.fingerprint
    compared: list[DocumentComparison] = []
    costs: list[tuple[_Costs, _Costs, int]] = []
    ahead: list[TokenGap] = []
    behind: list[TokenGap] = []
    won = 0
    for document in documents:
        first, second = _Reading(tokenizer, document), _Reading(theirs, document)
        start = first.shared_start(second)
        if skipped := first.skipped or second.skipped or _unlike(first, second, start):
            nothing = DocumentScore(document.title, 0, 0, 0.0, skipped)
            compared.append(DocumentComparison(nothing, nothing))
            continue
        for each, reader in ((first, model), (second, other)):
            losses = sliding_losses(reader, each.ids, stride=stride, batch_size=batch_size, progress=progress)
            each.nats[1:] = losses.double().cpu().numpy()
        pair = DocumentComparison(first.score(start), second.score(start))
        if shared:
            gaps = second.nats - first.nats
            won += int((gaps > 0).sum())
            pair = replace(pair, better=float((gaps[1:] > 0).mean()))
            order = np.argsort(gaps, kind="stable")
            ahead += [first.gap(second, at) for at in order[::-1][:rows].tolist() if gaps[at] > 0]
            behind += [first.gap(second, at) for at in order[:rows].tolist() if gaps[at] < 0]
        compared.append(pair)
        costs.append((first.costs(start), second.costs(start), pair.score.n_bytes))
    total = total_score(each.score for each in compared)
    observed = _stretches(costs)
    return Comparison(
        documents=tuple(compared),
        total=DocumentComparison(
            total, total_score(each.other for each in compared), won / total.tokens if shared else math.nan
        ),
        stretches=len(observed),
        standard_error=_standard_error(observed),
        ahead=tuple(sorted(ahead, key=lambda gap: gap.loss - gap.other_loss)[:rows]),
        behind=tuple(sorted(behind, key=lambda gap: gap.other_loss - gap.loss)[:rows]),
    )


class _Reading:
    """A document as one tokenizer cuts it.  nats: of each token; the first is not predicted and costs 0."""

    def __init__(self, tokenizer: Tokenizer, document: Document) -> None:
        self.tokenizer, self.title = tokenizer, document.title
        self.ids, self.skipped = encode_document(tokenizer, document)
        self.ends = np.cumsum(byte_lengths(tokenizer, self.ids))
        """Bytes up to the end of each token."""
        self.nats = np.zeros(len(self.ids))

    def shared_start(self, other: _Reading) -> int:
        """The first byte at which both have read a token, so that what comes after can be compared."""
        return int(min(np.intersect1d(self.ends, other.ends), default=0))

    def spelled(self) -> bytes:
        return b"".join(map(self.tokenizer.token_bytes, self.ids.tolist()))

    def score(self, start: int) -> DocumentScore:
        after = self.ends > start
        n_bytes = int(self.ends[-1]) - start
        return DocumentScore(self.title, int(after.sum()), n_bytes, math.fsum(self.nats[after]))

    def costs(self, start: int) -> _Costs:
        after = self.ends > start
        return self.ends[after] - start, self.nats[after] / math.log(2)

    def gap(self, other: _Reading, at: int) -> TokenGap:
        before = self.tokenizer.decode(self.ids[max(0, at - CONTEXT) : at])
        return TokenGap(
            self.title, at, int(self.ids[at]), before, float(self.nats[at]), float(other.nats[at])
        )


def _unlike(first: _Reading, second: _Reading, start: int) -> str:
    """Why two ways to cut a document do not compare, if they do not."""
    if start >= first.ends[-1]:
        return "too short: the tokenizers agree on no place inside it where a token ends"
    return (
        "" if first.spelled() == second.spelled() else "one of the tokenizers does not keep all of this text"
    )


def _stretches(documents: list[tuple[_Costs, _Costs, int]]) -> _Numbers:
    """Bits of difference and bytes of each stretch, (stretches, 2); no stretch reaches over two documents.

    documents: what each costs the first model and the other, and its length in bytes.
    """
    size = max(SHORTEST, sum(n_bytes for *_, n_bytes in documents) / STRETCHES)
    rows = [np.empty((0, 2))]
    for first, other, n_bytes in documents:
        parts = max(1, round(n_bytes / size))
        mine, theirs = (
            np.bincount((ends - 1) * parts // n_bytes, weights=bits, minlength=parts)
            for ends, bits in (first, other)
        )
        edges = -(-np.arange(parts + 1) * n_bytes // parts)
        rows.append(np.stack([mine - theirs, np.diff(edges)], axis=1))
    return np.concatenate(rows)


def _standard_error(stretches: _Numbers) -> float:
    """Of the sum of the first column over the sum of the second."""
    count, (bits, sizes) = len(stretches), stretches.T
    if count < 2:
        return math.nan
    residuals = bits - bits.sum() / sizes.sum() * sizes
    return float(np.sqrt(count / (count - 1) * (residuals**2).sum()) / sizes.sum())


def _t_quantile(freedom: int) -> float:
    """The 97.5 % point of Student's t.  Source: Abramowitz & Stegun (1964), 26.7.5."""
    if freedom < 1:
        return math.nan
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
