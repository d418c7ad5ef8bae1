"""Training: the loop, its optimizer and schedule, and what a run leaves on disk."""

from labkit.training.checkpoint import CheckpointError, CheckpointInfo, load_checkpoint, save_checkpoint
from labkit.training.loop import ProgressBar, RunRecorder, fit
from labkit.training.optim import build_optimizer, freeze, warmup_cosine, warmup_stable_decay
from labkit.training.resume import restore
from labkit.training.run import Run, list_runs, runs_dir
from labkit.training.setup import build_trainer, rebuild_trainer
from labkit.training.trainer import (
    Checkpoint,
    End,
    Evaluation,
    Event,
    Sample,
    Step,
    Trainer,
    TrainingDivergedError,
)

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "CheckpointInfo",
    "End",
    "Evaluation",
    "Event",
    "ProgressBar",
    "Run",
    "RunRecorder",
    "Sample",
    "Step",
    "Trainer",
    "TrainingDivergedError",
    "build_optimizer",
    "build_trainer",
    "fit",
    "freeze",
    "list_runs",
    "load_checkpoint",
    "rebuild_trainer",
    "restore",
    "runs_dir",
    "save_checkpoint",
    "warmup_cosine",
    "warmup_stable_decay",
]
