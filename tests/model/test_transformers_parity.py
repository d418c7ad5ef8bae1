"""The same weights give the same logits in Hugging Face's GPT-2 and Llama."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from labkit import GPT, GPTConfig

transformers = pytest.importorskip("transformers")

BATCH, SEQ = 3, 7


def gpt2_state(model: GPT) -> dict[str, Tensor]:
    """labkit's weights under GPT-2's names; its Conv1D layers store (in, out), transposed."""
    state = {
        "transformer.wte.weight": model.token_embedding.weight,
        "transformer.wpe.weight": model.positions.weight,
        "transformer.ln_f.weight": model.norm.weight,
        "transformer.ln_f.bias": model.norm.bias,
        "lm_head.weight": model.head.weight,
    }
    for number, block in enumerate(model.blocks):
        attention = block.attention
        qkv = (attention.query, attention.key, attention.value)
        parts = {
            "ln_1.weight": block.norm1.weight,
            "ln_1.bias": block.norm1.bias,
            "attn.c_attn.weight": torch.cat([each.weight for each in qkv]).T,
            "attn.c_attn.bias": torch.cat([each.bias for each in qkv]),
            "attn.c_proj.weight": attention.out.weight.T,
            "attn.c_proj.bias": attention.out.bias,
            "ln_2.weight": block.norm2.weight,
            "ln_2.bias": block.norm2.bias,
            "mlp.c_fc.weight": block.mlp.up.weight.T,
            "mlp.c_fc.bias": block.mlp.up.bias,
            "mlp.c_proj.weight": block.mlp.down.weight.T,
            "mlp.c_proj.bias": block.mlp.down.bias,
        }
        state |= {f"transformer.h.{number}.{name}": tensor for name, tensor in parts.items()}
    return state


def llama_state(model: GPT) -> dict[str, Tensor]:
    state = {
        "model.embed_tokens.weight": model.token_embedding.weight,
        "model.norm.weight": model.norm.weight,
        "lm_head.weight": model.head.weight,
    }
    for number, block in enumerate(model.blocks):
        parts = {
            "input_layernorm": block.norm1,
            "self_attn.q_proj": block.attention.query,
            "self_attn.k_proj": block.attention.key,
            "self_attn.v_proj": block.attention.value,
            "self_attn.o_proj": block.attention.out,
            "post_attention_layernorm": block.norm2,
            "mlp.gate_proj": block.mlp.gate,
            "mlp.up_proj": block.mlp.up,
            "mlp.down_proj": block.mlp.down,
        }
        state |= {f"model.layers.{number}.{name}.weight": module.weight for name, module in parts.items()}
    return state


def randomised(config: GPTConfig) -> GPT:
    torch.manual_seed(0)
    model = GPT(config).eval()
    for name, parameter in model.named_parameters():
        mean = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        nn.init.normal_(parameter, mean=mean, std=0.2)
    return model


@pytest.mark.parametrize("tied", [True, False])
def test_logits_equal_those_of_gpt2(tied: bool) -> None:
    model = randomised(
        GPTConfig(
            vocab_size=37, context_length=11, d_model=15, n_layers=4, n_heads=3, d_ff=29, tie_weights=tied
        )
    )
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=37,
            n_positions=11,
            n_embd=15,
            n_layer=4,
            n_head=3,
            n_inner=29,
            tie_word_embeddings=tied,
        )
    ).eval()
    theirs.load_state_dict(gpt2_state(model))
    assert sum(p.numel() for p in theirs.parameters()) == model.num_parameters()
    ids = torch.randint(37, (BATCH, SEQ))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
    loss = model.loss(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(loss, theirs(ids, labels=ids).loss, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_logits_equal_those_of_llama(kv_heads: int, tied: bool) -> None:
    model = randomised(
        GPTConfig(
            vocab_size=37,
            context_length=11,
            d_model=24,
            n_layers=3,
            n_heads=6,
            n_kv_heads=kv_heads,
            d_ff=29,
            qkv_bias=False,
            bias=False,
            positions="rotary",
            norm="rmsnorm",
            activation="swiglu",
            tie_weights=tied,
            norm_eps=1e-4,
            rope_base=500.0,
        )
    )
    theirs = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=37,
            max_position_embeddings=11,
            hidden_size=24,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=kv_heads,
            intermediate_size=29,
            rms_norm_eps=1e-4,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
            tie_word_embeddings=tied,
        )
    ).eval()
    theirs.load_state_dict(llama_state(model))
    ids = torch.randint(37, (BATCH, SEQ))
    with torch.no_grad():
        torch.testing.assert_close(model(ids), theirs(ids).logits, atol=1e-5, rtol=1e-5)
