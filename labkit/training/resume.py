"""A run goes on where it stopped: what is saved of a trainer, and how it comes back."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from labkit.config import as_dict
from labkit.device import set_threads
from labkit.io import write_text_atomically
from labkit.training.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    load_state,
    load_weights,
    named_weights,
    save_checkpoint,
    write_checkpoint,
)
from labkit.training.parallel import (
    launch_id,
    optimized,
    place_moments,
    restarted,
    split_moments,
    write_shards,
)
from labkit.training.run import Run, changes, environment, runs_dir
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
    saved = CheckpointInfo(folder, trainer.step, trainer.val_loss)
    metadata = {"pending": trainer.pending, "val_loss": trainer.val_loss}
    first = trainer.ranks.rank == 0
    try:
        if first:
            run.flush()  # rows must not be younger than the checkpoint that counts on them
        if trainer.ranks.sharded:
            _save_shards(folder, trainer, metadata)
        elif first:
            save_checkpoint(folder, trainer.model, trainer.step, state=trainer.state(), **metadata)
        if first:
            run.keep(saved, trainer.config.keep_last)
    except OSError as error:
        raise CheckpointError(
            f"The checkpoint of step {trainer.step} could not be written ({error}). Older ones are intact."
        ) from error
    return saved


def _save_shards(folder: Path, trainer: Trainer, metadata: dict[str, Any]) -> None:
    """Write a checkpoint to which each process adds its part; the first one makes it and makes it whole."""
    model, ranks, state = trainer.model, trainer.ranks, trainer.state()
    names, _ = optimized(model, trainer.optimizer)
    tensors = named_weights(model) | split_moments(state["optimizer"], names)

    def write(fresh: Path) -> None:
        ranks.broadcast(fresh)
        write_shards(fresh, tensors)
        torch.save(state, fresh / "state.pt")

    if ranks.rank == 0:
        described = {"step": trainer.step, "model": as_dict(model.config), "layout": "sharded"}
        write_checkpoint(folder, write, **described, **metadata)
    else:
        write_shards(ranks.broadcast(), tensors)


def start(trainer: Trainer, name: str) -> Run:
    """A new run; or, when torchrun has started the processes again, the one they began, restored."""
    ranks = trainer.ranks
    again = ranks.any(restarted())
    run, began = ranks.broadcast(_begin(name, again) if ranks.rank == 0 else None)
    if began:
        restore(trainer, run)
    return run


def _begin(name: str, again: bool) -> tuple[Run, bool]:
    """A run, and whether it has begun already."""
    launch = launch_id()
    if launch and again:
        for file in runs_dir().glob("*/launch"):
            if file.read_text(encoding="utf-8") == launch:
                return Run(file.parent), (file.parent / "config.json").exists()
    run = Run.create(name)
    if launch:
        write_text_atomically(run.path / "launch", launch)
    return run, False


def restore(trainer: Trainer, run: Run) -> int:
    """Bring a trainer, built as for a new run, to the state of the run's newest whole checkpoint.

    Rows of later steps are dropped; `fit(trainer, run=run)` then continues as if nothing had happened, on a
    CPU bit for bit: the run's number of threads is used again, unless the configuration names one.
    Returns the step.

    A run that was stopped before its first checkpoint starts again at step 0.

    Warns about damaged checkpoints that were passed over (they are renamed to damaged-…), and about
    whatever else differs from the last start: versions, device, threads, precision, code, settings.
    Raises CheckpointError when no checkpoint can be used, ValueError when the result would be wrong:
    another model shape, other data or another tokenizer.
    """
    ranks = trainer.ranks
    if ranks.rank == 0:
        ranks.broadcast((_restore(trainer, run), torch.get_num_threads()))
    else:
        found, threads = ranks.broadcast()
        set_threads(threads)
        if found:
            _load(trainer, *found)
    ranks.any(False)  # none goes on, and deletes old checkpoints, before all have read theirs
    return trainer.step


def _restore(trainer: Trainer, run: Run) -> tuple[Path, dict[str, Any]] | None:
    """What `restore` does in the first process.  Returns what the others have to load."""
    found = None
    world = trainer.ranks.world
    with run.locked():
        before, now = run.config(), describe(trainer)
        _refuse_changes(run, before, now)
        starts = run.rows("environment")
        if starts:
            _use_threads_again(trainer, starts[-1])
        if _never_saved(trainer, run):
            _warn(f"Run {run.id} was stopped before its first checkpoint; it starts again at step 0.")
        else:
            folder, metadata, damaged = run.newest_whole(lambda *found: _load(trainer, *found))
            folder = run.adopt(folder)
            found = folder, metadata
            if damaged:
                _warn(f"{' '.join(damaged)} Going on from {folder.name}, step {trainer.step}.")
        if lost := run.rewind(trainer.step, trainer.pending):
            _warn(f"{run.path / 'metrics.jsonl'} is damaged: {lost} of {trainer.step} steps have no row.")
        differences = changes(before.get("train", {}), now["train"])
        differences += changes({"prompt": before.get("prompt")}, {"prompt": now["prompt"]})
        if starts:
            last = {key: value for key, value in starts[-1].items() if key != "step"}
            differences += changes(last, environment(trainer.device, trainer.precision, world))
        if differences:
            _warn(f"run {run.id} goes on with differences, so results may differ: {'; '.join(differences)}.")
    return found


def _use_threads_again(trainer: Trainer, started: dict[str, Any]) -> None:
    """Compute with as many threads as the run's last start did: in other parts, sums round differently.

    Not where the configuration names a number, or where the device or the number of processes changed.
    """
    threads, same_processes = started.get("threads"), started.get("processes") == trainer.ranks.world
    on_cpu = trainer.device.type == "cpu" and str(started.get("device")).startswith("cpu")
    if trainer.config.threads is None and on_cpu and same_processes and type(threads) is int and threads > 0:
        set_threads(threads)


def _never_saved(trainer: Trainer, run: Run) -> bool:
    """Whether the run was stopped too early for a checkpoint, rather than having lost all it had."""
    first = trainer.config.checkpoint_every or trainer.total_steps
    reached = max((row.get("step", 0) for row in run.rows("metrics")), default=0)
    return (
        trainer.step == 0
        and trainer.intact
        and reached <= first
        and not any(run.checkpoints_path.glob("[!.]*"))
    )


def _load(trainer: Trainer, folder: Path, metadata: dict[str, Any]) -> None:
    try:
        load_weights(folder, trainer.model)
        state = load_state(folder)
        place_moments(folder, state["optimizer"], *optimized(trainer.model, trainer.optimizer))
        trainer.load_state(state)
        trainer.step, trainer.pending = int(metadata["step"]), list(metadata["pending"])
        trainer.val_loss, trainer.intact = metadata["val_loss"], True
    except CheckpointError:
        raise
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
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
    warnings.warn(message, stacklevel=4)
