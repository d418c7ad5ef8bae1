"""What is kept of a run's checkpoints: the newest, the best, and never less than one whole."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import resumed, tiny_trainer

from labkit.training import (
    Checkpoint,
    CheckpointError,
    Run,
    fit,
    restore,
)
from labkit.training.resume import save


@pytest.mark.parametrize("keep_last", [1, 2, 3])
def test_keep_last_and_the_best_are_kept(tmp_path: Path, keep_last: int) -> None:
    run, trainer = Run.create("kept", tmp_path), tiny_trainer(keep_last=keep_last)
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: 0.5, 6: math.nan, 7: 4.0}
    best = {1: 1, 2: 2, 3: 2, 4: 2, 5: 5, 6: 5, 7: 5}
    for step, loss in losses.items():
        trainer.step, trainer.val_loss = step, loss
        save(trainer, run)
        assert run.pointer("best") == run.checkpoints_path / f"step-{best[step]:08d}"
        assert run.pointer("latest") == run.checkpoints_path / f"step-{step:08d}"
        steps = {info.step for info in run.checkpoints()}
        assert steps == {best[step], *range(max(1, step - keep_last + 1), step + 1)}


@pytest.mark.parametrize("text", [None, "", "step-0000", "step-99999999\n", ".", "\0"])
def test_the_best_is_kept_though_its_pointer_is_damaged(tmp_path: Path, text: str | None) -> None:
    run, trainer = Run.create("kept", tmp_path), tiny_trainer(keep_last=1)
    for step, loss in ((1, 1.0), (2, 2.0)):
        trainer.step, trainer.val_loss = step, loss
        save(trainer, run)
    path = run.checkpoints_path / "best"
    path.unlink() if text is None else path.write_text(text)
    trainer.step = 3
    save(trainer, run)
    assert [info.step for info in run.checkpoints()] == [1, 3]
    assert path.read_text() == "step-00000001\n"


def test_the_last_whole_checkpoint_is_never_deleted(run: Run, whole: dict[str, Any]) -> None:
    """The newest is damaged, keep_last is 1, and the disk refuses the next: step 3 stays."""
    (run.checkpoints_path / "step-00000006" / "state.pt").write_bytes(b"")
    trainer = tiny_trainer(keep_last=1)
    with pytest.warns(UserWarning, match="Going on from step-00000003.*|keep_last: 2 -> 1"):
        restore(trainer, run)
    assert run.pointer("latest") == run.checkpoints_path / "step-00000003"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(CheckpointError, match="No space left"):
            fit(trainer, run=run, progress=False)
    assert run.newest_whole()[1]["step"] == 3
    with pytest.warns(UserWarning, match="keep_last: 2 -> 1"):
        assert resumed(run, keep_last=1)["last"] == whole["last"]
    assert {"step-00000009"} <= {info.path.name for info in run.checkpoints()}


def test_a_checkpoint_half_deleted_when_killed_goes_with_the_next(run: Run) -> None:
    left = run.checkpoints_path / "step-00000001"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"x" * 100)
    resumed(run)
    assert not left.exists()


def test_a_second_damage_at_the_same_step_is_set_aside_too(run: Run, whole: dict[str, Any]) -> None:
    newest = run.checkpoints_path / "step-00000006"
    for content in (b"first", b"second"):
        (newest / "state.pt").write_bytes(content)
        trainer = tiny_trainer()
        with pytest.warns(UserWarning, match="step-00000006 is damaged: state.pt"):
            assert restore(trainer, run) == 3
        with contextlib.suppress(RuntimeError):
            fit(trainer, run=run, progress=False, callbacks=[stop_at(6)])
    assert (run.checkpoints_path / "damaged-step-00000006" / "state.pt").read_bytes() == b"second"
    assert resumed(run) == whole


def stop_at(step: int) -> Callable[[Any], None]:
    def stop(event: Any) -> None:
        if isinstance(event, Checkpoint) and event.step == step:
            raise RuntimeError("stop")

    return stop


def test_a_run_can_be_loaded_at_any_moment_of_its_training(tmp_path: Path) -> None:
    """keep_last is 1, so what was found is soon deleted."""
    run, ended = Run.create("read", tmp_path), threading.Event()
    trainer = tiny_trainer(max_steps=40, checkpoint_every=1, keep_last=1, eval_every=0, sample_every=0)
    loaded, failed = [], []

    def read() -> None:
        while not ended.is_set():
            try:
                loaded.append(run.load()[0].num_parameters())
            except CheckpointError as error:
                failed.append(error)

    save(trainer, run)
    trainer.tokenizer.save(run.path / "tokenizer.json")  # type: ignore[union-attr]
    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for step in range(1, 60):
        trainer.step = step
        save(trainer, run)
    ended.set()
    for reader in readers:
        reader.join()
    assert not failed
    assert len(set(loaded)) == 1
