"""Weights from elsewhere into our GPT, and ours into the layouts that others read."""

from labkit.weights.gpt2 import load_gpt2, save_gpt2
from labkit.weights.llama import load_llama, save_llama
from labkit.weights.load import PRETRAINED, load_model, load_pretrained
from labkit.weights.mapping import LoadedModel, assign

__all__ = [
    "PRETRAINED",
    "LoadedModel",
    "assign",
    "load_gpt2",
    "load_llama",
    "load_model",
    "load_pretrained",
    "save_gpt2",
    "save_llama",
]
