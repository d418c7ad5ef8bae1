"""How many threads, and in which precision: the rules and the warning."""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path

import pytest
import torch

import labkit.device
from labkit.device import (
    SMALL,
    allowed_cores,
    decoding_threads,
    set_threads,
    thread_limit,
    training_threads,
    warn_if_slow,
)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight cores to be bound to, and as many threads by default; no number of threads really changes."""
    now = [8]
    monkeypatch.setattr(labkit.device, "_set", None)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: now.__setitem__(0, threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "300000 100000\n"}, 3),
        ({"cpu.max": "350000 100000\n"}, 3),  # a fourth thread would wait half of the time
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "1600000 100000\n"}, 8),
        ({"cpu.max": "torn"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "50000\n"}, 5),
        ({"cpu/cpu.cfs_quota_us": "250000\n", "cpu/cpu.cfs_period_us": "0\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "250000\n"}, 8),
    ],
)
def test_a_container_may_use_its_share_of_the_cores(
    tmp_path: Path, files: dict[str, str], cores: int
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert allowed_cores(tmp_path) == cores


@pytest.mark.usefixtures("eight_cores")
def test_a_process_may_use_the_cores_it_is_bound_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3, 5, 6})
    assert allowed_cores(tmp_path) == 3
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS and Windows
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert allowed_cores(tmp_path) == 7


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(("cores", "default", "threads"), [(5, 8, 5), (8, 3, 3), (1, 8, 1)])
def test_training_takes_the_allowed_cores_and_never_more_than_pytorch(
    monkeypatch: pytest.MonkeyPatch, cores: int, default: int, threads: int
) -> None:
    monkeypatch.setattr(labkit.device, "allowed_cores", lambda: cores)
    torch.set_num_threads(default)  # what OMP_NUM_THREADS gives, for one
    assert training_threads() == threads
    assert decoding_threads(SMALL) == threads
    assert decoding_threads(SMALL - 1) == 1


@pytest.mark.usefixtures("eight_cores")
def test_a_number_chosen_for_one_model_is_no_limit_for_the_next() -> None:
    set_threads(2)
    set_threads(1)
    assert thread_limit() == 8
    torch.set_num_threads(3)  # by the user
    assert thread_limit() == 3


@pytest.mark.parametrize(
    ("precision", "amx", "avx512_bf16", "amx_fp16", "slow"),
    [
        ("fp32", False, False, False, False),
        ("bf16", False, False, False, True),
        ("bf16", True, False, False, False),
        ("bf16", False, True, False, False),
        ("fp16", True, True, False, True),
        ("fp16", False, False, True, False),
    ],
)
@pytest.mark.parametrize(("machine", "device"), [("x86_64", "cpu"), ("x86_64", "cuda"), ("aarch64", "cpu")])
def test_a_slow_precision_is_warned_about(
    monkeypatch: pytest.MonkeyPatch,
    precision: str,
    amx: bool,
    avx512_bf16: bool,
    amx_fp16: bool,
    slow: bool,
    machine: str,
    device: str,
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_fp16_supported", lambda: amx_fp16)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_if_slow(precision, torch.device(device))
    expected = slow and (machine, device) == ("x86_64", "cpu")
    assert [
        f"precision='{precision}': this CPU has no instructions" in str(each.message) for each in caught
    ] == ([True] if expected else [])
