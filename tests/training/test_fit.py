"""`fit` records a run, and whatever ends it early leaves a checkpoint to go on from."""

from __future__ import annotations

import math
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import GPT, GPTConfig, SampleConfig, TrainConfig
from labkit.generation import generate
from labkit.text import CharTokenizer
from labkit.training import Run, Trainer, TrainingDivergedError, fit, load_checkpoint

TEXT = "to be or not to be, that is the question; " * 12
TOKENIZER = CharTokenizer.from_text(TEXT)
IDS = torch.tensor(TOKENIZER.encode(TEXT))


def trainer(**settings: Any) -> Trainer:
    torch.manual_seed(0)
    gpt = GPT(
        GPTConfig(
            vocab_size=TOKENIZER.vocab_size, context_length=7, d_model=10, n_layers=2, n_heads=2, dropout=0.1
        )
    )
    config = {"max_steps": 8, "batch_size": 3, "eval_windows": 5, "sample_tokens": 4, "eval_every": 4}
    return Trainer(
        gpt, IDS[:400], IDS[400:], TrainConfig(**config | settings), tokenizer=TOKENIZER, prompt="t"
    )


def during_step(some: Trainer, step: int, do: Any) -> None:
    """Call `do` in the forward pass of this training step (counted from 0); its result may be replaced."""
    some.model.norm.register_forward_hook(
        lambda module, args, output: do(output) if module.training and some.step == step else None
    )


def interrupt(_: object = None) -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run.create("first", tmp_path)


def test_a_run_to_the_end_is_recorded_whole(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    some = trainer(sample_every=4)
    assert fit(some, run=run, progress=False) is True
    assert run.metrics("step")["step"].tolist() == list(range(1, 9))
    assert run.metrics("evaluation")["step"].tolist() == [0, 4, 8]
    assert set(run.metrics("step")) == {"step", "loss", "learning_rate", "grad_norm", "tokens", "seconds"}
    assert [(row["step"], row["prompt"]) for row in run.rows("samples")] == [(4, "t"), (8, "t")]
    config = run.config()
    assert config["total_steps"] == 8
    assert config["parameters"] == some.model.num_parameters()
    assert GPTConfig(**config["model"]) == some.model.config
    assert TrainConfig(**config["train"]) == some.config
    assert config["tokenizer"] == TOKENIZER.fingerprint
    loaded, pieces = run.load()
    assert load_checkpoint(run.newest_whole()[0])[1] == 8
    settings = SampleConfig(max_new_tokens=9)
    ours, theirs = (generate(each, pieces.encode("to"), settings) for each in (loaded, some.model))
    assert torch.equal(ours, theirs)
    assert capsys.readouterr().out == ""


def test_recording_changes_nothing(run: Run) -> None:
    recorded, plain = trainer(checkpoint_every=2), trainer()
    fit(recorded, run=run, progress=False)
    fit(plain, progress=False)
    assert all(
        torch.equal(one, two)
        for one, two in zip(recorded.model.parameters(), plain.model.parameters(), strict=True)
    )


def test_the_progress_bar_shows_loss_speed_and_samples(capsys: pytest.CaptureFixture[str]) -> None:
    fit(trainer(sample_every=8))
    shown = capsys.readouterr()
    assert "8/8" in shown.err
    for what in ("loss=", "val loss=", "tokens/s="):
        assert what in shown.err
    assert "--- step 8 ---\nt" in shown.out


def test_ctrl_c_lets_the_step_finish_saves_and_returns_false(run: Run) -> None:
    some = trainer()
    handler = signal.getsignal(signal.SIGINT)
    during_step(some, 2, interrupt)
    assert fit(some, run=run, progress=False) is False
    assert some.step == 3
    assert run.metrics("step")["step"].tolist() == [1, 2, 3]
    loaded, step = load_checkpoint(run.newest_whole()[0])
    assert step == 3
    assert torch.equal(loaded.head.weight, some.model.head.weight)
    assert signal.getsignal(signal.SIGINT) is handler


def test_after_ctrl_c_the_same_trainer_goes_on_to_the_same_end(run: Run) -> None:
    stopped, whole = trainer(), trainer()
    during_step(stopped, 4, interrupt)
    assert fit(stopped, run=run, progress=False) is False
    assert fit(stopped, progress=False) is True
    fit(whole, progress=False)
    assert torch.equal(stopped.model.head.weight, whole.model.head.weight)


def test_a_second_ctrl_c_stops_at_once(run: Run) -> None:
    some = trainer()
    handler = signal.getsignal(signal.SIGINT)

    def twice(_: object) -> None:
        interrupt()
        interrupt()

    during_step(some, 2, twice)
    with pytest.raises(KeyboardInterrupt):
        fit(some, run=run, progress=False)
    assert some.step == 2
    assert signal.getsignal(signal.SIGINT) is handler


def test_ctrl_c_in_the_last_step_finishes_the_run(run: Run) -> None:
    some = trainer()
    during_step(some, 7, interrupt)
    assert fit(some, run=run, progress=False) is True
    assert load_checkpoint(run.newest_whole()[0])[1] == 8
    assert run.metrics("evaluation")["step"].tolist()[-1] == 8


def test_divergence_saves_the_last_good_state_and_is_passed_on(run: Run) -> None:
    some = trainer()
    during_step(some, 5, lambda output: output * math.nan)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingDivergedError, match="The weights are those of step 5"):
        fit(some, run=run, progress=False)
    loaded, step = load_checkpoint(run.newest_whole()[0])
    assert step == 5
    assert all(parameter.isfinite().all() for parameter in loaded.parameters())
    good = trainer()
    during_step(good, 4, interrupt)
    fit(good, progress=False)
    good.model.eval()
    ids = torch.randint(TOKENIZER.vocab_size, (3, 7))
    assert torch.equal(loaded(ids), good.model(ids))
    assert signal.getsignal(signal.SIGINT) is handler


def test_fit_works_outside_the_main_thread(run: Run) -> None:
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(fit(trainer(), run=run, progress=False)))
    thread.start()
    thread.join()
    assert results == [True]
