"""What listens to a training run: a progress bar, the run folder; and `fit`, which feeds them."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

from tqdm.auto import tqdm

from labkit.config import as_dict
from labkit.device import describe_device
from labkit.training.checkpoint import save_checkpoint
from labkit.training.runs import Run
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
        self.start, self.start_tokens = time.perf_counter(), trainer.step * trainer.stream.tokens_per_step
        self.shown: dict[str, str] = {}

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step):
            speed = (event.tokens - self.start_tokens) / (time.perf_counter() - self.start)
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
    """Writes events to a run folder as they come, and a checkpoint when one is due."""

    def __init__(self, trainer: Trainer, run: Run) -> None:
        self.trainer, self.run, self.start = trainer, run, time.perf_counter()
        run.write_config(
            {
                "model": as_dict(trainer.model.config),
                "train": as_dict(trainer.config),
                "total_steps": trainer.total_steps,
                "parameters": trainer.model.num_parameters(),
                "prompt": trainer.prompt,
                "tokenizer": trainer.tokenizer.fingerprint if trainer.tokenizer else None,
                "device": describe_device(trainer.device),
            }
        )
        if trainer.tokenizer:
            trainer.tokenizer.save(run.path / "tokenizer.json")

    def __call__(self, event: Event) -> None:
        if isinstance(event, Step | Evaluation):
            kind = type(event).__name__.lower()
            seconds = round(time.perf_counter() - self.start, 3)
            self.run.append("metrics", {"event": kind, **asdict(event), "seconds": seconds})
        elif isinstance(event, Sample):
            self.run.append("samples", asdict(event))
        elif isinstance(event, Checkpoint):
            self.save()

    def save(self) -> None:
        """Write the trainer's state as the run's last checkpoint."""
        save_checkpoint(
            self.run.checkpoint_path, self.trainer.model, self.trainer.optimizer, self.trainer.step
        )


def fit(trainer: Trainer, *, run: Run | None = None, progress: bool = True) -> bool:
    """Train to the end, showing a progress bar and recording into `run` where one is given.

    Ctrl-C (or the notebook's stop button) lets the step finish, saves a checkpoint and returns False;
    a second one stops at once.  TrainingDivergedError is passed on after the last good state is saved.
    """
    recorder = RunRecorder(trainer, run) if run else None
    bar = ProgressBar(trainer) if progress else None
    callbacks: list[Callback] = [each for each in (recorder, bar) if each is not None]
    try:
        with _interrupt_flag() as interrupted:
            for event in trainer.events():
                for callback in callbacks:
                    callback(event)
                if interrupted.is_set() and trainer.step < trainer.total_steps:
                    if recorder:
                        recorder.save()
                    return False
    except TrainingDivergedError:
        if recorder:
            recorder.save()
        raise
    finally:
        if bar:
            bar.close()
    return True


@contextmanager
def _interrupt_flag() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C into a flag, so that no step is cut in the middle."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    previous = signal.getsignal(signal.SIGINT)

    def handler(signum: int, frame: object) -> None:
        flag.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, handler)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, previous)
