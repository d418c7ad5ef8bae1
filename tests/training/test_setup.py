"""Settings alone give a trainer, and the same one again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from labkit import TrainConfig
from labkit.config import DataConfig
from labkit.text import EncodedText, encode_folder
from labkit.training import Run, Trainer, build_trainer, fit, rebuild_trainer, restore

SHAPE = {"context_length": 7, "d_model": 10, "n_layers": 1, "n_heads": 2}


def build(
    data: dict[str, Any] | None = None,
    shape: dict[str, Any] | None = None,
    init_from: str | None = None,
    **train: Any,
) -> Trainer:
    config = TrainConfig(**{"max_steps": 4, "batch_size": 3, "eval_windows": 5} | train)
    text = DataConfig(**{"corpus": "tiny"} | (data or {}))
    return build_trainer("char-mini", SHAPE | (shape or {}), config, text, init_from=init_from)


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    return tmp_path


def plays(folder: Path) -> Path:
    """Six texts in two groups."""
    for group in ("comedies", "histories"):
        (folder / group).mkdir(parents=True)
        for number in range(3):
            (folder / group / f"{number}.txt").write_text(f"{group} {number} enter a king " * 20)
    return folder


def test_a_run_can_be_rebuilt_from_its_folder_and_goes_on(out: Path) -> None:
    whole = build(max_steps=6)
    fit(whole, progress=False)
    first, run = build(max_steps=6, checkpoint_every=1), Run.create("first")
    with pytest.raises(KeyboardInterrupt):
        fit(first, run=run, progress=False, callbacks=[lambda _: stop(first)])
    again = rebuild_trainer(run)
    assert again.source == first.source
    assert again.model.config == first.model.config
    assert restore(again, run) == 3
    fit(again, run=run, progress=False)
    assert torch.equal(again.model.head.weight, whole.model.head.weight)


def stop(some: Trainer) -> None:
    if some.step == 3 and not some.pending:
        raise KeyboardInterrupt


def test_a_run_from_a_notebook_says_where_to_go_on(out: Path) -> None:
    some = build()
    some.source = None
    run = Run.create("notebook")
    fit(some, run=run, progress=False)
    with pytest.raises(ValueError, match="was started in a notebook"):
        rebuild_trainer(run)


def test_the_settings_of_a_run_are_json(out: Path) -> None:
    some = build(betas=(0.8, 0.9), freeze=("positions",))
    assert json.loads(json.dumps(some.source)) == some.source


def test_groups_choose_texts_and_leave_the_tokenizer_alone(tmp_path: Path) -> None:
    folder = str(plays(tmp_path / "plays"))
    every, some = build({"corpus": folder}), build({"corpus": folder, "groups": ("histories",)})
    assert some.tokenizer is not None
    assert every.tokenizer is not None
    assert some.tokenizer.fingerprint == every.tokenizer.fingerprint
    assert some.data.tokens_per_epoch < every.data.tokens_per_epoch
    assert "comedies" not in some.tokenizer.decode(some.data.batch(0)[0].flatten().tolist())
    with pytest.raises(ValueError, match="train has no group tragedies, only comedies, histories"):
        build({"corpus": folder, "groups": ("tragedies",)})


def test_stride_and_max_tokens() -> None:
    assert build({"max_tokens": 50}).data.tokens_per_epoch == 50
    assert build({"max_tokens": 50, "stride": 7}, epochs=1, max_steps=None).total_steps == -(-7 // 3)
    assert build({"max_tokens": 50, "stride": 1}, epochs=1, max_steps=None).total_steps == -(-43 // 3)


def test_sequences_of_others_are_trained_on_with_a_tenth_held_out(tmp_path: Path) -> None:
    sequences = [torch.arange(40 + number) for number in range(30)]
    torch.save(sequences, tmp_path / "tokenized_data.pt")
    some = build({"sequences": str(tmp_path / "tokenized_data.pt")}, {"context_length": 32})
    assert some.model.config.vocab_size == 50257
    assert (some.val_targets == -100).any()
    windows = 64  # two of each sequence, three of the four longest
    assert some.data.tokens_per_epoch == (windows - windows // 10) * 32
    fit(some, progress=False)


def test_a_warm_start_takes_the_weights_alone(out: Path) -> None:
    first, run = build(), Run.create("first")
    fit(first, run=run, progress=False)
    warm = build(init_from="first", seed=3)
    assert torch.equal(warm.model.head.weight, first.model.head.weight)
    assert warm.step == 0
    assert not warm.optimizer.state_dict()["state"]


@pytest.mark.parametrize(
    ("data", "shape", "message"),
    [
        ({"tokenizer": "gpt2"}, {}, "has another tokenizer"),
        ({}, {"d_model": 12}, "do not fit this model"),
        ({}, {"n_layers": 2}, "weights missing"),
    ],
)
def test_a_warm_start_from_what_does_not_fit(
    out: Path, data: dict[str, Any], shape: dict[str, Any], message: str
) -> None:
    fit(build(), run=Run.create("first"), progress=False)
    with pytest.raises(ValueError, match=message):
        build(data, shape, init_from="first")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"max_tokens": 0}, "max_tokens=0 must be at least 1"),
        ({"groups": "comedies"}, "groups='comedies' must be a list of texts"),
        ({"groups": ["comedies", 3]}, "groups: 3 must be a text that is not empty"),
        ({"tokenizer": "word"}, "tokenizer='word' is not known. Choose from char, bpe, gpt2"),
        ({"corpus": None}, "corpus=None must be text"),
        ({"sequences": "x.pt", "stride": 3}, "sequences brings its own windows"),
    ],
)
def test_bad_data_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DataConfig(**given)


def test_lists_from_json_become_tuples() -> None:
    assert DataConfig(groups=["comedies"]).groups == ("comedies",)  # type: ignore[arg-type]
    assert TrainConfig(freeze=["head"]).freeze == ("head",)  # type: ignore[arg-type]


def encoded(folder: Path, documents: int) -> str:
    """A folder of encoded text."""
    (folder / "texts").mkdir()
    for number in range(documents):
        (folder / "texts" / f"{number}.txt").write_text(f"enter king number {number}, and exit. " * 3)
    encode_folder(folder / "texts", folder / "ids", "char", workers=1)
    return str(folder / "ids")


def test_encoded_text_is_trained_on_from_disk_with_the_last_documents_held_out(tmp_path: Path) -> None:
    folder = encoded(tmp_path, 12)
    encoded_text = EncodedText(folder)
    some = build({"corpus": folder})
    cut = int(encoded_text.documents[-1])
    assert some.data.tokens_per_epoch == cut
    assert some.val_inputs.flatten()[:7].tolist() == encoded_text.ids[cut : cut + 7].tolist()
    assert build({"corpus": folder, "max_tokens": 60}).data.tokens_per_epoch == 60
    fit(some, progress=False)
    assert some.fingerprint() == build({"corpus": folder}).fingerprint()
    assert some.fingerprint() != build({"corpus": folder, "max_tokens": 60}).fingerprint()
    with pytest.raises(ValueError, match="stride go with a corpus of text"):
        build({"corpus": folder, "stride": 3})


def test_one_long_document_is_cut(tmp_path: Path) -> None:
    some = build({"corpus": encoded(tmp_path, 1)})
    assert some.data.tokens_per_epoch == len(EncodedText(tmp_path / "ids").ids) - 8


def test_too_little_encoded_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ids are too few for context_length=64"):
        build({"corpus": encoded(tmp_path, 1)}, {"context_length": 64})
