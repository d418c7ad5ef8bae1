"""How well a model predicts whole documents, however long: windows that slide over them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labkit.analysis.evaluate import _last_losses, bits_per_byte, perplexity
from labkit.model import GPT
from labkit.text import Document, Tokenizer
from labkit.text.batches import Ids, _id_tensor

Progress = Callable[[int], object]


@dataclass(frozen=True)
class DocumentScore:
    """How well one document is predicted, or several together."""

    title: str
    tokens: int
    """Predicted tokens: all but the first, which nothing comes before."""
    n_bytes: int
    """What the predicted tokens spell, in bytes of UTF-8."""
    nats: float
    """Summed over the predicted tokens."""
    skipped: str = ""
    """Why nothing was measured, where tokens is 0."""

    @property
    def loss(self) -> float:
        """Nats per token; not a number where nothing was measured."""
        return self.nats / self.tokens if self.tokens else math.nan

    @property
    def perplexity(self) -> float:
        """exp(loss); compares models that share a tokenizer."""
        return perplexity(self.loss) if self.tokens else math.nan

    @property
    def bits_per_byte(self) -> float:
        """Compares models with different tokenizers."""
        return bits_per_byte(self.loss, self.tokens, self.n_bytes) if self.tokens else math.nan


def evaluate_documents(
    model: GPT,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    stride: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Iterator[DocumentScore]:
    """The score of each document, as soon as it is measured; `total_score` sums them up.

    Every token but the first of a document is predicted once, see `sliding_losses` for how.  Bytes are those
    that the predicted tokens spell, so that bits per byte leave the first token out on both sides.
    A document that the tokenizer cannot encode, or of fewer than two tokens, gets a score that says so.
    Raises ValueError for a stride outside 1 to the context length, and for ids that the model does not know.
    """
    for document in documents:
        ids, skipped = encode_document(tokenizer, document)
        if skipped:
            yield DocumentScore(document.title, 0, 0, 0.0, skipped)
            continue
        losses = sliding_losses(model, ids, stride=stride, batch_size=batch_size, progress=progress)
        n_bytes = int(byte_lengths(tokenizer, ids)[1:].sum())
        yield DocumentScore(document.title, len(losses), n_bytes, math.fsum(losses.tolist()))


def total_score(scores: Iterable[DocumentScore], title: str = "total") -> DocumentScore:
    """All documents together: loss is the mean over tokens, bits per byte that over bytes.

    Raises ValueError where nothing was measured, saying why.
    """
    scores = list(scores)
    if not any(score.tokens for score in scores):
        reasons = "; ".join(f"{score.title}: {score.skipped}" for score in scores) or "there is no document"
        raise ValueError(
            f"No text could be measured ({reasons}). Give one of two tokens or more that the tokenizer "
            "can encode."
        )
    tokens, n_bytes = sum(score.tokens for score in scores), sum(score.n_bytes for score in scores)
    return DocumentScore(title, tokens, n_bytes, math.fsum(score.nats for score in scores))


def sliding_losses(
    model: GPT,
    ids: Ids,
    *,
    stride: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Tensor:
    """Nats of each token after the first of a text of any length, (tokens - 1,), each counted once.

    Windows of context_length tokens advance by `stride` (half of them when not given); of every window but
    the first only the last `stride` targets count, and the last window ends where the text does. So each
    token that far from the beginning is predicted from at least context_length - stride + 1 tokens: a small
    stride is closer to what the model can do, a large one is quicker.
    progress: called with the number of tokens just measured.
    Raises ValueError for a stride outside 1 to context_length, and for fewer than two tokens.
    Source: the documentation of Hugging Face transformers, "Perplexity of fixed-length models".
    """
    context = model.config.context_length
    stride = max(1, context // 2) if stride is None else stride
    if not 1 <= stride <= context or batch_size < 1:
        raise ValueError(
            f"sliding_losses: stride={stride} must be from 1 to the model's context_length={context}, and "
            f"batch_size={batch_size} at least 1."
        )
    tokens = _id_tensor(ids, "sliding_losses").long()
    if len(tokens) < 2:
        raise ValueError(f"sliding_losses: {len(tokens)} tokens are too few; the first is not predicted.")
    passes = [(tokens[None, : context + 1], min(len(tokens) - 1, context))]
    if len(tokens) > context + stride:
        later = tokens[stride:].unfold(0, context + 1, stride)  # (windows, context_length + 1)
        passes += [(some, stride) for some in later.split(batch_size)]
    if len(tokens) > context + 1 and (rest := (len(tokens) - context - 1) % stride):
        passes.append((tokens[None, -context - 1 :], rest))
    losses = []
    for rows, count in passes:
        losses.append(_last_losses(model, rows, count).flatten())
        if progress:
            progress(len(losses[-1]))
    return torch.cat(losses)


def encode_document(tokenizer: Tokenizer, document: Document) -> tuple[np.ndarray, str]:
    """The ids of a document, and why it cannot be measured where that is so."""
    try:
        ids = tokenizer.encode_batch([document.text])[0]
    except ValueError as error:
        return np.empty(0, dtype=np.int64), str(error).split(". ")[0]  # the rest is for who builds tokenizers
    short = f"too short: {len(ids)} of the two tokens that are needed, since the first is not predicted"
    return ids, short if len(ids) < 2 else ""


def byte_lengths(tokenizer: Tokenizer, ids: np.ndarray) -> np.ndarray:
    """How many bytes each token spells."""
    kinds, which = np.unique(ids, return_inverse=True)
    return np.array([len(tokenizer.token_bytes(kind)) for kind in kinds.tolist()])[which]
