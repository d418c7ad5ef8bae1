"""A report says what the run folders say, and changes its words when they change their numbers."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from tolerance import difference

from labkit.config import DataConfig, GPTConfig, TrainConfig, as_dict
from labkit.training import Run
from labstudio.runs import kept_runs
from labstudio.runs.report import (
    entry_parts,
    log_report,
    observations,
    read_outcomes,
    results_table,
    write_report,
)
from labstudio.runs.report.figures import topics
from labstudio.runs.report.observations import direction, judgement
from labstudio.runs.sweep import plan_runs
from labstudio.runs.sweep_file import read_sweep

ROOT = Path(__file__).parents[3]
PARTS = ["Question", "Prediction", "Setup", "Result", "What it means", "What would change our mind"]
MODEL = {"vocab_size": 50, "context_length": 8, "d_model": 12, "n_layers": 3, "n_heads": 2}


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    return tmp_path


def record(
    root: Path,
    name: str,
    val_losses: list[float],
    *,
    seed: int = 0,
    order: int = 0,
    steps: int = 40,
    sweep: str = "my",
    model: dict[str, Any] | None = None,
    data: dict[str, Any] | None = None,
    **about: Any,
) -> Run:
    """A finished run with these held-out losses, evenly spread over its steps."""
    run = Run(root / "runs" / f"{sweep}-{name}-{seed}")
    run.path.mkdir(parents=True)
    shape = MODEL | (model or {})
    settings = {
        "preset": "char-mini",
        "shape": shape,
        "train": as_dict(TrainConfig(max_steps=steps, batch_size=5, seed=seed)),
        "data": as_dict(DataConfig(**(data or {}))),
        "init_from": None,
    }
    row = {"sweep": sweep, "title": "Mine", "order": order, "experiment": name, "seed": seed}
    row |= {"question": f"Why {name}?", "topic": "", "init_from": None, "settings": settings}
    row |= {"against": None if name == "baseline" else "baseline"} | about
    (run.path / "sweep.json").write_text(json.dumps(row), encoding="utf-8")
    config = as_dict(GPTConfig(**shape))
    run.write_config({"model": config, "parameters": 1000 * shape["d_model"], "total_steps": steps})
    every = steps // (len(val_losses) - 1)
    for step in range(steps + 1):
        if step:
            loss = 4 - step / steps + seed / 10
            row = {"step": step, "loss": loss, "tokens": step * 40, "seconds": step / 2}
            run.append("metrics", {"event": "step", "learning_rate": 1e-3, "grad_norm": 1.0} | row)
        if step % every == 0:
            value = val_losses[step // every]
            row = {"step": step, "val_loss": value, "perplexity": math.exp(value), "seconds": step / 2}
            run.append("metrics", {"event": "evaluation"} | row)
    return run


def two_experiments(out: Path, *, wide: float = 3.0) -> None:
    record(out, "baseline", [4.0, 3.5, 3.4])
    record(out, "baseline", [4.1, 3.6, 3.3], seed=1)
    record(out, "wide", [4.0, 3.2, wide], order=1, model={"d_model": 24})


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labstudio.runs.report.save_figures", lambda outcomes, folder: None)


def said(out: Path) -> str:
    return "\n".join(observations(read_outcomes("my", out / "runs")[0]))


@pytest.mark.usefixtures("no_figures")
def test_the_table_holds_the_numbers_of_the_metrics(out: Path) -> None:
    two_experiments(out)
    write_report("my")
    table = pd.read_csv(out / "visualizations" / "my" / "results_table.csv").set_index("experiment")
    assert table.index.tolist() == ["baseline", "wide"]
    base = table.loc["baseline"]
    assert base["seeds"] == 2
    assert base["val_loss"] == pytest.approx((3.4 + 3.3) / 2)
    assert base["val_loss_spread"] == pytest.approx(0.1)
    assert base["perplexity"] == pytest.approx(math.exp(3.35), rel=1e-6)
    last_two = sum(4 - step / 40 + seed / 10 for step in (39, 40) for seed in (0, 1)) / 4
    assert base["train_loss"] == pytest.approx(last_two)
    assert (base["steps"], base["tokens"], base["parameters"], base["seconds"]) == (40, 1600, 12000, 20)
    assert math.isnan(table.loc["wide", "val_loss_spread"])
    assert table.loc["wide", "best_val_loss"] == 3.0


def test_every_file_is_written(out: Path) -> None:
    two_experiments(out)
    report = write_report("my")
    names = {path.name for path in report.parent.iterdir()}
    curves = {f"{kind}_curve_{name}.png" for kind in ("loss", "perplexity") for name in ("baseline", "wide")}
    overlaid = {"loss_curves.png", "perplexity_curves.png", "comparison_wide.png"}
    assert names == curves | overlaid | {"report.md", "results_table.txt", "results_table.csv"}
    for name in curves | overlaid:
        assert (report.parent / name).stat().st_size < 60_000
        assert Image.open(report.parent / name).width >= 400
    assert "12,000" in (report.parent / "results_table.txt").read_text(encoding="utf-8")


@pytest.mark.usefixtures("no_figures")
def test_the_report_says_what_was_done_and_describes_its_figures(out: Path) -> None:
    two_experiments(out)
    text = write_report("my").read_text(encoding="utf-8")
    for part in (
        "# Mine",
        "## 1. Model",
        "## 2. Data",
        "## 3. Set-up",
        "## 4. Results",
        "## 5. Observations",
    ):
        assert f"{part}" in text
    assert "3 blocks" in text
    assert "12,000 parameters" in text
    assert "| wide | `d_model` 24 instead of 12 | baseline | Why wide? |" in text
    assert "![wide: loss per step; the held-out loss goes from 4.00 to 3.00.](loss_curve_wide.png)" in text
    assert str(out) not in text


@pytest.mark.usefixtures("no_figures")
def test_the_log_gets_one_section_that_the_next_report_replaces(out: Path) -> None:
    two_experiments(out)
    log = out / "experiments_log.md"
    write_report("my", log=False)
    assert not log.exists()
    write_report("my")
    write_report("my")
    text = log.read_text(encoding="utf-8")
    assert text.count("## Sweep my: Mine") == 1
    assert text.count("labkit:begin 08_experiments/my ") == 1
    assert "**wide** (`d_model` 24 instead of 12): held-out loss 3.000 against 3.350 of baseline" in text


def test_an_entry_of_the_log_tells_one_topic_in_six_parts(out: Path) -> None:
    two_experiments(out)
    long = {"topic": "length", "against": "short"}
    record(out, "short", [4.0, 3.2], order=2, steps=20, data={"groups": ["comedies"]}, topic="length")
    record(
        out,
        "long",
        [4.0, 2.9],
        order=3,
        data={"groups": ["comedies"], "stride": 3},
        prediction="Lower,\nby much.",
        if_lower="Length helps.",
        if_higher="It hurts.",
        change_our_mind="A rise.",
        **long,
    )
    text = log_report("my").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if line.startswith("### ")] == [
        "### baseline",
        "### wide",
        "### Length",
    ]
    outcomes, _ = read_outcomes("my")
    parts = entry_parts(outcomes[2:], outcomes)
    assert list(parts) == PARTS
    assert parts["Question"] == "- **short**: Why short?\n- **long**: Why long?"
    assert parts["Prediction"] == "- **long**: Lower, by much."
    assert parts["What would change our mind"] == "- **long**: A rise."
    assert parts["Setup"].splitlines()[:3] == [
        "- all: `groups` comedies instead of none.",
        "- **short**: `max_steps` 20 instead of 40; seed 0.",
        "- **long**: `stride` 3 instead of the default; seed 0.",
    ]
    assert parts["Setup"].endswith("Again: `labkit sweep my.toml --only baseline,short,long`")
    assert "| long | 1 | 12,000 | 40 | 1,600 | 3.013 | 2.900 | - | 18.2 |" in parts["Result"]
    assert "(visualizations/my/comparison_length.png)" in parts["Result"]
    assert "lower by 0.300, 3.0 times the spread of seeds (0.100)" in parts["What it means"]
    assert parts["What it means"].endswith("Length helps.")
    write_report("my", log=False)
    assert (out / "visualizations" / "my" / "comparison_length.png").is_file()


def test_the_first_entry_tells_the_recipe_and_what_chance_does(out: Path) -> None:
    two_experiments(out)
    outcomes, _ = read_outcomes("my")
    parts = entry_parts(outcomes[:1], outcomes)
    assert "AdamW, learning rate" in parts["Setup"]
    assert "12,000 parameters; seeds 0, 1. Again: `labkit sweep my.toml --only baseline`" in parts["Setup"]
    assert "baseline 0.100 over 2 seeds" in parts["What it means"]
    assert "(visualizations/my/loss_curve_baseline.png)" in parts["Result"]
    assert parts["Prediction"] == "The sweep's file has no `prediction`."
    everything = entry_parts(outcomes, outcomes)
    assert "- **wide**: `d_model` 24 instead of 12; seed 0." in everything["Setup"]
    assert "AdamW, learning rate" in everything["Setup"]


@pytest.mark.parametrize(
    ("difference", "chance", "points"),
    [(-0.21, 0.1, "lower"), (0.21, 0.1, "higher"), (0.2, 0.1, "unclear"), (-0.9, None, "unclear")],
)
def test_a_meaning_is_quoted_beyond_two_spreads(difference: float, chance: float | None, points: str) -> None:
    assert direction(difference, chance) == points


@pytest.mark.parametrize("sweep", ["report", "base"])
def test_the_log_says_of_the_sweeps_what_their_runs_say(out: Path, sweep: str) -> None:
    def section(log: Path) -> str:
        text = log.read_text(encoding="utf-8")
        return text.split(f"<!-- labkit:begin 08_experiments/{sweep} ")[1].split("<!-- labkit:end")[0]

    written = section(log_report(sweep, runs=kept_runs()))
    assert not difference(section(ROOT / "experiments_log.md"), written)
    for part in PARTS:
        assert written.count(f"#### {part}\n") == written.count("\n### ")
    assert "The sweep's file has no" not in written
    for figure in re.findall(r"\(visualizations/(\S+)\)", written):
        assert (ROOT / "visualizations" / figure).is_file()


@pytest.mark.parametrize("sweep", ["report", "base"])
def test_the_runs_that_are_kept_have_the_settings_and_the_words_of_their_files(
    out: Path, monkeypatch: pytest.MonkeyPatch, sweep: str
) -> None:
    kept = kept_runs()
    for path in kept.glob(f"{sweep}-*"):
        shutil.copytree(path, out / "runs" / path.name)
    jobs = plan_runs(read_sweep(sweep))  # refuses runs that were made with other settings
    assert {job.run.id for job in jobs} == {path.name for path in kept.glob(f"{sweep}-*")}
    for job in jobs:
        now, then = (
            json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
            for folder in (job.run.path, kept / job.run.id)
        )
        del now["settings"], then["settings"]
        assert now == then


def test_the_same_runs_give_the_same_files(out: Path) -> None:
    two_experiments(out)
    folder = write_report("my").parent
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_report("my")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


@pytest.mark.parametrize(
    ("difference", "chance", "words"),
    [
        (-0.35, 0.1, "lower by 0.350, 3.5 times the spread of seeds (0.100)"),
        (0.35, 0.1, "higher by 0.350, 3.5 times the spread of seeds (0.100)"),
        (0.15, 0.1, "higher by 0.150, little more than the spread of seeds (0.100)"),
        (-0.1, 0.1, "lower by 0.100, which is within the spread of seeds (0.100): no effect shown"),
        (-0.1, None, "lower by 0.100; with one seed each, chance cannot be told from effect"),
    ],
)
def test_a_difference_is_weighed_against_the_spread_of_seeds(
    difference: float, chance: float | None, words: str
) -> None:
    assert judgement(difference, chance).startswith(words)


def test_the_sentences_follow_the_numbers(out: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    two_experiments(out)
    better = said(out)
    assert "wide ends with the lowest held-out loss, 3.000; next is baseline, higher by 0.350" in better
    assert "Perplexity 20.1 against 28.5. It has 24,000 parameters (2.0 times as many)." in better
    assert "It is below the final loss of baseline from step 20 of 40 on." in better
    other = tmp_path_factory.mktemp("other")
    two_experiments(other, wide=3.33)
    same = said(other)
    assert "lower by 0.020, which is within the spread of seeds (0.100): no effect shown" in same
    worse = tmp_path_factory.mktemp("worse")
    two_experiments(worse, wide=3.9)
    assert "baseline ends with the lowest held-out loss, 3.350; next is wide, higher by 0.550" in said(worse)
    assert "It is below the final loss" not in said(worse)


def test_a_rise_at_the_end_is_called_overfitting(out: Path) -> None:
    two_experiments(out)
    assert "overfits" not in said(out)
    record(out, "long", [4.0, 2.9, 3.2], order=2)
    assert "**long overfits.** Its held-out loss is lowest at step 20 (2.900) and 0.300 higher" in said(out)


def test_without_a_second_seed_nothing_is_claimed(out: Path) -> None:
    record(out, "baseline", [4.0, 3.4])
    record(out, "wide", [4.0, 3.0], order=1)
    assert "no difference below can be told from chance" in said(out)
    assert "times the spread" not in said(out)


def test_results_on_other_text_are_ranked_apart(out: Path) -> None:
    two_experiments(out)
    record(out, "first", [4.0, 2.0], order=2, data={"val_groups": ("histories",)}, against=None)
    record(out, "second", [4.0, 2.5], order=3, data={"val_groups": ("histories",)}, against="first")
    text = said(out)
    assert "Of baseline, wide, wide ends with the lowest" in text
    assert "Of first, second, first ends with the lowest held-out loss, 2.000; next is second" in text
    assert "**second** (the same settings): held-out loss 2.500 against 2.000 of first" in text


def test_another_context_is_pointed_out(out: Path) -> None:
    two_experiments(out)
    record(out, "short", [4.0, 3.6], order=2, model={"context_length": 4})
    assert "(`context_length` 4 instead of 8): held-out loss 3.600" in said(out)
    assert said(out).count("Each is measured on windows of its own context") == 1


@pytest.mark.usefixtures("no_figures")
def test_unfinished_runs_are_named_and_left_out(out: Path) -> None:
    two_experiments(out)
    run = record(out, "slow", [4.0, 3.0], order=2)
    lines = (run.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(lines[:-1]), encoding="utf-8")
    outcomes, unfinished = read_outcomes("my", out / "runs")
    assert [each.name for each in outcomes] == ["baseline", "wide"]
    assert unfinished == ["my-slow-0"]
    assert "Not finished, so not shown: my-slow-0." in write_report("my").read_text(encoding="utf-8")


def test_other_sweeps_and_their_damaged_records_do_not_matter(out: Path) -> None:
    two_experiments(out)
    record(out, "baseline", [4.0, 3.0], sweep="other")
    Run.create("by-hand").write_config({})
    assert len(results_table(read_outcomes("my")[0])) == 2


@pytest.mark.usefixtures("no_figures")
def test_runs_may_lie_elsewhere(out: Path) -> None:
    two_experiments(out / "kept")
    with pytest.raises(ValueError, match=r"has no finished run of a sweep 'my'. Run: labkit sweep my"):
        write_report("my")
    assert write_report("my", runs=out / "kept" / "runs").is_file()


def test_experiments_of_a_topic_are_drawn_with_what_they_are_compared_with(out: Path) -> None:
    two_experiments(out)
    record(out, "sines", [4.0, 3.0], order=2, topic="positions")
    record(out, "none", [4.0, 3.0], order=3, topic="positions")
    drawn = {name: [each.name for each in group] for name, group in topics(read_outcomes("my")[0]).items()}
    assert drawn == {"positions": ["baseline", "sines", "none"], "others": ["wide"]}
