"""A run on disk.

runs/<id>/   config.json        what the run was started with
             environment.jsonl  one row per start: versions, device, threads, precision, git
             metrics.jsonl      one row per step and per evaluation
             samples.jsonl      text the model wrote on the way
             tokenizer.json     what turns its ids into text
             checkpoints/       see checkpoint.py
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from labkit.paths import output_dir
from labkit.text import Tokenizer, load_tokenizer
from labkit.training.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    flush,
    load_checkpoint,
    verify,
    write_text_atomically,
)

if TYPE_CHECKING:
    import pandas as pd

    from labkit.model import GPT


def runs_dir() -> Path:
    """The folder that holds all runs."""
    return output_dir() / "runs"


@dataclass(frozen=True)
class Run:
    """One training run's folder. Rows are appended; a torn last line is ignored when read."""

    path: Path

    @classmethod
    def create(cls, name: str, root: Path | None = None) -> Run:
        """A new, empty run folder; when the name is taken, `name-2`, `name-3` … so that nothing is lost.

        Raises ValueError for a name that is not a plain folder name.
        """
        if not name or name in {".", ".."} or any(sign in name for sign in '/\\:*?"<>|\0'):
            raise ValueError(f"Run: name={name!r} must be a plain folder name, such as 'first-try'.")
        root = root or runs_dir()
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = root / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
                return cls(path)
            except FileExistsError:
                number += 1

    @classmethod
    def open(cls, name: str | Path, root: Path | None = None) -> Run:
        """An existing run, by name or path.  Raises ValueError that lists the runs there are."""
        for path in (Path(name), (root or runs_dir()) / name):
            if (path / "config.json").is_file():
                return cls(path)
        known = ", ".join(run.id for run in list_runs(root)) or "none yet; `labkit train` makes one"
        raise ValueError(f"There is no run {str(name)!r}. Runs: {known}.")

    @property
    def id(self) -> str:
        """The run's folder name."""
        return self.path.name

    @property
    def checkpoints_path(self) -> Path:
        """The folder that holds the run's checkpoints."""
        return self.path / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from writing this run; the lock falls with the process that holds it.

        Raises RuntimeError when another one holds it.
        """
        try:
            with FileLock(self.path / ".lock", timeout=0, is_singleton=True):
                yield
        except Timeout as error:
            raise RuntimeError(
                f"Run {self.id} is being written by another process. Wait for it or stop it, or start a run "
                "of another name."
            ) from error

    def write_config(self, config: dict[str, Any]) -> None:
        """Record what the run was started with."""
        text = json.dumps(config, indent=2, ensure_ascii=False)
        write_text_atomically(self.path / "config.json", text + "\n")

    def config(self) -> dict[str, Any]:
        """What the run was started with."""
        loaded: dict[str, Any] = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        return loaded

    def append(self, file: str, row: dict[str, Any]) -> None:
        """Add one row to `metrics` or `samples`."""
        line = json.dumps(row, ensure_ascii=False) + "\n"
        with (self.path / f"{file}.jsonl").open("ab+") as handle:
            if handle.tell():
                handle.seek(-1, os.SEEK_END)
                line = line if handle.read(1) == b"\n" else "\n" + line  # after a torn line
            handle.write(line.encode())

    def rows(self, file: str) -> list[dict[str, Any]]:
        """All whole rows of `metrics`, `samples` or `environment`."""
        return [row for _, row in self._lines(file)]

    def _lines(self, file: str) -> Iterator[tuple[str, dict[str, Any]]]:
        path = self.path / f"{file}.jsonl"
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue  # the torn last line of a run that was cut off, or is being written
            if isinstance(row, dict):
                yield line, row

    def rewind(self, step: int, pending: list[str]) -> None:
        """Drop the metrics and samples of later steps, and those of `step` that are still to come."""
        for file in ("metrics", "samples"):
            lines = list(self._lines(file))
            kept = [
                line
                for line, row in lines
                if row.get("step", 0) < step
                or (row.get("step") == step and row.get("event", "sample") not in pending)
            ]
            if len(kept) < len(lines):
                text = "".join(line + "\n" for line in kept)
                write_text_atomically(self.path / f"{file}.jsonl", text)

    def flush(self) -> None:
        """Wait until all rows are on the disk."""
        for file in self.path.glob("*.jsonl"):
            flush(file)

    def metrics(self, event: str) -> pd.DataFrame:
        """The rows of one kind of event (`step` or `evaluation`) as a table."""
        import pandas as pd

        rows = [row for row in self.rows("metrics") if row.pop("event") == event]
        return pd.DataFrame(rows)

    def checkpoints(self) -> list[CheckpointInfo]:
        """What looks like a checkpoint, oldest first; `newest_whole` says which can be used."""
        found = []
        for file in self.checkpoints_path.glob("step-*/checkpoint.json"):
            try:
                metadata = json.loads(file.read_text(encoding="utf-8"))
                found.append(CheckpointInfo(file.parent, int(metadata["step"]), metadata.get("val_loss")))
            except (OSError, ValueError, KeyError, TypeError):
                continue  # damaged, or pruned while we look
        return sorted(found, key=lambda info: info.step)

    def newest_whole(self) -> tuple[Path, dict[str, Any], list[str]]:
        """The newest whole checkpoint, its metadata, and why each newer one cannot be used.

        Raises CheckpointError when there is none.
        """
        folders = self.checkpoints_path.glob("*step-*")
        wrong: list[str] = []
        for path in sorted(folders, key=lambda path: (path.name.split("step-")[1], path.name), reverse=True):
            if path.name.startswith("damaged"):
                continue
            try:
                return path, verify(path), wrong
            except CheckpointError as error:
                if not path.name.startswith("."):
                    wrong.append(str(error))
        found = f" {' '.join(wrong)}" if wrong else f" {self.checkpoints_path} holds none."
        raise CheckpointError(f"Run {self.id} has no whole checkpoint.{found}")

    def keep(self, saved: CheckpointInfo, keep_last: int) -> None:
        """Move `latest`, and `best` where it is that; then delete all but the newest keep_last and best."""
        root = self.checkpoints_path
        if saved.val_loss is not None and saved.val_loss < self._best_loss():
            write_text_atomically(root / "best", f"{saved.path.name}\n")
        write_text_atomically(root / "latest", f"{saved.path.name}\n")
        best = self.pointer("best")
        older = [each.path for each in self.checkpoints() if each.step <= saved.step]
        leftovers = [*root.glob(".new-step-*"), *root.glob(".old-step-*")]
        for path in [*older[:-keep_last], *leftovers]:
            if path != best:
                shutil.rmtree(path, ignore_errors=True)

    def pointer(self, name: str) -> Path | None:
        """The checkpoint that `latest` or `best` names, None where there is none."""
        try:
            folder = (self.checkpoints_path / name).read_text(encoding="utf-8").strip()
        except (OSError, ValueError):
            return None
        path = self.checkpoints_path / Path(folder or "-").name
        return path if path.is_dir() else None

    def _best_loss(self) -> float:
        best = self.pointer("best")
        losses = [each.val_loss for each in self.checkpoints() if each.path == best]
        return losses[0] if losses and losses[0] is not None else float("inf")

    def load(self) -> tuple[GPT, Tokenizer]:
        """The model of the newest whole checkpoint and its tokenizer.  Raises CheckpointError without one."""
        model, _ = load_checkpoint(self.newest_whole()[0])
        return model, load_tokenizer(self.path / "tokenizer.json")


def list_runs(root: Path | None = None) -> list[Run]:
    """All runs, oldest first."""
    root = root or runs_dir()
    configs = sorted(root.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    return [Run(path.parent) for path in configs]
