"""Trainings that a dashboard starts: the form, the arguments of `labkit train`, the processes.

Each runs in its own process, known by a record on disk and a log.

RUNS/.dashboard/<when>/   job.json  process id, when that process began, what was asked for
                          log.txt   all that it printed
                          stopping  there once it was asked to stop
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from labkit.analysis.costs import parameter_count, training_memory
from labkit.config import MODEL_PRESETS, TRAIN_PRESETS, DataConfig, GPTConfig, TrainConfig
from labkit.io import check_name, write_text_atomically
from labkit.text.corpus import corpus_names
from labkit.training import Run
from labstudio.visible import unhidden

CHARACTERS = 100
"""About so large is the vocabulary: trainings from here read characters."""

USUAL = {"eval_every": 100, "sample_every": 250, "checkpoint_every": 250}
"""Steps between these in a long training; a short one has four of each."""

DEFAULTS = {
    "preset": "char-mini", "recipe": "", "corpus": "shakespeare", "max_steps": 1000, "learning_rate": "",
    "name": "", "seed": 0,
}  # fmt: skip


def form_choices() -> dict[str, Any]:
    """What the form offers: shapes whose training fits into memory, recipes, named corpora; and defaults."""
    presets: list[tuple[str, str]] = []
    for name, shape in MODEL_PRESETS.items():
        if shape in [MODEL_PRESETS[other] for other, _ in presets]:
            continue  # another name of the same
        config = GPTConfig.preset(name, vocab_size=CHARACTERS)
        if sum(training_memory(config, 1).values()) < _memory():
            presets.append((name, f"{name}, {parameter_count(config) / 1e6:,.1f} M parameters"))
    recipes = [("", "labkit's usual settings")]
    for name, given in TRAIN_PRESETS.items():
        recipes.append((name, f"{name} ({given.get('optimizer', 'adamw')}, {given['schedule']})"))
    return {"presets": presets, "recipes": recipes, "corpora": corpus_names(), "defaults": DEFAULTS}


def train_arguments(options: dict[str, Any]) -> list[str]:
    """The arguments of `labkit train`; no value can be mistaken for another option.

    options: preset, recipe ("" for the usual settings), corpus, max_steps, learning_rate ("" for the
    recipe's), seed, and name ("" for the usual one).
    Raises ValueError for what is wrong even before the corpus is read.
    """
    if missing := sorted(DEFAULTS.keys() - dict(options).keys()):
        raise ValueError(f"The form lacks {', '.join(missing)}.")
    recipe, preset, corpus, name = (str(options[each]) for each in ("recipe", "preset", "corpus", "name"))
    if not corpus.strip():
        raise ValueError("corpus is empty: give a name from the list, or the path of a text.")
    GPTConfig.preset(preset)
    DataConfig(corpus=corpus)
    if name:
        check_name(name, "name")
    given = {field: options[field] for field in ("max_steps", "seed")}
    if options["learning_rate"] != "":
        given["learning_rate"] = options["learning_rate"]
    config = TrainConfig.preset(recipe, **given) if recipe else TrainConfig(**given)
    if config.max_steps is None:
        raise ValueError("max_steps=None must be a whole number.")
    values = {field: getattr(config, field) for field in TRAIN_PRESETS.get(recipe, {}).keys() | given}
    values |= {field: min(usual, max(1, config.max_steps // 4)) for field, usual in USUAL.items()}
    arguments = [f"--preset={preset}", f"--corpus={corpus}", *([f"--name={name}"] if name else [])]
    for field, value in sorted(values.items()):
        option = f"--{field.replace('_', '-')}"
        arguments += [option, *map(str, value)] if isinstance(value, tuple) else [f"{option}={value}"]
    return arguments


def _memory() -> int:
    """Bytes that a model may take: of the first GPU, where there is one."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return int(psutil.virtual_memory().total)


SAME = 1.0
"""Seconds by which two readings of a process's start time may differ."""

NEWEST = 50
"""Records that are read, at most."""

LAST_LINES = 25
_LOG_END = 20_000
_PRIVATE = ("VOILA_", "JPY_", "LABKIT_TOKEN", "QUERY_STRING", "MPLBACKEND", "HTTP_", "SERVER_", "SCRIPT_")
"""Variables of the page's kernel, its token among them, that a training must not see."""

_children: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True)
class Training:
    """A training in its own process, which continues when the page is closed."""

    path: Path
    pid: int
    began: float
    """When the process began, seconds since 1970; a later process with the same id began at another time."""
    what: str
    """The command as people read it."""
    resumed: str | None
    """The run that it resumes; None for a new one, whose name is in the log."""

    @property
    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self._process() is not None

    @property
    def run_id(self) -> str | None:
        """The run that it writes, once it has begun one."""
        if self.resumed is not None:
            return self.resumed
        found = re.search(
            r"^run (.+?): [\d,]+ parameters, ", self._log(_LOG_END, from_end=False), re.M | re.S
        )
        return found[1] if found else None

    @property
    def stopping(self) -> bool:
        """Whether it was asked to stop."""
        return (self.path / "stopping").exists()

    def last_lines(self) -> str:
        """The end of what it printed."""
        lines = self._log(_LOG_END).replace("\r", "\n").split("\n")
        return unhidden("\n".join([line for line in lines if line.strip()][-LAST_LINES:]))

    def stop(self) -> None:
        """Ask it, as Ctrl-C does, to finish its step, save a checkpoint and end; never another process."""
        if self.stopping:
            return  # a second Ctrl-C would end it in the middle of a step
        if process := self._process():
            (self.path / "stopping").touch()
            process.send_signal(signal.SIGINT)

    def _process(self) -> psutil.Process | None:
        for child in list(_children):
            if child.poll() is not None:  # reaps it
                _children.remove(child)
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.began) < SAME
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def _log(self, count: int, *, from_end: bool = True) -> str:
        try:
            with (self.path / "log.txt").open("rb") as handle:
                if from_end:
                    handle.seek(max(0, handle.seek(0, os.SEEK_END) - count))
                return handle.read(count).decode("utf-8", "replace")
        except OSError as error:
            return f"The log cannot be read: {error}"


def trainings(root: Path) -> list[Training]:
    """The trainings that dashboards started here, newest first; unreadable records are left out."""
    found = []
    for file in sorted((root / ".dashboard").glob("*/job.json"), reverse=True)[:NEWEST]:
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
            found.append(Training(file.parent, **record))
        except (OSError, ValueError, TypeError):
            continue
    return found


def start_training(root: Path, home: Path, options: dict[str, Any]) -> Training:
    """Start `labkit train` in its own process, in the folder `home`; its run is recorded in `root`.

    options: see `train_arguments`, which raises ValueError for wrong ones.
    """
    arguments = train_arguments(options)
    return _start(
        root, home, ["train", *arguments], f"train {options['preset']} on {options['corpus']}", None
    )


def resume_training(root: Path, home: Path, run: Run) -> Training:
    """Start `labkit resume` in its own process."""
    return _start(root, home, ["resume", str(run.path.resolve())], f"resume {run.id}", run.id)


def _start(root: Path, home: Path, command: Sequence[str], what: str, resumed: str | None) -> Training:
    path = root / ".dashboard" / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    path.mkdir(parents=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_PRIVATE)}
    environment |= {"LABKIT_RUNS": str(root.resolve()), "PYTHONUNBUFFERED": "1", "TQDM_DISABLE": "1"}
    with (path / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "labstudio", *command],
            cwd=home,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # neither Ctrl-C in a terminal nor the end of the page reaches it
        )
    _children.append(process)
    try:
        began = float(psutil.Process(process.pid).create_time())
    except psutil.Error:  # gone already
        began = 0.0
    record: dict[str, Any] = {"pid": process.pid, "began": began, "what": what, "resumed": resumed}
    write_text_atomically(path / "job.json", json.dumps(record) + "\n")
    return Training(path, **record)
