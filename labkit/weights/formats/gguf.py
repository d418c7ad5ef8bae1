"""GGUF files, llama.cpp's format: what they say about a model, and its weights out of their packing."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_SCALARS = {kind: struct.Struct("<" + code) for kind, code in _CODES.items()}
_UINT32, _STRING, _ARRAY, _UINT64 = 4, 8, 9, 10

_MOST_HEADER = 32 * 2**20
_MOST_STRINGS = 2**19
"""Bytes and strings in a header at most; Llama 3 has 0.4 million strings in 8 MB."""


def read_gguf(path: str | Path) -> tuple[dict[str, Any], GGUFTensors]:
    """The metadata of a GGUF file by name, and its tensors by name as float32.

    A tensor is unpacked each time it is asked for, so ask once.  The header is read here and not by the
    package `gguf`, which takes ten times as long and believes every count in it; the packed weights are
    unpacked by that package.
    Raises ValueError, naming the file, for what is damaged, cut short or no GGUF; a tensor in a packing that
    `gguf` does not know raises it when asked for.
    Source: the GGUF specification in the repository of ggml, versions 2 and 3.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start != b"GGUF":
            raise ValueError(f"begins with {start!r}, not with b'GGUF'")
        data = np.memmap(path, mode="c")
        return _read(data)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, struct.error) as error:
        raise ValueError(
            f"{path}: is no whole GGUF file ({error}). It was cut short, damaged, or is another kind of "
            "file: compare its size with the published one, and fetch it again."
        ) from error


def _read(data: np.memmap[Any, Any]) -> tuple[dict[str, Any], GGUFTensors]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    header = _Header(data[:_MOST_HEADER].data, at=4)
    if (version := header.number(_UINT32)) not in (2, 3):
        raise ValueError(f"version {version}; known are 2 and 3, little-endian")
    n_tensors, n_fields = header.number(_UINT64), header.number(_UINT64)
    metadata: dict[str, Any] = {}
    for _ in range(n_fields):
        name = header.string()
        metadata[name] = header.value(header.number(_UINT32))
    found = []
    for _ in range(n_tensors):
        name, n_dimensions = header.string(), header.number(_UINT32)
        if not 1 <= n_dimensions <= 4:
            raise ValueError(f"{name} has {n_dimensions} dimensions")
        shape = [header.number(_UINT64) for _ in range(n_dimensions)][::-1]
        found.append((name, shape, header.number(_UINT32), header.number(_UINT64)))

    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 8 <= alignment <= 2**16 or alignment % 8:
        raise ValueError(f"general.alignment={alignment!r}")
    start = -(-header.at // alignment) * alignment
    entries: dict[str, _Entry] = {}
    for name, shape, kind, offset in found:
        packing = GGMLQuantizationType(kind)
        block_size, block_bytes = GGML_QUANT_SIZES[packing]
        if name in entries or 0 in shape or shape[-1] % block_size or offset % alignment:
            raise ValueError(f"{name}, {shape} in {packing.name} at {offset}, is there twice or cannot be")
        row_bytes = shape[-1] // block_size * block_bytes
        end = start + offset + math.prod(shape[:-1]) * row_bytes
        if end > len(data):
            raise ValueError(f"{name} ends at byte {end:,}, the file at {len(data):,}")
        entries[name] = _Entry(packing, tuple(shape), (*shape[:-1], row_bytes), start + offset, end)
    if sum(entry.end - entry.start for entry in entries.values()) > len(data):
        raise ValueError("its tensors overlap")
    return metadata, GGUFTensors(data, entries)


class _Header:
    """Reads one value after the other; whatever a count says, never more than there is."""

    def __init__(self, data: memoryview, at: int) -> None:
        self.data = data
        self.at = at
        self.strings = 0

    def number(self, kind: int) -> Any:
        if kind not in _SCALARS:
            raise ValueError(f"kind of value {kind} is not known")
        (value,) = _SCALARS[kind].unpack_from(self.data, self.at)
        self.at += _SCALARS[kind].size
        return value

    def take(self, size: int) -> memoryview:
        if size > len(self.data) - self.at:
            raise ValueError(
                f"{size:,} bytes are announced in its header, {len(self.data) - self.at:,} follow"
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def string(self) -> str:
        self.strings += 1
        if self.strings > _MOST_STRINGS:
            raise ValueError(f"more than {_MOST_STRINGS:,} strings are in its header")
        return str(self.take(self.number(_UINT64)), "utf-8")

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            return self.number(kind)
        item, count = self.number(_UINT32), self.number(_UINT64)
        if item == _STRING and count > _MOST_STRINGS:
            raise ValueError(f"{count:,} strings are announced in its header")
        if item == _STRING:
            return [self.string() for _ in range(count)]
        if item not in _SCALARS:
            raise ValueError(f"kind of value {item} is not known in an array")
        packed = self.take(count * _SCALARS[item].size)
        return np.frombuffer(packed, "<" + _CODES[item]).tolist()


class _Entry(NamedTuple):
    """Where a tensor lies in the file, and how it is packed."""

    packing: Any  # gguf.GGMLQuantizationType, which is imported where it is used
    shape: tuple[int, ...]
    packed_shape: tuple[int, ...]
    start: int
    end: int


class GGUFTensors(Mapping[str, Tensor]):
    """The tensors of a file by name, each unpacked when it is asked for."""

    def __init__(self, data: np.memmap[Any, Any], entries: Mapping[str, _Entry]) -> None:
        self._data = data
        self._entries = entries

    def __getitem__(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        entry = self._entries[name]
        packed = np.asarray(self._data[entry.start : entry.end]).reshape(entry.packed_shape)
        try:
            return torch.from_numpy(dequantize(packed, entry.packing))
        except NotImplementedError as error:
            raise ValueError(f"{self._data.filename}: {name} cannot be unpacked: {error}.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def shapes(self) -> dict[str, Tensor]:
        """What the tensors would be, without their content: on the meta device."""
        return {name: torch.empty(entry.shape, device="meta") for name, entry in self._entries.items()}
