"""A run resumed early, late, as something else, and by the command line."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import IDS, TOKENIZER, copy_of, killed_at, outcome, resumed, tiny_trainer

from labkit.config import DataConfig, TrainConfig
from labkit.text import CharTokenizer
from labkit.training import (
    Checkpoint,
    CheckpointError,
    Run,
    Step,
    Trainer,
    build_trainer,
    fit,
    rebuild_trainer,
    restore,
)
from labkit.training.resume import describe
from labkit.training.run import environment
from labstudio.cli import main


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_a_run_killed_before_its_first_checkpoint_starts_again(
    tmp_path: Path, whole: dict[str, Any], step: int
) -> None:
    run = killed_at(step, Run.create("early", tmp_path))
    shutil.rmtree(run.checkpoints_path, ignore_errors=True)
    (run.checkpoints_path / ".new-step-00000003").mkdir(parents=True)  # killed while it wrote its first
    with pytest.warns(UserWarning, match="stopped before its first checkpoint; it starts again at step 0"):
        assert resumed(run) == whole


def test_a_trained_trainer_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    run = killed_at(2, Run.create("early", tmp_path))
    trainer = tiny_trainer()
    next(each for each in trainer.events() if isinstance(each, Step))
    with pytest.raises(CheckpointError, match="has no whole checkpoint"):
        restore(trainer, run)


@pytest.mark.filterwarnings("error")
def test_restoring_a_finished_run_changes_nothing(
    finished: Run, tmp_path: Path, whole: dict[str, Any]
) -> None:
    run = copy_of(finished, tmp_path)
    trainer = tiny_trainer()
    assert restore(trainer, run) == 9
    assert fit(trainer, run=run, progress=False)
    assert outcome(run) == whole


OTHER = CharTokenizer.from_text("to be or not, that is the question;XYZ")


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (lambda: tiny_trainer({"n_layers": 3}), "another model shape.*n_layers: 2 -> 3"),
        (lambda: tiny_trainer(ids=IDS.flip(0)), "other training or held-out text"),
        (lambda: tiny_trainer(ids=torch.cat([IDS[1:2], IDS[1:]])), "other training or held-out text"),
        (lambda: with_tokenizer(tiny_trainer(), OTHER), "another tokenizer"),
    ],
    ids=["shape", "text", "one token", "tokenizer"],
)
def test_what_would_give_a_wrong_result_is_refused(run: Run, other: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        restore(other(), run)


def with_tokenizer(trainer: Trainer, tokenizer: CharTokenizer) -> Trainer:
    trainer.tokenizer = tokenizer
    return trainer


def edit_environment(run: Run, **changes: Any) -> None:
    row = run.rows("environment")[-1] | changes
    (run.path / "environment.jsonl").write_text(json.dumps(row) + "\n")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"torch": "1.0"}, f"torch: 1.0 -> {torch.__version__}"),
        ({"git": "another"}, "git: another -> commit"),
        ({"precision": "bf16"}, "precision: bf16 -> fp32"),
        ({"machine": "Amiga m68k"}, "machine: Amiga m68k -> "),
        ({"device": "cuda"}, "device: cuda -> cpu"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_another_environment_is_named(run: Run, changes: dict[str, Any], says: str) -> None:
    edit_environment(run, **changes)
    with pytest.warns(UserWarning, match=f"results may differ: .*{re.escape(says)}"):
        restore(tiny_trainer(), run)


def test_other_settings_are_named_and_the_run_goes_on(run: Run) -> None:
    with pytest.warns(UserWarning, match=r"learning_rate: 0.001 -> 0.002; weight_decay: 0.1 -> 0.0"):
        assert restore(tiny_trainer(learning_rate=0.002, weight_decay=0.0), run) == 6


@pytest.fixture
def _threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.filterwarnings("error")
@pytest.mark.usefixtures("_threads_as_before")
def test_the_threads_of_the_run_are_used_again(run: Run) -> None:
    edit_environment(run, threads=2, device="cpu, 2 threads")
    again = tiny_trainer(threads=None)
    with pytest.warns(UserWarning, match=r"results may differ: threads: 1 -> None\.$"):
        restore(again, run)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_threads_as_before")
def test_threads_that_are_asked_for_win_and_the_difference_is_named(run: Run) -> None:
    edit_environment(run, threads=2, device="cpu, 2 threads")
    with pytest.warns(UserWarning, match="device: cpu, 2 threads -> cpu, 1 thread; threads: 2 -> 1"):
        restore(tiny_trainer(threads=1), run)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    "row",
    [
        {"threads": 2, "device": "NVIDIA H200"},
        {"threads": 2, "device": "cpu, 2 threads", "processes": 2},
        {"threads": "two", "device": "cpu, 2 threads"},
        {"threads": 0, "device": "cpu, 2 threads"},
    ],
    ids=["GPU", "two processes", "damaged", "none"],
)
@pytest.mark.usefixtures("_threads_as_before")
def test_threads_of_another_computation_are_not_taken_over(run: Run, row: dict[str, Any]) -> None:
    edit_environment(run, **row)
    with pytest.warns(UserWarning, match="results may differ"):
        restore(tiny_trainer(threads=None), run)
    assert torch.get_num_threads() == 1


@pytest.mark.usefixtures("_threads_as_before")
def test_a_machine_that_cannot_use_the_threads_of_the_run_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit_environment(run, threads=2, device="cpu, 2 threads")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    with pytest.warns(UserWarning, match=r"device: cpu, 2 threads -> cpu, 1 thread; threads: 2 -> 1"):
        restore(tiny_trainer(threads=None), run)


def test_an_optimizer_of_another_kind_is_refused_and_nothing_is_set_aside(run: Run) -> None:
    with pytest.raises(CheckpointError, match="step-00000006 does not fit this trainer: 'optimizers'"):
        restore(tiny_trainer(optimizer="muon"), run)
    assert [info.step for info in run.checkpoints()] == [3, 6]


# The command line


SMALL = {"max_steps": 2, "batch_size": 2, "eval_windows": 2, "checkpoint_every": 1, "threads": 1}


@pytest.fixture(scope="module")
def from_settings(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that its config.json describes, stopped at step 1."""
    run = Run.create("described", tmp_path_factory.mktemp("runs"))
    shape = {"context_length": 7, "d_model": 10, "n_layers": 1, "n_heads": 2}
    trainer = build_trainer("char-mini", shape, TrainConfig(**SMALL), DataConfig(corpus="tiny"))
    with contextlib.suppress(RuntimeError):
        fit(trainer, run=run, progress=False, callbacks=[stop])
    return run


def stop(event: Any) -> None:
    if isinstance(event, Checkpoint) and event.step == 1:
        raise RuntimeError("stop")


def labkit(*arguments: str) -> object:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    return end.value.code or 0


def test_resuming_a_finished_run_does_nothing_and_says_so(
    from_settings: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copy_of(from_settings, tmp_path)
    assert labkit("resume", str(run.path)) == 0
    assert "going on from step 1 of 2" in capsys.readouterr().out
    files = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    assert labkit("resume", str(run.path)) == 0
    assert "run described is finished already, at step 2" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == files


def test_a_full_disk_ends_the_command_with_the_way_on(
    from_settings: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy_of(from_settings, tmp_path)
    monkeypatch.setattr(
        torch, "save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert labkit("resume", str(run.path)) == 2
    told = capsys.readouterr().err
    assert "No space left on device" in told
    assert "To go on with run described: labkit resume described" in told
    assert "Traceback" not in told


@settings(max_examples=40)
@given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_settings_is_named_or_harmless(
    from_settings: Run, tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    run = copy_of(from_settings, tmp_path_factory.mktemp("flip"))
    content = bytearray((run.path / "config.json").read_bytes())
    content[place % len(content)] ^= 1 << bit
    (run.path / "config.json").write_bytes(content)
    expected = describe(rebuild_trainer(from_settings))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            trainer = rebuild_trainer(run)
            restore(trainer, run)
        except ValueError as error:
            refused = str(error)
        else:
            found = describe(trainer)
            same = {key: value for key, value in found.items() if key != "source"} == {
                key: value for key, value in expected.items() if key != "source"
            }
            refused = "" if same else " ".join(str(each.message) for each in told)
            assert same or refused
    shutil.rmtree(run.path)


def test_what_a_run_was_computed_with_is_recorded(finished: Run) -> None:
    row = finished.rows("environment")[0]
    assert row.keys() == {"step", *environment(torch.device("cpu"), "fp32")}
    assert row["threads"] == 1
    assert finished.config()["tokenizer"] == TOKENIZER.fingerprint
