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
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.io import locked, output_dir, write_atomically
from labstudio.tables import markdown_table

LOG = "experiments_log.md"
JOURNAL = "learning_journal.md"

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

YOURS = """
### Yours

"""

_MARKER = re.compile(r"^<!-- labkit:(begin|end) (\S+?)/(\S+?)(?: sha256=([0-9a-f]{12}))? -->[ \t]*\r?$", re.M)
_NAME = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]*")


class DamagedLogError(ValueError):
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


MAX_WORDS = 120


def log_experiment(
    name: str,
    *,
    question: str,
    expected: str,
    found: str,
    table: Sequence[Mapping[str, object]] = (),
    figure: str | None = None,
) -> Path:
    """Write an entry of experiments_log.md, replacing what the same one wrote before; returns the file.

    name: lesson and entry, like "03_mini_gpt/training".  question, expected, found: Markdown, together at
    most 120 words.  table: rows of equal columns.  figure: a file under visualizations/, in place of a table.
    Raises ValueError for a part that is missing or too long, and DamagedLogError, the file untouched, where
    marker lines do not pair up.
    """
    lesson, _, key = name.partition("/")
    parts = {"Question": question, "Expected": expected, "Found": found}
    if empty := [part for part, text in parts.items() if not text.strip()]:
        raise ValueError(f"log_experiment: {name} has no {empty[0].lower()!r}. Say it in a sentence.")
    if (words := sum(len(text.split()) for text in parts.values())) > MAX_WORDS:
        raise ValueError(f"log_experiment: {name} has {words} words; an entry has at most {MAX_WORDS}.")
    if table and figure:
        raise ValueError(f"log_experiment: {name} has a table and a figure. Choose the one that shows it.")
    body = [f"**{part}.** {text.strip()}" for part, text in parts.items()]
    if table:
        body.append(markdown_table(table))
    if figure:
        body.append(f"![{found.strip()}](visualizations/{figure})")
    title = key.replace("_", " ").replace("-", " ").capitalize()
    return log_section(lesson, key, f"Lesson {lesson[:2]}: {title}", "\n\n".join(body))


def log_section(lesson: str, key: str, title: str, body: str) -> Path:
    """Write a section of experiments_log.md in a form of its own.

    key: names the section within the lesson.  body: Markdown, headings from level 3.
    Returns the file.  Raises DamagedLogError, the file untouched, where marker lines do not pair up.
    """
    return write_section(LOG, lesson, key, title, body)


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
    _, _, own = text[max(ends) : upto].partition(YOURS.strip())
    return len(re.findall(r"\w{2,}", own))


def _text_of(file: str) -> tuple[str, Path]:
    path = output_dir() / file
    # surrogateescape carries bytes that are not UTF-8 through unchanged.
    return (path.read_bytes().decode("utf-8", "surrogateescape") if path.exists() else ""), path


def write_section(file: str, lesson: str, key: str, title: str, body: str, *, after_first: str = "") -> Path:
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
        write_atomically(path, updated.encode("utf-8", "surrogateescape"))
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
    """All sections in order of appearance.  Raises DamagedLogError where markers do not pair up."""
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


def _damaged(path: Path, what: str) -> DamagedLogError:
    return DamagedLogError(
        f"{path.name}: {what}. Nothing was written. Repair or delete that section's two "
        "'<!-- labkit:begin ... -->' and '<!-- labkit:end ... -->' lines, then run the cell again."
    )
