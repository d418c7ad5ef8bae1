"""What the tests of training share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import copy_of, killed_at, outcome, tiny_trainer

from labkit.training import Run, fit


@pytest.fixture(scope="module", autouse=True)
def _same_code() -> Iterator[None]:
    """Resuming warns when the code has changed; here it may change, by an editor, while a test runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labkit.training.run._git_state", lambda: "commit")
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A busy disk takes seconds to flush; test_durability.py proves that and when it is asked to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A tiny run killed after step 8 of 9, with checkpoints of steps 3 and 6."""
    return killed_at(8, Run.create("killed", tmp_path_factory.mktemp("runs")))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The same run, never stopped."""
    run = Run.create("whole", tmp_path_factory.mktemp("runs"))
    assert fit(tiny_trainer(), run=run, progress=False)
    return run


@pytest.fixture(scope="module")
def whole(finished: Run) -> dict[str, Any]:
    """What a resumed run has to end as."""
    return outcome(finished)


@pytest.fixture
def run(killed: Run, tmp_path: Path) -> Run:
    """A copy of the killed run, to damage and to resume."""
    return copy_of(killed, tmp_path)
