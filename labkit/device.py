"""Where to compute, with how many threads, and in which precision."""

from __future__ import annotations

import ctypes
import json
import math
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import torch

from labkit.config import Precision
from labkit.io import cache_dir, write_text_atomically


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


_set: tuple[int, int] | None = None
"""The last number of threads that `set_threads` put in place of another: (limit, number)."""


def thread_limit() -> int:
    """Most threads to use: PyTorch's own number (its cores, OMP_NUM_THREADS, or what you have set).

    A smaller number that `set_threads` chose for one model is no limit for the next.
    """
    now = torch.get_num_threads()
    return _set[0] if _set and _set[1] == now else now


def set_threads(threads: int | None) -> int:
    """Use this many CPU threads (PyTorch's number when None); returns how many are in use."""
    global _set
    if threads is not None:
        _set = thread_limit(), threads
        torch.set_num_threads(threads)
    return torch.get_num_threads()


CLEARLY = 0.95
"""More threads have to bring the time below this part of what fewer need."""
TRIES, PAIR_SECONDS = 4, 0.5


def choose_threads(
    compute: Callable[[], object], limit: int, clock: Callable[[], float] = time.perf_counter
) -> int:
    """The number of CPU threads with which `compute` is fastest: 1, 2, 4, … up to limit, found by trying.

    Each number is tried against the one before in turns, and its fastest try counts: other programs can
    make a try slower, never faster.  More threads have to be clearly faster, and where they are not, no
    larger number is tried.  A pair is tried four times, but no longer than half a second once each had its
    turn.  Leaves the number of threads as it was.
    """
    before, best = torch.get_num_threads(), 1
    try:
        torch.set_num_threads(best)
        compute()  # the first call also sets up what later ones find
        while best < limit:
            more = min(2 * best, limit)
            fastest = {best: math.inf, more: math.inf}
            end = clock() + PAIR_SECONDS
            for _ in range(TRIES):
                for threads in fastest:
                    torch.set_num_threads(threads)
                    began = clock()
                    compute()
                    fastest[threads] = min(fastest[threads], clock() - began)
                if clock() >= end:
                    break
            if fastest[more] > CLEARLY * fastest[best]:
                break
            best = more
    finally:
        torch.set_num_threads(before)
    return best


def remembered_threads(task: dict[str, Any], choose: Callable[[], int]) -> int:
    """What `choose` says, which is asked once for a task on a machine: the answer is kept in THREADS.

    task: what the answer depends on besides the machine, in terms of JSON.
    A file that cannot be read or written is as none.  Deleting it makes all answers be found anew.
    """
    file = cache_dir() / THREADS
    key = json.dumps(_machine() | task, sort_keys=True)
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        found = json.loads(file.read_text(encoding="utf-8"))
        known = found if isinstance(found, dict) else {}
    threads = known.get(key)
    if type(threads) is int and 1 <= threads <= thread_limit():
        return threads
    chosen = choose()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text_atomically(file, json.dumps(known | {key: chosen}, indent=1) + "\n")
    return chosen


THREADS = "threads.json"
"""File in the cache folder with the numbers of threads that were found to be the fastest."""


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name")).partition(":")[2].strip()
    return platform.processor()


def _machine() -> dict[str, Any]:
    """What decides how fast threads are here: the processor, how much of it this process may use, PyTorch."""
    quota = ""
    with suppress(OSError):
        quota = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="utf-8").strip()
    return {
        "cpu": _processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "quota": quota,
        "limit": thread_limit(),
        "torch": torch.__version__,
    }


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
