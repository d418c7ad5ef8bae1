"""What LiveRun finds when it begins: an interrupted run of its name, and whether anybody looks on."""

from __future__ import annotations

import glob
import os
import re
import sys

from labkit.training import Run, runs_dir

FRONT_ENDS = ("JPY_SESSION_NAME", "VOILA_BASE_URL", "VSCODE_PID")
"""Set in kernels by Jupyter's servers, by Voila and by VS Code; not by nbclient, on which nbval stands."""


def newest_run(name: str) -> Run | None:
    """Of the runs name, name-2, name-3 … the last."""
    numbered = re.compile(re.escape(name) + r"(?:-(\d+))?")
    found = {
        int(match[1] or 1): config.parent
        for config in runs_dir().glob(f"{glob.escape(name)}*/config.json")
        if (match := numbered.fullmatch(config.parent.name))
    }
    return Run(found[max(found)]) if found else None


def is_interrupted(run: Run) -> bool:
    """Whether the run has no checkpoint of its last step."""
    try:
        return saved_step(run) < int(run.config()["total_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        return False  # nothing that could be resumed


def saved_step(run: Run) -> int:
    """The step of the newest checkpoint, 0 without one."""
    return max((each.step for each in run.checkpoints()), default=0)


def is_being_written(run: Run) -> bool:
    """Whether another process, or another thread of this one, trains it."""
    try:
        with run.locked():
            return False
    except RuntimeError:
        return True


def is_live() -> bool:
    """Whether somebody can press buttons: LABKIT_LIVE says so, or the kernel belongs to a front-end."""
    if chosen := os.environ.get("LABKIT_LIVE"):
        if chosen not in ("0", "1"):
            raise ValueError(f"LABKIT_LIVE={chosen!r}: set 1 (live), 0 (blocking) or nothing.")
        return chosen == "1"
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return hasattr(shell, "kernel") and any(name in os.environ for name in FRONT_ENDS)
