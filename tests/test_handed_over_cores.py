"""The thread that trains gets the cores that another one has computed with."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, threading, torch
from labkit.device import hand_over_cores

def team():
    return len(os.listdir("/proc/self/task"))

torch.set_num_threads(3)
numbers = torch.rand(400, 500)
alone = team()
expected = numbers @ numbers.T
print(team() - alone)
hand_over_cores()
print(team() - alone)
seen = []
thread = threading.Thread(target=lambda: seen.append(torch.equal(numbers @ numbers.T, expected)))
thread.start()
thread.join()
hand_over_cores()
print(seen, torch.equal(numbers @ numbers.T, expected), torch.get_num_threads())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PyTorch computes with GNU's OpenMP on Linux only")
def test_threads_that_are_handed_over_are_gone_until_the_next_computation() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["2", "0", "[True] True 3"]
