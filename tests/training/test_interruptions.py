"""What else happens to a run: two processes, signals, bad numbers, clocks, deleted folders."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import os
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import killed_at, outcome, resumed, tiny_trainer

from labkit.training import (
    Checkpoint,
    CheckpointError,
    Evaluation,
    Run,
    Step,
    Trainer,
    TrainingDivergedError,
    fit,
    load_checkpoint,
    restore,
)
from labkit.training.checkpoint import verify

# Two processes


def hold(run: Run, held: Any) -> None:
    with run.locked():
        held.set()
        time.sleep(600)


@pytest.fixture
def holder(run: Run) -> Iterator[Any]:
    """Another process that writes the run."""
    context = multiprocessing.get_context("fork")
    held = context.Event()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        process = context.Process(target=hold, args=(run, held))
        process.start()
    assert held.wait(60)
    yield process
    process.kill()
    process.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_second_process_is_refused_until_the_first_is_killed(
    run: Run, whole: dict[str, Any], holder: Any
) -> None:
    before = (run.path / "metrics.jsonl").read_bytes()
    for attempt in (lambda: restore(tiny_trainer(), run), lambda: fit(tiny_trainer(), run=run)):
        with pytest.raises(RuntimeError, match=r"being written by another process\. Wait for it"):
            attempt()
    assert (run.path / "metrics.jsonl").read_bytes() == before
    holder.kill()
    holder.join()
    assert resumed(run) == whole


def test_the_second_of_two_that_restored_the_same_run_is_refused(run: Run, whole: dict[str, Any]) -> None:
    first, second = tiny_trainer(), tiny_trainer()
    restore(first, run)
    restore(second, run)
    assert fit(first, run=run, progress=False)
    with pytest.raises(ValueError, match="Run killed already holds steps beyond 6"):
        fit(second, run=run, progress=False)
    assert outcome(run) == whole


@pytest.mark.parametrize("lost", [[], ["metrics.jsonl"]], ids=["whole", "its metrics deleted"])
def test_a_new_training_into_a_used_folder_is_refused(run: Run, lost: list[str]) -> None:
    for name in lost:
        (run.path / name).unlink()
    with pytest.raises(ValueError, match=r"already holds steps beyond 0.*restore\(trainer, run\)"):
        fit(tiny_trainer(), run=run, progress=False)
    assert verify(run.newest_whole()[0])["step"] == 6


# Signals and errors


@pytest.fixture(autouse=True)
def _ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal, though a shell may have started the tests without it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def during(trainer: Trainer, step: int, do: Callable[[Any], Any]) -> None:
    """Call `do` once, in a forward pass of this training step (from 0); its result may be replaced."""

    def hook(module: Any, args: Any, output: Any) -> Any:
        if module.training and trainer.step == step:
            once.remove()
            return do(output)
        return None

    once = trainer.model.norm.register_forward_hook(hook)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_signal_saves_and_the_resumed_run_is_the_same(
    tmp_path: Path, whole: dict[str, Any], number: int
) -> None:
    run, trainer = Run.create("stopped", tmp_path), tiny_trainer()
    during(trainer, 4, lambda _: signal.raise_signal(number))
    assert fit(trainer, run=run, progress=False) is False
    assert verify(run.newest_whole()[0])["step"] == 5
    assert resumed(run) == whole


@pytest.mark.parametrize("kind", [Step, Evaluation, Checkpoint])
def test_a_second_ctrl_c_anywhere_loses_nothing(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    """The first falls on an event, the second on the saving that follows."""
    run = Run.create("stopped", tmp_path)

    def stop(event: object) -> None:
        if isinstance(event, kind) and event.step == 6:  # type: ignore[attr-defined]
            signal.raise_signal(signal.SIGINT)
            monkeypatch.setattr(torch, "save", lambda *_: signal.raise_signal(signal.SIGINT))

    with pytest.raises(KeyboardInterrupt):
        fit(tiny_trainer(), run=run, progress=False, callbacks=[stop])
    monkeypatch.undo()
    assert verify(run.newest_whole()[0])["step"] == (6 if kind is Checkpoint else 3)
    assert resumed(run) == whole


def test_a_trainer_stopped_in_the_middle_of_a_step_goes_on_only_when_restored(
    tmp_path: Path, whole: dict[str, Any]
) -> None:
    run, trainer = Run.create("stopped", tmp_path), tiny_trainer()

    def stop(*_: Any) -> None:
        once.remove()
        raise KeyboardInterrupt

    def arm(event: Any) -> None:
        nonlocal once
        if isinstance(event, Step) and event.step == 7:
            once = trainer.optimizer.register_step_post_hook(stop)  # type: ignore[union-attr]

    once: Any = None

    with pytest.raises(KeyboardInterrupt):
        fit(trainer, run=run, progress=False, callbacks=[arm])
    assert trainer.step == 7  # but the weights are those of step 8
    with pytest.raises(RuntimeError, match=r"in the middle of the work on step 8\. Build it anew"):
        fit(trainer, run=run, progress=False)
    restore(trainer, run)
    assert fit(trainer, run=run, progress=False)
    assert outcome(run) == whole


def test_a_trainer_whose_checkpoint_was_refused_goes_on(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, trainer = Run.create("refused", tmp_path), tiny_trainer()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match=r"step-00000003 could not be written .*No space left"):
        fit(trainer, run=run, progress=False)
    monkeypatch.undo()
    assert fit(trainer, run=run, progress=False)
    assert outcome(run) == whole


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_nan_at_a_step_keeps_the_state_before_it(tmp_path: Path, whole: dict[str, Any]) -> None:
    run, trainer = Run.create("diverged", tmp_path), tiny_trainer()
    during(trainer, 7, lambda output: output * math.nan)
    with pytest.raises(
        TrainingDivergedError, match=r"diverged at step 8: loss nan.*weights are those of step 7"
    ):
        fit(trainer, run=run, progress=False)
    model, step = load_checkpoint(run.newest_whole()[0])
    assert step == 7
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert resumed(run) == whole  # whatever made the NaN is gone


def test_nan_on_a_full_disk_says_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, trainer = Run.create("diverged", tmp_path), tiny_trainer()
    during(trainer, 7, lambda output: output * math.nan)

    def fill(event: Any) -> None:
        if event.step == 7:
            monkeypatch.setattr(torch, "save", full)

    with pytest.raises(
        TrainingDivergedError, match=r"diverged at step 8.*step-00000007 could not be .*No space"
    ):
        fit(trainer, run=run, progress=False, callbacks=[fill])
    assert verify(run.newest_whole()[0])["step"] == 6


def test_a_clock_that_goes_backwards_changes_nothing(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("time", "perf_counter", "monotonic"):
        clock = itertools.count(1e9, -1000.0)
        monkeypatch.setattr(time, name, lambda clock=clock: next(clock))
    run = killed_at(8, Run.create("killed", tmp_path))
    trainer = tiny_trainer()
    restore(trainer, run)
    assert fit(trainer, run=run, progress=True)
    assert outcome(run) == whole
    seconds = [row["seconds"] for row in run.rows("metrics")]
    assert seconds == sorted(seconds)
    assert min(seconds) >= 0


def test_a_clock_that_stands_still_does_not_stop_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "perf_counter", lambda: 1.0)
    assert fit(tiny_trainer(), progress=True)


# Folders deleted while the run goes on


@pytest.mark.parametrize(
    ("what", "kept"),
    [("checkpoints", {6, 9}), ("checkpoints/step-00000003", {6, 9}), ("checkpoints/latest", {6, 9})],
)
def test_what_is_deleted_by_hand_while_running_is_not_missed(
    tmp_path: Path, whole: dict[str, Any], what: str, kept: set[int]
) -> None:
    run = Run.create("deleted", tmp_path)

    def delete(event: Any) -> None:
        if isinstance(event, Step) and event.step == 5:
            path = run.path / what
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    assert fit(tiny_trainer(), run=run, progress=False, callbacks=[delete])
    assert outcome(run) == whole
    assert {info.step for info in run.checkpoints()} >= kept
    assert (run.checkpoints_path / "latest").read_text() == "step-00000009\n"


def test_a_deleted_run_folder_stops_the_run_with_its_name(tmp_path: Path) -> None:
    run = Run.create("deleted", tmp_path)

    def delete(event: Any) -> None:
        if event.step == 5:
            shutil.rmtree(run.path)

    with pytest.raises(OSError, match=r"deleted/metrics\.jsonl could not be written \(No such file"):
        fit(tiny_trainer(), run=run, progress=False, callbacks=[delete])
