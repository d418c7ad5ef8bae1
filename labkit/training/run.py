"""A run on disk, and what it was computed with.

runs/<id>/   config.json        what the run was started with
             environment.jsonl  one row per start: versions, device, threads, precision, git
             metrics.jsonl      one row per step and per evaluation
             samples.jsonl      text the model wrote on the way
             tokenizer.json     what turns its ids into text
             checkpoints/       see checkpoint.py
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from labkit.device import describe_device
from labkit.io import check_name, flush, json_object, project_root, runs_dir, write_text_atomically
from labkit.text import Tokenizer, load_tokenizer
from labkit.training.checkpoint import (
    CheckpointError,
    CheckpointInfo,
    load_checkpoint,
    verify,
)

if TYPE_CHECKING:
    import pandas as pd

    from labkit.model import GPT


@dataclass(frozen=True)
class Run:
    """One training run's folder. Rows are appended; a torn last line is ignored when read."""

    path: Path

    @classmethod
    def create(cls, name: str, root: Path | None = None) -> Run:
        """A new, empty run folder; when the name is taken, `name-2`, `name-3` … so that nothing is lost.

        Raises ValueError for a name that `check_name` refuses.
        """
        check_name(name, "Run: name")
        root = root or runs_dir()
        root.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            path = root / (name if number == 1 else f"{name}-{number}")
            try:
                path.mkdir()
                break
            except FileExistsError:
                number += 1
        flush(root)
        return cls(path)

    @classmethod
    def open(cls, name: str | Path, root: Path | None = None) -> Run:
        """An existing run, by name or path.  Raises ValueError that lists the runs there are."""
        for path in (Path(name), (root or runs_dir()) / name):
            if (path / "config.json").is_file():
                return cls(path)
            if (path / "checkpoints").is_dir():
                raise ValueError(
                    f"{path} has no config.json, so its training cannot go on. The model can still be "
                    "loaded: load_checkpoint(folder) with a folder of its checkpoints."
                )
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
        from filelock import FileLock, Timeout

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
        """What the run was started with.  Raises ValueError for a damaged file."""
        path = self.path / "config.json"
        try:
            loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return dict(loaded)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged ({error}). Put back a copy of it; or load the model alone: "
                "load_checkpoint(folder) with a folder of the run's checkpoints."
            ) from error

    def append(self, file: str, row: dict[str, Any]) -> None:
        """Add one row to `metrics`, `samples` or `environment`.  Raises OSError when it cannot be written."""
        line = _line(row)
        path = self.path / f"{file}.jsonl"
        try:
            with path.open("ab+") as handle:
                if handle.tell():
                    handle.seek(-1, os.SEEK_END)
                    line = line if handle.read(1) == b"\n" else "\n" + line  # after a torn line
                handle.write(line.encode())
        except OSError as error:
            raise OSError(
                error.errno,
                f"{path} could not be written ({error.strerror}). The checkpoints are intact: once the disk "
                "takes files again, the run can be resumed from them",
            ) from error

    def rows(self, file: str) -> list[dict[str, Any]]:
        """All whole rows of `metrics`, `samples` or `environment`.

        The torn last line of a run that was killed, or is being written, is left out.
        """
        path = self.path / f"{file}.jsonl"
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []
        rows = [row for line in lines if (row := json_object(line)) is not None]
        return [row for row in rows if isinstance(row.get("step", 0), int)]

    def rewind(self, step: int, pending: list[str]) -> int:
        """Drop the metrics and samples of later steps, those of `step` still to come, and torn lines.

        Returns how many of the steps up to `step` have no row, because the file was damaged.
        """
        for file in ("metrics", "samples"):
            kept = [
                _line(row)
                for row in self.rows(file)
                if row.get("step", math.inf) < step
                or (row.get("step") == step and row.get("event", "sample") not in pending)
            ]
            text = "".join(kept)
            path = self.path / f"{file}.jsonl"
            if path.exists() and path.read_bytes() != text.encode():
                write_text_atomically(path, text)
        return step - len({row["step"] for row in self.rows("metrics") if row.get("event") == "step"})

    def flush(self) -> None:
        """Wait until all rows are on the disk."""
        for file in self.path.glob("*.jsonl"):
            flush(file)
        flush(self.path)

    def metrics(self, event: str) -> pd.DataFrame:
        """The rows of one kind of event (`step` or `evaluation`) as a table."""
        import pandas as pd

        rows = [row for row in self.rows("metrics") if row.pop("event", None) == event]
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

    def newest_whole(
        self, load: Callable[[Path, dict[str, Any]], None] | None = None
    ) -> tuple[Path, dict[str, Any], list[str]]:
        """The newest whole checkpoint, its metadata, and why each newer one cannot be used.

        load: called with folder and metadata; a checkpoint it raises CheckpointError for is passed over.
        Raises CheckpointError when there is none.
        """
        folders = self.checkpoints_path.glob("*step-*")
        wrong: list[str] = []
        for path in sorted(folders, key=lambda path: (path.name.split("step-")[1], path.name), reverse=True):
            if path.name.startswith("damaged"):
                continue
            try:
                metadata = verify(path)
                if load:
                    load(path, metadata)
                return path, metadata, wrong + self._gone(path)
            except CheckpointError as error:
                if not path.name.startswith("."):
                    wrong.append(str(error))
        found = f" {' '.join(wrong)}" if wrong else f" {self.checkpoints_path} holds none."
        raise CheckpointError(f"Run {self.id} has no whole checkpoint.{found}")

    def _gone(self, newest: Path) -> list[str]:
        """What to say where `latest` names a checkpoint that is newer and not there."""
        latest = self._named_by("latest")
        own = newest.name.removeprefix(".old-").removeprefix(".new-")
        gone = latest > own and not (self.checkpoints_path / latest).exists()
        return [f"{latest}, the newest that was announced, is gone."] if gone else []

    def adopt(self, folder: Path) -> Path:
        """Go on from a whole checkpoint: what is newer is renamed to damaged-…, never deleted.

        Returns its path, which is another one where a crash had left it under a temporary name.
        """
        own = folder.with_name(folder.name.removeprefix(".old-").removeprefix(".new-"))
        for path in self.checkpoints_path.glob("step-*"):
            if path != folder and path.name >= own.name:
                shutil.rmtree(aside := path.with_name(f"damaged-{path.name}"), ignore_errors=True)
                path.rename(aside)
        if folder != own:
            folder.rename(own)
        if self.pointer("latest") != own:
            write_text_atomically(self.checkpoints_path / "latest", f"{own.name}\n")
        return own

    def keep(self, saved: CheckpointInfo, keep_last: int) -> None:
        """Move `best` to the lowest held-out loss and `latest` to `saved`; then delete what is older.

        The newest keep_last and the best stay, and so does what was renamed to damaged-….
        """
        root = self.checkpoints_path
        older = [each for each in self.checkpoints() if each.step <= saved.step]
        evaluated = [
            (each.val_loss, each.step, each.path)
            for each in older
            if each.val_loss is not None and math.isfinite(each.val_loss)
        ]
        best = min(evaluated)[2] if evaluated else None
        if best and best != self.pointer("best"):
            write_text_atomically(root / "best", f"{best.name}\n")
        write_text_atomically(root / "latest", f"{saved.path.name}\n")
        kept = {best, *(each.path for each in older[-keep_last:])}
        leftovers = [*root.glob(".new-step-*"), *root.glob(".old-step-*")]
        for path in [*(each for each in root.glob("step-*") if each.name < saved.path.name), *leftovers]:
            if path not in kept:
                shutil.rmtree(path, ignore_errors=True)

    def pointer(self, name: str) -> Path | None:
        """The checkpoint that `latest` or `best` names, None where there is none."""
        path = self.checkpoints_path / (self._named_by(name) or "-")
        return path if path.is_dir() else None

    def _named_by(self, pointer: str) -> str:
        try:
            return Path((self.checkpoints_path / pointer).read_text(encoding="utf-8").strip()).name
        except (OSError, ValueError):
            return ""

    def load(self) -> tuple[GPT, Tokenizer]:
        """The model of the newest whole checkpoint and its tokenizer.  Raises CheckpointError without one."""
        while True:
            before = sorted(self.checkpoints_path.glob("*step-*"))
            try:
                model, _ = load_checkpoint(self.newest_whole()[0])
                return model, load_tokenizer(self.path / "tokenizer.json")
            except CheckpointError:
                if before == sorted(self.checkpoints_path.glob("*step-*")):
                    raise  # else they were renamed or deleted by the training while we read


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def list_runs(root: Path | None = None) -> list[Run]:
    """All runs, oldest first."""
    root = root or runs_dir()
    configs = root.glob("*/config.json")
    return [Run(path.parent) for path in sorted(configs, key=lambda path: path.stat().st_mtime)]


def environment(device: torch.device, precision: str, world: int = 1) -> dict[str, Any]:
    """Versions, device, CPU threads, precision, number of processes, and the state of the code in git."""
    return {
        "labkit": labkit_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "processes": world,
        "git": _git_state(),
    }


def labkit_version() -> str:
    """The installed version; a checkout can be imported without being installed."""
    try:
        return version("labkit")
    except PackageNotFoundError:
        return "not installed"


def _git_state() -> str | None:
    """The commit, with `+` and a checksum of the changes where Python files differ; None without git."""
    try:
        commit, difference = _git("rev-parse", "HEAD"), _git("diff", "HEAD", "--", "*.py")
        return f"{commit}+{hashlib.sha256(difference.encode()).hexdigest()[:8]}" if difference else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(project_root()), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=True, timeout=10
    )
    return done.stdout.strip()


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, as `name: before -> now`."""
    names = {**before, **now}
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]
