"""Training: the loop, its optimizer and schedule, and what a run leaves on disk."""

from labkit.training.callbacks import ProgressBar, RunRecorder, fit
from labkit.training.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from labkit.training.optimizer import build_optimizer
from labkit.training.runs import Run, list_runs, runs_dir
from labkit.training.schedule import warmup_cosine
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
    "fit",
    "list_runs",
    "load_checkpoint",
    "runs_dir",
    "save_checkpoint",
    "warmup_cosine",
]
