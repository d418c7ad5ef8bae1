"""One training run on the page: progress, numbers, curves, samples. Its view is static/run_monitor.js."""

from __future__ import annotations

from typing import Any

import traitlets

from labkit.training import Run
from labstudio.runs.history import RunHistory
from labstudio.visible import unhidden
from labstudio.widgets.base import Widget, css, javascript, shown


class RunMonitor(Widget):
    """Draws one run: `show_run(run)` shows what its folder holds now; call it again to follow a live one.

    It may be called from any thread.  `message` says what cannot be read.
    """

    _esm = javascript("charts", "run_monitor")
    _css = css("run_monitor")

    name, state = shown(traitlets.Unicode), shown(traitlets.Unicode)
    steps_done, total_steps = shown(traitlets.Int), shown(traitlets.Int)
    latest, curves = shown(traitlets.Dict), shown(traitlets.Dict)
    evaluations, samples = shown(traitlets.List), shown(traitlets.List)
    message, error = shown(traitlets.Unicode), shown(traitlets.Unicode)
    buttons = shown(traitlets.List)
    """What the view offers: each has `do` (sent as a message when it is pressed), `label` and `enabled`."""
    rate = traitlets.Any(None).tag(sync=True)
    """The learning rate's factor; None where it cannot be changed."""

    def __init__(self, **state: Any) -> None:
        self._history: RunHistory | None = None
        super().__init__(**state)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name})"

    def show_run(self, run: Run) -> None:
        """Show what the run's folder holds now; of a run that is shown already only new rows are read."""
        with self._lock, self.hold_sync():
            history = self._read(run)
            self.state, self.message = history.state(), unhidden(history.problem)

    def _read(self, run: Run) -> RunHistory:
        if self._history is None or self._history.run != run:
            self._history = RunHistory(run)
        history = self._history
        history.read()
        self.name, self.total_steps, self.steps_done = unhidden(run.id), history.total_steps, history.step
        self.curves, self.evaluations = history.curves(), history.evaluations()
        self.latest, self.samples = history.latest(), history.samples()
        return history

    def _forget(self) -> None:
        """Show nothing any more."""
        self._history, self.steps_done = None, 0
        self.curves, self.latest, self.evaluations, self.samples = {}, {}, [], []
