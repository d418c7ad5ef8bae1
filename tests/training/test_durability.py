"""What survives a power cut: a model of a disk that keeps only what it was told to flush."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import GPT, GPTConfig, TrainConfig
from labkit.text import CharTokenizer
from labkit.training import Checkpoint, Run, Trainer, fit
from labkit.training.resume import save

TEXT = "to be or not to be, that is the question; " * 12
TOKENIZER = CharTokenizer.from_text(TEXT)
IDS = torch.tensor(TOKENIZER.encode(TEXT))

pytestmark = pytest.mark.skipif(os.scandir not in os.supports_fd, reason="folders cannot be opened here")

Names = dict[str, tuple[int, bool]]
"""What a folder lists: inodes, and which of them are folders."""


class Disk:
    """Remembers what fsync has made safe: the bytes of files and the names in folders, by inode."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: dict[int, bytes] = {}
        self.folders: dict[int, Names] = {}
        self.now: dict[int, Names] = {}
        self.held: list[int] = []
        self.log: list[str] = []

    def fsync(self, handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        if not path.is_relative_to(self.root):
            return
        self.held.append(os.dup(handle))  # an inode in use is not given to another file
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            self.folders[found.st_ino] = names(handle)
        else:
            self.files[found.st_ino] = path.read_bytes()
        self.log.append(f"flush {path.relative_to(self.root)}")

    def after_power_loss(self, target: Path, surviving: Callable[[int], Names]) -> Run:
        """The folder as it comes back; surviving: the names of a folder that reached the disk."""
        self.now = {folder.stat().st_ino: names(folder) for folder in all_folders(self.root)}

        def restore(inode: int, place: Path) -> None:
            place.mkdir(parents=True)
            for name, (child, is_folder) in surviving(inode).items():
                if is_folder:
                    restore(child, place / name)
                else:
                    (place / name).write_bytes(self.files.get(child, b""))

        restore(self.root.stat().st_ino, target)
        return Run(target / "first")

    def late(self, folder: int) -> Names:
        """Nothing reaches the disk before it is flushed."""
        return self.folders.get(folder, {})

    def early(self, folder: int) -> Names:
        """Names reach the disk at once, the bytes of files when flushed."""
        return self.now.get(folder, {})

    def mixed(self, folder: int) -> Names:
        """Deletions reach the disk at once, everything else, renaming too, when flushed."""
        alive = {entry for entries in self.now.values() for entry in entries.values()}
        return {name: entry for name, entry in self.late(folder).items() if entry in alive}


def all_folders(root: Path) -> list[Path]:
    return [root, *(path for path in root.rglob("*") if path.is_dir())]


def names(folder: Path | int) -> Names:
    with os.scandir(folder) as entries:
        return {each.name: (each.inode(), each.is_dir()) for each in entries}


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    root = tmp_path / "runs"
    root.mkdir()
    disk = Disk(root)
    monkeypatch.setattr(os, "fsync", disk.fsync)
    yield disk
    for handle in disk.held:
        os.close(handle)


def trainer() -> Trainer:
    torch.manual_seed(0)
    shape = {"context_length": 7, "d_model": 10, "n_layers": 1, "n_heads": 2}
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, **shape))
    config = TrainConfig(
        max_steps=4, batch_size=3, eval_windows=5, eval_every=1, checkpoint_every=1, sample_every=2,
        sample_tokens=3, keep_last=1,
    )  # fmt: skip
    return Trainer(model, IDS[:400], IDS[400:], config, tokenizer=TOKENIZER, prompt="t")


def test_a_power_cut_at_any_moment_loses_nothing_that_was_announced(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, some = Run.create("first", disk.root), trainer()
    announced, moments, cutting = [-1], [0], False

    def cut() -> None:
        nonlocal cutting
        if cutting:
            return
        cutting = True
        for surviving in (disk.late, disk.early, disk.mixed):
            moments[0] += 1
            found = disk.after_power_loss(tmp_path / f"cut-{moments[0]}", surviving)
            if announced[0] < 0:
                continue
            _, metadata, _ = found.newest_whole()
            assert metadata["step"] >= announced[0], f"{surviving.__name__}: {disk.log[-5:]}"
            assert found.config() == run.config()
            assert found.rewind(metadata["step"], metadata["pending"]) == 0
            wanted = [row for row in run.rows("samples") if row["step"] <= metadata["step"]]
            assert found.rows("samples") == wanted or "sample" in metadata["pending"]
            assert found.load()[1].fingerprint == TOKENIZER.fingerprint
            shutil.rmtree(found.path.parent)
        cutting = False

    def then_cut(name: str) -> None:
        original = getattr(os, name)

        def do(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            cut()
            return result

        monkeypatch.setattr(os, name, do)

    for name in ("fsync", "rename", "replace", "unlink", "rmdir"):
        then_cut(name)

    def announce(event: object) -> None:
        if isinstance(event, Checkpoint):
            announced[0] = event.step
            cut()

    fit(some, run=run, progress=False, callbacks=[announce])
    assert announced == [4]
    save(some, run)  # the same step once more: the old folder makes way
    cut()
    assert moments[0] > 100


def test_everything_is_flushed_before_it_is_named(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("rename", "replace"):
        original = getattr(os, name)

        def do(source: Any, target: Any, original: Any = original) -> None:
            disk.log.append(f"rename {Path(target).relative_to(disk.root)}")
            original(source, target)

        monkeypatch.setattr(os, name, do)
    run, some = Run.create("first", disk.root), trainer()
    disk.log.clear()
    save(some, run)
    fresh = "first/checkpoints/.new-step-00000000"
    files = {"checkpoint.json", "model.safetensors", "state.pt", "SHA256SUMS"}
    assert disk.log[:2] == ["flush first", "flush first"]  # its rows; then the new folder checkpoints
    assert set(disk.log[2:6]) == {f"flush {fresh}/{name}" for name in files}
    assert disk.log[6:] == [
        f"flush {fresh}",
        "rename first/checkpoints/step-00000000",
        "flush first/checkpoints",
        "flush first/checkpoints/.new-latest",
        "rename first/checkpoints/latest",
        "flush first/checkpoints",
    ]
