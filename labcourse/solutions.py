"""The right answers to the exercises, one function each; its docstring says why it is right."""

from __future__ import annotations

import ast
import importlib
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from labcourse.lesson import exercises


def solution(name: str) -> Callable[..., Any]:
    """The right answer to an exercise.  Raises KeyError for an unknown one."""
    module = importlib.import_module(f"labcourse.lessons.{exercises()[name].lesson}.solutions")
    found: Callable[..., Any] = getattr(module, name)
    return found


def folded(name: str) -> str:
    """The solution as a folded part of a page, in Markdown: the reason, then the code with its imports."""
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
    if imports := _imports(found, definition):
        text = f"{imports}\n\n\n{text}"
    return f"<details><summary>Solution</summary>\n\n{reason}\n\n```python\n{text}\n```\n\n</details>"


def _imports(found: Callable[..., Any], definition: ast.FunctionDef) -> str:
    """The lines of the solution's file that import what it uses, so that it runs in any notebook."""
    used = {each.id for each in ast.walk(definition) if isinstance(each, ast.Name)}
    lines = []
    for node in ast.parse(inspect.getsource(inspect.getmodule(found) or found)).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            node.names = [each for each in node.names if (each.asname or each.name.split(".")[0]) in used]
            if node.names:
                lines.append(ast.unparse(node))
    return "\n".join(lines)
