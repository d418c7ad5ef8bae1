"""Options that several commands share: how optional values are shown, and the model's shape."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, arg

from labkit.config import Activation, GPTConfig, Norm, Positions

Text = Annotated[str | None, arg(metavar="TEXT", help_behavior_hint="")]
Number = Annotated[int | None, arg(metavar="INT", help_behavior_hint="")]
File = Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")]
Switch = Annotated[bool, FlagCreatePairsOff, arg(help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A preset, and what to change in it: every field of GPTConfig but vocab_size, the tokenizer's."""

    preset: str = "char-mini"
    """Model shape: char-mini, report, nano, gpt2, gpt2-medium, gpt2-large, gpt2-xl, smollm2-135m."""
    context_length: int | None = None
    """Longest sequence, in tokens."""
    d_model: int | None = None
    """Features per position."""
    n_layers: int | None = None
    """Number of blocks."""
    n_heads: int | None = None
    """Attention heads per block; must divide d_model."""
    n_kv_heads: int | None = None
    """Key/value heads (grouped-query attention); must divide n_heads."""
    d_ff: int | None = None
    """Hidden features of the feed-forward network."""
    dropout: float | None = None
    """Dropout on embeddings and on what each block adds to the residual stream."""
    attention_dropout: float | None = None
    """Dropout on the attention weights."""
    qkv_bias: bool | None = None
    """Biases on the query, key and value projections."""
    bias: bool | None = None
    """Biases on every other linear layer of a block, and on layer norms."""
    positions: Positions | None = None
    """How order enters the model."""
    norm: Norm | None = None
    """Normalisation before attention, feed-forward network and output layer."""
    activation: Activation | None = None
    """gelu is exact; gelu_tanh is GPT-2's approximation; swiglu gates."""
    tie_weights: bool | None = None
    """Use the token embedding as the output layer."""
    embedding_scale: bool | None = None
    """Multiply token embeddings by sqrt(d_model)."""
    norm_eps: float | None = None
    """Added to the variance before the norm divides by its root."""
    rope_base: float | None = None
    """Base of the rotary wavelengths."""

    def build(self) -> GPTConfig:
        """The model's configuration, with the preset's vocabulary."""
        changes = {name: value for name, value in asdict(self).items() if value is not None}
        return GPTConfig.preset(changes.pop("preset"), **changes)
