"""Writes results into experiments_log.md and learning_journal.md without touching the learner's own text.

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
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.paths import output_dir

LOG = "experiments_log.md"
JOURNAL = "learning_journal.md"

_OPENINGS = {
    LOG: """# Experiments log

What was measured, by which run, with which settings. Lessons write their sections here; each section is
renewed when its lesson runs again. Text you add outside the marked sections stays as you wrote it.
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


def log_experiment(lesson: str, key: str, title: str, body: str) -> Path:
    """Write what a run measured into experiments_log.md, replacing what the same run wrote before.

    lesson: "03_mini_gpt".  key: names the run within the lesson.  body: Markdown, headings from level 3.
    Returns the file.  Raises DamagedJournalError, the file untouched, where marker lines do not pair up.
    """
    return _write_section(LOG, lesson, key, title, body)


def write_reflection(lesson: str, key: str, title: str, body: str) -> Path:
    """Write answers to reflection questions into learning_journal.md; arguments as for `log_experiment`.

    A lesson's first section is followed by an empty part "Yours", which is never touched again.
    """
    return _write_section(JOURNAL, lesson, key, title, body, after_first=_YOURS)


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table, a line per row; columns in order of first appearance, numbers aligned right.

    Floats are shown with four significant digits, missing values as an empty cell.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ""
    numeric = {c: all(isinstance(row.get(c, 0), int | float) for row in rows) for c in columns}
    lines = [
        columns,
        ["---:" if numeric[column] else "---" for column in columns],
        *([_cell(row.get(column, "")) for column in columns] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def _write_section(file: str, lesson: str, key: str, title: str, body: str, *, after_first: str = "") -> Path:
    for name, value in {"lesson": lesson, "key": key}.items():
        if not _NAME.fullmatch(value):
            raise ValueError(f"journal: {name}={value!r} must be letters, digits, '_', '-' and '.'.")
    content = f"## {title.strip()}\n\n{body.strip()}\n".replace("\r\n", "\n").replace("\r", "\n")
    if "<!-- labkit:" in content:
        raise ValueError(f"journal: title and body of {lesson}/{key} must not contain '<!-- labkit:'.")
    path = output_dir() / file
    # surrogateescape carries bytes that are not UTF-8 through unchanged.
    text = path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else _OPENINGS[file]
    updated = _with_section(text, lesson, key, content, after_first, path)
    path.parent.mkdir(parents=True, exist_ok=True)
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
