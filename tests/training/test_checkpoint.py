"""A checkpoint is whole or not there, gives back exactly what was saved, and runs no code."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from labkit import GPT, GPTConfig, TrainConfig, io
from labkit.training import CheckpointError, build_optimizer, load_checkpoint, save_checkpoint
from labkit.training import checkpoint as checkpoint_module
from labkit.training.checkpoint import load_state, load_weights, verify, write_checkpoint

FILES = ["checkpoint.json", "model.safetensors", "state.pt"]


def untrained(**changes: Any) -> GPT:
    sizes = {"vocab_size": 13, "context_length": 9, "d_model": 10, "n_layers": 2, "n_heads": 2}
    torch.manual_seed(0)
    return GPT(GPTConfig(**sizes | changes))


MODEL = untrained()
STATE = {"moments": [torch.arange(3.0), torch.ones(2, 5)], "scale": 1.5, "name": "adamw", "none": None}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("saved") / "step-1", MODEL, 1, state=STATE, val_loss=2.5)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return shutil.copytree(saved, tmp_path / "step-1")


def seal(folder: Path) -> None:
    """New checksums, as somebody would write who made the folder on purpose."""
    files = [path for path in sorted(folder.iterdir()) if path.name != "SHA256SUMS"]
    lines = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


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
    model = untrained(**changes)
    loaded, at = load_checkpoint(save_checkpoint(tmp_path / "last", model, 17))
    ids = torch.randint(13, (3, 7))
    assert torch.equal(loaded(ids), model.eval()(ids))
    assert at == 17
    assert loaded.config == model.config
    assert not loaded.training
    assert (loaded.head.weight is loaded.token_embedding.weight) == model.config.tie_weights


def test_state_and_metadata_come_back_as_they_were(saved: Path) -> None:
    state, metadata = load_state(saved), verify(saved)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(one, two) for one, two in zip(state["moments"], STATE["moments"], strict=True))
    assert (state["scale"], state["name"], state["none"]) == (1.5, "adamw", None)
    assert (metadata["format"], metadata["step"], metadata["val_loss"]) == (2, 1, 2.5)
    assert GPTConfig(**metadata["model"]) == MODEL.config


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_an_optimizer_goes_on_from_its_state_as_if_nothing_had_happened(
    tmp_path: Path, optimizer: Any
) -> None:
    def step(model: GPT, some: Any) -> None:
        ids = torch.arange(21).reshape(3, 7) % 13
        some.zero_grad()
        model.loss(ids, (ids + 1) % 13).backward()
        some.step()

    model = untrained()
    first = build_optimizer(model, TrainConfig(optimizer=optimizer))
    step(model, first)
    folder = save_checkpoint(tmp_path / "last", model, 1, state=first.state_dict())
    loaded = untrained(tie_weights=True)
    load_weights(folder, loaded)
    second = build_optimizer(loaded, TrainConfig(optimizer=optimizer))
    second.load_state_dict(load_state(folder))
    step(model, first)
    step(loaded, second)
    assert all(
        torch.equal(one, two) for one, two in zip(model.parameters(), loaded.parameters(), strict=True)
    )


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "last", untrained(tie_weights=True), 1)
    assert "head.weight" not in load_file(folder / "model.safetensors")


def test_saving_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = untrained().train()
    save_checkpoint(tmp_path / "last", model, 1)
    assert model.training
    assert model.head.weight is model.token_embedding.weight


def test_weights_that_are_views_are_saved_as_what_they_show(tmp_path: Path) -> None:
    model = untrained()
    weight = model.get_parameter("blocks.0.mlp.up.weight")
    weight.data = weight.data.T.contiguous().T
    assert not weight.is_contiguous()
    loaded, _ = load_checkpoint(save_checkpoint(tmp_path / "last", model, 1))
    ids = torch.randint(13, (3, 7))
    torch.testing.assert_close(loaded(ids), model.eval()(ids), rtol=0, atol=1e-6)


def test_the_checksums_are_those_that_sha256sum_reads(saved: Path) -> None:
    names = [line.split("  ")[1] for line in (saved / "SHA256SUMS").read_text().splitlines()]
    assert names == FILES == verify(saved)["files"]
    if tool := shutil.which("sha256sum"):
        done = subprocess.run([tool, "--check", "SHA256SUMS"], cwd=saved, capture_output=True, text=True)
        assert done.stdout == "".join(f"{name}: OK\n" for name in FILES)


def test_a_new_checkpoint_replaces_the_old_one_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    for number in (1, 2):
        save_checkpoint(tmp_path / "runs" / "last", MODEL, number)
    assert load_checkpoint(tmp_path / "runs" / "last")[1] == 2
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["last"]


def test_what_others_write_into_a_checkpoint_is_sealed_too(tmp_path: Path) -> None:
    """Sharded training writes files of its own."""

    def write(fresh: Path) -> None:
        (fresh / "shard-0").write_bytes(b"zero")
        (fresh / "shard-1").write_bytes(b"one")

    folder = write_checkpoint(tmp_path / "step-3", write, step=3)
    assert verify(folder)["files"] == ["checkpoint.json", "shard-0", "shard-1"]
    (folder / "shard-1").write_bytes(b"two")
    with pytest.raises(CheckpointError, match="is damaged: shard-1 is not what was written"):
        verify(folder)


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
        (checkpoint_module, "_sha256", lambda: crash),
        (io, "flush", lambda: crash),
        (Path, "rename", lambda: crash_at_rename(1)),
        (Path, "rename", lambda: crash_at_rename(2)),
    ],
    ids=["weights", "state", "metadata", "checksums", "flush", "first rename", "second rename"],
)
def test_a_crash_while_saving_again_leaves_a_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, what: str, replacement: Any
) -> None:
    folder = save_checkpoint(tmp_path / "last", MODEL, 1)
    with monkeypatch.context() as patch:
        patch.setattr(where, what, replacement())
        with pytest.raises(Crash):
            save_checkpoint(folder, MODEL, 2)
    whole = []
    for path in tmp_path.iterdir():
        try:
            whole.append((path.name, load_checkpoint(path)[1]))
        except CheckpointError:
            continue
    assert {("last", 1), (".old-last", 1)} & set(whole)
    save_checkpoint(folder, MODEL, 3)
    assert load_checkpoint(folder)[1] == 3
    assert [path.name for path in tmp_path.iterdir()] == ["last"]


def edit(folder: Path, **changes: Any) -> None:
    """Change the metadata, as somebody would who knows the format; None drops a key."""
    path = folder / "checkpoint.json"
    document = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in document.items() if value is not None}))
    seal(folder)


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")
    seal(folder)


def rewrite(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    seal(folder)


def unlisted(folder: Path, name: str) -> None:
    path = folder / "SHA256SUMS"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if name not in line))


TOO_LARGE = {"vocab_size": 10**16, "context_length": 9, "d_model": 10, "n_layers": 2, "n_heads": 2}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "there is no such folder. `labkit runs checkpoints` lists"),
        (lambda f: [p.unlink() for p in f.iterdir()], "is not a whole checkpoint: SHA256SUMS is missing"),
        (lambda f: (f / "SHA256SUMS").write_text(""), "SHA256SUMS does not list checkpoint.json"),
        (
            lambda f: (f / "SHA256SUMS").write_text("foreign"),
            "is damaged: SHA256SUMS is not what was written",
        ),
        (
            lambda f: (f / "SHA256SUMS").write_text("0  ../x"),
            "is damaged: SHA256SUMS is not what was written",
        ),
        (lambda f: (f / "SHA256SUMS").write_bytes(b"\xff\xfe"), "is not a whole checkpoint: .*decode"),
        (lambda f: unlisted(f, "state.pt"), r"SHA256SUMS does not list .*'state.pt'"),
        (lambda f: rewrite(f, "checkpoint.json", b"{torn"), "is not a whole checkpoint: Expecting"),
        (lambda f: rewrite(f, "checkpoint.json", b"[1, 2]"), "is not a whole checkpoint"),
        (lambda f: edit(f, format=3), "has format 3; this version reads 2. Update labkit"),
        (lambda f: edit(f, format=1), "has format 1; this version reads 2. It was written by an old version"),
        (lambda f: edit(f, format=None), "is not a whole checkpoint: 'format'"),
        (lambda f: edit(f, files=None), "is not a whole checkpoint: 'files'"),
        (lambda f: edit(f, step=None), "its model cannot be built here: 'step'"),
        (lambda f: edit(f, step="soon"), "its model cannot be built here: .*'soon'"),
        (lambda f: edit(f, model=None), "its model cannot be built here: 'model'"),
        (lambda f: edit(f, model={"depth": 3}), "its model cannot be built here: .*depth"),
        (lambda f: edit(f, model=TOO_LARGE), "its weights do not fit this model: .*another vocabulary"),
        (lambda f: rewrite(f, "model.safetensors", b""), "its weights do not fit this model"),
        (lambda f: edit_weights(f, lambda w: w.pop("norm.bias")), r"weights missing \['norm.bias'\]"),
        (lambda f: edit_weights(f, lambda w: w.pop("token_embedding.weight")), "missing .*token_embed"),
        (lambda f: edit_weights(f, lambda w: w.update(other=torch.ones(2))), r"unexpected \['other'\]"),
        (
            lambda f: edit_weights(f, lambda w: w.update({"norm.bias": torch.ones(2)})),
            "has shape .* the tensor has",
        ),
    ],
    ids=lambda value: None if callable(value) else value.replace(" ", "-")[:40],
)
def test_a_damaged_foreign_or_newer_checkpoint_is_named(
    folder: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(folder)
    assert str(folder) in str(error.value)


def seen(folder: Path) -> bool:
    """Whether `verify` names the folder as damaged."""
    try:
        verify(folder)
    except CheckpointError as error:
        return str(folder) in str(error)
    return False


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@example(place=0.0, bit=0)
def test_any_flipped_bit_is_seen(folder: Path, name: str, place: float, bit: int) -> None:
    path = folder / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[int(place * len(content))] ^= 1 << bit
    path.write_bytes(flipped)
    # In the checksums alone a newline may become another sign that ends a line.
    assert seen(folder) or flipped.decode().splitlines() == content.decode().splitlines()
    path.write_bytes(content)


@pytest.mark.parametrize("name", [*FILES, "SHA256SUMS"])
@given(place=st.floats(0, 1, exclude_max=True))
@example(place=0.0)
@example(place=0.999999)
def test_a_file_cut_anywhere_is_seen(folder: Path, name: str, place: float) -> None:
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(place * len(content))])
    assert seen(folder) or (name == "SHA256SUMS" and path.read_bytes() == content[:-1])
    path.write_bytes(content)


def test_checksums_cut_between_two_lines_do_not_vouch_for_the_rest(folder: Path) -> None:
    path = folder / "SHA256SUMS"
    lines = path.read_text().splitlines(keepends=True)
    for count in range(len(lines)):
        path.write_text("".join(lines[:count]))
        with pytest.raises(CheckpointError, match="is damaged: SHA256SUMS does not list"):
            verify(folder)


class Payload:
    """What an attacker would put into a pickle."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "write", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))], ids=["torch", "pickle"]
)
def test_code_in_a_pickle_is_refused_and_not_run(
    folder: Path, tmp_path: Path, write: Callable[..., object]
) -> None:
    payload = Payload(tmp_path / "ran")
    pickle.loads(pickle.dumps(payload))
    assert (tmp_path / "ran").exists()  # so it would run
    (tmp_path / "ran").unlink()
    write(payload, folder / "state.pt")
    seal(folder)
    verify(folder)
    with pytest.raises(CheckpointError, match=r"holds more than numbers; nothing in it was run\.$"):
        load_state(folder)
    load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(content=st.binary(max_size=60), magic=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02", b"("]))
@example(content=b"", magic=b"")
def test_any_other_bytes_in_the_state_are_an_error_that_names_the_folder(
    folder: Path, content: bytes, magic: bytes
) -> None:
    (folder / "state.pt").write_bytes(magic + content)
    with pytest.raises(CheckpointError, match=r"state.pt (is damaged|cannot be read)") as error:
        load_state(folder)
    assert str(folder) in str(error.value)
