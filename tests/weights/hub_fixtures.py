"""Fixtures for the tests of downloads: a hub on loopback, and a library that knows no other."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from fake_hub import CONFIG, REPO, WEIGHTS, FakeHub, use
from huggingface_hub import constants, file_download


@pytest.fixture(scope="module")
def hub_session() -> Iterator[None]:
    """A connection of the file's own, which knows of no proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        huggingface_hub.close_session()
        huggingface_hub.get_session()
        yield
    huggingface_hub.close_session()


@pytest.fixture
def hub(hub_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with one model, asked by a library with an empty cache; nothing else can be reached."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    connect = socket.socket.connect

    def only_loopback(self: socket.socket, address: tuple[str, int]) -> None:
        assert address[0] in ("127.0.0.1", "::1"), f"a test reaches for {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_loopback)
    files = {"config.json": CONFIG, "merges.txt": b"a b\n", "model.safetensors": WEIGHTS}
    with FakeHub({REPO: files}) as hub:
        use(hub, monkeypatch)
        yield hub
