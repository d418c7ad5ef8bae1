"""Training in the background while the reader watches and steers it. Its view is static/run_monitor.js.

States of a LiveRun:
ready        nothing has begun              training, paused   a thread is at work
offered      an interrupted run was found   stopped, failed    it ended early
busy         it is being trained elsewhere  finished           it ended after the last step
"""

from __future__ import annotations

import glob
import math
import os
import re
import sys
import threading
import time
import warnings
from dataclasses import asdict
from typing import Any

from labkit.device import hand_over_cores
from labkit.io import runs_dir
from labkit.training import CheckpointError, Event, Run, Trainer, TrainingDivergedError, fit, restore
from labstudio.visible import unhidden
from labstudio.widgets.run_monitor import RunMonitor

EVERY = 0.5
"""Seconds between two drawings while it trains."""
FRONT_ENDS = ("JPY_SESSION_NAME", "VOILA_BASE_URL", "VSCODE_PID")
"""Set in kernels by Jupyter's servers, by Voila and by VS Code; not by nbclient, which nbval uses."""
_training: list[LiveRun] = []
"""Those of this process whose thread is training."""
_starting = threading.Lock()


class LiveRun(RunMonitor):
    """Trains in the background and shows it: pause, step, stop, ask for a sample, scale the learning rate.

    trainer: what trains.  name: of the run; where it is taken, name-2, name-3 … are made.  start: begin at
    once.  blocking: train to the end before this returns, as `fit` does and with the same result; where it is
    not given, the environment variable LABKIT_LIVE decides (1: live, 0: blocking), and without that whether
    there is a page with buttons (JupyterLab, Jupyter Notebook, VS Code, Voila) or not (a script, nbval,
    nbconvert, papermill).

    When the newest run of this name was interrupted, nothing is started: it is shown, and can be resumed from
    its last checkpoint or left as it is for a new run.

    The training ends with the process; closing the widget stops it as `stop` does.  It continues when
    the page is closed or the variable reassigned; then another LiveRun of the same name can stop it.
    """

    run: Run | None
    """Where it is recorded; None before it has begun."""

    def __init__(
        self, trainer: Trainer, name: str = "live", *, start: bool = True, blocking: bool | None = None
    ) -> None:
        self.trainer, self.run = trainer, None
        self._given, self._resumable, self._notes = name, True, ""
        self._condition = threading.Condition()
        self._mode, self._until, self._asked, self._drawn, self._draw_at = "on", 0, 0, 0, 0.0
        self._stop, self._ended = threading.Event(), threading.Event()
        self._raised: BaseException | None = None
        super().__init__()
        if blocking is None:
            blocking = not is_live()
        if blocking:
            self.run = Run.create(name)
            finished = fit(trainer, run=self.run)
            self._ended.set()
            self._show("finished" if finished else "stopped")
        else:
            self.look()
            if self.state == "ready" and start:
                self.resume()

    def __repr__(self) -> str:
        return f"LiveRun({self._given})"

    def look(self) -> None:
        """Check on the newest run of this name; does nothing while this one trains."""
        if self in _training:
            return
        found = newest_run(self._given)
        self.run = found if found and is_interrupted(found) else None
        self._resumable = True
        self._show("ready" if self.run is None else "busy" if is_being_written(self.run) else "offered")

    def resume(self) -> None:
        """Start, continue after a pause or a stop, or resume an interrupted run from its last checkpoint."""
        self._go("on")

    def step(self) -> None:
        """Take one step, with the evaluation, sample and checkpoint that are due after it; then pause."""
        self._go("step")

    def pause(self) -> None:
        """Train no further than the step in hand, until `resume` or `step`."""
        with self._condition:
            self._mode = "pause"

    def stop(self) -> None:
        """Save a checkpoint and end the training; `resume` continues from it, also in a new kernel.

        If another LiveRun of this process trains this run, that one ends.
        """
        for live in [each for each in _training if each is self or each.run == self.run]:
            with live._condition:
                live._stop.set()
                live._condition.notify_all()
            if live is not self and live._ended.wait(60):
                self.look()

    def sample(self) -> None:
        """Write a text between two steps.  It is recorded; the training is the same as without."""
        with self._condition:
            self._asked += 1
            self._condition.notify_all()

    def scale(self, factor: float) -> None:
        """Multiply the learning rates of the schedule by this, from the next step on."""
        usable = isinstance(factor, int | float) and not isinstance(factor, bool)
        if not usable or not math.isfinite(factor) or not 0 < factor <= 1000:
            raise ValueError(f"Learning rate times {factor!r}: choose a number above 0, up to 1000.")
        self.trainer.learning_rate_scale = float(factor)
        with self._lock, self.hold_sync():
            self.rate, self.error = float(factor), ""

    def start_anew(self) -> None:
        """Leave the interrupted run as it is and train from the start, recorded as a new run.

        Raises RuntimeError for a trainer that has taken steps.
        """
        if self.trainer.step:
            raise RuntimeError(
                f"This trainer has taken {self.trainer.step} steps. Build it again to start anew."
            )
        self._start("on", anew=True)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the training ends; False when it was stopped, or takes longer than timeout, in seconds.

        What has not begun is waited for too.  Ctrl-C (the notebook's stop button) stops the training.
        Raises what the training raised.
        """
        if self not in _training and not self._ended.is_set():
            print(f"Waiting for a button of {self!r} to be pressed.")
        hand_over_cores()
        last = math.inf if timeout is None else time.monotonic() + timeout
        try:
            while not self._ended.wait(min(0.2, max(0.0, last - time.monotonic()))):
                if time.monotonic() >= last:
                    return False
        except KeyboardInterrupt:
            if self not in _training:
                return False
            self.stop()
            self._ended.wait()
        if self._raised:
            raise self._raised
        if self.state != "finished":
            print(self.message)
        return self.state == "finished"

    def close(self) -> None:
        """Take the widget off the page and stop the training."""
        if self in _training:
            self.stop()
        super().close()

    def _go(self, mode: str) -> None:
        if self in _training:
            with self._condition:
                self._mode, self._until = mode, self.trainer.step + 1
                self._condition.notify_all()
        elif self._can_begin():
            self._start(mode)
        elif self.state != "finished":
            raise RuntimeError(self.message)

    def _can_begin(self) -> bool:
        return self.state in ("ready", "stopped") or (self.state in ("offered", "failed") and self._resumable)

    def _start(self, mode: str, *, anew: bool = False) -> None:
        """Start the thread.  Raises RuntimeError for a trainer that another LiveRun trains."""
        with _starting:
            if self in _training:
                return
            if other := next((each for each in _training if each.trainer is self.trainer), None):
                raise RuntimeError(f"This trainer is at work for {other!r}. Stop that one, or build another.")
            restoring = self.state == "offered" and not anew
            if anew or self.run is None:
                self.run = Run.create(self._given)
            self._mode, self._until, self._asked, self._raised = mode, self.trainer.step + 1, 0, None
            self._notes = ""
            self._stop.clear()
            self._ended.clear()
            _training.append(self)
        with self._lock:
            self.error = ""
        hand_over_cores()
        threading.Thread(target=self._train, args=(restoring,), name="live run", daemon=True).start()

    def _train(self, restoring: bool) -> None:
        """The thread: restore, fit, and say how it ended."""
        assert self.run is not None
        state = "failed"
        try:
            if restoring:
                state = "offered"
                self._restore(self.run)
                state = "failed"
                self._until = self.trainer.step + 1
            self._show("training")
            ended = fit(self.trainer, run=self.run, progress=False, callbacks=[self._listen], stop=self._stop)
            state = "finished" if ended else "stopped"
        except BaseException as error:
            self._raised = error
            self._resumable = self._can_go_on(error, state)
            state = "failed" if isinstance(error, CheckpointError) else state
        with _starting:
            _training.remove(self)
            self._show(state)
            self._ended.set()

    def _restore(self, run: Run) -> None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            restore(self.trainer, run)
        self._notes = "".join(f" {each.message}" for each in caught)

    def _can_go_on(self, error: BaseException, state: str) -> bool:
        """Whether Resume may help after this error, or would only repeat it."""
        if state == "offered":
            return not isinstance(error, ValueError)
        return self.trainer.intact and not isinstance(error, TrainingDivergedError)

    def _listen(self, event: Event) -> None:
        """Between two events, in the training thread: draw, write samples, and hold while it is paused."""
        self._write_samples()
        if self._holds():
            self._show("paused")
            while self._holds():
                with self._condition:
                    self._condition.wait_for(lambda: self._asked or not self._holds())
                self._write_samples()
            self._show("training")
        elif time.monotonic() >= self._draw_at:
            self._show("training")

    def _holds(self) -> bool:
        trainer = self.trainer
        if self._stop.is_set() or trainer.step == trainer.total_steps:
            return False
        stepped = self._mode == "step" and trainer.step >= self._until and not trainer.pending
        return stepped or self._mode == "pause"

    def _write_samples(self) -> None:
        while self._asked:
            with self._condition:
                self._asked -= 1
            self._drawn += 1
            try:
                sample = self.trainer.sample(self.trainer.config.seed + self._drawn)
                assert self.run is not None
                self.run.append("samples", asdict(sample) | {"event": "asked"})
            except (ValueError, OSError) as error:
                self._complain(error)
            self._show(self.state)

    def _handle(self, content: dict[str, Any]) -> None:
        do = content.get("do", "")
        try:
            if do == "rate":
                self.scale(content["value"])
            elif do in ("resume", "step", "pause", "stop", "sample", "look", "start_anew"):
                getattr(self, do)()
        except (ValueError, RuntimeError, OSError) as error:
            self._complain(error)

    def _complain(self, error: BaseException) -> None:
        with self._lock:
            self.error = unhidden(str(error) or type(error).__name__)

    def _show(self, state: str) -> None:
        with self._lock, self.hold_sync():
            problem = ""
            if self.run:
                problem = self._read(self.run).problem
            else:
                self._forget()
                self.name, self.total_steps = unhidden(self._given), self.trainer.total_steps
            self.state = state
            self.rate = self.trainer.learning_rate_scale if state not in ("offered", "busy") else None
            if self._raised is not None:
                self._complain(self._raised)
            resumable = self._resumable
            said = words(state, name=self.name, step=self.steps_done, resumable=resumable)
            self.message = unhidden(f"{said}{self._notes} {problem}".strip())
            self.buttons = buttons(
                state,
                saved=saved_step(self.run) if self.run and state == "offered" else 0,
                resumable=resumable,
                fresh=self.trainer.step == 0,
                here=any(each.run == self.run for each in _training),
            )
            self._draw_at = time.monotonic() + EVERY


def newest_run(name: str) -> Run | None:
    """The last of the runs name, name-2, name-3 …"""
    numbered = re.compile(re.escape(name) + r"(?:-(\d+))?")
    found = {
        int(match[1] or 1): config.parent
        for config in runs_dir().glob(f"{glob.escape(name)}*/config.json")
        if (match := numbered.fullmatch(config.parent.name))
    }
    return Run(found[max(found)]) if found else None


def is_interrupted(run: Run) -> bool:
    """Whether the run has no checkpoint of its last step."""
    try:
        return saved_step(run) < int(run.config()["total_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # nothing that could be resumed


def saved_step(run: Run) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((each.step for each in run.checkpoints()), default=0)


def is_being_written(run: Run) -> bool:
    """Whether another process, or another thread of this one, trains it."""
    try:
        with run.locked():
            return False
    except RuntimeError:
        return True


def is_live() -> bool:
    """Whether there is a page with buttons: LABKIT_LIVE says so, or the kernel belongs to a front end."""
    if chosen := os.environ.get("LABKIT_LIVE"):
        if chosen not in ("0", "1"):
            raise ValueError(f"LABKIT_LIVE={chosen!r}: set 1 (live), 0 (blocking) or nothing.")
        return chosen == "1"
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") and any(name in os.environ for name in FRONT_ENDS)


def words(state: str, *, name: str, step: int, resumable: bool) -> str:
    """A sentence or two for the reader.  step: the last one that is recorded."""
    rebuild = "" if resumable else " Run the cell that builds the trainer again, then this one."
    return {
        "ready": "Nothing is trained yet.",
        "offered": f"This run was interrupted after step {step}. Resume goes on from its last checkpoint; "
        "Start anew leaves it as it is and begins another run.",
        "busy": f"Run {name} is being trained elsewhere. Wait for it or stop it, then look again; Start anew "
        "begins another run.",
        "training": "Other cells can run meanwhile.",
        "paused": f"Paused after step {step}. Step takes one step, Resume goes on.",
        "stopped": f"Stopped after step {step}, which is saved. Resume goes on from it, in a new kernel too.",
        "failed": f"Ended by an error after step {step}.{rebuild}",
        "finished": f"Trained to the end, step {step}.",
    }[state]


def buttons(state: str, *, saved: int, resumable: bool, fresh: bool, here: bool) -> list[dict[str, Any]]:
    """What the view offers: `do`, `label` and `enabled` of each button, in an order that stays.

    saved: the step of the newest checkpoint.  resumable: whether going on may help.  fresh: whether the
    trainer has taken no step.  here: whether it is this process that trains a busy run.
    """
    if state == "offered":
        found = [("resume", f"Resume from step {saved}", resumable), ("start_anew", "Start anew", fresh)]
    elif state == "busy":
        found = [("look", "Look again", True), ("stop", "Stop it", here), ("start_anew", "Start anew", fresh)]
    else:
        at_work = state in ("training", "paused")
        can = at_work or state in ("ready", "stopped") or (state == "failed" and resumable)
        first = {"ready": ("resume", "Start"), "training": ("pause", "Pause")}
        found = [
            (*first.get(state, ("resume", "Resume")), can),
            ("step", "Step", can),
            ("stop", "Stop", at_work),
            ("sample", "Sample now", at_work),
        ]
    return [{"do": do, "label": label, "enabled": enabled} for do, label, enabled in found]
