"""Which of two models predicts a text better, whether by more than chance, and where."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from labkit.analysis.evaluate import DocumentLosses, DocumentScore, Progress, total_score
from labkit.model import GPT
from labkit.text import Document, Tokenizer

STRETCHES, MIN_BYTES = 30, 2048
"""Into how many stretches the text is split, each an observation, and the fewest bytes of one. Few long ones:
verse and prose, one scene and the next differ in how hard they are, so neighbours are not independent."""

MIN_STRETCHES = 5
"""With fewer stretches, nothing can be said about chance."""
TOKENS_SHOWN, TOKENS_BEFORE = 10, 24
"""Tokens in `ahead` and in `behind`, and how many before each are shown with it."""

_Floats = NDArray[np.float64]
_Costs = tuple[NDArray[np.int64], _Floats]
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
    """Observations behind the standard error."""
    standard_error: float
    """Of total.difference, in bits per byte; not a number for fewer than two stretches."""
    ahead: tuple[TokenGap, ...]
    """Where the first model is most ahead, most first; nothing with different tokenizers."""
    behind: tuple[TokenGap, ...]
    """Where it is most behind."""

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the difference on other text of this kind."""
        margin = _t_quantile(self.stretches - 1) * self.standard_error
        return self.total.difference - margin, self.total.difference + margin

    @property
    def verdict(self) -> str:
        """Who predicts better: "first", "other", "equal", "chance" or, of too little text, "unknown"."""
        if self.stretches < MIN_STRETCHES:
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
    progress: Progress | None = None,
) -> Comparison:
    """How much better or worse a model predicts documents than another one, and how sure that is.

    other_tokenizer: the other model's, where it has one of its own.  If it is not the same, bits per byte
    are compared, from the first byte on at which a token ends for both, and nothing is said of single tokens.
    stride, progress: as for `sliding_losses`.

    The standard error is paired and clustered: the text is split into about 30 stretches, short documents
    being one each, and what varies is the difference within a stretch. It says what other text of this kind
    would give, not what another seed of the training would.
    A document that a tokenizer cannot encode is named as skipped.  Raises ValueError where nothing is left to
    compare, and as `sliding_losses` does.
    Source: Miller (2024), "Adding Error Bars to Evals"; Schmeiser (1982) for the number of stretches; for
    ratios Cochran (1977), chapter 6.
    """
    other_tokenizer = other_tokenizer or tokenizer
    shared = other_tokenizer.fingerprint == tokenizer.fingerprint
    compared: list[DocumentComparison] = []
    costs: list[tuple[_Costs, _Costs, int]] = []
    ahead: list[TokenGap] = []
    behind: list[TokenGap] = []
    won = 0
    for document in documents:
        first, second = DocumentLosses(tokenizer, document), DocumentLosses(other_tokenizer, document)
        start, skipped = _common_start(first, second)
        if skipped:
            nothing = DocumentScore(document.title, 0, 0, 0.0, skipped)
            compared.append(DocumentComparison(nothing, nothing))
            continue
        first.measure(model, stride, progress)
        second.measure(other, stride, progress)
        pair = DocumentComparison(first.score(start), second.score(start))
        if shared:
            gains = second.nats - first.nats  # above 0 where the first model predicts better
            won += int((gains > 0).sum())
            pair = replace(pair, better=float((gains[1:] > 0).mean()))
            order = np.argsort(gains, kind="stable")
            most, least = order[::-1][:TOKENS_SHOWN].tolist(), order[:TOKENS_SHOWN].tolist()
            ahead += [_gap(first, second, at) for at in most if gains[at] > 0]
            behind += [_gap(first, second, at) for at in least if gains[at] < 0]
        compared.append(pair)
        costs.append((_costs(first, start), _costs(second, start), pair.score.n_bytes))
    total = total_score(each.score for each in compared)
    better = won / total.tokens if shared else math.nan
    stretches = _stretches(costs)
    return Comparison(
        documents=tuple(compared),
        total=DocumentComparison(total, total_score(each.other for each in compared), better),
        stretches=len(stretches),
        standard_error=_standard_error(stretches),
        ahead=tuple(sorted(ahead, key=lambda gap: gap.loss - gap.other_loss)[:TOKENS_SHOWN]),
        behind=tuple(sorted(behind, key=lambda gap: gap.other_loss - gap.loss)[:TOKENS_SHOWN]),
    )


def _common_start(first: DocumentLosses, second: DocumentLosses) -> tuple[int, str]:
    """The first byte at which a token ends for both, and why the two do not compare where that is so."""
    start = int(min(np.intersect1d(first.ends, second.ends), default=0))
    if skipped := first.skipped or second.skipped:
        return start, skipped
    if start >= first.ends[-1]:
        return start, "too short: the tokenizers agree on no place inside it where a token ends"
    spelled = [b"".join(map(each.tokenizer.token_bytes, each.ids.tolist())) for each in (first, second)]
    return start, "" if spelled[0] == spelled[1] else "one of the tokenizers does not keep all of this text"


def _costs(losses: DocumentLosses, start: int) -> _Costs:
    after = losses.ends > start
    return losses.ends[after] - start, losses.nats[after] / math.log(2)


def _gap(first: DocumentLosses, other: DocumentLosses, at: int) -> TokenGap:
    before = first.tokenizer.decode(first.ids[max(0, at - TOKENS_BEFORE) : at])
    return TokenGap(first.title, at, int(first.ids[at]), before, float(first.nats[at]), float(other.nats[at]))


def _stretches(documents: list[tuple[_Costs, _Costs, int]]) -> _Floats:
    """Bits of difference and bytes of each stretch, (stretches, 2); no stretch spans two documents.

    documents: what each costs the first model and the other, and its length in bytes.
    """
    size = max(MIN_BYTES, sum(n_bytes for *_, n_bytes in documents) / STRETCHES)
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


def _standard_error(stretches: _Floats) -> float:
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
