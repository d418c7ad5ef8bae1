"""One run on the dashboard, followed as its files grow; stopped and resumed where that can be done."""

from __future__ import annotations

from typing import Any

from labkit.training import Run
from labstudio.dashboard.jobs import Job
from labstudio.widgets.run_monitor import RunMonitor

STOP = {"do": "stop", "label": "Stop", "enabled": True}
STOPPING = {"do": "stop", "label": "Stopping …", "enabled": False}
RESUME = {"do": "resume", "label": "Resume", "enabled": True}

ELSEWHERE = "It was not started here, so it can only be stopped where it was started, with Ctrl-C."
ASKED = "It finishes its step, saves a checkpoint and ends."
SILENT = "Its process ended before the last step. What it printed is below."
NOTEBOOK = "It was started in a notebook, so its training goes on there: restore(trainer, run)."


class FollowedRun(RunMonitor):
    """A RunMonitor whose buttons are for another process."""

    def follow(self, run: Run, job: Job | None, resumable: bool) -> None:
        """Show what the run's folder holds by now.  job: the last process that a dashboard started for it."""
        with self._turn, self.hold_sync():
            self.show_run(run)
            alive = job is not None and job.alive
            if job and self.state != "finished":
                self.state = "training" if alive else "stopped"
            self.buttons, remark = self._offer(job, alive, resumable)
            self.message = self.message or remark

    def _offer(self, job: Job | None, alive: bool, resumable: bool) -> tuple[list[dict[str, Any]], str]:
        if job and alive:
            return ([STOPPING], ASKED) if job.stopping else ([STOP], "")
        if self.state == "finished":
            return [], ""
        if self.state == "training":
            return [], ELSEWHERE
        if not resumable:
            return [], NOTEBOOK
        return [RESUME], SILENT if job and not job.stopping else ""
