"""Checkpoints that TensorFlow itself wrote (tests/fixtures/make_tf_checkpoint.py), whole and damaged."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2Model

from labkit.weights import load_gpt2
from labkit.weights.formats.tensorflow import _MAGIC, _masked_crc32c, is_tf_checkpoint, read_tf_checkpoint

FIXTURES = Path(__file__).parents[1] / "fixtures"
PUBLISHED = FIXTURES / "gpt2_tensorflow"
TRAINING = FIXTURES / "training_tensorflow"
VALUES = dict(np.load(FIXTURES / "gpt2_tensorflow.npz"))
DATA = "model.ckpt.data-00000-of-00001"
INDEX = "model.ckpt.index"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The published checkpoint, to be damaged."""
    return Path(shutil.copytree(PUBLISHED, tmp_path / "gpt2"))


def assert_published_values(tensors: dict[str, Tensor]) -> None:
    theirs = {name: value for name, value in VALUES.items() if name.startswith("model/")}
    assert len(tensors) == len(theirs) == 28
    for name, value in theirs.items():
        ours = re.sub(r"model/(h\d/)?", lambda found: f"h.{found[1][1]}." if found[1] else "", name)
        ours = re.sub(r"/[wg]$|(?<=w.e)$", ".weight", ours).replace("/b", ".bias").replace("/", ".")
        assert tensors[ours].dtype == torch.float32
        np.testing.assert_array_equal(tensors[ours].numpy(), value[0] if "/w" in name[-2:] else value, ours)


# What is right


def test_every_value_is_read_under_its_published_name() -> None:
    tensors = read_tf_checkpoint(PUBLISHED)
    assert_published_values(tensors)
    config = GPT2Config(vocab_size=37, n_positions=11, n_embd=12, n_head=3, n_layer=2)
    reference = GPT2Model(config).state_dict()
    assert {k: v.shape for k, v in tensors.items()} == {k: v.shape for k, v in reference.items()}


def test_a_training_is_read_from_all_shards_without_the_optimizers_state() -> None:
    tensors = read_tf_checkpoint(TRAINING)
    expected = np.load(FIXTURES / "training_tensorflow.npz")
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "h.0.ln_1.weight": torch.float16,
        "h.0.mlp.c_fc.weight": torch.float32,
        "ln_f.bias": torch.bfloat16,
        "wpe.weight": torch.float64,
        "wte.weight": torch.float32,
    }
    assert tensors["h.0.mlp.c_fc.weight"].shape == (3, 5)
    for theirs, ours in zip(sorted(expected.files), sorted(tensors), strict=True):
        value = torch.from_numpy(expected[theirs])
        assert torch.equal(tensors[ours].to(value.dtype), value.squeeze(0)), theirs


def test_float32_is_a_view_of_one_map_of_the_file(folder: Path) -> None:
    before = (folder / DATA).read_bytes()
    tensors = read_tf_checkpoint(folder)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 1
    assert tensors["wte.weight"].untyped_storage().nbytes() == len(before)
    if Path("/proc/self/maps").exists():
        assert str(folder / DATA) in Path("/proc/self/maps").read_text(encoding="utf-8")
    tensors["wte.weight"].zero_()
    assert (folder / DATA).read_bytes() == before, "writing to a tensor changed the file"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_reading_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "m"\n', encoding="utf-8")
    rows = 300_000  # of 77 float32: 92 MB
    write_index(tmp_path / "m.index", {b"": header(), b"model/wte": entry([rows, 77], 0, rows * 77 * 4)})
    with (tmp_path / "m.data-00000-of-00001").open("wb") as file:
        for _ in range(10):
            file.write(b"\1" * (rows // 10 * 77 * 4))
    code = (
        "import sys, pathlib\n"
        "from labkit.weights.formats.tensorflow import read_tf_checkpoint\n"
        "def kilobytes(): return int(open('/proc/self/status').read().split('VmRSS:')[1].split()[0])\n"
        "before = kilobytes()\n"
        "tensors = read_tf_checkpoint(pathlib.Path(sys.argv[1]))\n"
        "print(kilobytes() - before, tuple(tensors['wte.weight'].shape))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True
    )
    grown, shape = result.stdout.split(maxsplit=1)
    assert shape == f"({rows}, 77)\n"
    assert int(grown) < 8_000


@pytest.mark.parametrize(
    "path", ["/home/someone/models/117M/model.ckpt", "../../elsewhere/model.ckpt", r"C:\models\model.ckpt"]
)
def test_the_path_of_the_machine_that_trained_does_not_matter(folder: Path, path: str) -> None:
    text = f'model_checkpoint_path: "{path}"\nall_model_checkpoint_paths: "other"\n'
    (folder / "checkpoint").write_text(text, encoding="utf-8")
    assert_published_values(read_tf_checkpoint(folder))


def test_the_form_is_recognised(tmp_path: Path) -> None:
    assert is_tf_checkpoint(PUBLISHED)
    assert is_tf_checkpoint(TRAINING)
    (tmp_path / "model.safetensors.index.json").write_text("{}", encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    assert not is_tf_checkpoint(tmp_path)
    (tmp_path / INDEX).touch()
    assert is_tf_checkpoint(tmp_path), "so that the error says what is missing"


def test_the_checksum_is_castagnolis() -> None:
    mask = lambda crc: (crc >> 15 | crc << 17 & 0xFFFFFFFF) + 0xA282EAD8 & 0xFFFFFFFF  # noqa: E731
    assert _masked_crc32c(b"123456789") == mask(0xE3069283)  # RFC 3720's polynomial, the usual check value
    assert _masked_crc32c(bytes(32)) == mask(0x8A9136AA)  # RFC 3720, B.4


def test_the_model_computes_tensorflows_logits() -> None:
    model = load_gpt2(PUBLISHED).model
    with torch.no_grad():
        ours = model(torch.from_numpy(VALUES["ids"]))
    assert ours.shape == (3, 7, 37)
    torch.testing.assert_close(ours, torch.from_numpy(VALUES["logits"]), atol=1e-4, rtol=0)


# What is wrong: a table written here, with right checksums, whatever is in it


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes([*out, number])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number * 8) + varint(value % 2**64)
    return varint(number * 8 + 2) + varint(len(value)) + value


def header(shards: int = 1, endian: int = 0) -> bytes:
    return field(1, shards) + field(2, endian) + field(3, field(1, 1))


def entry(shape: list[int], offset: int, size: int, dtype: int = 1, shard: int = 0) -> bytes:
    dims = b"".join(field(2, field(1, dim)) for dim in shape)
    return field(1, dtype) + field(2, dims) + field(3, shard) + field(4, offset) + field(5, size)


def block(pairs: dict[bytes, bytes], kind: int = 0) -> bytes:
    body = b"".join(b"\0" + varint(len(k)) + varint(len(v)) + k + v for k, v in pairs.items())
    body += bytes(4) + (1).to_bytes(4, "little") + bytes([kind])
    return body + _masked_crc32c(body).to_bytes(4, "little")


def write_index(path: Path, pairs: dict[bytes, bytes], kind: int = 0, times: int = 1) -> None:
    data = block(pairs, kind)
    handle = varint(0) + varint(len(data) - 5)
    index = block({b"z%06d" % i: handle for i in range(times)})
    footer = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    path.write_bytes(data + index + footer.ljust(40, b"\0") + _MAGIC)


def fails(folder: Path, file: str, *words: str) -> None:
    """Reading the folder is a ValueError within 2 seconds that names the file and says these words."""
    start = time.perf_counter()
    with pytest.raises(ValueError, match=r"[.?]$") as caught:
        read_tf_checkpoint(folder)
    assert time.perf_counter() - start < 2
    for each in (str(folder / file), *words):
        assert each in str(caught.value)


def one(*shape: int, offset: int = 0, size: int = 60, dtype: int = 1, shard: int = 0) -> dict[bytes, bytes]:
    return {b"": header(), b"model/wte": entry(list(shape), offset, size, dtype, shard)}


HUGE = 2**62

WRONG: dict[str, tuple[dict[bytes, bytes], str]] = {
    "the bytes do not fit the shape": (one(5, 4), "has 60 bytes, which are not torch.float32 (5, 4)"),
    "a negative dimension": (one(-5, -3), "which are not"),
    "a huge dimension": (one(HUGE, 4), "which are not"),
    "a huge shape of the right size": (one(HUGE // 4, size=HUGE), "ends at byte"),
    "empty": (one(0, 3, size=0), "has 0 bytes"),
    "too many dimensions": (one(*[1] * 20_000), "20000 dimensions"),
    "behind the end of the file": (one(5, 3, offset=17472 - 56), "ends at byte 17,476, but its data file"),
    "a negative place": (one(5, 3, offset=-4), "ends at byte"),
    "whole numbers": (one(5, 3, dtype=3), "TensorFlow's type 3"),
    "text": (one(5, 3, dtype=7), "TensorFlow's type 7"),
    "no entry": ({b"": header(), b"model/wte": b""}, "TensorFlow's type 0"),
    "a shard that is none": (one(5, 3, shard=1), "is in shard 1 of 1"),
    "a negative shard": (one(5, 3, shard=-1), "is in shard"),
    "a shard that is missing": (
        {b"": header(shards=2), b"model/wte": entry([5, 3], 0, 60, shard=1)},
        "model.ckpt.data-00001-of-00002: is missing",
    ),
    "no header": ({b"model/wte": entry([5, 3], 0, 60)}, "is in shard 0 of 0"),
    "big-endian": ({b"": header(endian=1), b"model/wte": entry([5, 3], 0, 60)}, "is big-endian"),
    "another model": ({b"": header(), b"bert/pooler/bias": entry([15], 0, 60)}, "no tensor under model/"),
    "partitioned": ({b"": header(), b"model/wte": entry([5, 3], 0, 60) + field(7, b"")}, "slices"),
    "two of one name": (
        {b"": header(), b"model/ln_f/g": entry([15], 0, 60), b"model/ln_f/w": entry([15], 0, 60)},
        "is a second ln_f.weight",
    ),
    "a number without an end": (
        {b"": header(), b"model/wte": b"\x08" + b"\xff" * 30 + b"\1"},
        "without an end",
    ),
    "a field without an end": ({b"": header(), b"model/wte": b"\x12\xff\xff\x03"}, "ends outside"),
    "a field of another kind": ({b"": header(), b"model/wte": b"\x0b"}, "field of kind 3"),
    "a very long name": (one(5, 3) | {b"model/" + b"x" * 500: entry([15], 0, 60)}, "too long"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_index_is_a_clear_error(folder: Path, what: str) -> None:
    pairs, words = WRONG[what]
    write_index(folder / INDEX, pairs)
    fails(folder, INDEX, words)


def test_the_index_written_here_is_a_right_one_otherwise(folder: Path) -> None:
    write_index(folder / INDEX, one(5, 3, offset=8))
    expected = np.frombuffer((folder / DATA).read_bytes()[8:68], "<f4").reshape(5, 3)
    np.testing.assert_array_equal(read_tf_checkpoint(folder)["wte.weight"].numpy(), expected)


def test_a_compressed_index_is_a_clear_error(folder: Path) -> None:
    write_index(folder / INDEX, one(5, 3), kind=1)
    fails(folder, INDEX, "is compressed", "anew")


@pytest.mark.parametrize(("start", "size"), [(0, 2**62), (2**63, 8), (870, 8), (916, 2)])
def test_a_block_outside_the_index_is_a_clear_error(folder: Path, start: int, size: int) -> None:
    whole = (folder / INDEX).read_bytes()
    footer = (varint(0) * 2 + varint(start) + varint(size)).ljust(40, b"\0") + _MAGIC
    (folder / INDEX).write_bytes(whole[:-48] + footer)
    outside = start + size + 5 > len(whole)
    fails(folder, INDEX, "does not fit into 922" if outside else "fails its checksum")


def test_one_block_listed_thousands_of_times_is_not_read_so_often(folder: Path) -> None:
    pairs = {b"": header()} | {b"model/%05d" % i: entry([5, 3], 0, 60) for i in range(3_000)}
    write_index(folder / INDEX, pairs, times=5_000)
    fails(folder, INDEX, "begins inside another")


def test_the_largest_index_of_the_longest_names_is_read_in_time(folder: Path) -> None:
    """Names that share all but their end with the one before: little in the file, much in memory."""
    name, body = b"model/" + b"x" * 245, b"\0\0" + varint(len(header())) + header()
    body += b"\0" + varint(len(name)) + b"\0" + name
    body += b"".join(varint(248) + b"\3\0" + b"%03d" % (i % 1000) for i in range(37_000))
    body += bytes(4) + (1).to_bytes(4, "little") + b"\0"
    data = body + _masked_crc32c(body).to_bytes(4, "little")
    index = block({b"z": varint(0) + varint(len(data) - 5)})
    footer = varint(0) * 2 + varint(len(data)) + varint(len(index) - 5)
    (folder / INDEX).write_bytes(data + index + footer.ljust(40, b"\0") + _MAGIC)
    fails(folder, INDEX, "TensorFlow's type 0")


def naming(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "checkpoint").write_text(f'model_checkpoint_path: "{text}"')


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "no index": (lambda f: (f / INDEX).unlink(), INDEX, "is missing"),
    "no data": (lambda f: (f / DATA).unlink(), DATA, "is missing"),
    "no checkpoint": (lambda f: (f / "checkpoint").unlink(), "checkpoint", "is missing"),
    "empty data": (lambda f: (f / DATA).write_bytes(b""), DATA, "is empty"),
    "short data": (lambda f: os.truncate(f / DATA, 17471), INDEX, "but its data file at 17,471"),
    "data is a folder": (lambda f: ((f / DATA).unlink(), (f / DATA).mkdir()), DATA, "is missing"),
    "a huge index": (lambda f: os.truncate(f / INDEX, 2**33), INDEX, "8,589,934,592"),
    "a huge checkpoint": (lambda f: os.truncate(f / "checkpoint", 2**33), "checkpoint", "8,589,934,592"),
    "a pickle": (lambda f: (f / "checkpoint").write_bytes(b"PK\3\4\xff"), "checkpoint", "has no line like"),
    "another index": (lambda f: (f / INDEX).write_text("{}" * 99), INDEX, "does not end as the index"),
    "the name is ..": (naming("a/.."), "...index", "is missing"),
    "the name is empty": (naming("a/"), "checkpoint", "has no line like"),
    "the name holds a zero": (naming("\0"), "\0.index", "is missing"),
    "the name is too long": (naming("x" * 5000), "x" * 5000, "cannot be read"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_wrong_folder_is_a_clear_error(folder: Path, what: str) -> None:
    damage, file, words = DAMAGE[what]
    damage(folder)
    fails(folder, file, words)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
@pytest.mark.parametrize("file", ["checkpoint", INDEX, DATA])
def test_a_pipe_is_not_waited_for(folder: Path, file: str) -> None:
    (folder / file).unlink()
    os.mkfifo(folder / file)
    fails(folder, file, "is missing")


def test_an_index_cut_anywhere_is_a_clear_error(folder: Path) -> None:
    whole = (folder / INDEX).read_bytes()
    for length in range(len(whole)):
        (folder / INDEX).write_bytes(whole[:length])
        fails(folder, INDEX)


def test_a_flipped_bit_of_the_index_is_an_error_or_changes_nothing(folder: Path) -> None:
    whole = (folder / INDEX).read_bytes()
    errors = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << place % 8
        (folder / INDEX).write_bytes(damaged)
        try:
            tensors = read_tf_checkpoint(folder)
        except ValueError:
            errors += 1
            fails(folder, INDEX)
        else:
            assert_published_values(tensors)
    unused = 8 + 5 + 48  # a block about other tables, its end, and the footer with its padding
    assert errors > len(whole) - unused


def test_any_change_under_a_right_checksum_is_an_error_or_a_tensor_inside_the_file(folder: Path) -> None:
    """What a checksum does not catch: an index made wrong on purpose."""
    generator, data = random.Random(7), entry([5, 3], 8, 60)
    outcomes = {True: 0, False: 0}
    for _ in range(1_500):
        pairs = [bytearray(part) for part in (header(), b"model/ln_f/g", data)]
        for _ in range(generator.choice((1, 1, 2, 8))):
            part = generator.choice(pairs)
            part[generator.randrange(len(part))] = generator.randrange(256)
        write_index(folder / INDEX, {b"": bytes(pairs[0]), bytes(pairs[1]): bytes(pairs[2])})
        try:
            tensors = read_tf_checkpoint(folder)
        except ValueError:
            fails(folder, "model.ckpt")
            outcomes[False] += 1
        else:
            assert all(tensor.nbytes <= 17472 and tensor.sum() is not None for tensor in tensors.values())
            outcomes[True] += 1
    assert min(outcomes.values()) > 50
