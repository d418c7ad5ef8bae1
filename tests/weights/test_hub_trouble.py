"""Downloads that are cut, damaged, refused or meant to do harm."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_hub import COMMIT, CONFIG, REPO, SHARDS, WEIGHTS, FakeHub, contents, etag, index
from huggingface_hub import HfApi, constants, file_download

from labkit.text.assets import AssetError
from labkit.weights.hub import cached, download

pytest_plugins = ["hub_fixtures"]
pytestmark = pytest.mark.usefixtures("hub")


def leftovers(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.incomplete"))


# ---- interrupted


def test_a_cut_connection_goes_on_where_it_stopped(hub: FakeHub) -> None:
    hub.cuts["model.safetensors"] = [40_321, 0, 20_000]
    folder = download(REPO)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.bodies("model.safetensors") == [None, "bytes=40000-", "bytes=40000-", "bytes=60000-"]


def test_a_cut_text_goes_on_too(hub: FakeHub) -> None:
    hub.models[REPO]["merges.txt"] = WEIGHTS.hex().encode()
    hub.cuts["merges.txt"] = [60_007]
    assert contents(download(REPO)) == hub.models[REPO]
    assert hub.bodies("merges.txt") == [None, "bytes=60000-"]


def test_the_next_call_keeps_the_files_that_arrived(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts["model.safetensors"] = [70_321] + [0] * 20
    with pytest.raises(AssetError, match="try again; what has arrived is kept"):
        download(REPO)
    assert leftovers(tmp_path) == []
    assert cached(REPO) is None
    hub.cuts.clear()
    hub.log.clear()
    assert (download(REPO) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetched() == ["model.safetensors"], "the others are there"
    assert hub.bodies("model.safetensors") == [None]


def test_a_server_that_cannot_go_on_starts_again(hub: FakeHub) -> None:
    hub.cuts["model.safetensors"] = [50_000]
    hub.ignores_range = True
    assert (download(REPO) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.bodies("model.safetensors") == [None, "bytes=50000-"]


def test_two_at_once_fetch_a_file_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = file_download.http_get

    def slow(*arguments: Any, **settings: Any) -> None:
        fetch(*arguments, **settings)
        time.sleep(0.05)

    monkeypatch.setattr(file_download, "http_get", slow)
    with ThreadPoolExecutor(3) as pool:
        assert len(set(pool.map(download, [REPO] * 3))) == 1
    assert sorted(hub.fetched()) == sorted(hub.models[REPO])


PROCESS = """
import sys
from huggingface_hub import constants
from labkit.weights.hub import download
constants.DOWNLOAD_CHUNK_SIZE = 1000
print(download(sys.argv[1]))
"""


def test_a_killed_process_leaves_no_model_and_the_next_one_fetches_it(hub: FakeHub, tmp_path: Path) -> None:
    home, hub.token, hub.stall = tmp_path / "home", "hf_secret", True
    hub.cuts["model.safetensors"] = [60_000]
    settings = {"HF_HOME": str(home), "HF_ENDPOINT": hub.address, "HF_TOKEN": hub.token, "NO_PROXY": "*"}
    unset = (
        "HF_HUB_CACHE",
        "HUGGINGFACE_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "TRANSFORMERS_OFFLINE",
        "HF_TOKEN_PATH",
    )
    environment = {name: value for name, value in os.environ.items() if name not in unset} | settings
    command = [sys.executable, "-c", PROCESS, REPO]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        parts = [part for part in home.rglob("*.incomplete") if part.stat().st_size > 40_000]
        if process.poll() is not None or parts:
            break
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert parts
    assert not list(home.rglob("model.safetensors"))
    hub.log.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder == home / "hub" / "models--somebody--small-model" / "snapshots" / COMMIT
    assert contents(folder) == hub.models[REPO]
    assert "100%" in done.stderr, "the bar"


# ---- damaged, refused, not there


@pytest.mark.parametrize("file", ["model.safetensors", "merges.txt"])
def test_a_wrong_checksum_is_an_error_and_leaves_nothing(hub: FakeHub, tmp_path: Path, file: str) -> None:
    right = hub.models[REPO][file]
    hub.damaged[file] = bytes([right[0] ^ 1]) + right[1:]
    for _ in range(2):
        with pytest.raises(
            ValueError, match=rf"{file}: arrived with checksum .* announced {etag(file, right)}"
        ):
            download(REPO)
    assert cached(REPO) is None
    assert leftovers(tmp_path) == []
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name in (file, etag(file, right))]
    hub.damaged.clear()
    assert contents(download(REPO)) == hub.models[REPO]


def test_damage_before_a_cut_is_found_too(hub: FakeHub) -> None:
    hub.cuts["model.safetensors"] = [50_000]
    hub.damaged["model.safetensors"] = WEIGHTS[:100] + b"damaged" + WEIGHTS[107:]
    with pytest.raises(ValueError, match="arrived with checksum"):
        download(REPO)
    hub.damaged.clear()
    assert (download(REPO) / "model.safetensors").read_bytes() == WEIGHTS


def test_a_damaged_file_is_found_after_an_interruption(hub: FakeHub) -> None:
    """It arrived whole before the first call ended, so nothing had compared its checksum."""
    hub.damaged["merges.txt"] = b"a c\n"
    hub.cuts["model.safetensors"] = [0] * 20
    with pytest.raises(AssetError):
        download(REPO)
    hub.cuts.clear()
    with pytest.raises(ValueError, match=r"merges\.txt: arrived with checksum"):
        download(REPO)


def test_damage_is_not_hidden_by_an_old_version(hub: FakeHub) -> None:
    old = download(REPO)
    hub.commit = COMMIT[::-1]
    hub.models[REPO]["model.safetensors"] = WEIGHTS[::-1]
    hub.damaged["model.safetensors"] = WEIGHTS
    with pytest.raises(ValueError, match="arrived with checksum"):
        download(REPO)
    assert cached(REPO) == old


def test_checksums_are_computed_once(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download(REPO)
    monkeypatch.setattr(HfApi, "verify_repo_checksums", lambda *_, **__: pytest.fail("hashed again"))
    assert download(REPO) == cached(REPO) == folder


def test_an_unknown_name_is_said_to_be_unknown(hub: FakeHub) -> None:
    with pytest.raises(AssetError, match=r"(?s)nobody/nothing: is no file .*404.*check the name") as caught:
        download("nobody/nothing")
    assert cached("nobody/nothing") is None
    assert caught.value.__cause__ is not None


def test_a_gated_model_needs_the_token_which_only_the_hub_sees(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.token = "hf_secret"
    with pytest.raises(
        AssetError, match=r"(?s)401.*asks for permission, get it there and set HF_TOKEN"
    ) as caught:
        download(REPO)
    assert "hf_secret" not in str(caught.value)
    hub.log.clear()
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert contents(download(REPO)) == hub.models[REPO]
    tokens = {request.path.startswith("/storage"): request.token for request in hub.log}
    assert tokens == {False: "Bearer hf_secret", True: None}


@pytest.mark.parametrize(
    "files", [{}, {"config.json": CONFIG, "tf_model.h5": b"x"}, {"model.safetensors": b"x"}]
)
def test_a_model_in_no_form_that_we_read(hub: FakeHub, tmp_path: Path, files: dict[str, bytes]) -> None:
    hub.models[REPO] = files
    with pytest.raises(ValueError, match=rf"{REPO}: has {'.*'.join(files) or 'no files'}, but labkit reads"):
        download(REPO)
    assert hub.fetched() == []


def test_a_full_disk_is_said_to_be_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object, **settings: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(file_download, "http_get", full)
    with pytest.raises(AssetError, match=r"(?s)No space left.*make room, or set HF_HOME"):
        download(REPO)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(AssetError, match=re.escape(constants.HF_HUB_CACHE)):
        download(REPO)


# ---- a hub that means harm


EVIL = [
    "../evil.bin",
    "/tmp/evil.bin",
    "a/../../evil.bin",
    "sub/x.bin",
    "..",
    "",
    "evil.py",
    "C:\\evil.bin",
    "\0.bin",
    7,
]


@pytest.mark.parametrize("name", EVIL)
def test_an_index_cannot_name_a_file_elsewhere(hub: FakeHub, tmp_path: Path, name: object) -> None:
    hub.models[REPO] = {"config.json": CONFIG, "model.safetensors.index.json": index(SHARDS[0], name),
                        SHARDS[0]: b"x", str(name): b"evil"}  # fmt: skip
    with pytest.raises(ValueError, match=r"index.json: (.* is not the name of a weights file|expected)"):
        download(REPO)
    assert set(hub.fetched()) == {"config.json", "model.safetensors.index.json", SHARDS[0]}
    assert not list(tmp_path.rglob("*evil*"))
    assert cached(REPO) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}',
                                     b'{"weight_map": {"a": {}}}', b"\xff", b"[" * 100_000])  # fmt: skip
def test_an_index_that_is_none(hub: FakeHub, content: bytes) -> None:
    hub.models[REPO] = {"config.json": CONFIG, "model.safetensors.index.json": content}
    with pytest.raises(
        ValueError,
        match=r"model.safetensors.index.json: (is no JSON|.*not UTF-8|.*is empty|holds a list|expected)",
    ):
        download(REPO)


def test_files_listed_elsewhere_are_never_asked_for(hub: FakeHub, tmp_path: Path) -> None:
    hub.models[REPO] |= {"../config.json": b"evil", "../../evil.bin": b"evil", "/tmp/evil.bin": b"evil"}
    assert set(contents(download(REPO))) == {"config.json", "merges.txt", "model.safetensors"}
    assert not list(tmp_path.rglob("*evil*"))


def test_a_commit_cannot_be_a_path(hub: FakeHub, tmp_path: Path) -> None:
    hub.commit = "../../../evil"
    with pytest.raises(AssetError, match=r"names the commit '\.\./\.\./\.\./evil'"):
        download(REPO)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_page_that_is_no_hub_is_said_to_be_none(hub: FakeHub) -> None:
    hub.status = 200
    with pytest.raises(AssetError, match=r"(?s)It said: JSONDecodeError.*check the network"):
        download(REPO)
