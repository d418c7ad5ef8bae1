"""Every check passes the right answer, and names the mistake of every planted wrong one."""

from __future__ import annotations

import importlib
import math
import pkgutil
import re
from collections import Counter

import planted
import pytest
import torch
from planted import TABLE, Planted

from labkit.course.check import judge
from labkit.course.lesson import exercises
from labkit.course.solutions import folded, solution

for _module in pkgutil.iter_modules(planted.__path__):
    importlib.import_module(f"planted.{_module.name}")

NAMES = list(exercises())


def _row(row: Planted) -> str:
    return f"{row.exercise}-{row.answer.__name__}"


@pytest.mark.parametrize("row", TABLE, ids=_row)
def test_the_check_names_the_mistake(row: Planted) -> None:
    verdict = judge(row.exercise, row.answer)
    assert verdict.result == "wrong"
    assert row.says in verdict.message


@pytest.mark.parametrize("name", NAMES)
def test_the_solution_is_right(name: str) -> None:
    verdict = judge(name, solution(name))
    assert verdict.result == "right", verdict.message


@pytest.mark.parametrize("name", NAMES)
def test_there_are_three_planted_mistakes_with_messages_of_their_own(name: str) -> None:
    rows = [row for row in TABLE if row.exercise == name]
    assert len(rows) >= 3
    assert len({judge(name, row.answer).message for row in rows}) >= min(3, len(rows))


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


def test_no_message_shows_code_of_the_solution() -> None:
    for row in TABLE:
        code = re.search(r"```python\n(.*?)```", folded(row.exercise), re.S)
        assert code is not None
        message = judge(row.exercise, row.answer).message
        lines = [line.strip() for line in code[1].splitlines()[1:]]
        assert not [line for line in lines if len(line) > 12 and line.removeprefix("return ") in message]


def test_wrong_answers_have_names_of_their_own() -> None:
    assert [row for row, count in Counter(map(_row, TABLE)).items() if count > 1] == []
