"""The fault table: what is done to a run's files, and what happens when it is resumed.

Each row is a test; `pytest --collect-only -q tests/training/test_faults.py` prints the table.
The run was killed after step 8 of 9, with checkpoints of steps 3 and 6.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_run import copy_of, resumed, tiny_trainer

from labkit.training import CheckpointError, Run, load_checkpoint, restore
from labkit.training.checkpoint import verify

NEWEST = "step-00000006"
FILES = ["model.safetensors", "state.pt", "checkpoint.json", "SHA256SUMS"]


def cut(file: str, part: float) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        content = (run.path / file).read_bytes()
        (run.path / file).write_bytes(content[: int(part * len(content))])

    return damage


def flip(file: str, part: float = 0.5) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        content = bytearray((run.path / file).read_bytes())
        content[int(part * len(content))] ^= 4
        (run.path / file).write_bytes(content)

    return damage


def remove(file: str) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        path = run.path / file
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return damage


def write(file: str, text: str) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        (run.path / file).parent.mkdir(exist_ok=True)
        (run.path / file).write_text(text)

    return damage


def in_newest(change: Callable[[Path], object]) -> Callable[[Run], None]:
    """Change the newest checkpoint and write the checksums anew, as somebody would who means it."""

    def damage(run: Run) -> None:
        folder = run.checkpoints_path / NEWEST
        change(folder)
        files = [path for path in sorted(folder.iterdir()) if path.name != "SHA256SUMS"]
        sums = [f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in files]
        (folder / "SHA256SUMS").write_text("".join(sums))

    return damage


def other_format(number: int) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        document = json.loads((folder / "checkpoint.json").read_text()) | {"format": number}
        (folder / "checkpoint.json").write_text(json.dumps(document))

    return change


class Payload:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("ran"),))


def evil(folder: Path) -> None:
    torch.save({"optimizer": Payload()}, folder / "state.pt")


def other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file(weights | {"norm.bias": torch.zeros(3)}, folder / "model.safetensors")


def other_moments(folder: Path) -> None:
    state = torch.load(folder / "state.pt")
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    torch.save(state, folder / "state.pt")


def no_generators(folder: Path) -> None:
    state = torch.load(folder / "state.pt")
    del state["generators"]
    torch.save(state, folder / "state.pt")


def renamed(old: str, new: str) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        (run.checkpoints_path / old).rename(run.checkpoints_path / new)

    return damage


def both(*damages: Callable[[Run], None]) -> Callable[[Run], None]:
    def damage(run: Run) -> None:
        for each in damages:
            each(run)

    return damage


def newest(file: str) -> str:
    return f"checkpoints/{NEWEST}/{file}"


LOST = r"metrics.jsonl is damaged: \d of 6 steps have no row"
Row = tuple[str, Callable[[Run], None], str]

FALLS_BACK: list[Row] = [
    *((f"{name} cut to nothing", cut(newest(name), 0), f"{NEWEST}") for name in FILES),
    *((f"{name} cut in the middle", cut(newest(name), 0.5), f"{NEWEST}") for name in FILES),
    *((f"{name} lacks its last bytes", cut(newest(name), 0.97), f"{NEWEST}") for name in FILES),
    *((f"{name} has a flipped bit", flip(newest(name)), f"{NEWEST} ") for name in FILES),
    *((f"{name} is missing", remove(newest(name)), f"{name} is missing") for name in FILES),
    ("weights of another shape", in_newest(other_weights), "its weights do not fit this model"),
    ("moments of another shape", in_newest(other_moments), r"exp_avg has shape \(3,\), its parameter"),
    ("a state without generators", in_newest(no_generators), "does not fit this trainer: 'generators'"),
    ("code in state.pt, checksums right", in_newest(evil), "more than numbers; nothing in it was run"),
    ("a newer format", in_newest(other_format(3)), "has format 3; .* Update labkit"),
    ("an older format", in_newest(other_format(1)), "has format 1; .*old version of labkit"),
    ("the newest folder deleted", remove(f"checkpoints/{NEWEST}"), "the newest that was announced, is gone"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "says"), [row[1:] for row in FALLS_BACK],
    ids=[f"{row[0]} -> falls back to step 3 and says so" for row in FALLS_BACK],
)  # fmt: skip
def test_newest_checkpoint(
    run: Run, whole: dict[str, Any], damage: Callable[[Run], None], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path)
    damage(run)
    with pytest.warns(UserWarning, match=f"(?s){says}.*Going on from step-00000003, step 3"):
        assert resumed(run) == whole
    assert not (run.path / "ran").exists()
    # and the damaged one is neither in the way nor counted: steps 3 (or the best) to 9 are as keep_last says
    assert verify(run.newest_whole()[0])["step"] == 9
    kept = {path.name for path in run.checkpoints_path.glob("step-*")}
    assert {"step-00000009"} <= kept <= {"step-00000003", "step-00000006", "step-00000009"}
    assert all(verify(run.checkpoints_path / name) for name in kept)


GOES_ON: list[Row] = [
    *((f"{name} missing", remove(f"checkpoints/{name}"), "") for name in ("latest", "best")),
    *((f"{name} cut to nothing", cut(f"checkpoints/{name}", 0), "") for name in ("latest", "best")),
    *((f"{name} cut in the middle", cut(f"checkpoints/{name}", 0.5), "") for name in ("latest", "best")),
    ("best has a flipped bit", flip("checkpoints/best"), ""),
    ("latest names a folder outside", write("checkpoints/latest", "../../../etc"), ""),
    ("a half-written .new-step-00000009", write("checkpoints/.new-step-00000009/state.pt", "x"), ""),
    ("killed between two renames", renamed(NEWEST, f".old-{NEWEST}"), ""),
    ("killed before the first rename", renamed(NEWEST, f".new-{NEWEST}"), ""),
    (
        "a foreign newer folder",
        write("checkpoints/step-99999999/readme", "x"),
        "step-99999999 is not a whole",
    ),
    ("a file named as a checkpoint", write("checkpoints/step-00000007", "x"), "there is no such folder"),
    ("a torn last line in metrics.jsonl", write("metrics.jsonl", '{"event": "st'), LOST),
    ("metrics.jsonl cut to nothing", cut("metrics.jsonl", 0), LOST),
    ("metrics.jsonl cut in the middle", cut("metrics.jsonl", 0.5), LOST),
    ("metrics.jsonl lacks its last bytes", cut("metrics.jsonl", 0.97), ""),
    ("metrics.jsonl missing", remove("metrics.jsonl"), LOST),
    ("samples.jsonl missing (older samples are gone)", remove("samples.jsonl"), ""),
    ("samples.jsonl cut in the middle (older samples are gone)", cut("samples.jsonl", 0.5), ""),
    ("samples.jsonl lacks its last bytes (older samples are gone)", cut("samples.jsonl", 0.97), ""),
    ("environment.jsonl missing", remove("environment.jsonl"), ""),
    ("environment.jsonl cut in the middle", cut("environment.jsonl", 0.5), ""),
    ("tokenizer.json missing", remove("tokenizer.json"), ""),
    ("tokenizer.json cut in the middle", cut("tokenizer.json", 0.5), ""),
]


@pytest.mark.parametrize(
    ("damage", "says"), [row[1:] for row in GOES_ON],
    ids=[f"{row[0]} -> goes on from step 6{', and warns' if row[2] else ''}" for row in GOES_ON],
)  # fmt: skip
def test_other_files(run: Run, whole: dict[str, Any], damage: Callable[[Run], None], says: str) -> None:
    damage(run)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = resumed(run)
    assert re.search("(?s)" + says, " ".join(str(each.message) for each in told))
    assert bool(told) == bool(says)
    assert found["last"] == whole["last"]
    assert found["best"] == whole["best"]
    assert found["metrics"] == [row for row in whole["metrics"] if row in found["metrics"]]
    if says != LOST:
        assert found["metrics"] == whole["metrics"]
    assert found["samples"] == [row for row in whole["samples"] if row in found["samples"]]
    assert found["samples"][-1] == whole["samples"][-1]
    for file in ("metrics", "samples"):
        assert all(json.loads(line) for line in (run.path / f"{file}.jsonl").read_text().splitlines())
    assert run.load()[1].fingerprint == run.config()["tokenizer"]
    assert not list(run.checkpoints_path.glob(".*"))


REFUSED: list[Row] = [
    ("config.json missing", remove("config.json"), "has no config.json, so its training cannot go on"),
    ("config.json cut to nothing", cut("config.json", 0), "config.json is damaged .* Put back a copy"),
    ("config.json cut in the middle", cut("config.json", 0.5), "config.json is damaged .* Put back a copy"),
    ("config.json holds a list", write("config.json", "[1]"), "config.json is damaged .* Put back a copy"),
    (
        "every checkpoint damaged",
        both(cut(newest("state.pt"), 0.5), flip("checkpoints/step-00000003/model.safetensors")),
        "has no whole checkpoint.*step-00000006 is damaged.*step-00000003 is damaged",
    ),
    ("all checkpoints deleted", remove("checkpoints"), "has no whole checkpoint.*holds none"),
]


@pytest.mark.parametrize(
    ("damage", "says"), [row[1:] for row in REFUSED],
    ids=[f"{row[0]} -> refused, nothing is touched" for row in REFUSED],
)  # fmt: skip
def test_too_much_is_gone(run: Run, damage: Callable[[Run], None], says: str) -> None:
    damage(run)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises((CheckpointError, ValueError), match="(?s)" + says):
        restore(tiny_trainer(), Run.open(run.path))
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    "file", ["metrics.jsonl", "samples.jsonl", "environment.jsonl", "checkpoints/latest"]
)
@settings(max_examples=25)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_flipped_bit_outside_the_checkpoints_changes_no_weight(
    killed: Run, tmp_path_factory: pytest.TempPathFactory, file: str, part: float
) -> None:
    run = copy_of(killed, tmp_path_factory.mktemp("flip"))
    flip(file, part)(run)
    trainer = tiny_trainer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert restore(trainer, run) == 6
    run.metrics("step"), run.rows("samples")
    assert torch.equal(
        trainer.model.norm.weight, load_checkpoint(run.checkpoints_path / NEWEST)[0].norm.weight
    )
    shutil.rmtree(run.path)
