"""Files that are no llama model, a damaged one, or one we would compute wrongly: a clear error at once."""

from __future__ import annotations

import json
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llama_files import SIZES, change_config, write_folder, write_gguf
from safetensors.torch import load_file, save_file
from torch import Tensor

from labkit.weights.llama import load_llama

SIZE = SIZES["three query heads share a key"]
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "model"
    write_folder("safetensors", SIZE, path)
    return path


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "model.gguf"
    write_gguf("F32", SIZE, path)
    return path


def refused(source: Path, *parts: str) -> None:
    """The error names the source, says all the parts, and comes within two seconds."""
    began = time.monotonic()
    with pytest.raises(ValueError, match=r"\S") as caught:
        load_llama(source)
    assert time.monotonic() - began < 2
    for part in (str(source), *parts):
        assert part in str(caught.value)


def config(**changes: Any) -> Change:
    return lambda folder: change_config(folder, **changes)


def tensors(change: Callable[[dict[str, Tensor]], object]) -> Change:
    """Change the tensors of a folder and write them back."""

    def apply(folder: Path) -> None:
        content = load_file(folder / "model.safetensors")
        change(content)
        save_file({name: each.contiguous() for name, each in content.items()}, folder / "model.safetensors")

    return apply


QUERY, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"

FOLDERS: dict[str, tuple[Change, list[str]]] = {
    "another family": (config(model_type="mistral"), ["model_type='mistral'", "'llama'"]),
    "gpt-2": (config(model_type="gpt2"), ["model_type='gpt2'", "load_gpt2"]),
    "stretched positions": (
        config(rope_parameters={"rope_type": "llama3", "factor": 8.0, "rope_theta": 5e5}),
        ["rope_type='llama3'", "'default'"],
    ),
    "stretched positions, as it was written before": (
        config(rope_parameters=None, rope_scaling={"type": "linear", "factor": 2.0}),
        ["rope_type='linear'"],
    ),
    "partial rotary": (
        config(rope_parameters={"rope_type": "default", "rope_theta": 5e2, "partial_rotary_factor": 0.5}),
        ["partial_rotary_factor=0.5"],
    ),
    "odd heads": (config(head_dim=8), ["head_dim=8", "6"]),
    "another activation": (config(hidden_act="gelu"), ["hidden_act='gelu'", "'silu'"]),
    "sliding window": (config(sliding_window=32), ["sliding_window=32"]),
    "experts": (config(num_local_experts=4), ["num_local_experts=4"]),
    "packed weights": (config(quantization_config={"bits": 4}), ["quantization_config="]),
    "biases in attention only": (config(attention_bias=True), ["mlp_bias=False"]),
    "no size": (config(hidden_size=None), ["d_model"]),
    "a size that is a word": (config(num_hidden_layers="three"), ["n_layers='three'"]),
    "billions of layers": (config(num_hidden_layers=10**9), ["n_layers=1000000000"]),
    "heads that do not divide": (config(num_attention_heads=5, head_dim=None), ["n_heads=5", "36"]),
    "rotary settings that are a list": (config(rope_parameters=[1]), ["rotary settings", "[1]"]),
    "fewer layers than tensors": (config(num_hidden_layers=2), ["Not known: model.layers.2."]),
    "another number of key heads": (
        config(num_key_value_heads=3),
        ["blocks.0.attention.key.weight", "(18, 36)", "(12, 36)"],
    ),
    "an untied head that is missing": (config(tie_word_embeddings=False), ["Missing: lm_head.weight"]),
    "a missing tensor": (tensors(lambda found: found.pop(QUERY)), ["Missing:", QUERY]),
    "an unknown tensor": (
        tensors(lambda found: found.update({"model.extra": torch.ones(3)})),
        ["Not known: model.extra"],
    ),
    "a transposed tensor": (
        tensors(lambda found: found.update({"model.layers.0.mlp.up_proj.weight": torch.ones(36, 50)})),
        ["model.layers.0.mlp.up_proj.weight", "(50, 36)", "(36, 50)", "transposed"],
    ),
    "numbers that are none": (
        tensors(lambda found: found.update({NORM: torch.full((36,), torch.nan)})),
        ["not finite", "norm.weight"],
    ),
    "weights cut short": (
        lambda folder: (folder / "model.safetensors").write_bytes(
            (folder / "model.safetensors").read_bytes()[:-100]
        ),
        ["model.safetensors", "cut short"],
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ["holds no weights"]),
    "no configuration": (lambda folder: (folder / "config.json").unlink(), ["config.json", "cannot be read"]),
    "a damaged tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", '),
        ["tokenizer"],
    ),
    "a tokenizer of another model": (
        lambda folder: (folder / "tokenizer.json").write_text(json.dumps(LARGE_TOKENIZER)),
        ["tokenizer has 301 ids", "the model only 61"],
    ),
}

LARGE_TOKENIZER = {
    "added_tokens": [],
    "normalizer": None,
    "pre_tokenizer": {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    },
    "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 300}, "merges": [["a", "b"]]},
}


@pytest.mark.parametrize(("change", "parts"), FOLDERS.values(), ids=FOLDERS)
def test_a_wrong_folder_is_refused(folder: Path, tmp_path: Path, change: Change, parts: list[str]) -> None:
    wrong = tmp_path / "model"
    shutil.copytree(folder, wrong)
    change(wrong)
    refused(wrong, *parts)


METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "stretched positions": ({"rope.scaling.type": "yarn"}, "rope.scaling.type='yarn'"),
    "stretched positions, as it was written before": ({"rope.scale_linear": 2.0}, "rope.scale_linear=2.0"),
    "partial rotary": ({"rope.dimension_count": 4}, "rope.dimension_count=4"),
    "odd heads": ({"attention.key_length": 8}, "attention.key_length=8"),
    "sliding window": ({"attention.sliding_window": 32}, "attention.sliding_window=32"),
    "experts": ({"expert_count": 4}, "expert_count=4"),
}


@pytest.mark.parametrize(("metadata", "part"), METADATA.values(), ids=METADATA)
def test_a_gguf_model_we_would_compute_wrongly_is_refused(
    tmp_path: Path, metadata: dict[str, Any], part: str
) -> None:
    write_gguf("F32", SIZE, tmp_path / "model.gguf", **metadata)
    refused(tmp_path / "model.gguf", part)


def header(tensors: int, fields: int, rest: bytes = b"", version: int = 3) -> Callable[[bytes], bytes]:
    return lambda whole: b"GGUF" + struct.pack("<IQQ", version, tensors, fields) + rest


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def tensor(shape: list[int], kind: int = 0, offset: int = 0, name: str = "a") -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)
    return lambda whole: whole.replace(old, new, 1)


HUGE, STRING, ARRAY = 2**63, 8, 9

GGUFS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda whole: b"", "begins with b''"),
    "text": (lambda whole: b"once upon a time", "not with b'GGUF'"),
    "a published file of another kind": (lambda whole: b"PK\x03\x04" + whole, "not with b'GGUF'"),
    "cut short in its header": (lambda whole: whole[:300], "cut short"),
    "cut short in its weights": (lambda whole: whole[:-200], "the file at"),
    "the first version": (header(0, 0, version=1), "version 1"),
    "big-endian": (header(0, 0, version=3 << 24), "version 50331648"),
    "nothing in it": (header(0, 0), "general.architecture=None"),
    "more tensors than bytes": (header(HUGE, 0, bytes(9000)), "0 dimensions"),
    "more fields than bytes": (header(0, HUGE, bytes(9000)), "cut short"),
    "a name of so many bytes": (header(0, 1, struct.pack("<Q", HUGE)), "announced"),
    "an array of so many numbers": (
        header(0, 1, string("a") + struct.pack("<IIQ", ARRAY, 6, HUGE)),
        "announced in its header",
    ),
    "an array of so many strings": (
        header(0, 1, string("a") + struct.pack("<IIQ", ARRAY, STRING, HUGE) + bytes(2**24)),
        "strings are announced in its header",
    ),
    "arrays in arrays": (
        header(0, 1, string("a") + struct.pack("<IIQIQ", ARRAY, ARRAY, 1, ARRAY, 1) * 999),
        "kind of value 9 is not known in an array",
    ),
    "a kind of value nobody knows": (header(0, 1, string("a") + struct.pack("<I", 99)), "kind of value 99"),
    "a name that is no text": (header(0, 1, struct.pack("<Q", 1) + b"\xff"), "can't decode"),
    "a tensor of so many numbers": (header(1, 0, tensor([2**62, 2**62]) + bytes(99)), "the file at"),
    "a tensor behind the end": (header(1, 0, tensor([4], offset=HUGE) + bytes(99)), "the file at"),
    "a tensor of nothing": (header(1, 0, tensor([0, 3]) + bytes(99)), "cannot be"),
    "a tensor of many dimensions": (header(1, 0, tensor([1] * 500) + bytes(99)), "500 dimensions"),
    "a tensor twice": (header(2, 0, tensor([4]) + tensor([4]) + bytes(99)), "is there twice"),
    "tensors on top of each other": (
        header(9, 0, b"".join(tensor([200], name=f"{i}") for i in range(9)) + bytes(1000)),
        "overlap",
    ),
    "rows of half blocks": (header(1, 0, tensor([48], kind=8) + bytes(99)), "cannot be"),
    "a packing nobody knows": (header(1, 0, tensor([32], kind=999) + bytes(99)), "999"),
    "arrays of very many strings together": (
        header(0, 9, (string("a") + struct.pack("<IIQ", ARRAY, STRING, 2**18) + bytes(2**21)) * 9),
        "strings are in its header",
    ),
    "frequencies of stretched positions": (
        replaced(string("token_embd.weight"), string("rope_freqs.weight")),
        "rope_freqs.weight=True",
    ),
    "another family": (replaced(string("llama"), string("qwen2")), "general.architecture='qwen2'"),
    "swapped names": (
        replaced(string("blk.0.attn_q.weight"), string("blk.7.attn_q.weight")),
        "Missing: blk.0.attn_q.weight. Not known: blk.7.attn_q.weight",
    ),
}


@pytest.mark.parametrize(("change", "part"), GGUFS.values(), ids=GGUFS)
def test_a_wrong_gguf_file_is_refused(
    gguf_file: Path, tmp_path: Path, change: Callable[[bytes], bytes], part: str
) -> None:
    path = tmp_path / "wrong.gguf"
    path.write_bytes(change(gguf_file.read_bytes()))
    refused(path, part)


def test_a_source_that_is_nowhere_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no_such_folder"):
        load_llama(tmp_path / "no_such_folder")
