"""The GPT: token ids in, logits over the vocabulary out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from labkit.config import GPTConfig
from labkit.model.cache import KVCache
from labkit.model.layers import (
    Block,
    Dropout,
    LearnedPositions,
    SinusoidalPositions,
    build_norm,
    build_rotary,
    check_starts,
    is_unchanged,
)
from labkit.model.loss import Reduction, check_targets, cross_entropy, linear_cross_entropy


class GPT(nn.Module):
    """A decoder-only transformer.

    ids: (batch, seq) whole numbers in [0, vocab_size), seq at most context_length.
    Returns logits (batch, seq, vocab_size): position t scores every candidate for token t + 1.
    cache: what was read before; ids come after it and are added to it.
    at: (batch,) one position of each row; then only its logits are computed, (batch, vocab_size).
    Raises ValueError for ids of another shape or kind, a longer sequence or ids outside the vocabulary.
    Targets belong to `loss`.

    Initial values:

    | tensor                                | distribution                    |
    |---------------------------------------|---------------------------------|
    | token embedding (and tied head)       | N(0, 0.02)                      |
    | untied head                           | N(0, 0.02)                      |
    | learned positions                     | N(0, 0.01)                      |
    | linear layers                         | N(0, 0.02)                      |
    | last linear of attention and of MLP   | N(0, 0.02 / sqrt(2 n_layers))   |
    | biases                                | 0                               |
    | norm weights, norm biases             | 1, 0                            |

    Source: Radford et al. (2019), section 2.3, and the values of the released GPT-2 code.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.positions: LearnedPositions | SinusoidalPositions | None = None
        if config.positions == "learned":
            self.positions = LearnedPositions(config.context_length, config.d_model)
        elif config.positions == "sinusoidal":
            self.positions = SinusoidalPositions(config.context_length, config.d_model)
        self.dropout = Dropout(config.dropout)
        self.activation_checkpointing = False
        """While training, keep only each block's input and compute the rest again (Chen et al., 2016)."""
        rotary = build_rotary(config)  # one table serves every layer
        self.blocks = nn.ModuleList(Block(config, rotary) for _ in range(config.n_layers))
        self.norm = build_norm(config)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_weights:
            self.head.weight = self.token_embedding.weight
        self._init_weights()

    def _init_weights(self) -> None:
        residual_std = 0.02 / (2 * self.config.n_layers) ** 0.5
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith(("out.weight", "down.weight")):
                nn.init.normal_(parameter, std=residual_std)
            elif parameter.ndim == 2 and not name.startswith("positions"):
                nn.init.normal_(parameter, std=0.02)

    def check_ids(self, ids: Tensor) -> None:
        """Raise ValueError, saying what to do, for ids that this model cannot read."""
        if ids.ndim != 2:
            raise ValueError(
                f"GPT: ids have shape {tuple(ids.shape)}; expected (batch, seq). "
                "Give one sequence as ids[None]."
            )
        if ids.dtype.is_floating_point or ids.dtype == torch.bool:
            raise ValueError(f"GPT: ids are {ids.dtype}; expected whole numbers (torch.long).")
        if ids.shape[1] > self.config.context_length:
            raise ValueError(
                f"GPT: {ids.shape[1]} tokens do not fit context_length={self.config.context_length}. "
                "Keep the last ones: ids[:, -model.config.context_length:]."
            )
        # On a GPU this would wait for the device at every step; there the embedding itself asserts.
        if ids.device.type == "cpu" and ids.numel() and not torch.compiler.is_compiling():
            low, high = (int(limit) for limit in ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                raise ValueError(
                    f"GPT: ids range from {low} to {high}; this model knows 0 to "
                    f"{self.config.vocab_size - 1}. Was the text encoded with another tokenizer?"
                )

    def embed(self, ids: Tensor, start: int | Tensor = 0) -> Tensor:
        """Token plus position embeddings, (batch, seq, d_model): what the first block reads.

        start: position of the first token, or (batch,) positions where the rows differ.
        """
        x = self.token_embedding(ids)
        if self.config.embedding_scale:
            x = x * self.config.d_model**0.5
        if self.positions is not None:
            check_starts(start, len(ids))
            x = x + self.positions(ids.shape[1], start)
        return self.dropout(x)

    def hidden(self, ids: Tensor, cache: KVCache | None = None, *, at: Tensor | None = None) -> Tensor:
        """What the output layer reads, (batch, seq, d_model); the arguments are those of the model."""
        self.check_ids(ids)
        if cache is not None:
            if not isinstance(cache, KVCache):
                raise TypeError(
                    f"GPT: the second argument is a {type(cache).__name__}, not a KVCache. For the loss of "
                    "targets call model.loss(ids, targets)."
                )
            cache.begin(ids)
        x = self.embed(ids, 0 if cache is None else cache.positions)
        for number, block in enumerate(self.blocks):
            if cache is not None:
                x = block(x, cache=cache.layers[number])
            elif self.activation_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        if cache is not None:
            cache.advance(ids.shape[1])
        if at is not None:
            x = x[torch.arange(len(x), device=x.device), at]  # (batch, d_model)
        return self.norm(x)

    def forward(self, ids: Tensor, cache: KVCache | None = None, *, at: Tensor | None = None) -> Tensor:
        return self.head(self.hidden(ids, cache, at=at))  # (batch, seq, vocab_size), or (batch, vocab_size)

    def loss(
        self, ids: Tensor, targets: Tensor, ignore_index: int = -100, reduction: Reduction = "mean"
    ) -> Tensor:
        """Mean (or sum) of the cross-entropy in nats, over the targets that are not ignore_index.

        ids, targets: (batch, seq); targets[:, t] is the token that follows ids[:, t].  The logits of a large
        vocabulary are never held all at once (`linear_cross_entropy`), so neither the model nor its head is
        called, unless somebody has changed them.
        Raises ValueError when the shapes differ, for targets that are no tokens, or where there is no mean
        because every target is ignored.
        """
        if ids.shape != targets.shape:
            raise ValueError(
                f"GPT.loss: ids {tuple(ids.shape)} and targets {tuple(targets.shape)} differ in shape."
            )
        check_targets(targets, self.config.vocab_size, ignore_index, "GPT.loss")
        checked = targets.device.type == "cpu" and not torch.compiler.is_compiling()
        if checked and reduction == "mean" and bool((targets == ignore_index).all()):
            raise ValueError(f"GPT.loss: every target is ignore_index={ignore_index}; nothing to learn from.")
        head, flat = self.head, targets.flatten()
        plain = type(head) is nn.Linear and head.bias is None and not self.forward_is_changed
        if not plain or not (torch.compiler.is_compiling() or is_unchanged(head)):
            return cross_entropy(self(ids).flatten(0, 1), flat, ignore_index, reduction)
        hidden = self.hidden(ids).flatten(0, 1)  # (batch * seq, d_model)
        return linear_cross_entropy(hidden, head.weight, flat, ignore_index, reduction)

    @property
    def forward_is_changed(self) -> bool:
        """Whether this model, or its class, has been given another `forward`, or a hook around it."""
        hooked = type(self) is GPT and (self._forward_hooks or self._forward_pre_hooks)
        return bool(hooked) or getattr(self.forward, "__func__", None) is not _FORWARD

    def num_parameters(self) -> int:
        """Trained numbers; a tied head is counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, seq: int | None = None) -> int:
        """Floating-point operations to train on one token: forward 1/3, backward 2/3.

        seq: tokens per sequence (context_length when not given). Each weight of a matrix that multiplies
        costs 2 in the forward pass and 4 in the backward pass; attention adds 12 * n_heads * head_dim * seq
        per layer (scores and mixing, over the full square). Embedding look-ups, norms and biases are free.
        Source: Kaplan et al. (2020), section 2.1; Chowdhery et al. (2022), appendix B.
        """
        seq = self.config.context_length if seq is None else seq
        linears = (module for module in self.modules() if isinstance(module, nn.Linear))
        weights = sum(linear.weight.numel() for linear in linears)
        attention = 12 * self.config.n_layers * self.config.n_heads * self.config.head_dim * seq
        return 6 * weights + attention


_FORWARD = GPT.forward


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode (no dropout), and afterwards every module in the mode it was in."""
    modes = [(module, module.training) for module in model.modules()]
    if any(training for _, training in modes):
        model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
