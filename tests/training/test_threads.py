"""How many threads a run computes with: the rule for training, the run's own number when it goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import killed_at, outcome, tiny_trainer

import labkit.device
from labkit.training import Run, fit, restore
from labstudio.cli import main


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cores; a number of threads is only written down, because two on a busy machine are very slow."""
    now = [2]
    monkeypatch.setattr(labkit.device, "_set", None)
    monkeypatch.setattr(labkit.device, "allowed_cores", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: now.__setitem__(0, threads))
    monkeypatch.setattr(torch, "get_num_threads", lambda: now[0])


def test_a_trainer_uses_the_cores_it_may_use() -> None:
    tiny_trainer(threads=None)
    assert torch.get_num_threads() == 2


def test_threads_that_are_asked_for_are_no_limit_for_the_next_trainer() -> None:
    for threads, used in ((1, 1), (None, 2), (3, 3), (None, 2)):
        tiny_trainer(threads=threads)
        assert torch.get_num_threads() == used


def test_a_resumed_run_computes_with_the_threads_it_began_with(tmp_path: Path) -> None:
    whole = Run.create("whole", tmp_path)
    fit(tiny_trainer(threads=None), run=whole, progress=False)
    run = killed_at(8, Run.create("killed", tmp_path), threads=None)
    torch.set_num_threads(1)  # as on a machine with one core
    trainer = tiny_trainer(threads=None)
    restore(trainer, run)
    assert fit(trainer, run=run, progress=False)
    assert outcome(run) == outcome(whole)
    assert [row["threads"] for row in run.rows("environment")] == [2, 2]


# The command line

TINY = {"corpus": "tiny", "eval-windows": 3, "context-length": 7, "d-model": 10, "n-layers": 1, "n-heads": 2}
SHORT = {"max-steps": 2, "batch-size": 3, "name": "first", "precision": "fp32", "device": "cpu"}
TRAIN = ["train", *(f"--{name}={value}" for name, value in (TINY | SHORT).items())]


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit):
            main(list(arguments))
        return capsys.readouterr().out.splitlines()[0]

    return call


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "cpu, 2 threads, fp32"),
        (["--threads", "1"], "cpu, 1 thread, fp32"),
        (["--threads", "3"], "cpu, 3 threads, fp32"),
    ],
)
def test_the_first_line_says_device_threads_and_precision(
    arguments: list[str], says: str, shell: Any
) -> None:
    first = shell(*TRAIN, *arguments)
    assert first.startswith("run first: ")
    assert first.endswith(f" parameters, 2 steps; {says}")


def test_the_first_line_of_a_resumed_run_says_it_too(shell: Any, tmp_path: Path) -> None:
    shell(*TRAIN, "--checkpoint-every", "1")
    run = Run(tmp_path / "runs" / "first")
    (run.checkpoints_path / "latest").write_text("step-00000001")
    shutil.rmtree(run.checkpoints_path / "step-00000002")
    torch.set_num_threads(1)
    first = shell("resume", "first", "--device", "cpu")
    assert first == "run first: going on from step 1 of 2; cpu, 2 threads, fp32"
