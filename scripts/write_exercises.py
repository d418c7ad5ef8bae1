"""Renews what the lessons show of their exercises: facts under the heading, the folded solution below.

    python scripts/write_exercises.py [NOTEBOOK ...]

Outputs stay as they are, since only Markdown cells change.  A lesson has, for each exercise, a Markdown cell
that begins with its heading, and a code cell that ends in check.<name>(...).
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell

from labcourse.lesson import Exercise, find_lesson, lessons
from labcourse.solutions import folded


def renew(notebook: NotebookNode, exercise: Exercise) -> None:
    """Raises ValueError when the notebook lacks the exercise's text or its check."""
    text = _only(notebook, exercise.heading + "\n", exercise, "markdown")
    _, _, rest = text.source.partition("\n")
    paragraphs = rest.strip("\n").split("\n\n")
    if paragraphs[0].startswith("*") and "difficulty" in paragraphs[0]:
        paragraphs = paragraphs[1:]
    text.source = "\n\n".join([exercise.heading, exercise.facts, *paragraphs])
    check = _only(notebook, f"check.{exercise.name}(", exercise, "code")
    name = f"solution-{exercise.name.replace('_', '-')}"
    notebook.cells = [cell for cell in notebook.cells if cell.id != name]
    at = notebook.cells.index(check) + 1
    notebook.cells.insert(at, new_markdown_cell(folded(exercise.name), id=name))


def _only(notebook: NotebookNode, part: str, exercise: Exercise, kind: str) -> NotebookNode:
    found = [cell for cell in notebook.cells if cell.cell_type == kind and part in cell.source + "\n"]
    if len(found) != 1:
        raise ValueError(
            f"{exercise.lesson}: {len(found)} {kind} cells with {part.strip()!r} instead of one."
        )
    return found[0]


def main(arguments: list[str]) -> int:
    """Renew the notebooks given, or all."""
    chosen = [find_lesson(Path(argument).stem) for argument in arguments] or list(lessons().values())
    for lesson in chosen:
        notebook = nbformat.read(lesson.notebook, as_version=4)
        for exercise in lesson.exercises:
            renew(notebook, exercise)
        text = nbformat.writes(notebook).rstrip("\n")
        lesson.notebook.write_text(text + "\n", encoding="utf-8", newline="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
