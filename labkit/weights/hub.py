"""A published model's name becomes a local folder, in the cache that other programs share.

The library `huggingface_hub` downloads and keeps the cache: a file enters it only when it has arrived whole.
Its checksums are compared here, and only then does the cache call the new version the current one.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from labkit.io import write_text_atomically
from labkit.text.assets import AssetError
from labkit.weights.files import WEIGHTS, WRITTEN, weight_map

PUBLISHED = {f"gpt2{size}": f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")}
PUBLISHED["distilgpt2"] = "distilbert/distilgpt2"
"""Short names, and where the models live."""

_DESCRIPTIONS = WRITTEN - {"model.safetensors"} | {"generation_config.json"}


def find(source: str | Path) -> Path:
    """The file or folder of this path; where there is none, the folder of the published model of this name.

    Raises what `download` raises.
    """
    path = Path(source).expanduser()
    return path if path.exists() else download(str(source))


def download(name: str) -> Path:
    """The local folder of a published model: configuration, tokenizer and weights.

    name: a key of `PUBLISHED`, or owner/name.  HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and
    HF_TOKEN are respected.  Costs one request where the cache holds everything; where the hub cannot be
    asked, a complete copy in the cache does.
    Raises ValueError for a name of another form, for a model without weights that labkit reads and for
    a file that is not what the hub announced; AssetError, which says what to do, if it cannot be had.
    """
    repo = _repo(name)
    try:
        return _download(repo)
    except AssetError:
        if folder := cached(name):
            return folder
        raise


def cached(name: str) -> Path | None:
    """The folder of a published model if the cache holds all of it; never asks the network."""
    from huggingface_hub import snapshot_download

    for repo in dict.fromkeys([_repo(name), name]):  # other programs may have used the short name
        try:
            snapshot = Path(snapshot_download(repo, local_files_only=True, allow_patterns="config.json"))
            weights = next(snapshot / file for file in WEIGHTS if (snapshot / file).is_file())
            shards = weight_map(weights).values() if weights.suffix == ".json" else ()
            if all((snapshot / file).is_file() for file in ("config.json", *shards)):
                return snapshot
        except (OSError, ValueError, StopIteration):
            continue
    return None


def _repo(name: str) -> str:
    repo = PUBLISHED.get(name, name)
    if not re.fullmatch(r"[a-zA-Z0-9][\w.-]*/[a-zA-Z0-9][\w.-]*", repo, re.ASCII):
        known = ", ".join(PUBLISHED)
        raise ValueError(
            f"{name!r} is not a published model's name. Choose from {known}, or give owner/name."
        )
    return repo


def _download(repo: str) -> Path:
    from huggingface_hub import HfApi, constants, snapshot_download

    with _explained(repo):
        info = HfApi().model_info(repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if not re.fullmatch("[0-9a-f]{40}", commit := str(info.sha)):
            raise OSError(f"the answer is not a hub's: it names the commit {commit[:60]!r}")
    listed = sorted(sibling.rfilename for sibling in info.siblings or [])
    weights = next((file for file in WEIGHTS if file in listed), None)
    if weights is None or "config.json" not in listed:
        raise ValueError(
            f"{repo}: has {', '.join(listed[:20]) or 'no files'}, but labkit reads config.json with "
            f"{' or '.join(WEIGHTS)}. Choose another model."
        )
    wanted = [file for file in listed if file in _DESCRIPTIONS or file == weights]
    if weights.endswith(".index.json"):
        stem, kind, *_ = weights.split(".")
        wanted += [file for file in listed if re.fullmatch(rf"{stem}-\d+-of-\d+\.{kind}", file)]
    current = cached(repo)
    if current and current.name == commit and all((current / file).is_file() for file in wanted):
        return current
    with _explained(repo):
        snapshot = Path(
            snapshot_download(
                repo,
                revision=commit,
                allow_patterns=wanted,
                headers={"Accept-Encoding": "identity"},  # a cut download goes on within whole bytes
            )
        )
        differing = HfApi().verify_repo_checksums(repo, revision=commit).mismatches
    for file in differing:
        path = snapshot / file["path"]
        path.resolve().unlink()
        path.unlink(missing_ok=True)
    if differing:
        file = differing[0]
        raise ValueError(
            f"{repo}/{file['path']}: arrived with checksum {file['actual']}, but the hub announced "
            f"{file['expected']}. It was damaged on the way and has been deleted: try again."
        )
    if weights.endswith(".index.json"):
        weight_map(snapshot / weights)  # raises ValueError for one that is none
    with _explained(repo):  # last: what refs/main names is the version in use
        main = snapshot.parents[1] / "refs" / "main"
        main.parent.mkdir(exist_ok=True)
        write_text_atomically(main, commit)
    return snapshot


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn whatever the library, the network or the disk raise into an AssetError that says what to do."""
    from huggingface_hub import constants

    try:
        yield
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if constants.HF_HUB_OFFLINE:
            remedy = "HF_HUB_OFFLINE forbids to ask the network; unset it."
        elif status in (401, 403, 404):
            remedy = "check the name. If its page asks for permission, get it there and set HF_TOKEN."
        elif getattr(error, "errno", None) == errno.ENOSPC:
            remedy = "make room, or set HF_HOME to a folder on another disk, and try again."
        else:
            remedy = "check the network (HTTPS_PROXY, HF_ENDPOINT) and try again; what has arrived is kept."
        raise AssetError(
            f"{what}: is no file or folder here, and could not be downloaded.\n"
            f"Tried: {constants.ENDPOINT}/{what}, to be kept in {constants.HF_HUB_CACHE}.\n"
            f"It said: {type(error).__name__}: {' '.join(str(error).split())[:300]}\n"
            f"What to do: {remedy}\n"
            "By hand: put config.json, model.safetensors and the tokenizer's files into a folder, and give\n"
            "the folder in place of the name, as in load_gpt2(folder).\n"
            'Instead: load_pretrained() comes with the course, load_llama("smollm2") needs no hub.'
        ) from error
