"""What a run was computed with, so that a resumed one can say what has changed."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import version
from typing import Any

import torch

from labkit.device import describe_device
from labkit.io import project_root


def environment(device: torch.device, precision: str, world: int = 1) -> dict[str, Any]:
    """Versions, device, CPU threads, precision, number of processes, and the state of the code in git."""
    return {
        "labkit": version("labkit"),
        "torch": torch.__version__,
        "numpy": version("numpy"),
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "device": describe_device(device),
        "threads": torch.get_num_threads(),
        "precision": precision,
        "processes": world,
        "git": _git_state(),
    }


def _git_state() -> str | None:
    """The commit, with `+` and a checksum of the changes where Python files differ; None without git."""
    try:
        commit, difference = _git("rev-parse", "HEAD"), _git("diff", "HEAD", "--", "*.py")
        return f"{commit}+{hashlib.sha256(difference.encode()).hexdigest()[:8]}" if difference else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(project_root()), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, encoding="utf-8", errors="replace", check=True, timeout=10
    )
    return done.stdout.strip()


def changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs, as `name: before -> now`."""
    names = {**before, **now}
    return [
        f"{name}: {before.get(name)} -> {now.get(name)}"
        for name in names
        if before.get(name) != now.get(name)
    ]
