"""The transformer, from positions to the whole GPT."""

from labkit.model.attention import CausalSelfAttention
from labkit.model.block import MLP, Block
from labkit.model.cache import KVCache
from labkit.model.gpt import GPT, evaluating
from labkit.model.positions import LearnedPositions, RotaryPositions, SinusoidalPositions

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
