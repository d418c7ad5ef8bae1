"""Measuring models and the text they write."""

from labkit.analysis.evaluate import bits_per_byte, distinct_n, entropy, evaluate_loss, perplexity

__all__ = ["bits_per_byte", "distinct_n", "entropy", "evaluate_loss", "perplexity"]
