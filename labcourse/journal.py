"""Writes results into experiments_log.md and learning_journal.md without touching the learner's own text.

The texts stand in labcourse/lessons; a lesson hands over the numbers that they name.

Each generated section sits between two comment lines and is replaced in place by the next run:

    <!-- labkit:begin 03_mini_gpt/training sha256=0123456789ab -->
    ## Lesson 03: first training
    ...
    <!-- labkit:end 03_mini_gpt/training -->

Everything outside such a pair belongs to the learner and keeps every byte. The checksum tells whether
the learner also wrote inside the pair; if so, their version moves below it before the new one is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labcourse.lesson import find_lesson
from labkit.io import locked, output_dir, write_text_atomically
from labstudio.tables import markdown_table

LOG = "experiments_log.md"
JOURNAL = "learning_journal.md"
RESULTS = "benchmarks/results/lessons"

_OPENINGS = {
    LOG: """# Experiments log

What was asked, expected, measured and learned. Predictions say what one would expect before looking; they
were put into words with the entries, most of them once a run was there, and the wrong ones stand. Lessons
write their sections here; each section is renewed when its lesson runs again, and the numbers behind it are
in benchmarks/results/. Text you add outside the marked sections stays as you wrote it.
""",
    JOURNAL: """# Learning journal

Answers to the reflection questions, one section per lesson, and below each a part for your own words.
Lessons renew only the marked sections. The parts called "Yours" are never touched.
""",
}

_YOURS = """
### Yours

"""

_MARKER = re.compile(r"^<!-- labkit:(begin|end) (\S+?)/(\S+?)(?: sha256=([0-9a-f]{12}))? -->[ \t]*\r?$", re.M)
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]*")


class DamagedJournalError(ValueError):
    """The marker lines of a log or journal do not pair up, so a section cannot be replaced safely."""


@dataclass(frozen=True)
class _Section:
    """Where a section lies: start and end include the marker lines, inner_* only what is between them."""

    lesson: str
    key: str
    checksum: str
    start: int
    inner_start: int
    inner_end: int
    end: int


def log_experiment(lesson: str, key: str, numbers: Mapping[str, Any]) -> Path:
    """Write an experiment into experiments_log.md, replacing what the same one wrote before.

    lesson: "03_mini_gpt".  key: one of the experiments in labcourse/lessons, whose text is filled in.
    numbers: what the text names, as JSON can hold it: numbers, texts, dicts, and lists of rows (dicts), which
    become tables.  The machine, the profile and the command to run it again are added.
    The numbers are also kept, unrounded, in benchmarks/results/lessons/LESSON.KEY.json.
    Returns the log.  Raises ValueError for an unknown key or a number that is missing, and
    DamagedJournalError, both files untouched, where marker lines do not pair up.
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


def log_section(lesson: str, key: str, title: str, body: str) -> Path:
    """Write a section of experiments_log.md in a form of its own.

    key: names the section within the lesson.  body: Markdown, headings from level 3.
    Returns the file.  Raises DamagedJournalError, the file untouched, where marker lines do not pair up.
    """
    return _write_section(LOG, lesson, key, title, body)


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
    return _write_section(JOURNAL, lesson, "answers", title, "\n\n".join(answers), after_first=_YOURS)


def has_section(file: str, lesson: str, key: str) -> bool:
    """Whether LOG or JOURNAL has this section."""
    return any((each.lesson, each.key) == (lesson, key) for each in _find_sections(*_text_of(file)))


def own_words(lesson: str) -> int:
    """How many words the reader wrote under "Yours" of this lesson in the journal."""
    text, path = _text_of(JOURNAL)
    sections = _find_sections(text, path)
    ends = [each.end for each in sections if each.lesson == lesson]
    if not ends:
        return 0
    upto = next((each.start for each in sections if each.start > max(ends)), len(text))
    _, _, own = text[max(ends) : upto].partition(_YOURS.strip())
    return len(re.findall(r"\w{2,}", own))


def _text_of(file: str) -> tuple[str, Path]:
    path = output_dir() / file
    # surrogateescape carries bytes that are not UTF-8 through unchanged.
    return (path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""), path


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


def _write_section(file: str, lesson: str, key: str, title: str, body: str, *, after_first: str = "") -> Path:
    for name, value in {"lesson": lesson, "key": key}.items():
        if not _NAME.fullmatch(value):
            raise ValueError(f"journal: {name}={value!r} must be letters, digits, '_', '-' and '.'.")
    content = f"## {title.strip()}\n\n{body.strip()}\n".replace("\r\n", "\n").replace("\r", "\n")
    if "<!-- labkit:" in content:
        raise ValueError(f"journal: title and body of {lesson}/{key} must not contain '<!-- labkit:'.")
    path = output_dir() / file
    with locked(path):
        text, _ = _text_of(file)
        updated = _with_section(text or _OPENINGS[file], lesson, key, content, after_first, path)
        _replace_file(path, updated.encode("utf-8", "surrogateescape"))
    return path


def _with_section(text: str, lesson: str, key: str, content: str, after_first: str, path: Path) -> str:
    """The text with the section put in: in place of its former self, or in lesson order."""
    newline = "\r\n" if text.count("\r\n") * 2 > text.count("\n") else "\n"
    sections = _find_sections(text, path)
    block = _block(lesson, key, content)
    same = next((s for s in sections if (s.lesson, s.key) == (lesson, key)), None)
    if same:
        block += _kept_edits(text, same)
        # The line break after the end marker is the learner's, so the block ends without one.
        return text[: same.start] + block.removesuffix("\n").replace("\n", newline) + text[same.end :]
    if all(section.lesson != lesson for section in sections):
        block += after_first
    at = next((s.start for s in sections if s.lesson > lesson), len(text))
    before, after = text[:at], text[at:]
    block = block.replace("\n", newline)
    gap = "" if not before or before.endswith(newline * 2) else newline
    gap += "" if not before or before.endswith("\n") else newline
    return before + gap + block + (newline if after else "") + after


def _block(lesson: str, key: str, content: str) -> str:
    name = f"{lesson}/{key}"
    return f"<!-- labkit:begin {name} sha256={_checksum(content)} -->\n{content}<!-- labkit:end {name} -->\n"


def _kept_edits(text: str, section: _Section) -> str:
    """What the learner wrote inside the section, to stand below it; empty where they wrote nothing."""
    inner = text[section.inner_start : section.inner_end].replace("\r\n", "\n")
    if _checksum(inner) == section.checksum:
        return ""
    return f"\n### Your edits, kept ({section.lesson}/{section.key})\n\n{inner}"


def _checksum(content: str) -> str:
    content = content.replace("\r\n", "\n")
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:12]


def _find_sections(text: str, path: Path) -> list[_Section]:
    """All sections in order of appearance.  Raises DamagedJournalError where markers do not pair up."""
    markers = list(_MARKER.finditer(text))
    if len(markers) != len(re.findall(r"<!-- labkit:(?:begin|end)\b", text)):
        raise _damaged(path, "a marker line was changed")
    if len(markers) % 2:
        raise _damaged(path, "a 'begin' or an 'end' line is missing")
    sections: list[_Section] = []
    for begin, end in zip(markers[::2], markers[1::2], strict=True):
        name = f"{begin[2]}/{begin[3]}"
        if (begin[1], end[1]) != ("begin", "end") or begin.group(2, 3) != end.group(2, 3):
            raise _damaged(path, f"'begin' and 'end' do not pair up at {name}")
        if any((s.lesson, s.key) == begin.group(2, 3) for s in sections):
            raise _damaged(path, f"the section {name} is there twice")
        end_at = end.end() - (1 if end[0].endswith("\r") else 0)
        inner = (begin.end() + 1, end.start())
        sections.append(_Section(begin[2], begin[3], begin[4] or "", begin.start(), *inner, end_at))
    return sections


def _damaged(path: Path, what: str) -> DamagedJournalError:
    return DamagedJournalError(
        f"{path.name}: {what}. Nothing was written. Repair or delete that section's two "
        "'<!-- labkit:begin ... -->' and '<!-- labkit:end ... -->' lines, then run the cell again."
    )


def _replace_file(path: Path, data: bytes) -> None:
    """Put new contents in place at once: a reader, or a crash, sees the old file or the new one."""
    path = path.resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, temporary)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        temporary.unlink(missing_ok=True)
