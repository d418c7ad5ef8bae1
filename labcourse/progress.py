"""What of the course is done, as the lessons and checks saw it; kept in progress.json.

The file holds, for each exercise, how often it was tried and when it was first right, and for each lesson
when it was last run to its end, in which profile, and what it said of itself.  Figures, log and journal are
looked at when asked.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from labcourse.lesson import Exercise, Item, Lesson, find_lesson
from labcourse.log import JOURNAL, LOG, has_section, own_words
from labkit.io import locked, output_dir, write_text_atomically

FILE = "progress.json"
_EMPTY: dict[str, Any] = {"version": 1, "exercises": {}, "lessons": {}}


@dataclass(frozen=True)
class Line:
    """A line of a checklist; missing says what is still to do."""

    text: str
    done: bool
    missing: str = ""

    def __str__(self) -> str:
        return f"[{'x' if self.done else ' '}] {self.text}{f': {self.missing}' if self.missing else ''}"


def record(exercise: Exercise, *, passed: bool) -> None:
    """Count a try at an exercise, and remember when it was first right."""
    with _changing() as kept:
        entry = kept["exercises"].setdefault(exercise.name, {"tries": 0})
        entry["tries"] += 1
        if passed:
            entry.setdefault("right", _now())


def show(name: str, **facts: bool) -> None:
    """The last cell of a lesson: write down that it ran to its end, and print its checklist.

    facts: what the lesson found out about itself, by the names that its checklist uses; without any, the
    checklist is only printed, as it was when the lesson last ran.
    Raises ValueError for facts that the checklist does not ask for, or asks for in vain.
    """
    lesson = find_lesson(name)
    asked = {item.fact for item in lesson.checklist if item.fact}
    if asked and not facts:
        print(describe(lesson))
        return
    if asked != set(facts):
        raise ValueError(
            f"progress: the checklist of {lesson.name} asks for {sorted(asked)}, not {sorted(facts)}."
        )
    with _changing() as kept:
        kept["lessons"][lesson.name] = {
            "finished": _now(),
            "profile": os.environ.get("LABKIT_PROFILE", "lesson"),
            "facts": {fact: bool(seen) for fact, seen in facts.items()},
        }
    print(describe(lesson))


def describe(lesson: Lesson) -> str:
    """A lesson's checklist as text, what is done marked with an x."""
    lines = checklist(lesson)
    done = sum(line.done for line in lines)
    title = f"Lesson {lesson.number}, {lesson.title}: {done} of {len(lines)} done"
    return "\n".join([title, *map(str, lines)])


def checklist(lesson: Lesson) -> list[Line]:
    """What the lesson asks for, its exercises, and the reader's own words."""
    kept = _read()
    ran = kept["lessons"].get(lesson.name)
    lines = [_judged(item, lesson, ran) for item in lesson.checklist]
    for exercise in lesson.exercises:
        entry = kept["exercises"].get(exercise.name, {"tries": 0})
        state = "" if "right" in entry else "not right yet" if entry["tries"] else "not attempted yet"
        lines.append(Line(str(exercise), "right" in entry, state))
    words = own_words(lesson.name)
    missing = f'write below "Yours" in {JOURNAL}' if not words else ""
    return [*lines, Line("Your own answers to the reflection questions", bool(words), missing)]


def last_run(lesson: Lesson) -> dict[str, Any] | None:
    """When the lesson was last run to its end ("finished", "profile", "facts"); None if never."""
    found: dict[str, Any] | None = _read()["lessons"].get(lesson.name)
    return found


def solved(lesson: Lesson) -> set[str]:
    """The names of the exercises that were right once."""
    kept = _read()["exercises"]
    return {each.name for each in lesson.exercises if "right" in kept.get(each.name, {})}


def _judged(item: Item, lesson: Lesson, ran: dict[str, Any] | None) -> Line:
    if ran is None:
        return Line(item.text, False, "the lesson was not run to its end here")
    if item.fact and not ran["facts"].get(item.fact):
        return Line(item.text, False, "the lesson's last run says no")
    paths = [Path("visualizations") / name for name in item.figures]
    missing = [path.as_posix() for path in paths if not (output_dir() / path).exists()]
    missing += [f"{key} in {LOG}" for key in item.log if not has_section(LOG, lesson.name, key)]
    if item.journal and not has_section(JOURNAL, lesson.name, item.journal):
        missing.append(f"{item.journal} in {JOURNAL}")
    return Line(item.text, not missing, f"missing {', '.join(missing)}" if missing else "")


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")


def _path() -> Path:
    return output_dir() / FILE


def _read() -> dict[str, Any]:
    """Raises ValueError when the file cannot be understood; nothing is written over it then."""
    try:
        kept = json.loads(_path().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return json.loads(json.dumps(_EMPTY))
    except ValueError:
        kept = None
    if not isinstance(kept, dict) or kept.get("version") != 1 or not {"exercises", "lessons"} <= set(kept):
        raise ValueError(
            f"{_path()} is not a progress file of this version. Nothing was written. Repair it, or move it "
            "away: the next check starts a new one."
        )
    return kept


@contextmanager
def _changing() -> Iterator[dict[str, Any]]:
    """The file's contents, written back at the end of the block, one process at a time."""
    with locked(_path()):
        kept = _read()
        yield kept
        write_text_atomically(_path(), json.dumps(kept, indent=1) + "\n")
