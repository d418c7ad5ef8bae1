"""A model behind an HTTP API that OpenAI's clients speak (extra: labkit[serve])."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labstudio.serve.config import ServeConfig

if TYPE_CHECKING:
    from labstudio.serve.app import create_app

__all__ = ["ServeConfig", "create_app"]


def __getattr__(name: str) -> object:
    if name == "create_app":  # loaded on first use, since `labkit serve --help` needs no web framework
        from labstudio.serve.app import create_app

        return create_app
    raise AttributeError(f"module 'labstudio.serve' has no attribute {name!r}")
