"""What the tests of training share."""

from __future__ import annotations

import os

import pytest

from labkit.training import environment


@pytest.fixture(autouse=True)
def _same_code(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resuming warns when the code has changed; here it may change, by an editor, while a test runs."""
    monkeypatch.setattr(environment, "_git_state", lambda: "commit")


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy disk takes seconds to flush; test_durability.py proves that and when it is asked to."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
