"""Text to ids on disk: stopped at any moment it loses nothing, and what is wrong is named."""

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
import pytest
from encoded import WORDS, as_corpus, content, encode
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import labkit.text.encode as module
from labkit.text import (
    CharTokenizer,
    CorpusError,
    EncodedText,
    GPT2Tokenizer,
    Tokenizer,
    TokenStream,
    asset_path,
    encode_folder,
    train_bpe,
)
from labkit.text.cleaning import read_text
from labstudio.cli import main

WHITE = ["\n", "\r\n", "\r", " ", "  ", "\t", "\n\n", " \n", "\xa0", "\u3000", "\u2028", "\x85", "\x1c"]
INK = ["a", "be", "it's", "'", "42", "é", "à", "東京", "…", "-", "\ufeff", "ß", "<|endoftext|>"]


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
    encoded = encode(texts, tmp_path / "out", tokenizers[name])
    assert encoded.ids.tolist() == as_corpus(texts).encode(tokenizers[name]).tolist()
    assert encoded.ids.dtype == np.uint16
    assert encoded.tokenizer().fingerprint == tokenizers[name].fingerprint


@pytest.mark.parametrize("name", ["gpt2", "char"])
def test_a_play_in_pieces_has_the_ids_of_the_whole(name, tmp_path, tokenizers, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 2**12)
    play = asset_path("shakespeare") / "tragedies" / "hamlet.md"
    whole = tokenizers[name].encode(read_text(play).strip("\n"))
    assert encode(play, tmp_path / "out", tokenizers[name]).ids.tolist() == [*whole, tokenizers[name].eos_id]


@settings(max_examples=150)
@given(parts=st.lists(st.sampled_from(WHITE + INK), min_size=1, max_size=60))
def test_pieces_cut_before_white_space_have_the_ids_of_the_whole(parts, tmp_path, tokenizers):
    text = "".join(parts)
    assume(text.removeprefix("\ufeff").strip())
    file = tmp_path / "text.txt"
    file.write_bytes(raw := text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 24)
        starts = [start for start, _, _ in module._pieces(file)]
        groups = list(module._groups(tmp_path, [module._survey(file, "text.txt", None)]))
    assume(all(module._BREAK.match(raw, start) for start in starts[1:]))
    for tokenizer in tokenizers.values():
        ids = np.concatenate([module._encode_group(tokenizer, group)[0] for group in groups])
        assert ids.tolist() == [*tokenizer.encode(read_text(file).strip("\n")), tokenizer.eos_id]


@pytest.mark.parametrize("character", ["x", "é", "東", "\U0001f600"])
def test_text_without_white_space_is_cut_between_characters(character, tmp_path, small_pieces):
    (tmp_path / "one.txt").write_text("-" + character * 1000, encoding="utf-8")
    encoded = encode(tmp_path / "one.txt", tmp_path / "out")
    assert encoded.tokenizer().decode(encoded.ids[:-1]) == "-" + character * 1000


def test_documents_begin_where_they_say(texts, tmp_path, small_pieces):
    encoded = encode(texts, tmp_path / "out")
    ends = [*encoded.documents[1:], len(encoded.ids)]
    names = [json.loads(line)["name"] for line in (tmp_path / "out" / "sources.jsonl").open()]
    assert names == ["0.txt", "1.txt", "2.txt", "3.txt", "4.txt", "more/long.md", "more/short.txt"]
    for begin, end, document in zip(encoded.documents, ends, as_corpus(texts).documents, strict=True):
        assert encoded.tokenizer().decode(encoded.ids[begin : end - 1]) == document.text


def test_bpe_is_learned_from_the_text(tmp_path):
    text = "\n".join(f"{number:x} {number * 7919:x}" for number in range(12_000))
    (tmp_path / "numbers.txt").write_text(text)
    encoded = encode(tmp_path / "numbers.txt", tmp_path / "out", "bpe")
    assert encoded.tokenizer().fingerprint == train_bpe(text, 4096, progress=False).fingerprint


def test_bpe_is_learned_from_some_of_a_long_text(texts, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 24)
    long = texts / "more" / "long.md"
    monkeypatch.setattr(module, "train_bpe", lambda parts, *_, **__: parts)
    parts = module._build_tokenizer("bpe", texts, [module._survey(long, "more/long.md", None)], None, False)
    assert 4 <= len(parts) <= 16
    assert all(part in read_text(long) for part in parts)


def test_a_large_vocabulary_takes_four_bytes(texts, tmp_path):
    tokenizer = CharTokenizer({chr(code) for code in range(0x10000, 0x20000)} | {*WORDS, "x"})
    encoded = encode(texts, tmp_path / "out", tokenizer)
    assert encoded.ids.dtype == np.uint32
    assert encoded.ids.tolist() == as_corpus(texts).encode(tokenizer).tolist()


def test_ids_are_read_from_the_file_where_a_crop_falls(texts, tmp_path):
    encoded = encode(texts, tmp_path / "out")
    assert isinstance(encoded.ids, np.memmap)
    stream = TokenStream(encoded.ids, 11, 4, seed=1)
    assert np.shares_memory(stream._crops, encoded.ids)
    for got, want in zip(stream.batch(2), TokenStream(np.array(encoded.ids), 11, 4, 1).batch(2), strict=True):
        assert got.tolist() == want.tolist()


class Killed(BaseException):
    """Nothing in the library handles it, as with a power cut."""


def fail_at(patch: pytest.MonkeyPatch, moment: int, error: BaseException, *, after: bool = False) -> None:
    """The moment-th write that is flushed or put in its place, and all later ones, fail."""
    calls = 0

    def failing(write: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > moment + 1 or (calls == moment + 1 and not after):
                raise error
            result = write(*arguments)
            if calls == moment + 1:
                raise error
            return result

        return call

    patch.setattr(os, "fsync", failing(os.fsync))
    patch.setattr(Path, "replace", failing(Path.replace))


def test_stopped_at_any_write_it_goes_on_to_the_same_bytes(texts, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 1500)
    encode(texts, tmp_path / "whole")
    expected = content(tmp_path / "whole")
    assert sorted(expected) == ["documents.bin", "encoded.json", "ids.bin", "sources.jsonl", "tokenizer.json"]
    moment = 0
    while True:
        for after in (False, True):
            out = tmp_path / f"{moment} {after}"
            with monkeypatch.context() as patch:
                fail_at(patch, moment, Killed(), after=after)
                try:
                    encode(texts, out)
                except Killed:
                    pass
                else:
                    assert moment > 15  # past the last write
                    return
            if (out / "progress.jsonl").exists() and not (out / "encoded.json").exists():
                with (out / "ids.bin").open("ab") as ids, (out / "progress.jsonl").open("ab") as progress:
                    ids.write(b"?" * 5)  # as a crash may leave what was not yet flushed
                    progress.write(b"[99" if after else b"\0\0\0\n")
            encode(texts, out)
            assert content(out) == expected
        moment += 1


def test_finished_groups_are_kept(texts, tmp_path, small_pieces, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at(patch, 30, Killed())
        with pytest.raises(Killed):
            encode(texts, out)
    finished = len((out / "progress.jsonl").read_text().splitlines()) - 1
    assert finished > 5
    groups: list[Any] = []
    whole = module._encode_group
    monkeypatch.setattr(module, "_encode_group", lambda *group: groups.append(group) or whole(*group))
    encoded, new_bytes = encode_folder(texts, out, "char", workers=1, progress=False)
    assert 0 < new_bytes == sum(part.source_bytes for _, group in groups for part in group)
    assert new_bytes < encoded.source_bytes
    assert encode_folder(texts, out, "char", workers=1, progress=False)[1] == 0


def test_a_full_disk_is_named_and_loses_nothing(texts, tmp_path, small_pieces, monkeypatch):
    encode(texts, tmp_path / "whole")
    for moment in (0, 3, 9, 14, 25):
        out = tmp_path / f"full {moment}"
        with monkeypatch.context() as patch:
            fail_at(patch, moment, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(CorpusError, match=r"full .*No space left on device.*same command again"):
                encode(texts, out)
        encode(texts, out)
        assert content(out) == content(tmp_path / "whole")


def test_ids_lost_since_are_made_again(texts, tmp_path, small_pieces, monkeypatch):
    encode(texts, tmp_path / "whole")
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        fail_at(patch, 40, Killed())
        with pytest.raises(Killed):
            encode(texts, out)
    assert (out / "ids.bin").stat().st_size > 3001
    os.truncate(out / "ids.bin", 3001)
    encode(texts, out)
    assert content(out) == content(tmp_path / "whole")


def test_the_number_of_workers_changes_no_byte(texts, tmp_path, small_pieces):
    encode(texts, tmp_path / "one", workers=1)
    encode(texts, tmp_path / "three", workers=3)
    assert content(tmp_path / "one") == content(tmp_path / "three")


@pytest.mark.long
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(tmp_path):
    plays = "\n\n".join(read_text(path) for path in sorted(asset_path("shakespeare").rglob("*.md")))
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(3):
        (texts / f"{number}.txt").write_text(f"copy {number}\n" + plays, encoding="utf-8")
    options = ["--out", str(tmp_path / "out"), "--workers", "2"]
    command = [sys.executable, "-m", "labstudio", "encode", str(texts), *options]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ids, end = tmp_path / "out" / "ids.bin", time.monotonic() + 60
    while running.poll() is None and not (ids.exists() and ids.stat().st_size):
        assert time.monotonic() < end
        time.sleep(0.001)
    running.send_signal(signal.SIGKILL)
    running.wait()
    with pytest.raises(CorpusError, match=r"is not finished\. Run the same `labkit encode` again"):
        EncodedText(tmp_path / "out")

    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    encode(texts, tmp_path / "whole", "gpt2")
    assert content(tmp_path / "out") == content(tmp_path / "whole")


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
        ({"tokenizer": "words"}, "tokenizer 'words' is neither char, bpe or gpt2 nor a file"),
    ],
)
def test_bad_arguments_are_named(options, message, texts, tmp_path):
    with pytest.raises(CorpusError, match=message):
        encode(texts, tmp_path / "out", **options)


def test_a_source_or_target_that_cannot_be_is_named(texts, tmp_path):
    with pytest.raises(CorpusError, match="nowhere does not exist"):
        encode(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(CorpusError, match=r"cannot be made a folder \(File exists\)"):
        encode(texts, texts / "0.txt")
    with pytest.raises(CorpusError, match=r"texts: is not empty \(it holds \.hidden\.txt\) and was not made"):
        encode(texts, texts)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "progress.jsonl").write_text("{}\n")
    with pytest.raises(CorpusError, match=r"progress\.jsonl: is damaged, or was not written by this version"):
        encode(texts, tmp_path / "out")


def test_another_tokenizer_is_refused(texts, tmp_path):
    encode(texts, tmp_path / "out")
    before = content(tmp_path / "out")
    with pytest.raises(CorpusError, match="was begun with another tokenizer"):
        encode(texts, tmp_path / "out", CharTokenizer(WORDS + "x*"))
    assert content(tmp_path / "out") == before


def test_changed_text_is_refused_by_name(texts, tmp_path):
    tokenizer = CharTokenizer(WORDS + "x")
    encode(texts, tmp_path / "out", tokenizer)
    old = (texts / "1.txt").read_bytes()
    (texts / "1.txt").write_bytes(b"Another " + old)
    with pytest.raises(CorpusError, match=r"begun with other text; 1\.txt is not as it was"):
        encode(texts, tmp_path / "out", tokenizer)
    (texts / "1.txt").unlink()
    with pytest.raises(CorpusError, match=r"begun with other text; 1\.txt is not as it was"):
        encode(texts, tmp_path / "out", tokenizer)
    (texts / "1.txt").write_bytes(old)
    (texts / "5.txt").write_bytes(old)
    with pytest.raises(CorpusError, match=r"begun with other text; 5\.txt is not as it was"):
        encode(texts, tmp_path / "out", tokenizer)


def test_text_that_changes_meanwhile_is_noticed(texts, tmp_path, monkeypatch):
    claim = module._claim

    def change_then_claim(*arguments: Any) -> Any:
        (texts / "4.txt").write_text("x")
        return claim(*arguments)

    monkeypatch.setattr(module, "_claim", change_then_claim)
    with pytest.raises(CorpusError, match=r"4\.txt: was changed while it was encoded"):
        encode(texts, tmp_path / "out")


def test_characters_a_tokenizer_lacks_are_named_with_their_file(texts, tmp_path):
    CharTokenizer("xyz").save(tmp_path / "xyz.json")
    with pytest.raises(CorpusError, match=r"0\.txt: from byte 0 on: characters: .* not in the alphabet"):
        encode(texts, tmp_path / "out", str(tmp_path / "xyz.json"))


def edit(path: Path, **changes: Any) -> None:
    entries = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in entries.items() if value is not None}) + "\n")


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("ids.bin", Path.unlink, r"ids\.bin: is missing or not 42 bytes long\. Copy the folder again"),
        ("ids.bin", lambda path: os.truncate(path, 41), r"ids\.bin: is missing or not 42 bytes long"),
        ("ids.bin", lambda path: path.write_bytes(b"?" * 42), r"ids\.bin or documents\.bin is damaged"),
        ("documents.bin", Path.unlink, r"documents\.bin: is missing or not 8 bytes long"),
        ("documents.bin", lambda path: path.write_bytes(b"?" * 8), r"ids\.bin or documents\.bin is damaged"),
        ("encoded.json", Path.unlink, r"was not made by `labkit encode`; it has no encoded\.json"),
        ("encoded.json", lambda path: path.write_text("{"), r"encoded\.json: is damaged"),
        ("encoded.json", lambda path: path.write_text("[]\n"), r"encoded\.json: is damaged"),
        ("encoded.json", lambda path: path.write_text('{"format": "x"}\n'), "not written by this version"),
        ("encoded.json", lambda path: edit(path, dtype=None), r"encoded\.json: is damaged \(KeyError"),
        ("encoded.json", lambda path: edit(path, dtype="<u3"), r"encoded\.json: is damaged \(TypeError"),
        ("encoded.json", lambda path: edit(path, tokens={}), r"encoded\.json: is damaged \(TypeError"),
        ("encoded.json", lambda path: edit(path, tokens=20), r"ids\.bin: is missing or not 40 bytes long"),
        ("tokenizer.json", lambda path: CharTokenizer("abc").save(path), "did not make these ids"),
        ("tokenizer.json", Path.unlink, r"tokenizer\.json: cannot be read"),
    ],
)
def test_a_damaged_folder_is_named(name, change, message, tmp_path):
    (tmp_path / "text.txt").write_text("twenty letters here!")
    encode(tmp_path / "text.txt", tmp_path / "out")
    change(tmp_path / "out" / name)
    with pytest.raises(ValueError, match=message):
        EncodedText(tmp_path / "out").tokenizer()


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
