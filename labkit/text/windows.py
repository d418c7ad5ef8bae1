"""Ids to training examples: inputs, and the same ids one place further on as targets."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from labkit.text.draws import draw_starts
from labkit.text.shards import Shards, open_shards

IGNORE = -100
"""Target of padding, which the loss leaves out. An id of its own, so that a padding id which is also
the end of a text drops no real end."""

_BLOCK = 4096

Ids = Sequence[int] | np.ndarray | Tensor | Shards


class _Windows(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (input, target), each (context_length,) int64, one by one or in batches."""

    context_length: int
    total_tokens: int
    """Targets that count towards the loss, over all windows."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def _gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The inputs and targets of some windows, each (windows, context_length)."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A checksum of all inputs and targets."""

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        inputs, targets = self._gather(torch.tensor([index % len(self)]))
        return inputs[0], targets[0]

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, each (batch, context_length) int64, in order; the last batch may be smaller.

        limit: take only so many windows, spread evenly over all of them, always the same ones.
        """
        if batch_size < 1:
            raise ValueError(f"batches: batch_size={batch_size} must be at least 1.")
        if limit is not None and limit < 1:
            raise ValueError(f"batches: limit={limit} must be at least 1.")
        count = len(self) if limit is None else min(limit, len(self))
        chosen = torch.arange(count) * len(self) // count
        return (self._gather(part) for part in chosen.split(batch_size))


class WindowDataset(_Windows):
    """Sliding windows over one sequence of ids: window i starts at i * stride.

    ids: (tokens,).  stride: context_length when not given, so that every target is seen once.
    keep_tail: the last window, too short for the context, is padded with pad_id, and the targets of the
    padding are -100; without it the ragged tail is dropped.
    Raises ValueError for ids too short for one window.
    """

    def __init__(
        self,
        ids: Ids,
        context_length: int,
        stride: int | None = None,
        keep_tail: bool = False,
        pad_id: int = 0,
    ) -> None:
        self.ids = _id_tensor(ids, "WindowDataset")
        self.context_length = context_length
        self.stride = context_length if stride is None else stride
        self.pad_id = pad_id
        _at_least(1, "WindowDataset", context_length=context_length, stride=self.stride)
        _at_least(0, "WindowDataset", pad_id=pad_id)
        predictable = len(self.ids) - 1  # the last id has no successor
        self._full = max(0, (predictable - context_length) // self.stride + 1)
        covered = (self._full - 1) * self.stride + context_length if self._full else 0
        self._tail = max(0, predictable - self._full * self.stride) if covered < predictable else 0
        if not keep_tail:
            self._tail = 0
        if not len(self):
            raise ValueError(
                f"WindowDataset: {len(self.ids)} ids are too few for context_length={context_length}, which "
                f"needs {2 if keep_tail else context_length + 1}. Use more text, a shorter context"
                f"{'.' if keep_tail else ', or keep_tail=True.'}"
            )
        self.total_tokens = self._full * context_length + self._tail
        length = min(context_length + 1, len(self.ids))
        self._crops = self.ids.unfold(0, length, self.stride)  # (windows, context_length + 1), no copy

    def __len__(self) -> int:
        return self._full + (self._tail > 0)

    def _gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        if not self._tail or int(indices.max()) < self._full:
            crops = self._crops[indices]
            return crops[:, :-1].to(torch.long, copy=True), crops[:, 1:].to(torch.long, copy=True)
        places = indices[:, None] * self.stride + torch.arange(self.context_length + 1)
        inside = places < len(self.ids)
        ids = self.ids[places.clamp(max=len(self.ids) - 1)].long()  # (windows, context_length + 1)
        padded = torch.where(inside, ids, self.pad_id)
        # The tail's input leaves out the last id: nothing follows it.
        inputs = torch.where(inside[:, 1:], padded[:, :-1], self.pad_id)
        return inputs, torch.where(inside[:, 1:], padded[:, 1:], IGNORE)

    def fingerprint(self) -> str:
        return _checksum(self.ids, [self.context_length, self.stride, self._tail])


class Batches(ABC):
    """The batches of a training, by step.  A batch depends on nothing but seed and step, so a resumed run
    sees what it would have seen, and each of several devices reads its own rows of the same batch."""

    context_length: int
    batch_size: int
    tokens_per_epoch: int
    """Positions in one pass over the data."""

    @property
    def tokens_per_step(self) -> int:
        """Positions in one batch."""
        return self.batch_size * self.context_length

    @abstractmethod
    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one step, each (rows, context_length) int64: every world-th row from rank."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A checksum of the data itself, the same on every machine."""


class TokenStream(Batches):
    """Random crops of one long sequence of ids, for training.

    ids: (tokens,), or the path of a .npy file, of a .bin file of bare numbers of the given dtype, or of a
    folder made by `labkit encode`; files stay on disk and are read where a crop falls (memory-mapped).
    Raises ValueError for ids too short for one window.
    """

    def __init__(
        self,
        ids: Ids | str | Path,
        context_length: int,
        batch_size: int,
        seed: int = 0,
        *,
        dtype: str = "uint16",
    ) -> None:
        _at_least(1, "TokenStream", context_length=context_length, batch_size=batch_size)
        _at_least(0, "TokenStream", seed=seed)
        self._data = _open_ids(Path(ids), dtype) if isinstance(ids, str | Path) else _id_array(ids)
        self.context_length, self.batch_size, self.seed = context_length, batch_size, seed
        self.total_tokens = self.tokens_per_epoch = len(self._data)
        if self.total_tokens < context_length + 1:
            raise ValueError(
                f"TokenStream: {self.total_tokens} ids are too few for context_length={context_length}, "
                f"which needs {context_length + 1}. Use more text or a shorter context."
            )
        self._crops = None if isinstance(self._data, Shards) else _crops(self._data, context_length + 1)
        self._block = max(1, 2**15 // batch_size)
        self._starts: tuple[int | None, np.ndarray] = (None, np.empty(0))

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        number, place = divmod(step, self._block)
        if self._starts[0] != number:
            _at_least(0, "TokenStream.batch", step=step)
            steps = range(number * self._block, (number + 1) * self._block)
            high = self.total_tokens - self.context_length
            self._starts = (number, draw_starts(self.seed, steps, high, self.batch_size))
        starts = self._starts[1][place]
        if world > 1:
            starts = starts[rank::world]
        if self._crops is None:
            crops = self._data[starts[:, None] + np.arange(self.context_length + 1)]
        else:
            crops = self._crops[starts]  # (rows, context_length + 1)
        inputs, targets = crops[:, :-1].astype(np.int64), crops[:, 1:].astype(np.int64)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def fingerprint(self) -> str:
        return self._data.fingerprint if isinstance(self._data, Shards) else _checksum(self._data)


class ShuffledWindows(Batches):
    """Windows in an order drawn anew for each epoch, each window once per epoch; batches are always full."""

    def __init__(self, windows: _Windows, batch_size: int, seed: int = 0) -> None:
        _at_least(1, "ShuffledWindows", batch_size=batch_size)
        _at_least(0, "ShuffledWindows", seed=seed)
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.context_length = windows.context_length
        self.tokens_per_epoch = len(windows) * windows.context_length
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        _at_least(0, "ShuffledWindows.batch", step=step)
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[rank::world]
        epochs, within = np.divmod(places, len(self.windows))
        chosen = [self._epoch(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)]
        return self.windows._gather(torch.from_numpy(np.concatenate(chosen)))

    def _epoch(self, number: int) -> np.ndarray:
        if self._order[0] != number:
            order = np.random.default_rng([self.seed, number]).permutation(len(self.windows))
            self._order = (number, order)
        return self._order[1]

    def fingerprint(self) -> str:
        return self.windows.fingerprint()


def _checksum(*arrays: Any) -> str:
    """SHA-256 of whole numbers whatever their dtype; of very long ones, of 4,096 blocks spread over them."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{tuple(np.shape(array))};".encode())
        starts = np.unique(np.linspace(0, max(0, len(array) - _BLOCK), 4096, dtype=np.int64))
        short = len(array) <= _BLOCK * len(starts)
        for start in range(0, len(array), _BLOCK) if short else starts:
            digest.update(np.asarray(array[start : start + _BLOCK]).astype("<i8").tobytes())
    return digest.hexdigest()


def _id_tensor(ids: Any, name: str) -> Tensor:
    """Ids as a 1-D tensor of whole numbers, none negative."""
    if isinstance(ids, np.ndarray) and ids.dtype in (np.uint16, np.uint32, np.uint64):
        ids = ids.astype(np.int64)  # PyTorch gathers from few unsigned kinds
    try:
        tensor = torch.as_tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: ids must be whole numbers in one dimension ({error}).") from error
    if tensor.ndim != 1:
        raise ValueError(f"{name}: ids have shape {tuple(tensor.shape)}; one dimension is needed.")
    if not len(tensor):
        return tensor.long()
    if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
        raise ValueError(f"{name}: ids are {tensor.dtype}; whole numbers are needed.")
    if (low := int(tensor.min())) < 0:
        raise ValueError(f"{name}: id {low} is negative.")
    return tensor


def _crops(ids: np.ndarray, length: int) -> np.ndarray:
    """Every run of so many ids, (len(ids) - length + 1, length), without a copy: a file stays on disk."""
    return np.lib.stride_tricks.sliding_window_view(np.asarray(ids), length)


def _id_array(ids: Ids) -> np.ndarray | Shards:
    if isinstance(ids, Shards):
        return ids
    if isinstance(ids, np.ndarray):  # kept in its own, perhaps smaller, dtype
        _id_tensor(ids[:1], "TokenStream")
        return ids
    return _id_tensor(ids, "TokenStream").numpy()


def _open_ids(path: Path, dtype: str) -> np.ndarray | Shards:
    """A memory-mapped array of ids."""
    if path.is_dir():
        return open_shards(path)
    if not path.is_file():
        raise ValueError(f"TokenStream: {path} is not a file.")
    if path.suffix == ".npy":
        try:
            data = np.load(path, mmap_mode="r", allow_pickle=False)
        except ValueError as error:
            raise ValueError(f"TokenStream: {path} is not a .npy file of numbers ({error}).") from error
    elif path.suffix == ".bin":
        size = np.dtype(dtype).itemsize
        if not path.stat().st_size or path.stat().st_size % size:
            raise ValueError(f"TokenStream: {path} has {path.stat().st_size} bytes, no multiple of {dtype}.")
        data = np.memmap(path, dtype=dtype, mode="r")
    else:
        raise ValueError(f"TokenStream: {path} must end in .npy or .bin.")
    if data.ndim != 1 or not np.issubdtype(data.dtype, np.integer):
        raise ValueError(f"TokenStream: {path} holds {data.dtype} of shape {data.shape}; ids are needed.")
    return data


def _at_least(low: int, name: str, **values: int) -> None:
    for field, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise ValueError(f"{name}: {field}={value!r} must be a whole number of at least {low}.")
