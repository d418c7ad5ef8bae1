"""Entries of the log and answers in the journal whose texts stand in labcourse/lessons/*/lesson.toml.

A lesson hands over the numbers that its texts name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labcourse.lesson import find_lesson
from labcourse.log import JOURNAL, YOURS, log_section, write_section
from labkit.io import output_dir, write_text_atomically
from labstudio.tables import markdown_table

RESULTS = "benchmarks/results/lessons"


def log_experiment(lesson: str, key: str, numbers: Mapping[str, Any]) -> Path:
    """Write an experiment into experiments_log.md, replacing what the same one wrote before.

    lesson: "03_mini_gpt".  key: one of the experiments in labcourse/lessons, whose text is filled in.
    numbers: what the text names, as JSON can hold it: numbers, texts, dicts, and lists of rows (dicts), which
    become tables.  The machine, the profile and the command to run it again are added.
    The numbers are also kept, unrounded, in benchmarks/results/lessons/LESSON.KEY.json.
    Returns the log.  Raises ValueError for an unknown key or a number that is missing, and
    DamagedLogError, both files untouched, where marker lines do not pair up.
    """
    from labkit.device import describe_machine

    experiments = {each.key: each for each in find_lesson(lesson).experiments}
    if key not in experiments:
        raise ValueError(f"journal: {lesson} has no experiment {key!r}. It has: {', '.join(experiments)}.")
    machine, profile = describe_machine(), os.environ.get("LABKIT_PROFILE", "lesson")
    kept = {"lesson": lesson, "experiment": key, "machine": machine, "profile": profile, "numbers": numbers}
    text = json.dumps(kept, indent=1, ensure_ascii=False, default=_plain) + "\n"
    where = f"{lesson}/{key}"
    parts = {name: _filled(part, numbers, where) for name, part in experiments[key].parts.items()}
    parts["Setup"] += (
        f"\n\nMeasured on {machine}, in the `{profile}` profile. Again: "
        f"`.venv/bin/python scripts/execute_notebooks.py notebooks/{lesson}.ipynb`"
    )
    body = "\n\n".join(f"### {name}\n\n{part}" for name, part in parts.items())
    log = log_section(lesson, key, f"Lesson {lesson[:2]}: {experiments[key].title}", body)
    results = output_dir() / RESULTS / f"{lesson}.{key}.json"
    results.parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(results, text)
    return log


def write_answers(lesson: str, numbers: Mapping[str, Any]) -> Path:
    """Write our answers to the lesson's reflection questions into learning_journal.md.

    numbers: what the answers name, as for `log_experiment`.
    A lesson's first section is followed by an empty part "Yours", which is never touched again.
    """
    found = find_lesson(lesson)
    answers = [
        f"### {number}. {each.question}\n\n{_filled(each.answer, numbers, lesson)}"
        for number, each in enumerate(found.reflections, 1)
    ]
    title = f"Lesson {found.number}: {found.title}"
    return write_section(JOURNAL, lesson, "answers", title, "\n\n".join(answers), after_first=YOURS)


class _Rows(list[Mapping[str, object]]):
    def __format__(self, spec: str) -> str:
        return markdown_table(self)


def _filled(text: str, numbers: Mapping[str, Any], where: str) -> str:
    """The text with its {names} filled in: lists of rows as tables, everything else as str.format does."""
    tables = {
        name: _Rows(value)
        for name, value in numbers.items()
        if isinstance(value, list) and value and all(isinstance(row, Mapping) for row in value)
    }
    try:
        return text.strip().format_map({**numbers, **tables})
    except (KeyError, IndexError) as error:
        raise ValueError(f"journal: the text of {where} names {error}, which is not in numbers.") from error


def _plain(value: Any) -> Any:
    """Numbers of NumPy and PyTorch as Python's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"journal: numbers holds {value!r}, which JSON cannot hold.")
