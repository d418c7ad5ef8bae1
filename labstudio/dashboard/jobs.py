"""Trainings that a dashboard started: processes of their own, known by a record on disk and a log.

RUNS/.dashboard/<when>/   job.json  process id, when that process began, what was asked for
                          log.txt   all that it printed
                          stopping  there once it was asked to stop
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from labkit.io import write_text_atomically
from labkit.training import Run
from labstudio.dashboard.form import train_arguments
from labstudio.visible import unhidden

SAME = 1.0
"""Seconds by which the start of the same process, asked for twice, may differ."""

NEWEST = 50
"""Records that are looked at."""

LAST_LINES = 25
_LOG_END = 20_000
_PRIVATE = ("VOILA_", "JPY_", "LABKIT_TOKEN", "QUERY_STRING", "MPLBACKEND", "HTTP_", "SERVER_", "SCRIPT_")
"""Variables of the page's kernel, its token among them, that are none of a training's business."""

_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Job:
    """One process, which outlives whoever started it."""

    path: Path
    pid: int
    began: float
    """When the process began, seconds since 1970; a later process of the same id began at another time."""
    what: str
    """The command in words."""
    resumed: str | None
    """The run that it goes on with; None for a new one, whose name the log tells."""

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self._process() is not None

    @property
    def run_id(self) -> str | None:
        """The run that it writes, once it has begun one."""
        if self.resumed is not None:
            return self.resumed
        found = re.search(
            r"^run (.+?): [\d,]+ parameters, ", self._log(_LOG_END, from_end=False), re.M | re.S
        )
        return found[1] if found else None

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return (self.path / "stopping").exists()

    def last_lines(self) -> str:
        """The end of what it printed."""
        lines = self._log(_LOG_END).replace("\r", "\n").split("\n")
        return unhidden("\n".join([line for line in lines if line.strip()][-LAST_LINES:]))

    def stop(self) -> None:
        """Ask it, as Ctrl-C does, to finish its step, save a checkpoint and end.  Never reaches another."""
        if self.stopping:
            return  # a second Ctrl-C would end it in the middle of a step
        if process := self._process():
            (self.path / "stopping").touch()
            process.send_signal(signal.SIGINT)

    def _process(self) -> psutil.Process | None:
        for child in list(_children):
            if child.poll() is not None:  # buries it
                _children.remove(child)
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.began) < SAME
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def _log(self, count: int, *, from_end: bool = True) -> str:
        try:
            with (self.path / "log.txt").open("rb") as handle:
                if from_end:
                    handle.seek(max(0, handle.seek(0, os.SEEK_END) - count))
                return handle.read(count).decode("utf-8", "replace")
        except OSError as error:
            return f"The log cannot be read: {error}"


def jobs(root: Path) -> list[Job]:
    """What dashboards started here, newest first; records that cannot be read are left out."""
    found = []
    for file in sorted((root / ".dashboard").glob("*/job.json"), reverse=True)[:NEWEST]:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found.append(Job(file.parent, **record))
        except (OSError, ValueError, TypeError):
            continue
    return found


def start_training(root: Path, home: Path, options: dict[str, Any]) -> Job:
    """Start `labkit train` as a process of its own, in the folder `home`; its run comes to lie in `root`.

    options: see `train_arguments`, whose ValueError is passed on.
    """
    arguments = train_arguments(options)
    return _start(
        root, home, ["train", *arguments], f"train {options['preset']} on {options['corpus']}", None
    )


def resume_training(root: Path, home: Path, run: Run) -> Job:
    """Start `labkit resume` as a process of its own."""
    return _start(root, home, ["resume", str(run.path.resolve())], f"resume {run.id}", run.id)


def _start(root: Path, home: Path, command: Sequence[str], what: str, resumed: str | None) -> Job:
    path = root / ".dashboard" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    path.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    environment |= {"LABKIT_RUNS": str(root.resolve()), "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    with (path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "labstudio", *command],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # neither Ctrl-C in a terminal nor the end of the page reaches it
        )
    _children.append(process)
    record: dict[str, Any] = {
        "pid": process.pid,
        "began": _began(process.pid),
        "what": what,
        "resumed": resumed,
    }
    write_text_atomically(path / "job.json", json.dumps(record) + "\n")
    return Job(path, **record)


def _began(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:  # gone already
        return 0.0
