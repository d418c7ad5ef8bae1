"""A run in TensorBoard: while it trains, as a callback of `fit`, or afterwards from its folder."""

from __future__ import annotations

import textwrap
import weakref
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.training import End, Event, Run

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
        self.write(asdict(event))
        if isinstance(event, End):
            self.close()

    def write(self, row: dict[str, Any]) -> None:
        """Write the scalars and the text of one event, given as its fields."""
        if self._writer is None:
            self._writer = self._open(purge_step=row["step"])
            weakref.finalize(self, self._writer.close)  # an interrupted training keeps its last rows
        for name in SCALARS:
            if name in row:
                self._writer.add_scalar(name, row[name], row["step"])
        if "text" in row:  # indented, so that Markdown keeps its lines
            self._writer.add_text("sample", textwrap.indent(row["text"], "    ", lambda _: True), row["step"])

    def close(self) -> None:
        """Flush what is pending to disk."""
        if self._writer is not None:
            self._writer.close()


def export_run(run: Run, folder: str | Path) -> None:
    """Replay the metrics and samples of a recorded run into a TensorBoard folder."""
    export = TensorBoardExport(folder)
    for row in run.rows("metrics") + run.rows("samples"):
        export.write(row)
    export.close()
