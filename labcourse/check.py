"""Answers to exercises, judged at once: not attempted, right, or wrong with the likely mistake named.

    from labcourse import check

    check.decode(my_decode)    # check.<name of the exercise>(your function)

Each exercise has a function of its name in labcourse/lessons/<lesson>/checks.py, which calls the answer and
says with `expect` what is wrong with what it returns; its solution stands beside it in solutions.py.  What
was passed is kept in the progress file.
"""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
import numbers
import textwrap
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from labcourse import progress
from labcourse.lesson import Exercise, exercises

Answer = Callable[..., Any]
Check = Callable[[Answer], str | None]


class Wrong(Exception):  # noqa: N818
    """The answer is wrong; the message names the likely mistake and never the answer."""


@dataclass(frozen=True)
class Verdict:
    exercise: Exercise
    result: Literal["not attempted", "right", "wrong"]
    message: str = ""

    def __str__(self) -> str:
        if self.result == "not attempted":
            return f"{self.exercise}: not attempted yet."
        said = {"right": "right.", "wrong": "not yet."}[self.result]
        return textwrap.fill(f"{self.exercise}: {said} {self.message}", 95, break_on_hyphens=False)


def expect(condition: object, mistake: str) -> None:
    """Raise `Wrong` with this message unless the condition holds."""
    if not bool(condition):
        raise Wrong(mistake)


def is_number(value: object) -> bool:
    """Whether an answer is one number: Python's, NumPy's or a tensor of one element."""
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def judge(name: str, answer: object) -> Verdict:
    """The verdict on an answer, without writing anything down.

    The answer is not attempted while it does what the stub in the notebook does: return None, or, where
    there is something to mend, what `<name>_stub` in the checks does.  The session's random numbers stay
    untouched.
    Raises AttributeError, naming the exercises, for an unknown name.
    """
    exercise = exercises().get(name)
    if exercise is None:
        raise AttributeError(f"There is no exercise {name!r}. There are: {', '.join(exercises())}.")
    if not callable(answer):
        return Verdict(exercise, "wrong", f"Hand over the function itself: check.{name}(your_function).")
    checks = importlib.import_module(f"labcourse.lessons.{exercise.lesson}.checks")
    if _same_code(answer, getattr(checks, f"{name}_stub", _stub)):
        return Verdict(exercise, "not attempted")
    check: Check = getattr(checks, name)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            remark = check(_watched(answer))
    except Wrong as wrong:
        return Verdict(exercise, "wrong", str(wrong))
    except Exception as error:  # of the check, over an answer that it did not foresee
        return Verdict(exercise, "wrong", f"What it returns cannot be read: {type(error).__name__}: {error}")
    return Verdict(exercise, "right", remark or "")


def __getattr__(name: str) -> Callable[[object], None]:
    if name.startswith("_"):
        raise AttributeError(name)
    if name not in exercises():
        raise AttributeError(f"There is no exercise {name!r}. There are: {', '.join(exercises())}.")

    def check(answer: object) -> None:
        verdict = judge(name, answer)
        print(verdict)
        if verdict.result != "not attempted":
            progress.record(verdict.exercise, passed=verdict.result == "right")

    check.__name__ = name
    check.__doc__ = f"Exercise {exercises()[name].number} of lesson {exercises()[name].lesson}."
    return check


def __dir__() -> list[str]:
    return sorted(exercises())


def _stub() -> None:
    return None


def _same_code(one: object, other: object) -> bool:
    body = _body(one)
    return body is not None and body == _body(other)


def _body(function: object) -> str | None:
    """What stands in a function, less docstring, comments and layout; None where its source is unknown."""
    try:
        definition = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        return None
    if not isinstance(definition, ast.FunctionDef):
        return None
    after = definition.body[1:] if ast.get_docstring(definition) else definition.body
    return "\n".join(map(ast.dump, after))


def _watched(answer: Answer) -> Answer:
    """The answer, whose errors, missing results and changed arguments come out as `Wrong`."""

    def call(*arguments: Any, **named: Any) -> Any:
        given = [*arguments, *named.values()]
        before = [_snapshot(each) for each in given]
        try:
            result = answer(*arguments, **named)
        except Exception as error:
            raise Wrong(f"It raised {type(error).__name__}: {error}{_place(error, answer)}") from error
        if result is None:
            raise Wrong("It returned None this time: is a `return` missing on some path?")
        if not all(map(_unchanged, before, given)):
            raise Wrong("It changed one of its arguments in place: work on a copy.")
        return result

    return call


def _snapshot(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    return copy.copy(value) if isinstance(value, list | dict | set) else value


def _unchanged(before: Any, after: Any) -> bool:
    if isinstance(after, torch.Tensor):
        same_shape = before.shape == after.shape
        return same_shape and torch.equal(before.nan_to_num(), after.detach().nan_to_num())
    if isinstance(after, dict):
        return before.keys() == after.keys() and all(_same(before[key], after[key]) for key in after)
    if isinstance(after, list):
        return len(before) == len(after) and all(map(_same, before, after))
    return not isinstance(after, set) or bool(before == after)


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, int | float | str | bytes) and bool(one == other))


def _place(error: Exception, answer: Answer) -> str:
    """Where in the answer an error came from, as far as one can tell."""
    code = getattr(answer, "__code__", None)
    for frame, line in traceback.walk_tb(error.__traceback__):
        if code is not None and frame.f_code is code:
            return f" (line {line - code.co_firstlineno + 1} of your function)"
    return ""
