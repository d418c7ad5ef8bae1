"""GPT-2's weights, in every form in which they are published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.model import GPT
from labkit.text import GPT2Tokenizer, Tokenizer, load_published_tokenizer
from labkit.text.tokenizers import read_json
from labkit.weights.files import WEIGHTS, fitting_tokenizer, read_tensors, write_model
from labkit.weights.formats.tensorflow import is_tf_checkpoint, read_tf_checkpoint
from labkit.weights.hub import find
from labkit.weights.mapping import (
    Layout,
    LoadedModel,
    collect,
    described_model,
    load_into,
    refuse_other_computations,
)

_OURS = "blocks.{i}.attention."

GPT2 = Layout(
    {
        "wte.weight": "token_embedding.weight",
        "wpe.weight": "positions.weight",
        "h.{i}.ln_1.weight": "blocks.{i}.norm1.weight",
        "h.{i}.ln_1.bias": "blocks.{i}.norm1.bias",
        "h.{i}.attn.c_attn.weight": (_OURS + "query.weight", _OURS + "key.weight", _OURS + "value.weight"),
        "h.{i}.attn.c_attn.bias": (_OURS + "query.bias", _OURS + "key.bias", _OURS + "value.bias"),
        "h.{i}.attn.c_proj.weight": _OURS + "out.weight",
        "h.{i}.attn.c_proj.bias": _OURS + "out.bias",
        "h.{i}.ln_2.weight": "blocks.{i}.norm2.weight",
        "h.{i}.ln_2.bias": "blocks.{i}.norm2.bias",
        "h.{i}.mlp.c_fc.weight": "blocks.{i}.mlp.up.weight",
        "h.{i}.mlp.c_fc.bias": "blocks.{i}.mlp.up.bias",
        "h.{i}.mlp.c_proj.weight": "blocks.{i}.mlp.down.weight",
        "h.{i}.mlp.c_proj.bias": "blocks.{i}.mlp.down.bias",
        "ln_f.weight": "norm.weight",
        "ln_f.bias": "norm.bias",
        "lm_head.weight": "head.weight",
    },
    transposed=("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight"),
    without_weights=r"h\.\d+\.attn\.(bias|masked_bias)",  # old files hold the causal mask of each layer
)
"""GPT-2's names (Radford et al., 2019, in the PyTorch form of the transformers library) and ours."""

_FIELDS = {  # in config.json, and of GPTConfig
    "vocab_size": "vocab_size",
    "n_positions": "context_length",
    "n_embd": "d_model",
    "n_layer": "n_layers",
    "n_head": "n_heads",
    "n_inner": "d_ff",
    "layer_norm_epsilon": "norm_eps",
    "resid_pdrop": "dropout",
    "attn_pdrop": "attention_dropout",
}
_DEFAULTS = {"vocab_size": 50257, "layer_norm_epsilon": 1e-5, "resid_pdrop": 0.1, "attn_pdrop": 0.1}
_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def load_gpt2(source: str | Path) -> LoadedModel:
    """A GPT-2 with the weights of a folder, a file, or a published model's name.

    source: a folder or a file with safetensors (also in several files) or a PyTorch state dict; a folder with
    OpenAI's TensorFlow checkpoint, for which no TensorFlow is needed; or a name such as "gpt2-medium" or
    "owner/name", which is downloaded once.  Sizes come from config.json or hparams.json beside the weights,
    else from the tensors.  float32 weights stay in the mapped file until they are touched.
    Raises ValueError, naming the file, what was wrong and what to do, for anything that is no GPT-2.
    """
    path = find(source)
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and is_tf_checkpoint(path) and not any((path / name).is_file() for name in WEIGHTS):
        tensors = read_tf_checkpoint(path)
    else:
        tensors = _plain_names(read_tensors(path), path)
    fields, described = _config(folder, tensors)
    if fields["tie_weights"]:
        tensors.pop("lm_head.weight", None)
    model = described_model(fields, tensors, described)
    report = load_into(model, tensors, GPT2, path)

    def load_tokenizer() -> Tokenizer | None:
        found = load_published_tokenizer(folder)
        return GPT2Tokenizer() if found is None and model.config.vocab_size == 50257 else found

    return LoadedModel(model, fitting_tokenizer(load_tokenizer, model, folder), report)


def save_gpt2(model: GPT, folder: str | Path, tokenizer: Tokenizer | None = None) -> Path:
    """Write a model as a folder that the transformers library loads: configuration, weights, tokenizer.

    Its logits there are the same.  Biases that the model lacks are written as zeros.  An existing folder is
    replaced as a whole.  Raises ValueError for a model that GPT-2's layout cannot hold.
    """
    config, folder = model.config, Path(folder)
    wrong = {
        "positions": config.positions != "learned",
        "norm": config.norm != "layernorm",
        "activation": config.activation == "swiglu",
        "n_kv_heads": config.kv_heads != config.n_heads,
        "embedding_scale": config.embedding_scale,
    }
    if any(wrong.values()):
        fields = ", ".join(f"{name}={getattr(config, name)!r}" for name, bad in wrong.items() if bad)
        raise ValueError(f"save_gpt2: GPT-2's layout has no {fields}. save_llama writes models of that kind.")
    eos = None if tokenizer is None else tokenizer.eos_id
    described = {
        "model_type": "gpt2",
        "architectures": ["GPT2LMHeadModel"],
        **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
        "activation_function": "gelu" if config.activation == "gelu" else "gelu_new",
        "embd_pdrop": config.dropout,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "dtype": "float32",
    }
    tensors = {
        name if name == "lm_head.weight" else f"transformer.{name}": tensor
        for name, tensor in collect(model, GPT2).items()
    }
    return write_model(folder, described, tensors, tokenizer)


def _plain_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under GPT-2's own names, without what libraries put before them."""
    plain = {
        re.sub(r"^((module|_orig_mod|transformer)\.)+", "", name): each for name, each in tensors.items()
    }
    if len(plain) < len(tensors):
        raise ValueError(f"{path}: holds some tensors twice, with and without a prefix such as transformer.")
    return plain


def _config(folder: Path, tensors: dict[str, Tensor]) -> tuple[dict[str, Any], Path]:
    """Fields of GPTConfig, and what they were read from: config.json, hparams.json, or the tensors.

    Raises ValueError where they cannot be told.
    """
    wte, wpe = tensors.get("wte.weight"), tensors.get("wpe.weight")
    if wte is None or wpe is None or wte.ndim != 2 or wpe.ndim != 2:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(f"{folder}: is no GPT-2: wte.weight or wpe.weight is missing. It has {names}, ….")
    head = tensors.get("lm_head.weight")
    tied = {"tie_weights": head is None or torch.equal(head, wte)}
    if (file := folder / "config.json").is_file():
        return tied | _published_config(file), file
    if (file := folder / "hparams.json").is_file():
        found = read_json(file)
        found |= {"vocab_size": found.get("n_vocab"), "n_positions": found.get("n_ctx")}
        return tied | {ours: found[theirs] for theirs, ours in _FIELDS.items() if theirs in found}, file
    vocab_size, d_model = wte.shape
    layers = [int(name.split(".")[1]) for name in tensors if re.match(r"h\.\d{1,4}\.", name)]
    if d_model % 64:
        raise ValueError(
            f"{folder}: there is no config.json, and d_model={d_model} is no multiple of 64, the size "
            "of GPT-2's heads, so their number cannot be told. Put the config.json beside the weights."
        )
    sizes = {"vocab_size": vocab_size, "context_length": len(wpe), "d_model": d_model}
    sizes |= {"n_layers": max(layers, default=-1) + 1, "n_heads": d_model // 64}
    return tied | sizes, folder


def _published_config(file: Path) -> dict[str, Any]:
    """Fields of GPTConfig from a config.json.  Raises ValueError for what we would compute otherwise."""
    found = read_json(file)
    if found.get("model_type", "gpt2") != "gpt2" or "n_embd" not in found:
        raise ValueError(
            f"{file}: describes model_type={found.get('model_type')!r}, not a GPT-2. "
            "load_llama reads the llama family."
        )
    found = {"n_positions": found.get("n_ctx", 1024), "activation_function": "gelu_new"} | _DEFAULTS | found
    refuse_other_computations(
        file,
        {
            "activation_function": (found["activation_function"], tuple(_ACTIVATIONS)),
            "scale_attn_weights": (found.get("scale_attn_weights", True), (True,)),
            "scale_attn_by_inverse_layer_idx": (found.get("scale_attn_by_inverse_layer_idx"), (None, False)),
            "add_cross_attention": (found.get("add_cross_attention"), (None, False)),
        },
    )
    fields = {ours: found.get(theirs) for theirs, ours in _FIELDS.items()}
    return fields | {"activation": _ACTIVATIONS[found["activation_function"]]}
