"""Training: the loop, its optimizer and schedule, and what a run leaves on disk."""

from labkit.training.callbacks import ProgressBar, RunRecorder, fit
from labkit.training.checkpoint import CheckpointError, CheckpointInfo, load_checkpoint, save_checkpoint
from labkit.training.events import (
    Checkpoint,
    End,
    Evaluation,
    Event,
    Sample,
    Step,
    TrainingDivergedError,
)
from labkit.training.optimizer import build_optimizer, freeze
from labkit.training.resume import restore
from labkit.training.runs import Run, list_runs, runs_dir
from labkit.training.schedule import warmup_cosine, warmup_stable_decay
from labkit.training.setup import build_trainer, rebuild_trainer
from labkit.training.trainer import Trainer

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
