"""Tokens and their log-probabilities as JSON can hold them."""

from __future__ import annotations

LEAST_LOG_PROBABILITY = -9999.0
"""JSON has no minus infinity."""


def token_text(data: bytes) -> str:
    """A token's text; bytes that are no whole character as OpenAI writes them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def log_probability(value: float | None) -> float:
    """As JSON can hold it."""
    assert value is not None
    return max(value, LEAST_LOG_PROBABILITY)
