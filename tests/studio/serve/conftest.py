"""Servers that tests share, and one whose tokens pass through a gate."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving import Gate, Running, running, tiny_app

from labstudio.serve import service


@pytest.fixture(scope="module")
def tiny() -> Iterator[Running]:
    """A model of characters, served."""
    with running(tiny_app()) as server:
        yield server


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds every token back until the test lets it pass; at the end all pass."""
    gate = Gate(service.stream_tokens)
    monkeypatch.setattr(service, "stream_tokens", gate)
    yield gate
    gate.let(10**6)
