"""Ids to training examples: inputs, and the same ids one place further on as targets."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from labkit.text.encode import EncodedText, checksum, is_encoded

IGNORE = -100
"""Target of padding, which the loss leaves out. An id of its own, so that a padding id which is also
the end of a text drops no real end."""

Ids = Sequence[int] | np.ndarray | Tensor


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
        return checksum(self.ids, [self.context_length, self.stride, self._tail])


class SequenceDataset(_Windows):
    """Windows that were cut and padded beforehand.

    inputs, targets: (windows, context_length) int64; a target of -100 does not count.
    Raises ValueError for other shapes and for negative ids.
    """

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        if inputs.ndim != 2 or inputs.shape != targets.shape:
            raise ValueError(
                f"SequenceDataset: inputs {tuple(inputs.shape)} and targets {tuple(targets.shape)} must both "
                "be (windows, context_length)."
            )
        _id_tensor(inputs.flatten(), "SequenceDataset: inputs")
        _id_tensor(targets[targets != IGNORE], "SequenceDataset: targets")
        self.inputs, self.targets = inputs, targets
        self.context_length = inputs.shape[1]
        self.total_tokens = int((targets != IGNORE).sum())

    def __len__(self) -> int:
        return len(self.inputs)

    def _gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.targets[indices]

    def fingerprint(self) -> str:
        return checksum(self.inputs, self.targets)


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
    Raises ValueError for ids too short for one window, and for negative ones.
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
        # A view of every run of so many ids: a file stays on disk.
        self._crops = np.lib.stride_tricks.sliding_window_view(np.asarray(self._data), context_length + 1)

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        _at_least(0, "TokenStream.batch", step=step)
        starts = np.random.default_rng([self.seed, step]).integers(0, len(self._crops), size=self.batch_size)
        crops = self._crops[starts[rank::world]]  # (rows, context_length + 1)
        inputs, targets = crops[:, :-1].astype(np.int64), crops[:, 1:].astype(np.int64)
        return torch.from_numpy(inputs), torch.from_numpy(targets)

    def fingerprint(self) -> str:
        return checksum(self._data)


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


def load_token_sequences(
    path: str | Path,
    context_length: int,
    *,
    pad_id: int,
    min_length: int = 32,
    max_length: int = 128,
    eos_id: int | None = None,
) -> SequenceDataset:
    """Training windows from a .pt file of text that others have tokenised.

    The file holds a list of id tensors of varying length, or batches: a dict with "input_ids"
    (batch, seq), with or without "attention_mask", or a list or dict of such dicts. It is loaded with
    weights_only=True, so it can run no code.

    Each sequence is brought to context_length, which must lie in min_length .. max_length: a longer one
    is chunked so that every target is seen once, a shorter one is padded with pad_id. Targets of padding
    are -100, so a pad_id that is also the end of a text drops no real end. Sequences of one id predict
    nothing and are left out.

    Padding already in a batch is cut off where attention_mask is 0. Without a mask, ids equal to pad_id
    at the end of a row are taken for padding, except the first of them, which may be the end of the text;
    give an eos_id other than pad_id to cut that one too.
    Raises ValueError, naming the file, for anything else.
    """
    if not 1 <= min_length <= max_length:
        raise ValueError(
            f"load_token_sequences: min_length={min_length} and max_length={max_length} must be a range "
            "from 1 up."
        )
    if not min_length <= context_length <= max_length:
        raise ValueError(
            f"load_token_sequences: context_length={context_length} is outside {min_length} .. {max_length}. "
            "Choose another, or widen min_length and max_length."
        )
    _at_least(0, "load_token_sequences", pad_id=pad_id)
    keep_end = eos_id is None or eos_id == pad_id
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, since it holds Python objects that could run code. Save a list of id tensors."
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as a .pt file ({error}).") from error
    sequences = [
        sequence for sequence in _sequences(content, str(path), pad_id, keep_end) if len(sequence) > 1
    ]
    if not sequences:
        raise ValueError(f"{path}: has no sequence of at least 2 ids.")
    windows = [
        WindowDataset(sequence, context_length, keep_tail=True, pad_id=pad_id) for sequence in sequences
    ]
    pairs = [window._gather(torch.arange(len(window))) for window in windows]
    return SequenceDataset(torch.cat([pair[0] for pair in pairs]), torch.cat([pair[1] for pair in pairs]))


def _sequences(content: Any, where: str, pad_id: int, keep_end: bool) -> Iterator[Tensor]:
    """Every sequence in what a .pt file holds, padding removed."""
    if isinstance(content, dict):
        if "input_ids" not in content:
            if content and all(isinstance(value, dict) for value in content.values()):
                for key, value in content.items():
                    yield from _sequences(value, f"{where}, {key!r}", pad_id, keep_end)
                return
            keys = ", ".join(map(repr, list(content)[:5]))
            raise ValueError(f"{where}: the dict has no 'input_ids', only {keys or 'nothing'}.")
        rows, masks = content["input_ids"], content.get("attention_mask")
        if masks is not None and len(masks) != len(rows):
            raise ValueError(f"{where}: attention_mask has {len(masks)} rows, input_ids {len(rows)}.")
        for number, row in enumerate(rows):
            ids = _id_tensor(row, f"{where}, row {number}")
            if masks is None:
                yield _without_padding(ids, pad_id, keep_end)
            else:
                mask = torch.as_tensor(masks[number])
                if mask.shape != ids.shape:
                    raise ValueError(f"{where}, row {number}: attention_mask and input_ids differ in length.")
                yield ids[mask.bool()]
    elif isinstance(content, Tensor) and content.ndim == 2:
        yield from _sequences({"input_ids": content}, where, pad_id, keep_end)
    elif isinstance(content, list | tuple):
        for number, item in enumerate(content):
            place = f"{where}, item {number}"
            if isinstance(item, dict) or (isinstance(item, Tensor) and item.ndim == 2):
                yield from _sequences(item, place, pad_id, keep_end)
            else:
                yield _id_tensor(item, place)
    else:
        raise ValueError(
            f"{where}: holds a {type(content).__name__}; expected a list of id tensors or "
            "batches with input_ids."
        )


def _without_padding(ids: Tensor, pad_id: int, keep_end: bool) -> Tensor:
    real = (ids != pad_id).nonzero()
    length = int(real[-1]) + 1 if len(real) else 0
    return ids[: length + 1] if keep_end and length else ids[:length]


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


def _id_array(ids: Ids, what: str = "the array") -> np.ndarray:
    """The same as an array, in its own, perhaps smaller, dtype; a file of signed ids is read once."""
    if not isinstance(ids, np.ndarray):
        return _id_tensor(ids, "TokenStream").numpy()
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise ValueError(
            f"TokenStream: {what} holds {ids.dtype} of shape {ids.shape}; whole numbers are needed, in one "
            "dimension."
        )
    if ids.dtype.kind == "i" and len(ids) and (low := int(ids.min())) < 0:
        raise ValueError(f"TokenStream: {what} holds id {low}, which is negative.")
    return ids


def _open_ids(path: Path, dtype: str) -> np.ndarray:
    """A memory-mapped array of ids."""
    if is_encoded(path):
        return EncodedText(path).ids
    if not path.is_file():
        raise ValueError(f"TokenStream: {path} is not a file, nor a folder made by `labkit encode`.")
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
    return _id_array(data, str(path))


def _at_least(low: int, name: str, **values: int) -> None:
    for field, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise ValueError(f"{name}: {field}={value!r} must be a whole number of at least {low}.")
