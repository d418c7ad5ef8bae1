"""`make notebooks` writes clean outputs or nothing; nbval stops at the first cell that fails."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from nbval.plugin import get_sanitize_patterns

ROOT = Path(__file__).parents[2]
NBVAL = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=60"]


def notebook(path: Path, *sources: str) -> Path:
    cells = [new_code_cell(source, id=f"cell-{number}") for number, source in enumerate(sources)]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def copy_plugin(folder: Path) -> None:
    """What makes pytest compare notebooks in `folder` as it does the lessons."""
    (folder / "tests" / "notebooks").mkdir(parents=True)
    for name in ("conftest.py", "tests/notebooks/tolerance.py", "tests/notebooks/sanitize.cfg"):
        shutil.copy(ROOT / name, folder / name)


def run(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=120
    )


def execute(*paths: Path) -> subprocess.CompletedProcess[str]:
    return run(ROOT / "scripts" / "execute_notebooks.py", *paths, folder=paths[0].parent)


def test_outputs_are_clean_and_pass_nbval(tmp_path: Path) -> None:
    path = notebook(
        tmp_path / "01_a.ipynb",
        "import os\nprint('LABKIT_OUT' in os.environ, os.environ['LABKIT_PROFILE'])",
        "import ipywidgets\nipywidgets.IntSlider()",
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(3)):\n    print('step', flush=True)",
    )
    done = execute(path)
    assert done.returncode == 0, done.stderr
    assert "[1/1] 01_a.ipynb" in done.stdout
    first = path.read_bytes()
    written = nbformat.reads(first.decode(), as_version=nbformat.NO_CONVERT)
    assert [cell.id for cell in written.cells] == ["cell-0", "cell-1", "cell-2"]
    assert [cell.execution_count for cell in written.cells] == [1, 2, 3]
    assert written.cells[0].outputs[0].text == "False lesson\n"
    assert b"widget-view" not in first
    assert all(cell.metadata == {} for cell in written.cells)

    assert execute(path).returncode == 0
    assert path.read_bytes() == first

    copy_plugin(tmp_path)
    # LABKIT_OUT is set under nbval, so the first cell differs: strict comparison must see that.
    done = run("-m", "pytest", "-q", *NBVAL, path, folder=tmp_path)
    assert "1 failed, 2 skipped" in done.stdout, done.stdout
    path.write_bytes(first.replace(b"False lesson", b"True lesson"))
    done = run("-m", "pytest", "-q", *NBVAL, path, folder=tmp_path)
    assert "3 passed" in done.stdout, done.stdout


def test_pytest_alone_compares_within_the_tolerance(tmp_path: Path) -> None:
    copy_plugin(tmp_path)
    for name, printed, committed, tags in (
        ("01_within", "loss 1.90 after 3 s", "loss 1.91 after 5 s", []),
        ("02_close", "loss 1.90", "loss 1.95", ["close-3%"]),
        ("03_beyond", "loss 1.90", "loss 1.93", []),
        ("04_far", "loss 1.90", "loss 1.90", ["close-20%"]),
    ):
        cell = new_code_cell(f"print({printed!r})", execution_count=1, metadata={"tags": tags})
        cell.outputs = [new_output("stream", text=f"{committed}\n")]
        nbformat.write(new_notebook(cells=[cell]), tmp_path / f"{name}.ipynb")
    told = run("-m", "pytest", "-q", "--nbval", "--nbval-current-env", ".", folder=tmp_path).stdout
    assert "2 failed, 2 passed" in told, told
    assert "1.93 became 1.90; the tolerance is 0.01 or 0.1 %" in told
    assert "committed: loss 1.93\n" in told
    assert "computed:  loss 1.90\n" in told
    assert "['close-20%'] are no tolerance" in told


def test_a_failing_cell_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    good = notebook(tmp_path / "01_a.ipynb", "1")
    bad = notebook(tmp_path / "02_b.ipynb", "print('fine')", "1 / 0")
    never = notebook(tmp_path / "03_c.ipynb", "1")
    before = [bad.read_bytes(), never.read_bytes()]
    done = execute(good, bad, never)
    assert done.returncode == 1
    assert "02_b.ipynb, cell 1: ZeroDivisionError: division by zero" in done.stderr
    assert "03_c" not in done.stdout
    assert [bad.read_bytes(), never.read_bytes()] == before
    assert sorted(path.name for path in tmp_path.glob("*")) == ["01_a.ipynb", "02_b.ipynb", "03_c.ipynb"]


def test_a_cell_that_ran_out_of_time_fails_even_where_it_ends_in_peace(tmp_path: Path) -> None:
    patient = """import signal, threading
ended = threading.Event()
before = signal.signal(signal.SIGINT, lambda *_: ended.set())
while not ended.wait(0.1):
    pass
_ = signal.signal(signal.SIGINT, before)"""
    path = notebook(tmp_path / "01_a.ipynb", patient, "1 + 1")
    copy_plugin(tmp_path)
    limit = ["--nbval", "--nbval-current-env", "--nbval-cell-timeout=3"]
    done = run("-m", "pytest", "-q", *limit, path, folder=tmp_path)
    assert done.returncode == 1
    assert "1 failed, 1 skipped" in done.stdout, done.stdout
    assert "ran out of time" in done.stdout


def test_a_missing_notebook_is_named(tmp_path: Path) -> None:
    done = execute(tmp_path / "none.ipynb")
    assert done.returncode == 2
    assert "There is no notebook" in done.stderr


def test_results_go_outside_the_tree_under_tests() -> None:
    assert not Path(os.environ["LABKIT_OUT"]).is_relative_to(ROOT)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("trained in 12.3 s at 4,500 tokens/s", "trained in 9.1 s at 4,811 tokens/s"),
        (" 50%|#####     | 5/10 [00:01<00:01, 4.9it/s]", " 60%|######    | 6/10 [00:02<00:01, 5.2it/s]"),
        ("<Figure at 0x7f2b9f3e4c90>", "<Figure at 0x7f2b9f3e4d00>"),
        ("/tmp/labkit-test-ab/03.png", "/tmp/labkit-test-cd/03.png"),
    ],
)
def test_the_sanitizer_hides_what_changes_by_itself(text: str, same: str) -> None:
    assert sanitized(text) == sanitized(same)


@pytest.mark.parametrize(
    ("text", "other"),
    [("loss 1.90", "loss 1.91"), ("shape (4, 64)", "shape (4, 65)"), ("| 25% | 3 |", "| 25% | 4 |")],
)
def test_the_sanitizer_hides_no_results(text: str, other: str) -> None:
    assert sanitized(text) != sanitized(other)


def sanitized(text: str) -> str:
    config = (ROOT / "tests" / "notebooks" / "sanitize.cfg").read_text(encoding="utf-8")
    for pattern, replacement in get_sanitize_patterns(config):
        text = re.sub(pattern, replacement, text)
    return text
