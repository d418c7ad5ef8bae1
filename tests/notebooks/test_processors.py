"""The committed outputs hold where numbers are summed in another order: an older processor, more threads."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
TWO_THREADS = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE"}
"""Passive: on busy cores threads that spin while they wait can take many times as long."""
HAS_AVX2 = platform.machine() in ("x86_64", "AMD64") and torch.cpu._is_avx2_supported()


@pytest.mark.parametrize("lesson", ["02_attention", "03_mini_gpt", "05_sampling"])
@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(AVX2, id="avx2", marks=pytest.mark.skipif(not HAS_AVX2, reason="needs AVX2")),
        pytest.param(TWO_THREADS, id="two threads"),
    ],
)
def test_a_lesson_prints_the_same(setting: dict[str, str], lesson: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--nbval", "--nbval-current-env", f"notebooks/{lesson}.ipynb"],
        cwd=ROOT,
        env=os.environ | setting,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:]
