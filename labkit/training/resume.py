"""A run goes on where it stopped: what is saved of a trainer, and how it comes back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from labkit.config import as_dict
from labkit.training.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    load_state,
    load_weights,
    save_checkpoint,
)
from labkit.training.environment import changes, environment
from labkit.training.runs import Run
from labkit.training.trainer import Trainer


def describe(trainer: Trainer) -> dict[str, Any]:
    """What a run's config.json says: enough to build the same trainer again where `source` is given."""
    return {
        "model": as_dict(trainer.model.config),
        "train": as_dict(trainer.config),
        "source": trainer.source,
        "data": trainer.fingerprint(),
        "tokenizer": trainer.tokenizer.fingerprint if trainer.tokenizer else None,
        "total_steps": trainer.total_steps,
        "parameters": trainer.model.num_parameters(),
        "prompt": trainer.prompt,
    }


def save(trainer: Trainer, run: Run) -> CheckpointInfo:
    """Write the trainer's state as the run's newest checkpoint; older ones go as config.keep_last says.

    Raises CheckpointError when it cannot be written; the checkpoints before it are intact then.
    """
    folder = run.checkpoints_path / f"step-{trainer.step:08d}"
    try:
        run.flush()  # rows must not be younger than the checkpoint that counts on them
        save_checkpoint(
            folder,
            trainer.model,
            trainer.step,
            state=trainer.state(),
            pending=trainer.pending,
            val_loss=trainer.val_loss,
        )
        saved = CheckpointInfo(folder, trainer.step, trainer.val_loss)
        run.keep(saved, trainer.config.keep_last)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint of step {trainer.step} could not be written ({error}). Older ones are intact."
        ) from error
    return saved


def restore(trainer: Trainer, run: Run) -> int:
    """Bring a trainer, built as for a new run, to the state of the run's newest whole checkpoint.

    Rows of later steps are dropped; `fit(trainer, run=run)` then continues as if nothing had happened, bit
    for bit on a CPU with the same number of threads.  Returns the step.

    A run that was stopped before its first checkpoint starts again at step 0.

    Warns about damaged checkpoints that were passed over (they are renamed to damaged-…), and about
    whatever else differs from the last start: versions, device, threads, precision, code, settings.
    Raises CheckpointError when no checkpoint can be used, ValueError when the result would be wrong:
    another model shape, other data or another tokenizer.
    """
    with run.locked():
        before, now = run.config(), describe(trainer)
        _refuse_changes(run, before, now)
        starts = run.rows("environment")
        if starts and trainer.device.type == "cpu":
            torch.set_num_threads(starts[-1].get("threads", torch.get_num_threads()))
        if _never_saved(trainer, run):
            _warn(f"Run {run.id} was stopped before its first checkpoint; it starts again at step 0.")
        else:
            folder, _, damaged = run.newest_whole(lambda path, metadata: _load(trainer, path, metadata))
            folder = run.adopt(folder)
            if damaged:
                _warn(f"{' '.join(damaged)} Going on from {folder.name}, step {trainer.step}.")
        if lost := run.rewind(trainer.step, trainer.pending):
            _warn(f"{run.path / 'metrics.jsonl'} is damaged: {lost} of {trainer.step} steps have no row.")
        differences = changes(before.get("train", {}), now["train"])
        differences += changes({"prompt": before.get("prompt")}, {"prompt": now["prompt"]})
        if starts:
            last = {key: value for key, value in starts[-1].items() if key != "step"}
            differences += changes(last, environment(trainer.device, trainer.precision))
        if differences:
            _warn(f"run {run.id} goes on with differences, so results may differ: {'; '.join(differences)}.")
    return trainer.step


def _never_saved(trainer: Trainer, run: Run) -> bool:
    """Whether the run was stopped too early for a checkpoint, rather than having lost all it had."""
    first = trainer.config.checkpoint_every or trainer.total_steps
    reached = max((row.get("step", 0) for row in run.rows("metrics")), default=0)
    return trainer.step == 0 and reached <= first and not any(run.checkpoints_path.glob("[!.]*"))


def _load(trainer: Trainer, folder: Path, metadata: dict[str, Any]) -> None:
    try:
        load_weights(folder, trainer.model)
        trainer.load_state(load_state(folder))
        trainer.step, trainer.pending = int(metadata["step"]), list(metadata["pending"])
        trainer.val_loss = metadata["val_loss"]
    except CheckpointError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise CheckpointError(f"{folder} does not fit this trainer: {error}") from error


def _refuse_changes(run: Run, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, what in (
        ("model", "another model shape"),
        ("tokenizer", "another tokenizer"),
        ("data", "other training or held-out text"),
    ):
        old, new = before.get(name), now[name]
        if old == new:
            continue
        shown = changes(old, new) if isinstance(old, dict) else [f"{old} -> {new}"]
        raise ValueError(
            f"Run {run.id} was trained with {what}; going on would give a wrong result ({'; '.join(shown)}). "
            "Build the trainer as it was, or start a new run."
        )


def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=3)
