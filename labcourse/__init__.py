"""What only the lessons need: checks of exercises, progress, and the log and journal."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labcourse.figures import show
    from labcourse.log import log_experiment

_HOME = {"log_experiment": "labcourse.log", "show": "labcourse.figures"}

__all__ = ["check", "journal", "log_experiment", "progress", "show"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'labcourse' has no attribute {name!r}")
