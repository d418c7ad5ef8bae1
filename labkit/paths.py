"""Where the project reads and writes."""

from __future__ import annotations

import os
from pathlib import Path


def project_root() -> Path:
    """The checkout that this package runs from, else the current folder."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "notebooks").is_dir() else Path.cwd()


def output_dir() -> Path:
    """Where runs, figures, log and journal go: the folder in LABKIT_OUT, else the project's root."""
    chosen = os.environ.get("LABKIT_OUT")
    return Path(chosen).expanduser().resolve() if chosen else project_root()


def runs_dir() -> Path:
    """The folder that holds all runs: the one in LABKIT_RUNS, else runs/ where output goes."""
    chosen = os.environ.get("LABKIT_RUNS")
    return Path(chosen).expanduser().resolve() if chosen else output_dir() / "runs"


def cache_dir() -> Path:
    """Where what was fetched or measured is kept: LABKIT_CACHE when set, else the platform's cache folder."""
    chosen = os.environ.get("LABKIT_CACHE")
    if chosen:
        return Path(chosen).expanduser()
    import pooch

    return Path(pooch.os_cache("labkit"))
