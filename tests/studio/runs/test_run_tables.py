"""Tables and curves of runs: what they say, and that damaged or half-written folders do not stop them."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from labkit.training import Run
from labstudio.runs import checkpoints_table, compare_runs, comparison_curves, runs_table
from labstudio.runs.tables import comparison_warnings, evaluations_table, run_settings

LOSSES = {0: 4.0, 2: 3.0, 4: 2.0, 6: 2.5}


def make_run(root: Path, name: str, *, steps: int = 6, total: int = 6, **changes: Any) -> Run:
    """A run folder with a step row per step of 10 tokens, and evaluations where LOSSES has them."""
    run = Run.create(name, root)
    config = {
        "model": {"d_model": 10, "n_layers": 2},
        "train": {"learning_rate": 1e-3, "betas": [0.9, 0.99], "seed": 0},
        "source": {"preset": "char-mini", "train": {"seed": 0}, "data": {"corpus": "tiny", "stride": None}},
        "data": "a checksum",
        "tokenizer": "chars",
        "total_steps": total,
        "parameters": 1234,
        "prompt": "\n",
    }
    run.write_config(config | changes)
    for step in range(steps + 1):
        if step:
            row = {"loss": 5.0 - step / 2, "learning_rate": 1e-3, "grad_norm": 1.0, "tokens": step * 10}
            run.append("metrics", {"event": "step", "step": step, **row, "seconds": step / 4})
        if step in LOSSES:
            row = {"val_loss": LOSSES[step], "perplexity": 10 * LOSSES[step]}
            run.append("metrics", {"event": "evaluation", "step": step, **row, "seconds": step / 4})
    return run


def make_checkpoint(run: Run, name: str, text: str = '{"step": 4, "val_loss": 2.0}') -> Path:
    folder = run.checkpoints_path / name
    folder.mkdir(parents=True)
    (folder / "checkpoint.json").write_text(text)
    (folder / "state.pt").write_bytes(b"x" * (1_000_000 - len(text)))
    return folder


def age(run: Run, seconds: float) -> None:
    for file in run.path.iterdir():
        os.utime(file, (time.time() - seconds,) * 2)


def test_a_row_says_size_progress_last_and_best(tmp_path: Path) -> None:
    row = runs_table([make_run(tmp_path, "first")]).iloc[0].to_dict()
    del row["started"]
    assert pd.isna(row.pop("bits_per_byte"))
    assert row == {
        "run": "first",
        "parameters": 1234,
        "step": 6,
        "total_steps": 6,
        "tokens": 60,
        "seconds": 1.5,
        "val_loss": 2.5,
        "best_val_loss": 2.0,
        "perplexity": 25.0,
        "best_perplexity": 20.0,
        "state": "finished",
    }


def test_no_runs_are_an_empty_table_with_the_same_columns(tmp_path: Path) -> None:
    assert len(runs_table([])) == 0
    assert list(runs_table([])) == list(runs_table([make_run(tmp_path, "first")]))


def test_state_is_finished_perhaps_running_or_stopped(tmp_path: Path) -> None:
    finished, fresh, old = (make_run(tmp_path, name, steps=n) for name, n in (("a", 6), ("b", 5), ("c", 5)))
    age(finished, 300)
    age(old, 300)
    os.utime(fresh.path / "config.json", (0, 0))
    table = runs_table([finished, fresh, old])
    assert table["state"].tolist() == ["finished", "running?", "stopped"]
    assert table["started"][1].year < 1971


def test_a_run_that_has_just_begun_has_no_numbers_yet(tmp_path: Path) -> None:
    run = make_run(tmp_path, "first")
    (run.path / "metrics.jsonl").unlink()
    row = runs_table([run]).iloc[0]
    assert (row["step"], row["tokens"], row["state"]) == (0, 0, "running?")
    assert pd.isna(row["val_loss"])
    assert len(evaluations_table(run)) == 0


def test_wherever_the_metrics_end_the_row_holds_what_is_whole(tmp_path: Path) -> None:
    run = make_run(tmp_path, "first")
    path = run.path / "metrics.jsonl"
    content = path.read_bytes()
    for end in range(0, len(content) + 1, 3):
        path.write_bytes(content[:end])
        row = runs_table([run]).iloc[0]
        whole = [line for line in content[:end].split(b"\n") if line.endswith(b"}")]
        assert row["step"] == sum(b'"event": "step"' in line for line in whole)
        losses = sum(b'"evaluation"' in line for line in whole)
        assert pd.isna(row["val_loss"]) if losses == 0 else row["val_loss"] == [*LOSSES.values()][losses - 1]


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("config.json", "", "config.json: Expecting value"),
        ("config.json", '{"total_steps": 6, "par', "Unterminated string"),
        ("config.json", '{"total_steps": 6}', "'parameters' is missing"),
        ("config.json", '{"total_steps": "many", "parameters": 1}', "'many'"),
        ("config.json", "[]", "is missing"),
        ("config.json", "3", "config.json: 'int'"),
        ("config.json", "\udcff", "utf-8"),
        ("metrics.jsonl", '{"event": "step", "step": "x"}', "'x'"),
        ("metrics.jsonl", '{"event": "evaluation", "step": 1, "val_loss": "low"}', "'low'"),
        ("metrics.jsonl", '{"event": "evaluation", "step": 1, "val_loss": [1]}', ""),
    ],
)
def test_a_damaged_run_says_why_in_its_row(tmp_path: Path, file: str, content: str, why: str) -> None:
    damaged, whole = make_run(tmp_path, "a", train={"seed": 7}), make_run(tmp_path, "b")
    (damaged.path / file).write_bytes(content.encode(errors="surrogateescape"))
    state, other = runs_table([damaged, whole])["state"]
    assert state.startswith("unreadable: ")
    assert why in state
    assert "\n" not in state
    assert other == "finished"
    assert compare_runs([damaged, whole])["state"].tolist() == [state, "finished"]
    comparison_curves([damaged, whole])
    comparison_warnings([damaged, whole])


def test_a_run_deleted_since_it_was_listed_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path, "first")
    shutil.rmtree(run.path)
    assert "No such file" in runs_table([run])["state"][0]
    assert len(checkpoints_table([run])) == 0


@pytest.mark.parametrize("line", ["3", "[]", "{}", "null", '{"step": 9}', "\x00\x00"])
def test_rows_that_are_no_events_are_passed_over(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path, "first")
    with (run.path / "metrics.jsonl").open("a") as handle:
        handle.write(line + "\n")
    assert runs_table([run])["step"][0] == 6


def test_a_loss_that_is_not_a_number_is_not_the_best(tmp_path: Path) -> None:
    run = make_run(tmp_path, "first")
    run.append("metrics", {"event": "evaluation", "step": 6, "val_loss": float("nan"), "perplexity": 1e9})
    row = runs_table([run]).iloc[0]
    assert pd.isna(row["val_loss"])
    assert row["best_val_loss"] == 2.0


def test_evaluations_are_a_table_of_what_was_measured(tmp_path: Path) -> None:
    table = evaluations_table(make_run(tmp_path, "first"))
    assert list(table) == ["step", "seconds", "val_loss", "perplexity"]
    assert dict(zip(table["step"], table["val_loss"], strict=True)) == LOSSES


def test_settings_show_what_was_asked_of_the_data_and_nothing_twice(tmp_path: Path) -> None:
    assert run_settings(make_run(tmp_path, "first")) == {
        "model.d_model": 10,
        "model.n_layers": 2,
        "train.learning_rate": 1e-3,
        "train.betas": [0.9, 0.99],
        "train.seed": 0,
        "data.corpus": "tiny",
        "data.stride": None,
        "tokenizer": "chars",
        "prompt": "\n",
        "preset": "char-mini",
    }
    assert run_settings(make_run(tmp_path, "notebook", source=None))["data"] == "a checksum"


def test_comparison_shows_only_the_settings_that_differ(tmp_path: Path) -> None:
    first = make_run(tmp_path, "first")
    train = {"learning_rate": 3e-3, "betas": [0.9, 0.95], "seed": 0, "schedule": "wsd"}
    second = make_run(tmp_path, "second", steps=4, train=train, parameters=99)
    table = compare_runs([first, second])
    shown = list(table)[: list(table).index("parameters")]
    assert shown == ["train.learning_rate", "train.betas", "train.schedule"]
    assert table["train.learning_rate"].tolist() == [1e-3, 3e-3]
    assert table["train.betas"].tolist() == [[0.9, 0.99], [0.9, 0.95]]
    assert table["train.schedule"].isna().tolist() == [True, False]  # a version without that field
    assert table.loc["second", ["parameters", "step", "tokens", "val_loss"]].tolist() == [99, 4, 40, 2.0]


def test_equal_runs_differ_in_no_setting(tmp_path: Path) -> None:
    table = compare_runs([make_run(tmp_path, "a"), make_run(tmp_path, "b")])
    assert next(iter(table)) == "parameters"
    assert list(table.index) == ["a", "b"]


def test_a_run_that_cannot_be_read_makes_no_setting_differ(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name) for name in "abc"]
    (runs[0].path / "config.json").write_text("torn")
    assert next(iter(compare_runs(runs))) == "parameters"


def test_bits_per_byte_are_there_when_recorded(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, name) for name in "ab"]
    runs[1].append("metrics", {"event": "evaluation", "step": 6, "val_loss": 1.0, "bits_per_byte": 1.75})
    assert compare_runs(runs)["bits_per_byte"].fillna(0).tolist() == [0, 1.75]


def test_numbers_that_do_not_compare_are_pointed_out(tmp_path: Path) -> None:
    first = make_run(tmp_path, "first")
    assert comparison_warnings([first, make_run(tmp_path, "same")]) == []
    [warning] = comparison_warnings([first, make_run(tmp_path, "bpe", tokenizer="pieces")])
    assert warning.startswith("The tokenizers differ, so losses and perplexities do not compare")
    other = make_run(tmp_path, "other", source={"data": {"corpus": "mine.txt", "stride": None}})
    [warning] = comparison_warnings([first, other])
    assert warning.startswith("The held-out texts differ")
    stride = make_run(tmp_path, "stride", source={"data": {"corpus": "tiny", "stride": 5}})
    assert comparison_warnings([first, stride, make_run(tmp_path, "notebook", source=None)]) == []


def test_curves_lie_over_tokens_and_are_told_apart_without_colour(tmp_path: Path) -> None:
    runs = [make_run(tmp_path, "a"), make_run(tmp_path, "_b$x$", steps=4)]
    figure = comparison_curves(runs, smooth=2)
    held_out, training = figure.axes
    drawn = [line for line in held_out.get_lines() if len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in drawn] == [[0, 20, 40, 60], [0, 20, 40]]
    assert list(drawn[0].get_ydata()) == list(LOSSES.values())
    assert list(training.get_lines()[1].get_xdata()) == [10, 20, 30, 40]
    assert list(training.get_lines()[1].get_ydata()) == [4.5, 4.25, 3.75, 3.25]
    assert len({line.get_linestyle() for line in drawn}) == 2
    assert [text.get_text() for text in held_out.get_legend().get_texts()] == ["a", r"_b\$x\$"]
    for axes in figure.axes:
        assert axes.get_title().endswith("?")
        assert axes.get_xlabel() == "tokens trained on"
        assert axes.get_ylabel()
    figure.savefig(tmp_path / "curves.png")


def test_checkpoints_say_what_they_are_to_their_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "second")
    make_checkpoint(first, "step-00000002", '{"step": 2, "val_loss": 3.0}')
    make_checkpoint(first, "step-00000004")
    make_checkpoint(first, "step-00000006", '{"step": 6, "val_loss": null}')
    make_checkpoint(second, "step-00000004")
    make_checkpoint(second, "step-00000006", '{"st')
    make_checkpoint(second, ".new-step-00000008")
    make_checkpoint(second, "damaged-step-00000005")
    (first.checkpoints_path / "latest").write_text("step-00000006\n")
    (first.checkpoints_path / "best").write_text("step-00000004\n")
    for name in ("latest", "best"):
        (second.checkpoints_path / name).write_text("step-00000004\n")
    monkeypatch.chdir(tmp_path)
    table = checkpoints_table([first, second])
    assert table["run"].tolist() == ["first"] * 3 + ["second"] * 4
    assert table["step"].tolist() == [2, 4, 6, pd.NA, pd.NA, 4, pd.NA]
    assert table["val_loss"].fillna(0).tolist() == [3.0, 2.0, 0, 0, 0, 2.0, 0]
    assert table["megabytes"].tolist() == [1.0] * 7
    unreadable = "unreadable: checkpoint.json is missing or damaged"
    assert table["state"].tolist() == [
        "", "best", "latest", "temporary", "damaged", "latest, best", unreadable
    ]  # fmt: skip
    assert Path(table["path"][0]) == Path("first/checkpoints/step-00000002")


def test_a_checkpoint_pruned_while_it_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, "first")
    gone, kept = make_checkpoint(run, "step-00000002"), make_checkpoint(run, "step-00000004")
    listed = Run.checkpoints

    def then_pruned(self: Run) -> Any:
        found = listed(self)
        shutil.rmtree(gone)
        return found

    monkeypatch.setattr(Run, "checkpoints", then_pruned)
    assert checkpoints_table([run])["path"].tolist() == [str(kept)]
