"""The browser sides of the widgets: plain JavaScript and CSS, no build step, nothing from the network."""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).parent / "static"


def javascript(*names: str) -> str:
    """A widget's module: static/shared.js, then its own files.  Names at their top level must differ."""
    return _joined("shared.js", *(f"{name}.js" for name in names))


def css(name: str) -> str:
    """A widget's style sheet: static/shared.css, then its own file."""
    return _joined("shared.css", f"{name}.css")


def _joined(*files: str) -> str:
    return "\n".join((STATIC / file).read_text(encoding="utf-8") for file in files)
