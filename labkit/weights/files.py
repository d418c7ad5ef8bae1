"""Files of weights as others publish them: found, recognised by their first bytes, and mapped into memory."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from labkit.io import fresh_folder
from labkit.model import GPT
from labkit.text import Tokenizer, save_published_tokenizer
from labkit.text.tokenizers import read_json

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where a folder's weights are, the first that is there."""

WRITTEN = {
    *("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"),
    *("vocab.json", "merges.txt", "special_tokens_map.json", "chat_template.jinja"),
}
"""What a folder holds that `write_model` has written."""

_NOT_WEIGHTS = {
    b"version https://git-lfs": "is a Git LFS pointer, not the weights. Fetch them: git lfs pull.",
    b"<!doctype html": "is a web page, not weights: the download went wrong. Fetch the file again.",
    b"<html": "is a web page, not weights: the download went wrong. Fetch the file again.",
    b"gguf": "is a GGUF file. load_llama reads those.",
    b"\x89hdf": "is a Keras (HDF5) file. Take model.safetensors or pytorch_model.bin of the same model.",
}


def read_tensors(source: Path) -> dict[str, Tensor]:
    """The tensors of a weights file, or of a folder's (`WEIGHTS`), by name; nothing in them is executed.

    They lie in the mapped file: they take memory only where they are touched.
    Raises ValueError, naming the file, for what is missing, damaged or of another kind.
    """
    if not source.is_dir():
        return _read_index(source) if source.suffix == ".json" else _read_file(source)
    for name in WEIGHTS:
        if (source / name).is_file():
            return read_tensors(source / name)
    found = ", ".join(sorted(path.name for path in source.iterdir())[:8]) or "nothing"
    raise ValueError(f"{source}: holds no weights. Expected one of {', '.join(WEIGHTS)}; found {found}.")


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index of several weights files says.

    Raises ValueError, naming the index, where it names none, or anything but weights files beside it.
    """
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(file, str) for file in where.values()):
        raise ValueError(f'{index}: expected "weight_map", which names the file of each tensor.')
    for file in set(where.values()):
        if not re.fullmatch(r"\w[\w.-]*\.(safetensors|bin)", file, re.ASCII):
            raise ValueError(
                f"{index}: {file!r} is not the name of a weights file beside it. Nothing was read."
            )
    return where


def _read_index(path: Path) -> dict[str, Tensor]:
    where = weight_map(path)
    shards = {file: _read_file(path.parent / file) for file in sorted(set(where.values()))}
    for name, file in where.items():
        if name not in shards[file]:
            raise ValueError(f"{path}: says that {name} is in {file}, but it is not there.")
    return {name: shards[file][name] for name, file in where.items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        with path.open("rb") as handle:
            start = handle.read(32)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    for mark, advice in _NOT_WEIGHTS.items():
        if start.lower().startswith(mark):
            raise ValueError(f"{path}: {advice}")
    if start.startswith((b"PK\x03\x04", b"\x80")):
        return _read_torch(path, mapped=start.startswith(b"PK"))
    return _read_safetensors(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (SafetensorError, OSError, RuntimeError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: is no whole safetensors file ({error}). It was cut short, damaged, or is no file of "
            "weights: compare its size with the published one, and fetch it again."
        ) from error


def _read_torch(path: Path, *, mapped: bool) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # foreign bytes: no list of what torch.load raises for them exists
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path}: is no file of PyTorch weights alone. It is cut short or damaged, or it holds code, of "
            f"which nothing was run ({type(error).__name__}: {reason[:200]})."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected tensors by name.")
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(
                f"{path}: {name!r} is a {type(tensor).__name__}; expected tensors by name and nothing else. "
                "Save model.state_dict() alone."
            )
        if tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
            raise ValueError(f"{path}: {name} is not a plain tensor ({tensor.layout}, {tensor.dtype}).")
    return content


def fitting_tokenizer(load: Callable[[], Tokenizer | None], model: GPT, source: Path) -> Tokenizer | None:
    """The tokenizer that `load` gives for a model; None, with a warning, where labkit has none of its kind.

    Raises ValueError, naming the source, for a damaged one, and for one with more ids than the model.
    """
    from labkit.text import UnsupportedTokenizerError

    try:
        tokenizer = load()
    except UnsupportedTokenizerError as error:
        warnings.warn(f"{source}: {error} The model is loaded without a tokenizer.", stacklevel=4)
        return None
    except ValueError as error:
        raise ValueError(f"{source}: the tokenizer is damaged. {error}") from error
    vocab_size = model.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size:,} ids, the model only {vocab_size:,}: they "
            "belong to different models."
        )
    return tokenizer


def write_model(
    folder: Path, config: dict[str, Any], tensors: dict[str, Tensor], tokenizer: Tokenizer | None
) -> Path:
    """A folder in the published layout, written whole or not at all.  It replaces an older such folder.

    Raises ValueError where it would replace files of another kind.
    """
    others = [path.name for path in folder.iterdir() if path.name not in WRITTEN] if folder.is_dir() else []
    if others or folder.is_file():
        raise ValueError(f"{folder}: holds {', '.join(others) or 'a file'}. Choose a new or empty folder.")
    with fresh_folder(folder) as fresh:
        save_file(tensors, fresh / "model.safetensors", metadata={"format": "pt"})
        (fresh / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        # safetensors lets nobody but the owner read what it writes
        (fresh / "model.safetensors").chmod((fresh / "config.json").stat().st_mode)
        if tokenizer is not None:
            save_published_tokenizer(tokenizer, fresh)
    return folder
