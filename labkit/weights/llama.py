"""The llama family's weights: published folders, GGUF files, and SmolLM2-135M, fetched with the course."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor
from tqdm.auto import tqdm

from labkit.config import GPTConfig
from labkit.model import GPT
from labkit.text import Tokenizer, load_published_tokenizer, tokenizer_from_gguf
from labkit.text.assets import ASSETS, asset_path, cache_dir
from labkit.weights.checks import check_sizes, fitting_tokenizer
from labkit.weights.files import read_json, read_tensors, write_model
from labkit.weights.formats.gguf import read_gguf
from labkit.weights.hub import download
from labkit.weights.mapping import LoadedModel, Rule, collect, empty_model, load_into

_HF, _GGUF, _OURS = "model.layers.{i}.", "blk.{i}.", "blocks.{i}."

_NAMES = (
    ("model.embed_tokens.weight", "token_embd.weight", "token_embedding.weight"),
    (_HF + "input_layernorm.weight", _GGUF + "attn_norm.weight", _OURS + "norm1.weight"),
    (_HF + "self_attn.q_proj.weight", _GGUF + "attn_q.weight", _OURS + "attention.query.weight"),
    (_HF + "self_attn.q_proj.bias", _GGUF + "attn_q.bias", _OURS + "attention.query.bias"),
    (_HF + "self_attn.k_proj.weight", _GGUF + "attn_k.weight", _OURS + "attention.key.weight"),
    (_HF + "self_attn.k_proj.bias", _GGUF + "attn_k.bias", _OURS + "attention.key.bias"),
    (_HF + "self_attn.v_proj.weight", _GGUF + "attn_v.weight", _OURS + "attention.value.weight"),
    (_HF + "self_attn.v_proj.bias", _GGUF + "attn_v.bias", _OURS + "attention.value.bias"),
    (_HF + "self_attn.o_proj.weight", _GGUF + "attn_output.weight", _OURS + "attention.out.weight"),
    (_HF + "self_attn.o_proj.bias", _GGUF + "attn_output.bias", _OURS + "attention.out.bias"),
    (_HF + "post_attention_layernorm.weight", _GGUF + "ffn_norm.weight", _OURS + "norm2.weight"),
    (_HF + "mlp.gate_proj.weight", _GGUF + "ffn_gate.weight", _OURS + "mlp.gate.weight"),
    (_HF + "mlp.gate_proj.bias", _GGUF + "ffn_gate.bias", _OURS + "mlp.gate.bias"),
    (_HF + "mlp.up_proj.weight", _GGUF + "ffn_up.weight", _OURS + "mlp.up.weight"),
    (_HF + "mlp.up_proj.bias", _GGUF + "ffn_up.bias", _OURS + "mlp.up.bias"),
    (_HF + "mlp.down_proj.weight", _GGUF + "ffn_down.weight", _OURS + "mlp.down.weight"),
    (_HF + "mlp.down_proj.bias", _GGUF + "ffn_down.bias", _OURS + "mlp.down.bias"),
    ("model.norm.weight", "output_norm.weight", "norm.weight"),
    ("lm_head.weight", "output.weight", "head.weight"),
)
_INTERLEAVED = re.compile(r"blk\.\{i\}\.attn_[qk]\..*")

LLAMA = tuple(Rule(published, ours) for published, _, ours in _NAMES)
"""The names of Llama (Touvron et al., 2023, in the form of the transformers library) and ours."""

GGUF_LLAMA = tuple(
    Rule(gguf, ours, interleaved=_INTERLEAVED.fullmatch(gguf) is not None) for _, gguf, ours in _NAMES
)
"""The names of llama models in GGUF files and ours; rotary pairs are neighbours there."""

_FREQUENCIES = r"model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
"""Old files hold the rotary frequencies of each layer."""

_KIND: dict[str, Any] = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}


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
    path = Path(source).expanduser()
    if not path.exists():
        path = download(str(source))
    published = path.is_dir() or path.suffix in (".safetensors", ".bin", ".json")
    return _load_published(path) if published else _load_gguf(path)


def save_llama(model: GPT, folder: str | Path, tokenizer: Tokenizer | None = None) -> Path:
    """Write a model as a folder that the transformers library loads: configuration, weights, tokenizer.

    Its logits there are the same.  Biases that only some of the layers have are zeros in the others.  A
    folder written before is replaced as a whole.  Raises ValueError for a model that the llama layout
    cannot hold.
    """
    config, folder = model.config, Path(folder)
    wrong = [name for name, needed in _KIND.items() if getattr(config, name) != needed]
    if wrong or config.embedding_scale:
        fields = ", ".join(f"{name}={getattr(config, name)!r}" for name in wrong or ["embedding_scale"])
        raise ValueError(f"save_llama: the llama layout has no {fields}. save_gpt2 writes models like GPT-2.")
    attention_bias, mlp_bias = config.qkv_bias or config.bias, config.bias
    eos = None if tokenizer is None else tokenizer.eos_id
    described = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.context_length,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ff_dim,
        "hidden_act": "silu",
        "attention_bias": attention_bias,
        "mlp_bias": mlp_bias,
        "attention_dropout": config.attention_dropout,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,  # transformers 4; 5 reads the next line
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_base},
        "tie_word_embeddings": config.tie_weights,
        "bos_token_id": None,
        "eos_token_id": eos,
        "dtype": "float32",
    }
    with_bias = {"self_attn": attention_bias, "mlp": mlp_bias}
    rules = [
        rule
        for rule in LLAMA
        if not rule.theirs.endswith("bias")
        or any(part in rule.theirs for part in with_bias if with_bias[part])
    ]
    return write_model(folder, described, collect(model, rules), tokenizer)


def _load_published(path: Path) -> LoadedModel:
    folder = path if path.is_dir() else path.parent
    shape = _published_config(folder / "config.json")
    tensors = read_tensors(path)
    if not any(name.startswith("model.") for name in tensors):  # saved without its output layer
        tensors = {name if name == "lm_head.weight" else f"model.{name}": t for name, t in tensors.items()}
    embedding, head = tensors.get("model.embed_tokens.weight"), tensors.get("lm_head.weight")
    if shape["tie_weights"] and head is not None and embedding is not None:
        shape["tie_weights"] = torch.equal(head, embedding)
        if shape["tie_weights"]:
            del tensors["lm_head.weight"]
    model = _empty(shape, tensors, folder)
    report = load_into(model, tensors, LLAMA, source=path, without_weights=_FREQUENCIES)
    tokenizer = fitting_tokenizer(lambda: load_published_tokenizer(folder), model, path)
    return LoadedModel(model, tokenizer, report)


def _load_gguf(path: Path) -> LoadedModel:
    metadata, packed = read_gguf(path)
    shapes = packed.shapes()
    model = _empty(_gguf_config(path, metadata, shapes), shapes, path)
    tensors = {name: packed[name] for name in tqdm(packed, desc=f"unpack {path.name}", leave=False)}
    report = load_into(model, tensors, GGUF_LLAMA, source=path)
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
    with FileLock(f"{folder}.lock"):  # other processes wait here, and then find it done
        if loaded := unpacked():
            return loaded
        made_from.unlink(missing_ok=True)
        model, tokenizer, _ = _load_gguf(file)
        save_llama(model, folder, tokenizer)
        made_from.write_text(digest, encoding="utf-8")
    return _load_published(folder)


def _empty(shape: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path) -> GPT:
    check_sizes(shape, tensors, source)
    try:
        return empty_model(GPTConfig(**_KIND | dict(shape)))
    except ValueError as error:
        raise ValueError(f"{source}: describes a model that cannot be. {error}") from error


def _refuse_other_computations(where: str, checks: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """checks: by name, the value found and those with which labkit computes the same."""
    for name, (value, allowed) in checks.items():
        if value not in allowed:
            raise ValueError(
                f"{where}: {name}={value!r}, but labkit computes {' or '.join(map(repr, allowed))} only. Its "
                "predictions would be wrong, so the model is not loaded."
            )


def _published_config(file: Path) -> dict[str, Any]:
    """Fields of GPTConfig from a config.json.  Raises ValueError for what we would compute otherwise."""
    found = read_json(file)
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
    _refuse_other_computations(
        str(file),
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
    return {
        "vocab_size": found.get("vocab_size"),
        "context_length": found.get("max_position_embeddings", 2048),
        "d_model": d_model,
        "n_layers": found.get("num_hidden_layers"),
        "n_heads": heads,
        "n_kv_heads": found.get("num_key_value_heads"),
        "d_ff": found.get("intermediate_size"),
        "attention_dropout": found.get("attention_dropout", 0.0),
        "qkv_bias": attention_bias,
        "bias": mlp_bias,
        "norm_eps": found.get("rms_norm_eps", 1e-6),
        "rope_base": rope.get("rope_theta", found.get("rope_theta", 10000.0)),
        "tie_weights": bool(found.get("tie_word_embeddings")),
    }


def _gguf_config(path: Path, metadata: Mapping[str, Any], shapes: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of GPTConfig from a GGUF file.  Raises ValueError for what we would compute otherwise."""

    def found(name: str) -> Any:
        return metadata.get(f"llama.{name}")

    heads, d_model = found("attention.head_count"), found("embedding_length")
    head_dim = d_model // heads if isinstance(heads, int) and isinstance(d_model, int) and heads else None
    _refuse_other_computations(
        str(path),
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
    return {
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
