"""For the unit tests and for nbval alike: one thread, results outside the tree, nobody's IPython profile."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from nbval.plugin import IPyNbCell

sys.path.insert(0, str(Path(__file__).with_name("tests") / "notebooks"))
pytest_plugins = ["tolerance"]

_scratch = tempfile.mkdtemp(prefix="labkit-test-")
os.environ |= {"LABKIT_OUT": _scratch, "IPYTHONDIR": os.path.join(_scratch, "ipython")}  # noqa: PTH118
os.environ["LABKIT_LIVE"] = "0"
for _name, _value in {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "LABKIT_PROFILE": "lesson"}.items():
    os.environ.setdefault(_name, _value)

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

_broken_notebooks: dict[str, str] = {}


def pytest_unconfigure() -> None:
    shutil.rmtree(_scratch, ignore_errors=True)


def _is_notebook_cell(item: pytest.Item) -> bool:
    return isinstance(item, IPyNbCell)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """After a cell that failed, the rest of its notebook says nothing: skip it."""
    if _is_notebook_cell(item) and (cell := _broken_notebooks.get(str(item.path))):
        pytest.skip(f"after the failed cell {cell}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if not _is_notebook_cell(item):
        return report
    if report.passed and getattr(item.parent, "timed_out", False):
        # What nbval interrupted may have taken that for a wish to end early, as a training does.
        report.outcome, report.longrepr = "failed", f"{item.name} ran out of time (--nbval-cell-timeout)"
    if report.failed:
        _broken_notebooks.setdefault(str(item.path), item.name)
    return report
