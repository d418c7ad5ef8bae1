"""Files that are no GPT-2, or a damaged one: a clear error at once, and nothing in them is run."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gpt2_files import reference, write
from safetensors.torch import load_file, save_file
from torch import Tensor

from labkit import GPTConfig
from labkit.weights import assign, load_gpt2
from labkit.weights.mapping import empty_model

SIZES = {"vocab_size": 37, "n_positions": 19, "n_embd": 12, "n_layer": 2, "n_head": 3}
RAN = Path("code-of-a-file-was-run")

Change = Callable[[Path], None]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "model"
    write("no prefix", SIZES, folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights") / "sharded"
    write("sharded safetensors", SIZES, folder)
    return folder


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Change:
    """Change the tensors and write them back."""

    def apply(folder: Path) -> None:
        content = load_file(folder / "model.safetensors")
        change(content)
        save_file({name: each.contiguous() for name, each in content.items()}, folder / "model.safetensors")

    return apply


def config(**changes: Any) -> Change:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(content))

    return apply


def content(data: bytes, name: str = "model.safetensors") -> Change:
    def apply(folder: Path) -> None:
        (folder / name).write_bytes(data)

    return apply


def removed(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def only_bin(write_bin: Callable[[Path], object]) -> Change:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        write_bin(folder / "pytorch_model.bin")

    return apply


def cut(part: float) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors"
        os.truncate(file, int(file.stat().st_size * part))

    return apply


def swap(first: str, second: str) -> Callable[[dict[str, Tensor]], None]:
    def apply(content: dict[str, Tensor]) -> None:
        content[first], content[second] = content[second], content[first]

    return apply


def replaced(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Tensor]], None]:
    def apply(content: dict[str, Tensor]) -> None:
        content[name] = change(content[name])

    return apply


def one_huge(tensor: Tensor) -> Tensor:
    """What the top bit of an exponent does to one number."""
    tensor[7, 5] = -6e37
    return tensor


class Evil:
    """Unpickled, it creates a file."""

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return RAN.touch, ()


def header(document: dict[str, Any], data: bytes = b"") -> bytes:
    text = json.dumps(document).encode()
    return struct.pack("<Q", len(text)) + text + data


def torch_file(value: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(value, path)


def truncated_torch_file(path: Path) -> None:
    torch.save(reference(SIZES).state_dict(), path)
    os.truncate(path, path.stat().st_size // 2)


HUGE = {"wte.weight": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}

WRONG: dict[str, tuple[Change, str]] = {
    "cut in the middle": (cut(0.6), "is no whole safetensors file"),
    "cut in the header": (cut(0.01), "is no whole safetensors file"),
    "empty": (content(b""), "is no whole safetensors file"),
    "a header of 2**60 bytes": (content(struct.pack("<Q", 2**60) + b"{}"), "is no whole safetensors file"),
    "a tensor of 2**62 bytes": (content(header(HUGE)), "is no whole safetensors file"),
    "no JSON in the header": (content(struct.pack("<Q", 9) + b"{'a': 1}}"), "is no whole safetensors file"),
    "an image": (content(b"\x89PNG\r\n\x1a\n" + bytes(99)), "is no whole safetensors file"),
    "a web page": (content(b"<!DOCTYPE html><html>404"), "is a web page, not weights"),
    "a pointer of Git LFS": (content(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "a Keras file": (content(b"\x89HDF\r\n\x1a\n"), r"is a Keras \(HDF5\) file"),
    "a GGUF file": (content(b"GGUF\x03\0\0\0"), "load_llama reads those"),
    "a pickle with code": (only_bin(lambda path: path.write_bytes(pickle.dumps(Evil()))), "nothing was run"),
    "a torch file with code": (only_bin(torch_file({"wte.weight": Evil()})), "nothing was run"),
    "an old torch file with code": (
        only_bin(lambda path: torch.save(Evil(), path, _use_new_zipfile_serialization=False)),
        "nothing was run",
    ),
    "a torch file cut short": (only_bin(truncated_torch_file), "is cut short or damaged"),
    "a list in a torch file": (only_bin(torch_file([torch.ones(3)])), "holds a list; expected tensors"),
    "a checkpoint of training": (
        only_bin(torch_file({"model": {"wte.weight": torch.ones(3)}, "step": 3})),
        r"'model' is a dict; .* Save model.state_dict\(\) alone",
    ),
    "a sparse tensor": (
        only_bin(torch_file({"wte.weight": torch.eye(3).to_sparse()})),
        "wte.weight is not a plain tensor",
    ),
    "no weights at all": (removed("model.safetensors"), "holds no weights. Expected"),
    "embeddings missing": (tensors(lambda each: each.pop("wte.weight")), "wte.weight or wpe.weight is mis"),
    "a tensor missing": (tensors(lambda each: each.pop("h.1.ln_2.bias")), r"Missing: h\.1\.ln_2\.bias"),
    "a tensor too many": (
        tensors(lambda each: each.update({"h.1.adapter.weight": torch.ones(2, 3)})),
        r"Not known: h\.1\.adapter\.weight",
    ),
    "a layer too many": (
        tensors(lambda each: each.update({"h.2.ln_1.bias": torch.ones(12)})), r"Not known: h\.2\.ln_1\.bias"
    ),
    "everything with and without a prefix": (
        tensors(lambda each: each.update({f"transformer.{name}": each[name].clone() for name in list(each)})),
        "holds some tensors twice",
    ),
    "two names swapped": (
        tensors(swap("h.0.ln_1.weight", "h.0.mlp.c_fc.bias")),
        r"h\.0\.ln_1\.weight does not fit.* shape \(12,\), but the tensor has \(48,\)",
    ),
    "a matrix and a bias swapped": (
        tensors(swap("h.0.attn.c_proj.weight", "h.0.attn.c_proj.bias")), "were two names swapped"
    ),
    "a matrix transposed": (
        tensors(replaced("h.1.mlp.c_fc.weight", lambda each: each.mT)), r"It is transposed: is it stored"
    ),
    "query, key and value transposed": (
        tensors(replaced("h.1.attn.c_attn.weight", lambda each: each.mT)),
        r"c_attn\.weight does not fit\. A tensor of shape \(36, 12\) cannot be split into parts of .*is tr",
    ),
    "another vocabulary": (config(vocab_size=36), "another vocabulary: 37 in place of 36"),
    "another context": (config(n_positions=18), "another context length: 19 in place of 18"),
    "another size": (config(n_embd=9), r"wte\.weight does not fit.*belongs to a model of another size"),
    "whole numbers": (
        tensors(replaced("ln_f.bias", lambda each: each.int())), "needs floating-point numbers, but the"
    ),
    "not a number": (
        tensors(replaced("h.1.mlp.c_proj.bias", lambda each: each * torch.nan)),
        r"are not finite, or huge; so are the weights h\.1\.mlp\.c_proj\.bias",
    ),
    "a flipped bit in the embedding": (
        tensors(replaced("wte.weight", one_huge)), r"or huge; so are the weights wte\.weight"
    ),
    "a flipped bit in a block": (
        tensors(replaced("h.1.mlp.c_fc.weight", one_huge)), r"or huge; so are the weights h\.1\.mlp\.c_fc"
    ),
    "no JSON in config.json": (content(b"{", "config.json"), "is no JSON text"),
    "a list in config.json": (content(b"[1]", "config.json"), "holds a list; expected a JSON object"),
    "deep JSON": (content(b"[" * 10**6, "config.json"), "is no JSON text"),
    "another family": (config(model_type="llama"), "describes model_type='llama', not a GPT-2"),
    "no number of layers": (config(n_layer=None), "does not say n_layers"),
    "a billion layers": (config(n_layer=10**9), "n_layers=1000000000 does not fit the tensors"),
    "a billion features": (config(n_embd=10**9), "d_model=1000000000 does not fit the tensors"),
    "a text as a size": (config(n_head="3"), "n_heads='3' does not fit the tensors"),
    "heads that do not divide": (config(n_head=5), "n_heads=5 does not divide d_model=12"),
    "scores that are not scaled": (config(scale_attn_weights=False), "labkit computes True only"),
    "an activation that we lack": (config(activation_function="relu"), "activation_function='relu'"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_refused_at_once(
    name: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, message = WRONG[name]
    folder = Path(shutil.copytree(whole, tmp_path / "model"))
    change(folder)
    monkeypatch.chdir(tmp_path)
    before = time.process_time()
    with pytest.raises(ValueError, match=message) as caught:
        load_gpt2(folder)
    assert time.process_time() - before < 2
    assert str(tmp_path / "model") in str(caught.value) or name == "heads that do not divide"
    assert not RAN.exists()


def index(change: Callable[[dict[str, Any]], object]) -> Change:
    def apply(folder: Path) -> None:
        file = folder / "model.safetensors.index.json"
        document = json.loads(file.read_text())
        change(document["weight_map"])
        file.write_text(json.dumps(document))

    return apply


WTE = "transformer.wte.weight"
WRONG_INDEX: dict[str, tuple[Change, str]] = {
    "a path out of the folder": (
        index(lambda files: files.update({WTE: "../secret.safetensors"})), "is not the name of a weights file"
    ),
    "an absolute path": (
        index(lambda files: files.update({WTE: "/etc/x.safetensors"})), "is not the name of a weights file"
    ),
    "a path with backslashes": (
        index(lambda files: files.update({WTE: "..\\x.safetensors"})), "is not the name of a weights file"
    ),
    "another kind of file": (
        index(lambda files: files.update({WTE: "config.json"})), "is not the name of a weights file"
    ),
    "a shard missing": (
        removed("model-00002-of-00003.safetensors"), "00002-of-00003.safetensors: cannot be read"
    ),
    "a tensor in another shard": (
        index(lambda files: files.update({WTE: next(each for each in files.values() if each != files[WTE])})),
        r"says that transformer\.wte\.weight is in model-\d+-of-00003\.safetensors, but it is not there",
    ),
    "no map": (
        content(b"{}", "model.safetensors.index.json"), 'expected "weight_map"'
    ),
    "numbers for files": (index(lambda files: files.update({WTE: 3})), 'expected "weight_map"'),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_INDEX)
def test_a_wrong_index_is_refused(name: str, sharded: Path, tmp_path: Path) -> None:
    change, message = WRONG_INDEX[name]
    folder = Path(shutil.copytree(sharded, tmp_path / "model"))
    save_file({WTE: torch.ones(37, 12)}, tmp_path / "secret.safetensors")
    change(folder)
    with pytest.raises(ValueError, match=message):
        load_gpt2(folder)


def test_assign_names_the_parameter_and_what_is_close_to_it() -> None:
    model = empty_model(GPTConfig(vocab_size=7, context_length=5, d_model=8, n_layers=1, n_heads=2))
    with pytest.raises(ValueError, match=r"no parameter 'blocks.0.mlp.upp.weight'.*: blocks.0.mlp.up.weight"):
        assign(model, "blocks.0.mlp.upp.weight", torch.ones(32, 8))
    with pytest.raises(
        ValueError, match=r"blocks.0.mlp.up.weight has shape \(32, 8\), but the tensor has \(8, 32\)"
    ):
        assign(model, "blocks.0.mlp.up.weight", torch.ones(8, 32))
    assign(model, "blocks.0.mlp.up.weight", torch.full((32, 8), 0.5, dtype=torch.bfloat16))
    assert model.blocks[0].mlp.up.weight.dtype == torch.float32
    assert model.blocks[0].mlp.up.weight.sum() == 128
    assign(model, "token_embedding.weight", torch.ones(7, 8))
    assert model.head.weight is model.token_embedding.weight
    assert not model.head.weight.is_meta
