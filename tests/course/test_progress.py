"""Progress: filled from what was done, kept through damage and crashes, shown by the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labcourse import check, log, progress
from labcourse.check import judge
from labcourse.lesson import Item, Lesson, exercises, find_lesson, lessons
from labcourse.solutions import solution
from labstudio.cli import main


@pytest.fixture(autouse=True)
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LABKIT_OUT", str(tmp_path))
    monkeypatch.delenv("LABKIT_RUNS", raising=False)
    return tmp_path


@pytest.fixture
def lesson(monkeypatch: pytest.MonkeyPatch) -> Lesson:
    """Lesson 02 with a checklist that asks for one thing of each kind."""
    real = find_lesson("02")
    items = (
        Item("It trains", fact="trained"),
        Item("Figures", figures=("02_a.png", "02_b.png")),
        Item("Documented", log=("mask",)),
        Item("Answered", journal="answers"),
    )
    made = Lesson(real.name, real.title, real.exercises, items, real.experiments, real.reflections)
    monkeypatch.setattr(progress, "find_lesson", lambda name: made)
    return made


def kept(out: Path) -> dict[str, dict[str, dict[str, object]]]:
    return json.loads((out / progress.FILE).read_text())


def test_tries_are_counted_and_the_first_right_answer_stays(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = find_lesson("02").exercises[0].name
    ask = getattr(check, name)

    def stub(*arguments: object) -> None:
        return None

    ask(stub)
    assert "not attempted yet" in capsys.readouterr().out
    assert not (out / progress.FILE).exists()
    ask(lambda *arguments: "nonsense")
    assert kept(out)["exercises"][name] == {"tries": 1}
    ask(solution(name))
    first = kept(out)["exercises"][name]
    assert first["tries"] == 2
    ask(lambda *arguments: "nonsense")
    assert kept(out)["exercises"][name] == {"tries": 3, "right": first["right"]}
    assert progress.solved(find_lesson("02")) == {name}


def test_nothing_counts_before_the_lesson_ran_even_where_files_lie_there(lesson: Lesson, out: Path) -> None:
    (out / "visualizations").mkdir()
    for figure in ("02_a.png", "02_b.png"):
        (out / "visualizations" / figure).touch()
    assert not any(line.done for line in progress.checklist(lesson))
    assert progress.last_run(lesson) is None


def test_the_checklist_is_filled_from_what_is_there(
    lesson: Lesson, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / "visualizations").mkdir()
    (out / "visualizations" / "02_a.png").touch()
    progress.show(lesson.name, trained=True)
    total = 4 + len(lesson.exercises) + 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"Lesson 02, Attention: 1 of {total} done"
    assert printed[1:5] == [
        "[x] It trains",
        "[ ] Figures: missing visualizations/02_b.png",
        "[ ] Documented: missing mask in experiments_log.md",
        "[ ] Answered: missing answers in learning_journal.md",
    ]
    (out / "visualizations" / "02_b.png").touch()
    log.log_section(lesson.name, "mask", "A mask", "text")
    path = log.write_section(log.JOURNAL, lesson.name, "answers", "A", "b", after_first=log.YOURS)
    path.write_text(path.read_text() + "my own words")
    for exercise in lesson.exercises:
        progress.record(exercise, passed=True)
    progress.show(lesson.name, trained=True)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"Lesson 02, Attention: {total} of {total} done"
    assert all(line.startswith("[x] ") and ":" not in line for line in printed[1:])
    progress.show(lesson.name)  # as after a restart, when nothing is known any more
    assert capsys.readouterr().out.splitlines() == printed
    progress.show(lesson.name, trained=False)
    assert "[ ] It trains: the lesson's last run says no" in capsys.readouterr().out


def test_facts_must_be_those_of_the_checklist(lesson: Lesson, out: Path) -> None:
    with pytest.raises(ValueError, match=r"asks for \['trained'\], not \['tarined'\]"):
        progress.show(lesson.name, tarined=True)
    assert not (out / progress.FILE).exists()


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 2, "exercises": {}, "lessons": {}}', "{}"])
def test_a_damaged_file_is_named_and_left_alone(
    damage: str, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (out / progress.FILE).write_text(damage)
    exercise = next(iter(exercises().values()))
    with pytest.raises(ValueError, match=r"progress\.json is not a progress file of this version"):
        progress.record(exercise, passed=True)
    with pytest.raises(ValueError, match="not a progress file"):
        getattr(check, exercise.name)(solution(exercise.name))
    assert "right" in capsys.readouterr().out  # the verdict comes first
    assert (out / progress.FILE).read_text() == damage
    with pytest.raises(SystemExit) as stopped:
        main(["progress"])
    assert stopped.value.code == 2
    assert "Repair it, or move it away" in capsys.readouterr().err


def test_two_kernels_count_at_once_and_nothing_is_lost(out: Path) -> None:
    names = list(exercises())[:2]
    code = (
        "import sys; from labcourse import progress; from labcourse.lesson import exercises\n"
        "for _ in range(20): progress.record(exercises()[sys.argv[1]], passed=False)"
    )
    started = [subprocess.Popen([sys.executable, "-c", code, name]) for name in (*names, names[0])]
    assert [each.wait(timeout=120) for each in started] == [0, 0, 0]
    assert {name: entry["tries"] for name, entry in kept(out)["exercises"].items()} == {
        names[0]: 40,
        names[1]: 20,
    }


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["progress", *arguments])
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_the_command_shows_all_lessons_and_what_comes_next(
    out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = list(lessons().values())[:2]
    printed = run(capsys=capsys)
    assert [line[:2] for line in printed.splitlines()[1:10]] == [each.number for each in lessons().values()]
    assert f"Next: notebooks/{first.name}.ipynb" in printed

    progress.show(first.name, **{item.fact: True for item in first.checklist if item.fact})
    (out / "runs" / "mine").mkdir(parents=True)
    (out / "runs" / "mine" / "config.json").touch()
    printed = run(capsys=capsys)
    assert "Trainings kept: 1" in printed
    assert f"Next: lesson {first.number}, exercise 1: {first.exercises[0].title}" in printed

    for exercise in first.exercises:
        progress.record(exercise, passed=True)
    printed = run(capsys=capsys)
    assert f"{len(first.exercises)} of {len(first.exercises)}" in printed.splitlines()[1]
    assert f"Next: notebooks/{second.name}.ipynb" in printed


def test_the_command_shows_one_lesson_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("02", capsys=capsys) == progress.describe(find_lesson("02_attention")) + "\n"
    with pytest.raises(SystemExit) as stopped:
        main(["progress", "twelve"])
    assert stopped.value.code == 2
    assert "There is no lesson 'twelve'" in capsys.readouterr().err


def test_reading_progress_needs_no_torch() -> None:
    code = "import sys; from labcourse.cli import progress; progress(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_an_answer_that_is_no_function_is_told_so() -> None:
    name = next(iter(exercises()))
    assert f"check.{name}(your_function)" in judge(name, 3).message
