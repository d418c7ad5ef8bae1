"""A run on disk: runs/<id>/ with config.json, metrics.jsonl, samples.jsonl, tokenizer and checkpoints."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.paths import output_dir
from labkit.text import Tokenizer, load_tokenizer
from labkit.training.checkpoint import load_checkpoint

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
    def checkpoint_path(self) -> Path:
        """Where the latest checkpoint is."""
        return self.path / "checkpoints" / "last"

    def write_config(self, config: dict[str, Any]) -> None:
        """Record what the run was started with."""
        text = json.dumps(config, indent=2, ensure_ascii=False)
        (self.path / "config.json").write_text(text, encoding="utf-8")

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
        """All whole rows of `metrics` or `samples`."""
        path = self.path / f"{file}.jsonl"
        rows = []
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # the torn last line of a run that was cut off, or is being written
        return rows

    def metrics(self, event: str) -> pd.DataFrame:
        """The rows of one kind of event (`step` or `evaluation`) as a table."""
        import pandas as pd

        rows = [row for row in self.rows("metrics") if row.pop("event") == event]
        return pd.DataFrame(rows)

    def load(self) -> tuple[GPT, Tokenizer]:
        """The model of the last checkpoint and its tokenizer.  Raises CheckpointError if it is damaged."""
        model, _ = load_checkpoint(self.checkpoint_path)
        return model, load_tokenizer(self.path / "tokenizer.json")


def list_runs(root: Path | None = None) -> list[Run]:
    """All runs, oldest first."""
    root = root or runs_dir()
    configs = sorted(root.glob("*/config.json"), key=lambda path: path.stat().st_mtime)
    return [Run(path.parent) for path in configs]
