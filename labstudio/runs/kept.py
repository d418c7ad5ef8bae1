"""The runs that lessons and texts quote, kept packed beside the benchmarks: one archive per sweep."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

from labkit.io import cache_dir, fresh_folder, locked, project_root

KEPT = Path("benchmarks") / "results" / "runs"


def kept_runs() -> Path:
    """A folder with the kept runs, unpacked once into the cache.

    Each run has config.json and metrics.jsonl, those of sweeps also sweep.json and environment.jsonl; weights
    are not kept.  Raises FileNotFoundError where the project is not a checkout.
    """
    archives = sorted((project_root() / KEPT).glob("*.zip"))
    if not archives:
        raise FileNotFoundError(f"There are no kept runs in {project_root() / KEPT}: work in a checkout.")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in archives)).hexdigest()[:12]
    folder = cache_dir() / f"kept-runs-{digest}"
    with locked(folder):
        if not folder.is_dir():
            with fresh_folder(folder) as fresh:
                for path in archives:
                    zipfile.ZipFile(path).extractall(fresh)
    return folder


def pack_runs(archive: Path, runs: dict[str, dict[str, str]]) -> None:
    """Write runs as an archive that is the same for the same runs.

    runs: file name and text by run.
    """
    archive.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for name, files in sorted(runs.items()):
            for file, text in sorted(files.items()):
                packed.writestr(zipfile.ZipInfo(f"{name}/{file}"), text, zipfile.ZIP_DEFLATED)
