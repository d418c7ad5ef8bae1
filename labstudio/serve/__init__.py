"""A model behind an HTTP API that OpenAI's clients speak (extra: labkit[serve]).

Names load on first use, so that `labkit serve --help` needs neither torch nor a web framework.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labstudio.serve.app import create_app
    from labstudio.serve.config import ServeConfig

_MODULE_OF = {"create_app": "app", "ServeConfig": "config"}

__all__ = ["ServeConfig", "create_app"]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"labstudio.serve.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'labstudio.serve' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
