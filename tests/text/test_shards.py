"""Text larger than memory: the shards hold the ids of the whole text, whatever happened on the way."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from labkit.cli import main
from labkit.text import (
    CharTokenizer,
    Corpus,
    CorpusError,
    GPT2Tokenizer,
    Tokenizer,
    asset_path,
    encode_folder,
    encoding,
    open_shards,
    train_bpe,
    units,
)
from labkit.text.cleaning import read_text
from labkit.text.loading import _read_documents

WORDS = "A word, and another.\n\nThen a line\r\nand more of it -- naïve, 東京 and so on.\n"


WHITE = ["\n", "\r\n", "\r", " ", "  ", "\t", "\n\n", " \n", "\xa0", "\u3000", "\u2028", "\x85", "\x1c"]
INK = ["a", "be", "it's", "'", "42", "é", "à", "東京", "…", "-", "\ufeff", "ß", "<|endoftext|>"]


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Seven documents in two folders, one of them several pieces long."""
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    for number in range(5):
        (folder / f"{number}.txt").write_bytes((WORDS * (number + 1)).encode())
    (folder / "more" / "long.md").write_bytes(b"\xef\xbb\xbf\r\n\n" + (WORDS * 40).encode() + b"\n\n")
    (folder / "more" / "short.txt").write_text("x")
    (folder / "left out.pdf").write_bytes(b"\xff")
    (folder / ".hidden.txt").write_bytes(b"\xff")
    return folder


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "BLOCK", 256)


def encode(
    source: Path, out: Path, tokenizer: Any = "char", workers: int = 1, shard_tokens: int = 797
) -> Any:
    return encode_folder(
        source, out, tokenizer, workers=workers, shard_tokens=shard_tokens, progress=False
    ).shards


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_corpus(folder: Path) -> Corpus:
    return Corpus("all", train=tuple(_read_documents(folder)))


# The ids


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, Tokenizer]:
    return {
        "gpt2": GPT2Tokenizer(),
        # learned from runs of white space, so that a run cut in two has other ids
        "bpe": train_bpe("a".join(map("".join, product(WHITE, repeat=3))), 500, progress=False),
        "char": CharTokenizer({chr(code) for code in range(0x3100)} | {*WORDS, "\ufeff"}),
    }


@pytest.mark.parametrize("name", ["gpt2", "bpe", "char"])
def test_the_ids_are_those_of_the_corpus(name, texts, tmp_path, tokenizers, small_pieces):
    shards = encode(texts, tmp_path / "out", tokenizers[name])
    assert shards[:].tolist() == as_corpus(texts).encode(tokenizers[name]).tolist()
    assert shards.dtype == np.uint16
    assert shards.tokenizer().fingerprint == tokenizers[name].fingerprint


@pytest.mark.parametrize("name", ["gpt2", "char"])
def test_a_play_in_pieces_has_the_ids_of_the_whole(name, tmp_path, tokenizers, monkeypatch):
    monkeypatch.setattr(units, "BLOCK", 2**12)
    play = asset_path("shakespeare") / "tragedies" / "hamlet.md"
    shards = encode(play, tmp_path / "out", tokenizers[name], shard_tokens=10**5)
    whole = tokenizers[name].encode(read_text(play).strip("\n"))
    assert shards[:].tolist() == [*whole, tokenizers[name].eos_id]


@settings(max_examples=150)
@given(parts=st.lists(st.sampled_from(WHITE + INK), min_size=1, max_size=60))
def test_pieces_cut_before_white_space_have_the_ids_of_the_whole(parts, tmp_path, tokenizers):
    text = "".join(parts)
    assume(text.removeprefix("\ufeff").strip())
    file = tmp_path / "text.txt"
    file.write_bytes(raw := text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(units, "BLOCK", 24)
        found, _ = units.survey(tmp_path, [file], None, False)
    spans = [span for unit in found for span in unit]
    assume(all(units._BREAK.match(raw, span.start) for span in spans[1:]))
    for tokenizer in tokenizers.values():
        ids = np.concatenate([units._encode_unit(tmp_path, tokenizer, unit).ids for unit in found])
        assert ids.tolist() == [*tokenizer.encode(read_text(file).strip("\n")), tokenizer.eos_id]


@pytest.mark.parametrize("character", ["x", "é", "東", "\U0001f600"])
def test_text_without_white_space_is_cut_between_characters(character, tmp_path, small_pieces):
    (tmp_path / "one.txt").write_text("-" + character * 1000, encoding="utf-8")
    shards = encode(tmp_path / "one.txt", tmp_path / "out")
    assert shards.tokenizer().decode(shards[:-1]) == "-" + character * 1000


def test_documents_begin_where_they_say(texts, tmp_path, small_pieces):
    shards = encode(texts, tmp_path / "out")
    ends = [*shards.documents[1:], len(shards)]
    names = [json.loads(line)["name"] for line in (tmp_path / "out" / "sources.jsonl").open()]
    assert names == ["0.txt", "1.txt", "2.txt", "3.txt", "4.txt", "more/long.md", "more/short.txt"]
    for begin, end, document in zip(shards.documents, ends, as_corpus(texts).documents, strict=True):
        assert shards.tokenizer().decode(shards[begin : end - 1]) == document.text


def test_a_document_at_the_border_of_two_shards_belongs_to_the_second(texts, tmp_path):
    border = int(encode(texts, tmp_path / "out").documents[1])
    whole = encode(texts, tmp_path / "cut", shard_tokens=border).documents
    for number, file in enumerate(sorted((tmp_path / "cut").glob("documents-*.npy"))):
        here = (whole >= number * border) & (whole < (number + 1) * border)
        assert np.load(file).tolist() == whole[here].tolist()


def test_bpe_is_learned_from_the_text(tmp_path):
    text = "\n".join(f"{number:x} {number * 7919:x}" for number in range(12_000))
    (tmp_path / "numbers.txt").write_text(text)
    shards = encode(tmp_path / "numbers.txt", tmp_path / "out", "bpe", shard_tokens=10**6)
    assert shards.tokenizer().fingerprint == train_bpe(text, 4096, progress=False).fingerprint


def test_a_large_vocabulary_takes_four_bytes(texts, tmp_path):
    tokenizer = CharTokenizer({chr(code) for code in range(0x10000, 0x20000)} | {*WORDS, "x"})
    shards = encode(texts, tmp_path / "out", tokenizer)
    assert shards.dtype == np.uint32
    assert shards[:].tolist() == as_corpus(texts).encode(tokenizer).tolist()


# Reading


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


# Stopping and going on


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
                (out / "tokenizer.json.part_of.part").touch()  # as saving a tokenizer may leave
            encode(texts, out, shard_tokens=1500)
            assert content(out) == expected


def test_finished_shards_are_kept(texts, tmp_path, small_pieces, monkeypatch):
    out = tmp_path / "out"
    fail_after(monkeypatch, 12, Killed())
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
    command = [sys.executable, "-m", "labkit", "encode", str(texts), *options]
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


# Bad input


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


# The command


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
