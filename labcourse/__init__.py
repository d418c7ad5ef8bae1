"""What only the lessons need: checks of exercises, progress, and the log and journal."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labcourse.figures import show

__all__ = ["check", "journal", "progress", "show"]


def __getattr__(name: str) -> object:
    if name == "show":
        return importlib.import_module("labcourse.figures").show
    raise AttributeError(f"module 'labcourse' has no attribute {name!r}")
