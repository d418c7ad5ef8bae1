"""`labkit progress`."""

from __future__ import annotations

from typing import Annotated

import tyro
from tyro.conf import Positional

LessonName = Annotated[str, tyro.conf.arg(metavar="LESSON")]


def progress(lesson: Positional[LessonName] = "") -> int:
    """What of the course is done: lessons run, exercises solved, checklists, your own answers.

    Args:
        lesson: One lesson in full, for example 03; all of them when not given.
    """
    from labcourse.lesson import find_lesson
    from labcourse.progress import describe

    print(describe(find_lesson(lesson)) if lesson else _overview())
    return 0


def _overview() -> str:
    from labcourse.lesson import lessons
    from labcourse.log import own_words
    from labcourse.progress import checklist, last_run, solved
    from labkit.io import runs_dir

    rows = [("lesson", "run to its end", "exercises", "checklist", "your answers")]
    for each in lessons().values():
        ran, words = last_run(each), own_words(each.name)
        own = checklist(each)[: len(each.checklist)]
        rows.append(
            (
                f"{each.number} {each.title}",
                f"{ran['finished'][:10]} ({ran['profile']})" if ran else "not yet",
                f"{len(solved(each))} of {len(each.exercises)}",
                f"{sum(line.done for line in own)} of {len(own)}",
                f"{words} words" if words else "none yet",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    trainings = sum((folder / "config.json").exists() for folder in runs_dir().glob("*"))
    return "\n".join([*table, "", f"Trainings kept: {trainings} (labkit runs)", _next()])


def _next() -> str:
    """What to do now: the first lesson that was not run, or the first exercise that is not solved."""
    from labcourse.lesson import lessons
    from labcourse.progress import last_run, solved

    for each in lessons().values():
        if last_run(each) is None:
            return f"Next: notebooks/{each.name}.ipynb"
        for exercise in each.exercises:
            if exercise.name not in solved(each):
                return (
                    f"Next: lesson {each.number}, exercise {exercise.number}: {exercise.title} "
                    f"(about {exercise.minutes} minutes)"
                )
    return "All lessons are run and all exercises solved."
