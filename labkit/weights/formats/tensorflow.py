"""OpenAI's original GPT-2 checkpoints, read without TensorFlow.

Such a checkpoint is a folder.  `checkpoint` names the newest state in it, "model.ckpt" say.
`model.ckpt.data-00000-of-00001` (of several such shards, perhaps) is the tensors' bytes and nothing else.
`model.ckpt.index` says where in them each tensor lies.  It is a sorted string table: blocks of (key, value)
pairs, a block that lists those blocks, and a footer that points to it; every block ends in a checksum.
A key is a tensor's name; a value is a protocol buffer with its type, shape, shard, offset and size.
`model.ckpt.meta` is the graph, which our model does not need.

Source: TensorFlow, core/util/tensor_bundle/tensor_bundle.h and core/protobuf/tensor_bundle.proto; the table
format is LevelDB's, doc/table_format.md.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

_MAGIC = bytes.fromhex("57fb808b247547db")
_MAX_INDEX = 256 * 1024  # bytes; with an optimizer's state, GPT-2 XL's index has about 100,000
_MAX_KEY = 256
_DTYPES = {1: torch.float32, 2: torch.float64, 14: torch.bfloat16, 19: torch.float16}
_LAST = {"w": "weight", "g": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
_DAMAGED = "It is cut short, damaged or something else: fetch it again."


def is_tf_checkpoint(folder: Path) -> bool:
    """Whether a folder has the look of a TensorFlow checkpoint."""
    return (folder / "checkpoint").is_file() or any(folder.glob("*.index"))


def read_tf_checkpoint(folder: Path) -> dict[str, Tensor]:
    """The tensors of a GPT-2 checkpoint that TensorFlow wrote, by the names of the published PyTorch files.

    `model/h3/attn/c_attn/w` (1, d, 3d) becomes `h.3.attn.c_attn.weight` (d, 3d).  Left out are a training's
    own values: those outside model/ (step counts) and those under a tensor's name (`model/wte/Adam`).
    Float32, float64, float16 and bfloat16, as they are stored.

    The tensors are views of the mapped files: reading takes no memory, and writing to a tensor leaves the
    file as it was.  (One that does not start at a multiple of its item size is copied.)
    The index is checked against its checksums.  The tensors' own are not, which would take Python minutes:
    only that each lies inside its file and is as long as its shape says.
    Raises ValueError, naming the file, for what is missing, damaged or no GPT-2 of TensorFlow's.
    """
    with _naming(folder / "checkpoint"):
        name = _newest(_read(folder / "checkpoint").decode("utf-8", "replace"))
    with _naming(folder / f"{name}.index"):
        table = dict(_table(_read(folder / f"{name}.index")))
        header, _ = _fields(table.get(b"", b""))
        _need(not header.get(2), "is big-endian. Save the checkpoint anew on a little-endian machine.")

        @cache
        def shard(i: int) -> Tensor:
            _need(i < header.get(1, 0), f"is in shard {i} of {header.get(1, 0)}. {_DAMAGED}")
            path = folder / f"{name}.data-{i:05d}-of-{header[1]:05d}"
            with _naming(path):
                return torch.from_file(str(path), shared=False, size=_size(path), dtype=torch.uint8)

        tensors: dict[str, Tensor] = {}
        for key, entry in table.items():
            if key.startswith(b"model/") and key.rpartition(b"/")[0] not in table:
                with _naming(theirs := key.decode("utf-8", "replace")):
                    ours = _published_name(theirs)
                    _need(ours not in tensors, f"is a second {ours}. Save the checkpoint anew with one.")
                    tensors[ours] = _tensor(entry, shard)
        _need(bool(tensors), "names no tensor under model/, as a GPT-2 has them. Is it another model's?")
    return tensors


@contextmanager
def _naming(what: object) -> Iterator[None]:
    """Errors inside are about a file, or a tensor of it, and say so."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    except (OSError, RuntimeError) as error:  # torch raises the latter where a file cannot be mapped
        raise ValueError(f"{what}: cannot be read ({error}). Look at its permissions and size.") from error


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _size(path: Path) -> int:
    _need(path.is_file(), "is missing. Fetch the folder again, all files of it.")
    size = path.stat().st_size
    _need(size > 0, f"is empty. {_DAMAGED}")
    return size


def _read(path: Path) -> bytes:
    size = _size(path)
    _need(size <= _MAX_INDEX, f"has {size:,} bytes, but a GPT-2's has at most {_MAX_INDEX:,}. {_DAMAGED}")
    return path.read_bytes()


def _newest(text: str) -> str:
    """The name that `checkpoint` gives; of a path on the machine that trained, the last part."""
    found = re.search(r'^model_checkpoint_path: *"(?:[^"\n]*[/\\])?([^"\n/\\]+)"', text, re.MULTILINE)
    if not found:
        raise ValueError('has no line like model_checkpoint_path: "model.ckpt". Write it there by hand.')
    return found[1]


def _published_name(name: str) -> str:
    """`model/h3/ln_1/g` -> `h.3.ln_1.weight`."""
    *path, last = re.sub(r"^model/h(\d+)/", r"model/h/\1/", name).split("/")[1:]
    return ".".join([*path, _LAST.get(last, last)])


def _tensor(message: bytes, shard: Callable[[int], Tensor]) -> Tensor:
    """What a BundleEntryProto describes: (1, in, out) as (in, out), others in the shape they have.

    Negative numbers come out of its fields as huge ones, which fail the checks of size.
    """
    numbers, parts = _fields(message)
    kind, offset, size = (numbers.get(field, 0) for field in (1, 4, 5))
    allowed = ", ".join(f"{number} ({dtype})" for number, dtype in _DTYPES.items())
    _need(kind in _DTYPES, f"has TensorFlow's type {kind}. Save it anew as one of {allowed}.")
    _need(7 not in parts, "is split into slices. Save the checkpoint anew without partitioned variables.")
    dims = _fields(b"".join(parts.get(2, [])))[1].get(2, [])
    _need(len(dims) <= 3, f"has {len(dims)} dimensions, but GPT-2's have at most 3. {_DAMAGED}")
    dtype, shape = _DTYPES[kind], [_fields(dim)[0].get(1, 0) for dim in dims]
    fits = 0 < size == math.prod(shape) * dtype.itemsize
    _need(fits, f"has {size:,} bytes, which are not {dtype} {tuple(shape)}. {_DAMAGED}")
    data = shard(numbers.get(3, 0))
    inside = offset + size <= len(data)
    _need(inside, f"ends at byte {offset + size:,}, but its data file at {len(data):,}. Fetch that again.")
    part = data[offset : offset + size]
    tensor = (part.clone() if offset % dtype.itemsize else part).view(dtype).view(shape)
    return tensor.squeeze(0) if len(shape) == 3 else tensor


def _fields(message: bytes) -> tuple[dict[int, int], dict[int, list[bytes]]]:
    """A protocol buffer's fields by number: those that are numbers, and those that are bytes."""
    numbers: dict[int, int] = {}
    parts: dict[int, list[bytes]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = divmod(tag, 8)
        if kind == 0:
            numbers[field], at = _varint(message, at)
            continue
        _need(kind in (2, 5), f"holds a field of kind {kind}. {_DAMAGED}")
        length, at = (4, at) if kind == 5 else _varint(message, at)
        _need(at + length <= len(message), f"holds a field of {length} bytes that ends outside. {_DAMAGED}")
        parts.setdefault(field, []).append(message[at : at + length])
        at += length
    return numbers, parts


def _table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The (key, value) pairs of a sorted string table, in order."""
    footer = data[-48:]  # two handles, padding, and 8 bytes that are the same in every table
    whole = len(footer) == 48 and footer.endswith(_MAGIC)
    _need(whole, f"does not end as the index of a TensorFlow checkpoint does. {_DAMAGED}")
    _, _, at = _handle(footer, 0)
    end = 0
    for _, handle in _block(data, *_handle(footer, at)[:2]):
        start, size, _ = _handle(handle, 0)
        _need(start >= end, f"has a block at byte {start} that begins inside another. {_DAMAGED}")
        end = start + size
        yield from _block(data, start, size)


def _handle(data: bytes, at: int) -> tuple[int, int, int]:
    """Where a block begins, how long it is, and the place after these two numbers."""
    start, at = _varint(data, at)
    return start, *_varint(data, at)


def _block(data: bytes, start: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The pairs of one block.

    Behind the block stand its kind (1 byte) and its checksum (4).  Inside, each pair says how much of its
    key is as in the pair before; after the pairs, 4 bytes for each place where that starts anew, and 4 that
    count those places.
    """
    end = start + size
    where = f"has a block of {size} bytes at byte {start} that"
    _need(end + 5 <= len(data), f"{where} does not fit into {len(data)}. {_DAMAGED}")
    checksum = int.from_bytes(data[end + 1 : end + 5], "little")
    _need(checksum == _masked_crc32c(data[start : end + 1]), f"{where} fails its checksum. {_DAMAGED}")
    _need(data[end] == 0, f"{where} is compressed. Save the checkpoint anew with TensorFlow's own Saver.")
    end -= 4 * (1 + int.from_bytes(data[end - 4 : end], "little"))
    at, key = start, b""
    while at < end:
        shared, at = _varint(data, at)
        fresh, at = _varint(data, at)
        length, at = _varint(data, at)
        fits = shared <= len(key) and shared + fresh <= _MAX_KEY and at + fresh + length <= end
        _need(fits, f"{where} holds a pair too long for it. {_DAMAGED}")
        key = key[:shared] + data[at : at + fresh]
        at += fresh + length
        yield key, data[at - length : at]


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number written in groups of 7 bits, lowest first, the last one below 128; and the place after it."""
    value = 0
    for i, byte in enumerate(data[at : at + 10]):
        value |= (byte & 127) << 7 * i
        if byte < 128:
            return value, at + i + 1
    raise ValueError(f"holds a number without an end. {_DAMAGED}")


_CRC = list(range(256))
for _ in range(8):
    _CRC = [crc >> 1 ^ (0x82F63B78 if crc & 1 else 0) for crc in _CRC]


def _masked_crc32c(data: bytes) -> int:
    """Castagnoli's checksum, rotated and shifted as LevelDB stores it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[crc & 255 ^ byte] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return (crc >> 15 | crc << 17) + 0xA282EAD8 & 0xFFFFFFFF
