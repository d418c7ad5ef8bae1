"""What a command writes with: a run, the shipped model, or weights from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.model import GPT
    from labkit.text import Tokenizer


def open_model(source: str) -> tuple[GPT, Tokenizer | None]:
    """The model that a run's name or folder, or anything `load_model` knows, stands for.

    Raises ValueError that lists the runs where it is none of these.
    """
    from labkit.training import Run, runs_dir
    from labkit.weights import load_model
    from labkit.weights.hub import PUBLISHED

    if any((path / "checkpoints").is_dir() for path in (Path(source), runs_dir() / source)):
        return Run.open(source).load()
    if Path(source).exists() or "/" in source or source in {"shipped", "smollm2", *PUBLISHED}:
        return load_model(source)[:2]
    return Run.open(source).load()
