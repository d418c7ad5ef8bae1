"""What a command works with: a run, the shipped model, or weights from elsewhere; and where it computes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from labkit.model import GPT
    from labkit.text import Tokenizer
    from labkit.training import Run


def open_model(source: str, checkpoint: str | None = None) -> tuple[GPT, Tokenizer | None]:
    """The model that a run's name or folder, or anything `load_model` knows, stands for.

    checkpoint: of a run, a step, "best" or "latest"; its newest whole one when not given.
    Raises ValueError that lists the runs, or the checkpoints, where there is no such.
    """
    from labkit.training import Run
    from labkit.weights import load_model
    from labkit.weights.hub import PUBLISHED

    run = run_named(source)
    if run is None and (
        Path(source).exists() or "/" in source or source in {"shipped", "smollm2", *PUBLISHED}
    ):
        if checkpoint is not None:
            raise ValueError(f"{source} is no run, so there is no checkpoint {checkpoint} of it.")
        return load_model(source)[:2]
    run = run or Run.open(source)
    return run.load() if checkpoint is None else _load_checkpoint(run, checkpoint)


def open_with_tokenizer(command: str, source: str, checkpoint: str | None = None) -> tuple[GPT, Tokenizer]:
    """`open_model` for commands that need a tokenizer.  Raises ValueError where there is none."""
    model, tokenizer = open_model(source, checkpoint)
    if tokenizer is None:
        raise ValueError(
            f"{command}: {source} has no tokenizer that labkit reads. Put the model's tokenizer.json, or its "
            "vocab.json and merges.txt, beside the weights."
        )
    return model, tokenizer


def choose_device(command: str, device: str | None, threads: int | None, parameters: int) -> torch.device:
    """The device of this name, the best there is for None; from now on with so many CPU threads.

    threads: None for what the largest model, of so many parameters, decodes best with.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"{command}: threads={threads} must be at least 1.")
    from labkit.device import best_device, decoding_threads, set_threads

    set_threads(threads or decoding_threads(parameters))
    return best_device(device)


def run_named(source: str) -> Run | None:
    """The run that a name or a folder stands for; None where it has no checkpoints."""
    from labkit.training import Run, runs_dir

    found = any((path / "checkpoints").is_dir() for path in (Path(source), runs_dir() / source))
    return Run.open(source) if found else None


def _load_checkpoint(run: Run, checkpoint: str) -> tuple[GPT, Tokenizer]:
    from labkit.text import load_tokenizer
    from labkit.training import load_checkpoint

    steps = {str(info.step): info.path for info in run.checkpoints()}
    named = {name: path for name in ("best", "latest") if (path := run.pointer(name))}
    if checkpoint not in steps | named:
        known = ", ".join([*steps, *named]) or "none"
        raise ValueError(f"Run {run.id} has no checkpoint {checkpoint!r}. Checkpoints: {known}.")
    return load_checkpoint((steps | named)[checkpoint])[0], load_tokenizer(run.path / "tokenizer.json")
