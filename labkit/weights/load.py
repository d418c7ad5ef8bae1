"""One function for the model of every source: whatever a path or a name stands for is recognised."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from labkit.model import GPT
from labkit.text import Tokenizer, load_tokenizer
from labkit.text.tokenizers import read_json
from labkit.weights.files import read_tensors
from labkit.weights.gpt2 import load_gpt2
from labkit.weights.hub import find
from labkit.weights.llama import load_llama
from labkit.weights.mapping import Layout, LoadedModel, Report, described_model, load_into

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
"""The folder of the shipped model: weights, configuration, tokenizer, and the card that describes them."""

SHIPPED = "shipped"
"""The name of the model that comes with labkit."""

_REMEDY = "Restore the folder from the repository, or make it anew: make checkpoint."


def load_model(source: str | Path) -> LoadedModel:
    """A model, with its tokenizer where it has one.

    source: "shipped"; "smollm2"; a folder in the form of labkit/pretrained; a folder or file of GPT-2 or of
    the llama family; the folder of a run's checkpoint; or a published model's name, such as "gpt2" or
    "owner/name", which is downloaded once.
    Raises ValueError, naming what was wrong, as `load_gpt2` and `load_llama` do.
    """
    if source == "smollm2":
        return load_llama(source)
    path = PRETRAINED if source == SHIPPED else find(source)
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".gguf":
        return load_llama(path)
    if (folder / "checkpoint.json").is_file():
        return _load_checkpoint(folder)
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    if "model_type" not in config and "weights" in config:
        return LoadedModel(*_load_shipped(folder))
    return load_llama(path) if config.get("model_type") == "llama" else load_gpt2(path)


def load_pretrained(folder: str | Path = PRETRAINED) -> tuple[GPT, Tokenizer]:
    """The shipped GPT (on the CPU, in evaluation mode, float32) and its tokenizer.

    Stored as float16, which halves the file.  Needs no network and draws no random numbers of others.
    Raises ValueError, naming the file, where one is missing, was changed or does not fit the others.
    """
    model, tokenizer, _ = _load_shipped(Path(folder))
    return model, tokenizer


def _load_shipped(folder: Path) -> tuple[GPT, Tokenizer, Report]:
    config = read_json(folder / "config.json")
    try:
        fields, checksum = dict(config["model"]), config["weights"]["sha256"]
        fingerprint = config["tokenizer"]["fingerprint"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: is incomplete or damaged ({error!r}). {_REMEDY}"
        ) from error
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if tokenizer.fingerprint != fingerprint:
        raise ValueError(
            f"{folder / 'tokenizer.json'}: is another tokenizer than the model was trained with. {_REMEDY}"
        )
    model, report = _load_own(folder / "model.safetensors", fields, checksum, _REMEDY)
    return model, tokenizer, report


def _load_checkpoint(folder: Path) -> LoadedModel:
    """The model of a run's checkpoint in one file, and the run's tokenizer."""
    described, sums, remedy = folder / "checkpoint.json", folder / "SHA256SUMS", "Take an older checkpoint."
    try:
        fields = dict(read_json(described)["model"])
        files = {file: checksum for checksum, file in map(str.split, sums.read_text("utf-8").splitlines())}
        checksum = files["model.safetensors"]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder}: is no whole checkpoint in one file ({error!r}). {remedy}") from error
    model, report = _load_own(folder / "model.safetensors", fields, checksum, remedy)
    tokenizer = folder.parents[1] / "tokenizer.json"
    return LoadedModel(model, load_tokenizer(tokenizer) if tokenizer.is_file() else None, report)


def _load_own(file: Path, fields: Mapping[str, Any], checksum: str, remedy: str) -> tuple[GPT, Report]:
    """The model whose weights lie in a file under our own names."""
    try:
        with file.open("rb") as handle:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror}). {remedy}") from error
    if found != checksum:
        raise ValueError(
            f"{file}: {file.stat().st_size:,} bytes with sha256 {found}, but {checksum} is on record: the "
            f"file is cut short or was changed. {remedy}"
        )
    tensors = read_tensors(file)
    model = described_model(fields, tensors, file.parent)
    layout = Layout({name: name for name, _ in model.named_parameters()})
    return model, load_into(model, tensors, layout, file)
