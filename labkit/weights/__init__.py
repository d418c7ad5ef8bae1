"""Weights from elsewhere into our GPT."""

from labkit.weights.pretrained import PRETRAINED, load_pretrained

__all__ = ["PRETRAINED", "load_pretrained"]
