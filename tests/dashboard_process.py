"""`labkit dashboard` as a process of its own, for the tests of its launcher and of its page."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TOKEN = "a-token-for-tests-only"


@dataclass
class Running:
    """A dashboard that listens."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str
    """Without the token."""

    @property
    def page(self) -> str:
        """With the token."""
        return f"{self.address}/?token={TOKEN}"


@contextmanager
def dashboard(runs: Path, scratch: Path, *options: str, **variables: str) -> Iterator[Running]:
    """A dashboard on a folder of runs, started in another folder; what still runs at the end is ended."""
    places = ("LABKIT_OUT", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "LABKIT_TOKEN": TOKEN} | variables
    environment |= {place: str(scratch / place.lower()) for place in places}
    command = [sys.executable, "-m", "labstudio", "dashboard", str(runs), "--no-browser", *options]
    log = scratch / "dashboard.log"
    with log.open("wb") as sink:
        process = subprocess.Popen(command, env=environment, cwd=scratch, stdout=sink, stderr=sink)
    try:
        yield Running(process, log, wait_for_address(process, log))
    finally:
        process.terminate()
        assert process.wait(timeout=60) in {0, -signal.SIGKILL}, log.read_text()


def wait_for_address(process: subprocess.Popen[bytes], log: Path) -> str:
    """What it prints once it listens."""
    for _ in range(600):
        if found := re.search(r"^The dashboard: (http://[^/]+)/\?token=", log.read_text(), re.M):
            return found[1]
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    raise AssertionError(f"The dashboard does not listen:\n{log.read_text()}")
