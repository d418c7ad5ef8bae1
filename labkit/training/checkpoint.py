"""A training state on disk: a folder that is either whole or not there."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from labkit.config import GPTConfig, as_dict
from labkit.model import GPT
from labkit.training.optimizer import AnyOptimizer

FORMAT = 1


class CheckpointError(ValueError):
    """A folder is not a checkpoint that can be loaded here."""


def save_checkpoint(folder: Path, model: GPT, optimizer: AnyOptimizer, step: int) -> Path:
    """Write weights (safetensors), optimizer state and metadata (JSON), replacing what `folder` held.

    The new checkpoint is written beside the old one and then renamed, so that a crash leaves one whole.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_weights:
        del weights["head.weight"]
    save_file(weights, fresh / "model.safetensors")
    torch.save(optimizer.state_dict(), fresh / "optimizer.pt")
    metadata = {"format": FORMAT, "step": step, "model": as_dict(model.config)}
    (fresh / "checkpoint.json").write_text(json.dumps(metadata, indent=2), encoding="utf-8")
    for file in fresh.iterdir():
        with file.open("rb+") as handle:
            os.fsync(handle.fileno())
    if folder.exists():  # without it `old` may be all that a crash has left
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    fresh.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    return folder


def load_checkpoint(folder: Path, optimizer: AnyOptimizer | None = None) -> tuple[GPT, int]:
    """The model (on the CPU, in evaluation mode) and the step it was saved at.

    An optimizer given is brought to its saved state.  Nothing in the files is executed.
    Raises CheckpointError for a folder that is not a whole checkpoint of a known format.
    """
    folder = _existing(Path(folder))
    try:
        metadata: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        if metadata["format"] != FORMAT:
            raise CheckpointError(
                f"{folder}: format {metadata['format']} is not known to this version (it reads {FORMAT}). "
                "Update labkit."
            )
        step = int(metadata["step"])
        model = GPT(GPTConfig(**metadata["model"]))
        weights = load_file(folder / "model.safetensors")
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if optimizer is not None:
            optimizer.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:  # its own text advises to run the code
        raise CheckpointError(
            f"{folder} is not a whole checkpoint: optimizer.pt is damaged or holds more than numbers; "
            "nothing in it was run."
        ) from error
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, EOFError, SafetensorError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {error}") from error
    missing = [name for name in missing if not (model.config.tie_weights and name == "head.weight")]
    if missing or unexpected:
        raise CheckpointError(f"{folder}: weights missing {missing}, unexpected {unexpected}.")
    return model.eval(), step


def _existing(folder: Path) -> Path:
    """The checkpoint folder, or the previous one where a crash came between the two renames."""
    old = folder.with_name(folder.name + ".old")
    if not folder.is_dir() and old.is_dir():
        return old
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: there is no such checkpoint folder. `labkit runs` lists what is there."
        )
    return folder
