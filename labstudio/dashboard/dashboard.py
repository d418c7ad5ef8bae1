"""The dashboard: runs listed, compared, followed, started, tried out. Its view is static/dashboard.js."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import ipywidgets
import traitlets

from labkit.io import runs_dir
from labkit.text import Tokenizer, load_tokenizer
from labkit.training import Run, load_checkpoint
from labstudio.dashboard.trainings import (
    Training,
    form_choices,
    resume_training,
    start_training,
    trainings,
)
from labstudio.dashboard.views import RunsList, comparison, find_checkpoint, run_page, signature
from labstudio.visible import unhidden
from labstudio.widgets.attention import AttentionExplorer
from labstudio.widgets.base import Widget, css, javascript, shown
from labstudio.widgets.playground import SamplingPlayground
from labstudio.widgets.run_monitor import RunMonitor

EVERY = 1.0
"""Seconds between two readings of the folder."""

MOST_COMPARED = 12

LINES = ("A horse! a horse! my kingdom for a horse!", "Once upon a time", "\n")
PROMPT, TEXT = 40, 60
"""Characters of the run's own last sample to begin with."""

STOP = {"do": "stop", "label": "Stop", "enabled": True}
STOPPING = {"do": "stop", "label": "Stopping …", "enabled": False}
RESUME = {"do": "resume", "label": "Resume", "enabled": True}

ELSEWHERE = "It was not started here, so it can only be stopped where it was started, with Ctrl-C."
ASKED = "It finishes its step, saves a checkpoint and ends."
SILENT = "Its process ended before the last step. What it printed is below."
NOTEBOOK = "It was started in a notebook, so its training goes on there: restore(trainer, run)."


def _part() -> Any:
    """A widget that the browser puts into its place."""
    part = traitlets.Instance(ipywidgets.Widget, allow_none=True)
    return part.tag(sync=True, **ipywidgets.widget_serialization)


class Dashboard(Widget):
    """The runs of a folder: list, comparison, one run live, a form to start one, playground and explorer.

    root: the folder; where `labkit train` writes to when not given.  Trainings that are started here are
    separate processes: they continue when the page, the notebook or the dashboard is closed.
    """

    _esm = javascript("charts", "dashboard_parts", "dashboard")
    _css = css("dashboard")

    folder, tab = shown(traitlets.Unicode), traitlets.Unicode("runs").tag(sync=True)
    rows: traitlets.List[dict[str, Any]] = shown(traitlets.List)
    chosen: traitlets.List[str] = shown(traitlets.List)
    compared, page, choices, job, opened = (shown(traitlets.Dict) for _ in range(5))
    errors: traitlets.Dict[str, str] = shown(traitlets.Dict)
    """Error messages, by the tab that they belong to."""
    monitor, playground, explorer = _part(), _part(), _part()

    def __init__(self, root: Path | None = None) -> None:
        self.root = (runs_dir() if root is None else Path(root)).resolve()
        self._list = RunsList(self.root)
        self._closed = threading.Event()
        self._run: Run | None = None
        self._seen: dict[str, object] = {}
        self._model: OpenModel | None = None
        self._mine: Path | None = None
        super().__init__(folder=unhidden(str(self.root)), choices=form_choices(), monitor=FollowedRun())
        self._look()
        self.monitor.on_msg(lambda widget, content, buffers: self._handle(content))
        threading.Thread(target=self._keep_looking, name="dashboard", daemon=True).start()

    def __repr__(self) -> str:
        return f"Dashboard({self.root.name})"

    def close(self) -> None:
        """Stop watching and release the model; trainings continue."""
        self._closed.set()
        if self._model:
            self._model.close()
        super().close()

    def _keep_looking(self) -> None:
        while not self._closed.wait(EVERY):
            self._look()

    def _look(self) -> None:
        """Update what is shown from what the folder holds now."""
        with self._lock, self.hold_sync():
            try:
                known = trainings(self.root)
                busy = {job.run_id: job for job in reversed(known)}
                self.rows = [
                    row | {"state": _state(row, busy, self._list.runs[row["run"]])}
                    for row in self._list.look()
                ]
                self._show_job(known[0] if known else None)
                self._compare()
                self._follow(busy)
                self._say("look", "")
            except Exception as error:  # in a thread it would go unseen
                self._say("look", f"The runs cannot be read: {error}")

    def _show_job(self, job: Training | None) -> None:
        """Show the training that was started last; this page's own is opened when its run begins."""
        if job is None:
            self.job = {}
            return
        begun = next((name for name, run in self._list.runs.items() if run.id == job.run_id), None)
        self.job = {
            "what": unhidden(job.what),
            "state": "runs" if job.alive else "has ended",
            "run": begun,
            "log": job.last_lines(),
        }
        if begun and self._mine == job.path:
            self._mine = None
            if self.tab == "start":
                self._open(begun)

    def _compare(self) -> None:
        """Draw the chosen runs, where one of them has changed."""
        chosen = [self._list.runs[name] for name in self.chosen if name in self._list.runs][:MOST_COMPARED]
        if self._changed("compared", [(run.id, signature(run)) for run in chosen]):
            self.compared = comparison(chosen) if len(chosen) > 1 else {}

    def _follow(self, busy: dict[str | None, Training]) -> None:
        run, job = self._run, None
        if run is None:
            return
        job = busy.get(run.id)
        if self._changed("page", (run.id, signature(run), job and (job.path, job.alive))):
            self.page = run_page(run) | {"log": job.last_lines() if job and not job.alive else ""}
        self.monitor.follow(run, job, bool(self.page["resumable"]))

    def _changed(self, what: str, now: object) -> bool:
        """Whether the files have changed since the last call."""
        before, self._seen[what] = self._seen.get(what), now
        return before != now

    def _say(self, where: str, problem: str) -> None:
        errors = {name: text for name, text in self.errors.items() if name != where}
        self.errors = errors | ({where: unhidden(problem)} if problem else {})

    def _handle(self, content: dict[str, Any]) -> None:
        """Do what a button asks for; an error is shown on the button's tab."""
        do = content.get("do")
        where = {"open": "runs", "stop": "run", "resume": "run", "start": "start", "try": "try"}.get(str(do))
        if where is None:
            return
        try:
            with self._lock:
                getattr(self, f"_{do}")(**{name: each for name, each in content.items() if name != "do"})
                self._say(where, "")
        except Exception as error:  # out of memory, a damaged file, a forged message
            with self._lock:
                self._say(where, str(error))
        self._look()

    def _open(self, run: object) -> None:
        """Show one run."""
        self._run = self._list.find(run)
        self.tab = "run"

    def _stop(self) -> None:
        """Ask the process that writes the run to stop, where a dashboard started it."""
        for job in trainings(self.root):
            if self._run and job.run_id == self._run.id and job.alive:
                job.stop()

    def _resume(self) -> None:
        """Go on with the run, once."""
        if self._run and not any(job.run_id == self._run.id and job.alive for job in trainings(self.root)):
            resume_training(self.root, Path.cwd(), self._run)

    def _start(self, options: dict[str, Any]) -> None:
        """Start a training."""
        self._mine = start_training(self.root, Path.cwd(), options).path

    def _try(self, run: object, checkpoint: object) -> None:
        """Open a checkpoint for the playground and the explorer."""
        found = self._list.find(run)
        folder = find_checkpoint(found, checkpoint)
        before, self._model = self._model, None
        self.opened = {"state": f"Loading {run}, {checkpoint} …"}
        self.playground = self.explorer = None
        if before:
            before.close()
        try:
            self._model = OpenModel(found, folder)
        finally:
            self.opened = {"state": "", "name": self._model.name if self._model else ""}
        self.playground, self.explorer = self._model.playground, self._model.explorer


def _state(row: dict[str, Any], busy: dict[str | None, Training], run: Run) -> str:
    """The run's state as the files tell it, or as its process does where that was started here."""
    job = busy.get(run.id)
    if job and job.alive:
        return "stopping" if job.stopping else "running"
    return "stopped" if job and row["state"] == "running?" else str(row["state"])


class FollowedRun(RunMonitor):
    """A RunMonitor whose buttons are for another process."""

    def follow(self, run: Run, job: Training | None, resumable: bool) -> None:
        """Show what the run's folder holds now.  job: the last process that a dashboard started for it."""
        with self._lock, self.hold_sync():
            self.show_run(run)
            alive = job is not None and job.alive
            if job and self.state != "finished":
                self.state = "training" if alive else "stopped"
            self.buttons, remark = self._offer(job, alive, resumable)
            self.message = self.message or remark

    def _offer(self, job: Training | None, alive: bool, resumable: bool) -> tuple[list[dict[str, Any]], str]:
        if job and alive:
            return ([STOPPING], ASKED) if job.stopping else ([STOP], "")
        if self.state == "finished":
            return [], ""
        if self.state == "training":
            return [], ELSEWHERE
        if not resumable:
            return [], NOTEBOOK
        return [RESUME], SILENT if job and not job.stopping else ""


class OpenModel:
    """The two widgets of one checkpoint.

    Raises ValueError, saying what is wrong, for a damaged checkpoint and for a run without its tokenizer.
    """

    def __init__(self, run: Run, checkpoint: Path) -> None:
        model, step = load_checkpoint(checkpoint)
        self.name = f"{unhidden(run.id)}, step {step:,}"
        tokenizer = load_tokenizer(run.path / "tokenizer.json")
        models = {self.name: (model, tokenizer)}
        texts = [*_own_texts(run), *LINES, tokenizer.decode(list(range(min(3, tokenizer.vocab_size))))]
        prompt, text = (_readable(tokenizer, [each[:length] for each in texts]) for length in (PROMPT, TEXT))
        self.playground = SamplingPlayground(models=models, prompt=prompt)
        self.explorer = AttentionExplorer(models=models, text=text)

    def close(self) -> None:
        """Stop writing and release the model."""
        self.playground.halt()
        self.playground.wait()
        self.playground.close()
        self.explorer.close()


def _own_texts(run: Run) -> list[str]:
    """The longest piece of the last sample between special tokens, which a tokenizer does not read."""
    written = [f"{row.get('prompt', '')}{row.get('text', '')}" for row in run.rows("samples")[-1:]]
    return [max(re.split(r"<\|\w+\|>", text), key=len).strip("\n") for text in written]


def _readable(tokenizer: Tokenizer, texts: list[str]) -> str:
    """The first text that the tokenizer can encode."""
    for text in texts:
        try:
            if tokenizer.encode(text):
                return text
        except ValueError:
            continue
    return texts[-1]
