"""What a run leaves on disk: names that never collide, rows that survive a torn end, the way back."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from labkit import GPT, GPTConfig
from labkit.text import CharTokenizer
from labkit.training import CheckpointError, Run, list_runs, runs_dir, save_checkpoint


def test_runs_lie_under_the_output_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    assert list_runs() == []
    run = Run.create("first")
    assert run.path == tmp_path / "runs" / "first" == runs_dir() / "first"
    run.write_config({})
    assert list_runs() == [run]


def test_a_taken_name_gets_a_number_and_nothing_is_lost(tmp_path: Path) -> None:
    first = Run.create("try", tmp_path)
    first.append("metrics", {"event": "step", "step": 1})
    assert [Run.create("try", tmp_path).id for _ in range(3)] == ["try-2", "try-3", "try-4"]
    assert first.rows("metrics") == [{"event": "step", "step": 1}]


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../up", "/etc", "a\\b", "C:", "what?", "a*", 'a"b', "a<b", "a|b", "nul\0",
     "-x", "--help", " a", "a ", "a\n", "a\nb", "a\tb", "\x1b[31m", "a\u2028b", "\u202ea", "\udcff",
     ".hidden", "a.", "a" * 101],
)  # fmt: skip
def test_names_that_are_no_folder_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"Run: name=.* must be a plain folder name, such as 'first-try'"):
        Run.create(name, tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_run_is_opened_by_name_or_path(tmp_path: Path) -> None:
    run = Run.create("first", tmp_path)
    run.write_config({"total_steps": 3})
    assert Run.open("first", tmp_path) == run
    assert Run.open(run.path).config() == {"total_steps": 3}


def test_an_unknown_run_is_an_error_that_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"There is no run 'third'. Runs: none yet; `labkit train` makes one"
    ):
        Run.open("third", tmp_path)
    for name in ("first", "second"):
        Run.create(name, tmp_path).write_config({})
    with pytest.raises(ValueError, match=r"There is no run 'third'. Runs: .*first.*second"):
        Run.open("third", tmp_path)


def test_runs_are_listed_oldest_first_and_other_folders_are_not(tmp_path: Path) -> None:
    for age, name in enumerate(["b", "a", "c"]):
        run = Run.create(name, tmp_path)
        run.write_config({})
        os.utime(run.path / "config.json", (time.time() - 100 + age,) * 2)
    (tmp_path / "not-a-run").mkdir()
    assert [run.id for run in list_runs(tmp_path)] == ["b", "a", "c"]


def test_rows_come_back_as_written(tmp_path: Path) -> None:
    run = Run.create("first", tmp_path)
    rows = [{"text": "„Sein\nodernicht\u2028Sein“ 🎭"}, {"text": ""}, {"loss": 1.5, "step": 3}]
    for row in rows:
        run.append("samples", row)
    assert run.rows("samples") == rows
    assert len((run.path / "samples.jsonl").read_bytes().splitlines()) == 3
    assert run.rows("metrics") == []


@pytest.mark.parametrize("cut", [1, 2, 9, 20])
def test_a_torn_last_line_costs_that_line_alone(tmp_path: Path, cut: int) -> None:
    run = Run.create("first", tmp_path)
    for step in range(3):
        run.append("metrics", {"event": "step", "step": step, "note": "é"})
    path = run.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    whole = 3 if cut == 1 else 2  # cut by one byte, only the line's end is missing
    assert [row["step"] for row in run.rows("metrics")] == list(range(whole))
    assert len(run.metrics("step")) == whole


def test_what_is_written_after_a_torn_line_is_not_lost_with_it(tmp_path: Path) -> None:
    run = Run.create("first", tmp_path)
    (run.path / "metrics.jsonl").write_text('{"event": "step", "step": 1}\n{"event": "st')
    run.append("metrics", {"event": "step", "step": 2})
    run.append("metrics", {"event": "step", "step": 3})
    assert [row["step"] for row in run.rows("metrics")] == [1, 2, 3]


def test_metrics_are_a_table_of_one_kind_of_event(tmp_path: Path) -> None:
    run = Run.create("first", tmp_path)
    run.append("metrics", {"event": "evaluation", "step": 0, "val_loss": 4.5})
    run.append("metrics", {"event": "step", "step": 1, "loss": 4.0})
    run.append("metrics", {"event": "evaluation", "step": 1, "val_loss": 3.5})
    table = run.metrics("evaluation")
    assert table.to_dict("list") == {"step": [0, 1], "val_loss": [4.5, 3.5]}
    assert len(run.metrics("sample")) == 0


def test_a_run_gives_back_its_model_and_tokenizer(tmp_path: Path) -> None:
    tokenizer = CharTokenizer.from_text("to be")
    config = GPTConfig(vocab_size=tokenizer.vocab_size, context_length=7, d_model=10, n_layers=1, n_heads=2)
    model = GPT(config)
    run = Run.create("first", tmp_path)
    tokenizer.save(run.path / "tokenizer.json")
    with pytest.raises(CheckpointError, match="has no whole checkpoint"):
        run.load()
    save_checkpoint(run.checkpoints_path / "step-00000005", model, 5)
    loaded, pieces = run.load()
    ids = torch.tensor([tokenizer.encode("to be")])
    assert torch.equal(loaded(ids), model.eval()(ids))
    assert pieces.encode("to be") == tokenizer.encode("to be")


def test_config_is_readable_json(tmp_path: Path) -> None:
    run = Run.create("first", tmp_path)
    run.write_config({"prompt": "é\n", "train": {"betas": (0.9, 0.99)}})
    assert json.loads((run.path / "config.json").read_text(encoding="utf-8"))["prompt"] == "é\n"
