"""Where and with how many threads to compute."""

from __future__ import annotations

from typing import Literal

import torch

from labkit.config import Precision


def best_device(name: str | None = None) -> torch.device:
    """The device asked for by name, else the first CUDA device, else the CPU.

    Apple's MPS is used only when asked for: its results have differed from the CPU's.
    Raises ValueError for a device that is not there.
    """
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used here ({reason}). Try 'cpu'.") from error
    return device


def set_threads(threads: int | None) -> int:
    """Use this many CPU threads (PyTorch's choice when None); returns how many are in use."""
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """What "auto" means on this device: bf16 or fp16 where the hardware multiplies them fast, else fp32.

    | device                           | auto |
    |----------------------------------|------|
    | CUDA, compute capability 8 and up | bf16 |
    | CUDA, compute capability 7        | fp16 |
    | CPU with AMX tiles                | bf16 |
    | everything else                   | fp32 |

    A CPU without AMX computes bf16 several times slower than fp32.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    if device.type == "cpu" and torch.cpu._is_amx_tile_supported():
        return "bf16"
    return "fp32"


def describe_device(device: torch.device) -> str:
    """A name for people: the GPU's model, or the CPU with its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads != 1 else ''}"
