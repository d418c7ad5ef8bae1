"""How well a model predicts text it has not seen, and how varied the text it writes is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labkit.model import GPT, evaluating
from labkit.model.loss import CHUNK, cross_entropy
from labkit.text import Document, Tokenizer
from labkit.text.batches import Ids, id_tensor

Progress = Callable[[int], object]


def perplexity(loss: float) -> float:
    """exp(loss): the number of equally likely tokens that would be as hard to guess.

    loss: mean cross-entropy in nats per token.  Perplexities of different tokenizers do not compare.
    Source: Jelinek et al. (1977).
    """
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(loss: float, tokens: int, n_bytes: int) -> float:
    """Bits needed per byte of text; compares models with different tokenizers.

    loss: mean nats per token over `tokens` tokens that spell `n_bytes` bytes of UTF-8.
    Raises ValueError for counts below 1.
    """
    if tokens < 1 or n_bytes < 1:
        raise ValueError(f"bits_per_byte: tokens={tokens} and n_bytes={n_bytes} must be at least 1.")
    return loss * tokens / n_bytes / math.log(2)


def entropy(probabilities: Tensor) -> Tensor:
    """Shannon entropy in nats over the last axis: 0 for a certain outcome, ln(n) for n equal ones."""
    return torch.special.entr(probabilities).sum(-1)


def distinct_n(items: Sequence[object], n: int) -> float:
    """Share of the n-grams of a sequence that are different from each other: 1 means no repetition.

    Raises ValueError when the sequence is shorter than n.  Source: Li et al. (2016), section 5.2.
    """
    if n < 1 or len(items) < n:
        raise ValueError(f"distinct_n: n={n} must be at least 1 and at most the {len(items)} items.")
    grams = [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]
    return len(set(grams)) / len(grams)


def evaluate_loss(model: GPT, inputs: Tensor, targets: Tensor, *, batch_size: int = 64) -> float:
    """Mean cross-entropy in nats per token; targets of -100 do not count.

    inputs, targets: (windows, seq).  Dropout is off, no generator is touched, and the model's mode is
    restored.  Raises ValueError when there is no target to predict.
    """
    if len(inputs) == 0 or not bool((targets != -100).any()):
        raise ValueError("evaluate_loss: there is no target to predict; give at least one window of text.")
    total, count = summed_loss(model, inputs, targets, batch_size=batch_size)
    return total / count


@torch.no_grad()
def summed_loss(model: GPT, inputs: Tensor, targets: Tensor, *, batch_size: int = 64) -> tuple[float, int]:
    """Summed cross-entropy in nats, and how many targets it is the sum of; else as `evaluate_loss`."""
    device = model.token_embedding.weight.device
    total, count = 0.0, 0
    with evaluating(model):
        for x, y in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
            total += model.loss(x.to(device), y.to(device), reduction="sum").item()
            count += int((y != -100).sum())
    return total, count


@torch.no_grad()
def token_losses(model: GPT, ids: Tensor, last: int | None = None) -> Tensor:
    """Nats of each token after the first, given those before it.

    ids: (batch, seq), seq from 2 to context_length + 1.  Returns (batch, seq - 1), of which column t is about
    ids[:, t + 1]; on the model's device.  last: of so many tokens at the end only.  Dropout is off, no
    generator is touched, the model's mode is restored, and only some logits are held at once.
    Raises ValueError for ids that the model cannot read, and for sequences of one token.
    """
    if ids.ndim == 2 and ids.shape[1] < 2:
        raise ValueError(
            f"token_losses: ids have shape {tuple(ids.shape)}; the first token is not predicted, so "
            "sequences of two tokens at least are needed."
        )
    inputs, targets = ids[..., :-1], ids[..., 1:]
    model.check_ids(inputs)
    model.check_ids(targets)
    device, last = model.token_embedding.weight.device, last or targets.shape[1]
    inputs, targets = inputs.to(device), targets[:, -last:].to(device)
    with evaluating(model):
        if model.forward_is_changed:
            logits = model(inputs)[:, -last:].flatten(0, 1)  # (batch * last, vocab)
            return cross_entropy(logits, targets.flatten(), reduction="none").view_as(targets)
        hidden = model.hidden(inputs)[:, -last:].flatten(0, 1)  # (batch * last, d_model)
        rows = max(1, CHUNK.get(device.type, CHUNK["cpu"]) // model.config.vocab_size)
        parts = zip(hidden.split(rows), targets.flatten().split(rows), strict=True)
        losses = [cross_entropy(model.head(part), wanted, reduction="none") for part, wanted in parts]
    return torch.cat(losses).view_as(targets)


def sliding_losses(
    model: GPT, ids: Ids, *, stride: int | None = None, batch_size: int = 16, progress: Progress | None = None
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
    tokens = id_tensor(ids, "sliding_losses").long()
    if len(tokens) < 2:
        raise ValueError(f"sliding_losses: {len(tokens)} tokens are too few; the first is not predicted.")
    windows = [(tokens[None, : context + 1], min(len(tokens) - 1, context))]
    if len(tokens) > context + stride:
        later = tokens[stride:].unfold(0, context + 1, stride)  # (windows, context_length + 1)
        windows += [(batch, stride) for batch in later.split(batch_size)]
    if len(tokens) > context + 1 and (rest := (len(tokens) - context - 1) % stride):
        windows.append((tokens[None, -context - 1 :], rest))
    losses = []
    for batch, last in windows:
        losses.append(token_losses(model, batch, last).flatten())
        if progress:
            progress(len(losses[-1]))
    return torch.cat(losses)


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


class DocumentLosses:
    """A document as a tokenizer splits it, and what each token costs a model."""

    def __init__(self, tokenizer: Tokenizer, document: Document) -> None:
        self.tokenizer, self.title = tokenizer, document.title
        self.ids, self.skipped = encode_document(tokenizer, document)  # (tokens,)
        unique, which = np.unique(self.ids, return_inverse=True)
        lengths = [len(tokenizer.token_bytes(token)) for token in unique.tolist()]
        self.ends = np.cumsum(np.array(lengths, dtype=np.int64)[which])
        """The byte at which each token ends, (tokens,)."""
        self.nats = np.zeros(len(self.ids))
        """The loss of each token once measured, (tokens,); the first is not predicted and costs 0."""

    def measure(self, model: GPT, stride: int | None, progress: Progress | None) -> None:
        """Fill in `nats`; arguments, and what is raised, as for `sliding_losses`."""
        losses = sliding_losses(model, self.ids, stride=stride, progress=progress)
        self.nats[1:] = losses.double().cpu().numpy()

    def score(self, start: int) -> DocumentScore:
        """Of the tokens after the one that ends at byte `start`."""
        first = int(np.searchsorted(self.ends, start)) + 1
        n_bytes = int(self.ends[-1]) - start
        return DocumentScore(self.title, len(self.ids) - first, n_bytes, math.fsum(self.nats[first:]))


def encode_document(tokenizer: Tokenizer, document: Document) -> tuple[np.ndarray, str]:
    """The ids of a document, and why it cannot be measured where that is so."""
    try:
        ids = tokenizer.encode_batch([document.text])[0]
    except ValueError as error:
        return np.empty(0, dtype=np.int64), str(error).split(". ")[0]  # what failed, without the advice
    short = f"too short: {len(ids)} of the two tokens that are needed, since the first is not predicted"
    return ids, short if len(ids) < 2 else ""


def evaluate_documents(
    model: GPT,
    tokenizer: Tokenizer,
    documents: Iterable[Document],
    *,
    stride: int | None = None,
    progress: Progress | None = None,
) -> Iterator[DocumentScore]:
    """The score of each document, as soon as it is measured; `total_score` sums them up.

    Every token but the first of a document is predicted once; stride, progress and what is raised: as for
    `sliding_losses`.  Bytes are those that the predicted tokens spell, so that bits per byte leave the first
    token out on both sides.
    A document that the tokenizer cannot encode, or of fewer than two tokens, gets a score that says so.
    """
    for document in documents:
        losses = DocumentLosses(tokenizer, document)
        if losses.skipped:
            yield DocumentScore(document.title, 0, 0, 0.0, losses.skipped)
            continue
        losses.measure(model, stride, progress)
        yield losses.score(start=int(losses.ends[0]))


def total_score(scores: Iterable[DocumentScore]) -> DocumentScore:
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
    return DocumentScore("total", tokens, n_bytes, math.fsum(score.nats for score in scores))
