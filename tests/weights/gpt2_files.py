"""GPT-2 checkpoints in every published form, written by transformers and torch from random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

SIZES: list[dict[str, Any]] = [
    {"vocab_size": 37, "n_positions": 19, "n_embd": 12, "n_layer": 2, "n_head": 3},
    {"vocab_size": 61, "n_positions": 23, "n_embd": 10, "n_layer": 3, "n_head": 1},
    {"vocab_size": 5, "n_positions": 31, "n_embd": 14, "n_layer": 1, "n_head": 7, "n_inner": 9},
    {"vocab_size": 97, "n_positions": 11, "n_embd": 20, "n_layer": 2, "n_head": 4, "n_inner": 33},
    {"vocab_size": 41, "n_positions": 13, "n_embd": 18, "n_layer": 4, "n_head": 2,
     "activation_function": "gelu"},
    {"vocab_size": 53, "n_positions": 17, "n_embd": 15, "n_layer": 2, "n_head": 5,
     "layer_norm_epsilon": 1e-2},
    {"vocab_size": 29, "n_positions": 7, "n_embd": 8, "n_layer": 5, "n_head": 8},
    {"vocab_size": 71, "n_positions": 29, "n_embd": 22, "n_layer": 1, "n_head": 11, "n_inner": 5},
    {"vocab_size": 43, "n_positions": 15, "n_embd": 9, "n_layer": 3, "n_head": 3, "n_inner": 50},
    {"vocab_size": 67, "n_positions": 21, "n_embd": 6, "n_layer": 2, "n_head": 2, "layer_norm_epsilon": 1e-7},
    {"vocab_size": 31, "n_positions": 9, "n_embd": 64, "n_layer": 2, "n_head": 1},
    {"vocab_size": 47, "n_positions": 12, "n_embd": 128, "n_layer": 1, "n_head": 2, "n_inner": 11},
    {"vocab_size": 50257, "n_positions": 37, "n_embd": 4, "n_layer": 1, "n_head": 2},
]  # fmt: skip
"""Odd sizes, none equal to another of the same model; the last one has GPT-2's vocabulary."""

FORMS = (
    *("safetensors", "sharded safetensors", "bin", "sharded bin", "legacy bin", "file"),
    *("no prefix", "masks", "head in the file", "another head", "compiled", "float16", "bfloat16"),
    *("hparams", "no configuration"),
)


def reference(sizes: dict[str, Any], *, tied: bool = True, seed: int = 0) -> GPT2LMHeadModel:
    """A GPT-2 of transformers with weights so large that every position and every head matters."""
    torch.manual_seed(seed)
    config = GPT2Config(**sizes, tie_word_embeddings=tied, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    for name, parameter in model.named_parameters():
        mean = 1.0 if "ln_" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean=mean, std=0.3)
    return model


def logits(model: GPT2LMHeadModel, ids: Tensor) -> Tensor:
    """What transformers computes for a batch of ids, (batch, seq, vocab)."""
    with torch.inference_mode():
        result: Tensor = model(ids).logits
    return result


def write(form: str, sizes: dict[str, Any], folder: Path) -> tuple[GPT2LMHeadModel, Path] | None:
    """The reference model and what load_gpt2 is to read; None where a size cannot have this form."""
    model = reference(sizes, tied=form != "another head")
    if form in {"float16", "bfloat16"}:
        model.to(getattr(torch, form)).float()  # the reference computes with the rounded weights
    if form == "hparams" and {"n_inner", "activation_function", "layer_norm_epsilon"} & sizes.keys():
        return None
    if form == "no configuration" and (sizes["n_embd"] % 64 or "n_inner" in sizes):
        return None
    folder.mkdir()
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    head = tensors.pop("lm_head.weight")
    if form in {"head in the file", "another head"}:
        tensors["lm_head.weight"] = head.clone()
    if form in {"no prefix", "masks"}:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    if form == "masks":
        side = sizes["n_positions"]
        for layer in range(sizes["n_layer"]):
            tensors[f"h.{layer}.attn.bias"] = torch.ones(1, 1, side, side, dtype=torch.uint8).tril()
            tensors[f"h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    if form == "compiled":
        tensors = {f"_orig_mod.{name}": tensor for name, tensor in tensors.items()}
    if form in {"float16", "bfloat16"}:
        tensors = {name: tensor.to(getattr(torch, form)) for name, tensor in tensors.items()}
    if form == "hparams":
        names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
        described = {each: sizes[names.get(each, each)] for each in (*names, "n_embd", "n_layer", "n_head")}
        (folder / "hparams.json").write_text(json.dumps(described))
    elif form != "no configuration":
        model.config.save_pretrained(folder)
    if form == "legacy bin":
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    elif form == "bin":
        torch.save(tensors, folder / "pytorch_model.bin")
    elif form.startswith("sharded"):
        _write_shards(tensors, folder, form.removeprefix("sharded "))
    else:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return model, folder / "model.safetensors" if form == "file" else folder


def _write_shards(tensors: dict[str, Tensor], folder: Path, kind: str) -> None:
    stem, suffix = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    files: dict[str, dict[str, Tensor]] = {}
    for place, name in enumerate(tensors):
        files.setdefault(f"{stem}-{place % 3 + 1:05}-of-00003.{suffix}", {})[name] = tensors[name]
    for file, part in files.items():
        save_file(part, folder / file) if kind == "safetensors" else torch.save(part, folder / file)
    where = {name: file for file, part in files.items() for name in part}
    index = json.dumps({"metadata": {"total_size": 1}, "weight_map": where})
    (folder / f"{stem}.{suffix}.index.json").write_text(index)
