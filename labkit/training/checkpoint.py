"""A training state on disk: a folder that is either whole, as its checksums prove, or is not used.

checkpoints/step-00000250/   model.safetensors  weights, a tied head once
                             state.pt           optimizer, scaler and generators (tensors and numbers only)
                             checkpoint.json    format, step, model shape and what else a restart needs
                             SHA256SUMS         of the three, as `sha256sum --check` reads it
checkpoints/latest, best     text files that name a folder

Where the weights are split among processes, each writes its part of weights and moments as a
shard-….safetensors in place of model.safetensors; any number of processes reads them.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from labkit.config import GPTConfig, as_dict
from labkit.io import fresh_folder
from labkit.model import GPT
from labkit.training.parallel import SHARDS, read_shards, stored_weights
from labkit.weights.mapping import assign, empty_model

FORMAT = 2
SUMS = "SHA256SUMS"


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or could not be written."""


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint folder.  val_loss: held-out nats per token at its step, None where not evaluated."""

    path: Path
    step: int
    val_loss: float | None


def save_checkpoint(
    folder: Path, model: GPT, step: int, *, state: dict[str, Any] | None = None, **metadata: Any
) -> Path:
    """Write weights, state and metadata as the checkpoint `folder`, replacing what it held.

    state: numbers, strings and tensors in dicts and lists.  metadata: what JSON can hold.
    Everything is written beside `folder`, flushed to the disk, and renamed: a crash leaves the old
    checkpoint or the new one.  Raises CheckpointError when it cannot be written; nothing is left of it then.
    """
    weights = {name: tensor.contiguous() for name, tensor in named_weights(model).items()}

    def write(fresh: Path) -> None:
        save_file(weights, fresh / "model.safetensors")
        with (fresh / "state.pt").open("wb") as handle:
            torch.save(state or {}, handle)

    return write_checkpoint(folder, write, step=step, model=as_dict(model.config), **metadata)


def named_weights(model: GPT) -> dict[str, Tensor]:
    """What a checkpoint holds of a model: a tied head is its token embedding."""
    weights = model.state_dict()
    if model.config.tie_weights:
        del weights["head.weight"]
    return weights


def write_checkpoint(folder: Path, write: Callable[[Path], None], **metadata: Any) -> Path:
    """A whole checkpoint folder from what `write` puts into a fresh one; see `save_checkpoint`."""
    folder = Path(folder)
    try:
        with fresh_folder(folder) as fresh:
            write(fresh)
            files = sorted([*(file.name for file in fresh.iterdir()), "checkpoint.json"])
            document = json.dumps({"format": FORMAT, "files": files, **metadata}, indent=2)
            (fresh / "checkpoint.json").write_text(document + "\n", encoding="utf-8")
            sums = "".join(f"{_sha256(fresh / name)}  {name}\n" for name in files)
            (fresh / SUMS).write_text(sums, encoding="utf-8")
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} could not be written ({_refusal(error)}). Checkpoints written before are intact: once "
            "the disk takes files again, the run can be resumed from them."
        ) from error
    return folder


def load_checkpoint(folder: Path) -> tuple[GPT, int]:
    """The model of a checkpoint (on the CPU, in evaluation mode) and the step it was saved at.

    Weights in one file stay there, mapped, until they are touched.
    Nothing in the files is executed.  Raises CheckpointError for a folder that is not a whole checkpoint.
    """
    metadata, sharded = verify(folder), any(Path(folder).glob(SHARDS))
    try:
        config, step = GPTConfig(**metadata["model"]), int(metadata["step"])
        model = GPT(config) if sharded else empty_model(config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{folder}: its model cannot be built here: {error}") from error
    load_weights(folder, model, mapped=not sharded)
    return model.eval(), step


def load_weights(folder: Path, model: GPT, *, mapped: bool = False) -> None:
    """Copy a checkpoint's weights into a model.  Raises CheckpointError where a name or shape differs.

    mapped: make them the parameters of an empty model instead, without reading the file yet.
    """
    folder = Path(folder)
    expected = named_weights(model)
    try:
        if any(folder.glob(SHARDS)) or any(hasattr(each, "full_tensor") for each in model.parameters()):
            read_shards(folder, expected)
            found = stored_weights(folder)
        else:
            weights = load_file(folder / "model.safetensors")
            found = set(weights)
            if mapped and found == expected.keys():
                for name, tensor in weights.items():
                    assign(model, name, tensor)
            elif found == expected.keys():
                model.load_state_dict(weights, strict=False)
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: its weights do not fit this model: {error}") from error
    if found != expected.keys():
        missing, unexpected = sorted(expected.keys() - found), sorted(found - expected.keys())
        raise CheckpointError(f"{folder}: weights missing {missing}, unexpected {unexpected}.")


def load_state(folder: Path) -> dict[str, Any]:
    """The training state of a checkpoint.  Raises CheckpointError where it holds more than numbers."""
    try:
        state: dict[str, Any] = torch.load(Path(folder) / "state.pt", map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # its own text advises to run the code
        raise CheckpointError(
            f"{folder}: state.pt is damaged or holds more than numbers; nothing in it was run."
        ) from error
    except Exception as error:  # foreign bytes: no list of what torch.load raises for them exists
        raise CheckpointError(f"{folder}: state.pt cannot be read ({error}).") from error
    return state


def verify(folder: Path) -> dict[str, Any]:
    """The metadata of a checkpoint whose files all have the checksums they were written with.

    Raises CheckpointError, saying which file is wrong, for anything else, and for a newer format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: there is no such folder. `labkit runs checkpoints` lists them.")
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        sums = {name: expected for expected, _, name in (line.partition("  ") for line in lines)}
        for name, expected in sums.items():
            if not name or Path(name).name != name:
                raise CheckpointError(f"{folder} is damaged: {SUMS} is not what was written.")
            if _sha256(folder / name) != expected:
                raise CheckpointError(f"{folder} is damaged: {name} is not what was written.")
        if "checkpoint.json" not in sums:
            raise CheckpointError(f"{folder} is damaged: {SUMS} does not list checkpoint.json.")
        metadata: dict[str, Any] = json.loads((folder / "checkpoint.json").read_text(encoding="utf-8"))
        found = int(metadata["format"])
        if found == FORMAT and sorted(sums) != metadata["files"]:
            raise CheckpointError(f"{folder} is damaged: {SUMS} does not list {metadata['files']}.")
    except FileNotFoundError as error:
        name = Path(error.filename).name
        raise CheckpointError(f"{folder} is not a whole checkpoint: {name} is missing.") from error
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder} is not a whole checkpoint: {error}") from error
    if found != FORMAT:
        newer = "Update labkit." if found > FORMAT else "It was written by an old version of labkit."
        raise CheckpointError(f"{folder} has format {found}; this version reads {FORMAT}. {newer}")
    return metadata


def _refusal(error: BaseException) -> BaseException:
    """What the operating system said, where torch.save hides it behind an error of its own."""
    found: BaseException | None = error
    while found and not isinstance(found, OSError):
        found = found.__context__
    return found or error


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
