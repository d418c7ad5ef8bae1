"""LiveRun without a browser: every order is followed between two steps, and the training stays what it is."""

from __future__ import annotations

import _thread
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from labkit import GPT, GPTConfig, TrainConfig
from labkit.text import CharTokenizer
from labkit.training import (
    CheckpointError,
    Run,
    Trainer,
    TrainingDivergedError,
    fit,
    list_runs,
    load_checkpoint,
)
from labstudio import LiveRun
from labstudio.widgets import live_run
from labstudio.widgets.live_run import FRONT_ENDS, is_live

TEXT = "to be or not to be, that is the question; " * 12
TOKENIZER = CharTokenizer.from_text(TEXT)
IDS = torch.tensor(TOKENIZER.encode(TEXT))
STEPS = 9


def tiny(ids: torch.Tensor = IDS, d_model: int = 10, **settings: Any) -> Trainer:
    torch.manual_seed(0)
    shape = {"context_length": 7, "d_model": d_model, "n_layers": 2, "n_heads": 2, "dropout": 0.1}
    config: dict[str, Any] = {"max_steps": STEPS, "batch_size": 3, "eval_windows": 5, "eval_every": 2}
    config |= {"sample_every": 4, "sample_tokens": 5, "checkpoint_every": 3, "threads": 1}
    model = GPT(GPTConfig(vocab_size=TOKENIZER.vocab_size, **shape))
    train = TrainConfig(**config | settings)
    return Trainer(model, ids[:400], ids[400:], train, tokenizer=TOKENIZER, prompt="t")


def outcome(run: Run | None) -> dict[str, Any]:
    """What must be the same; the checksums stand for weights, optimizer and generators."""
    assert run is not None
    last = run.newest_whole()[0]
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in run.rows("metrics")]
    samples = [row for row in run.rows("samples") if row.get("event") != "asked"]
    return {"last": last.name, "sums": (last / "SHA256SUMS").read_text(), "rows": rows, "samples": samples}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The same training by `fit`, never disturbed."""
    run = Run.create("whole", tmp_path_factory.mktemp("runs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr("labkit.training.run._git_state", lambda: "commit")
        fit(tiny(), run=run, progress=False)
    return outcome(run)


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of its own, no waiting for the disk; and nothing trains on afterwards."""
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr("labkit.training.run._git_state", lambda: "commit")
    yield
    for each in list(live_run._training):
        each.stop()
        assert each._ended.wait(60)


def live(trainer: Trainer | None = None, name: str = "live", **options: Any) -> LiveRun:
    return LiveRun(trainer or tiny(), name, **{"blocking": False} | options)


def until(true: Callable[[], Any]) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def paused_at(step: int, trainer: Trainer | None = None, **options: Any) -> LiveRun:
    """One that has taken so many steps and is paused."""
    some = live(trainer, start=False, **options)
    for number in range(1, step + 1):
        some.step()
        until(lambda number=number: (some.state, some.steps_done) == ("paused", number))
    return some


def enabled(some: LiveRun) -> list[str]:
    return [each["label"] for each in some.buttons if each["enabled"]]


def press(some: LiveRun, do: str, **content: Any) -> None:
    """What the browser sends."""
    some._handle_custom_msg(json.loads(json.dumps({"do": do} | content)), [])


def in_step(trainer: Trainer, step: int, do: Callable[[Any], Any]) -> None:
    """Call `do` with the output of the model in this training step (from 0); its result may replace it."""
    trainer.model.norm.register_forward_hook(
        lambda module, args, output: do(output) if module.training and trainer.step == step else None
    )


# The same training


def test_blocking_trains_to_the_end_and_as_fit_does(
    whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    some = live(blocking=True)
    assert outcome(some.run) == whole
    assert (some.state, some.steps_done, len(some.curves["step"])) == ("finished", STEPS, STEPS)
    assert some.wait() is True
    assert "9/9" in capsys.readouterr().err


def test_in_the_background_it_trains_as_fit_does(
    whole: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    some = live()
    assert some.wait(60) is True
    assert outcome(some.run) == whole
    assert (some.state, some.steps_done, some.error) == ("finished", STEPS, "")
    assert len(some.samples) == 3
    assert enabled(some) == []
    assert capsys.readouterr() == ("", "")


def test_whatever_is_pressed_the_training_is_the_same(whole: dict[str, Any]) -> None:
    some = paused_at(3)
    press(some, "sample")
    until(lambda: some.samples)
    press(some, "resume")
    press(some, "pause")
    press(some, "sample")
    press(some, "resume")
    assert some.wait(60)
    assert outcome(some.run) == whole


# Pause, step, stop


def test_nothing_begins_before_it_is_started(tmp_path: Path) -> None:
    some = live(start=False)
    assert (some.state, some.trainer.step, some.run) == ("ready", 0, None)
    assert enabled(some) == ["Start", "Step"]
    assert list_runs() == []
    press(some, "resume")
    assert some.wait(60)


def test_a_step_is_one_step_and_a_pause_holds() -> None:
    some = paused_at(1)
    for expected in (2, 3):
        press(some, "step")
        until(lambda expected=expected: (some.state, some.steps_done) == ("paused", expected))
        some.sample()  # which the same thread writes
        until(lambda expected=expected: len(asked(some)) == expected - 1)
        assert (some.trainer.step, some.trainer.pending) == (expected, [])
    assert some.run
    assert some.run.metrics("evaluation")["step"].tolist() == [0, 2]
    assert enabled(some) == ["Resume", "Step", "Stop", "Sample now"]


def asked(some: LiveRun) -> list[dict[str, Any]]:
    return [each for each in some.samples if each["asked"]]


def test_a_pause_in_the_middle_of_a_step_holds_after_it() -> None:
    trainer = tiny()
    inside, go_on = threading.Event(), threading.Event()
    in_step(trainer, 4, lambda _: (inside.set(), go_on.wait(60))[0])
    some = live(trainer)
    assert inside.wait(60)
    press(some, "pause")
    go_on.set()
    until(lambda: some.state == "paused")
    assert some.trainer.step == 5


@pytest.mark.parametrize("step", [2, 4])
def test_a_stop_saves_a_checkpoint_and_resume_goes_on_to_the_same_end(
    whole: dict[str, Any], step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    some = paused_at(step)
    press(some, "stop")
    assert some.wait(60) is False
    assert f"Stopped after step {step}, which is saved." in capsys.readouterr().out
    assert (some.state, enabled(some)) == ("stopped", ["Resume", "Step"])
    assert some.run
    assert load_checkpoint(some.run.newest_whole()[0])[1] == step
    press(some, "resume")
    assert some.wait(60) is True
    assert outcome(some.run) == whole


def test_ctrl_c_while_waiting_stops_with_a_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    trainer = tiny()
    in_step(trainer, 2, lambda _: _thread.interrupt_main())
    inside, go_on = threading.Event(), threading.Event()
    in_step(trainer, 3, lambda _: (inside.set(), go_on.wait(0.6))[0])  # longer than `wait` looks away
    some = live(trainer)
    assert some.wait(60) is False
    assert some.state == "stopped"
    assert some.run
    assert some.run.newest_whole()[1]["step"] == some.trainer.step < STEPS


def test_wait_gives_up_after_its_time_and_says_what_it_waits_for(capsys: pytest.CaptureFixture[str]) -> None:
    some = live(start=False)
    assert some.wait(0.01) is False
    assert capsys.readouterr().out == "Waiting for a button of LiveRun(live) to be pressed.\n"
    some.step()
    assert some.wait(0.01) is False
    assert capsys.readouterr().out == ""


def test_closing_the_widget_stops_the_training() -> None:
    some = paused_at(2)
    some.close()
    assert some.wait(60) is False
    assert some.run
    assert some.run.newest_whole()[1]["step"] == 2


def test_it_is_drawn_no_more_than_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    monkeypatch.setattr(LiveRun, "_read", lambda self, run: drawn.append(1) or SimpleNamespace(problem=""))
    monkeypatch.setattr(live_run, "time", SimpleNamespace(monotonic=lambda: 1000.0))
    assert live().wait()
    assert len(drawn) == 2  # when it begins and when it has ended


# The learning rate, samples


def test_the_learning_rate_is_scaled_recorded_and_restored() -> None:
    some = paused_at(2)
    assert some.rate == 1.0
    press(some, "rate", value=0.25)
    assert (some.rate, some.error) == (0.25, "")
    some.step()
    until(lambda: some.steps_done == 3)
    some.stop()
    some.wait(60)
    assert some.run
    plain = tiny()
    rates = some.run.metrics("step")["learning_rate"].tolist()
    assert rates == [plain.learning_rate(0), plain.learning_rate(1), 0.25 * plain.learning_rate(2)]
    again = live()
    assert again.rate is None
    again.step()
    until(lambda: again.state == "paused")
    assert (again.rate, again.steps_done) == (0.25, 4)


@pytest.mark.parametrize("factor", [0, -1, math.inf, math.nan, 1001, "much", "", None, True, [2]])
def test_a_factor_that_is_none_is_refused_and_said(factor: Any) -> None:
    some = live(start=False)
    press(some, "rate", value=factor)
    assert "choose a number above 0, up to 1000" in some.error
    assert some.trainer.learning_rate_scale == 1.0
    press(some, "rate", value=3)
    assert (some.error, some.trainer.learning_rate_scale) == ("", 3.0)


def test_samples_asked_for_are_recorded_and_differ() -> None:
    some = paused_at(1, tiny(sample_tokens=30))
    for number in (1, 2):
        press(some, "sample")
        until(lambda number=number: len(asked(some)) == number)
    assert some.run
    first, second = some.run.rows("samples")
    assert (first["step"], first["event"], first["prompt"]) == (1, "asked", "t")
    assert first["text"] != second["text"]


def test_without_a_tokenizer_a_sample_is_refused_and_the_training_goes_on() -> None:
    trainer = tiny(sample_every=0)
    trainer.tokenizer = None
    some = paused_at(1, trainer)
    press(some, "sample")
    until(lambda: some.error)
    assert "samples need tokenizer=" in some.error
    some.resume()
    assert some.wait(60)


# What goes wrong


def test_divergence_is_shown_and_raised_and_resume_is_not_offered() -> None:
    trainer = tiny()
    in_step(trainer, 5, lambda output: output * math.nan)
    some = live(trainer)
    for _ in range(2):
        with pytest.raises(TrainingDivergedError, match="diverged at step 6"):
            some.wait(60)
    assert "diverged at step 6" in some.error
    assert (some.state, enabled(some)) == ("failed", [])
    assert "Run the cell that builds the trainer again" in some.message
    with pytest.raises(RuntimeError, match="Ended by an error after step 5"):
        some.resume()


def test_after_a_checkpoint_that_could_not_be_written_it_can_go_on(
    whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        some = live()
        with pytest.raises(CheckpointError, match="No space left"):
            some.wait(60)
    assert (some.state, enabled(some)) == ("failed", ["Resume", "Step"])
    press(some, "resume")
    assert some.wait(60)
    assert (some.error, outcome(some.run)) == ("", whole)


def test_a_trainer_is_not_trained_twice_at_once() -> None:
    some = paused_at(1)
    with pytest.raises(RuntimeError, match=r"at work for LiveRun\(live\)\. Stop that one"):
        live(some.trainer, "other")
    assert [run.id for run in list_runs()] == ["live"]


def test_a_second_one_on_the_same_run_shows_it_and_can_stop_it(whole: dict[str, Any]) -> None:
    first = paused_at(4)
    second = live()
    assert (second.state, second.steps_done, second.trainer.step) == ("busy", 4, 0)
    assert "is being trained elsewhere" in second.message
    assert enabled(second) == ["Look again", "Stop it", "Start anew"]
    with pytest.raises(RuntimeError, match="is being trained elsewhere"):
        second.resume()
    press(second, "stop")
    assert (first.state, second.state) == ("stopped", "offered")
    press(second, "resume")
    assert second.wait(60)
    assert outcome(second.run) == whole


def test_a_run_that_something_else_writes_can_only_be_looked_at() -> None:
    interrupted(2)
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with list_runs()[0].locked():
            held.set()
            let_go.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(60)
    some = live()
    assert (some.state, enabled(some)) == ("busy", ["Look again", "Start anew"])
    let_go.set()
    thread.join()
    press(some, "look")
    assert some.state == "offered"


def test_an_unknown_message_is_ignored() -> None:
    some = live(start=False)
    for do in ("close", "_train", "run", ""):
        press(some, do)
    assert (some.state, some.error) == ("ready", "")


# After a restart


def interrupted(step: int, name: str = "live", **settings: Any) -> Run:
    """A run that was stopped after so many steps, by a kernel that is gone."""
    some = paused_at(step, tiny(**settings), name=name)
    some.stop()
    some.wait(60)
    assert some.run
    return some.run


def test_an_interrupted_run_is_shown_and_resumed_from_its_checkpoint(whole: dict[str, Any]) -> None:
    run = interrupted(5)
    some = live()
    assert (some.state, some.run, some.trainer.step, some.rate) == ("offered", run, 0, None)
    assert (some.steps_done, some.curves["step"], len(some.samples)) == (5, [1, 2, 3, 4, 5], 1)
    assert "interrupted after step 5" in some.message
    assert enabled(some) == ["Resume from step 5", "Start anew"]
    press(some, "resume")
    assert some.wait(60)
    assert outcome(run) == whole
    assert [each.id for each in list_runs()] == ["live"]


def test_a_run_that_was_killed_goes_on_from_the_checkpoint_before(whole: dict[str, Any]) -> None:
    def kill(event: Any) -> None:
        if getattr(event, "step", 0) == 5:
            raise SystemExit

    run = Run.create("live")
    with pytest.raises(SystemExit):
        fit(tiny(), run=run, progress=False, callbacks=[kill])
    some = live()
    assert enabled(some) == ["Resume from step 3", "Start anew"]
    assert some.steps_done == 5
    some.resume()
    assert some.wait(60)
    assert outcome(run) == whole


def test_a_step_of_a_resumed_run_comes_after_what_was_still_due() -> None:
    trainer = tiny()
    in_step(trainer, 3, lambda _: live_run._training[0].stop())
    assert live(trainer).wait(60) is False
    assert trainer.pending == ["evaluation", "sample"]
    again = live()
    again.step()
    until(lambda: again.state == "paused")
    assert again.steps_done == 5
    assert again.run
    assert again.run.metrics("evaluation")["step"].tolist() == [0, 2, 4]


def test_starting_anew_leaves_the_interrupted_run_as_it_is(whole: dict[str, Any]) -> None:
    run = interrupted(4)
    before = {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}
    some = live()
    press(some, "start_anew")
    assert some.wait(60)
    assert some.run
    assert (some.run.id, some.name) == ("live-2", "live-2")
    assert outcome(some.run) == whole
    assert before == {file: file.read_bytes() for file in run.path.rglob("*") if file.is_file()}


def test_the_newest_of_a_name_counts_and_a_finished_one_makes_room_for_another() -> None:
    live().wait(60)
    interrupted(2)
    interrupted(3, name="live-lier")
    offered = live()
    assert offered.run
    assert (offered.state, offered.run.id) == ("offered", "live-2")
    offered.resume()
    assert offered.wait(60)
    third = live()
    assert third.wait(60)
    assert third.run
    assert third.run.id == "live-3"
    assert repr(third) == "LiveRun(live)"


def test_blocking_never_offers_anything(whole: dict[str, Any]) -> None:
    interrupted(4)
    some = live(blocking=True)
    assert some.run
    assert (some.run.id, outcome(some.run)) == ("live-2", whole)


@pytest.mark.parametrize(
    ("other", "said"),
    [({"ids": IDS.flip(0)}, "other training or held-out text"), ({"d_model": 12}, "another model shape")],
    ids=["data", "shape"],
)
def test_a_trainer_that_does_not_fit_may_only_start_anew(other: dict[str, Any], said: str) -> None:
    interrupted(2)
    some = live(tiny(**other))
    press(some, "resume")
    with pytest.raises(ValueError, match=said):
        some.wait(60)
    assert said in some.error
    assert (some.state, enabled(some)) == ("offered", ["Start anew"])
    press(some, "start_anew")
    assert some.wait(60)
    assert some.error == ""


def test_what_was_passed_over_on_the_way_is_said() -> None:
    run = interrupted(5)
    (run.checkpoints()[-1].path / "model.safetensors").write_bytes(b"damaged")
    some = live()
    some.step()
    until(lambda: some.state == "paused")
    assert (some.trainer.step, "is damaged" in some.message) == (4, True)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_gone_on_with() -> None:
    run = interrupted(5)
    for saved in run.checkpoints():
        (saved.path / "state.pt").write_bytes(b"damaged")
    some = live()
    some.resume()
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        some.wait(60)
    assert (some.state, enabled(some)) == ("failed", [])


def test_a_trainer_that_has_taken_steps_does_not_start_anew() -> None:
    some = paused_at(2)
    some.stop()
    some.wait(60)
    again = live(some.trainer)
    assert enabled(again) == ["Resume from step 2"]
    press(again, "start_anew")
    assert "has taken 2 steps" in again.error


# Names, and who looks on


@pytest.mark.parametrize("name", ["a b&𝔘", "[x]", "live-7", "<i>".replace("<", "").replace(">", "")])
def test_odd_names_are_found_again_and_shown_as_text(name: str) -> None:
    run = interrupted(1, name=name)
    some = live(tiny(ids=IDS.flip(0)), name=name)
    assert (some.state, some.run) == ("offered", run)
    assert some.name == name
    some.resume()
    with pytest.raises(ValueError, match="other training or held-out text"):
        some.wait(60)
    assert f"Run {name} was trained with other" in some.error


@pytest.mark.parametrize("name", ["", "..", "a/b", "<b>", "a\u202eb"])
def test_a_name_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be a plain folder name"):
        live(name=name)


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*FRONT_ENDS, "LABKIT_LIVE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def kernel(patch: pytest.MonkeyPatch, **shell: Any) -> None:
    shell_now = SimpleNamespace(**shell) if shell else None
    patch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell_now))


@pytest.mark.parametrize("variable", FRONT_ENDS)
def test_somebody_looks_on_where_a_kernel_belongs_to_a_page(
    nobody: pytest.MonkeyPatch, variable: str
) -> None:
    kernel(nobody, kernel=1)
    assert not is_live()  # as nbclient starts it
    nobody.setenv(variable, "x")
    assert is_live()
    kernel(nobody)
    assert not is_live()  # a script that a kernel started
    kernel(nobody, colors=1)
    assert not is_live()  # IPython in a terminal


def test_the_environment_variable_decides_and_the_argument_decides_more(nobody: pytest.MonkeyPatch) -> None:
    nobody.setenv("LABKIT_LIVE", "1")
    assert is_live()
    kernel(nobody, kernel=1)
    nobody.setenv("JPY_SESSION_NAME", "x")
    nobody.setenv("LABKIT_LIVE", "0")
    assert not is_live()
    assert LiveRun(tiny(), start=False).state == "finished"
    assert LiveRun(tiny(), start=False, blocking=False).state == "ready"
    nobody.setenv("LABKIT_LIVE", "yes")
    with pytest.raises(ValueError, match="LABKIT_LIVE='yes': set 1"):
        is_live()
