"""Published models by name, from a hub on loopback and from the cache."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from fake_hub import COMMIT, CONFIG, REPO, SHARDS, WEIGHTS, FakeHub, contents, index, use
from huggingface_hub import constants, file_download, scan_cache_dir, snapshot_download

from labkit.text.assets import AssetError
from labkit.weights.hub import cached, download

pytest_plugins = ["hub_fixtures"]
pytestmark = pytest.mark.usefixtures("hub")


def test_a_name_becomes_a_folder_with_what_the_hub_has(hub: FakeHub, tmp_path: Path) -> None:
    folder = download(REPO)
    assert contents(folder) == hub.models[REPO]
    assert folder == tmp_path / "cache" / "models--somebody--small-model" / "snapshots" / COMMIT
    assert not list(tmp_path.rglob("*.incomplete"))


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
    assert set(hub.fetched()) == set(wanted)
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
    def refuse(*arguments: object, **settings: object) -> None:
        raise OSError("a required privilege is not held by the client")

    monkeypatch.setattr(os, "symlink", refuse)
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
