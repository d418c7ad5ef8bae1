"""Llama checkpoints in every form, written by transformers, torch and gguf from random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

SIZES: dict[str, dict[str, Any]] = {
    "three query heads share a key": {
        "vocab_size": 61, "hidden_size": 36, "num_attention_heads": 6, "num_key_value_heads": 2,
        "intermediate_size": 50, "num_hidden_layers": 3, "tie_word_embeddings": True,
        "rope_theta": 500.0, "rms_norm_eps": 1e-6,
    },
    "nine heads, an untied head": {
        "vocab_size": 83, "hidden_size": 90, "num_attention_heads": 9, "num_key_value_heads": 3,
        "intermediate_size": 70, "num_hidden_layers": 2, "tie_word_embeddings": False,
        "rope_theta": 1e5, "rms_norm_eps": 1e-5,
    },
    "one key head, biases": {
        "vocab_size": 47, "hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 1,
        "intermediate_size": 96, "num_hidden_layers": 4, "tie_word_embeddings": False,
        "rope_theta": 1e4, "rms_norm_eps": 1e-2, "attention_bias": True, "mlp_bias": True,
    },
    "rows of whole blocks": {
        "vocab_size": 71, "hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3,
        "intermediate_size": 160, "num_hidden_layers": 1, "tie_word_embeddings": True,
        "rope_theta": 7e3, "rms_norm_eps": 3e-5,
    },
}  # fmt: skip
"""Odd sizes; the hidden layers of the last one can be packed in blocks of 32."""

FOLDERS = (
    *("safetensors", "float16", "bfloat16", "sharded", "bin"),
    *("written by transformers 4", "head in the file", "frequencies", "without the output layer"),
)
GGUFS = ("F32", "F16", "BF16", "Q8_0", "Q4_1")
CONTEXT = 64


def reference(sizes: dict[str, Any]) -> LlamaForCausalLM:
    """A Llama of transformers with weights so large that every position and every head matters."""
    torch.manual_seed(0)
    theta = sizes["rope_theta"]
    config = LlamaConfig(
        **{name: value for name, value in sizes.items() if name != "rope_theta"},
        rope_parameters={"rope_type": "default", "rope_theta": theta},
        max_position_embeddings=CONTEXT,
        bos_token_id=None,
        eos_token_id=None,
    )
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        nn.init.normal_(parameter, mean=1.0 if "norm" in name else 0.0, std=0.2)
    return model


def write_folder(form: str, sizes: dict[str, Any], folder: Path) -> LlamaForCausalLM | None:
    """The model that the folder holds; None where a size cannot have this form."""
    if form in ("head in the file", "without the output layer") and not sizes["tie_word_embeddings"]:
        return None
    model = reference(sizes)
    if form in ("float16", "bfloat16"):
        model.to(getattr(torch, form))
    model.save_pretrained(folder, max_shard_size="20KB" if form == "sharded" else "1GB")
    if form in ("float16", "bfloat16"):  # converting back would round the rotary frequencies too
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tensors = {name: each.contiguous() for name, each in model.state_dict().items()}
    weights = folder / "model.safetensors"
    if form == "sharded":
        assert not weights.exists()
        assert len(list(folder.glob("*.safetensors"))) > 2
    elif form == "bin":
        weights.unlink()
        torch.save(tensors, folder / "pytorch_model.bin")
    elif form == "written by transformers 4":
        change_config(folder, rope_parameters=None, rope_scaling=None, rope_theta=sizes["rope_theta"])
    elif form == "head in the file":
        save_file({name: each.clone() for name, each in tensors.items()}, weights)
    elif form == "frequencies":
        for layer in range(sizes["num_hidden_layers"]):
            tensors[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = torch.arange(3.0)
        if sizes["tie_word_embeddings"]:
            del tensors["lm_head.weight"]
        save_file(tensors, weights)
    elif form == "without the output layer":
        del tensors["lm_head.weight"]
        save_file({name.removeprefix("model."): each for name, each in tensors.items()}, weights)
    return model


def change_config(folder: Path, **changes: Any) -> None:
    """Replace entries of config.json; None removes one."""
    content = json.loads((folder / "config.json").read_text()) | changes
    kept = {name: value for name, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def neighbours(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Rotary pairs as llama.cpp wants them: feature i of the first half beside feature i of the second."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def write_gguf(packing: str, sizes: dict[str, Any], path: Path, **metadata: Any) -> LlamaForCausalLM:
    """The model that the file holds: what it was packed from, rounded as packing rounds.

    metadata: further values, under their names without "llama.".
    """
    model = reference(sizes)
    kind = gguf.GGMLQuantizationType[packing]
    block = gguf.GGML_QUANT_SIZES[kind][0]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(sizes["hidden_size"])
    writer.add_block_count(sizes["num_hidden_layers"])
    writer.add_feed_forward_length(sizes["intermediate_size"])
    writer.add_head_count(sizes["num_attention_heads"])
    writer.add_head_count_kv(sizes["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(sizes["rms_norm_eps"])
    writer.add_rope_freq_base(sizes["rope_theta"])
    for name, value in metadata.items():
        if isinstance(value, str):
            writer.add_string(f"llama.{name}", value)
        elif isinstance(value, float):
            writer.add_float32(f"llama.{name}", value)
        else:
            writer.add_uint32(f"llama.{name}", value)
    heads = {"q_proj": sizes["num_attention_heads"], "k_proj": sizes["num_key_value_heads"]}
    for name, parameter in model.named_parameters():
        owner, _, leaf = name.rpartition(".")
        layer, part = "", owner
        if owner.startswith("model.layers."):
            _, _, number, part = owner.split(".", 3)
            layer = f"blk.{number}."
        plain = parameter.detach().numpy()
        count = heads.get(part.rpartition(".")[2], 0)
        stored = neighbours(plain, count) if count else plain
        packed = kind if stored.ndim == 2 and stored.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(stored, packed)
        writer.add_tensor(f"{layer}{GGUF_NAMES[part]}.{leaf}", data, raw_dtype=packed)
        # The reference computes with what is left after packing; that works on rows, so in our order too.
        parameter.data = torch.tensor(gguf.quants.dequantize(gguf.quants.quantize(plain, packed), packed))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def logits(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """What transformers computes for a batch of ids, (batch, seq, vocab)."""
    with torch.inference_mode():
        result: Tensor = model(ids).logits
    return result


def greedy(model: LlamaForCausalLM, ids: Tensor, new: int = 50) -> Tensor:
    """How transformers continues a batch of ids, always taking the likeliest token."""
    model.generation_config.eos_token_id = None
    continued: Tensor = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, do_sample=False, pad_token_id=0
    )
    return continued
