"""transformers' GPT-2 of the shape of a labkit configuration, without dropout, with weights of its own."""

from __future__ import annotations

import transformers

from labkit import GPTConfig


def build_gpt2(config: GPTConfig) -> transformers.GPT2LMHeadModel:
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.d_model,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            activation_function="gelu" if config.activation == "gelu" else "gelu_new",  # as GPT-2's own
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            tie_word_embeddings=config.tie_weights,
            bos_token_id=None,
            eos_token_id=None,
        )
    )
