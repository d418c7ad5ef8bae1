"""Fixtures for the tests of `labkit sample`: a run, and the command in this process or another."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labstudio.cli import main

TINY = ["--context-length", "7", "--d-model", "10", "--n-layers", "1", "--n-heads", "2"]


@pytest.fixture(scope="session")
def trained_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run named first, of characters, whose context is 7."""
    path = tmp_path_factory.mktemp("home")
    steps = ["--max-steps", "2", "--eval-windows", "3"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_OUT", str(path))
        with pytest.raises(SystemExit) as end:
            main(["train", "--corpus", "tiny", "--name", "first", *steps, *TINY])
    assert not end.value.code
    return path


@pytest.fixture
def home(trained_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as the folder that labkit looks for runs in."""
    monkeypatch.setenv("LABKIT_OUT", str(trained_home))
    return trained_home


@pytest.fixture
def sample(home: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `labkit sample …` and returns (exit code, standard output, standard error)."""

    def call(*args: str) -> tuple[object, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["sample", *args])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


@pytest.fixture
def start_sample(home: Path) -> Iterator[Any]:
    """Starts `labkit sample first …` in a process of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def call(*args: str, **options: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "labstudio", "sample", "first", *args]
        started.append(subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options))
        return started[-1]

    yield call
    for process in started:
        process.kill()
        process.wait()
