"""The right answers to the exercises, one function each; its docstring says why it is right."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from labkit.course.lesson import exercises


def solution(name: str) -> Callable[..., Any]:
    """The right answer to an exercise.  Raises KeyError for an unknown one."""
    module = importlib.import_module(f"labkit.course.solutions.{exercises()[name].lesson[3:]}")
    found: Callable[..., Any] = getattr(module, name)
    return found


def folded(name: str) -> str:
    """The solution as a folded part of a page, in Markdown: the reason, then the code."""
    found = solution(name)
    source = inspect.getsource(found)
    definition = ast.parse(source).body[0]
    assert isinstance(definition, ast.FunctionDef)
    docstring = definition.body[0]
    lines = source.splitlines()
    head = lines[: docstring.lineno - 1]
    body = lines[docstring.end_lineno or 0 :]
    reason = textwrap.dedent(inspect.getdoc(found) or "")
    text = "\n".join([*head, *body]).strip()
    return f"<details><summary>Solution</summary>\n\n{reason}\n\n```python\n{text}\n```\n\n</details>"
