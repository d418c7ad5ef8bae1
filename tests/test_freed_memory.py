"""A training step uses the memory that the one before it freed, without asking the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
from labkit.device import tune

tune(torch.device("cpu"))
for round in range(9):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [torch.ones(size) for size in (6_000_000, 7_500_000, 500_000, 8_000_000, 6_500_000)]
    del held
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
def test_what_is_freed_is_not_mapped_anew() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 20, "pages mapped anew"
