"""The commands of the Makefile, without running what they set up."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.name == "nt" or not shutil.which("make"), reason="needs make"),
]


def make(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    # Without the variables of a `make test` that these tests may run under.
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments], cwd=folder, env=clean, capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    folder = tmp_path / "clone with spaces"
    folder.mkdir()
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    return folder


def test_help_is_the_default_and_names_every_command() -> None:
    shown = make().stdout
    assert shown == make("help").stdout
    for target in ("lab", "test", "test-long", "notebooks", "clean"):
        assert f"\n  {target} " in shown


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("lab", ["-m venv", "-r requirements.txt", "labkit fetch", "--ip=127.0.0.1", "/.jupyter:"]),
        ("test", ["ruff check", "format --check", "codespell", "mypy", "not long and not", "--nbval "]),
        ("test-long", ["long and not browser", "-m browser"]),
        ("notebooks", ["scripts/execute_notebooks.py"]),
    ],
)
def test_commands_plan_what_they_say(target: str, expected: list[str], clone: Path) -> None:
    planned = make("-n", target, folder=clone).stdout
    assert [part for part in expected if part not in planned] == []


def test_an_old_python_is_refused_in_words(clone: Path) -> None:
    old = clone / "oldpython"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = make("lab", "PYTHON=./oldpython", folder=clone)
    assert done.returncode != 0
    assert "The course needs Python 3.11 or newer; ./oldpython is Python 3.9.1." in done.stderr
    assert not (clone / ".venv").exists()


def test_a_failed_install_leaves_no_stamp(clone: Path) -> None:
    (clone / "requirements.txt").write_text("-e ./there-is-no-such-folder\n")
    assert make("lab", folder=clone).returncode != 0
    assert list(clone.glob(".venv/.*-stamp")) == []


def fake_setup(folder: Path, made_in: Path) -> None:
    (folder / ".venv").mkdir()
    (folder / ".venv" / ".lab-stamp").write_text(f"{made_in}\n")


def test_a_second_run_installs_nothing(clone: Path) -> None:
    fake_setup(clone, clone)
    assert "pip" not in make("-n", "lab", folder=clone).stdout


def test_changed_requirements_and_a_moved_folder_install_again(clone: Path) -> None:
    fake_setup(clone, clone / "elsewhere")
    assert "-r requirements.txt" in make("-n", "lab", folder=clone).stdout
    (clone / ".venv" / ".lab-stamp").write_text(f"{clone}\n")
    later = (clone / ".venv" / ".lab-stamp").stat().st_mtime + 10
    os.utime(clone / "requirements.txt", (later, later))
    assert "-r requirements.txt" in make("-n", "lab", folder=clone).stdout


def test_torch_from_another_index_comes_first(clone: Path) -> None:
    planned = make("-n", "lab", "TORCH_INDEX=https://example.org/cpu", folder=clone).stdout
    assert planned.index("--index-url 'https://example.org/cpu'") < planned.index("-r requirements.txt")
