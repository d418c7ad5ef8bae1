"""What each lesson asks for and has to tell, read from labcourse/lessons/*/lesson.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from labkit.io import project_root

Kind = Literal["coding", "debugging", "prediction", "measuring", "reading"]
_FOLDER = Path(__file__).parent / "lessons"


@dataclass(frozen=True)
class Exercise:
    """difficulty and importance: 1 to 5.  minutes: what it takes to do it by its text."""

    lesson: str
    number: int
    name: str
    title: str
    kind: Kind
    difficulty: int
    importance: int
    minutes: int
    teaches: str

    def __post_init__(self) -> None:
        for field in ("difficulty", "importance"):
            if getattr(self, field) not in range(1, 6):
                raise ValueError(f"{self.lesson}: {self.name}: {field}={getattr(self, field)} is not 1 to 5.")
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.lesson}: {self.name}: kind={self.kind!r} is none of {get_args(Kind)}.")

    def __str__(self) -> str:
        return f"Exercise {self.number} ({self.title})"

    @property
    def heading(self) -> str:
        return f"### Exercise {self.number} · {self.title}"

    @property
    def facts(self) -> str:
        """The line below the heading."""
        return (
            f"*{self.kind.capitalize()} · difficulty {self.difficulty} of 5 · importance {self.importance} "
            f"of 5 · about {self.minutes} minutes. You learn {self.teaches}.*"
        )


@dataclass(frozen=True)
class Item:
    """A line of the checklist, and what shows that it is done: what is named of facts, files and sections.

    fact: what the lesson itself says when it ends.  figures: files under visualizations/.
    log: sections of experiments_log.md.  journal: a section of learning_journal.md.
    """

    text: str
    fact: str | None = None
    figures: tuple[str, ...] = ()
    log: tuple[str, ...] = ()
    journal: str | None = None


@dataclass(frozen=True)
class Experiment:
    """An entry of experiments_log.md, in Markdown with {names} for the numbers that the lesson measures."""

    key: str
    title: str
    question: str
    prediction: str
    setup: str
    result: str
    meaning: str
    change_our_mind: str

    @property
    def parts(self) -> dict[str, str]:
        return {
            "Question": self.question,
            "Prediction": self.prediction,
            "Setup": self.setup,
            "Result": self.result,
            "What it means": self.meaning,
            "What would change our mind": self.change_our_mind,
        }


@dataclass(frozen=True)
class Reflection:
    """A question for the reader, and our answer, with {names} for the numbers that the lesson measures."""

    question: str
    answer: str


@dataclass(frozen=True)
class Lesson:
    name: str
    title: str
    exercises: tuple[Exercise, ...]
    checklist: tuple[Item, ...]
    experiments: tuple[Experiment, ...]
    reflections: tuple[Reflection, ...]

    @property
    def number(self) -> str:
        return self.name[:2]

    @property
    def notebook(self) -> Path:
        return project_root() / "notebooks" / f"{self.name}.ipynb"


@cache
def lessons() -> Mapping[str, Lesson]:
    """All lessons by name, in order."""
    return {path.parent.name: _read(path) for path in sorted(_FOLDER.glob("*/lesson.toml"))}


@cache
def exercises() -> Mapping[str, Exercise]:
    """All exercises by name, in order."""
    return {each.name: each for lesson in lessons().values() for each in lesson.exercises}


def find_lesson(name: str) -> Lesson:
    """Raises ValueError, naming the lessons there are, for any other name; `03` will do for `03_mini_gpt`."""
    for each in lessons().values():
        if name in (each.name, each.number):
            return each
    raise ValueError(f"There is no lesson {name!r}. There are: {', '.join(lessons())}.")


def _read(path: Path) -> Lesson:
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    return Lesson(
        path.parent.name,
        data["title"],
        tuple(
            Exercise(lesson=path.parent.name, number=number, **each)
            for number, each in enumerate(data["exercise"], 1)
        ),
        tuple(_item(each) for each in data["checklist"]),
        tuple(Experiment(**each) for each in data["experiment"]),
        tuple(Reflection(**each) for each in data["reflection"]),
    )


def _item(entry: dict[str, Any]) -> Item:
    return Item(**entry | {name: tuple(entry.get(name, ())) for name in ("figures", "log")})
