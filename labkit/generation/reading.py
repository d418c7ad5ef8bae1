"""How a model reads texts that grow: with a key-value cache where it takes one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from labkit.model import (
    GPT,
    MLP,
    Block,
    CausalSelfAttention,
    KVCache,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
)
from labkit.model.layers import Dropout, is_unchanged


class CachedReader:
    """Logits of the next token for rows that grow: the model reads only what is new, with a key-value cache.

    On a GPU the step is a CUDA graph, captured from this very call of the model, where `can_capture` allows.
    """

    def __init__(self, model: GPT, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        embedding = model.token_embedding.weight
        self.device, self.dtype = embedding.device, embedding.dtype
        if torch.is_autocast_enabled(self.device.type):
            self.dtype = torch.get_autocast_dtype(self.device.type)
        self.graph = self.device.type == "cuda" and can_capture(model)
        self._replay: Callable[[Tensor], Tensor] | None = None
        self._fixed: KVCache | None = None

    def _cache(self, rows: int, *, fixed: bool = False) -> KVCache:
        return KVCache(
            self.model.config, rows, capacity=self.capacity, fixed=fixed, device=self.device, dtype=self.dtype
        )

    @property
    def full(self) -> bool:
        """Whether the cache has no room for another token."""
        return self.cache.length == self.capacity

    def prefill(self, prompts: Sequence[Tensor], copies: int = 1) -> Tensor:
        """Read prompts, (seq,) ids each, from the start; returns (prompts * copies, vocab) logits.

        Each row that follows a prompt is kept `copies` times: the prompt is read once for all of them.
        """
        lengths = [len(prompt) for prompt in prompts]
        self.cache = self._cache(len(prompts))
        logits = _logits_at_the_ends(self.model, prompts, cache=self.cache)
        self.cache.trim(lengths)
        rows = [number for number in range(len(prompts)) for _ in range(copies)]
        if self.graph:
            self._load_graph(rows)
        elif copies > 1:
            self.keep(rows)
        return logits[rows] if copies > 1 else logits

    def _load_graph(self, rows: list[int]) -> None:
        prefilled = self.cache
        if self._fixed is None or self._fixed.batch != len(rows):
            self._fixed = self._cache(len(rows), fixed=True)
            self._replay = capture_step(self.model, self._fixed)
        self.cache = self._fixed
        self.cache.copy_rows(prefilled, rows)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token in each row, (rows,); returns (rows, vocab) logits."""
        if self._replay is not None:
            return self._replay(tokens)
        return self.model(tokens[:, None], cache=self.cache)[:, 0]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        remaining = self._cache(len(rows))
        remaining.copy_rows(self.cache, rows)
        self.cache = remaining


class UncachedReader:
    """The same for a model of which some part takes no cache: every step reads everything."""

    graph = False

    def __init__(self, model: GPT, capacity: int) -> None:
        self.model, self.capacity, self.device = model, capacity, model.token_embedding.weight.device

    @property
    def full(self) -> bool:
        return max(len(row) for row in self.rows) == self.capacity

    def prefill(self, prompts: Sequence[Tensor], copies: int = 1) -> Tensor:
        self.rows = [prompt for prompt in prompts for _ in range(copies)]
        return _logits_at_the_ends(self.model, self.rows)

    def step(self, tokens: Tensor) -> Tensor:
        return self.prefill(
            [torch.cat([row, token]) for row, token in zip(self.rows, tokens[:, None], strict=True)]
        )

    def keep(self, rows: list[int]) -> None:
        self.rows = [self.rows[row] for row in rows]


def _logits_at_the_ends(model: GPT, prompts: Sequence[Tensor], **cache: KVCache) -> Tensor:
    """(prompts, vocab): what follows the last token of each."""
    ids = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=ids.device)
    if _takes(model, "at"):
        return model(ids, at=ends, **cache)
    return model(ids, **cache)[torch.arange(len(ids), device=ids.device), ends]


def _takes(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


def reader_for(model: GPT, capacity: int) -> CachedReader | UncachedReader:
    """With a cache where the model, its blocks and their attention take one, whatever forward they have.

    capacity: tokens that a row may grow to.
    """
    parts = [model, *model.blocks, *(getattr(block, "attention", block) for block in model.blocks)]
    if all(_takes(part, "cache") for part in parts):
        return CachedReader(model, capacity)
    return UncachedReader(model, capacity)


CAPTURED = {GPT, Block, CausalSelfAttention, MLP, LearnedPositions, SinusoidalPositions, RotaryPositions}
CAPTURED |= {nn.ModuleList, nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, Dropout}


def can_capture(model: GPT) -> bool:
    """Whether a recording of one step computes what calling the model would, every time.

    Not under autocast, and not with modules, methods or hooks that somebody else has written: what they do in
    Python would happen once, while recording.
    """
    if torch.is_autocast_enabled(model.token_embedding.weight.device.type):
        return False
    return all(type(module) in CAPTURED and is_unchanged(module) for module in model.modules())


def capture_step(model: GPT, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """One decoding step as a CUDA graph: a single launch in place of hundreds.

    cache: a fixed one; what it holds is lost. The returned function reads (rows,) tokens into it and gives
    (rows, vocab) logits, which the next call overwrites.
    """
    tokens = torch.zeros(cache.batch, 1, dtype=torch.long, device=cache.slot.device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up before capture
        for _ in range(2):
            cache.clear()
            model(tokens, cache=cache)
    torch.cuda.current_stream().wait_stream(side)
    cache.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(tokens, cache=cache)[:, 0]

    def step(drawn: Tensor) -> Tensor:
        tokens.copy_(drawn[:, None])
        graph.replay()
        cache.length += 1  # the rest of the cache's state is counted in the graph
        return logits

    return step
