"""What the lessons show of their exercises is what labcourse has; stubs run and are not attempted."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from nbformat import NotebookNode

from labcourse.check import judge
from labcourse.lesson import Exercise, Lesson, exercises, find_lesson, lessons

ROOT = Path(__file__).parents[2]


def _script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("write_exercises", ROOT / "scripts" / "write_exercises.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _notebook(lesson: Lesson) -> NotebookNode:
    return nbformat.read(lesson.notebook, as_version=4)


def _cell(exercise: Exercise, part: str) -> NotebookNode:
    cells = _notebook(find_lesson(exercise.lesson)).cells
    (found,) = [cell for cell in cells if part in cell.source]
    return found


def _printed(cell: NotebookNode) -> str:
    return "".join(output.get("text", "") for output in cell.outputs)


def test_every_notebook_has_its_lesson() -> None:
    assert list(lessons()) == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("lesson", lessons().values(), ids=lambda lesson: lesson.name)
def test_a_lesson_has_four_exercises_or_more_of_several_kinds(lesson: Lesson) -> None:
    assert len(lesson.exercises) >= 4
    assert len({each.kind for each in lesson.exercises}) >= 3
    assert lesson.exercises[0].minutes <= 10


@pytest.mark.parametrize("lesson", lessons().values(), ids=lambda lesson: lesson.name)
def test_the_page_shows_what_the_exercises_say(lesson: Lesson) -> None:
    notebook = _notebook(lesson)
    before = nbformat.writes(notebook)
    for exercise in lesson.exercises:
        _script().renew(notebook, exercise)
    assert nbformat.writes(notebook) == before, "run: python scripts/write_exercises.py"


@pytest.mark.parametrize("exercise", exercises().values(), ids=lambda exercise: exercise.name)
def test_the_stub_runs_and_is_not_attempted(exercise: Exercise) -> None:
    printed = _printed(_cell(exercise, f"check.{exercise.name}("))
    assert f"{exercise}: not attempted yet." in printed


@pytest.mark.parametrize("exercise", exercises().values(), ids=lambda exercise: exercise.name)
def test_the_text_has_folded_hints_in_steps(exercise: Exercise) -> None:
    text = _cell(exercise, exercise.heading + "\n").source
    hints = re.findall(r"<details><summary>Hint (\d)</summary>", text)
    assert hints == [str(number) for number in range(1, len(hints) + 1)]
    assert len(hints) >= 2


@pytest.mark.parametrize("lesson", lessons().values(), ids=lambda lesson: lesson.name)
def test_a_lesson_ends_with_its_checklist(lesson: Lesson) -> None:
    last = [cell for cell in _notebook(lesson).cells if cell.cell_type == "code"][-1]
    assert "progress.show(" in last.source
    printed = _printed(last).splitlines()
    total = len(lesson.checklist) + len(lesson.exercises) + 1
    assert printed[0].endswith(f"{len(lesson.checklist)} of {total} done")
    assert [line[:3] for line in printed[1:]] == ["[x]"] * len(lesson.checklist) + ["[ ]"] * (
        len(lesson.exercises) + 1
    )


def test_an_unknown_exercise_is_named() -> None:
    with pytest.raises(AttributeError, match="no exercise 'decoed'"):
        judge("decoed", print)


def test_unknown_lessons_are_named() -> None:
    with pytest.raises(ValueError, match="no lesson '13'"):
        find_lesson("13")
