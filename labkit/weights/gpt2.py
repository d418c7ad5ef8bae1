"""GPT-2's weights, in every form in which they are published."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.config import GPTConfig
from labkit.model import GPT
from labkit.text import GPT2Tokenizer, Tokenizer, load_published_tokenizer
from labkit.weights.checks import check_sizes, fitting_tokenizer
from labkit.weights.files import WEIGHTS, read_json, read_tensors, write_model
from labkit.weights.formats.tensorflow import is_tf_checkpoint, read_tf_checkpoint
from labkit.weights.hub import download
from labkit.weights.mapping import LoadedModel, Rule, collect, empty_model, load_into

_ATTENTION = "blocks.{i}.attention."

GPT2 = (
    Rule("wte.weight", "token_embedding.weight"),
    Rule("wpe.weight", "positions.weight"),
    Rule("h.{i}.ln_1.weight", "blocks.{i}.norm1.weight"),
    Rule("h.{i}.ln_1.bias", "blocks.{i}.norm1.bias"),
    Rule(
        "h.{i}.attn.c_attn.weight",
        (_ATTENTION + "query.weight", _ATTENTION + "key.weight", _ATTENTION + "value.weight"),
        transpose=True,
    ),
    Rule(
        "h.{i}.attn.c_attn.bias",
        (_ATTENTION + "query.bias", _ATTENTION + "key.bias", _ATTENTION + "value.bias"),
    ),
    Rule("h.{i}.attn.c_proj.weight", _ATTENTION + "out.weight", transpose=True),
    Rule("h.{i}.attn.c_proj.bias", _ATTENTION + "out.bias"),
    Rule("h.{i}.ln_2.weight", "blocks.{i}.norm2.weight"),
    Rule("h.{i}.ln_2.bias", "blocks.{i}.norm2.bias"),
    Rule("h.{i}.mlp.c_fc.weight", "blocks.{i}.mlp.up.weight", transpose=True),
    Rule("h.{i}.mlp.c_fc.bias", "blocks.{i}.mlp.up.bias"),
    Rule("h.{i}.mlp.c_proj.weight", "blocks.{i}.mlp.down.weight", transpose=True),
    Rule("h.{i}.mlp.c_proj.bias", "blocks.{i}.mlp.down.bias"),
    Rule("ln_f.weight", "norm.weight"),
    Rule("ln_f.bias", "norm.bias"),
    Rule("lm_head.weight", "head.weight"),
)
"""GPT-2's names (Radford et al., 2019, in the PyTorch form of the transformers library) and ours."""

MASKS = r"h\.\d+\.attn\.(bias|masked_bias)"
"""Old files hold the causal mask of each layer."""

_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}


def load_gpt2(source: str | Path) -> LoadedModel:
    """A GPT-2 with the weights of a folder, a file, or a published model's name.

    source: a folder or a file with safetensors (also in several files) or a PyTorch state dict; a folder with
    OpenAI's TensorFlow checkpoint, for which no TensorFlow is needed; or a name such as "gpt2-medium" or
    "owner/name", which is downloaded once.  Sizes come from config.json or hparams.json beside the weights,
    else from the tensors.  float32 weights stay in the mapped file until they are touched.
    Raises ValueError, naming the file, what was wrong and what to do, for anything that is no GPT-2.
    """
    path = Path(source).expanduser()
    if not path.exists():
        path = download(str(source))
    folder = path if path.is_dir() else path.parent
    if path.is_dir() and is_tf_checkpoint(path) and not any((path / name).is_file() for name in WEIGHTS):
        tensors = read_tf_checkpoint(path)
    else:
        tensors = _plain_names(read_tensors(path), path)
    config = _config(folder, tensors)
    if config.tie_weights:
        tensors.pop("lm_head.weight", None)
    model = empty_model(config)
    report = load_into(model, tensors, GPT2, source=path, without_weights=MASKS)

    def load_tokenizer() -> Tokenizer | None:
        default = GPT2Tokenizer if config.vocab_size == 50257 else lambda: None
        return load_published_tokenizer(folder) or default()

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
        "vocab_size": config.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.d_model,
        "n_layer": config.n_layers,
        "n_head": config.n_heads,
        "n_inner": config.d_ff,
        "activation_function": "gelu" if config.activation == "gelu" else "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "resid_pdrop": config.dropout,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.attention_dropout,
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": eos,
        "eos_token_id": eos,
        "dtype": "float32",
    }
    tensors = collect(model, GPT2)
    named = {
        name if name == "lm_head.weight" else f"transformer.{name}": each for name, each in tensors.items()
    }
    return write_model(folder, described, named, tokenizer)


def _plain_names(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors under GPT-2's own names, without what libraries put before them."""
    plain = {
        re.sub(r"^((module|_orig_mod|transformer)\.)+", "", name): each for name, each in tensors.items()
    }
    if len(plain) < len(tensors):
        raise ValueError(f"{path}: holds some tensors twice, with and without a prefix such as transformer.")
    return plain


def _config(folder: Path, tensors: dict[str, Tensor]) -> GPTConfig:
    """Sizes from config.json or hparams.json, else from the tensors.  Raises ValueError where they fail."""
    wte, wpe = tensors.get("wte.weight"), tensors.get("wpe.weight")
    if wte is None or wpe is None or wte.ndim != 2 or wpe.ndim != 2:
        names = ", ".join(list(tensors)[:4])
        raise ValueError(f"{folder}: is no GPT-2: wte.weight or wpe.weight is missing. It has {names}, ….")
    head = tensors.get("lm_head.weight")
    shape: dict[str, Any] = {"tie_weights": head is None or torch.equal(head, wte)}
    if (file := folder / "config.json").is_file():
        shape |= _published_config(file)
    elif (file := folder / "hparams.json").is_file():
        found = read_json(file)
        shape |= {ours: found.get(theirs) for ours, theirs in _HPARAMS.items()}
    else:
        layers = [int(name.split(".")[1]) for name in tensors if re.match(r"h\.\d{1,4}\.", name)]
        (vocab_size, d_model), context_length = wte.shape, len(wpe)
        if d_model % 64:
            raise ValueError(
                f"{folder}: there is no config.json, and d_model={d_model} is no multiple of 64, the size "
                "of GPT-2's heads, so their number cannot be told. Put the config.json beside the weights."
            )
        file = folder
        shape |= {"vocab_size": vocab_size, "context_length": context_length, "d_model": d_model}
        shape |= {"n_layers": max(layers, default=-1) + 1, "n_heads": d_model // 64}
    check_sizes(shape, tensors, file)
    return GPTConfig(**shape)


_HPARAMS = {
    "vocab_size": "n_vocab",
    "context_length": "n_ctx",
    "d_model": "n_embd",
    "n_layers": "n_layer",
    "n_heads": "n_head",
}


def _published_config(file: Path) -> dict[str, Any]:
    """Fields of GPTConfig from a config.json.  Raises ValueError for what we would compute otherwise."""
    found = read_json(file)
    if found.get("model_type", "gpt2") != "gpt2" or "n_embd" not in found:
        raise ValueError(
            f"{file}: describes model_type={found.get('model_type')!r}, not a GPT-2. "
            "load_llama reads the llama family."
        )
    activation = found.get("activation_function", "gelu_new")
    for name, needed, value in (
        ("activation_function", "one of " + ", ".join(_ACTIVATIONS), activation in _ACTIVATIONS),
        ("scale_attn_weights", True, found.get("scale_attn_weights", True)),
        ("scale_attn_by_inverse_layer_idx", False, not found.get("scale_attn_by_inverse_layer_idx")),
        ("add_cross_attention", False, not found.get("add_cross_attention")),
    ):
        if not value:
            raise ValueError(f"{file}: {name}={found.get(name)!r}; labkit computes {needed} only.")
    return {
        "vocab_size": found.get("vocab_size", 50257),
        "context_length": found.get("n_positions", found.get("n_ctx", 1024)),
        "d_model": found["n_embd"],
        "n_layers": found.get("n_layer"),
        "n_heads": found.get("n_head"),
        "d_ff": found.get("n_inner"),
        "activation": _ACTIVATIONS[activation],
        "norm_eps": found.get("layer_norm_epsilon", 1e-5),
        "dropout": found.get("resid_pdrop", 0.1),
        "attention_dropout": found.get("attn_pdrop", 0.1),
    }
