"""A sweep runs what its file says: nothing twice, nothing after a mistake, everything that still can."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from labkit.training import End, Run, load_checkpoint
from labstudio.runs.sweep import SweepRun, plan_runs, sweep
from labstudio.runs.sweep_file import SweepError, read_sweep
from labstudio.runs.sweep_worker import stop_without, work

BASELINE = """
[baseline]
model = { preset = "char-mini", context_length = 7, d_model = 10, n_layers = 1, n_heads = 2 }
data.corpus = "tiny"
train = { max_steps = 12, batch_size = 3, eval_every = 4, eval_windows = 5, checkpoint_every = 4 }
"""


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    return tmp_path


def write(folder: Path, text: str, name: str = "my") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def steps(run: str, out: Path) -> list[int]:
    return [row["step"] for row in Run(out / "runs" / run).rows("metrics") if row["event"] == "step"]


# The file


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"my.toml: there is no \[baseline\]"),
        ("[baseline]", r"my.toml: there is no \[baseline\]"),
        ("[experiments.a]\ntrain.seed = 1", r"there is no \[baseline\]"),
        ("[baseline\nseeds = 1", r"my.toml: cannot be read as TOML \(.*line 1"),
        ("basline = 1", r"my.toml: basline is not known. Did you mean baseline\?"),
        ("baseline = 3", r"my.toml: baseline=3 must be a table"),
        ("[baseline]\ntrian.max_steps = 3", r"\[baseline\] trian is not known. Did you mean train\?"),
        ("[baseline]\ntrain = 3", r"\[baseline\] train=3 must be a table"),
        ("[baseline]\nquestion = 3", r"\[baseline\] question=3 must be text"),
        ("[baseline]\nif_lowr = 'better'", r"\[baseline\] if_lowr is not known. Did you mean if_lower\?"),
        ("[baseline]\nmodel.preset = 'mini'", r"\[baseline\] GPTConfig.preset: 'mini' is not known"),
        ("[baseline]\nmodel.vocab_size = 3", r"\[baseline\] model.vocab_size is not known"),
        ("[baseline]\nmodel.n_heads = 3", r"\[baseline\] GPTConfig: n_heads=3 does not divide d_model=128"),
        ("[baseline]\ndata.tokenizer = 'word'", r"\[baseline\] DataConfig: tokenizer='word' is not known"),
        ("[baseline]\ntrain.seed = 3", r"\[baseline\] train.seed is not known"),
        ("[baseline]\nseeds = []", r"\[baseline\] seeds=\[\] must be a list of different whole numbers"),
        ("[baseline]\nseeds = [1, 1]", r"seeds=\[1, 1\] must be a list of different whole numbers"),
        ("[baseline]\nseeds = 1", r"seeds=1 must be a list"),
        ("[baseline]\ntrain.batch_tokens = 65", r"batch_tokens=65 is no multiple of context_length=64"),
        (
            "[baseline]\ntrain.freeze = ['emb']",
            r"train.freeze: no parameter's name begins with 'emb'.* blocks",
        ),
        (
            f"{BASELINE}[experiments.a]\ntrain.learning_rat = 1",
            r"\[experiments.a\] train.learning_rat is not known. Did you mean learning_rate\?",
        ),
        (
            f"{BASELINE}[experiments.a]\ntrain.learning_rate = -1",
            r"\[experiments.a\] TrainConfig: learning_rate=-1 must be above 0",
        ),
        (
            f"{BASELINE}[experiments.a]\ntrain.max_steps = 1.5",
            r"\[experiments.a\] TrainConfig: max_steps=1.5 must be a whole number",
        ),
        (f"{BASELINE}[experiments]\na = 3", r"\[experiments.a\] must be a table"),
        (f"{BASELINE}[experiments.'a/b']", r"\[experiments.a/b\]: name=.a/b. must be a plain"),
        (f"{BASELINE}[experiments.baseline]", r"\[experiments.baseline\]: .* choose another"),
        (
            f"{BASELINE}[experiments.a]\ninit_from = 'basline'",
            r"\[experiments.a\] init_from='basline' is no experiment of this file. Did you mean baseline\?",
        ),
        (
            f"{BASELINE}[experiments.a]\nagainst = 'b'",
            r"\[experiments.a\] against='b' is no experiment of this file. Choose from baseline, a",
        ),
        (
            f"{BASELINE}[experiments.a]\nagainst = 'baseline'\ndata.tokenizer = 'bpe'",
            r"\[experiments.a\] against='baseline' is measured on other held-out text",
        ),
        (
            f"{BASELINE}[experiments.a]\ninit_from = 'b'\n[experiments.b]\ninit_from = 'a'",
            r"init_from goes in a circle: a from b from a",
        ),
        (
            f"{BASELINE}[experiments.a]\nseeds = [0, 1]\n[experiments.a-seed1]",
            r"two runs would have one folder",
        ),
    ],
)
def test_a_mistake_in_the_file_is_named_before_anything_runs(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(SweepError, match=message):
        sweep(write(tmp_path, text))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("options", [{"workers": 0}, {"workers": 1, "devices": ["cpu"]}, {"only": ["c"]}])
def test_options_that_cannot_be_met_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(SweepError, match=r"workers=0|not both|'c' is no experiment"):
        sweep(write(tmp_path, BASELINE), **options)


def test_an_experiment_is_the_baseline_with_its_own_words_over_it(tmp_path: Path) -> None:
    text = (
        f"{BASELINE}seeds = [3, 4]\n[experiments.a]\nquestion = 'Why?'\ntrain.epochs = 2\nmodel.d_model = 8"
    )
    base, a = read_sweep(write(tmp_path, text)).experiments
    assert (base.name, base.seeds, base.against) == ("baseline", (3, 4), None)
    assert (a.words["question"], a.seeds, a.against) == ("Why?", (3,), "baseline")
    assert (a.train.epochs, a.train.max_steps, a.train.batch_size) == (2, None, 3)
    assert a.shape == {"context_length": 7, "d_model": 8, "n_layers": 1, "n_heads": 2}
    assert base.shape["d_model"] == 10


def test_tokens_per_step_and_sequences_per_step_replace_each_other(tmp_path: Path) -> None:
    text = f"{BASELINE}[experiments.a]\ntrain.batch_tokens = 14"
    assert read_sweep(write(tmp_path, text)).experiments[1].train.sequences_per_step(7) == 2
    swapped = (
        f"{BASELINE.replace('batch_size = 3', 'batch_tokens = 14')}[experiments.a]\ntrain.batch_size = 5"
    )
    assert read_sweep(write(tmp_path, swapped)).experiments[1].train.sequences_per_step(7) == 5


def test_results_on_other_text_are_compared_with_nothing(tmp_path: Path) -> None:
    text = f"{BASELINE}[experiments.a]\ndata.tokenizer = 'bpe'"
    assert read_sweep(write(tmp_path, text)).experiments[1].against is None


def test_the_first_file_of_sequences_that_exists_replaces_the_corpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "[baseline]\ndata = { sequences = ['a.pt', 'data/b.pt'], max_tokens = 99, stride = 64 }"
    data = read_sweep(write(tmp_path, text)).experiments[0].data
    assert (data.sequences, data.max_tokens, data.stride) == (None, 99, 64)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "b.pt").touch()
    data = read_sweep(write(tmp_path, text)).experiments[0].data
    assert (data.sequences, data.max_tokens, data.stride) == ("data/b.pt", None, None)


@pytest.mark.parametrize("name", ["report", "base"])
def test_the_sweeps_that_come_with_labkit_can_be_planned(name: str) -> None:
    plan = read_sweep(name)
    jobs = plan_runs(plan)
    for each in plan.experiments:
        assert all(each.words[word] for word in ("question", "prediction", "change_our_mind"))
    assert [job.seed for job in jobs if job.experiment.name == "baseline"] == [0, 1, 2]
    assert jobs[0].run.id == f"{name}-baseline"


def test_the_report_sweep_is_the_one_that_was_asked_for() -> None:
    base, *others = read_sweep("report").experiments
    assert (base.preset, base.shape, base.data.tokenizer) == ("report", {}, "gpt2")
    assert (base.train.learning_rate, base.train.batch_size, base.train.epochs) == (5e-4, 32, 1)
    assert [each.name for each in others] == ["lr_1e-3", "batch_size_16", "n_layers_1", "embed_dim_64"]


# Running


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A sweep with seeds, a warm start, an experiment that diverges, and one that needs that one."""
    folder = tmp_path_factory.mktemp("whole")
    text = (
        f"{BASELINE}seeds = [0, 1]\n"
        "[experiments.bad]\ntrain.learning_rate = 1e30\n"
        "[experiments.after_bad]\ninit_from = 'bad'\n"
        "[experiments.warm]\ninit_from = 'baseline'\ntrain.freeze = ['token_embedding']\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LABKIT_OUT", str(folder))
        table = sweep(write(folder, text), workers=2)
    return folder, table


def test_each_experiment_and_seed_is_a_row_with_its_last_numbers(whole: tuple[Path, pd.DataFrame]) -> None:
    folder, table = whole
    assert table["run"].tolist() == [
        "my-baseline", "my-baseline-seed1", "my-bad", "my-after_bad", "my-warm",
    ]  # fmt: skip
    assert table["state"].tolist() == ["finished", "finished", "failed", "failed", "finished"]
    rows = Run(folder / "runs" / "my-baseline-seed1").rows("metrics")
    assert table["steps"][1] == 12
    assert table["train_loss"][1] == [row["loss"] for row in rows if row["event"] == "step"][-1]
    assert table["val_loss"][1] == rows[-1]["val_loss"]
    assert table["val_loss"][0] != table["val_loss"][1]


def test_a_failed_run_keeps_its_error_and_stops_only_what_needs_it(whole: tuple[Path, pd.DataFrame]) -> None:
    _, table = whole
    assert "TrainingDivergedError: Training diverged at step" in table["error"][2]
    assert table["error"][3] == "It starts from my-bad, which failed."
    assert table["error"][4] == ""


def test_final_weights_have_the_experiments_name(whole: tuple[Path, pd.DataFrame]) -> None:
    runs = whole[0] / "runs"
    weights = load_file(runs / "my-baseline-seed1" / "checkpoints" / "mini_gpt_baseline-seed1.safetensors")
    model, step = load_checkpoint(Run(runs / "my-baseline-seed1").newest_whole()[0])
    assert step == 12
    assert torch.equal(weights["token_embedding.weight"], model.token_embedding.weight)
    assert not list((runs / "my-bad" / "checkpoints").glob("mini_gpt*"))


def test_a_warm_start_begins_where_its_source_ended(whole: tuple[Path, pd.DataFrame]) -> None:
    runs = whole[0] / "runs"
    first = Run(runs / "my-warm").rows("metrics")[0]
    last = Run(runs / "my-baseline").rows("metrics")[-1]
    assert (first["step"], first["val_loss"]) == (0, last["val_loss"])
    ends = [load_file(runs / f"my-{name}" / "checkpoints" / f"mini_gpt_{name}.safetensors")
            for name in ("baseline", "warm")]  # fmt: skip
    assert torch.equal(*(end["token_embedding.weight"] for end in ends))
    assert not torch.equal(*(end["blocks.0.attention.query.weight"] for end in ends))


def test_no_path_of_the_machine_is_recorded(whole: tuple[Path, pd.DataFrame]) -> None:
    folder, _ = whole
    for file in ("config.json", "sweep.json", "metrics.jsonl"):
        assert str(folder) not in (folder / "runs" / "my-warm" / file).read_text(encoding="utf-8")


def test_what_has_finished_is_not_run_again(
    whole: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, first = whole
    monkeypatch.setenv("LABKIT_OUT", str(folder))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: pytest.fail("a process was started"))
    again = sweep(folder / "my.toml", only=["warm"])
    assert again["experiment"].tolist() == ["baseline", "baseline", "warm"]
    assert set(again["state"]) == {"skipped"}
    assert again["val_loss"].tolist() == first["val_loss"][[0, 1, 4]].tolist()


def test_a_changed_experiment_is_refused_with_what_differs(
    whole: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    monkeypatch.setenv("LABKIT_OUT", str(folder))
    text = (folder / "my.toml").read_text(encoding="utf-8")
    changed = text.replace("d_model = 10", "d_model = 12").replace("batch_size = 3", "batch_size = 4")
    record = folder / "runs" / "my-baseline" / "sweep.json"
    before = record.read_bytes()
    with pytest.raises(SweepError) as error:
        sweep(write(tmp_path, changed))
    assert "my-baseline was made with other settings" in str(error.value)
    assert "train.batch_size: 3 -> 4" in str(error.value)
    assert "shape.d_model: 10 -> 12" in str(error.value)
    assert "another name, or delete the folder" in str(error.value)
    assert record.read_bytes() == before


def test_a_setting_that_labkit_got_since_is_no_change(
    whole: tuple[Path, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    monkeypatch.setenv("LABKIT_OUT", str(folder))
    record = folder / "runs" / "my-baseline" / "sweep.json"
    content = json.loads(record.read_text(encoding="utf-8"))
    del content["settings"]["train"]["decay_fraction"]
    record.write_text(json.dumps(content), encoding="utf-8")
    assert set(sweep(folder / "my.toml", only=["baseline"])["state"]) == {"skipped"}


def test_a_changed_question_is_no_changed_experiment(
    whole: tuple[Path, pd.DataFrame], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = whole
    monkeypatch.setenv("LABKIT_OUT", str(folder))
    text = (
        (folder / "my.toml")
        .read_text(encoding="utf-8")
        .replace("[baseline]", "[baseline]\nquestion = 'New?'\nif_higher = 'Worse.'")
    )
    assert set(sweep(write(tmp_path, text), only=["baseline"])["state"]) == {"skipped"}
    record = json.loads((folder / "runs" / "my-baseline" / "sweep.json").read_text(encoding="utf-8"))
    assert (record["question"], record["if_higher"]) == ("New?", "Worse.")


def test_a_folder_that_no_sweep_made_is_left_alone(tmp_path: Path, out: Path) -> None:
    Run.create("my-baseline").write_config({})
    with pytest.raises(
        SweepError, match=r"my-baseline was made with other settings: .* no readable sweep.json"
    ):
        sweep(write(tmp_path, BASELINE))


def test_a_killed_worker_fails_alone_and_goes_on_from_its_checkpoint(tmp_path: Path, out: Path) -> None:
    long = BASELINE.replace("max_steps = 12", "max_steps = 600").replace("every = 4", "every = 200")
    file = write(tmp_path, f"{long}[experiments.short]\ntrain.max_steps = 5")

    def kill(jobs: list[SweepRun]) -> None:
        if jobs[0].state == "running" and jobs[0].run.checkpoints() and jobs[0].process:
            os.kill(jobs[0].process.pid, signal.SIGKILL)

    table = sweep(file, workers=2, watch=kill)
    assert table["state"].tolist() == ["failed", "finished"]
    assert table["error"][0].endswith("The process was killed by signal 9 (out of memory?).")
    assert len(steps("my-baseline", out)) < 600
    again = sweep(file, workers=2)
    assert again["state"].tolist() == ["finished", "skipped"]
    assert steps("my-baseline", out) == list(range(1, 601))
    assert Run(out / "runs" / "my-baseline").rows("environment")[-1]["step"] > 0


def test_ctrl_c_lets_every_worker_save(tmp_path: Path, out: Path) -> None:
    long = BASELINE.replace("max_steps = 12", "max_steps = 100000").replace("every = 4", "every = 0")
    file = write(tmp_path, f"{long}seeds = [0, 1]")
    seen: list[SweepRun] = []

    def interrupt(jobs: list[SweepRun]) -> None:
        seen[:] = jobs
        if all(job.state == "running" and len(job.run.rows("metrics")) > 3 for job in jobs):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep(file, workers=2, watch=interrupt)
    assert [job.state for job in seen] == ["stopped", "stopped"]
    for job in seen:
        assert job.process is not None
        assert job.process.returncode == 130
        saved = job.run.checkpoints()[-1].step
        assert steps(job.run.id, out) == list(range(1, saved + 1))


def test_a_run_stopped_before_its_first_step_starts_anew(tmp_path: Path) -> None:
    job = plan_runs(read_sweep(write(tmp_path, BASELINE)))[0]
    nobody = os.getppid() + 1
    assert not work(job.run.path, job.weights, "cpu", nobody)
    assert job.run.checkpoints()[-1].step == 0
    assert work(job.run.path, job.weights, "cpu", os.getppid())
    assert len(job.run.metrics("step")) == 12
    assert job.weights.is_file()


def test_a_worker_does_not_outlive_its_sweep() -> None:
    stop_without(os.getppid())(End(1))
    with pytest.raises(KeyboardInterrupt):
        stop_without(os.getppid() + 1)(End(1))


@pytest.mark.long
@pytest.mark.parametrize("name", ["report", "base"])
def test_the_sweeps_that_come_with_labkit_run(name: str, out: Path) -> None:
    table = sweep(name, smoke=True)
    assert set(table["state"]) == {"finished"}
    assert set(table["steps"]) == {4}
    assert all(run.startswith(f"{name}-smoke-") for run in table["run"])
