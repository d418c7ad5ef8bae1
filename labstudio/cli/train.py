"""`labkit train` and `labkit resume`."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from tyro.conf import OmitArgPrefixes, Positional

from labkit.config import DataConfig, TrainConfig
from labkit.io import check_name
from labstudio.cli.options import ModelOptions

if TYPE_CHECKING:
    from labkit.training import Run, Trainer


def train(
    model: OmitArgPrefixes[ModelOptions] = ModelOptions(),
    train: OmitArgPrefixes[TrainConfig] = TrainConfig(sample_every=250, checkpoint_every=250),
    data: OmitArgPrefixes[DataConfig] = DataConfig(),
    name: str | None = None,
    prompt: str = "\n",
    device: str | None = None,
    init_from: str | None = None,
) -> int:
    """Train a model and record the run in runs/NAME.

    With several GPUs or machines: torchrun --nproc-per-node 2 -m labstudio train …

    Args:
        name: Name of the run; the preset and the corpus when not given.
        prompt: Where samples start.
        device: cpu, cuda or mps; the best there is when not given.
        init_from: Run whose weights to begin with.
    """
    from labkit.training import build_trainer
    from labkit.training.parallel import launched
    from labkit.training.resume import start

    if name is not None:
        check_name(name, "train: name")  # before the text is read
    shape = {key: value for key, value in asdict(model).items() if value is not None and key != "preset"}
    with launched(device) as ranks:
        trainer = build_trainer(
            model.preset, shape, train, data, prompt=prompt, device=device, init_from=init_from
        )
        run = start(trainer, name or f"{model.preset}-{_plain(data.sequences or data.corpus)}")
        parameters = f"{trainer.model.num_parameters():,} parameters"
        ranks.print(f"run {run.id}: {parameters}, {trainer.total_steps:,} steps; {_computed_on(trainer)}")
        return _fit(trainer, run)


def resume(run: Positional[str], device: str | None = None) -> int:
    """Go on with a run that was stopped, from its newest whole checkpoint, as if it had never stopped.

    Args:
        run: Name or folder of the run; `labkit runs` lists them.
        device: cpu, cuda or mps; the best there is when not given.
    """
    from labkit.training import Run, rebuild_trainer, restore
    from labkit.training.parallel import launched

    stopped = Run.open(run)
    with launched(device) as ranks:
        trainer = rebuild_trainer(stopped, device)
        step = restore(trainer, stopped)
        if trainer.step == trainer.total_steps and not trainer.pending:
            end = f"finished already, at step {step:,}. Write with it: labkit sample {run}"
            ranks.print(f"run {stopped.id} is {end}")
            return 0
        reached = f"step {step:,} of {trainer.total_steps:,}"
        ranks.print(f"run {stopped.id}: going on from {reached}; {_computed_on(trainer)}")
        return _fit(trainer, stopped)


def _fit(trainer: Trainer, run: Run) -> int:
    from labkit.training import CheckpointError, TrainingDivergedError, fit
    from labkit.training.parallel import LostProcessError, command

    resume = f"{command()} resume {run.id}"
    try:
        finished = fit(trainer, run=run)
    except (CheckpointError, OSError, TrainingDivergedError, LostProcessError) as error:
        raise RuntimeError(f"{error}\nTo go on with run {run.id}: {resume}") from error
    if finished:
        trainer.ranks.print(f"run {run.id} finished. Write with it: labkit sample {run.id}")
        return 0
    trainer.ranks.print(
        f"run {run.id} stopped at step {trainer.step}; the checkpoint is saved. "
        f"Go on: {resume}. Write with it: labkit sample {run.id}"
    )
    return 130


def _computed_on(trainer: Trainer) -> str:
    """Device, threads and precision: what a run's first line says."""
    from labkit.device import describe_device

    return f"{describe_device(trainer.device)}, {trainer.precision}"


def _plain(source: str) -> str:
    """The last part of a corpus's name or path."""
    from pathlib import Path

    return Path(source).resolve().stem
