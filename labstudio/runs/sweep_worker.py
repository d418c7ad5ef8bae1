"""One run of a sweep, as a process: python -m labstudio.runs.sweep_worker FOLDER WEIGHTS DEVICE PARENT."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from labkit.config import DataConfig, TrainConfig
from labkit.training import Event, Run
from labkit.training.loop import Callback, fit
from labkit.training.resume import restore
from labkit.training.setup import build_trainer
from labstudio.runs.sweep import RECORD


def work(folder: Path, weights: Path, device: str, parent: int) -> bool:
    """Train what the folder's sweep.json says, from its newest checkpoint if there is one, else from scratch.

    The final weights are then also at `weights`.  It stops, with a checkpoint, when the process `parent` is
    gone.  Returns False when stopped before the end.
    """
    run = Run(folder)
    settings = json.loads((folder / RECORD).read_text(encoding="utf-8"))["settings"]
    trainer = build_trainer(
        settings["preset"],
        settings["shape"],
        TrainConfig(**settings["train"]),
        DataConfig(**settings["data"]),
        device=device,
        init_from=settings["init_from"],
    )
    if any(checkpoint.step for checkpoint in run.checkpoints()):
        restore(trainer, run)
    else:
        for file in ("config.json", "metrics.jsonl", "samples.jsonl"):
            (folder / file).unlink(missing_ok=True)
        shutil.rmtree(run.checkpoints_path, ignore_errors=True)
    if not fit(trainer, run=run, progress=False, callbacks=(stop_without(parent),)):
        return False
    fresh = weights.with_name(f".new-{weights.name}")
    shutil.copyfile(run.newest_whole()[0] / "model.safetensors", fresh)
    fresh.replace(weights)
    return True


def stop_without(parent: int) -> Callback:
    """A callback that stops the training, with a checkpoint, when the sweep that started it is gone."""

    def watch(event: Event) -> None:
        if os.getppid() != parent:
            signal.raise_signal(signal.SIGINT)

    return watch


if __name__ == "__main__":
    folder_name, weights_name, device_name, parent_id = sys.argv[1:]
    finished = work(Path(folder_name), Path(weights_name), device_name, int(parent_id))
    sys.exit(0 if finished else 130)
