"""The table of a running sweep: one line per change in a file, the whole table in place on a terminal."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from labkit.training import Run
from labstudio.cli.sweep import SweepTable
from labstudio.runs.sweep import SweepRun, plan_runs
from labstudio.runs.sweep_file import read_sweep


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[SweepRun]:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    file = tmp_path / "my.toml"
    file.write_text("[baseline]\nseeds = [0, 1]\ndata.corpus = 'tiny'\n", encoding="utf-8")
    return plan_runs(read_sweep(file))


def train(run: Run, steps: int) -> None:
    """Steps of 12 tokens and half a second each."""
    run.write_config({"total_steps": 200})
    evaluation = {"event": "evaluation", "step": 0, "val_loss": 4.25, "perplexity": 70.1, "seconds": 0.0}
    run.append("metrics", evaluation)
    for step in range(1, steps + 1):
        row = {"event": "step", "step": step, "loss": 3.5, "learning_rate": 0.1, "grad_norm": 1.0}
        run.append("metrics", row | {"tokens": 12 * step, "seconds": step / 2})


def test_a_line_says_how_far_a_run_is_and_how_long_it_takes(jobs: list[SweepRun]) -> None:
    row = SweepTable().row
    assert row(jobs[0]) == ("my-baseline", "waiting", "", "", "", "", "")
    jobs[0].state = "running"
    assert row(jobs[0]) == ("my-baseline", "running", "", "", "", "", "")
    train(jobs[0].run, 60)
    assert row(jobs[0]) == ("my-baseline", "running", "60/200", "3.500", "4.250", "24", "1:10")
    jobs[0].state = "finished"
    assert row(jobs[0]) == ("my-baseline", "finished", "60/200", "3.500", "4.250", "", "")


def test_into_a_file_goes_one_line_per_change(
    jobs: list[SweepRun], capsys: pytest.CaptureFixture[str]
) -> None:
    table = SweepTable()
    table(jobs)
    jobs[0].state = "running"
    table(jobs)
    table(jobs)
    train(jobs[0].run, 3)
    jobs[0].state, jobs[1].state = "finished", "failed"
    table(jobs)
    assert capsys.readouterr().out.splitlines() == [
        "my-baseline  running",
        "my-baseline  finished  3/200  3.500  4.250",
        "my-baseline-seed1  failed",
    ]


def test_on_a_terminal_the_table_is_rewritten_in_place(
    jobs: list[SweepRun], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    table = SweepTable()
    table(jobs)
    jobs[0].state = "running"
    table(jobs)
    first, second = capsys.readouterr().out.split("\x1b[3A\x1b[J")
    assert [line.split() for line in first.splitlines()][1:] == [
        ["my-baseline", "waiting"],
        ["my-baseline-seed1", "waiting"],
    ]
    assert second.splitlines()[1].split() == ["my-baseline", "running"]
