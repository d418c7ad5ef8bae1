"""What several commands take: the model's shape, the kind of tokenizer."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from labkit.config import GPTConfig, Positions


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """A preset, and what to change in it."""

    preset: str = "char-mini"
    """Model shape: char-mini, report, nano, gpt2, gpt2-medium, gpt2-large, gpt2-xl, smollm2-135m."""
    context_length: int | None = None
    """Longest sequence, in tokens."""
    d_model: int | None = None
    """Features per position."""
    n_layers: int | None = None
    """Number of blocks."""
    n_heads: int | None = None
    """Attention heads per block."""
    dropout: float | None = None
    """Dropout on embeddings and residuals."""
    positions: Positions | None = None
    """How order enters the model."""

    def build(self, vocab_size: int | None = None) -> GPTConfig:
        """The model's configuration, for a tokenizer of this size."""
        changes = {name: value for name, value in asdict(self).items() if value is not None}
        preset = changes.pop("preset")
        if vocab_size is not None:
            changes["vocab_size"] = vocab_size
        return GPTConfig.preset(preset, **changes)
