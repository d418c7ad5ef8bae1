"""Downloads, against a hub on loopback: no test reaches further."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from fake_hub import COMMIT, FakeHub, etag
from huggingface_hub import constants, file_download, scan_cache_dir, snapshot_download

import labkit.weights.hub as hub_module
from labkit.text.assets import AssetError
from labkit.weights.hub import cached, download

REPO = "somebody/small-model"
CONFIG = b'{"model_type": "gpt2"}\n'
WEIGHTS = random.Random(3).randbytes(100_003)
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]


def index(*files: object) -> bytes:
    return json.dumps(
        {"metadata": {}, "weight_map": {f"h.{i}.w": file for i, file in enumerate(files)}}
    ).encode()


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub(
        {REPO: {"config.json": CONFIG, "merges.txt": b"a b\n", "model.safetensors": WEIGHTS}}
    ) as hub:
        yield hub


@pytest.fixture(autouse=True, scope="module")
def _session() -> Iterator[None]:
    """A connection of this file's own, which knows of no proxy."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "*")
        huggingface_hub.close_session()
        huggingface_hub.get_session()
        yield
    huggingface_hub.close_session()


@pytest.fixture(autouse=True)
def _settings(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the library reads from the environment at import, set to the fake hub and an empty cache."""
    use(hub, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    connect = socket.socket.connect

    def only_loopback(self: socket.socket, address: tuple[str, int]) -> None:
        assert address[0] in ("127.0.0.1", "::1"), f"a test reaches for {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_loopback)


def use(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def leftovers(tmp_path: Path) -> list[Path]:
    return list((tmp_path / "cache").rglob("*.part"))


def test_a_name_becomes_a_folder_with_what_the_hub_has(hub: FakeHub, tmp_path: Path) -> None:
    folder = download(REPO)
    assert contents(folder) == hub.models[REPO]
    assert folder == tmp_path / "cache" / "models--somebody--small-model" / "snapshots" / COMMIT
    assert leftovers(tmp_path) == []


def test_the_second_time_costs_one_request(hub: FakeHub) -> None:
    folder = download(REPO)
    hub.log.clear()
    assert download(REPO) == folder
    assert [(request.method, request.path) for request in hub.log] == [("GET", f"/api/models/{REPO}")]


def test_only_the_files_that_a_model_needs_are_fetched(hub: FakeHub) -> None:
    wanted = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
    wanted += [
        "vocab.json",
        "merges.txt",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors",
    ]
    others = [
        "pytorch_model.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "rust_model.ot",
        "64.tflite",
        "README.md",
    ]
    others += [
        "onnx/decoder_model.onnx",
        "onnx/config.json",
        "pytorch_model.bin.index.json",
        ".gitattributes",
    ]
    hub.models[REPO] = {file: file.encode() for file in reversed(wanted + others)}
    assert set(contents(download(REPO))) == set(wanted)
    assert hub.fetched() == wanted, "and the weights last"
    assert not [request.path for request in hub.log if request.path.endswith(tuple(others))]


def test_shards_are_those_that_the_index_names(hub: FakeHub) -> None:
    content = index(SHARDS[1], SHARDS[0], SHARDS[1])
    shards = {SHARDS[0]: WEIGHTS[:30_011], SHARDS[1]: WEIGHTS[30_011:]}
    others = {"pytorch_model.bin": b"bin", "model-old.safetensors": b"old"}
    hub.models[REPO] = {"config.json": CONFIG, "model.safetensors.index.json": content, **shards, **others}
    folder = download(REPO)
    assert set(contents(folder)) == {"config.json", "model.safetensors.index.json", *SHARDS}
    assert b"".join((folder / shard).read_bytes() for shard in SHARDS) == WEIGHTS
    assert cached(REPO) == folder


@pytest.mark.parametrize("sharded", [False, True])
def test_pickles_are_fetched_where_there_is_nothing_else(hub: FakeHub, sharded: bool) -> None:
    shards = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    files = ["pytorch_model.bin.index.json", *shards] if sharded else ["pytorch_model.bin"]
    hub.models[REPO] = {"config.json": CONFIG, **dict.fromkeys(files, WEIGHTS)}
    if sharded:
        hub.models[REPO][files[0]] = index(*shards)
    folder = download(REPO)
    assert contents(folder) == hub.models[REPO]
    assert cached(REPO) == folder


@pytest.mark.parametrize(
    ("name", "repo"),
    [("gpt2", "openai-community/gpt2"), ("gpt2-xl", "openai-community/gpt2-xl"),
     ("distilgpt2", "distilbert/distilgpt2")],
)  # fmt: skip
def test_short_names(hub: FakeHub, name: str, repo: str) -> None:
    hub.models = {repo: hub.models[REPO]}
    assert download(name) == cached(name) == cached(repo)


@pytest.mark.parametrize(
    "name", ["gpt5", "", "a/b/c", "../evil", "a/..", "a/.b", "https://x/y", "a b/c", "a/b\n", "a/bä"]
)
def test_other_names_are_refused_before_anyone_is_asked(hub: FakeHub, name: str) -> None:
    for function in (download, cached):
        with pytest.raises(ValueError, match=r"not a published model's name.*gpt2-medium.*owner/name"):
            function(name)
    assert hub.log == []


# ---- the cache is shared with the library


def test_the_library_finds_what_we_have_fetched(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download(REPO)
    report = scan_cache_dir(constants.HF_HUB_CACHE)
    assert report.warnings == []
    [repo] = report.repos
    [revision] = repo.revisions
    sizes = {file.file_name: file.size_on_disk for file in revision.files}
    assert sizes == {file: len(content) for file, content in hub.models[REPO].items()}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert snapshot_download(REPO) == str(folder)
    assert file_download.hf_hub_download(REPO, "merges.txt") == str(folder / "merges.txt")


def test_we_find_what_the_library_has_fetched(hub: FakeHub) -> None:
    fetched = [file_download.hf_hub_download(REPO, file) for file in ("config.json", "model.safetensors")]
    folder = cached(REPO)
    assert folder == Path(fetched[0]).parent == Path(fetched[1]).parent
    hub.log.clear()
    assert download(REPO) == folder
    assert hub.fetched() == ["merges.txt"], "what was missing"


def test_a_cache_under_the_short_name_counts(hub: FakeHub, tmp_path: Path) -> None:
    hub.models = {"openai-community/gpt2": hub.models[REPO]}
    folder = download("gpt2")
    (tmp_path / "cache" / "models--openai-community--gpt2").rename(tmp_path / "cache" / "models--gpt2")
    assert cached("gpt2") == tmp_path / "cache" / "models--gpt2" / folder.relative_to(folder.parents[1])
    assert cached("openai-community/gpt2") is None


def test_a_new_version_shares_the_files_that_stayed(hub: FakeHub) -> None:
    old = download(REPO)
    hub.models[REPO]["config.json"] = CONFIG + b"\n"
    hub.commit = COMMIT[::-1]
    hub.log.clear()
    new = download(REPO)
    assert new != old
    assert hub.fetched() == ["config.json"]
    assert contents(new) == hub.models[REPO]
    assert cached(REPO) == new


def test_files_stand_in_for_links_where_links_are_refused(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: Path, target_is_directory: bool = False) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    folder = download(REPO)
    assert not any(path.is_symlink() for path in folder.iterdir())
    assert contents(folder) == hub.models[REPO]
    assert cached(REPO) == folder


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors.index.json", SHARDS[1]])
def test_an_incomplete_copy_is_no_copy(hub: FakeHub, lost: str) -> None:
    assert cached(REPO) is None
    hub.models[REPO] = {"config.json": CONFIG, "model.safetensors.index.json": index(*SHARDS),
                        SHARDS[0]: WEIGHTS[:11], SHARDS[1]: WEIGHTS[11:]}  # fmt: skip
    folder = download(REPO)
    (folder / lost).resolve().unlink()
    hub.log.clear()
    assert cached(REPO) is None
    assert hub.log == []
    assert download(REPO) == folder
    assert hub.fetched() == [lost]
    assert contents(folder) == hub.models[REPO]


def test_a_broken_index_of_another_program_is_no_copy(hub: FakeHub) -> None:
    hub.models[REPO] = {"config.json": CONFIG, "model.safetensors.index.json": b"{"}
    for file in hub.models[REPO]:
        file_download.hf_hub_download(REPO, file)
    assert cached(REPO) is None


def test_the_folder_is_right_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "cache")
    folder = download(REPO)
    monkeypatch.chdir("/")
    assert (folder / "config.json").read_bytes() == CONFIG


# ---- no network


def test_offline_the_cache_answers(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = download(REPO)
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert download(REPO) == cached(REPO) == folder
    assert hub.log == []


def test_offline_without_a_copy_the_error_says_what_to_do(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AssetError, match="HF_HUB_OFFLINE forbids to ask") as caught:
        download(REPO)
    message = str(caught.value)
    for part in (
        REPO,
        hub.address,
        constants.HF_HUB_CACHE,
        "load_gpt2(folder)",
        "load_pretrained()",
        "smollm2",
    ):
        assert part in message
    assert hub.log == []


@pytest.mark.parametrize("failure", ["no server", 503, 404, 401])
def test_a_copy_in_the_cache_does_where_the_hub_fails(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, failure: str | int
) -> None:
    folder = download(REPO)
    if isinstance(failure, int):
        hub.status = failure
        assert download(REPO) == folder
    else:
        closed = FakeHub()
        with closed:
            use(closed, monkeypatch)
        assert download(REPO) == folder


def test_the_old_version_does_while_the_new_one_does_not_arrive(hub: FakeHub) -> None:
    old = download(REPO)
    hub.commit = COMMIT[::-1]
    hub.models[REPO]["model.safetensors"] = WEIGHTS[::-1]
    hub.cuts["model.safetensors"] = [7] * 20
    assert download(REPO) == cached(REPO) == old
    hub.cuts.clear()
    assert (download(REPO) / "model.safetensors").read_bytes() == WEIGHTS[::-1]


def test_without_a_server_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    closed = FakeHub()
    with closed:
        use(closed, monkeypatch)
    with pytest.raises(AssetError, match=r"refused\nWhat to do: check the network .*\nBy hand: .*"):
        download(REPO)


def test_a_server_that_says_nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(AssetError, match=r"It said: ReadTimeout"):
            download(REPO)


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


def test_the_next_call_goes_on_where_the_last_one_gave_up(hub: FakeHub, tmp_path: Path) -> None:
    hub.cuts["model.safetensors"] = [70_321] + [0] * 20
    with pytest.raises(AssetError, match="it goes on where it stopped"):
        download(REPO)
    [part] = leftovers(tmp_path)
    assert part.read_bytes() == WEIGHTS[:70_000]
    assert cached(REPO) is None
    hub.cuts.clear()
    hub.log.clear()
    assert (download(REPO) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.fetched() == ["model.safetensors"], "the others are there"
    assert hub.bodies("model.safetensors") == ["bytes=70000-"]
    assert leftovers(tmp_path) == []


def test_a_server_that_cannot_go_on_starts_again(hub: FakeHub) -> None:
    hub.cuts["model.safetensors"] = [50_000]
    hub.ignores_range = True
    assert (download(REPO) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.bodies("model.safetensors") == [None, "bytes=50000-"]


def test_more_bytes_than_announced_are_thrown_away(hub: FakeHub, tmp_path: Path) -> None:
    blobs = tmp_path / "cache" / "models--somebody--small-model" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / f"{etag('model.safetensors', WEIGHTS)}.part").write_bytes(WEIGHTS + b"x")
    assert (download(REPO) / "model.safetensors").read_bytes() == WEIGHTS
    assert hub.bodies("model.safetensors") == [None]


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
import runpy, sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = 1000
print(runpy.run_path(sys.argv[1])["download"](sys.argv[2]))  # the file alone, without torch
"""


def test_a_killed_process_is_continued_by_the_next_which_reads_the_environment(
    hub: FakeHub, tmp_path: Path
) -> None:
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
    command = [sys.executable, "-c", PROCESS, hub_module.__file__, REPO]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    for _ in range(3000):
        parts = list(home.rglob("*.part"))
        if process.poll() is not None or (parts and parts[0].stat().st_size > 40_000):
            break
        time.sleep(0.01)
    process.kill()
    process.communicate()
    [part] = home.rglob("*.part")
    size = part.stat().st_size
    assert part.read_bytes() == WEIGHTS[:size]
    hub.log.clear()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    folder = Path(done.stdout.strip())
    assert folder == home / "hub" / "models--somebody--small-model" / "snapshots" / COMMIT
    assert contents(folder) == hub.models[REPO]
    assert hub.bodies("model.safetensors") == [f"bytes={size}-"]
    assert "model.safetensors: 100%" in done.stderr, "the bar"


def test_the_bar_can_be_silenced(hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    download(REPO, progress=False)
    assert capfd.readouterr() == ("", "")


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
    hub.cuts["model.safetensors"] = [50_000] + [0] * 20
    hub.damaged["model.safetensors"] = WEIGHTS[:100] + b"damaged" + WEIGHTS[107:]
    with pytest.raises(AssetError):
        download(REPO)
    hub.cuts.clear()
    hub.damaged.clear()
    with pytest.raises(ValueError, match="arrived with checksum"):
        download(REPO)
    assert (download(REPO) / "model.safetensors").read_bytes() == WEIGHTS


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
    monkeypatch.setattr("hashlib.file_digest", lambda *arguments: pytest.fail("hashed again"))
    assert download(REPO) == cached(REPO) == folder


def test_an_unknown_name_is_said_to_be_unknown(hub: FakeHub) -> None:
    with pytest.raises(AssetError, match=r"(?s)nobody/nothing: could not .*404.*check the name") as caught:
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
    with pytest.raises(ValueError, match=r"index.json: (names|is not an index).*Choose another model"):
        download(REPO)
    assert hub.fetched() == ["config.json", "model.safetensors.index.json"]
    assert not list(tmp_path.rglob("*evil*"))
    assert cached(REPO) is None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": {}}',
                                     b'{"weight_map": {"a": {}}}', b"\xff", b"[" * 100_000])  # fmt: skip
def test_an_index_that_is_none(hub: FakeHub, content: bytes) -> None:
    hub.models[REPO] = {"config.json": CONFIG, "model.safetensors.index.json": content}
    with pytest.raises(ValueError, match=r"model.safetensors.index.json: .*Choose another model"):
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


@pytest.mark.parametrize("checksum", ["../../../evil", "/tmp/evil", "", "a\\b", "."])
def test_a_checksum_cannot_be_a_path(hub: FakeHub, tmp_path: Path, checksum: str) -> None:
    hub.announced["config.json"] = checksum or '""'
    with pytest.raises(AssetError, match="its ETag is"):
        download(REPO)
    assert not list(tmp_path.rglob("*evil*"))


def test_a_page_that_is_no_hub_is_said_to_be_none(hub: FakeHub) -> None:
    hub.status = 200
    with pytest.raises(AssetError, match=r"(?s)It said: JSONDecodeError.*check the network"):
        download(REPO)
