"""Tensors that are split among processes, in safetensors files that any number of processes can read.

torch.distributed.checkpoint writes and reads them; its default format would be read with pickle.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from labkit.training.optimizer import AnyOptimizer

SHARDS = "shard-*.safetensors"
MOMENT = "optimizer."
"""What the names of an optimizer's tensors begin with; the parameter's name and the moment's follow."""


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to an existing folder, each process what it holds.  All processes have to call it.

    Raises OSError, in all of them, when one cannot write.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    with _plain_errors():
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, split or whole, from the safetensors files of a folder, however those are split.

    Raises OSError, naming the tensor, for one that is not there or has another shape.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    with _plain_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def stored_weights(folder: Path) -> set[str]:
    """The names of the weights in the safetensors files of a folder."""
    return {name for name in _stored_names(folder) if not name.startswith(MOMENT)}


def _stored_names(folder: Path) -> set[str]:
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    return set(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


def optimized(model: nn.Module, optimizer: AnyOptimizer) -> tuple[list[str], list[Tensor]]:
    """Names and parameters of what an optimizer trains, in its order."""
    stored = model.state_dict(keep_vars=True)  # unlike named_parameters, never what a forward pass left whole
    names = {id(each): name for name, each in reversed(stored.items())}  # of a tied head, the embedding's
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    return [names[id(each)] for each in parameters], parameters


def split_moments(state: dict[str, Any], names: list[str]) -> dict[str, Tensor]:
    """Take the moments out of an optimizer's state, in place, under the names of its parameters.

    names: those of the optimizer's parameters, in its order.
    """
    moments = {}
    for index, entries in state["state"].items():
        for key in [key for key, value in entries.items() if value.ndim]:
            moments[f"{MOMENT}{names[index]}.{key}"] = entries[key]
        state["state"][index] = {key: value for key, value in entries.items() if not value.ndim}
    return moments


def place_moments(folder: Path, state: dict[str, Any], names: list[str], parameters: list[Tensor]) -> None:
    """Make the moments in an optimizer's state, in place, those of a checkpoint, split as the parameters are.

    names, parameters: those of the optimizer, in its order.
    """
    if any(folder.glob(SHARDS)):
        moments = {}
        for stored in _stored_names(folder):
            if stored.startswith(MOMENT):
                name, key = stored.removeprefix(MOMENT).rsplit(".", 1)
                index = names.index(name)
                moments[stored] = state["state"][index][key] = torch.empty_like(parameters[index])
        read_shards(folder, moments)
    elif any(hasattr(each, "full_tensor") for each in parameters):
        for index, entries in state["state"].items():
            for key, value in entries.items():
                entries[key] = _split_as(value, parameters[index])


def _split_as(value: Tensor, parameter: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or not value.ndim:
        return value
    on_device = value.to(parameter.device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """CheckpointException is no Exception: an `except Exception` would miss it."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank}: {cause}") from error
