"""What people do with runs and models: command line, tables, sweeps, widgets, dashboard, API.

Names load on first use, so that `labkit --help` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labstudio.runs import sweep
    from labstudio.widgets import AttentionExplorer, LiveRun, SamplingPlayground

_HOME = {
    "AttentionExplorer": "labstudio.widgets",
    "LiveRun": "labstudio.widgets",
    "SamplingPlayground": "labstudio.widgets",
    "sweep": "labstudio.runs",
}

__all__ = ["AttentionExplorer", "LiveRun", "SamplingPlayground", "sweep"]


def __getattr__(name: str) -> object:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'labstudio' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
