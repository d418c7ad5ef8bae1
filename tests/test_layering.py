"""A file imports only from its own folder or from a lower floor, and stays small."""

from __future__ import annotations

import ast
import io
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "labkit"
FILES = sorted(PACKAGE.rglob("*.py"))

QUIET = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE}
QUIET |= {tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}

FLOORS = {
    "presets": 0, "validation": 0, "config": 0, "device": 0, "paths": 0, "atomic": 0,
    "text": 1,
    "model": 2,
    "generation": 3, "weights": 3, "analysis": 3,
    "training": 4,
    "ui": 5,
    "course": 6,
    "__main__": 7, "cli": 7, "doctor": 7, "doctor_checks": 7, "report": 7, "serve": 7,
}  # fmt: skip


def home(module: str) -> str:
    """The part of the house that a module belongs to: labkit.text.corpus lives in text."""
    return module.split(".")[1] if "." in module else ""


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Every labkit module that a source imports, wherever in it the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                package = parts[: len(parts) - node.level + (1 if is_package else 0)]
                base = ".".join([*package, *filter(None, [node.module])])
            # `from labkit import model` names a module, `from labkit import GPT` a name of __init__.
            found |= {f"labkit.{alias.name}" for alias in node.names} if base == "labkit" else {base}
    return {name for name in found if name.split(".")[0] == "labkit"}


PUBLIC = {"GPT": "model", "Trainer": "training", "generate": "generation"}
PUBLIC |= {"GPTConfig": "config", "TrainConfig": "config", "SampleConfig": "config"}


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    here = home(module)
    wrong = []
    for name in sorted(imports(source, module, is_package)):
        there = PUBLIC.get(home(name), home(name))
        if there.startswith("__") or there == here:
            continue
        if there not in FLOORS:
            wrong.append(f"{module} imports {name}, which has no floor")
        elif FLOORS[there] > FLOORS[here]:
            wrong.append(f"{module} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    module = module_name(path)
    if module == "labkit":
        return  # it only forwards names
    assert home(module) in FLOORS, f"{module} has no floor: add it to FLOORS and to the design"
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, path.name == "__init__.py") == []


def test_no_circles_between_folders() -> None:
    edges: dict[str, set[str]] = {}
    for path in FILES:
        module = module_name(path)
        if module != "labkit":
            source = path.read_text(encoding="utf-8")
            names = imports(source, module, path.name == "__init__.py")
            edges.setdefault(home(module), set()).update(PUBLIC.get(home(n), home(n)) for n in names)

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"circle: {' -> '.join((*trail, node))}"
        for after in edges.get(node, set()) - {node}:
            visit(after, (*trail, node))

    for node in edges:
        visit(node, ())


@pytest.mark.parametrize(
    "source",
    [
        "import labkit.training",
        "from labkit.training import Trainer",
        "from labkit import Trainer",
        "from labkit import training",
        "from ..training.trainer import Trainer",
        "def f():\n    import labkit.ui.figures",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from labkit.course import journal",
        "from labkit.unknown import x",
    ],
)
def test_the_test_sees_imports_that_go_up(source: str) -> None:
    assert len(violations(source, "labkit.model.gpt")) == 1


@pytest.mark.parametrize(
    "source",
    ["from labkit.config import GPTConfig", "from labkit import GPTConfig", "from . import attention",
     "from labkit.model.block import Block", "from ..text import corpus", "import torch"],
)  # fmt: skip
def test_the_test_lets_imports_go_down(source: str) -> None:
    assert violations(source, "labkit.model.gpt") == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_files_are_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, "does it do two things?"


def lines_of_code(source: str) -> int:
    """Lines that do something: neither blank nor comment nor part of a string that stands alone."""
    lines = {token.start[0] for token in tokenize.generate_tokens(io.StringIO(source).readline)
             if token.type not in QUIET}  # fmt: skip
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(lines)


def test_lines_of_code_leave_out_prose() -> None:
    assert lines_of_code('"""Doc\n\nmore."""\n\n# comment\nx = (\n    1\n)\n') == 3


ROOMS = {"text": 2380, "model": 500, "generation": 620, "weights": 1280, "analysis": 950, "training": 2050}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_stays_readable_as_a_whole(room: str) -> None:
    """What a learner opens after a lesson fits an afternoon; data and training carry the weight of safety."""
    files = [path for path in FILES if home(module_name(path)) == room]
    assert files
    assert sum(lines_of_code(path.read_text(encoding="utf-8")) for path in files) <= ROOMS[room]
