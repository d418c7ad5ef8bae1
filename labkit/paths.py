"""Where the project reads and writes."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """The checkout that this package runs from, else the current folder."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def output_dir() -> Path:
    """Where runs, figures, log and journal go: the folder in LABKIT_OUT, else the project's root."""
    chosen = os.environ.get("LABKIT_OUT")
    return Path(chosen).expanduser().resolve() if chosen else project_root()
