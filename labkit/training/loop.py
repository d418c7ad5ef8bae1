"""What listens to a training run: a progress bar, the run folder; and `fit`, which feeds them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict

from tqdm.auto import tqdm

from labkit.training.checkpoint import CheckpointError
from labkit.training.parallel import LostProcessError, is_loss
from labkit.training.resume import describe, save
from labkit.training.run import Run, environment
from labkit.training.trainer import (
    Checkpoint,
    Evaluation,
    Event,
    Sample,
    Step,
    Trainer,
    TrainingDivergedError,
)

Callback = Callable[[Event], None]


class ProgressBar:
    """A bar with step, loss, held-out loss, tokens per second and time left; samples are printed above it."""

    def __init__(self, trainer: Trainer, *, show_samples: bool = True) -> None:
        self.bar = tqdm(total=trainer.total_steps, initial=trainer.step, unit="step", desc="training")
        self.show_samples = show_samples
        self.start, self.start_tokens = time.perf_counter(), trainer.step * trainer.data.tokens_per_step
        self.shown: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            elapsed = max(time.perf_counter() - self.start, 1e-9)  # a clock may stand still or go back
            speed = (event.tokens - self.start_tokens) / elapsed
            self.shown |= {"loss": f"{event.loss:.3f}", "tokens/s": f"{speed:,.0f}"}
            self.bar.set_postfix(self.shown, refresh=False)
            self.bar.update()
        elif isinstance(event, Evaluation):
            self.shown["val loss"] = f"{event.val_loss:.3f}"
            self.bar.set_postfix(self.shown)
        elif isinstance(event, Sample) and self.show_samples:
            self.bar.write(f"--- step {event.step} ---\n{event.text}\n")

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


class RunRecorder:
    """Writes events to a run folder as they come, and a checkpoint when one is due.

    Raises ValueError for a run that has gone further than the trainer: its later rows would be doubled.
    """

    def __init__(self, trainer: Trainer, run: Run) -> None:
        self.trainer, self.run = trainer, run
        if trainer.ranks.rank:
            return  # the first process writes
        rows = run.rows("metrics")
        reached = [row.get("step", 0) for row in rows] + [each.step for each in run.checkpoints()]
        fresh = trainer.step == 0 and "evaluation" in trainer.pending
        if (fresh and rows) or max(reached, default=0) > trainer.step:
            raise ValueError(
                f"Run {run.id} already holds steps beyond {trainer.step}. Go on from its last checkpoint: "
                "restore(trainer, run). Or record into a new one: Run.create(...)."
            )
        self.seconds = max((row["seconds"] for row in rows if "seconds" in row), default=0.0)
        self.start = time.perf_counter() - self.seconds
        if not (run.path / "config.json").exists():
            run.write_config(describe(trainer))
        run.append(
            "environment",
            {"step": trainer.step, **environment(trainer.device, trainer.precision, trainer.ranks.world)},
        )
        if trainer.tokenizer:
            trainer.tokenizer.save(run.path / "tokenizer.json")

    def __call__(self, event: Event) -> None:
        if isinstance(event, Checkpoint):
            self.save()
        elif self.trainer.ranks.rank:
            pass
        elif isinstance(event, Step | Evaluation):
            kind = type(event).__name__.lower()
            self.seconds = max(self.seconds, round(time.perf_counter() - self.start, 3))
            self.run.append("metrics", {"event": kind, **asdict(event), "seconds": self.seconds})
        elif isinstance(event, Sample):
            self.run.append("samples", asdict(event))

    def save(self) -> None:
        """Write the trainer's state as the run's newest checkpoint.  Raises CheckpointError if it cannot."""
        save(self.trainer, self.run)


def fit(
    trainer: Trainer,
    *,
    run: Run | None = None,
    progress: bool = True,
    callbacks: Sequence[Callback] = (),
    stop: threading.Event | None = None,
) -> bool:
    """Train to the end, showing a progress bar and recording into `run` where one is given.

    callbacks: functions that are called with every event, after it is recorded.
    Ctrl-C (or the notebook's stop button, or SIGTERM) lets the step finish, saves a checkpoint and returns
    False; a second one stops at once.  `stop`, set by another thread, does what the first one does.
    TrainingDivergedError is passed on after the last good state is saved.  Raises RuntimeError when another
    process writes this run, or for a trainer that was stopped in the middle of a step; LostProcessError when
    one of those that train together is gone.
    """
    if not trainer.intact:
        raise RuntimeError(
            f"This trainer was stopped in the middle of the work on step {trainer.step + 1}. Build it anew, "
            "and go on from the run's last checkpoint: restore(trainer, run)."
        )
    first = trainer.ranks.rank == 0
    with run.locked() if run and first else nullcontext():
        recorder = RunRecorder(trainer, run) if run else None
        bar = ProgressBar(trainer) if progress and first else None
        listeners = [each for each in (recorder, bar, *callbacks) if each is not None]
        try:
            with _interrupt_flag(stop or threading.Event()) as interrupted:
                for event in trainer.events():
                    for listener in listeners:
                        listener(event)
                    if trainer.ranks.any(interrupted.is_set()) and trainer.step < trainer.total_steps:
                        if recorder:
                            recorder.save()
                        return False
        except TrainingDivergedError as error:
            try:
                if recorder:
                    recorder.save()
            except CheckpointError as failed:
                raise TrainingDivergedError(f"{error} {failed}") from failed
            raise
        except CheckpointError:
            raise  # the trainer's own state is whole
        except BaseException as error:
            trainer.intact = False
            if isinstance(error, RuntimeError) and is_loss(error):
                raise LostProcessError(f"Another process was lost at step {trainer.step}.") from error
            raise
        finally:
            if bar:
                bar.close()
    return True


@contextmanager
def _interrupt_flag(flag: threading.Event) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag, so that no step is cut in the middle."""
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore_handlers() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)

    def set_flag(signum: int, frame: object) -> None:
        flag.set()
        restore_handlers()

    for number in previous:
        signal.signal(number, set_flag)
    try:
        yield flag
    finally:
        restore_handlers()
