"""Writes that are refused, and a disk that is full: the run stops with a message, and nothing is lost.

Each row is a test; `pytest --collect-only -q tests/training/test_refused_writes.py` prints the table.
Refusals are injected, since root may write to what chmod protects; the full disk is a real one where tests
may mount it.
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_run import killed_at, resumed, tiny_trainer

from labkit.training import CheckpointError, Run, fit, restore
from labkit.training.checkpoint import verify


def refuse(patch: pytest.MonkeyPatch, module: Any, name: str, number: int, when: Callable[..., bool]) -> None:
    """Let a function of the operating system fail for some arguments."""
    original = getattr(module, name)

    def refused(*args: Any, **kwargs: Any) -> Any:
        if when(*args):
            raise OSError(number, os.strerror(number), str(args[0]))
        return original(*args, **kwargs)

    patch.setattr(module, name, refused)


def path_of(handle: int) -> str:
    return str(Path(f"/proc/self/fd/{handle}").readlink())


def opens(ending: str) -> tuple[Any, str, Callable[..., bool]]:
    """Opening a file for writing whose path ends so."""

    def when(path: Any, mode: str = "r", *_: Any) -> bool:
        return str(path).endswith(ending) and mode != "r" and mode != "rb"

    return io, "open", when


STEP = ".new-step-00000006"
PLACES: dict[str, tuple[Any, str, Callable[..., bool]]] = {
    "making the new folder": (os, "mkdir", lambda path, *_: str(path).endswith(STEP)),
    "opening state.pt": opens(f"{STEP}/state.pt"),
    "opening checkpoint.json": opens(f"{STEP}/checkpoint.json"),
    "opening SHA256SUMS": opens(f"{STEP}/SHA256SUMS"),
    "flushing a file": (os, "fsync", lambda handle: path_of(handle).endswith(f"{STEP}/state.pt")),
    "flushing the new folder": (os, "fsync", lambda handle: path_of(handle).endswith(STEP)),
    "renaming the folder": (os, "rename", lambda path, *_: str(path).endswith(STEP)),
    "moving latest": (os, "replace", lambda path, *_: str(path).endswith(".new-latest")),
}
KINDS = {"EROFS": errno.EROFS, "EACCES": errno.EACCES, "EIO": errno.EIO, "ENOSPC": errno.ENOSPC}


def kinds_at(place: str) -> list[str]:
    return ["EIO"] if place.startswith("flushing") else list(KINDS)


@pytest.mark.parametrize(
    ("kind", "place"), [(kind, place) for place in PLACES for kind in kinds_at(place)],
    ids=[f"{kind} when {place} -> CheckpointError, older ones intact, resumed bit for bit"
         for place in PLACES for kind in kinds_at(place)],
)  # fmt: skip
def test_a_refused_write_while_saving(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str, place: str
) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc")
    run = Run.create("refused", tmp_path)
    with monkeypatch.context() as patch:
        refuse(patch, PLACES[place][0], PLACES[place][1], KINDS[kind], PLACES[place][2])
        with pytest.raises(
            CheckpointError, match=f"could not be written .*{os.strerror(KINDS[kind])}.* intact"
        ):
            fit(tiny_trainer(), run=run, progress=False)
    for folder in run.checkpoints_path.glob("step-*"):
        assert verify(folder)["step"] in (3, 6)
    assert not list(run.checkpoints_path.glob(".*"))
    assert resumed(run) == whole


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("file", "row"),
    [("environment", 1), ("metrics", 1), ("metrics", 11), ("samples", 2)],
    ids=lambda value: f"row {value}" if isinstance(value, int) else f"{value}.jsonl",
)
def test_a_refused_row(
    tmp_path: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str, file: str, row: int
) -> None:
    """-> OSError that names the file and the way on; resumed bit for bit."""
    run, calls = Run.create("refused", tmp_path), []

    def when(path: Any, mode: str = "r", *_: Any) -> bool:
        if str(path).endswith(f"{file}.jsonl") and mode == "ab+":
            calls.append(path)
        return len(calls) == row

    with monkeypatch.context() as patch:
        refuse(patch, io, "open", KINDS[kind], when)
        with pytest.raises(
            OSError, match=rf"{file}\.jsonl could not be written .* can be resumed from"
        ) as error:
            fit(tiny_trainer(), run=run, progress=False)
    assert error.value.errno == KINDS[kind]
    if run.checkpoints():
        assert resumed(run) == whole
    else:
        with pytest.warns(
            UserWarning, match="stopped before its first checkpoint; it starts again at step 0"
        ):
            assert resumed(run) == whole


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 600 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def fill(disk: Path, leave: int) -> None:
    free = shutil.disk_usage(disk).free - leave
    (disk / "filler").write_bytes(bytes(max(0, free // 4096 * 4096)))


@pytest.mark.parametrize("room", [8_192, 20_480, 28_672, 40_960, 57_344, 65_536])
def test_a_full_disk_while_saving(small_disk: Path, whole: dict[str, Any], room: int) -> None:
    """-> CheckpointError with what the disk said, older ones intact; resumed once there is room."""
    run = killed_at(5, Run.create("full", small_disk))
    (run.path / "metrics.jsonl").open("ab").write(b"\n" * 4000)  # rows still fit
    fill(small_disk, leave=room)
    trainer = tiny_trainer()
    restore(trainer, run)
    with pytest.raises((CheckpointError, OSError), match="No space left on device") as error:
        fit(trainer, run=run, progress=False)
    assert "intact" in str(error.value)
    assert verify(run.newest_whole()[0])["step"] == 3
    (small_disk / "filler").unlink()
    assert resumed(run) == whole


def test_a_full_disk_while_rows_are_dropped(small_disk: Path, whole: dict[str, Any]) -> None:
    """-> OSError, the rows are as before; resumed bit for bit once there is room."""
    run = killed_at(5, Run.create("full", small_disk))
    fill(small_disk, leave=0)
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(OSError, match="No space left on device"):
        restore(tiny_trainer(), run)
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert not list(run.path.glob(".new-*"))
    (small_disk / "filler").unlink()
    assert resumed(run) == whole
