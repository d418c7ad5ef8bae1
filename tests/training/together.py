"""What test_distributed.py runs in two processes, and by itself for comparison."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from labkit import GPT, GPTConfig, TrainConfig
from labkit.text import CharTokenizer, SequenceDataset
from labkit.text.batches import IGNORE
from labkit.training import Evaluation, Run, Sample, Step, Trainer, TrainingDivergedError, fit, restore
from labkit.training.parallel import launched

TEXT = "the quick brown fox jumps over the lazy dog, to be or not to be. " * 8
TOKENIZER = CharTokenizer.from_text(TEXT)
IDS = torch.tensor(TOKENIZER.encode(TEXT))
CONTEXT = 7
SHAPE = {"vocab_size": 29, "context_length": CONTEXT, "d_model": 12, "n_layers": 3, "n_heads": 2}

CASES: dict[str, dict[str, Any]] = {
    "ddp": {},
    "fsdp": {"parallel": "fsdp"},
    "ddp padded": {"padded": True, "micro_batch_size": 2},
    "fsdp padded": {"padded": True, "micro_batch_size": 2, "parallel": "fsdp"},
    "ddp muon": {"optimizer": "muon", "shape": {"positions": "rotary"}},
    "fsdp thrifty": {
        "parallel": "fsdp",
        "activation_checkpointing": True,
        "micro_batch_size": 1,
        "freeze": ("token_embedding",),
        "shape": {"positions": "sinusoidal", "tie_weights": False, "norm": "rmsnorm"},
    },
}


def padded_windows() -> SequenceDataset:
    """Windows with 0 to CONTEXT targets that count."""
    inputs = IDS[: 33 * CONTEXT].view(33, CONTEXT)
    targets = IDS[1 : 33 * CONTEXT + 1].view(33, CONTEXT).clone()
    for number in range(len(targets)):
        targets[number, number * 5 % (CONTEXT + 1) :] = IGNORE
    return SequenceDataset(inputs, targets)


def build(*, shape: dict[str, Any] | None = None, padded: bool = False, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**SHAPE | (shape or {})))
    config = {"max_steps": 20, "batch_size": 6, "eval_windows": 5, "eval_every": 7, "learning_rate": 3e-3}
    config |= {
        "sample_every": 10,
        "sample_tokens": 4,
        "checkpoint_every": 10,
        "keep_last": 5,
        "precision": "fp32",
    }
    train, val = (padded_windows(), padded_windows()) if padded else (IDS[:400], IDS[400:])
    return Trainer(
        model, train, val, TrainConfig(**config | settings), tokenizer=TOKENIZER, prompt="t", device="cpu"
    )


def story(some: Trainer, run: Run | None = None) -> list[dict[str, Any]]:
    """Train to the end; what the events said."""
    told: list[dict[str, Any]] = []

    def tell(event: object) -> None:
        if isinstance(event, Step | Evaluation | Sample):
            told.append({"event": type(event).__name__, **asdict(event)})

    fit(some, run=run, progress=False, callbacks=[tell])
    return told


def refusal(**settings: Any) -> str:
    try:
        build(**settings)
    except ValueError as error:
        return str(error)
    return "not refused"


def divergence(rank: int, **settings: Any) -> str:
    """What is said when only process 1 meets a number that is none."""
    some = build(**settings)
    some.model.norm.register_forward_hook(
        lambda module, _, normed: (
            normed * float("nan") if module.training and rank and some.step == 3 else None
        )
    )
    try:
        story(some)
    except TrainingDivergedError as error:
        return str(error)
    return "no divergence"


def dropped(**settings: Any) -> list[bool]:
    """What the first step drops."""
    some = build(shape={"dropout": 0.5}, max_steps=1, **settings)
    masks: list[torch.Tensor] = []
    some.model.dropout.register_forward_hook(
        lambda module, _, output: masks.append(output == 0) if module.training else None
    )
    next(event for event in some.events() if isinstance(event, Step))
    return masks[0].flatten().tolist()


def exchanges() -> list[bool]:
    """In which of a step's passes gradients are exchanged."""
    some, seen = build(parallel="fsdp", micro_batch_size=1, max_steps=1), []
    tell = some.model.set_requires_gradient_sync
    some.model.set_requires_gradient_sync = lambda last: (seen.append(last), tell(last))
    next(event for event in some.events() if isinstance(event, Step))
    return seen


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with launched("cpu") as ranks:
        told: dict[str, Any] = {}
        for name, settings in CASES.items():
            run = ranks.broadcast(Run.create(name, folder) if ranks.rank == 0 else None)
            told[name] = story(build(**settings), run)
        for name in ("ddp", "fsdp"):
            run, some = Run(folder / f"alone, then {name}"), build(parallel=name)
            restore(some, run)
            told[run.id] = story(some, run)
        run, some = Run(folder / "fsdp, then ddp"), build()
        if ranks.rank == 0:
            keep_first_half(Run(folder / "fsdp"), run)
        ranks.any(False)
        restore(some, run)
        told[run.id] = story(some, run)
        split = [{"optimizer": "muon"}, {"precision": "fp16"}]
        told["refused"] = [refusal(batch_size=5), *(refusal(parallel="fsdp", **each) for each in split)]
        told["diverged"] = [divergence(ranks.rank, parallel=name) for name in ("ddp", "fsdp")]
        told["dropped"], told["exchanges"] = dropped(), exchanges()
        (folder / f"told-{ranks.rank}.json").write_text(json.dumps(told))


def keep_first_half(run: Run, copy: Run) -> Run:
    """A copy of a run as if it had been cut off between its first checkpoint and its second."""
    import shutil

    shutil.copytree(run.path, copy.path)
    shutil.rmtree(copy.checkpoints_path / "step-00000020")
    for pointer in ("latest", "best"):
        (copy.checkpoints_path / pointer).write_text("step-00000010")
    return copy


if __name__ == "__main__":
    main(Path(sys.argv[1]))
