"""A published model's name becomes a local folder, in the cache that other programs share.

The cache is laid out as the hub's own library does it: files under blobs/, named by their checksum,
links to them under snapshots/<commit>/, the newest commit in refs/main.  So what another program has
fetched is found here, and the other way round.  A file enters the cache only after its checksum
matched; until then its bytes wait beside it, and the next attempt, even of another process, goes on
from there (the library itself would delete them).
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm.auto import tqdm

from labkit.text.assets import AssetError

PUBLISHED = {f"gpt2{size}": f"openai-community/gpt2{size}" for size in ("", "-medium", "-large", "-xl")}
PUBLISHED["distilgpt2"] = "distilbert/distilgpt2"
"""Short names, and where the models live."""

_DESCRIPTIONS = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
_DESCRIPTIONS += ["vocab.json", "merges.txt", "special_tokens_map.json", "chat_template.jinja"]
_WEIGHTS = ["model.safetensors", "model.safetensors.index.json"]  # best first; an index names the files
_WEIGHTS += ["pytorch_model.bin", "pytorch_model.bin.index.json"]


def download(name: str, *, progress: bool = True) -> Path:
    """The local folder of a published model: configuration, tokenizer and weights.

    name: a key of `PUBLISHED`, or owner/name.  HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and
    HF_TOKEN are respected.  Costs one request where the cache holds everything; where the hub cannot be
    asked, a complete copy in the cache does.
    Raises ValueError for a name of another form, for a model without weights that labkit reads and for
    a file that is not what the hub announced; AssetError, which says what to do, if it cannot be had.
    """
    repo = _repo(name)
    try:
        return _download(repo, progress)
    except AssetError:
        if folder := cached(name):
            return folder
        raise


def cached(name: str) -> Path | None:
    """The folder of a published model if the cache holds all of it; never asks the network."""
    for repo in dict.fromkeys([_repo(name), name]):  # other programs may have used the short name
        folder = _cache_folder(repo)
        try:
            snapshot = folder / "snapshots" / (folder / "refs" / "main").read_text("utf-8").strip()
            form = next(file for file in _WEIGHTS if (snapshot / file).is_file())
            if all((snapshot / file).is_file() for file in ("config.json", *_shards(snapshot / form))):
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


def _cache_folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).resolve() / f"models--{repo.replace('/', '--')}"


def _download(repo: str, progress: bool) -> Path:
    from huggingface_hub import HfApi, constants

    with _explained(repo):
        info = HfApi().model_info(repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if not re.fullmatch("[0-9a-f]{40}", commit := str(info.sha)):
            raise OSError(f"the answer is not a hub's: it names the commit {commit[:60]!r}")
    listed = sorted(sibling.rfilename for sibling in info.siblings or [])
    form = next((file for file in _WEIGHTS if file in listed), None)
    if form is None or "config.json" not in listed:
        raise ValueError(
            f"{repo}: has {', '.join(listed[:20]) or 'no files'}, but labkit reads config.json with "
            f"{' or '.join(_WEIGHTS)}. Choose another model."
        )
    folder = _cache_folder(repo)
    snapshot = folder / "snapshots" / commit
    for file in [*(file for file in _DESCRIPTIONS if file in listed), form]:
        _fetch(repo, file, snapshot, progress)
    for file in _shards(snapshot / form):
        _fetch(repo, file, snapshot, progress)
    with _explained(repo):  # last, because the commit that refs/main names is the one in use
        main = folder / "refs" / "main"
        if not main.is_file() or main.read_text("utf-8") != commit:
            main.parent.mkdir(exist_ok=True)
            main.write_text(commit, "utf-8")
    return snapshot


def _shards(path: Path) -> list[str]:
    """The files that an index names; none for weights in one file."""
    if not path.name.endswith(".index.json"):
        return []
    try:
        names = sorted(set(json.loads(path.read_bytes())["weight_map"].values()))
        wrong = [name for name in names if not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", name, re.ASCII)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: is not an index of weights ({error!r}). Choose another model.") from error
    if wrong or not names:
        raise ValueError(
            f"{path}: names {str(wrong)[:80]}, where files beside it belong. Choose another model."
        )
    return names


def _fetch(repo: str, file: str, snapshot: Path, progress: bool) -> None:
    """Bring one file into the cache, going on from the bytes that an earlier attempt has left."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    if (snapshot / file).exists():
        return
    with _explained(f"{repo}/{file}"):
        url = hf_hub_url(repo, file, revision=snapshot.name)
        remote = get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        if not re.fullmatch(r"[\w-]{1,128}", etag := str(remote.etag), re.ASCII):
            raise OSError(f"the answer is not a hub's: its ETag is {etag[:60]!r}")
        folder = _cache_folder(repo)
        blob, locks = folder / "blobs" / etag, folder.parent / ".locks" / folder.name
        for parent in (snapshot, blob.parent, locks):
            parent.mkdir(parents=True, exist_ok=True)
    with FileLock(locks / f"{etag}.lock"):  # the one that the library takes
        if not blob.exists():
            part = blob.with_suffix(".part")
            if part.exists() and part.stat().st_size > (remote.size or 0):
                part.unlink()
            headers = build_hf_headers(headers={"Accept-Encoding": "identity"})
            bar: Any = functools.partial(tqdm, disable=not progress)
            with _explained(f"{repo}/{file}"), part.open("ab") as sink:
                http_get(url, sink, resume_size=sink.tell(), headers=headers, expected_size=remote.size,
                         displayed_filename=file, tqdm_class=bar)  # fmt: skip
            _verify(part, etag, f"{repo}/{file}")
            part.replace(blob)
        if not (snapshot / file).exists():
            try:
                (snapshot / file).symlink_to(Path("..", "..", "blobs", etag))
            except OSError:  # where links need a privilege, the file itself lies there, as with the library
                blob.replace(snapshot / file)


def _verify(part: Path, etag: str, what: str) -> None:
    """Compare with the checksum that the hub announced: sha256 of large files, git's of small ones."""
    size = part.stat().st_size
    digest = {64: hashlib.sha256(), 40: hashlib.sha1(b"blob %d\0" % size)}.get(len(etag))
    if digest is None:
        return
    with part.open("rb") as source:
        found = hashlib.file_digest(source, lambda: digest).hexdigest()
    if found != etag:
        part.unlink()
        raise ValueError(
            f"{what}: arrived with checksum {found} ({size:,} bytes), but the hub announced {etag}. "
            "It was damaged on the way and has been deleted: try again."
        )


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
            remedy = (
                "check the network (HTTPS_PROXY, HF_ENDPOINT) and try again; it goes on where it stopped."
            )
        raise AssetError(
            f"{what}: is no file or folder here, and could not be downloaded.\n"
            f"Tried: {constants.ENDPOINT}/{what}, to be kept in {constants.HF_HUB_CACHE}.\n"
            f"It said: {type(error).__name__}: {' '.join(str(error).split())[:300]}\n"
            f"What to do: {remedy}\n"
            "By hand: put config.json, model.safetensors and the tokenizer's files into a folder, and give\n"
            "the folder in place of the name, as in load_gpt2(folder).\n"
            'Instead: load_pretrained() comes with the course, load_llama("smollm2") needs no hub.'
        ) from error
