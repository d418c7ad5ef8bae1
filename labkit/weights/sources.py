"""One door to every model that is not a run: whatever a path or a name stands for is recognised."""

from __future__ import annotations

from pathlib import Path

from labkit.weights.files import read_json
from labkit.weights.gpt2 import load_gpt2
from labkit.weights.hub import download
from labkit.weights.llama import load_llama
from labkit.weights.mapping import LoadedModel, Report
from labkit.weights.pretrained import PRETRAINED, load_pretrained

SHIPPED = "shipped"
"""The name of the model that comes with labkit."""


def load_model(source: str | Path) -> LoadedModel:
    """A model, with its tokenizer where it has one.

    source: "shipped"; "smollm2"; a folder in the form of labkit/pretrained; a folder or file of GPT-2 or of
    the llama family; or a published model's name, such as "gpt2" or "owner/name", which is downloaded once.
    Raises ValueError, naming what was wrong, as `load_gpt2` and `load_llama` do.
    """
    if source == SHIPPED:
        source = PRETRAINED
    if source == "smollm2":
        return load_llama("smollm2")
    path = Path(source).expanduser()
    if not path.exists():
        path = download(str(source))
    if path.suffix == ".gguf":
        return load_llama(path)
    described = (path if path.is_dir() else path.parent) / "config.json"
    config = read_json(described) if described.is_file() else {}
    if "model_type" not in config and "weights" in config:
        return LoadedModel(*load_pretrained(described.parent), Report([], []))
    return load_llama(path) if config.get("model_type") == "llama" else load_gpt2(path)
