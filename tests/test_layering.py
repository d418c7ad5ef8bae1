"""Imports run one way: labcourse, labstudio, labkit, and inside each from the outside inwards."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("labkit", "labstudio", "labcourse")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

FLOORS = {
    "labkit.config": 0, "labkit.device": 0, "labkit.io": 0,
    "labkit.text": 1,
    "labkit.model": 2,
    "labkit.generation": 3, "labkit.weights": 3, "labkit.analysis": 3,
    "labkit.training": 4,
    "labstudio.tables": 5, "labstudio.visible": 5,
    "labstudio.figures": 6,
    "labstudio.runs": 7,
    "labstudio.widgets": 8,
    "labstudio.dashboard": 9, "labstudio.serve": 9,
    "labstudio.cli": 10, "labstudio.__main__": 11,
}  # fmt: skip
COURSE = 12


def home(module: str) -> str:
    """The room that a module belongs to: labkit.text.corpus lives in labkit.text."""
    return ".".join(module.split(".")[:2])


def floor(module: str) -> int | None:
    return COURSE if module.split(".")[0] == "labcourse" else FLOORS.get(home(module))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str, module: str, is_package: bool) -> set[str]:
    """Every module of ours that a source imports, wherever in it the import stands."""
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
            found |= {f"{base}.{alias.name}" for alias in node.names} if base in PACKAGES else {base}
    return {name for name in found if name.split(".")[0] in PACKAGES}


PUBLIC = {
    "labkit.GPT": "labkit.model", "labkit.Trainer": "labkit.training", "labkit.generate": "labkit.generation",
    "labkit.GPTConfig": "labkit.config", "labkit.TrainConfig": "labkit.config",
    "labkit.SampleConfig": "labkit.config",
    "labstudio.sweep": "labstudio.runs", "labstudio.LiveRun": "labstudio.widgets",
    "labstudio.AttentionExplorer": "labstudio.widgets", "labstudio.SamplingPlayground": "labstudio.widgets",
}  # fmt: skip


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    here = floor(module)
    assert here is not None, f"{module} has no floor: add it to FLOORS and to the design"
    wrong = []
    for name in sorted(imports(source, module, is_package)):
        there = PUBLIC.get(home(name), name)
        if home(there) == home(module) or there in PACKAGES:
            continue
        if floor(there) is None:
            wrong.append(f"{module} imports {name}, which has no floor")
        elif (floor(there) or 0) > here:
            wrong.append(f"{module} (floor {here}) imports {name} (floor {floor(there)})")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    module = module_name(path)
    if module in PACKAGES:
        return  # it only forwards names
    source = path.read_text(encoding="utf-8")
    assert violations(source, module, path.name == "__init__.py") == []


def test_no_circles_between_rooms() -> None:
    edges: dict[str, set[str]] = {}
    for path in FILES:
        module = module_name(path)
        if module not in PACKAGES and not module.startswith("labcourse"):
            source = path.read_text(encoding="utf-8")
            names = imports(source, module, path.name == "__init__.py")
            edges.setdefault(home(module), set()).update(home(PUBLIC.get(home(n), n)) for n in names)

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, f"circle: {' -> '.join((*trail, node))}"
        for after in edges.get(node, set()) - {node}:
            visit(after, (*trail, node))

    for node in edges:
        visit(node, ())


def imported_files(path: Path) -> set[str]:
    """The modules that a file imports when it runs, wherever the import stands in it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {module_name(each) for each in FILES if each.name != "__init__.py"}
    branches = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    only_types = [
        node for each in branches if "TYPE_CHECKING" in ast.dump(each.test) for node in ast.walk(each)
    ]
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node not in only_types:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & names


def test_no_circles_between_files() -> None:
    waiting = {module_name(path): imported_files(path) for path in FILES}
    while free := [name for name, needs in waiting.items() if not needs & set(waiting)]:
        for name in free:
            del waiting[name]
    assert not waiting, f"these import each other: {sorted(waiting)}"


@pytest.mark.parametrize(
    "source",
    [
        "import labkit.training",
        "from labkit.training import Trainer",
        "from labkit import Trainer",
        "from labkit import training",
        "from ..training.trainer import Trainer",
        "def f():\n    import labstudio.figures.base",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from labcourse import journal",
        "from labkit.unknown import x",
        "from labstudio import LiveRun",
    ],
)
def test_the_test_sees_imports_that_go_up(source: str) -> None:
    assert len(violations(source, "labkit.model.gpt")) == 1


@pytest.mark.parametrize(
    "source",
    ["from labkit.config import GPTConfig", "from labkit import GPTConfig", "from . import attention",
     "from labkit.model.layers import Block", "from ..text import corpus", "import torch"],
)  # fmt: skip
def test_the_test_lets_imports_go_down(source: str) -> None:
    assert violations(source, "labkit.model.gpt") == []
