"""Training windows from text that others have tokenised: variable lengths, padding, batches."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.text.windows import IGNORE, WindowDataset, _at_least, _checksum, _id_tensor, _Windows


class SequenceDataset(_Windows):
    """Windows that were cut and padded beforehand; inputs and targets are (windows, context_length)."""

    def __init__(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets
        self.context_length = inputs.shape[1]
        self.total_tokens = int((targets != IGNORE).sum())

    def __len__(self) -> int:
        return len(self.inputs)

    def _gather(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.inputs[indices], self.targets[indices]

    def fingerprint(self) -> str:
        return _checksum(self.inputs, self.targets)


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
