"""Weights from elsewhere into our GPT, and ours into the layouts that others read.

Names load on first use, so that training needs no reader of other people's files.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.weights.gpt2 import load_gpt2, save_gpt2
    from labkit.weights.llama import load_llama, save_llama
    from labkit.weights.mapping import LoadedModel, assign
    from labkit.weights.pretrained import PRETRAINED, load_pretrained
    from labkit.weights.sources import load_model

_HOME = {
    "gpt2": ("load_gpt2", "save_gpt2"),
    "llama": ("load_llama", "save_llama"),
    "mapping": ("LoadedModel", "assign"),
    "pretrained": ("PRETRAINED", "load_pretrained"),
    "sources": ("load_model",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

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


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"labkit.weights.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'labkit.weights' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
