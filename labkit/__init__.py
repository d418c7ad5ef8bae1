"""The library under the course: text to ids, a model, its training, and the text that it writes.

Names load on first use, so that `labkit --help` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from labkit.config import GPTConfig, SampleConfig, TrainConfig

if TYPE_CHECKING:
    from labkit.generation import generate
    from labkit.model import GPT
    from labkit.training import Trainer

__version__ = "0.1.0"

_HOME = {"GPT": "labkit.model", "Trainer": "labkit.training", "generate": "labkit.generation"}

__all__ = ["GPT", "GPTConfig", "SampleConfig", "TrainConfig", "Trainer", "generate"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'labkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
