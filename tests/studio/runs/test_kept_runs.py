"""Runs that texts quote are kept packed, and unpacked once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from labkit.training import Run
from labstudio.runs import kept_runs
from labstudio.runs.kept import pack_runs

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "benchmarks"))
from keep_runs import thinned  # noqa: E402


def test_kept_runs_are_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    folder = kept_runs()
    run = Run(folder / "base-baseline")
    assert run.config()["total_steps"] == run.metrics("step")["step"].max()
    touched = (folder / "base-baseline" / "config.json").stat().st_mtime_ns
    assert kept_runs() == folder
    assert (folder / "base-baseline" / "config.json").stat().st_mtime_ns == touched


def test_other_archives_are_unpacked_beside_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("labstudio.runs.kept.project_root", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match="no kept runs"):
        kept_runs()
    archive = tmp_path / "benchmarks" / "results" / "runs" / "mine.zip"
    pack_runs(archive, {"mine-a": {"config.json": "{}"}})
    first = kept_runs()
    assert (first / "mine-a" / "config.json").read_text() == "{}"
    pack_runs(archive, {"mine-a": {"config.json": "{ }"}})
    assert kept_runs() != first


def test_an_archive_depends_on_its_runs_alone(tmp_path: Path) -> None:
    one, two = tmp_path / "one.zip", tmp_path / "two.zip"
    pack_runs(one, {"b": {"y": "2", "x": "1"}, "a": {}})
    pack_runs(two, {"a": {}, "b": {"x": "1", "y": "2"}})
    assert one.read_bytes() == two.read_bytes()


def test_thinning_keeps_evaluations_and_the_end() -> None:
    rows = [f'{{"event": "step", "step": {step}}}' for step in range(1, 101)]
    rows.append('{"event": "evaluation", "step": 7}')
    kept = thinned("\n".join(rows), steps=10).splitlines()
    assert [row for row in kept if "evaluation" in row] == [rows[-1]]
    assert sum('step": ' in row for row in kept if 'event": "step' in row) == 8 + 20
