"""The command line: help for everything, a run from training to text, and plain errors with exit code 2."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from labkit.config import DataConfig, GPTConfig, SampleConfig, TrainConfig
from labstudio.cli import main
from labstudio.cli.options import ModelOptions

TINY_MODEL = ["--context-length", "7", "--d-model", "10", "--n-layers", "1", "--n-heads", "2"]
SMALL = ["--corpus", "tiny", "--eval-windows", "3", *TINY_MODEL]


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    return tmp_path


@pytest.fixture
def labkit(capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `labkit …` and returns (exit code, standard output, standard error)."""

    def call(*args: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as end:
            main(list(args))
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err

    return call


@pytest.mark.parametrize("command", [[], ["fetch"], ["doctor"], ["train"], ["sample"], ["runs"]])
def test_help_is_there_for_every_command(command: list[str], labkit: Any) -> None:
    code, shown, _ = labkit(*command, "--help")
    assert code == 0
    assert "usage: labkit" in shown


def test_help_explains_every_setting_of_training(labkit: Any) -> None:
    _, shown, _ = labkit("train", "--help")
    options = dict(re.findall(r"(--[a-z-]+)([^-]*)", shown))
    for name in ("--max-steps", "--epochs", "--learning-rate", "--n-heads", "--corpus", "--seed", "--name"):
        assert name in options
    assert "Number of optimizer steps" in shown


def test_every_field_of_the_model_is_an_option() -> None:
    options = {field.name for field in dataclasses.fields(ModelOptions)} - {"preset"}
    fields = {field.name for field in dataclasses.fields(GPTConfig)}
    assert options == fields - {"vocab_size"}  # which follows from the tokenizer


@pytest.mark.parametrize("config", [TrainConfig, DataConfig, SampleConfig])
def test_every_field_of_a_configuration_is_an_option(config: Any, labkit: Any) -> None:
    _, shown, _ = labkit("sample" if config is SampleConfig else "train", "--help")
    for field in dataclasses.fields(config):
        assert re.search(rf"--{field.name.replace('_', '-')}[ ,]", shown), field.name


def test_the_shape_of_a_model_is_set_field_by_field(labkit: Any, out: Path) -> None:
    given: dict[str, Any] = {
        "n_heads": 5, "n_kv_heads": 1, "d_ff": 11, "dropout": 0.25, "attention_dropout": 0.125,
        "qkv_bias": False, "bias": False, "positions": "rotary", "norm": "rmsnorm", "activation": "swiglu",
        "tie_weights": False, "embedding_scale": True, "norm_eps": 0.001, "rope_base": 500.0,
    }  # fmt: skip
    options = [part for name, value in given.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    code, _, errors = labkit("train", *SMALL, *options, "--max-steps", "1", "--name", "shaped")
    assert code == 0, errors
    model = json.loads((out / "runs" / "shaped" / "config.json").read_text())["model"]
    assert {name: model[name] for name in given} == given


def test_help_does_not_import_torch() -> None:
    code = (
        "import sys; from labstudio.cli import main\n"
        "try: main(['train', '--help'])\nfinally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    assert done.stdout.endswith("False\n")


def test_train_then_runs_then_sample(labkit: Any, out: Path) -> None:
    code, shown, progress = labkit(
        "train", *SMALL, "--max-steps", "4", "--name", "first", "--sample-every", "2"
    )
    assert code == 0, progress
    assert re.search(r"run first: [\d,]+ parameters, 4 steps", shown)
    assert "run first finished. Write with it: labkit sample first" in shown
    assert "4/4" in progress
    assert (out / "runs" / "first" / "checkpoints" / "step-00000004" / "model.safetensors").is_file()

    assert re.search(r"^first +[\d,]+ +4/4 .* finished$", labkit("runs")[1], re.MULTILINE)
    assert re.search(r"^data\n  corpus +tiny$", labkit("runs", "show", "first")[1], re.MULTILINE)

    texts = [labkit("sample", "first", "--prompt", "the", "--max-new-tokens", "25")[1] for _ in range(2)]
    assert texts[0] == texts[1]
    assert texts[0].startswith("the")
    other = labkit("sample", "first", "--prompt", "the", "--max-new-tokens", "25", "--seed", "1")[1]
    assert other != texts[0]


def test_epochs_decide_the_number_of_steps(labkit: Any) -> None:
    code, shown, _ = labkit("train", *SMALL, "--epochs", "0.02", "--batch-size", "3", "--name", "short")
    assert code == 0
    steps = int(re.search(r"parameters, (\d+) steps", shown)[1])  # type: ignore[index]
    assert 1 <= steps < 100


def test_a_second_run_of_the_same_name_does_not_touch_the_first(labkit: Any, out: Path) -> None:
    for _ in range(2):
        assert labkit("train", *SMALL, "--max-steps", "1")[0] == 0
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["char-mini-tiny", "char-mini-tiny-2"]


def test_own_text_is_trained_on(labkit: Any, tmp_path: Path) -> None:
    text = tmp_path / "mine.txt"
    text.write_text(
        "Das Wasser rauscht', das Wasser schwoll,\nein Fischer saß daran.\n\n" * 40, encoding="utf-8"
    )
    code, shown, errors = labkit(
        "train", *SMALL, "--corpus", str(text), "--max-steps", "2", "--positions", "none"
    )
    assert code == 0, errors
    assert "finished" in shown


def test_ctrl_c_saves_says_so_and_exits_with_130(
    labkit: Any, monkeypatch: pytest.MonkeyPatch, out: Path
) -> None:
    from labkit.model import GPT
    from labkit.training import load_checkpoint

    loss, calls = GPT.loss, []

    def interrupted(self: GPT, *args: Any, **named: Any) -> Any:
        calls.extend([1] * self.training)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return loss(self, *args, **named)

    monkeypatch.setattr(GPT, "loss", interrupted)
    code, shown, _ = labkit("train", *SMALL, "--max-steps", "50", "--name", "cut")
    assert code == 130
    assert "run cut stopped at step 3; the checkpoint is saved" in shown
    assert load_checkpoint(out / "runs" / "cut" / "checkpoints" / "step-00000003")[1] == 3


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["sing"], "Unrecognized options: sing"),
        (["sample", "first"], "labkit: There is no run 'first'. Runs: none yet; `labkit train` makes one."),
        (["train", "--max-steps", "0"], "TrainConfig: max_steps=0 must be at least 1"),
        (["train", "--max-steps", "many"], "'many'"),
        (["train", "--max-steps", "3", "--epochs", "2"], "give max_steps=3 or epochs=2.0, not both"),
        (["train", "--corpus", "nosuch"], "labkit: load_corpus: 'nosuch' is neither a corpus"),
        (
            [*SMALL, "--preset", "gpt9"],
            "labkit: GPTConfig.preset: 'gpt9' is not known. Choose from char-mini",
        ),
        (
            [*SMALL, "--n-heads", "3"],
            "labkit: GPTConfig: n_heads=3 does not divide d_model=10. Choose n_heads from",
        ),
        ([*SMALL, "--context-length", "100000"], "are too few for context_length=100000"),
        ([*SMALL, "--device", "abacus"], "labkit: device 'abacus' cannot be used here"),
        ([*SMALL, "--name", "a/b"], "labkit: train: name='a/b' must be a plain folder name"),
        ([*SMALL, "--prompt", "£"], "labkit: Trainer: samples cannot start from prompt='£'"),
        ([*SMALL, "--positions", "alibi"], "alibi"),
        ([*SMALL, "--tokenizer", "words"], "words"),
    ],
)
def test_bad_input_is_a_message_and_exit_code_2(
    args: list[str], message: str, labkit: Any, out: Path
) -> None:
    command = ["train", "--max-steps", "1", *args] if args[0].startswith("--") else args
    code, shown, errors = labkit(*command)
    text = re.sub(r"[\s│]+", " ", shown + errors)  # tyro draws a box and breaks lines
    assert message in text
    assert code == 2
    assert "Traceback" not in text
    assert not (out / "runs").exists() or not list((out / "runs").iterdir())


def test_a_damaged_checkpoint_is_named(labkit: Any, out: Path) -> None:
    labkit("train", *SMALL, "--max-steps", "1", "--name", "first")
    (out / "runs" / "first" / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(b"torn")
    code, _, errors = labkit("sample", "first")
    assert code == 2
    assert "is damaged: model.safetensors is not what was written" in errors


def test_the_command_itself_exits_with_the_code(out: Path) -> None:
    for args, code in ((["runs"], 0), (["runs", "show", "nosuch"], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "labstudio", *args],
            capture_output=True,
            text=True,
            timeout=120,
            env=os.environ | {"LABKIT_OUT": str(out)},
        )
        assert done.returncode == code, done.stderr


def test_a_reader_that_has_read_enough_is_no_error() -> None:
    command = ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m labstudio progress | true"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
