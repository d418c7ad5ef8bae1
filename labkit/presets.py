"""Shapes of models and recipes of training by name, as arguments of `GPTConfig` and `TrainConfig`."""

from __future__ import annotations

from typing import Any

_GPT2 = {"vocab_size": 50257, "context_length": 1024}

MODEL_PRESETS: dict[str, dict[str, Any]] = {
    # 79: the characters of the plays and the end of a text; with another tokenizer, give its vocab_size.
    "char-mini": {
        "vocab_size": 79,
        "context_length": 64,
        "d_model": 128,
        "n_layers": 4,
        "n_heads": 4,
        "activation": "gelu",  # four times faster on a CPU than GPT-2's approximation of it
    },
    "report": {
        "vocab_size": 50257,
        "context_length": 64,
        "d_model": 128,
        "n_layers": 2,
        "n_heads": 4,
        "attention_dropout": 0.1,
        "tie_weights": False,
    },
    "nano": {
        "vocab_size": 50257,
        "context_length": 256,
        "d_model": 256,
        "n_layers": 6,
        "n_heads": 4,
        "tie_weights": False,
    },
    "gpt2": _GPT2 | {"d_model": 768, "n_layers": 12, "n_heads": 12},
    "gpt2-medium": _GPT2 | {"d_model": 1024, "n_layers": 24, "n_heads": 16},
    "gpt2-large": _GPT2 | {"d_model": 1280, "n_layers": 36, "n_heads": 20},
    "gpt2-xl": _GPT2 | {"d_model": 1600, "n_layers": 48, "n_heads": 25},
    "smollm2-135m": {
        "vocab_size": 49152,
        "context_length": 8192,
        "d_model": 576,
        "n_layers": 30,
        "n_heads": 9,
        "n_kv_heads": 3,
        "d_ff": 1536,
        "qkv_bias": False,
        "bias": False,
        "positions": "rotary",
        "norm": "rmsnorm",
        "activation": "swiglu",
        "rope_base": 100000.0,
    },
}
MODEL_PRESETS["small"] = MODEL_PRESETS["gpt2"]
MODEL_PRESETS["medium"] = MODEL_PRESETS["gpt2-medium"]

TRAIN_PRESETS: dict[str, dict[str, Any]] = {
    # nanoGPT's on a CPU (Karpathy, 2022): what `benchmarks/reference.py` trains with.
    "reference": {
        "max_steps": 2000,
        "batch_size": 12,
        "learning_rate": 1e-3,
        "betas": (0.9, 0.99),
        "weight_decay": 0.1,
        "warmup_steps": 100,
        "schedule": "cosine",
    },
    # With rotary positions it ends as low in a fraction of the time, with learned ones it takes about 600
    # steps to: `benchmarks/time_to_loss.py`.
    "fast": {
        "max_steps": 400,
        "batch_size": 12,
        "optimizer": "muon",
        "muon_learning_rate": 0.03,
        "learning_rate": 1.2e-2,
        "min_learning_rate": 0.0,
        "betas": (0.9, 0.95),
        "weight_decay": 0.1,
        "schedule": "wsd",
        "decay_fraction": 1.0,  # linear from the peak to nothing
    },
}


def look_up(owner: str, presets: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """The arguments of a preset.  Raises ValueError, listing the known ones, for a name without one."""
    if name not in presets:
        raise ValueError(f"{owner}.preset: {name!r} is not known. Choose from {', '.join(presets)}.")
    return presets[name]
