"""The llama family's weights: published folders, GGUF files, and SmolLM2-135M, fetched with the course."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from labkit.io import cache_dir, locked
from labkit.model import GPT
from labkit.text import Tokenizer, load_published_tokenizer, tokenizer_from_gguf
from labkit.text.assets import ASSETS, asset_path
from labkit.text.tokenizers import read_json
from labkit.weights.files import fitting_tokenizer, read_tensors, write_model
from labkit.weights.formats.gguf import read_gguf
from labkit.weights.hub import find
from labkit.weights.mapping import (
    Layout,
    LoadedModel,
    collect,
    described_model,
    load_into,
    refuse_other_computations,
)

_BLOCK = (  # in the transformers library, in GGUF files, and ours; each has a weight and may have a bias
    ("input_layernorm", "attn_norm", "norm1"),
    ("self_attn.q_proj", "attn_q", "attention.query"),
    ("self_attn.k_proj", "attn_k", "attention.key"),
    ("self_attn.v_proj", "attn_v", "attention.value"),
    ("self_attn.o_proj", "attn_output", "attention.out"),
    ("post_attention_layernorm", "ffn_norm", "norm2"),
    ("mlp.gate_proj", "ffn_gate", "mlp.gate"),
    ("mlp.up_proj", "ffn_up", "mlp.up"),
    ("mlp.down_proj", "ffn_down", "mlp.down"),
)


def _block_names(prefix: str, column: int) -> dict[str, str]:
    return {
        f"{prefix}.{{i}}.{row[column]}.{kind}": f"blocks.{{i}}.{row[2]}.{kind}"
        for row in _BLOCK
        for kind in ("weight", "bias")
    }


LLAMA = Layout(
    {
        "model.embed_tokens.weight": "token_embedding.weight",
        **_block_names("model.layers", 0),
        "model.norm.weight": "norm.weight",
        "lm_head.weight": "head.weight",
    },
    without_weights=r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq",  # in old files
)
"""The names of Llama (Touvron et al., 2023, in the form of the transformers library) and ours."""

GGUF_LLAMA = Layout(
    {
        "token_embd.weight": "token_embedding.weight",
        **_block_names("blk", 1),
        "output_norm.weight": "norm.weight",
        "output.weight": "head.weight",
    },
    interleaved=("attn_q.weight", "attn_q.bias", "attn_k.weight", "attn_k.bias"),
)
"""The names of llama models in GGUF files and ours."""

_FIELDS = {  # in config.json, and of GPTConfig
    "vocab_size": "vocab_size",
    "max_position_embeddings": "context_length",
    "hidden_size": "d_model",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "intermediate_size": "d_ff",
    "attention_dropout": "attention_dropout",
    "rms_norm_eps": "norm_eps",
    "tie_word_embeddings": "tie_weights",
}
_DEFAULTS = {"max_position_embeddings": 2048, "attention_dropout": 0.0, "rms_norm_eps": 1e-6}
_ARCHITECTURE: dict[str, Any] = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}


def load_llama(source: str | Path) -> LoadedModel:
    """A model of the llama family with the weights of a folder, a file, or a published model's name.

    source: "smollm2", the SmolLM2-135M-Instruct that `labkit fetch` brings, unpacked into the cache there or
    at the first load (0.54 GB); a folder with config.json and safetensors or PyTorch weights (or one of its
    weights files); a .gguf file; or owner/name, which is downloaded once.
    float32 weights of a folder stay in the mapped file until they are touched.
    Raises ValueError, naming the file, what was wrong and what to do, for anything else, and for models that
    labkit would compute wrongly.
    """
    if source == "smollm2":
        return _load_smollm2()
    path = find(source)
    published = path.is_dir() or path.suffix in (".safetensors", ".bin", ".json")
    return _load_published(path) if published else _load_gguf(path)


def save_llama(model: GPT, folder: str | Path, tokenizer: Tokenizer | None = None) -> Path:
    """Write a model as a folder that the transformers library loads: configuration, weights, tokenizer.

    Its logits there are the same.  Biases that only some of the layers have are zeros in the others.  A
    folder written before is replaced as a whole.  Raises ValueError for a model that the llama layout
    cannot hold.
    """
    config, folder = model.config, Path(folder)
    wrong = [name for name, needed in _ARCHITECTURE.items() if getattr(config, name) != needed]
    if wrong or config.embedding_scale:
        fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in wrong or ["embedding_scale"])
        raise ValueError(f"save_llama: the llama layout has no {fields}. save_gpt2 writes models like GPT-2.")
    biases = {"self_attn": config.qkv_bias or config.bias, "mlp": config.bias}
    described = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        **{theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()},
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ff_dim,
        "hidden_act": "silu",
        "attention_bias": biases["self_attn"],
        "mlp_bias": biases["mlp"],
        "rope_theta": config.rope_base,  # transformers 4; 5 reads the next line
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "bos_token_id": None,
        "eos_token_id": None if tokenizer is None else tokenizer.eos_id,
        "dtype": "float32",
    }
    names = {
        theirs: ours
        for theirs, ours in LLAMA.names.items()
        if theirs.endswith("weight") or any(has and part in theirs for part, has in biases.items())
    }
    return write_model(folder, described, collect(model, replace(LLAMA, names=names)), tokenizer)


def _load_published(path: Path) -> LoadedModel:
    folder = path if path.is_dir() else path.parent
    fields = _published_config(folder / "config.json")
    tensors = read_tensors(path)
    if not any(name.startswith("model.") for name in tensors):  # saved without its output layer
        tensors = {name if name == "lm_head.weight" else f"model.{name}": t for name, t in tensors.items()}
    embedding, head = tensors.get("model.embed_tokens.weight"), tensors.get("lm_head.weight")
    if fields["tie_weights"] and head is not None and embedding is not None:
        fields["tie_weights"] = torch.equal(head, embedding)
        if fields["tie_weights"]:
            del tensors["lm_head.weight"]
    model = described_model(fields, tensors, folder)
    report = load_into(model, tensors, LLAMA, path)
    tokenizer = fitting_tokenizer(lambda: load_published_tokenizer(folder), model, path)
    return LoadedModel(model, tokenizer, report)


def _load_gguf(path: Path) -> LoadedModel:
    metadata, packed = read_gguf(path)
    shapes = {name: torch.empty(tensor.shape, device="meta") for name, tensor in packed.items()}
    model = described_model(_gguf_config(path, metadata, shapes), shapes, path)
    bar = tqdm(packed.items(), desc=f"unpack {path.name}", leave=False)
    tensors = {name: tensor.unpack() for name, tensor in bar}
    report = load_into(model, tensors, GGUF_LLAMA, path)
    if "tokenizer.ggml.model" not in metadata:
        return LoadedModel(model, None, report)
    return LoadedModel(model, fitting_tokenizer(lambda: tokenizer_from_gguf(metadata), model, path), report)


def _load_smollm2() -> LoadedModel:
    """SmolLM2-135M-Instruct, unpacked into the cache where that has not been done, or was damaged."""
    folder = cache_dir() / "smollm2-135m-instruct"
    made_from, digest = folder.with_name(f"{folder.name}.source"), ASSETS["smollm2"].digest

    def unpacked() -> LoadedModel | None:
        try:
            if made_from.read_text(encoding="utf-8") != digest:
                return None
            loaded = _load_published(folder)
        except (OSError, ValueError):
            return None
        return loaded if loaded.tokenizer else None

    if loaded := unpacked():
        return loaded
    (file,) = asset_path("smollm2").glob("*.gguf")
    with locked(folder, timeout=-1):  # other processes wait here, and then find it done
        if loaded := unpacked():
            return loaded
        made_from.unlink(missing_ok=True)
        model, tokenizer, _ = _load_gguf(file)
        save_llama(model, folder, tokenizer)
        made_from.write_text(digest, encoding="utf-8")
    return _load_published(folder)


def _published_config(file: Path) -> dict[str, Any]:
    """Fields of GPTConfig from a config.json.  Raises ValueError for what we would compute otherwise."""
    found = _DEFAULTS | read_json(file)
    if found.get("model_type") != "llama":
        raise ValueError(
            f"{file}: describes model_type={found.get('model_type')!r}, not 'llama'. load_gpt2 reads GPT-2."
        )
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ValueError(f"{file}: the rotary settings are {rope!r}; expected a JSON object {{...}}.")
    heads, d_model = found.get("num_attention_heads"), found.get("hidden_size")
    head_dim = d_model // heads if isinstance(heads, int) and isinstance(d_model, int) and heads else None
    partial = found.get("partial_rotary_factor", rope.get("partial_rotary_factor"))
    attention_bias, mlp_bias = bool(found.get("attention_bias")), bool(found.get("mlp_bias"))
    refuse_other_computations(
        file,
        {
            "hidden_act": (found.get("hidden_act", "silu"), ("silu", "swish")),
            "head_dim": (found.get("head_dim"), (None, head_dim or found.get("head_dim"))),
            "rope_type": (rope.get("rope_type", rope.get("type")), (None, "default")),
            "partial_rotary_factor": (partial, (None, 1)),
            "sliding_window": (found.get("sliding_window"), (None,)),
            "num_local_experts": (found.get("num_local_experts"), (None, 0, 1)),
            "quantization_config": (found.get("quantization_config"), (None,)),
            "mlp_bias": (mlp_bias, (attention_bias,)),
        },
    )
    fields = {ours: found.get(theirs) for theirs, ours in _FIELDS.items()}
    fields |= {"qkv_bias": attention_bias, "bias": mlp_bias}
    fields |= {"tie_weights": bool(found.get("tie_word_embeddings"))}
    return _ARCHITECTURE | fields | {"rope_base": rope.get("rope_theta", found.get("rope_theta", 10000.0))}


def _gguf_config(path: Path, metadata: Mapping[str, Any], shapes: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of GPTConfig from a GGUF file.  Raises ValueError for what we would compute otherwise."""

    def found(name: str) -> Any:
        return metadata.get(f"llama.{name}")

    heads, d_model = found("attention.head_count"), found("embedding_length")
    head_dim = d_model // heads if isinstance(heads, int) and isinstance(d_model, int) and heads else None
    refuse_other_computations(
        path,
        {
            "general.architecture": (metadata.get("general.architecture"), ("llama",)),
            "rope.scaling.type": (found("rope.scaling.type"), (None, "none")),
            "rope.scale_linear": (found("rope.scale_linear"), (None, 1)),
            "rope_freqs.weight": ("rope_freqs.weight" in shapes, (False,)),
            "rope.dimension_count": (found("rope.dimension_count"), (None, head_dim)),
            "attention.key_length": (found("attention.key_length"), (None, head_dim)),
            "attention.value_length": (found("attention.value_length"), (None, head_dim)),
            "attention.sliding_window": (found("attention.sliding_window"), (None, 0)),
            "expert_count": (found("expert_count"), (None, 0)),
        },
    )
    embedding = shapes.get("token_embd.weight")
    eps = found("attention.layer_norm_rms_epsilon")
    return _ARCHITECTURE | {
        "vocab_size": None if embedding is None else len(embedding),
        "context_length": found("context_length"),
        "d_model": d_model,
        "n_layers": found("block_count"),
        "n_heads": heads,
        "n_kv_heads": found("attention.head_count_kv"),
        "d_ff": found("feed_forward_length"),
        "qkv_bias": "blk.0.attn_q.bias" in shapes,
        "bias": "blk.0.ffn_up.bias" in shapes,
        "norm_eps": float(f"{eps:.7g}") if isinstance(eps, float) else eps,  # 1e-05 was stored as float32
        "rope_base": found("rope.freq_base") or 10000.0,
        "tie_weights": "output.weight" not in shapes,
    }
