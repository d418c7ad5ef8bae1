"""Small models of every kind that the configuration allows, with odd sizes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from labkit import GPT, GPTConfig

VOCAB, CONTEXT = 13, 11

VARIANTS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "sinusoidal": {"positions": "sinusoidal", "embedding_scale": True},
    "no positions": {"positions": "none"},
    "rotary": {"positions": "rotary"},
    "grouped": {"n_heads": 6, "n_kv_heads": 2},
    "one kv head": {"n_heads": 3, "n_kv_heads": 1, "positions": "rotary"},
    "llama": {
        "positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "n_heads": 6, "n_kv_heads": 3,
        "qkv_bias": False, "bias": False, "d_ff": 17, "rope_base": 500.0, "norm_eps": 1e-6,
    },
    "untied, exact gelu": {"tie_weights": False, "activation": "gelu"},
    "bias on projections only": {"qkv_bias": True, "bias": False},
    "one layer, one head": {"n_layers": 1, "n_heads": 1},
}  # fmt: skip


def variant(name: str, **changes: Any) -> GPT:
    """The model, in float64 and evaluation mode, with weights so large that every position matters."""
    sizes: dict[str, Any] = {"vocab_size": VOCAB, "context_length": CONTEXT, "d_model": 12, "n_layers": 2}
    sizes |= {"n_heads": 2, "dropout": 0.3, "attention_dropout": 0.3}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**sizes | VARIANTS[name] | changes))
    for parameter_name, parameter in model.named_parameters():
        mean = 1.0 if "norm" in parameter_name and parameter_name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean=mean, std=0.6)
    return model.double().eval()
