"""GGUF files, llama.cpp's format: what they say about a model, and its weights out of their packing."""

from __future__ import annotations

import math
import struct
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


def read_gguf(path: str | Path) -> tuple[dict[str, Any], dict[str, PackedTensor]]:
    """The metadata of a GGUF file by name, and its tensors by name, still packed.

    The header is read here and not by the package `gguf`, which takes ten times as long and believes every
    count in it; the packed weights are unpacked by that package.
    Raises ValueError, naming the file, for what is damaged, cut short or no GGUF.
    Source: the GGUF specification in the repository of ggml, versions 2 and 3.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(4)
        if start != b"GGUF":
            raise ValueError(f"begins with {start!r}, not with b'GGUF'")
        return _read(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, struct.error) as error:
        raise ValueError(
            f"{path}: is no whole GGUF file ({error}). It was cut short, damaged, or is another kind of "
            "file: compare its size with the published one, and fetch it again."
        ) from error


def _read(path: Path) -> tuple[dict[str, Any], dict[str, PackedTensor]]:
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    data = np.memmap(path, mode="c")
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
    tensors: dict[str, PackedTensor] = {}
    for name, shape, kind, offset in found:
        packing = GGMLQuantizationType(kind)
        block_size, block_bytes = GGML_QUANT_SIZES[packing]
        if name in tensors or 0 in shape or shape[-1] % block_size or offset % alignment:
            raise ValueError(f"{name}, {shape} in {packing.name} at {offset}, is there twice or cannot be")
        rows, row_bytes = math.prod(shape[:-1]), shape[-1] // block_size * block_bytes
        begin, end = start + offset, start + offset + rows * row_bytes
        if end > len(data):
            raise ValueError(f"{name} ends at byte {end:,}, the file at {len(data):,}")
        packed = data[begin:end].reshape(*shape[:-1], row_bytes)
        tensors[name] = PackedTensor(f"{path}: {name}", tuple(shape), packing, packed)
    if sum(tensor.packed.size for tensor in tensors.values()) > len(data):
        raise ValueError("its tensors overlap")
    return metadata, tensors


class PackedTensor(NamedTuple):
    """A tensor as it lies in the file, which stays mapped."""

    name: str
    shape: tuple[int, ...]
    packing: Any  # gguf.GGMLQuantizationType, which is imported where it is used
    packed: np.ndarray[Any, Any]

    def unpack(self) -> Tensor:
        """As float32.  Raises ValueError for a packing that the package `gguf` does not know."""
        from gguf.quants import dequantize

        try:
            return torch.from_numpy(dequantize(np.asarray(self.packed), self.packing))
        except NotImplementedError as error:
            raise ValueError(f"{self.name} cannot be unpacked: {error}.") from error


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
