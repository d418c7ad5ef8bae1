"""A run that is stopped and resumed ends as if it had never been stopped."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import GPT, GPTConfig, TrainConfig
from labkit.text import CharTokenizer
from labkit.training import Checkpoint, Run, RunRecorder, Trainer, fit, restore

TEXT = "to be or not to be, that is the question; " * 12
TOKENIZER = CharTokenizer.from_text(TEXT)
IDS = torch.tensor(TOKENIZER.encode(TEXT))
SHAPE = {"context_length": 7, "d_model": 10, "n_layers": 2, "n_heads": 2, "dropout": 0.1}


def trainer(shape: dict[str, Any] | None = None, ids: torch.Tensor = IDS, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, **SHAPE | (shape or {})))
    config = {"max_steps": 9, "batch_size": 6, "micro_batch_size": 2, "eval_windows": 5, "eval_every": 2}
    config |= {"sample_every": 3, "sample_tokens": 4, "checkpoint_every": 3}
    return Trainer(
        model, ids[:400], ids[400:], TrainConfig(**config | settings), tokenizer=TOKENIZER, prompt="t"
    )


def outcome(some: Trainer, run: Run) -> dict[str, Any]:
    """Everything that must be the same: weights, optimizer, rows of metrics and samples."""
    metrics = [{k: v for k, v in row.items() if k != "seconds"} for row in run.rows("metrics")]
    return {
        "weights": {name: tensor.clone() for name, tensor in some.model.state_dict().items()},
        "state": some.state(),
        "metrics": metrics,
        "samples": run.rows("samples"),
    }


def assert_same(one: Any, two: Any) -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            assert_same(one[key], two[key])
    elif isinstance(one, list):
        assert len(one) == len(two)
        for pair in zip(one, two, strict=True):
            assert_same(*pair)
    else:
        assert one == two


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("optimizer", "events"), [*(("adamw", n) for n in range(1, 22)), *(("muon", n) for n in (3, 8, 13, 21))]
)
def test_stopping_after_any_event_changes_nothing(tmp_path: Path, optimizer: str, events: int) -> None:
    whole = Run.create("whole", tmp_path)
    reference = trainer(optimizer=optimizer)
    fit(reference, run=whole, progress=False)

    class Killed(BaseException):
        pass

    counter = itertools.count(1)

    def kill(_: object) -> None:
        if next(counter) == events:
            raise Killed

    run = Run.create("stopped", tmp_path)
    with pytest.raises(Killed):
        fit(trainer(optimizer=optimizer), run=run, progress=False, callbacks=[kill])
    resumed = trainer(optimizer=optimizer)
    if run.checkpoints():
        torch.manual_seed(5)  # whatever happened to the generators in between
        restore(resumed, run)
    else:
        run = Run.create("again", tmp_path)
    assert fit(resumed, run=run, progress=False)
    assert_same(outcome(resumed, run), outcome(reference, whole))


def test_a_checkpoint_is_due_after_what_it_stands_for() -> None:
    seen = [type(event).__name__ for event in trainer().events()]
    places = [place for place, name in enumerate(seen) if name == Checkpoint.__name__]
    assert [seen[place - 1] for place in places] == ["Sample"] * 3


@pytest.mark.parametrize("pending", [["evaluation"], []])
def test_a_run_stopped_before_its_first_step_goes_on(tmp_path: Path, pending: list[str]) -> None:
    some, run = trainer(), Run.create("early", tmp_path)
    recorder = RunRecorder(some, run)
    if not pending:
        recorder(next(some.events()))
    recorder.save()
    again = trainer()
    assert restore(again, run) == 0
    assert again.pending == pending
    assert fit(again, run=run, progress=False)
    steps = [row["step"] for row in run.rows("metrics") if row["event"] == "evaluation"]
    assert steps == [0, 2, 4, 6, 8, 9]
