"""What a run was computed with: recorded, and compared."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from pathlib import Path

import pytest
import torch
from tiny_run import tiny_trainer

from labkit.training import Run, fit
from labkit.training import run as module
from labkit.training.run import _git_state, changes, environment


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("one = 1\n")
    (tmp_path / "text.md").write_text("text\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    return tmp_path


def test_versions_device_threads_and_precision_are_recorded() -> None:
    row = environment(torch.device("cpu"), "fp32", 2)
    assert row["torch"] == torch.__version__
    assert row["python"] == platform.python_version()
    assert row["device"].startswith("cpu")
    assert (row["threads"], row["precision"], row["processes"]) == (torch.get_num_threads(), "fp32", 2)


def test_a_run_is_recorded_from_a_checkout_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that importlib.metadata could find lies on the path."""
    monkeypatch.setattr(importlib.metadata.Distribution, "discover", lambda **_: iter(()))
    run = Run.create("first", tmp_path)
    assert fit(tiny_trainer(), run=run, progress=False)
    assert run.rows("environment")[0]["labkit"] == "not installed"


def test_the_code_is_a_commit_and_what_was_changed_since(repository: Path) -> None:
    commit = git(repository, "rev-parse", "HEAD")
    assert _git_state() == commit
    states = {commit}
    for text in ("one = 2\n", "one = 3\n"):
        (repository / "code.py").write_text(text)
        state = _git_state()
        assert state
        assert state.startswith(f"{commit}+")
        states.add(state)
    assert len(states) == 3
    (repository / "code.py").write_text("one = 1\n")
    (repository / "text.md").write_text("other text\n")
    assert _git_state() == commit


def test_without_git_nothing_is_recorded_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "project_root", lambda: tmp_path)
    assert _git_state() is None
    monkeypatch.setenv("PATH", "")
    assert _git_state() is None


def test_changes_name_what_differs() -> None:
    assert changes({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b: 2 -> 3", "c: None -> 4"]
    assert changes({"a": 1}, {"a": 1}) == []
