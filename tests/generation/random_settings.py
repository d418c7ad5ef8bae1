"""Random logits, texts and settings for the tests of filters and draws."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from labkit import SampleConfig

BATCH, VOCAB = 3, 17
DTYPES = [torch.float32, torch.float64]


def random_logits(seed: int, *, ties: bool, dtype: torch.dtype = torch.float64, rows: int = BATCH) -> Tensor:
    """With ties: whole numbers, 17 tokens on about ten values."""
    logits = 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (logits.round() if ties else logits).to(dtype)


def random_text(seed: int, rows: int = BATCH) -> tuple[Tensor, Tensor]:
    """(rows, 5) ids, some of them twice, and the same as (rows, vocab) marks."""
    ids = torch.randint(VOCAB, (rows, 5), generator=torch.Generator().manual_seed(seed))
    return ids, torch.zeros(rows, VOCAB, dtype=torch.bool).scatter(1, ids, True)


configs = st.builds(
    SampleConfig,
    temperature=st.just(0.0) | st.floats(0.05, 5),
    top_k=st.none() | st.integers(1, 7),
    top_p=st.none() | st.floats(0.01, 1),
    min_p=st.none() | st.floats(0, 1),
    repetition_penalty=st.just(1.0) | st.floats(0.3, 3),
)
tables = st.tuples(st.integers(1, 4), st.integers(7, 12), st.booleans(), st.integers(0, 10**6))


def drawn_table(table: tuple[int, int, bool, int]) -> tuple[Tensor, Tensor]:
    """(rows, vocab) logits and which tokens are seen."""
    rows, vocab, ties, seed = table
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    seen = torch.rand(rows, vocab, generator=generator) < 0.3
    return (logits.round() if ties else logits), seen
