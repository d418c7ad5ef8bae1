"""A folder of shards reads like one array, and a damaged one is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded import encode
from hypothesis import given
from hypothesis import strategies as st

from labkit.text import (
    CharTokenizer,
    open_shards,
)


@pytest.fixture(scope="module")
def seven(tmp_path_factory) -> tuple[Any, np.ndarray]:
    """Shards of seven ids each, and the same ids in one array."""
    folder = tmp_path_factory.mktemp("seven")
    (folder / "text.txt").write_text("".join(chr(97 + n * n % 23) for n in range(59)))
    shards = encode(folder / "text.txt", folder / "out", shard_tokens=7)
    files = sorted((folder / "out").glob("shard-*.npy"))
    assert [len(np.load(file, mmap_mode="r")) for file in files] == [7] * 8 + [4]
    return shards, np.concatenate([np.load(file) for file in files])


@given(starts=st.lists(st.integers(0, 49), max_size=5), length=st.integers(1, 11))
def test_crops_may_cross_shards(seven, starts, length):
    shards, whole = seven
    places = np.array(starts, dtype=np.int64)[:, None] + np.arange(length)
    crops = shards[places]
    assert crops.dtype == whole.dtype
    np.testing.assert_array_equal(crops, whole[places])


@given(st.slices(60))
def test_slices_are_those_of_an_array(seven, part):
    shards, whole = seven
    assert len(shards) == 60
    np.testing.assert_array_equal(shards[part], whole[part])


def test_single_places_are_those_of_an_array(seven):
    shards, whole = seven
    assert [shards[place] for place in range(-60, 60)] == [whole[place] for place in range(-60, 60)]
    for place in (60, -61, np.array([3, 60])):
        with pytest.raises(IndexError, match="outside its 60 ids"):
            shards[place]
    with pytest.raises(IndexError, match="whole numbers, not float64"):
        shards[np.array([1.0])]


def test_only_shards_that_are_looked_at_are_opened(seven, monkeypatch):
    opened: list[Path] = []
    load = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: opened.append(path) or load(path, **options))
    shards = open_shards(seven[0].folder)
    shards[np.array([[8, 9], [30, 31]])]
    assert [path.name for path in opened] == ["shard-00001.npy", "shard-00004.npy"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("shard-00001.npy", Path.unlink, r"shard-00001\.npy: is missing or not 142 bytes long"),
        ("shard-00001.npy", lambda path: os.truncate(path, 141), r"shard-00001\.npy: is missing or not 142"),
        ("documents-00000.npy", Path.unlink, "is missing"),
        ("shard-00001.npy", lambda path: np.save(path, np.zeros(14, np.uint8)), "holds uint8 of shape"),
        ("shard-00001.npy", lambda path: path.write_bytes(b"?" * 142), r"shard-00001\.npy: is damaged"),
        ("documents-00000.npy", lambda path: path.write_bytes(b""), r"documents-00000\.npy: is damaged"),
        ("index.json", Path.unlink, r"index\.json: cannot be read"),
        ("index.json", lambda path: path.write_text("{"), r"index\.json: is damaged"),
        ("index.json", lambda path: path.write_text("[]"), r"index\.json: is damaged"),
        ("index.json", lambda path: path.write_text('{"format": "x"}'), "was not written by `labkit encode`"),
        ("index.json", lambda path: edit(path, version=2), "version 2 is not known here. Update labkit"),
        ("index.json", lambda path: edit(path, dtype=None), r"dtype not there"),
        ("tokenizer.json", lambda path: CharTokenizer("abc").save(path), "is not the tokenizer that made"),
        ("tokenizer.json", Path.unlink, r"tokenizer\.json: cannot be read"),
    ],
)
def test_a_damaged_folder_is_named(name, change, message, tmp_path):
    (tmp_path / "text.txt").write_text("twenty letters here!")
    encode(tmp_path / "text.txt", tmp_path / "out", shard_tokens=7)
    change(tmp_path / "out" / name)
    with pytest.raises(ValueError, match=message):
        read_everything(tmp_path / "out")


def read_everything(folder: Path) -> None:
    shards = open_shards(folder)
    print(shards[:], shards.documents, shards.tokenizer())


def edit(path: Path, **changes: Any) -> None:
    entries = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}))
