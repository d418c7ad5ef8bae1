"""Every entry of the log is whole, and every number that it or the journal quotes is in committed results."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from quoted_numbers import not_found, numbers_in, quoted

from labcourse.journal import RESULTS
from labcourse.lesson import Lesson, lessons
from labcourse.log import JOURNAL, LOG
from labstudio.runs import kept_runs

ROOT = Path(__file__).parents[2]
PARTS = (
    "Question",
    "Prediction",
    "Setup",
    "Result",
    "What it means",
    "What would change our mind",
)
SWEEPS = ("base", "report")
SECTION = re.compile(r"<!-- labkit:begin (\S+)/(\S+) .*?-->\n(.*?)<!-- labkit:end", re.S)


@dataclass(frozen=True)
class Entry:
    lesson: str
    key: str
    text: str

    @property
    def name(self) -> str:
        return f"{self.lesson}/{self.key}"

    def part(self, title: str) -> str:
        """All that stands under headings of this title."""
        found = re.findall(rf"^#{{3,5}} {re.escape(title)}\n(.*?)(?=^#{{2,5}} |\Z)", self.text, re.S | re.M)
        return "\n".join(found).strip()


def entries(file: str) -> list[Entry]:
    return [Entry(*found) for found in SECTION.findall((ROOT / file).read_text(encoding="utf-8"))]


LOGGED = entries(LOG)
EXPERIMENTS = [(lesson.name, each.key) for lesson in lessons().values() for each in lesson.experiments]


@cache
def results(name: str) -> list[float]:
    """The numbers of results files: LESSON.KEY.json of the lessons, or benchmarks/results/NAME.json."""
    path = ROOT / (f"{RESULTS}/{name}.json" if "." in name else f"benchmarks/results/{name}.json")
    return list(numbers_in(json.loads(path.read_text(encoding="utf-8"))))


@cache
def run_numbers(folder: Path) -> list[float]:
    """The settings of a run, its evaluations, and its last step."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [row for row in rows if row["event"] != "step"] + [row for row in rows if row["event"] == "step"][
        -1:
    ]
    return list(numbers_in([config, *told]))


def known_numbers(entry: Entry) -> Iterator[float]:
    """What the entry may quote: its own results, and those of the runs and benchmarks that it names."""
    own = ROOT / RESULTS / f"{entry.name.replace('/', '.')}.json"
    if own.exists():
        yield from results(own.stem)
    for name in re.findall(r"benchmarks/results/runs/\w+\.zip/([\w.-]*\w)", entry.text):
        yield from run_numbers(kept_runs() / name)
    for name in re.findall(r"benchmarks/results/(\w+)(?:\.json)", entry.text):
        yield from results(name)


@pytest.mark.parametrize("entry", LOGGED, ids=lambda entry: entry.name)
def test_an_entry_has_all_its_parts(entry: Entry) -> None:
    for title in PARTS:
        assert entry.part(title), f"{entry.name} has nothing under {title!r}"
    assert re.search(r"`(\.venv/bin/)?(python|labkit) ", entry.part("Setup")), "no command to run it again"


@pytest.mark.parametrize("entry", [e for e in LOGGED if e.key not in SWEEPS], ids=lambda entry: entry.name)
def test_every_number_of_an_entry_is_in_a_committed_file(entry: Entry) -> None:
    text = f"{entry.part('Result')}\n{entry.part('What it means')}"
    assert not_found(text, known_numbers(entry)) == []


def test_the_log_holds_every_experiment_of_the_lessons_and_no_other() -> None:
    logged = [(entry.lesson, entry.key) for entry in LOGGED if entry.key not in SWEEPS]
    assert sorted(logged) == sorted(EXPERIMENTS)
    stored = sorted(path.stem for path in (ROOT / RESULTS).glob("*.json"))
    assert stored == sorted(".".join(each) for each in EXPERIMENTS)


@pytest.mark.parametrize("lesson", lessons().values(), ids=lambda lesson: lesson.name)
def test_the_journal_answers_every_question_with_numbers_that_were_measured(lesson: Lesson) -> None:
    (entry,) = [entry for entry in entries(JOURNAL) if entry.lesson == lesson.name]
    for number, reflection in enumerate(lesson.reflections, 1):
        answer = entry.part(f"{number}. {reflection.question}")
        assert len(answer.split()) >= 60, f"{lesson.name}, question {number}: in depth?"
    measured = [
        number for path in (ROOT / RESULTS).glob(f"{lesson.name}.*.json") for number in results(path.stem)
    ]
    assert not_found(entry.text, [*measured, *known_numbers(entry)]) == []


def test_the_journal_has_an_empty_part_for_the_reader_after_each_lesson() -> None:
    text = (ROOT / JOURNAL).read_text(encoding="utf-8")
    after = re.findall(r"<!-- labkit:end \S+ -->\n\n### Yours\n\s*(?=<!--|\Z)", text)
    assert len(after) == len(lessons())


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("loss 1.23 and 12 %", []),
        ("loss 1.24", ["1.24"]),
        ("12.1%", ["12.1%"]),
        ("12.0%", []),
        ("1,235 tokens, −1,234.6", []),
        ("1,236 tokens", ["1,236"]),
        ("1.2e-05", []),
        ("`9.99` and [x](9.99.png), layer 2", []),
        ("11 layers", ["11"]),
    ],
)
def test_quoted_numbers_are_compared_as_they_are_rounded(text: str, wrong: list[str]) -> None:
    assert not_found(text, [1.2345, 0.12, -1234.56, 1.23e-5]) == wrong


@given(st.floats(-1e6, 1e6).filter(lambda x: abs(x) > 0.01), st.integers(0, 6))
def test_a_number_is_found_however_it_is_rounded(value: float, decimals: int) -> None:
    assert not_found(f"it was {value:,.{decimals}f} nats", [value]) == []
    assert not_found(f"it was {value:.4g} nats", [value]) == []
    assert not_found(f"it was {value:.1%}", [value]) == []


def test_small_whole_numbers_count_things() -> None:
    assert [each.text for each in quoted("3 layers of 10, 12 heads, 0.5")] == ["12", "0.5"]
