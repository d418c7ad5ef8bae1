"""A training killed again and again (SIGKILL) and resumed ends bit for bit as one that never stopped.

Each is killed ten times, a hundred times under `make soak` (LABKIT_SOAK=10).  Each kill falls on a random
moment of one of four kinds: while the run starts (reads its checkpoint, drops rows), while a checkpoint is
written, between two checkpoints, or after a SIGTERM, while the stopping run saves.
"""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from labkit.training import Run

KILLS = 10 * int(os.environ.get("LABKIT_SOAK", "1"))
STEPS = 60 + 6 * KILLS

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(120 + 20 * KILLS),
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
]


class Labkit:
    """Starts `labkit` commands, each as a process of its own, and kills them."""

    def __init__(self, out: Path) -> None:
        self.log = out / "log.txt"
        self.environment = os.environ | {"LABKIT_OUT": str(out), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("forked_labkit.py")), str(self.log)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=self.environment,
        )  # fmt: skip

    def start(self, *arguments: str) -> int:
        """The id of a new process."""
        assert self.server.stdin
        assert self.server.stdout
        self.server.stdin.write(json.dumps(arguments) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def wait(self) -> int:
        """The exit code of the process, negative for a signal."""
        assert self.server.stdout
        return int(self.server.stdout.readline())

    def stop(self) -> None:
        assert self.server.stdin
        self.server.stdin.close()
        self.server.wait(timeout=60)


@pytest.fixture
def labkit(tmp_path: Path) -> Iterator[Labkit]:
    commands = Labkit(tmp_path)
    yield commands
    commands.stop()


def training(name: str, optimizer: str) -> list[str]:
    shape = "--preset char-mini --context-length 16 --d-model 16 --n-layers 2 --n-heads 2 --dropout 0.1"
    length = f"--max-steps {STEPS} --batch-size 4 --micro-batch-size 2 --optimizer {optimizer}"
    events = "--eval-every 3 --eval-windows 4 --sample-every 4 --sample-tokens 3 --checkpoint-every 1"
    return f"train --corpus tiny --name {name} --threads 1 {shape} {length} {events}".split()


class Moment:
    """When to kill: waits for it, then kills."""

    def __init__(self, draw: random.Random, checkpoints: Path, first_save: float, one_save: float) -> None:
        self.draw, self.checkpoints = draw, checkpoints
        self.first_save, self.one_save = first_save, one_save
        self.kind = draw.choice(["starting", "saving", "stepping", "stopping"])

    def kill(self, pid: int) -> None:
        if self.kind == "starting":
            self.wait_for_a_save(pid, self.draw.uniform(0, self.first_save))
        else:
            for _ in range(self.draw.randint(1, 3)):
                self.wait_for_a_save(pid)
            if self.kind == "stopping" and alive(pid):
                os.kill(pid, signal.SIGTERM)
            time.sleep(self.draw.uniform(0, (1 if self.kind == "saving" else 3) * self.one_save))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

    def wait_for_a_save(self, pid: int, at_most: float = math.inf) -> None:
        end, before = time.perf_counter() + at_most, unfinished(self.checkpoints)
        while alive(pid) and time.perf_counter() < end and unfinished(self.checkpoints) in (set(), before):
            time.sleep(0.0002)


def unfinished(checkpoints: Path) -> set[str]:
    return {path.name for path in checkpoints.glob(".new-step-*")}


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" if Path(f"/proc/{pid}").exists() else False


def newest(run: Run) -> int:
    """The step of the newest whole checkpoint, -1 where nothing was ever announced."""
    announced = (run.checkpoints_path / "latest").exists()
    return run.newest_whole()[1]["step"] if announced else -1


def announced(run: Run) -> int:
    latest = run.checkpoints_path / "latest"
    return int(latest.read_text().split("-")[1]) if latest.exists() else -1


def outcome(run: Run) -> dict[str, Any]:
    """Everything that must be the same; the checksums stand for weights, optimizer, generators, metadata."""
    folders = sorted(run.checkpoints_path.glob("step-*"))
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in run.rows("metrics")]
    return {
        "checkpoints": {folder.name: (folder / "SHA256SUMS").read_text() for folder in folders},
        "pointers": [(run.checkpoints_path / name).read_text() for name in ("latest", "best")],
        "metrics": rows,
        "samples": run.rows("samples"),
        "config": run.config(),
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_killed_again_and_again_ends_as_one_that_never_stopped(
    labkit: Labkit, tmp_path: Path, optimizer: str
) -> None:
    began = time.perf_counter()
    whole, killed = (Run(tmp_path / "runs" / name) for name in ("whole", "killed"))
    started = time.perf_counter()
    labkit.start(*training("whole", optimizer))
    while not whole.checkpoints():
        time.sleep(0.001)
    first_save = time.perf_counter() - started
    assert labkit.wait() == 0
    one_save = (time.perf_counter() - started - first_save) / STEPS

    draw = random.Random(f"{optimizer} {KILLS}")
    count: Counter[str] = Counter()
    reached = -1
    while count["kills"] < KILLS:
        if not (killed.path / "config.json").exists():  # killed before it had begun
            shutil.rmtree(killed.path, ignore_errors=True)
            pid = labkit.start(*training("killed", optimizer))
        else:
            pid = labkit.start("resume", "killed")
        moment = Moment(draw, killed.checkpoints_path, first_save, one_save)
        moment.kill(pid)
        code = labkit.wait()
        assert code, f"the run was finished after {dict(count)}"
        assert code in (-signal.SIGKILL, 130), labkit.log.read_text()[-2000:]
        count["kills"] += code == -signal.SIGKILL
        count["stopped before the kill"] += code == 130
        count[moment.kind] += code == -signal.SIGKILL
        names = [path.name for path in killed.checkpoints_path.glob(".*")]
        count["left a half-written folder"] += any(name.startswith(".new-step") for name in names)
        count["between two renames"] += any(name.startswith(".old-step") for name in names)
        count["before latest moved"] += newest(killed) > announced(killed)
        assert newest(killed) >= announced(killed)
        assert newest(killed) >= reached, "a checkpoint was lost"
        reached = newest(killed)

    done = subprocess.run(
        [sys.executable, "-m", "labstudio", "resume", "killed"],
        env=labkit.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert outcome(killed) == outcome(whole)
    assert not list(killed.checkpoints_path.glob("damaged-*"))
    count["fell back to an older checkpoint"] = labkit.log.read_text().count("Going on from")
    minutes = (time.perf_counter() - began) / 60
    print(f"{optimizer}: {dict(count)}, last resumed from step {reached}, {minutes:.1f} minutes")
