"""Where to compute, with how many threads, and in which precision."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

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


SMALL = 5_000_000
"""Weights below which a model decodes fastest on one thread."""

_set: tuple[int, int] | None = None
"""The last number of threads that `set_threads` put in place of another: (limit, number)."""


def training_threads() -> int:
    """CPU threads to train with: every core that this process may use, at most PyTorch's own number.

    | task                             | threads           |
    |----------------------------------|-------------------|
    | training                         | all allowed cores |
    | decoding, SMALL weights and more | all allowed cores |
    | decoding, fewer weights          | 1                 |

    A training step multiplies thousands of rows at a time, which two threads can share.  Decoding multiplies
    one row: a large model reads its weights faster with two threads, but a small one spends its time on
    synchronising them, most of all on a busy machine.  Measured there, with 0.8 M weights: 164 tokens a
    second with one thread, 22 with two.
    """
    return min(thread_limit(), allowed_cores())


def decoding_threads(weights: int) -> int:
    """CPU threads to generate and evaluate with, for a model of this many weights; see `training_threads`."""
    return 1 if weights < SMALL else training_threads()


def thread_limit() -> int:
    """PyTorch's own number of threads: its default, OMP_NUM_THREADS, or what your program has set.

    A number that `set_threads` chose for one model is no limit for the next.
    """
    now = torch.get_num_threads()
    return _set[0] if _set and _set[1] == now else now


def set_threads(threads: int) -> None:
    """Compute with this many CPU threads from now on."""
    global _set
    _set = thread_limit(), threads
    torch.set_num_threads(threads)


def allowed_cores(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those it is bound to, within its container's share of time.

    cgroup: folder with the share, in the files of version 2 or 1.
    Source: cgroups(7); the kernel's admin-guide/cgroup-v2, cpu.max, and scheduler/sched-bwc.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for files in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        with suppress(OSError, ValueError, ZeroDivisionError):  # not there; or "max", which is no number
            numbers = " ".join((cgroup / file).read_text(encoding="utf-8") for file in files)
            quota, period = map(int, numbers.split())
            return max(1, min(cores, quota // period)) if quota > 0 else cores
    return cores


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor()


def choose_precision(precision: Precision, device: torch.device) -> Literal["fp32", "bf16", "fp16"]:
    """What "auto" means on this device: bf16 or fp16 on GPUs that multiply them fast, else fp32.

    | device                            | auto |
    |-----------------------------------|------|
    | CUDA, compute capability 8 and up | bf16 |
    | CUDA, compute capability 7        | fp16 |
    | everything else                   | fp32 |

    On a CPU with AMX, which multiplies bf16 fastest, a training step of char-mini took 1.09 times as long in
    bf16 as in fp32, one of nano as long: casting takes back what the products gain.  So the same command
    computes the same on every CPU.
    """
    if precision != "auto":
        return precision
    if device.type == "cuda":
        major = torch.cuda.get_device_capability(device)[0]
        return "bf16" if major >= 8 else "fp16" if major == 7 else "fp32"
    return "fp32"


def warn_if_slow(precision: str, device: torch.device) -> None:
    """Warn that an x86 CPU has no instructions for the precision it is asked for."""
    if device.type != "cpu" or precision == "fp32" or platform.machine() not in ("x86_64", "AMD64"):
        return
    bf16 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if bf16 if precision == "bf16" else torch.cpu._is_amx_fp16_supported():
        return
    warnings.warn(
        f"precision={precision!r}: this CPU has no instructions for it, so its matrix products take about 3 "
        "(AVX-512) to 100 times (AVX2) as long as with precision='fp32', which 'auto' chooses on CPUs.",
        stacklevel=3,
    )


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """In it matrices are multiplied in this precision; weights stay as they are."""
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    return torch.autocast(device.type, dtype) if dtype else nullcontext()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Draws in it follow from the seed; those after it go on as if it had not been."""
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed idle GPUs
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def describe_device(device: torch.device) -> str:
    """A name for people: the GPU's model, or the CPU with its thread count."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads != 1 else ''}"


def describe_machine() -> str:
    """For a log: device, cores, threads and PyTorch."""
    name, cores = _processor() or platform.machine(), os.cpu_count()
    gpu = f" with {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{name} ({cores} cores){gpu}, {describe_device(torch.device('cpu'))}, PyTorch {torch.__version__}"


def tune(device: torch.device) -> None:
    """Settings of this process that make training faster.

    On CUDA what is multiplied in float32 may use TF32.  On Linux the process keeps what it frees, up to a
    gigabyte: a training step allocates the same tensors again and again, and where glibc hands them back, the
    system has to map and zero every page anew, a sixth of a step with GPT-2's vocabulary.
    Source: mallopt(3), M_TRIM_THRESHOLD and M_MMAP_THRESHOLD.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    if sys.platform.startswith("linux"):
        with suppress(OSError, AttributeError):  # another C library than glibc
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-1, 2**30)  # M_TRIM_THRESHOLD
            mallopt(-3, 2**25)  # M_MMAP_THRESHOLD, at its largest


def hand_over_cores() -> None:
    """Let go of the CPU threads that this thread has computed with, before another thread takes over.

    GNU's OpenMP, which PyTorch computes with on Linux, keeps a team for each thread. When the teams together
    have more members than there are cores, their members go to sleep between any two operations, and a
    training step takes half as long again. The next computation of this thread makes a new team.
    Source: OpenMP 5.0, omp_pause_resource_all; GOMP_SPINCOUNT in the manual of libgomp.
    """
    for library in (Path(torch.__file__).parent / "lib").glob("libgomp*"):
        with suppress(OSError, AttributeError):  # one that cannot
            ctypes.CDLL(str(library)).omp_pause_resource_all(1)  # omp_pause_soft
