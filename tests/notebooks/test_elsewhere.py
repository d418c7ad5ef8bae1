"""The lessons run where no tool of this project runs them: papermill from any folder, plain nbconvert."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

LESSONS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def run(*arguments: str | Path, folder: Path) -> None:
    """A Python module in the smoke profile, with everything it writes in `folder`, which it starts in."""
    environment = os.environ | {"LABKIT_PROFILE": "smoke", "LABKIT_OUT": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("LABKIT_LIVE", None)  # what a reader has not set
    command = [sys.executable, "-m", *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_complete(executed: Path, lesson: Path) -> None:
    cells = [each for each in nbformat.read(executed, as_version=4).cells if each.cell_type == "code"]
    wanted = [each for each in nbformat.read(lesson, as_version=4).cells if each.cell_type == "code"]
    assert [cell.source for cell in cells] == [cell.source for cell in wanted]
    assert [cell.execution_count for cell in cells] == list(range(1, len(wanted) + 1))
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []
    assert cells[0].outputs[0].text.startswith("profile: smoke")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_papermill_runs_a_lesson_from_another_folder(lesson: Path, tmp_path: Path) -> None:
    executed = tmp_path / "executed.ipynb"
    run("papermill", lesson, executed, "--kernel", "python3", "--no-progress-bar", folder=tmp_path)
    assert_complete(executed, lesson)


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_plain_nbconvert_runs_a_lesson(lesson: Path, tmp_path: Path) -> None:
    output = ("--output-dir", tmp_path, "--output", "executed.ipynb")
    run("nbconvert", "--to", "notebook", "--execute", lesson, *output, folder=tmp_path)
    assert_complete(tmp_path / "executed.ipynb", lesson)
