"""The lessons run where no tool of this project runs them: papermill from any folder, plain nbconvert."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

LESSONS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


def start(*arguments: str | Path, folder: Path) -> subprocess.Popen[str]:
    """A Python module in the smoke profile; what it writes goes to `folder`, in which it starts."""
    environment = os.environ | {"LABKIT_PROFILE": "smoke", "LABKIT_OUT": str(folder), "OMP_NUM_THREADS": "1"}
    environment.pop("LABKIT_LIVE", None)  # as a reader's has none
    command = [sys.executable, "-m", *map(str, arguments)]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, text=True)


def assert_complete(executed: Path, lesson: Path) -> None:
    cells = [each for each in nbformat.read(executed, as_version=4).cells if each.cell_type == "code"]
    wanted = [each for each in nbformat.read(lesson, as_version=4).cells if each.cell_type == "code"]
    assert [cell.source for cell in cells] == [cell.source for cell in wanted]
    assert [cell.execution_count for cell in cells] == list(range(1, len(wanted) + 1))
    assert [output for cell in cells for output in cell.outputs if output.output_type == "error"] == []
    assert cells[0].outputs[0].text.startswith("profile: smoke")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_papermill_and_plain_nbconvert_run_a_lesson_from_another_folder(lesson: Path, tmp_path: Path) -> None:
    folders = [tmp_path / "papermill", tmp_path / "nbconvert"]
    for folder in folders:
        folder.mkdir()
    kernel = ("--kernel", "python3", "--no-progress-bar")
    output = ("--output-dir", folders[1], "--output", "executed.ipynb")
    with (  # side by side, on a core each
        start("papermill", lesson, "executed.ipynb", *kernel, folder=folders[0]) as papermill,
        start("nbconvert", "--to", "notebook", "--execute", lesson, *output, folder=folders[1]) as nbconvert,
    ):
        codes = [papermill.wait(), nbconvert.wait()]
    assert codes == [0, 0], "\n".join((folder / "log").read_text()[-3000:] for folder in folders)
    for folder in folders:
        assert_complete(folder / "executed.ipynb", lesson)
