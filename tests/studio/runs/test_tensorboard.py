"""The TensorBoard export, read back with TensorBoard's own reader."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import GPT, GPTConfig, TrainConfig, Trainer
from labkit.text import CharTokenizer
from labkit.training import End, Evaluation, Sample, Step, fit
from labstudio.runs.tensorboard import SCALARS, TensorBoardExport

installed = pytest.mark.skipif(
    find_spec("tensorboard") is None and "CI" not in os.environ, reason="tensorboard is not installed"
)


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0}).Reload()


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """Of each tag, the value at each step."""
    found = read(folder)
    return {tag: {each.step: each.value for each in found.Scalars(tag)} for tag in found.Tags()["scalars"]}


def texts(folder: Path) -> dict[int, str]:
    return {
        each.step: each.tensor_proto.string_val[0].decode()
        for each in read(folder).Tensors("sample/text_summary")
    }


def step(number: int, loss: float = 2.5) -> Step:
    return Step(number, loss, learning_rate=1e-3, grad_norm=0.5, tokens=21 * number)


@installed
def test_every_number_of_an_event_is_a_scalar_at_its_step(tmp_path: Path) -> None:
    export = TensorBoardExport(tmp_path)
    for event in (Evaluation(0, 3.5, 33.0), step(1), step(2, 2.25), Evaluation(2, 3.0, 20.0), End(2)):
        export(event)
    found = scalars(tmp_path)
    assert sorted(found) == sorted(SCALARS)
    assert found["loss"] == {1: 2.5, 2: 2.25}
    assert found["tokens"] == {1: 21, 2: 42}
    assert found["grad_norm"] == {1: 0.5, 2: 0.5}
    assert found["learning_rate"] == pytest.approx({1: 1e-3, 2: 1e-3})
    assert found["val_loss"] == {0: 3.5, 2: 3.0}
    assert found["perplexity"] == {0: 33.0, 2: 20.0}


@installed
def test_samples_keep_their_lines(tmp_path: Path) -> None:
    export = TensorBoardExport(tmp_path)
    export(Sample(3, "t", "to be\n\n  <b>or</b> # not é"))
    export(End(3))
    assert texts(tmp_path) == {3: "    to be\n    \n      <b>or</b> # not é"}


@installed
def test_a_run_that_goes_on_replaces_what_it_had_written_beyond(tmp_path: Path) -> None:
    first = TensorBoardExport(tmp_path)
    for number in range(1, 7):
        first(step(number, loss=9.0))
    first(End(6))
    second = TensorBoardExport(tmp_path)
    for number in range(4, 6):
        second(step(number, loss=1.0))
    second(End(5))
    assert scalars(tmp_path)["loss"] == {1: 9.0, 2: 9.0, 3: 9.0, 4: 1.0, 5: 1.0}


@installed
def test_nothing_is_lost_when_a_training_ends_without_its_last_event(tmp_path: Path) -> None:
    code = (
        "import sys, time; from labkit.training import Step\n"
        "from tensorboard.summary.writer.record_writer import RecordWriter\n"
        "write = RecordWriter.write\n"
        "RecordWriter.write = lambda self, data: (time.sleep(0.02), write(self, data))  # a busy disk\n"
        "from labstudio.runs.tensorboard import TensorBoardExport\n"
        "export = TensorBoardExport(sys.argv[1])\n"
        "for n in (1, 2): export(Step(n, 2.5, 1e-3, 0.5, n))\n"
        "raise SystemExit(130)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, timeout=120)
    assert done.returncode == 130, done.stderr
    assert scalars(tmp_path)["loss"] == {1: 2.5, 2: 2.5}


@installed
def test_a_training_is_shown_as_it_goes(tmp_path: Path) -> None:
    text = "to be or not to be, that is the question; " * 12
    tokenizer = CharTokenizer.from_text(text)
    ids = torch.tensor(tokenizer.encode(text))
    shape = {"context_length": 7, "d_model": 10, "n_layers": 1, "n_heads": 2}
    config = TrainConfig(max_steps=4, batch_size=3, eval_windows=5, eval_every=2, sample_every=2)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, **shape))
    trainer = Trainer(model, ids[:400], ids[400:], config, tokenizer=tokenizer, prompt="t")
    fit(trainer, progress=False, callbacks=[TensorBoardExport(tmp_path)])
    watched = scalars(tmp_path)
    assert sorted(watched) == sorted(SCALARS)
    assert list(watched["val_loss"]) == [0, 2, 4]
    assert list(texts(tmp_path)) == [2, 4]


def test_without_the_package_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(
        ImportError, match=r"TensorBoardExport: .*tensorboard.* Install the package: pip install tensorboard$"
    ):
        TensorBoardExport(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_package_is_loaded_only_for_an_export() -> None:
    code = "import sys, labstudio.runs.tensorboard; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "False\n", done.stderr
