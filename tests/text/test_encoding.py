"""Encoding into a folder: stopped at any moment it loses nothing, and what is wrong is named."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from encoded import WORDS, content, encode

from labkit.text import (
    CharTokenizer,
    CorpusError,
    asset_path,
    encode_folder,
    encoding,
    open_shards,
    units,
)
from labkit.text.cleaning import read_text
from labstudio.cli import main


class Killed(BaseException):
    """Nothing in the library handles it, as with a power cut."""


def test_stopped_at_any_write_it_goes_on_to_the_same_bytes(texts, tmp_path, small_pieces, monkeypatch):
    encode(texts, tmp_path / "whole", shard_tokens=1500)
    expected = content(tmp_path / "whole")
    assert len(expected) == 3 + 2 * 3
    replace, writes = Path.replace, 5 + 3 * 3
    for after in (False, True):
        for moment in range(writes):
            calls = 0

            def dying(path: Path, target: Path, moment: int = moment, after: bool = after) -> Path:
                nonlocal calls
                calls += 1
                if calls == moment + 1:
                    if after:
                        replace(path, target)
                    raise Killed
                return replace(path, target)

            out = tmp_path / f"{moment} {after}"
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", dying)
                with pytest.raises(Killed):
                    encode(texts, out, shard_tokens=1500)
            assert ("index.json" in content(out)) == (after and moment == writes - 1)
            if "progress.json" in content(out):
                (out / ".new-tokenizer.json.part").touch()  # as saving a tokenizer may leave
            encode(texts, out, shard_tokens=1500)
            assert content(out) == expected


def test_finished_shards_are_kept(texts, tmp_path, small_pieces, monkeypatch):
    out = tmp_path / "out"
    fail_after(monkeypatch, 14, Killed())
    with pytest.raises(Killed):
        encode(texts, out, shard_tokens=500)
    monkeypatch.undo()
    monkeypatch.setattr(units, "BLOCK", 256)
    finished = {path: path.stat().st_mtime_ns for path in out.glob("shard-*.npy")}
    assert len(finished) >= 2
    result = encode_folder(texts, out, "char", workers=1, shard_tokens=500, progress=False)
    assert finished == {path: path.stat().st_mtime_ns for path in finished}
    assert 0 < result.new_bytes < result.shards.source_bytes
    assert encode_folder(texts, out, "char", workers=1, shard_tokens=500, progress=False).new_bytes == 0


def fail_after(monkeypatch: pytest.MonkeyPatch, calls: int, error: BaseException) -> None:
    sync = os.fsync
    left = [calls]

    def failing(handle: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise error
        sync(handle)

    monkeypatch.setattr(os, "fsync", failing)


def test_a_full_disk_is_named_and_loses_nothing(texts, tmp_path, monkeypatch):
    encode(texts, tmp_path / "whole", shard_tokens=900)
    for calls in (0, 1, 4, 7):
        out = tmp_path / f"full {calls}"
        with monkeypatch.context() as patch:
            fail_after(patch, calls, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(CorpusError, match=r"full .*No space left on device.*same command again"):
                encode(texts, out, shard_tokens=900)
        assert not list(out.glob("*.part"))
        encode(texts, out, shard_tokens=900)
        assert content(out) == content(tmp_path / "whole")


def test_a_shard_lost_since_is_made_again(texts, tmp_path, monkeypatch):
    encode(texts, tmp_path / "whole", shard_tokens=500)
    out = tmp_path / "out"
    fail_after(monkeypatch, 15, Killed())
    with pytest.raises(Killed):
        encode(texts, out, shard_tokens=500)
    monkeypatch.undo()
    with (out / "shard-00001.npy").open("rb+") as handle:
        handle.truncate(300)
    encode(texts, out, shard_tokens=500)
    assert content(out) == content(tmp_path / "whole")


def test_the_number_of_workers_changes_no_byte(texts, tmp_path, small_pieces):
    encode(texts, tmp_path / "one", workers=1)
    encode(texts, tmp_path / "three", workers=3)
    assert content(tmp_path / "one") == content(tmp_path / "three")


@pytest.mark.long
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes_and_leaves_no_process(tmp_path):
    plays = "\n\n".join(read_text(path) for path in sorted(asset_path("shakespeare").rglob("*.md")))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(2):
        (texts / f"{number}.txt").write_text(f"copy {number}\n" + plays, encoding="utf-8")
    options = ["--out", str(tmp_path / "out"), "--workers", "2", "--shard-tokens", "300000"]
    command = [sys.executable, "-m", "labstudio", "encode", str(texts), *options]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(lambda: (tmp_path / "out" / "shard-00001.npy").exists() or running.poll() is not None)
    workers = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert len(workers) >= 2
    assert (tmp_path / "out" / "progress.json").exists()
    wait_for(lambda: not any(worker.is_running() for worker in workers))
    with pytest.raises(CorpusError, match=r"is not finished\. Run the same `labkit encode` again"):
        open_shards(tmp_path / "out")

    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    encode(texts, tmp_path / "whole", "gpt2", shard_tokens=300_000)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def wait_for(happened: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"the folder has no \.txt or \.md file"),
        ({"a.txt": b"fine", "b.txt": b"caf\xe9"}, r"b\.txt: byte offset 3 \(0xe9\) is not UTF-8"),
        ({"a.txt": b"word " * 100 + b"\xff"}, r"a\.txt: byte offset 500 \(0xff\) is not UTF-8"),
        ({"a.txt": b"word " * 100 + b"\0"}, r"a\.txt: byte offset 500 is NUL"),
        ({"a.txt": "abc".encode("utf-16")}, "starts UTF-16 text"),
        ({"a.txt": b"fine", "b.md": b""}, r"b\.md: the file is empty"),
        ({"a.txt": b" \n" * 500}, r"a\.txt: the file is empty"),
    ],
)
def test_bad_text_is_named_before_anything_is_written(files, message, tmp_path, small_pieces):
    folder = tmp_path / "texts"
    folder.mkdir()
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    with pytest.raises(CorpusError, match=message):
        encode(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"workers": 0}, "workers=0 must be at least 1"),
        ({"shard_tokens": 0}, "shard_tokens=0 must be in 1 .."),
        ({"shard_tokens": 2**28}, "shard_tokens=268435456 must be in 1 .. 134217728"),
        ({"tokenizer": "words"}, "tokenizer 'words' is neither char, bpe or gpt2 nor a file"),
    ],
)
def test_bad_arguments_are_named(options, message, texts, tmp_path):
    with pytest.raises(CorpusError, match=message):
        encode(texts, tmp_path / "out", **options)


def test_a_source_or_target_that_cannot_be_is_named(texts, tmp_path, monkeypatch):
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        encode(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(CorpusError, match=r"cannot be made a folder \(File exists\)"):
        encode(texts, texts / "0.txt")
    with pytest.raises(CorpusError, match=r"texts: is not empty \(it holds \.hidden\.txt\) and was not made"):
        encode(texts, texts)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.json").write_text("{}")
    with pytest.raises(CorpusError, match=r"index\.json: was not written by `labkit encode`"):
        encode(texts, tmp_path / "out")


def test_other_arguments_are_refused(texts, tmp_path):
    encode(texts, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(CorpusError, match="was begun with another tokenizer"):
        encode(texts, tmp_path / "out", CharTokenizer(WORDS + "x*"))
    with pytest.raises(CorpusError, match="was begun with --shard-tokens 797"):
        encode(texts, tmp_path / "out", shard_tokens=798)
    assert content(tmp_path / "out") == before


def test_changed_text_is_refused_by_name(texts, tmp_path):
    tokenizer = CharTokenizer(WORDS + "x")
    encode(texts, tmp_path / "out", tokenizer)
    old = (texts / "1.txt").read_bytes()
    (texts / "1.txt").write_bytes(b"Another " + old)
    with pytest.raises(CorpusError, match=r"begun with other text: 1\.txt was changed"):
        encode(texts, tmp_path / "out", tokenizer)
    (texts / "1.txt").unlink()
    with pytest.raises(CorpusError, match=r"begun with other text: 1\.txt was removed"):
        encode(texts, tmp_path / "out", tokenizer)
    (texts / "1.txt").write_bytes(old)
    (texts / "5.txt").write_bytes(old)
    with pytest.raises(CorpusError, match=r"begun with other text: 5\.txt was added"):
        encode(texts, tmp_path / "out", tokenizer)


def test_text_that_changes_meanwhile_is_noticed(texts, tmp_path, monkeypatch):
    claim = encoding._claim

    def change_then_claim(*arguments: Any) -> Any:
        (texts / "4.txt").write_text("x")
        return claim(*arguments)

    monkeypatch.setattr(encoding, "_claim", change_then_claim)
    with pytest.raises(CorpusError, match=r"4\.txt: was changed while it was encoded"):
        encode(texts, tmp_path / "out")


def test_characters_a_tokenizer_lacks_are_named_with_their_file(texts, tmp_path):
    CharTokenizer("xyz").save(tmp_path / "xyz.json")
    with pytest.raises(CorpusError, match=r"0\.txt: from byte 0 on: characters: .* not in the alphabet"):
        encode(texts, tmp_path / "out", str(tmp_path / "xyz.json"))


def test_a_worker_that_dies_is_told(texts, tmp_path, capfd):
    found, _ = units.survey(texts, [texts / "0.txt"], None, False)
    with pytest.raises(CorpusError, match=r"a worker process ended.*fewer --workers"):
        list(units.encode_units(found * 2, 2, texts, tmp_path / "no tokenizer"))


def test_the_command_says_what_it_made_and_how_to_train(texts, tmp_path, capsys):
    for new in ("4,354 bytes", "0 bytes"):
        with pytest.raises(SystemExit) as end:
            main(["encode", str(texts), "--out", str(tmp_path / "out"), "--tokenizer", "char"])
        assert not end.value.code
        shown = capsys.readouterr().out
        assert "7 documents, 4,354 bytes of text: 4,017 tokens (uint16)" in shown
        assert f"encoded now: {new}" in shown
        assert f"labkit train --corpus {tmp_path / 'out'}" in shown


def test_the_command_ends_with_2_and_one_line_for_bad_text(tmp_path, capsys):
    (tmp_path / "a.txt").write_bytes(b"\xff\xff\xff")
    with pytest.raises(SystemExit) as end:
        main(["encode", str(tmp_path), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "labkit: " in capsys.readouterr().err
