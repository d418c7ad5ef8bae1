"""A run's folder as curves, numbers and samples: thinned, read as it grows, whatever its files hold."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.training import Run
from labstudio.runs.history import POINTS, SAMPLES, thinned, tokens_per_second
from labstudio.widgets import RunMonitor


def make_run(folder: Path, name: str = "some", total: int = 1000) -> Run:
    run = Run.create(name, folder)
    run.write_config({"total_steps": total})
    return run


def step(number: int, **values: Any) -> dict[str, Any]:
    row = {"event": "step", "step": number, "loss": 5.0 - number / 1000, "learning_rate": 0.01}
    row |= {"grad_norm": 1.5, "tokens": 12 * number, "seconds": 0.5 * number}
    return row | values


def evaluation(number: int, val_loss: float = 3.0) -> dict[str, Any]:
    row = {"event": "evaluation", "step": number, "val_loss": val_loss, "perplexity": math.exp(val_loss)}
    return row | {"seconds": 0.5 * number}


def write(run: Run, rows: list[dict[str, Any]], file: str = "metrics", mode: str = "a") -> None:
    with (run.path / f"{file}.jsonl").open(mode, encoding="utf-8") as handle:
        handle.writelines(json.dumps(row) + "\n" for row in rows)


def shown(run: Run) -> RunMonitor:
    monitor = RunMonitor()
    monitor.show_run(run)
    return monitor


# Thinning


@given(st.integers(0, 5000), st.integers(10, 500))
def test_thinning_keeps_first_and_last(count: int, limit: int) -> None:
    places = thinned(count, limit)
    assert places == sorted(set(places))
    assert len(places) <= max(limit, 2)
    assert set(places) <= set(range(count))
    if count:
        assert {0, count - 1} <= set(places)


def test_a_curve_that_grows_keeps_the_points_it_has() -> None:
    before, after = (set(thinned(count)) for count in (1203, 1217))
    assert before - {1202} <= after
    assert len(before) > POINTS // 2


def test_few_points_are_all_kept() -> None:
    assert thinned(POINTS) == list(range(POINTS))
    assert thinned(0) == []


def test_a_pause_does_not_count_for_the_speed() -> None:
    seconds = np.cumsum([0.1] * 30 + [3600.0] + [0.1] * 30)
    speed = tokens_per_second(np.arange(61) * 7.0, seconds)
    assert speed == pytest.approx(70, rel=0.25)
    assert tokens_per_second(np.arange(61) * 7.0, np.zeros(61)) is None
    assert tokens_per_second(np.ones(1), np.ones(1)) is None


# A file that grows


# What is shown


def test_a_run_is_shown_with_its_numbers(tmp_path: Path) -> None:
    run = make_run(tmp_path, total=80)
    write(run, [evaluation(0, 5.0), *(step(number) for number in range(1, 41)), evaluation(40, 3.0)])
    monitor = shown(run)
    assert (monitor.name, monitor.steps_done, monitor.total_steps) == ("some", 40, 80)
    assert monitor.state == "training"
    assert monitor.curves["step"] == list(range(1, 41))
    assert monitor.curves["loss"][0] == 4.999
    assert monitor.curves["loss"][-1] == pytest.approx(5 - (21 + 40) / 2 / 1000)
    assert monitor.evaluations == [[0, 5.0, 148.41], [40, 3.0, 20.086]]
    expected = {
        "loss": 4.9695,
        "val_loss": 3.0,
        "perplexity": 20.086,
        "learning_rate": 0.01,
        "grad_norm": 1.5,
    }
    assert monitor.latest == expected | {"tokens_per_second": 24, "seconds_left": 20}
    assert (monitor.message, monitor.error, monitor.buttons) == ("", "", [])


def test_long_curves_are_thinned_and_show_the_largest_gradients(tmp_path: Path) -> None:
    run = make_run(tmp_path, total=5000)
    rows = [step(number, grad_norm=50.0 if number == 3333 else 1.0) for number in range(1, 4002)]
    write(run, [*rows, evaluation(4001)])
    curves = shown(run).curves
    assert {len(values) for values in curves.values()} == {len(curves["step"])}
    assert POINTS / 2 < len(curves["step"]) <= POINTS
    assert curves["step"][0] == 1
    assert curves["step"][-1] == 4001
    assert curves["grad_norm"].count(50.0) == 1


def test_a_run_is_followed_while_it_grows_is_rewound_and_ends(tmp_path: Path) -> None:
    run = make_run(tmp_path, total=9)
    monitor = RunMonitor()
    monitor.show_run(run)
    assert (monitor.steps_done, monitor.curves, monitor.state) == (0, {}, "training")
    for number in range(1, 7):
        write(run, [step(number)])
        monitor.show_run(run)
        assert monitor.steps_done == number
    run.rewind(3, [])
    write(run, [step(4, loss=1.0)])
    monitor.show_run(run)
    assert monitor.curves["step"] == [1, 2, 3, 4]
    write(run, [step(number) for number in range(5, 10)])
    monitor.show_run(run)
    assert (monitor.steps_done, monitor.state) == (9, "finished")


def test_a_run_that_nobody_writes_has_stopped(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    write(run, [step(1)])
    for file in run.path.iterdir():
        os.utime(file, (time.time() - 1000,) * 2)
    assert shown(run).state == "stopped"


def test_another_run_replaces_the_first(tmp_path: Path) -> None:
    first, second = make_run(tmp_path, "first"), make_run(tmp_path, "second")
    write(first, [step(1), step(2), evaluation(2)])
    write(second, [step(1)])
    monitor = shown(first)
    monitor.show_run(second)
    assert (monitor.name, monitor.steps_done, monitor.evaluations) == ("second", 1, [])


def test_samples_are_shown_with_those_before_them_and_thinned(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    rows = [{"step": number, "prompt": "t", "text": f"text {number}"} for number in range(200)]
    rows[-1]["event"] = "asked"
    write(run, rows, "samples")
    samples = shown(run).samples
    assert samples[0] == {"step": 0, "prompt": "t", "text": "text 0", "asked": False}
    assert samples[-1] == {"step": 199, "prompt": "t", "text": "text 199", "asked": True}
    assert 2 < len(samples) <= SAMPLES


def test_signs_that_hide_or_turn_the_line_are_shown_as_code_points(tmp_path: Path) -> None:
    odd = "<script>window.hacked=1</script>\u202e\u200b\u05d0𝔘 \n\t\0"
    run = Run(tmp_path / "b\u202eodd\u200b𝔘&")  # copied from elsewhere; Run.create refuses such a name
    run.path.mkdir()
    run.write_config({"total_steps": 1000})
    write(run, [{"step": 1, "prompt": odd, "text": odd}], "samples")
    monitor = shown(run)
    assert monitor.name == "bU+202EoddU+200B𝔘&"
    expected = "<script>window.hacked=1</script>U+202EU+200B\u05d0𝔘 \n\tU+0000"
    assert (monitor.samples[0]["prompt"], monitor.samples[0]["text"]) == (expected, expected)


@pytest.mark.parametrize(
    ("config", "said"),
    [(None, "There is no run at"), ("{", "is damaged"), ("[]", "cannot be read"), ("{}", "total_steps")],
)
def test_a_damaged_run_is_said_not_raised(tmp_path: Path, config: str | None, said: str) -> None:
    run = Run(tmp_path / "some")
    if config is not None:
        run.path.mkdir()
        (run.path / "config.json").write_text(config)
    monitor = shown(run)
    assert said in monitor.message
    assert monitor.state


def test_odd_rows_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    odd: list[Any] = [step(2, loss="high"), {"event": "step"}, {"event": ["step"]}, {"step": 3}, {}]
    write(run, [step(1), *odd, step(4, grad_norm=math.inf), {"event": "evaluation", "step": 4}])
    write(run, [{"step": 1, "prompt": "t"}, {"step": "1", "prompt": "t", "text": "t"}], "samples")
    with (run.path / "metrics.jsonl").open("ab") as handle:
        handle.write(b'\xff\xfe{"step"\n{"event": "step", "st')
    monitor = shown(run)
    assert monitor.curves["step"] == [1, 4]
    assert monitor.curves["grad_norm"] == [1.5, None]
    assert (monitor.evaluations, monitor.samples) == ([], [])
    json.dumps(monitor.get_state(["curves", "latest", "evaluations", "samples"]), allow_nan=False)


def test_the_repr_is_stable(tmp_path: Path) -> None:
    assert repr(shown(make_run(tmp_path))) == "RunMonitor(some)"
