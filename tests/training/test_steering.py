"""What may be done to a run while it trains: stop it, change its learning rate, ask for a sample."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TOKENIZER, outcome, resumed, tiny_trainer

from labkit.config import SampleConfig
from labkit.generation import generate
from labkit.training import Run, Step, Trainer, fit, restore
from labkit.training.checkpoint import load_state, verify


def at(step: int, do: Any) -> Any:
    """A callback that does something once this step is taken."""
    return lambda event: do() if isinstance(event, Step) and event.step == step else None


def weights(trainer: Trainer) -> torch.Tensor:
    return torch.cat([each.detach().flatten() for each in trainer.model.parameters()])


@pytest.mark.parametrize("step", [4, 6], ids=["between", "where all is due"])
def test_a_stop_from_another_thread_saves_and_the_resumed_run_is_the_same(
    tmp_path: Path, whole: dict[str, Any], step: int
) -> None:
    run, stop = Run.create("stopped", tmp_path), threading.Event()
    trainer = tiny_trainer()
    assert fit(trainer, run=run, progress=False, callbacks=[at(step, stop.set)], stop=stop) is False
    assert trainer.step == step
    assert verify(run.newest_whole()[0])["step"] == step
    assert resumed(run) == whole


def test_a_stop_in_the_last_step_lets_the_run_finish(tmp_path: Path, whole: dict[str, Any]) -> None:
    run, stop = Run.create("whole", tmp_path), threading.Event()
    assert fit(tiny_trainer(), run=run, progress=False, callbacks=[at(9, stop.set)], stop=stop)
    assert outcome(run) == whole


def rates(run: Run) -> list[float]:
    return run.metrics("step")["learning_rate"].tolist()


def scale_at(trainer: Trainer, step: int, scale: float) -> Any:
    return at(step, lambda: setattr(trainer, "learning_rate_scale", scale))


def test_the_scale_multiplies_the_schedule_from_the_next_step_on(tmp_path: Path, finished: Run) -> None:
    run, trainer = Run.create("scaled", tmp_path), tiny_trainer()
    fit(trainer, run=run, progress=False, callbacks=[scale_at(trainer, 4, 0.25)])
    assert rates(run)[:4] == rates(finished)[:4]
    assert rates(run)[4:] == [0.25 * rate for rate in rates(finished)[4:]]
    losses, before = (each.metrics("step")["loss"].tolist() for each in (run, finished))
    assert losses[:5] == before[:5]
    assert losses[5] != before[5]


def test_the_scale_reaches_both_of_muons_rates() -> None:
    trainer = tiny_trainer(optimizer="muon")
    events = (event for event in trainer.events() if isinstance(event, Step))
    next(events)
    trainer.learning_rate_scale = 0.5
    halved = next(events).learning_rate
    plain = tiny_trainer().learning_rate(1)
    assert halved == 0.5 * plain
    for group in trainer.optimizer.param_groups:
        assert group["lr"] == pytest.approx(group["peak"] * 0.5 * plain / trainer.config.learning_rate)
    assert len({group["lr"] for group in trainer.optimizer.param_groups}) == 2


def test_a_resumed_run_keeps_the_scale(tmp_path: Path) -> None:
    whole, stopped = Run.create("whole", tmp_path), Run.create("stopped", tmp_path)
    trainer = tiny_trainer()
    fit(trainer, run=whole, progress=False, callbacks=[scale_at(trainer, 4, 3.0)])
    trainer, stop = tiny_trainer(), threading.Event()
    both = [scale_at(trainer, 4, 3.0), at(5, stop.set)]
    assert not fit(trainer, run=stopped, progress=False, callbacks=both, stop=stop)
    again = tiny_trainer()
    restore(again, stopped)
    assert again.learning_rate_scale == 3.0
    assert fit(again, run=stopped, progress=False)
    assert outcome(stopped) == outcome(whole)


def test_a_checkpoint_from_before_there_was_a_scale_is_read(finished: Run) -> None:
    state = load_state(finished.newest_whole()[0])
    assert state.pop("learning_rate_scale") == 1.0
    trainer = tiny_trainer()
    trainer.learning_rate_scale = 2.0
    trainer.load_state(state)
    assert trainer.learning_rate_scale == 1.0


def test_samples_that_are_asked_for_leave_the_training_as_it_is() -> None:
    asked, plain = tiny_trainer(), tiny_trainer()
    for event in asked.events():
        if isinstance(event, Step):
            assert asked.sample(seed=event.step).step == event.step
            assert asked.model.training
    for _ in plain.events():
        pass
    assert torch.equal(weights(asked), weights(plain))
    assert torch.equal(asked.state()["generators"]["cpu"], plain.state()["generators"]["cpu"])


def test_a_sample_follows_from_its_seed() -> None:
    trainer = tiny_trainer(sample_every=0, sample_tokens=30)
    texts = [trainer.sample(seed).text for seed in (None, 0, 5)]
    assert texts[0] == texts[1] != texts[2]
    ids = generate(trainer.model, TOKENIZER.encode("t"), SampleConfig(max_new_tokens=30), seed=5)
    assert texts[2] == TOKENIZER.decode(ids.tolist())


def test_without_a_tokenizer_no_sample_can_be_asked_for() -> None:
    trainer = tiny_trainer(sample_every=0)
    trainer.tokenizer = None
    with pytest.raises(ValueError, match="samples need tokenizer="):
        trainer.sample()
