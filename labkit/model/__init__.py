"""The transformer, from positions to the whole GPT."""

from labkit.model.cache import KVCache
from labkit.model.gpt import GPT, evaluating
from labkit.model.layers import (
    MLP,
    Block,
    CausalSelfAttention,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
)

__all__ = [
    "GPT",
    "MLP",
    "Block",
    "CausalSelfAttention",
    "KVCache",
    "LearnedPositions",
    "RotaryPositions",
    "SinusoidalPositions",
    "evaluating",
]
