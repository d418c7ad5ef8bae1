"""What all widgets share: traits that both sides know, messages one at a time, and the browser's files.

The browser sides are plain JavaScript and CSS in static/: no build step, nothing from the network.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import anywidget
import traitlets

STATIC = Path(__file__).parent / "static"


def javascript(*names: str) -> str:
    """A widget's module: static/shared.js, then its own files.  Names at their top level must differ."""
    return _joined("shared.js", *(f"{name}.js" for name in names))


def css(name: str) -> str:
    """A widget's style sheet: static/shared.css, then its own file."""
    return _joined("shared.css", f"{name}.css")


def _joined(*files: str) -> str:
    return "\n".join((STATIC / file).read_text(encoding="utf-8") for file in files)


def shown(kind: type[traitlets.TraitType[Any, Any]]) -> Any:
    """A trait that Python sets and the browser draws."""
    return kind().tag(sync=True)


class Widget(anywidget.AnyWidget):
    """A widget whose traits threads may set: they hold `_lock`, and so do messages from the browser."""

    def __init__(self, **state: Any) -> None:
        self._lock = threading.RLock()
        super().__init__(**state)
        self.on_msg(lambda widget, content, buffers: self._handle(content))

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """What the browser sends; never while a thread sets a trait."""
        with self._lock:
            super().set_state(sync_data)

    def _handle(self, content: dict[str, Any]) -> None:
        """Do what a button of the page asks for."""
