"""A run small enough to be trained in a blink, and how two of them are compared bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from labkit import GPT, GPTConfig, TrainConfig
from labkit.text import CharTokenizer
from labkit.training import Run, Trainer, fit, restore

TEXT = "to be or not to be, that is the question; " * 12
TOKENIZER = CharTokenizer.from_text(TEXT)
IDS = torch.tensor(TOKENIZER.encode(TEXT))
SHAPE = {"context_length": 7, "d_model": 10, "n_layers": 2, "n_heads": 2, "dropout": 0.1}
SETTINGS: dict[str, Any] = {
    "max_steps": 9, "batch_size": 6, "micro_batch_size": 3, "eval_windows": 5, "eval_every": 2,
    "sample_every": 3, "sample_tokens": 4, "checkpoint_every": 3, "threads": 1, "precision": "fp32",
}  # fmt: skip


class Killed(BaseException):
    """The process ends here."""


def tiny_trainer(shape: dict[str, Any] | None = None, ids: torch.Tensor = IDS, **settings: Any) -> Trainer:
    """Trains 9 steps with dropout and accumulation; a checkpoint every 3."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, **SHAPE | (shape or {})))
    config = TrainConfig(**SETTINGS | settings)
    return Trainer(model, ids[:400], ids[400:], config, tokenizer=TOKENIZER, prompt="t")


def killed_at(step: int, run: Run, **settings: Any) -> Run:
    """A run that was killed right after the row of a step was written."""

    def kill(event: Any) -> None:
        if getattr(event, "step", 0) == step:
            raise Killed

    try:
        fit(tiny_trainer(**settings), run=run, progress=False, callbacks=[kill])
    except Killed:
        return run
    raise AssertionError("the run came to its end")


def resumed(run: Run, **settings: Any) -> dict[str, Any]:
    """Restore the run in a new trainer, train to the end, and give its outcome."""
    trainer = tiny_trainer(**settings)
    if run.checkpoints():
        torch.manual_seed(5)  # whatever happened to the generators in between
    restore(trainer, run)
    assert fit(trainer, run=run, progress=False)
    return outcome(run)


def outcome(run: Run) -> dict[str, Any]:
    """Everything that must be the same; the checksums stand for weights, optimizer and generators."""
    last = run.newest_whole()[0]
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in run.rows("metrics")]
    return {
        "last": (last.name, (last / "SHA256SUMS").read_text()),
        "metrics": rows,
        "samples": run.rows("samples"),
        "best": (run.checkpoints_path / "best").read_text(),
    }


def copy_of(run: Run, parent: Path) -> Run:
    """The same run in another folder."""
    return Run(shutil.copytree(run.path, parent / run.id))
