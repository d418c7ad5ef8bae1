"""`labkit runs`: list, show, compare, checkpoints; of runs as training leaves them and of damaged ones."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import GPT, GPTConfig, TrainConfig, Trainer
from labkit.text import CharTokenizer
from labkit.training import Run, fit
from labstudio.cli import main

TEXT = "to be or not to be, that is the question; " * 12


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    return tmp_path


@pytest.fixture
def runs(capsys: pytest.CaptureFixture[str]) -> Any:
    """Calls `labkit runs …` and returns (exit code, standard output, standard error)."""

    def call(*args: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["runs", *args])
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


def train(name: str, text: str = TEXT, **settings: Any) -> Run:
    """A run as training leaves it, of a model that is as small as can be."""
    tokenizer = CharTokenizer.from_text(text)
    ids = torch.tensor(tokenizer.encode(text))
    shape = {"context_length": 7, "d_model": 10, "n_layers": 1, "n_heads": 2}
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    config = {"max_steps": 4, "batch_size": 3, "eval_windows": 5, "eval_every": 2, "sample_tokens": 9}
    config |= {"sample_every": 2, "checkpoint_every": 2}
    trainer = Trainer(
        model, ids[:400], ids[400:], TrainConfig(**config | settings), tokenizer=tokenizer, prompt="t"
    )
    run = Run.create(name)
    fit(trainer, run=run, progress=False)
    return run


def test_no_runs_yet_is_no_error(runs: Any) -> None:
    assert runs() == (0, "No runs yet: labkit train\n", "")
    assert runs("checkpoints") == (0, "No checkpoints yet.\n", "")


def test_the_list_has_a_row_per_run_also_for_a_damaged_one(runs: Any, out: Path) -> None:
    train("first")
    (train("second").path / "config.json").write_text('{"mod')
    code, shown, _ = runs()
    assert code == 0
    header, first, second = shown.splitlines()
    assert re.split("  +", header)[:4] == ["run", "parameters", "steps", "tokens"]
    assert re.match(r"first +[\d,]{3,}  4/4 +84 +\d\.\d+ +\d+\.\d+ +\d\.\d+ +\d+\.\d+ .* finished$", first)
    assert re.match(r"second +- .* unreadable: config.json: Unterminated string", second)
    assert header.index("state") == first.index("finished") == second.index("unreadable")
    assert runs("list") == (code, shown, "")


def test_show_tells_everything_in_aligned_lines(runs: Any) -> None:
    train("first", betas=(0.9, 0.95))
    code, shown, _ = runs("show", "first")
    assert code == 0
    titles = [line for line in shown.splitlines() if line and not line.startswith(" ")]
    assert titles == [
        "run", "model", "training", "environment of start 1", "evaluations", "checkpoints", "sample at step 4"
    ]  # fmt: skip
    for line in (r"d_model +10", r"betas +0\.9, 0\.95", r"prompt +t", r"torch +2\.\S+", r"threads +1"):
        assert re.search(rf"^  {line}$", shown, re.MULTILINE), line
    model = shown.split("\nmodel\n")[1].split("\n\n")[0].splitlines()
    assert len({re.match(r"  \w+ +", line)[0].__len__() for line in model}) == 1  # type: ignore[index]
    evaluations = shown.split("\nevaluations\n")[1].split("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in evaluations] == ["0", "2", "4"]
    assert re.search(r"  4 +\d.* latest(, best)? +\S*step-00000004$", shown, re.MULTILINE)
    assert "{" not in shown


def test_many_evaluations_are_thinned_from_the_first_to_the_last(runs: Any) -> None:
    run = train("first")
    for step in range(5, 48):
        run.append("metrics", {"event": "evaluation", "step": step, "val_loss": 2.0, "perplexity": 7.4})
    _, shown, _ = runs("show", "first")
    evaluations = shown.split("\nevaluations (13 of 46)\n")[1].split("\n\n")[0].splitlines()[1:]
    assert [line.split()[0] for line in evaluations][:3] == ["0", "6", "10"]
    assert evaluations[-1].split()[0] == "47"


def test_control_signs_of_a_text_do_not_reach_the_terminal_as_settings(runs: Any) -> None:
    run = train("first")
    run.write_config(run.config() | {"prompt": "a\x1b[31m\n"})
    assert r"'a\x1b[31m\n'" in runs("show", "first")[1]


def test_compare_shows_what_differs_and_draws_the_curves(runs: Any, out: Path, tmp_path: Path) -> None:
    train("first")
    train("second", learning_rate=3e-3, min_learning_rate=3e-5)
    code, shown, _ = runs("compare", "first", "second")
    assert code == 0
    lines = shown.splitlines()
    assert lines[0].split() == ["first", "second"]
    assert lines[1].split() == ["train.learning_rate", "0.001", "0.003"]
    assert lines[2].split() == ["train.min_learning_rate", "-", "3e-05"]
    assert lines[3].startswith("parameters")
    for name in ("step ", "tokens", "seconds", "held-out loss", "best held-out loss", "perplexity"):
        assert f"\n{name}" in shown
    assert "bits per byte" not in shown
    assert "Note" not in shown
    assert lines[-1] == f"Curves: {out / 'runs' / 'runs-compare.png'}"
    assert (out / "runs" / "runs-compare.png").read_bytes().startswith(b"\x89PNG")

    figure = tmp_path / "new" / "curves.png"
    assert runs("compare", "first", "second", "--figure", str(figure))[1].endswith(f"Curves: {figure}\n")
    assert figure.is_file()
    assert len(runs()[1].splitlines()) == 3  # a figure among the runs is no run


def test_compare_says_that_other_tokenizers_give_other_perplexities(runs: Any) -> None:
    train("first")
    train("second", text=TEXT.upper() + TEXT)
    _, shown, _ = runs("compare", "first", "second")
    assert "Note: The tokenizers differ, so losses and perplexities do not compare" in shown


def test_compare_goes_on_where_one_run_is_damaged(runs: Any) -> None:
    train("first")
    (train("second").path / "config.json").write_text("")
    code, shown, _ = runs("compare", "first", "second")
    assert code == 0
    assert re.search(r"state +finished +unreadable: ", shown)


def test_checkpoints_of_one_run_or_of_all(runs: Any, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train("first")
    train("second")
    monkeypatch.chdir(out)
    code, shown, _ = runs("checkpoints")
    assert code == 0
    assert [line.split()[:2] for line in shown.splitlines()[1:]] == [
        ["first", "2"], ["first", "4"], ["second", "2"], ["second", "4"]
    ]  # fmt: skip
    paths = [Path(line.split()[-1]) for line in shown.splitlines()[1:]]
    assert paths[0] == Path("runs/first/checkpoints/step-00000002")
    assert all(path.is_dir() for path in paths)
    assert len(runs("checkpoints", "second")[1].splitlines()) == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["first"], "Available subcommands: list, show, compare, checkpoints"),
        (["show"], "RUN"),
        (["show", "third"], "labkit: There is no run 'third'. Runs: first."),
        (
            ["show", "first"],
            "config.json is damaged (Expecting value: line 1 column 1 (char 0)). Put back a copy",
        ),
        (["compare", "first", "third"], "labkit: There is no run 'third'"),
        (["compare", "first"], "labkit: runs compare: name two runs or more. `labkit runs` lists them."),
        (["compare"], "labkit: runs compare: name two runs or more."),
        (["checkpoints", "third"], "labkit: There is no run 'third'"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(args: list[str], message: str, runs: Any) -> None:
    (Run.create("first").path / "config.json").write_text("")
    code, shown, errors = runs(*args)
    assert code == 2
    assert message in re.sub(r"[\s│]+", " ", shown + errors)
    assert "Traceback" not in errors


@pytest.mark.parametrize("command", [[], ["list"], ["show"], ["compare"], ["checkpoints"]])
def test_help_is_there_for_every_command(command: list[str], runs: Any) -> None:
    code, shown, _ = runs(*command, "--help")
    assert code == 0
    assert "usage: labkit runs" in shown


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from labstudio.cli import main\n"
        "try: main(['runs', 'compare', '--help'])\n"
        "finally: print({'torch', 'pandas', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.endswith("set()\n"), done.stderr
