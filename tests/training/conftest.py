"""What the tests of training share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from labkit.training import environment


@pytest.fixture(scope="module", autouse=True)
def _same_code() -> Iterator[None]:
    """Resuming warns when the code has changed; here it may change, by an editor, while a test runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(environment, "_git_state", lambda: "commit")
        yield


@pytest.fixture(scope="module", autouse=True)
def _no_waiting_for_the_disk() -> Iterator[None]:
    """A busy disk takes seconds to flush; test_durability.py proves that and when it is asked to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield
