"""The journal: sections renewed in place, the learner's bytes preserved, nothing half written."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labcourse import journal, log_experiment
from labcourse import log as log_module
from labcourse.lesson import Experiment, Lesson, Reflection
from labcourse.log import LOG
from labstudio.tables import markdown_table

SECTION = re.compile(rb"<!-- labkit:begin .*?<!-- labkit:end \S+ -->", re.S)


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    return tmp_path


def log(lesson: str = "03_mini_gpt", key: str = "training", body: str = "loss 1.90") -> Path:
    return log_module.log_section(lesson, key, "A run", body)


def test_a_new_file_opens_like_the_committed_one() -> None:
    root = Path(__file__).parents[2]
    for name, opening in log_module._OPENINGS.items():
        assert (root / name).read_text(encoding="utf-8").startswith(opening)


def test_a_section_is_replaced_in_place() -> None:
    path = log(body="first")
    path.write_text("above\n" + path.read_text() + "below\n")
    log(body="second")
    text = path.read_text()
    assert "first" not in text
    assert text.count("second") == 1
    assert text.startswith("above\n")
    assert text.endswith("-->\nbelow\n")


def test_writing_twice_changes_nothing() -> None:
    before = log().read_bytes()
    assert log().read_bytes() == before


def test_sections_stand_in_lesson_order() -> None:
    for lesson in ("03_mini_gpt", "01_embeddings", "02_attention", "10_more"):
        path = log(lesson, "a")
    path = log("02_attention", "b")
    found = re.findall(r"labkit:begin (\S+)", path.read_text())
    assert found == ["01_embeddings/a", "02_attention/a", "02_attention/b", "03_mini_gpt/a", "10_more/a"]


def test_edits_inside_a_section_are_kept_below_it_once() -> None:
    path = log(body="machine words")
    path.write_text(path.read_text().replace("machine words", "machine words, and mine"))
    log(body="new words")
    log(body="newer words")
    text = path.read_text()
    assert "newer words" in text.split("<!-- labkit:end")[0]
    kept = text.split("<!-- labkit:end")[1]
    assert kept.count("Your edits, kept (03_mini_gpt/training)") == 1
    assert "machine words, and mine" in kept


@pytest.fixture
def lesson(monkeypatch: pytest.MonkeyPatch) -> Lesson:
    """A lesson with one experiment and one reflection, instead of lesson 03."""
    texts = ["Why?", "More than {low}.", "Seed 0.", "{rows}", "{by_size[64]:.2f} of {share:.0%}", "Less."]
    made = Lesson(
        "03_mini_gpt", "Mini GPT", (), (),
        (Experiment("training", "first training", *texts),),
        (Reflection("Why does it work?", "Because of {loss:.2f} nats."),),
    )  # fmt: skip
    monkeypatch.setattr(journal, "find_lesson", lambda name: made)
    return made


def test_the_part_for_the_reader_is_made_once_and_never_again(lesson: Lesson) -> None:
    path = journal.write_answers(lesson.name, {"loss": 1.234})
    assert "### 1. Why does it work?\n\nBecause of 1.23 nats.\n" in path.read_text()
    assert path.read_text().count("### Yours") == 1
    path.write_text(path.read_text().replace("### Yours\n", "### Yours\nmy answer\n"))
    journal.write_answers(lesson.name, {"loss": 2})
    assert "### Yours\nmy answer\n" in path.read_text()
    path.write_text(path.read_text().replace("### Yours\nmy answer\n", ""))
    journal.write_answers(lesson.name, {"loss": 3})
    assert "### Yours" not in path.read_text()


def test_own_words_are_those_below_yours_of_that_lesson(lesson: Lesson) -> None:
    assert log_module.own_words(lesson.name) == 0
    path = journal.write_answers(lesson.name, {"loss": 2})
    assert log_module.own_words(lesson.name) == 0
    path.write_text(
        path.read_text()
        + "\nTwo words\n<!-- labkit:begin 04_x/answers -->\n<!-- labkit:end 04_x/answers -->\nnot mine"
    )
    assert log_module.own_words(lesson.name) == 2
    assert log_module.own_words("05_none") == 0


def test_an_experiment_has_its_parts_in_order_and_keeps_its_numbers(lesson: Lesson, out: Path) -> None:
    rows = [{"size": 64, "loss": 1.5}, {"size": 128, "loss": 1.25}]
    numbers = {"low": 1, "rows": rows, "by_size": {64: torch.tensor(1.5)}, "share": np.float64(0.125)}
    text = journal.log_experiment(lesson.name, "training", numbers).read_text()
    assert re.findall(r"^### (.*)", text, re.M) == list(lesson.experiments[0].parts)
    assert "| size | loss |\n| ---: | ---: |\n| 64 | 1.5 |" in text
    assert "1.50 of 12%" in text
    assert "notebooks/03_mini_gpt.ipynb" in text
    kept = json.loads((out / journal.RESULTS / "03_mini_gpt.training.json").read_text())
    assert kept["numbers"] == {"low": 1, "rows": rows, "by_size": {"64": 1.5}, "share": 0.125}
    assert kept["machine"] in text


def test_a_missing_number_and_an_unknown_experiment_are_named(lesson: Lesson, out: Path) -> None:
    with pytest.raises(ValueError, match="03_mini_gpt/training names 'low'"):
        journal.log_experiment(lesson.name, "training", {"rows": []})
    with pytest.raises(ValueError, match=r"no experiment 'trainign'\. It has: training"):
        journal.log_experiment(lesson.name, "trainign", {})
    numbers = {"low": object(), "rows": "", "by_size": {64: 1.0}, "share": 1.0}
    with pytest.raises(TypeError, match="which JSON cannot hold"):
        journal.log_experiment(lesson.name, "training", numbers)
    assert list(out.iterdir()) == []


def test_two_processes_write_the_log_at_once_and_nothing_is_lost(out: Path) -> None:
    code = (
        "import sys; from labcourse.log import log_section\n"
        "for n in range(15): log_section('03_mini_gpt', f'{sys.argv[1]}{n}', 'A run', 'text')"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, name]) for name in "ab"]
    assert [each.wait(timeout=120) for each in started] == [0, 0]
    assert (out / LOG).read_text().count("labkit:begin") == 30


def test_windows_line_ends_stay() -> None:
    path = log()
    path.write_bytes(b"mine\r\n" + path.read_bytes().replace(b"\n", b"\r\n"))
    log(body="two\nlines")
    log(lesson="01_embeddings")
    data = path.read_bytes()
    assert data.count(b"\n") == data.count(b"\r\n")
    assert b"kept" not in data  # line ends alone are not an edit


learner_text = st.binary(max_size=200).filter(lambda data: b"<!-- labkit:" not in data)


@given(above=learner_text, below=learner_text, body=st.text(st.characters(exclude_categories=["Cs"])))
def test_bytes_outside_sections_are_preserved(above: bytes, below: bytes, body: str, out: Path) -> None:
    path = out / LOG
    path.unlink(missing_ok=True)
    section = SECTION.search(log().read_bytes())
    assert section
    path.write_bytes(above + b"\n" + section[0] + b"\n" + below)
    log(body=body)
    head, _, rest = path.read_bytes().partition(b"<!-- labkit:begin")
    assert head == above + b"\n"
    assert rest.partition(b"<!-- labkit:end 03_mini_gpt/training -->")[2] == b"\n" + below


@given(text=learner_text)
def test_a_first_section_is_added_after_the_learners_text(text: bytes, out: Path) -> None:
    path = out / LOG
    path.write_bytes(text)
    log()
    assert path.read_bytes().startswith(text)


BEGIN = "<!-- labkit:begin 03_mini_gpt/training sha256=0123456789ab -->\n"
END = "<!-- labkit:end 03_mini_gpt/training -->\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BEGIN + "body\n", "a 'begin' or an 'end' line is missing"),
        (END, "a 'begin' or an 'end' line is missing"),
        (END + BEGIN, "do not pair up"),
        (BEGIN + BEGIN + END + END, "do not pair up"),
        ((BEGIN + END) * 2, "is there twice"),
        (BEGIN + "<!-- labkit:end 03_mini_gpt/other -->\n", "do not pair up"),
        (BEGIN + END.replace(" -->", ""), "a marker line was changed"),
        ("> " + BEGIN + END, "a marker line was changed"),
    ],
)
def test_damaged_markers_are_an_error_and_nothing_is_written(text: str, message: str, out: Path) -> None:
    path = out / LOG
    path.write_text(text)
    with pytest.raises(log_module.DamagedLogError, match=message):
        log()
    assert path.read_text() == text


@pytest.mark.parametrize("bad", ["", "a b", "a/b", "-->", "../x"])
def test_bad_names_are_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="must be letters, digits"):
        log(lesson=bad)
    with pytest.raises(ValueError, match="must be letters, digits"):
        log(key=bad)


def test_a_body_with_markers_is_refused(out: Path) -> None:
    with pytest.raises(ValueError, match="must not contain"):
        log(body=END)
    assert not (out / LOG).exists()


def test_a_crash_while_writing_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch, out: Path) -> None:
    before = log().read_bytes()

    def fail(*_: object) -> None:
        raise OSError("disk gone")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk gone"):
        log(body="never seen")
    assert (out / LOG).read_bytes() == before
    assert [file.name for file in out.glob("[!.]*")] == [LOG]
    assert [file.suffix for file in out.glob(".*")] == [".lock"]


def test_a_link_stays_a_link(out: Path) -> None:
    real = out / "elsewhere.md"
    real.write_text("mine\n")
    (out / LOG).symlink_to(real)
    log()
    assert (out / LOG).is_symlink()
    assert "loss 1.90" in real.read_text()


def test_tables() -> None:
    rows = [{"name": "a|b", "loss": 1.23456}, {"name": "c", "steps": 500}]
    assert markdown_table(rows).splitlines() == [
        "| name | loss | steps |",
        "| --- | ---: | ---: |",
        "| a\\|b | 1.235 |  |",
        "| c |  | 500 |",
    ]
    assert markdown_table([]) == ""


def entry(name: str = "03_mini_gpt/first-training", **changed: object) -> str:
    parts: dict = {"question": "Does it learn?", "expected": "Below 2.5.", "found": "2.07 nats."} | changed
    return log_experiment(name, **parts).read_text()


def test_an_entry_is_a_question_an_expectation_and_what_was_found() -> None:
    text = entry(table=[{"step": 100, "loss": 2.5}, {"step": 400, "loss": 2.07}])
    assert (
        "## Lesson 03: First training\n\n**Question.** Does it learn?\n\n**Expected.** Below 2.5.\n\n" in text
    )
    assert "**Found.** 2.07 nats.\n\n| step | loss |\n" in text
    assert entry(found="1.99 nats.").count("**Found.** 1.99 nats.") == 1
    assert "![2.07 nats.](visualizations/03_loss.png)" in entry(figure="03_loss.png")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"question": " "}, "03_mini_gpt/first-training has no 'question'"),
        ({"found": "word " * 120}, "has 125 words; an entry has at most 120"),
        ({"table": [{"a": 1}], "figure": "a.png"}, "a table and a figure"),
        ({"name": "first-training"}, "key=''"),
    ],
)
def test_an_entry_that_is_not_whole_is_refused(out: Path, changed: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        entry(**changed)
    assert not (out / LOG).exists()
