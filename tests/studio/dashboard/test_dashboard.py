"""The dashboard without a browser: rows, comparison, the form's arguments, processes, checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from dashboard_runs import HOSTILE, HOSTILE_SHOWN, folder_of_runs, tiny_run, write_corpus

from labkit.config import TRAIN_PRESETS, TrainConfig
from labkit.training import Run, list_runs
from labstudio.dashboard import trainings as dashboard_trainings
from labstudio.dashboard.dashboard import Dashboard
from labstudio.dashboard.trainings import (
    DEFAULTS,
    Training,
    form_choices,
    resume_training,
    start_training,
    train_arguments,
    trainings,
)
from labstudio.dashboard.views import (
    RunsList,
    comparison,
    curves,
    find_checkpoint,
    plain,
    run_page,
    signature,
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dashboard")
    return folder_of_runs(folder / "my runs", write_corpus(folder / "text.txt"))


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """The runs, to be changed."""
    return Path(shutil.copytree(made, tmp_path / "my runs"))


@pytest.fixture
def page(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    """A dashboard that looks when it is told to."""
    monkeypatch.setattr("labstudio.dashboard.dashboard.EVERY", 3600)
    dashboard = Dashboard(root)
    yield dashboard
    dashboard.close()


def ask(page: Dashboard, do: str, **content: Any) -> None:
    page._handle({"do": do, **content})


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


# ---- what is shown ----


def test_rows_are_what_the_run_folders_hold(made: Path) -> None:
    rows = {row["run"]: row for row in RunsList(made).look()}
    assert set(rows) == {"small", "large", "torn", "bitten", HOSTILE_SHOWN}
    assert (rows["large"]["step"], rows["large"]["total_steps"]) == (9, 9)
    last = Run.open("large", made).metrics("evaluation").iloc[-1]
    assert rows["large"]["val_loss"] == pytest.approx(last["val_loss"], rel=1e-5)
    assert rows["torn"]["state"].startswith("unreadable: config.json")
    assert rows["torn"]["val_loss"] is None
    assert rows["large"]["checkpoints"] == ["step-00000009", "step-00000006"]
    json.dumps(list(rows.values()), allow_nan=False)


def test_a_name_that_is_no_text_is_shown_and_found(tmp_path: Path, made: Path) -> None:
    odd = os.fsdecode(b"odd-\xff")
    shutil.copytree(made / "small", tmp_path / odd)
    listed = RunsList(tmp_path)
    (row,) = listed.look()
    assert row["run"] == "odd-U+DCFF"
    json.dumps(row).encode("utf-8")
    assert listed.find("odd-U+DCFF").path == tmp_path / odd


def test_only_runs_that_changed_are_read_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = RunsList(root)
    listed.look()
    read: list[str] = []
    monkeypatch.setattr(
        "labstudio.dashboard.views._row", lambda name, run: read.append(name) or {"run": name}
    )
    listed.look()
    assert read == []
    Run(root / "small").append("metrics", {"event": "step", "step": 10})
    listed.look()
    assert read == ["small"]


def test_a_run_that_falls_silent_changes_without_a_change_on_disk(root: Path) -> None:
    run = Run(root / "small")
    before = signature(run)
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "checkpoints"):
        os.utime(run.path / name, ns=((run.path / name).stat().st_atime_ns,) * 2)
    long_ago = time.time() - 3600
    for name in ("config.json", "metrics.jsonl", "samples.jsonl", "checkpoints"):
        os.utime(run.path / name, (long_ago, long_ago))
    assert before[-1] is True
    assert signature(run)[-1] is False


@pytest.mark.parametrize(
    ("value", "expected"),
    [(float("nan"), None), (float("inf"), None), (True, "yes"), (3, 3), (0.1234567, 0.123457),
     ((1, 2), "1, 2"),
     ({"a": "\u202e"}, "{'a': '\\u202e'}"), ("\u202ex", "U+202Ex"), (None, None)],
)  # fmt: skip
def test_values_are_what_json_can_hold(value: object, expected: object) -> None:
    assert plain(value) == expected


def test_runs_are_compared_by_what_differs(made: Path) -> None:
    found = comparison([Run.open("small", made), Run.open("large", made)])
    rows = {row[0]: row[1:] for row in found["rows"]}
    assert rows["model.d_model"] == [10, 20]
    assert "model.n_layers" not in rows
    assert rows["held-out loss"][0] == pytest.approx(found["held_out"][0][-1][1], rel=1e-5)
    assert found["held_out"][1][-1][0] == 9 * 5 * 13  # steps, sequences, tokens
    json.dumps(found, allow_nan=False)


def test_curves_of_a_long_run_are_thinned_and_keep_their_ends(root: Path) -> None:
    run = Run(root / "small")
    lines = [{"event": "step", "step": n, "loss": 3 - n / 9000, "tokens": 65 * n} for n in range(1, 5001)]
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    training = curves(run)["training"]
    assert 100 < len(training) <= 300
    assert (training[0][0], training[-1][0]) == (65, 65 * 5000)
    assert training[-1][1] == pytest.approx(sum(line["loss"] for line in lines[-20:]) / 20)  # type: ignore[misc]


def test_a_run_without_rows_has_no_curve(root: Path) -> None:
    (root / "small" / "metrics.jsonl").unlink()
    assert curves(Run(root / "small")) == {"held_out": [], "training": []}


def test_a_run_page_lists_checkpoints_newest_first(made: Path) -> None:
    page = run_page(Run.open("small", made))
    assert [each["name"] for each in page["checkpoints"]] == ["step-00000009", "step-00000006"]
    assert page["checkpoints"][0]["state"] == "latest, best"
    assert page["resumable"]
    assert ["model.d_model", 10] in page["settings"]


@pytest.mark.parametrize("name", ["step-00000008", "../../small", "", None, "step-00000009/.."])
def test_a_checkpoint_that_is_not_there_is_said(made: Path, name: object) -> None:
    with pytest.raises(ValueError, match="Run small has no checkpoint"):
        find_checkpoint(Run.open("small", made), name)


# ---- the form ----


def test_the_form_offers_what_can_be_trained() -> None:
    choices = form_choices()
    json.dumps(choices)
    names = [name for name, _ in choices["presets"]]
    assert names[0] == "char-mini"
    assert "small" not in names  # another name of gpt2
    assert [name for name, _ in choices["recipes"]] == ["", *TRAIN_PRESETS]
    assert "shakespeare" in choices["corpora"]


@pytest.mark.parametrize("recipe", ["", *TRAIN_PRESETS])
def test_a_recipe_becomes_the_options_of_labkit_train(recipe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line reads them back as the configuration that was meant."""
    import tyro
    from tyro.conf import OmitArgPrefixes

    arguments = train_arguments(DEFAULTS | {"recipe": recipe, "max_steps": 360, "seed": 7})
    only = [each for each in arguments if not each.startswith(("--preset", "--corpus"))]
    read = tyro.cli(OmitArgPrefixes[TrainConfig], args=only)
    given = {"max_steps": 360, "seed": 7, "eval_every": 90, "sample_every": 90, "checkpoint_every": 90}
    assert read == TrainConfig(**TRAIN_PRESETS.get(recipe, {}) | given)


def test_no_text_becomes_another_option() -> None:
    options = DEFAULTS | {"name": "help", "corpus": "--init-from=x; rm -rf", "learning_rate": 0.002}
    arguments = train_arguments(options)
    assert "--name=help" in arguments
    assert "--corpus=--init-from=x; rm -rf" in arguments
    assert "--learning-rate=0.002" in arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "a/b"}, "name='a/b' must be a plain folder name"), ({"name": "--help"}, "a plain folder name"),
     ({"name": "a\n"}, "a plain folder name"), ({"name": ".."}, "a plain folder name"),
     ({"max_steps": 0}, "max_steps=0 must be at least 1"), ({"max_steps": "many"}, "max_steps='many' must"),
     ({"learning_rate": -1.0}, "learning_rate=-1.0 must be above 0"), ({"seed": 1.5}, "seed=1.5 must be"),
     ({"preset": "huge"}, "'huge' is not known"), ({"recipe": "magic"}, "'magic' is not known"),
     ({"corpus": "  "}, "corpus is empty"), ({"max_steps": ""}, "max_steps='' must be"),
     ({"max_steps": None}, "max_steps=None must be")],
)  # fmt: skip
def test_what_is_wrong_with_the_form_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        train_arguments(DEFAULTS | change)


def test_a_form_that_lacks_fields_is_refused() -> None:
    with pytest.raises(ValueError, match="The form lacks corpus, learning_rate"):
        train_arguments({name: DEFAULTS[name] for name in ("preset", "recipe", "max_steps", "name", "seed")})


# ---- processes ----


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def job_of(process: subprocess.Popen[bytes], path: Path, **changes: Any) -> Training:
    path.mkdir(parents=True, exist_ok=True)
    record = {"pid": process.pid, "began": psutil.Process(process.pid).create_time()}
    return Training(path, **record | {"what": "train", "resumed": None} | changes)


def test_a_stranger_with_the_same_number_is_never_stopped(tmp_path: Path) -> None:
    process = sleeper()
    try:
        stranger = job_of(process, tmp_path / "old", began=psutil.Process(process.pid).create_time() - 100)
        assert not stranger.alive
        stranger.stop()
        own = job_of(process, tmp_path / "new")
        assert own.alive
        assert process.poll() is None
        own.stop()
        assert process.wait(timeout=60) != 0
        assert own.stopping
        assert not own.alive
    finally:
        process.kill()


def test_asked_twice_it_is_interrupted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = sleeper()
    sent: list[object] = []
    monkeypatch.setattr(psutil.Process, "send_signal", lambda self, number: sent.append(number))
    try:
        job = job_of(process, tmp_path / "job")
        job.stop()
        job.stop()
        assert len(sent) == 1
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("log", "run"),
    [("run first: 3,712 parameters, 20 steps; cpu\n", "first"), ("run evil\n", None), ("", None),
     ("a warning\nrun -x שלום: 1 parameters, 2", "-x שלום"),
     ("run a b: 9 parameters, 1 steps\nrun c: 9 parameters, 1", "a b")],
)  # fmt: skip
def test_the_log_tells_which_run_it_is(tmp_path: Path, log: str, run: str | None) -> None:
    (tmp_path / "log.txt").write_text(log, encoding="utf-8")
    assert Training(tmp_path, 1, 0.0, "train", None).run_id == run


def test_the_end_of_a_log_is_shown_without_what_hides(tmp_path: Path) -> None:
    many = "".join(f"line {number}\n" for number in range(9000))
    (tmp_path / "log.txt").write_bytes(many.encode() + b"bar 1\rbar 2\r\n\x1b[31m\xff\xe2\x80\xae end\n")
    lines = Training(tmp_path, 1, 0.0, "train", None).last_lines().split("\n")
    assert lines[-3:] == ["bar 1", "bar 2", "U+001B[31m\ufffdU+202E end"]
    assert len(lines) == dashboard_trainings.LAST_LINES


def test_damaged_records_are_left_out(tmp_path: Path) -> None:
    for name, text in (("1", "{"), ("2", "[]"), ("3", '{"pid": 1}')):
        (tmp_path / ".dashboard" / name).mkdir(parents=True)
        (tmp_path / ".dashboard" / name / "job.json").write_text(text)
    assert trainings(tmp_path) == []


def test_a_training_runs_in_its_own_session_with_nothing_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QUERY_STRING", "token=secret")
    monkeypatch.setenv("VOILA_REQUEST_URL", "http://x/?token=secret")
    script = "import os, sys; print(os.getsid(0) == os.getpid(), os.getcwd(), dict(os.environ), sys.argv)"
    fake = tmp_path / "labstudio"
    fake.mkdir()
    (fake / "__init__.py").touch()
    (fake / "__main__.py").write_text(script)
    job = start_training(tmp_path / "my runs", tmp_path, DEFAULTS | {"name": "a 'b' $(c)"})
    until(lambda: not job.alive)
    printed = job.last_lines()
    assert printed.startswith(f"True {tmp_path} ")
    assert "secret" not in printed
    assert f"'LABKIT_RUNS': '{tmp_path / 'my runs'}'" in printed
    assert "\"--name=a 'b' $(c)\"" in printed
    assert trainings(tmp_path / "my runs") == [job]


def test_a_run_is_resumed_by_its_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    real = subprocess.Popen
    monkeypatch.setattr(
        dashboard_trainings.subprocess, "Popen",
        lambda command, **options: started.append(command) or real([sys.executable, "-c", ""], **options),
    )  # fmt: skip
    (root / "small").rename(root / "--help")
    job = resume_training(root, root, Run(root / "--help"))
    assert started[0][1:] == ["-m", "labstudio", "resume", str(root / "--help")]
    assert job.run_id == "--help"
    until(lambda: not job.alive)


# ---- the widget ----


def test_an_empty_and_a_missing_folder_are_shown(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "not yet"):
        empty = Dashboard(folder)
        assert (empty.rows, empty.errors, empty.job) == ([], {}, {})
        empty.close()
    assert not (tmp_path / "not yet").exists()


def test_its_words_are_the_same_each_time(page: Dashboard) -> None:
    assert repr(page) == "Dashboard(my runs)"


def test_it_shows_a_run_and_what_can_be_done_with_it(page: Dashboard) -> None:
    ask(page, "open", run="small")
    assert (page.tab, page.page["name"], page.monitor.name) == ("run", "small", "small")
    assert page.monitor.buttons == []  # finished
    ask(page, "open", run=HOSTILE_SHOWN)
    assert page.page["name"] == HOSTILE_SHOWN
    assert any(HOSTILE_SHOWN in each["text"] for each in page.monitor.samples)


@pytest.mark.parametrize("run", ["../small", "gone", None, 3, HOSTILE])
def test_a_run_that_is_not_listed_cannot_be_opened(page: Dashboard, run: object) -> None:
    ask(page, "open", run=run)
    assert "There is no run" in page.errors["runs"]
    assert page.page == {}


@pytest.mark.parametrize(
    "content",
    [{"do": "open"}, {"do": "open", "run": "small", "more": 1}, {"do": "close"}, {"do": "__init__"}, {},
     {"do": 3}, {"do": "start", "options": {}}, {"do": "start", "options": None},
     {"do": "try", "run": [], "checkpoint": {}}],
)  # fmt: skip
def test_odd_messages_do_no_harm(page: Dashboard, content: dict[str, Any]) -> None:
    page._handle(content)
    assert page.page == {}
    assert trainings(page.root) == []
    ask(page, "open", run="small")
    assert page.page["name"] == "small"


def test_chosen_runs_are_compared_once_there_are_two(page: Dashboard) -> None:
    page.chosen = ["small"]
    page._look()
    assert page.compared == {}
    page.chosen = ["small", "large", "gone"]
    page._look()
    assert page.compared["runs"] == ["small", "large"]


def stopped_run(root: Path, steps: int = 4) -> Run:
    """The run small, as if it had been cut off long ago."""
    run = Run(root / "small")
    kept = [
        line
        for line in (run.path / "metrics.jsonl").read_text().splitlines()
        if json.loads(line)["step"] <= steps
    ]
    (run.path / "metrics.jsonl").write_text("\n".join(kept) + "\n")
    for file in run.path.iterdir():
        os.utime(file, (time.time() - 3600,) * 2)
    return run


def test_a_stopped_run_can_be_resumed_and_a_running_one_be_stopped(
    page: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = stopped_run(page.root)
    ask(page, "open", run="small")
    assert [each["label"] for each in page.monitor.buttons] == ["Resume"]
    process = sleeper()
    try:
        job = job_of(process, page.root / ".dashboard" / "1", resumed="small")
        record = {"pid": job.pid, "began": job.began, "what": "resume small", "resumed": "small"}
        (job.path / "job.json").write_text(json.dumps(record))
        page._look()
        assert [each["label"] for each in page.monitor.buttons] == ["Stop"]
        assert page.monitor.state == "training"
        assert {row["run"]: row["state"] for row in page.rows}["small"] == "running"
        ask(page, "resume")  # twice does not start it twice
        assert len(trainings(page.root)) == 1
        monkeypatch.setattr(psutil.Process, "send_signal", lambda self, number: None)
        ask(page, "stop")
        assert [each["enabled"] for each in page.monitor.buttons] == [False]
        assert {row["run"]: row["state"] for row in page.rows}["small"] == "stopping"
    finally:
        process.kill()
        process.wait()
    (job.path / "log.txt").write_text("the last words")
    page._look()
    assert [each["label"] for each in page.monitor.buttons] == ["Resume"]
    assert page.page["log"] == "the last words"
    assert run.path.exists()


def test_a_run_that_writes_elsewhere_has_no_button(page: Dashboard) -> None:
    run = stopped_run(page.root)
    os.utime(run.path / "metrics.jsonl")
    ask(page, "open", run="small")
    assert page.monitor.buttons == []
    assert "only be stopped where it was started" in page.monitor.message


def test_a_run_of_a_notebook_is_resumed_there(page: Dashboard) -> None:
    run = stopped_run(page.root)
    run.write_config(run.config() | {"source": None})
    os.utime(run.path / "config.json", (time.time() - 3600,) * 2)
    ask(page, "open", run="small")
    assert page.monitor.buttons == []
    assert "started in a notebook" in page.monitor.message


def test_a_checkpoint_is_opened_and_gives_way_to_the_next(page: Dashboard) -> None:
    ask(page, "try", run="large", checkpoint="step-00000009")
    assert page.errors == {}
    assert page.opened["name"] == "large, step 9"
    first = page.playground
    assert first.model_name == "large, step 9"
    assert first.error == ""
    assert page.explorer.error == ""
    ask(page, "try", run="small", checkpoint="step-00000006")
    assert page.playground is not first
    assert first.comm is None  # closed
    assert page.opened["name"] == "small, step 6"


def test_a_damaged_checkpoint_is_explained(page: Dashboard) -> None:
    ask(page, "try", run="bitten", checkpoint="step-00000009")
    assert "model.safetensors is not what was written" in page.errors["try"]
    assert page.playground is None
    (page.root / "small" / "tokenizer.json").unlink()
    ask(page, "try", run="small", checkpoint="step-00000009")
    assert "tokenizer.json: cannot be read" in page.errors["try"]


def test_what_cannot_be_read_is_said_and_does_not_end_the_thread(
    page: Dashboard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(root: Path) -> list[Run]:
        raise OSError("the disk is gone \u202e")

    monkeypatch.setattr("labstudio.dashboard.views.list_runs", broken)
    page._look()
    assert page.errors["look"] == "The runs cannot be read: the disk is gone U+202E"
    monkeypatch.setattr("labstudio.dashboard.views.list_runs", list_runs)
    page._look()
    assert page.errors == {}


def test_the_thread_sees_new_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labstudio.dashboard.dashboard.EVERY", 0.05)
    dashboard = Dashboard(tmp_path / "runs")
    try:
        tiny_run("new", tmp_path / "runs", write_corpus(tmp_path / "text.txt"))
        until(lambda: [row["run"] for row in dashboard.rows] == ["new"])
    finally:
        dashboard.close()
