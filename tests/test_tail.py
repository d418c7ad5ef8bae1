"""`Tail`: the rows of a JSON-lines file while it grows, is cut short, is replaced."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from labkit.io import Tail


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "some.jsonl"


def lines(*rows: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def new(tail: Tail, limit: int | None = None) -> tuple[list[dict[str, Any]], bool]:
    rows, restarted = tail.new_rows(limit)
    return [row.values for row in rows], restarted


def test_each_row_is_read_once_and_a_torn_line_waits_for_its_end(path: Path) -> None:
    tail = Tail(path)
    assert new(tail) == ([], False)
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n{"a"')
    assert new(tail) == ([{"a": 1}, {"a": 2}], False)
    assert new(tail) == ([], False)
    append(path, b": 3}\nno json\n[4]\n\xff\n" + b"[" * 10**5 + b'\n{"a": 5}\n')
    assert new(tail) == ([{"a": 3}, {"a": 5}], False)


def test_a_row_written_byte_by_byte_comes_whole(path: Path) -> None:
    tail, row = Tail(path), {"text": "é日🙂"}
    data = json.dumps(row, ensure_ascii=False).encode() + b"\n"
    for place in range(len(data) - 1):
        append(path, data[place : place + 1])
        assert new(tail) == ([], False)
    append(path, data[-1:])
    assert new(tail) == ([row], False)


@pytest.mark.parametrize(
    "data", [b"", lines({"a": 1}), lines({"a": 1}, {"a": 9}), lines({"a": 1}, {"a": 8}, {"a": 7})]
)
def test_a_file_that_was_rewritten_is_read_from_its_start(path: Path, data: bytes) -> None:
    tail = Tail(path)
    path.write_bytes(lines({"a": 1}, {"a": 2}))
    tail.new_rows()
    path.write_bytes(data)
    assert new(tail) == ([json.loads(line) for line in data.splitlines()], True)
    append(path, lines({"a": 3}))
    assert new(tail) == ([{"a": 3}], False)


def test_a_copy_in_its_place_goes_on_where_the_old_file_ended(path: Path) -> None:
    tail = Tail(path)
    path.write_bytes(lines({"a": 1}, {"a": 2}))
    tail.new_rows()
    copy = path.with_name("copy")
    copy.write_bytes(path.read_bytes() + lines({"a": 3}))
    copy.replace(path)
    assert new(tail) == ([{"a": 3}], False)


def test_a_file_that_is_gone_leaves_no_rows(path: Path) -> None:
    tail = Tail(path)
    path.write_bytes(lines({"a": 1}))
    tail.new_rows()
    path.unlink()
    assert new(tail) == ([], True)
    assert new(tail) == ([], False)
    path.mkdir()
    assert new(tail) == ([], False)


def test_another_reader_goes_on_after_any_row(path: Path) -> None:
    data = [{"a": number, "text": "x" * (number % 7)} for number in range(300)]
    path.write_bytes(lines(*data))
    rows, _ = Tail(path).new_rows()
    assert [row.values for row in rows] == data
    for place in (0, 1, 170, 299):
        assert new(Tail(path, rows[place].position)) == (data[place + 1 :], False)
    path.write_bytes(lines(*data[:100], {"a": -1}, *data[101:]))
    assert new(Tail(path, rows[100].position))[1]
    assert new(Tail(path, rows[99].position))[0][0] == {"a": -1}


@pytest.mark.parametrize(
    "position",
    ["", "-", "0", "x-y", "1-2-3", "²-00000000", "9" * 500, "5-00000000", "999-00000000", "9-12345678"],
)
def test_a_position_of_another_file_means_from_the_start(path: Path, position: str) -> None:
    path.write_bytes(lines({"a": 1}, {"a": 2}))
    assert new(Tail(path, position))[0] == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("limit", [1, 10, 50, 10**6])
def test_a_limit_reads_in_whole_lines_and_loses_none(path: Path, limit: int) -> None:
    data = [{"a": number} for number in range(40)]
    path.write_bytes(lines(*data))
    tail, found = Tail(path), []
    while rows := new(tail, limit)[0]:
        assert len(rows) <= max(1, limit // 9 + 1)
        found += rows
    assert found == data


def test_a_line_too_long_is_skipped_without_being_held(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tail, "LONGEST_LINE", 100)
    tail = Tail(path)
    path.write_bytes(lines({"a": 1}, {"text": "x" * 1234}, {"a": 2}))
    append(path, b'{"text": "' + b"y" * 777)
    assert new(tail) == ([{"a": 1}, {"a": 2}], False)
    append(path, b'"}\n' + lines({"a": 3}))
    assert new(tail) == ([{"a": 3}], False)


def test_what_cannot_be_read_is_an_error(path: Path) -> None:
    path.write_bytes(lines({"a": 1}))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(PermissionError):
        Tail(path).new_rows()
