"""The small model that comes with the course."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load

from labkit.config import GPTConfig
from labkit.model import GPT
from labkit.text import Tokenizer, load_tokenizer

PRETRAINED = Path(__file__).resolve().parents[1] / "pretrained"
"""The folder of the shipped model: weights, configuration, tokenizer, and the card that describes them."""

_REMEDY = "Restore the folder from the repository, or make it anew: make checkpoint."


def load_pretrained(folder: str | Path = PRETRAINED) -> tuple[GPT, Tokenizer]:
    """The shipped GPT (on the CPU, in evaluation mode, float32) and its tokenizer.

    Stored as float16, which halves the file.  Needs no network and draws no random numbers of others.
    Raises ValueError, naming the file, where one is missing, was changed or does not fit the others.
    """
    folder = Path(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        data = (folder / "model.safetensors").read_bytes()
        shape, checksum = config["model"], config["weights"]["sha256"]
        vocabulary = config["tokenizer"]["fingerprint"]
    except OSError as error:
        raise ValueError(f"{error.filename}: cannot be read ({error.strerror}). {_REMEDY}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{folder / 'config.json'}: is incomplete or damaged ({error!r}). {_REMEDY}"
        ) from error
    if (found := hashlib.sha256(data).hexdigest()) != checksum:
        raise ValueError(
            f"{folder / 'model.safetensors'}: {len(data):,} bytes with sha256 {found}, but config.json says "
            f"{checksum}: the file is cut short or was changed. {_REMEDY}"
        )
    tokenizer = load_tokenizer(folder / "tokenizer.json")
    if tokenizer.fingerprint != vocabulary:
        raise ValueError(
            f"{folder / 'tokenizer.json'}: is another tokenizer than the model was trained with. {_REMEDY}"
        )
    weights = load(data)
    try:
        with torch.random.fork_rng(devices=[]):
            model = GPT(GPTConfig(**shape))
        if model.config.tie_weights:
            weights["head.weight"] = weights["token_embedding.weight"]
        model.load_state_dict(weights)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{folder}: config.json and model.safetensors do not fit. {error}") from error
    return model.eval(), tokenizer
