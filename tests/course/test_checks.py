"""Every check passes the right answer, and names the mistake of every planted wrong one."""

from __future__ import annotations

import ast
import importlib
import linecache
import math
import pkgutil
import re
from collections import Counter
from functools import cache
from typing import Any

import nbformat
import planted
import pytest
import torch
from planted import TABLE, Planted

from labcourse.check import Verdict, Wrong, _watched, judge
from labcourse.lesson import exercises, find_lesson
from labcourse.solutions import folded, solution

for _module in pkgutil.iter_modules(planted.__path__):
    importlib.import_module(f"planted.{_module.name}")

NAMES = list(exercises())


@cache
def verdict_on(row: Planted) -> Verdict:
    return judge(row.exercise, row.answer)


def _row(row: Planted) -> str:
    return f"{row.exercise}-{row.answer.__name__}"


@pytest.mark.parametrize("row", TABLE, ids=_row)
def test_the_check_names_the_mistake(row: Planted) -> None:
    assert verdict_on(row).result == "wrong"
    assert row.says in verdict_on(row).message


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_is_right(name: str) -> None:
    verdict = judge(name, solution(name))
    assert verdict.result == "right", verdict.message


@pytest.mark.parametrize("name", NAMES)
def test_the_folded_solution_runs_by_itself(name: str) -> None:
    code = re.search(r"```python\n(.*?)```", folded(name), re.S)
    assert code is not None
    space: dict[str, Any] = {}
    exec(code[1], space)
    assert judge(name, space[name]).result == "right"


@pytest.mark.parametrize("name", NAMES)
def test_there_are_three_planted_mistakes_with_messages_of_their_own(name: str) -> None:
    rows = [row for row in TABLE if row.exercise == name]
    assert len(rows) >= 3
    assert len({verdict_on(row).message for row in rows}) >= min(3, len(rows))


@pytest.mark.parametrize("name", NAMES)
def test_an_answer_that_raises_is_told_where(name: str) -> None:
    def raises(*_: object, **__: object) -> object:
        missing: list[int] = []
        return missing[3]

    verdict = judge(name, raises)
    assert verdict.result == "wrong"
    assert "IndexError: list index out of range (line 3 of your function)" in verdict.message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "odd", ["nonsense", math.nan, 10**9, [], {}, (1,), torch.zeros(0), torch.full((2, 3), math.nan)], ids=str
)
def test_an_odd_answer_is_wrong_and_never_an_error(name: str, odd: object) -> None:
    assert judge(name, lambda *_, **__: odd).result == "wrong"


@pytest.mark.parametrize("name", NAMES)
def test_a_forgotten_return_is_named(name: str) -> None:
    def forgets(*arguments: object, **__: object) -> None:
        len(arguments)

    assert "is a `return` missing" in judge(name, forgets).message


@pytest.mark.parametrize("name", NAMES)
def test_a_check_leaves_random_numbers_alone_and_answers_the_same_twice(name: str) -> None:
    before = torch.random.get_rng_state()
    first, second = (str(judge(name, solution(name))) for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_the_stub_is_not_attempted_however_it_is_laid_out(name: str) -> None:
    lesson = find_lesson(exercises()[name].lesson)
    cells = [cell for cell in nbformat.read(lesson.notebook, 4).cells if f"check.{name}(" in cell.source]
    handed_over = re.findall(rf"check\.{name}\((\w+)\)", cells[0].source)
    (stub,) = [each for each in ast.parse(cells[0].source).body if getattr(each, "name", "") in handed_over]
    text = ast.unparse(stub).replace(":\n", ':\n    """Mine."""\n\n', 1) + "  # not yet\n"
    space: dict[str, Any] = {"torch": torch}
    linecache.cache["<a cell>"] = (len(text), None, text.splitlines(keepends=True), "<a cell>")
    exec(compile(text, "<a cell>", "exec"), space)
    assert judge(name, space[handed_over[0]]).result == "not attempted"


@pytest.mark.parametrize(
    ("change", "given"),
    [
        (lambda ids: ids.sort(), [3, 1, 2]),
        (lambda ids: ids.append(1), [3]),
        (lambda ids: ids.__setitem__(0, 5), [3, 1]),
        (lambda ids: ids.update(a=2), {"a": 1}),
        (lambda ids: ids.pop("a"), {"a": 1}),
        (lambda ids: ids.add(4), {3}),
        (lambda ids: ids.add_(1), torch.tensor([1.0, math.nan])),
        (lambda ids: ids.clear(), [torch.zeros(2)]),
    ],
)
def test_an_answer_that_changes_what_it_was_given_is_told(change: Any, given: Any) -> None:
    def answer(values: Any) -> int:
        change(values)
        return 1

    with pytest.raises(Wrong, match="changed one of its arguments in place"):
        _watched(answer)(given)


def test_an_answer_that_only_reads_is_left_alone() -> None:
    values = [[3, 1], {"a": 1}, {3}, torch.tensor([math.nan]), [torch.zeros(2), 0.5], (1, 2), "text", None]
    assert _watched(lambda *given: len(given))(*values) == len(values)


def test_an_answer_without_known_source_is_judged() -> None:
    space: dict[str, Any] = {}
    exec("def my(*arguments):\n    return None", space)
    assert "is a `return` missing" in judge(NAMES[0], space["my"]).message


def test_no_message_shows_code_of_the_solution() -> None:
    for row in TABLE:
        code = re.search(r"```python\n(.*?)```", folded(row.exercise), re.S)
        assert code is not None
        message = verdict_on(row).message
        lines = [line.strip() for line in code[1].splitlines()[1:]]
        assert not [line for line in lines if len(line) > 12 and line.removeprefix("return ") in message]


def test_wrong_answers_have_names_of_their_own() -> None:
    assert [row for row, count in Counter(map(_row, TABLE)).items() if count > 1] == []
