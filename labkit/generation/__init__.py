"""Writing text with a model."""

from labkit.generation.decode import generate
from labkit.generation.filters import (
    apply_repetition_penalty,
    apply_temperature,
    draw,
    min_p_filter,
    next_token_probabilities,
    next_tokens,
    top_k_filter,
    top_p_filter,
)
from labkit.generation.text import Completion, Token, complete, stream, stream_tokens

__all__ = [
    "Completion",
    "Token",
    "apply_repetition_penalty",
    "apply_temperature",
    "complete",
    "draw",
    "generate",
    "min_p_filter",
    "next_token_probabilities",
    "next_tokens",
    "stream",
    "stream_tokens",
    "top_k_filter",
    "top_p_filter",
]
