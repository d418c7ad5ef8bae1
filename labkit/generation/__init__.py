"""Writing text with a model."""

from labkit.generation.filters import (
    apply_temperature,
    next_token_probabilities,
    top_k_filter,
    top_p_filter,
)
from labkit.generation.generate import generate, generate_batch, stream

__all__ = [
    "apply_temperature",
    "generate",
    "generate_batch",
    "next_token_probabilities",
    "stream",
    "top_k_filter",
    "top_p_filter",
]
