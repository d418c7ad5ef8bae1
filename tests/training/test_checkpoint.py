"""A checkpoint is whole or not there, gives back exactly what was saved, and runs no code."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from labkit import GPT, GPTConfig, TrainConfig
from labkit.training import CheckpointError, build_optimizer, load_checkpoint, save_checkpoint
from labkit.training import checkpoint as checkpoint_module


def trained(**changes: Any) -> tuple[GPT, torch.optim.Optimizer]:
    """A model and optimizer after two steps, so that there are moments to save."""
    sizes = {"vocab_size": 13, "context_length": 9, "d_model": 10, "n_layers": 2, "n_heads": 2}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**sizes | changes))
    optimizer = build_optimizer(model, TrainConfig(learning_rate=0.01))
    for _ in range(2):
        step(model, optimizer)
    return model, optimizer


def step(model: GPT, optimizer: torch.optim.Optimizer) -> None:
    ids = torch.arange(21).reshape(3, 7) % 13
    optimizer.zero_grad()
    model.loss(ids, (ids + 1) % 13).backward()
    optimizer.step()


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_weights": True},
        {"tie_weights": False},
        {"positions": "rotary", "d_model": 12, "n_kv_heads": 1, "norm": "rmsnorm", "activation": "swiglu"},
        {"positions": "sinusoidal", "bias": False, "embedding_scale": True, "dropout": 0.3},
    ],
    ids=["tied", "untied", "modern", "sinusoidal"],
)
def test_a_loaded_model_gives_the_same_logits_bit_for_bit(tmp_path: Path, changes: dict[str, Any]) -> None:
    model, optimizer = trained(**changes)
    folder = save_checkpoint(tmp_path / "last", model, optimizer, 17)
    loaded, at = load_checkpoint(folder)
    ids = torch.randint(13, (3, 7))
    assert torch.equal(loaded(ids), model.eval()(ids))
    assert at == 17
    assert loaded.config == model.config
    assert not loaded.training
    assert (loaded.head.weight is loaded.token_embedding.weight) == model.config.tie_weights


@pytest.mark.parametrize("tied", [True, False])
def test_training_goes_on_from_a_checkpoint_as_if_nothing_had_happened(tmp_path: Path, tied: bool) -> None:
    model, optimizer = trained(tie_weights=tied)
    folder = save_checkpoint(tmp_path / "last", model, optimizer, 2)
    loaded, _ = load_checkpoint(folder)
    resumed = build_optimizer(loaded, TrainConfig(learning_rate=0.5))
    load_checkpoint(folder, resumed)
    for some in ((model, optimizer), (loaded, resumed)):
        step(*some)
    assert all(
        torch.equal(one, two) for one, two in zip(model.parameters(), loaded.parameters(), strict=True)
    )


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "last", *trained(tie_weights=True), 1)
    assert "head.weight" not in load_file(folder / "model.safetensors")


def test_saving_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model, optimizer = trained()
    model.train()
    save_checkpoint(tmp_path / "last", model, optimizer, 1)
    assert model.training
    assert model.head.weight is model.token_embedding.weight


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    model, optimizer = trained()
    for number in (1, 2):
        save_checkpoint(tmp_path / "runs" / "last", model, optimizer, number)
    assert load_checkpoint(tmp_path / "runs" / "last")[1] == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["last"]


class Crash(BaseException):
    """The power goes off."""


def crash(*_: object, **__: object) -> None:
    raise Crash


def crash_at_rename(number: int) -> Callable[..., Any]:
    """Path.rename that works until its number-th call."""
    original, calls = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        calls.append(target)
        return original(self, target) if len(calls) < number else crash()  # type: ignore[func-returns-value]

    return rename


@pytest.mark.parametrize(
    ("where", "what", "replacement"),
    [
        (checkpoint_module, "save_file", lambda: crash),
        (torch, "save", lambda: crash),
        (Path, "write_text", lambda: crash),
        (Path, "rename", lambda: crash_at_rename(1)),
        (Path, "rename", lambda: crash_at_rename(2)),
    ],
    ids=["weights", "optimizer", "metadata", "first rename", "second rename"],
)
@pytest.mark.parametrize("again", [1, 2], ids=["once", "twice"])
def test_a_crash_while_saving_keeps_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, what: str, replacement: Any, again: int
) -> None:
    model, optimizer = trained()
    folder = save_checkpoint(tmp_path / "last", model, optimizer, 1)
    for _ in range(again):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, replacement())
            try:
                save_checkpoint(folder, model, optimizer, 2)
            except Crash:
                crashed = True
            else:
                crashed = False  # the second time there may be one rename fewer to crash at
        assert load_checkpoint(folder)[1] == (1 if crashed else 2)
    save_checkpoint(folder, model, optimizer, 3)
    assert load_checkpoint(folder)[1] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def test_a_crash_when_only_the_previous_checkpoint_is_left_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = trained()
    folder = save_checkpoint(tmp_path / "last", model, optimizer, 1)
    folder.rename(tmp_path / "last.old")  # as after a crash between the two renames
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(Crash):
            save_checkpoint(folder, model, optimizer, 2)
    assert load_checkpoint(folder)[1] == 1


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop(folder: Path, key: str) -> None:
    path = folder / "checkpoint.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: shutil.rmtree(f), "there is no such checkpoint folder. `labkit runs` lists"),
        (lambda f: (f / "checkpoint.json").unlink(), "is not a whole checkpoint: .*No such file"),
        (lambda f: (f / "checkpoint.json").write_text("{torn"), "is not a whole checkpoint: Expecting"),
        (
            lambda f: (f / "checkpoint.json").write_bytes(b"\xff\xfe\x00"),
            "is not a whole checkpoint: .*decode",
        ),
        (lambda f: (f / "checkpoint.json").write_text("[1, 2]"), "is not a whole checkpoint"),
        (lambda f: edit(f, format=2), r"format 2 is not known to this version \(it reads 1\). Update labkit"),
        (lambda f: drop(f, "format"), "is not a whole checkpoint: 'format'"),
        (lambda f: drop(f, "step"), "is not a whole checkpoint: 'step'"),
        (lambda f: edit(f, step="soon"), "is not a whole checkpoint: .*'soon'"),
        (lambda f: drop(f, "model"), "is not a whole checkpoint: 'model'"),
        (lambda f: edit(f, model={"depth": 3}), "is not a whole checkpoint: .*depth"),
        (lambda f: edit(f, model={}), "is not a whole checkpoint: .*vocab_size"),
        (lambda f: (f / "model.safetensors").unlink(), "is not a whole checkpoint: .*No such file"),
        (lambda f: truncate(f / "model.safetensors"), "is not a whole checkpoint"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "is not a whole checkpoint"),
        (lambda f: edit_weights(f, lambda w: w.pop("norm.bias")), r"weights missing \['norm.bias'\]"),
        (
            lambda f: edit_weights(f, lambda w: w.pop("token_embedding.weight")),
            "weights missing .*token_embed",
        ),
        (lambda f: edit_weights(f, lambda w: w.update(other=torch.ones(2))), r"unexpected \['other'\]"),
        (lambda f: edit_weights(f, lambda w: w.update({"norm.bias": torch.ones(2)})), "size mismatch"),
        (lambda f: (f / "optimizer.pt").unlink(), "is not a whole checkpoint: .*No such file"),
        (lambda f: truncate(f / "optimizer.pt"), "is not a whole checkpoint"),
        (lambda f: (f / "optimizer.pt").write_bytes(b""), "is not a whole checkpoint"),
        (
            lambda f: (f / "optimizer.pt").write_bytes(b"not a file of torch's"),
            "optimizer.pt is damaged or holds",
        ),
        (lambda f: torch.save({"weights": 1}, f / "optimizer.pt"), "is not a whole checkpoint"),
        (
            lambda f: torch.save(torch.optim.SGD([torch.ones(1)]).state_dict(), f / "optimizer.pt"),
            "is not a whole checkpoint: .*parameter group",
        ),
    ],
)
def test_a_damaged_foreign_or_newer_checkpoint_is_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    model, optimizer = trained()
    folder = save_checkpoint(tmp_path / "last", model, optimizer, 1)
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(folder, optimizer)
    assert str(folder) in str(error.value)


class Payload:
    """What an attacker would put into a pickle."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, write: Callable[..., object]) -> None:
    model, optimizer = trained()
    folder = save_checkpoint(tmp_path / "last", model, optimizer, 1)
    write(Payload(tmp_path / "ran"), folder / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"holds more than numbers; nothing in it was run\.$"):
        load_checkpoint(folder, optimizer)
    assert not (tmp_path / "ran").exists()
