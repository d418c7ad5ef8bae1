"""Models to analyse: those of transformers with the same weights, and one made by hand."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from labkit import GPT, GPTConfig
from labkit.weights import load_gpt2, load_llama
from tests.variants import VOCAB
from tests.weights import gpt2_files, llama_files

BATCH, SEQ = 3, 7


def some_ids(vocab: int = VOCAB, seq: int = SEQ) -> Tensor:
    return torch.randint(vocab, (BATCH, seq), generator=torch.Generator().manual_seed(4))


PAIRS = {
    **{f"GPT-2 with {sizes['n_head']} heads": sizes for sizes in gpt2_files.SIZES[1:5]},
    **{f"Llama, {name}": sizes for name, sizes in llama_files.SIZES.items()},
}


def reference_pair(name: str, folder: Path) -> tuple[GPT, PreTrainedModel]:
    """labkit's model and that of transformers, in float64, with the same large weights."""
    sizes = PAIRS[name]
    files, load = (gpt2_files, load_gpt2) if name.startswith("GPT-2") else (llama_files, load_llama)
    theirs: PreTrainedModel = files.reference(sizes)
    theirs.save_pretrained(folder)
    theirs.set_attn_implementation("eager")
    return load(folder).model.double().eval(), theirs.double()


TOKENS, POSITIONS = 11, 22
SHARP = 60.0


def hand_made() -> GPT:
    """Two layers of three heads that do known things, on texts of up to 22 of 11 tokens.

    First layer: looks at the previous token, at the first token, at everything alike.  Second layer: an
    induction head (looks for the positions whose previous token is the present one, which the first layer
    wrote there), one that looks for the same token, one that looks at everything alike.

    The residual stream holds three pieces: the token, the position and the previous token, each one-hot.
    Source of the circuit: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits".
    """
    head_dim = POSITIONS
    config = GPTConfig(
        vocab_size=TOKENS,
        context_length=POSITIONS,
        d_model=3 * head_dim,
        n_layers=2,
        n_heads=3,
        norm="rmsnorm",
        bias=False,
        qkv_bias=False,
        norm_eps=0.0001,
    )
    model = GPT(config).double().eval()
    token, position = torch.arange(TOKENS), TOKENS + torch.arange(POSITIONS)
    previous = TOKENS + POSITIONS + torch.arange(TOKENS)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" not in name:
                parameter.zero_()
        model.token_embedding.weight[token, token] = 1
        model.positions.weight[position - TOKENS, position] = 1

        first, second = (block.attention for block in model.blocks)
        tokens, positions = torch.arange(TOKENS), torch.arange(POSITIONS)
        # Head 0: position t asks for t - 1, and carries that token to the third piece of the stream.
        first.query.weight[positions[:-1], position[1:]] = SHARP
        first.query.weight[0, position[0]] = SHARP
        first.key.weight[positions, position] = 1
        first.value.weight[tokens, token] = 1
        first.out.weight[previous, tokens] = 1
        # Head 1: every position asks for position 0.
        first.query.weight[head_dim, position] = SHARP
        first.key.weight[head_dim + positions, position] = 1
        # Second layer, head 0: the token asks for a position that has it as previous token.
        second.query.weight[tokens, token] = SHARP
        second.key.weight[tokens, previous] = 1
        # Head 1: the token asks for itself.
        second.query.weight[head_dim + tokens, token] = SHARP
        second.key.weight[head_dim + tokens, token] = 1
    return model
