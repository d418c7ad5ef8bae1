"""A folder of runs such as a dashboard meets: small ones, a name that is a page of its own, damaged ones."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from labkit import TrainConfig
from labkit.config import DataConfig
from labkit.training import Run, build_trainer, fit

TEXT = "To be or not to be, that is the question.\n\nWhether it is nobler to suffer.\n\n" * 40
SHAPE = {"context_length": 13, "d_model": 10, "n_layers": 2, "n_heads": 2}
SETTINGS: dict[str, Any] = {
    "max_steps": 9, "batch_size": 5, "eval_windows": 5, "eval_every": 2, "sample_every": 3,
    "sample_tokens": 30, "checkpoint_every": 3, "threads": 1,
}  # fmt: skip

SCRIPT = "<img src=x onerror=window.hacked=1><script>window.hacked=1<∕script>"
HOSTILE = f"{SCRIPT} \u202e\u200b שלום 𝒳"
HOSTILE_SHOWN = HOSTILE.replace("\u202e", "U+202E").replace("\u200b", "U+200B")


def write_corpus(path: Path) -> Path:
    path.write_text(TEXT, encoding="utf-8")
    return path


def tiny_run(name: str, root: Path, corpus: Path, **shape: int) -> Run:
    """Nine steps, a checkpoint every three, as `labkit train` makes it."""
    data = DataConfig(corpus=str(corpus))
    trainer = build_trainer("char-mini", SHAPE | shape, TrainConfig(**SETTINGS), data, prompt="T")
    run = Run.create(name, root)
    assert fit(trainer, run=run, progress=False)
    return run


def folder_of_runs(root: Path, corpus: Path) -> Path:
    """small, large, a copy of small under a hostile name, torn (its config), bitten (its checkpoints)."""
    small = tiny_run("small", root, corpus)
    tiny_run("large", root, corpus, d_model=20)
    for name in (HOSTILE, "torn", "bitten"):
        shutil.copytree(small.path, root / name)
    Run(root / HOSTILE).append("samples", {"step": 9, "prompt": "T", "text": HOSTILE})
    (root / "torn" / "config.json").write_text('{"model": ')
    for file in (root / "bitten" / "checkpoints").glob("step-*/model.safetensors"):
        file.write_bytes(file.read_bytes()[:-9])
    return root
