"""The key-value cache: what attention needs to know of the tokens that were read before."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.config import GPTConfig


class LayerCache:
    """The keys and values of one layer, (batch, kv_heads, capacity, head_dim), in the slots of a KVCache."""

    def __init__(self, shared: KVCache, keys: Tensor, values: Tensor) -> None:
        self.shared, self.keys, self.values = shared, keys, values

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store those of the new tokens, (batch, kv_heads, seq, head_dim); returns all to attend to."""
        shared, seq = self.shared, k.shape[2]
        if shared.fixed and seq == 1:
            self.keys.index_copy_(2, shared.slot, k)
            self.values.index_copy_(2, shared.slot, v)
            return self.keys, self.values
        self.keys.narrow(2, shared.length, seq).copy_(k)
        self.values.narrow(2, shared.length, seq).copy_(v)
        return self.keys.narrow(2, 0, shared.length + seq), self.values.narrow(2, 0, shared.length + seq)


class KVCache:
    """Keys and values of the tokens that a model has read, so that the next token is computed alone.

    `model(ids, cache=cache)` reads ids after everything the cache holds, and adds them to it. Memory is
    taken once: 2 * n_layers * batch * kv_heads * capacity * head_dim numbers (`nbytes`).

    capacity: tokens it has room for, the model's context_length when not given.
    fixed: single tokens are read with the same shapes and addresses whatever the cache holds, so that the
    step can be captured as a CUDA graph; attention then goes over the whole capacity. Without it, attention
    sees a view of the filled slots, which grows.

    Prompts of different lengths are padded on the right, and `trim` then says how long each row is: the
    slots between a row's end and the next token are hidden from it.

    Keys are stored with their rotary turn. Positions count from the start of each row, so a row cannot
    outgrow the context, whatever the kind of positions: clear the cache and read the tokens to keep.
    Raises ValueError for a capacity outside 1 to context_length.
    Source: Shazeer (2019), section 2.3; Pope et al. (2022), section 3.3.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch: int = 1,
        *,
        capacity: int | None = None,
        fixed: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.capacity = config.context_length if capacity is None else capacity
        if not 0 < self.capacity <= config.context_length:
            raise ValueError(
                f"KVCache: capacity={capacity} must be between 1 and context_length={config.context_length}."
            )
        self.fixed = fixed
        self.length = 0
        """Slots in use."""
        self.positions: int | Tensor = 0
        """Position of the next token: one number, or (batch,) where rows differ in length."""
        self.hidden: Tensor | None = None
        """(batch, capacity), True where a slot holds padding; None where no row has any."""
        self.slot = torch.zeros(1, dtype=torch.long, device=device)
        """Where a fixed cache puts the next token: length, as a tensor."""
        self.mask: Tensor | None = None
        """What the tokens being read attend to; None for all slots, or where causal for those up to each."""
        self.causal = False
        """Whether the tokens being read are the first, so that plain causal attention will do."""
        if fixed:
            self.positions = torch.zeros(batch, dtype=torch.long, device=device)
            self.hidden = torch.zeros(batch, self.capacity, dtype=torch.bool, device=device)
        shape = (batch, config.kv_heads, self.capacity, config.head_dim)
        self.layers = [
            LayerCache(self, *(torch.zeros(shape, device=device, dtype=dtype) for _ in range(2)))
            for _ in range(config.n_layers)
        ]

    @property
    def batch(self) -> int:
        """Number of rows."""
        return self.layers[0].keys.shape[0]

    @property
    def nbytes(self) -> int:
        """Memory that the keys and values take."""
        return 2 * sum(layer.keys.nbytes for layer in self.layers)

    def clear(self) -> None:
        """Forget everything, and keep the memory."""
        self.length = 0
        if self.fixed:
            self.slot.zero_()
            assert isinstance(self.positions, Tensor)
            assert self.hidden is not None
            self.positions.zero_()
            self.hidden.zero_()
        else:
            self.positions, self.hidden = 0, None

    def begin(self, ids: Tensor) -> None:
        """Make ready for reading ids, (batch, seq): the model calls this before its first layer.

        Raises ValueError where they have another batch or do not fit behind the others.
        """
        batch, seq = ids.shape
        if batch != self.batch:
            raise ValueError(f"KVCache: made for {self.batch} rows, not for {batch}.")
        if self.length + seq > self.capacity:
            raise ValueError(
                f"KVCache: holds {self.length} tokens of at most {self.capacity}; {seq} more do not fit. "
                "Clear it and read the last part of the text again, as generate does."
            )
        device, end = self.slot.device, self.length + seq
        self.causal = False
        if self.fixed and seq == 1:
            assert self.hidden is not None
            reached = torch.arange(self.capacity, device=device) <= self.slot
            self.mask = (reached & ~self.hidden)[:, None, None]  # (batch, 1, 1, capacity)
        elif self.length == 0:
            self.mask, self.causal = None, seq > 1
        else:
            reached = None
            if seq > 1:
                reached = torch.ones(seq, end, dtype=torch.bool, device=device).tril(self.length)
            shown = None if self.hidden is None else ~self.hidden[:, None, None, :end]  # (batch, 1, 1, slots)
            self.mask = reached if shown is None else shown if reached is None else reached & shown

    def advance(self, seq: int) -> None:
        """Count seq more tokens in every row: the model calls this after its last layer."""
        self.length += seq
        self.positions += seq
        if self.fixed:
            self.slot += seq

    def trim(self, lengths: Sequence[int]) -> None:
        """Say that row i holds only its first lengths[i] slots; the rest of it was padding.

        Raises ValueError for lengths below 1 or above what the cache holds.
        """
        if len(lengths) != self.batch or not all(1 <= each <= self.length for each in lengths):
            raise ValueError(
                f"KVCache.trim: lengths={list(lengths)} must be {self.batch} numbers from 1 to {self.length}."
            )
        if min(lengths) == self.length:
            return
        ends = torch.tensor(lengths, device=self.slot.device)
        slots = torch.arange(self.capacity, device=ends.device)
        padding = (slots >= ends[:, None]) & (slots < self.length)
        if self.fixed:  # in place: a captured step reads these addresses
            assert isinstance(self.positions, Tensor)
            assert self.hidden is not None
            self.positions.copy_(ends)
            self.hidden.copy_(padding)
        else:
            self.positions, self.hidden = ends, padding

    def copy_rows(self, source: KVCache, rows: Sequence[int]) -> None:
        """Hold what row rows[0] of source holds, then rows[1], ...; a row may be named several times.

        Raises ValueError where rows are not as many as this cache has, or where there is no room for them.
        """
        if len(rows) != self.batch or source.length > self.capacity:
            raise ValueError(
                f"KVCache.copy_rows: {len(rows)} rows of {source.length} tokens do not fit {self.batch} rows "
                f"of at most {self.capacity}."
            )
        self.clear()
        index = torch.tensor(rows, device=self.slot.device)
        filled = source.length
        for mine, theirs in zip(self.layers, source.layers, strict=True):
            mine.keys[:, :, :filled] = theirs.keys[index, :, :filled]
            mine.values[:, :, :filled] = theirs.values[index, :, :filled]
        self.advance(filled)
        if isinstance(source.positions, Tensor) and source.hidden is not None:
            if self.hidden is None or not isinstance(self.positions, Tensor):
                self.hidden = torch.zeros(self.batch, self.capacity, dtype=torch.bool, device=index.device)
                self.positions = torch.zeros_like(index)
            self.hidden[:, :filled] = source.hidden[index, :filled]
            self.positions.copy_(source.positions[index])
