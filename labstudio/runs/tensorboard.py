"""A run in TensorBoard while it trains: a callback of `fit`."""

from __future__ import annotations

import textwrap
import weakref
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.training import End, Event

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SCALARS = ("loss", "val_loss", "perplexity", "learning_rate", "grad_norm", "tokens")


class TensorBoardExport:
    """Writes events into a folder that `tensorboard --logdir` shows: `fit(trainer, callbacks=[...])`.

    Scalars over steps: loss, val_loss, perplexity, learning_rate, grad_norm, tokens; samples as text.
    A run that is resumed into the same folder replaces what it wrote there after its first event.
    Raises ImportError, which says what to install, where the package tensorboard is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                f"TensorBoardExport: {error}. Install the package: pip install tensorboard"
            ) from error
        self._open = partial(SummaryWriter, str(folder))
        self._writer: SummaryWriter | None = None

    def __call__(self, event: Event) -> None:
        row = asdict(event)
        if self._writer is None:
            self._writer = self._open(purge_step=row["step"])
            weakref.finalize(self, self._writer.close)  # an interrupted training keeps its last rows
        for name in SCALARS:
            if name in row:
                self._writer.add_scalar(name, row[name], row["step"])
        if "text" in row:  # indented, so that Markdown keeps its lines
            self._writer.add_text("sample", textwrap.indent(row["text"], "    ", lambda _: True), row["step"])
        if isinstance(event, End):
            self._writer.close()
