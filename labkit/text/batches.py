"""Ids to training examples: inputs, and the same ids one place further on as targets."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from labkit.text.encode import checksum

IGNORE = -100
"""Target of padding, which the loss leaves out. An id of its own, so that a padding id which is also
the end of a text drops no real end."""

MIN_LENGTH, MAX_LENGTH = 32, 128
"""Lengths to which sequences of others are brought."""

Ids = Sequence[int] | np.ndarray | Tensor


class _Windows(Dataset[tuple[Tensor, Tensor]]):
    """Pairs (input, target), each (context_length,) int64, one by one or in batches.

    inputs, targets: (windows, context_length), of any whole dtype; views cost no memory.
    """

    inputs: Tensor
    targets: Tensor
    total_tokens: int
    """Targets that count towards the loss, over all windows."""

    @property
    def context_length(self) -> int:
        return self.inputs.shape[1]

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        inputs, targets = self.gather(torch.tensor([index % len(self)]))
        return inputs[0], targets[0]

    @abstractmethod
    def fingerprint(self) -> str:
        """A checksum of all inputs and targets."""

    def gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of the inputs and targets of some windows, each (windows, context_length) int64."""
        return self.inputs[indices].long(), self.targets[indices].long()

    def batches(self, batch_size: int, limit: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Inputs and targets, each (batch, context_length) int64, in order; the last batch may be smaller.

        limit: take only so many windows, spread evenly over all of them, always the same ones.
        """
        limit = len(self) if limit is None else limit
        _at_least(1, "batches", batch_size=batch_size, limit=limit)
        count = min(limit, len(self))
        chosen = torch.arange(count) * len(self) // count
        return (self.gather(part) for part in chosen.split(batch_size))


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
        stride = context_length if stride is None else stride
        _at_least(1, "WindowDataset", context_length=context_length, stride=stride)
        _at_least(0, "WindowDataset", pad_id=pad_id)
        ids = id_tensor(ids, "WindowDataset")
        inputs, targets = ids[:-1], ids[1:]  # the last id has no successor
        full = max(0, (len(inputs) - context_length) // stride + 1)
        seen = (full - 1) * stride + context_length if full else 0
        tail = max(0, len(inputs) - full * stride) if keep_tail and seen < len(inputs) else 0
        if not full and not tail:
            raise ValueError(
                f"WindowDataset: {len(ids)} ids are too few for context_length={context_length}, which "
                f"needs {2 if keep_tail else context_length + 1}. Use more text, a shorter context"
                f"{'.' if keep_tail else ', or keep_tail=True.'}"
            )
        if tail:
            missing = context_length - tail
            inputs = F.pad(inputs.long(), (0, missing), value=pad_id)
            targets = F.pad(targets.long(), (0, missing), value=IGNORE)
        self.inputs = inputs.unfold(0, context_length, stride)  # (windows, context_length), no copy
        self.targets = targets.unfold(0, context_length, stride)
        self.total_tokens = full * context_length + tail
        self._defined_by = ids, [context_length, stride, tail]

    def fingerprint(self) -> str:
        return checksum(*self._defined_by)


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
        counted = id_tensor(targets[targets != IGNORE], "SequenceDataset: targets")
        id_tensor(inputs.flatten(), "SequenceDataset: inputs")
        self.inputs, self.targets, self.total_tokens = inputs, targets, len(counted)

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

    ids: (tokens,); an array mapped from a file stays there, and is read where a crop falls.
    Raises ValueError for ids too short for one window, and for negative ones.
    """

    def __init__(self, ids: Ids, context_length: int, batch_size: int, seed: int = 0) -> None:
        _at_least(1, "TokenStream", context_length=context_length, batch_size=batch_size)
        _at_least(0, "TokenStream", seed=seed)
        self._data = id_array(ids, "TokenStream")
        self.context_length, self.batch_size, self.seed = context_length, batch_size, seed
        self.tokens_per_epoch = len(self._data)
        if len(self._data) < context_length + 1:
            raise ValueError(
                f"TokenStream: {len(self._data)} ids are too few for context_length={context_length}, "
                f"which needs {context_length + 1}. Use more text or a shorter context."
            )
        self._crops = np.lib.stride_tricks.sliding_window_view(self._data, context_length + 1)  # no copy

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
        self.windows, self.batch_size, self.seed = windows, batch_size, seed
        self.context_length = windows.context_length
        self.tokens_per_epoch = len(windows) * windows.context_length
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        places = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[rank::world]
        epochs, within = np.divmod(places, len(self.windows))
        chosen = [self._epoch(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)]
        return self.windows.gather(torch.from_numpy(np.concatenate(chosen)))

    def _epoch(self, number: int) -> np.ndarray:
        if self._order[0] != number:
            order = np.random.default_rng([self.seed, number]).permutation(len(self.windows))
            self._order = (number, order)
        return self._order[1]

    def fingerprint(self) -> str:
        return self.windows.fingerprint()


def load_token_sequences(path: str | Path, context_length: int, *, pad_id: int) -> SequenceDataset:
    """Training windows from a .pt file of text that others have tokenised.

    The file holds a list of id tensors of varying length, or batches: a dict with "input_ids"
    (batch, seq), with or without "attention_mask", or a list of such dicts. It is loaded with
    weights_only=True, so it can run no code.

    Each sequence is brought to context_length, 32 to 128: a longer one is chunked so that every target is
    seen once, a shorter one is padded with pad_id. Targets of padding are -100, so a pad_id that is also the
    end of a text drops no real end. Sequences of one id predict nothing and are left out.

    Padding already in a batch is cut off where attention_mask is 0. Without a mask, ids equal to pad_id
    at the end of a row are taken for padding, except the first of them, which may be the end of the text.
    Raises ValueError, naming the file, for anything else.
    """
    if not MIN_LENGTH <= context_length <= MAX_LENGTH:
        raise ValueError(
            f"load_token_sequences: context_length={context_length} is outside {MIN_LENGTH} .. {MAX_LENGTH}. "
            "Choose another."
        )
    _at_least(0, "load_token_sequences", pad_id=pad_id)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused, since it holds Python objects that could run code. Save a list of id tensors."
        ) from error
    except (OSError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path}: cannot be read as a .pt file ({error}).") from error
    sequences = [each for each in _sequences(content, str(path), pad_id) if len(each) > 1]
    if not sequences:
        raise ValueError(f"{path}: has no sequence of at least 2 ids.")
    windows = [WindowDataset(each, context_length, keep_tail=True, pad_id=pad_id) for each in sequences]
    inputs, targets = zip(*(each.gather(torch.arange(len(each))) for each in windows), strict=True)
    return SequenceDataset(torch.cat(inputs), torch.cat(targets))


def _sequences(content: Any, where: str, pad_id: int) -> Iterator[Tensor]:
    """Every sequence in what a .pt file holds, padding removed."""
    if isinstance(content, dict):
        yield from _rows(content, where, pad_id)
    elif isinstance(content, Tensor) and content.ndim == 2:
        yield from _rows({"input_ids": content}, where, pad_id)
    elif isinstance(content, list | tuple):
        for number, item in enumerate(content):
            place = f"{where}, item {number}"
            if isinstance(item, dict) or (isinstance(item, Tensor) and item.ndim == 2):
                yield from _sequences(item, place, pad_id)
            else:
                yield id_tensor(item, place)
    else:
        raise ValueError(
            f"{where}: holds a {type(content).__name__}; expected a list of id tensors or "
            "batches with input_ids."
        )


def _rows(batch: dict[str, Any], where: str, pad_id: int) -> Iterator[Tensor]:
    """The rows of a padded batch, each without its padding."""
    if "input_ids" not in batch:
        keys = ", ".join(map(repr, list(batch)[:5]))
        raise ValueError(f"{where}: the dict has no 'input_ids', only {keys or 'nothing'}.")
    rows, masks = batch["input_ids"], batch.get("attention_mask")
    if masks is not None and len(masks) != len(rows):
        raise ValueError(f"{where}: attention_mask has {len(masks)} rows, input_ids {len(rows)}.")
    for number, row in enumerate(rows):
        ids = id_tensor(row, f"{where}, row {number}")
        if masks is None:
            real = (ids != pad_id).nonzero()
            yield ids[: int(real[-1]) + 2 if len(real) else 0]
            continue
        mask = torch.as_tensor(masks[number])
        if mask.shape != ids.shape:
            raise ValueError(f"{where}, row {number}: attention_mask and input_ids differ in length.")
        yield ids[mask.bool()]


def id_tensor(ids: Ids, name: str) -> Tensor:
    """The same as `id_array`, as a tensor."""
    array = id_array(ids, name)
    unsigned = array.dtype.kind == "u"  # PyTorch gathers from few such kinds
    return torch.from_numpy(array.astype(np.int64) if unsigned else array)


def id_array(ids: Ids, name: str) -> np.ndarray:
    """Ids as a one-dimensional array of whole numbers, none negative, in their own, perhaps small, dtype.

    A mapped file stays where it is; one of signed numbers is read once.
    Raises ValueError, which begins with the name, for anything else.
    """
    try:
        array = np.asarray(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: ids must be whole numbers in one dimension ({error}).") from error
    if array.ndim == 1 and not len(array):
        return array.astype(np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise ValueError(
            f"{name}: ids are {array.dtype} of shape {array.shape}; whole numbers are needed, in one "
            "dimension."
        )
    if array.dtype.kind == "i" and (low := int(array.min())) < 0:
        raise ValueError(f"{name}: id {low} is negative.")
    return array


def _at_least(low: int, name: str, **values: int) -> None:
    for field, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise ValueError(f"{name}: {field}={value!r} must be a whole number of at least {low}.")
