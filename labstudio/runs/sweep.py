"""Running a sweep: each experiment and seed in its own process, one per device at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from labkit.config import DataConfig, TrainConfig, as_dict
from labkit.device import allowed_cores
from labkit.io import write_text_atomically
from labkit.training import Run, runs_dir
from labkit.training.run import changes
from labstudio.runs.sweep_file import Experiment, SweepError, SweepFile, _nearest, read_sweep

if TYPE_CHECKING:
    import pandas as pd

State = Literal["waiting", "running", "finished", "skipped", "stopped", "failed"]
"""skipped: it had finished in an earlier sweep. stopped: on request, with a checkpoint to resume from."""

RECORD, LOG = "sweep.json", "worker.log"
_LOG_TAIL = 15


@dataclass
class SweepRun:
    """One experiment with one seed, and how far it has come."""

    experiment: Experiment
    seed: int
    run: Run
    weights: Path
    """Where its final weights go; their presence says that it has finished."""
    source: SweepRun | None = None
    """The job whose final weights it starts from."""
    state: State = "waiting"
    device: str = ""
    error: str = ""
    process: subprocess.Popen[bytes] | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """What decides the result: the arguments of `build_trainer`."""
        return {
            "preset": self.experiment.preset,
            "shape": self.experiment.shape,
            "train": as_dict(replace(self.experiment.train, seed=self.seed)),
            "data": as_dict(self.experiment.data),
            "init_from": self.source.run.id if self.source else None,
        }


def sweep(
    file: str | Path,
    *,
    devices: Sequence[str] | None = None,
    workers: int | None = None,
    only: Collection[str] = (),
    smoke: bool = False,
    watch: Callable[[list[SweepRun]], None] | None = None,
) -> pd.DataFrame:
    """Run the experiments of a sweep's file and return a table, one row per run.

    file: a path, or the name of a shipped one (report, base, scaling).  devices: such as ["cuda:0",
    "cuda:1"], one process each; else `workers` processes on the CPU, one thread each, as many as there are
    cores when not given.  only: names of experiments; those they start from are added.  smoke: a few steps
    of each, in runs of another name.  watch: is handed the jobs several times a second.

    A run that fails does not stop the others: its row has the state "failed" and the end of its output. Runs
    that finished before are skipped, interrupted ones resume from their checkpoint. Ctrl-C lets all save one.
    Raises SweepError before anything runs: for a wrong file, or a run made with other settings.
    """
    plan = read_sweep(file)
    jobs = plan_runs(plan.smoke() if smoke else plan, only)
    if devices and workers:
        raise SweepError(f"sweep: give devices={list(devices)} or workers={workers}, not both.")
    if workers is not None and workers < 1:
        raise SweepError(f"sweep: workers={workers} must be at least 1.")
    free = list(devices or ["cpu"] * (workers or allowed_cores()))
    watch = watch or (lambda jobs: None)
    try:
        while any(job.state in ("waiting", "running") for job in jobs):
            for job in jobs:
                if job.state == "running" and _ended(job):
                    free.append(job.device)
                elif job.state == "waiting" and free and _ready(job):
                    _start(job, free.pop(0))
            watch(jobs)
            time.sleep(0.1)
    finally:
        _stop([job for job in jobs if job.state == "running"])
        watch(jobs)
    return results(jobs)


def plan_runs(plan: SweepFile, only: Collection[str] = ()) -> list[SweepRun]:
    """The jobs of a sweep in the order of its file, each with its run folder, none started.

    Raises SweepError for a name in `only` that is no experiment, or a run made with other settings.
    """
    experiments = {each.name: each for each in plan.experiments}
    wanted: set[str] = set()
    for name in only:
        if name not in experiments:
            raise SweepError(f"sweep {plan.name}: {name!r} is no experiment. {_nearest(name, experiments)}")
        source: str | None = name
        while source is not None:
            wanted.add(source)
            source = experiments[source].init_from
    jobs: dict[tuple[str, int], SweepRun] = {}
    for each in plan.experiments:
        if wanted and each.name not in wanted:
            continue
        for seed in each.seeds:
            label = each.name if seed == each.seeds[0] else f"{each.name}-seed{seed}"
            run = Run(runs_dir() / f"{plan.name}-{label}")
            weights = run.path / "checkpoints" / f"mini_gpt_{label}.safetensors"
            jobs[each.name, seed] = SweepRun(each, seed, run, weights)
    for job in jobs.values():
        if origin := job.experiment.init_from:
            job.source = jobs.get((origin, job.seed)) or jobs[origin, experiments[origin].seeds[0]]
    taken = {job.run.id for job in jobs.values()}
    if len(taken) < len(jobs):
        raise SweepError(f"sweep {plan.name}: two runs would have one folder. Rename an experiment.")
    for job in jobs.values():
        _refuse_other_settings(job)
    for job in jobs.values():
        _record(plan, job)
        if job.weights.is_file():
            job.state = "skipped"
    return list(jobs.values())


def results(jobs: Sequence[SweepRun]) -> pd.DataFrame:
    """A row per job: what it was, how it ended, its last losses (nats per token) and its time in seconds."""
    import pandas as pd

    rows = []
    for job in jobs:
        metrics = job.run.rows("metrics")
        steps = [row for row in metrics if row["event"] == "step"]
        evaluations = [row for row in metrics if row["event"] == "evaluation"]
        rows.append(
            {
                "experiment": job.experiment.name,
                "seed": job.seed,
                "state": job.state,
                "steps": len(steps),
                "train_loss": steps[-1]["loss"] if steps else None,
                "val_loss": evaluations[-1]["val_loss"] if evaluations else None,
                "perplexity": evaluations[-1]["perplexity"] if evaluations else None,
                "run": job.run.id,
                "error": job.error,
            }
        )
    return pd.DataFrame(rows)


def _refuse_other_settings(job: SweepRun) -> None:
    record = job.run.path / RECORD
    if not job.run.path.exists():
        return
    try:
        before = json.loads(record.read_text(encoding="utf-8"))["settings"]
        differing = changes(_flat(before), _flat(job.settings))
    except (OSError, ValueError, KeyError, TypeError):
        differing = [f"it has no readable {RECORD}, so it is not known how it was made"]
    if differing:
        raise SweepError(
            f"The run {job.run.id} was made with other settings: {'; '.join(differing)}. Give the experiment "
            f"{job.experiment.name!r} another name, or delete the folder {job.run.path} to run it again."
        )


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by names like train.learning_rate, as JSON gives them back; one not there has its default."""
    defaults = {"train": as_dict(TrainConfig()), "data": as_dict(DataConfig())}
    flat = {name: settings[name] for name in ("preset", "init_from")}
    for section in ("shape", "train", "data"):
        values = defaults.get(section, {}) | settings[section]
        flat |= {f"{section}.{name}": value for name, value in values.items()}
    plain: dict[str, Any] = json.loads(json.dumps(flat))
    return plain


def _record(plan: SweepFile, job: SweepRun) -> None:
    """Record what the run is in its sweep: all that its worker and the report need."""
    each = job.experiment
    job.run.path.mkdir(parents=True, exist_ok=True)
    about = {
        "sweep": plan.name,
        "title": plan.title,
        "order": plan.experiments.index(each),
        "experiment": each.name,
        "seed": job.seed,
        **each.words,
        "topic": each.topic,
        "against": each.against,
        "init_from": each.init_from,
        "settings": job.settings,
    }
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    write_text_atomically(job.run.path / RECORD, text)


def _ready(job: SweepRun) -> bool:
    """Whether its source has finished; a run whose source never will has failed."""
    source = job.source
    if source is None or source.state in ("finished", "skipped"):
        return True
    if source.state in ("failed", "stopped"):
        job.state = "failed"
        job.error = f"It starts from {source.run.id}, which {source.state}."
    return False


def _start(job: SweepRun, device: str) -> None:
    one_thread = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} if device == "cpu" else {}
    with (job.run.path / LOG).open("wb") as log:
        arguments = [str(job.run.path), str(job.weights), device, str(os.getpid())]
        job.process = subprocess.Popen(
            [sys.executable, "-m", "labstudio.runs.sweep_worker", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | one_thread,
            start_new_session=True,  # a Ctrl-C at the terminal reaches the sweep alone, which asks once
        )
    job.state, job.device = "running", device


def _ended(job: SweepRun) -> bool:
    """Whether the job's process is gone; notes how it ended."""
    code = job.process.poll() if job.process else None
    if code is None:
        return False
    if code == 0 and job.weights.is_file():
        job.state = "finished"
        return True
    job.state = "failed"
    log = (job.run.path / LOG).read_text(encoding="utf-8", errors="replace")
    job.error = "\n".join(log.replace("\r", "\n").strip().split("\n")[-_LOG_TAIL:])
    if code < 0:
        hint = " (out of memory?)" if code == -9 else ""
        job.error = f"{job.error}\nThe process was killed by signal {-code}{hint}.".strip()
    job.error = job.error or f"The process ended with code {code}."
    return True


def _stop(jobs: list[SweepRun]) -> None:
    """Ask running jobs to save a checkpoint and end; a second Ctrl-C kills them."""
    processes = [job.process for job in jobs if job.process]
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait()
    except KeyboardInterrupt:
        for process in processes:
            process.kill()
        raise
    finally:
        for job in jobs:
            job.state = "finished" if job.weights.is_file() else "stopped"
