"""Windows against lists built the slow way, and streams that repeat exactly."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labkit.text.batches as module
from labkit.text import TokenStream, WindowDataset, load_token_sequences


@pytest.fixture(scope="module", autouse=True)
def short_sequences():
    """Sequences as short as those below are allowed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MIN_LENGTH", 2)
        yield


def naive_windows(ids: list[int], context: int, stride: int, keep_tail: bool, pad: int) -> list[tuple]:
    """Every window by slicing; the first one that is too short is the tail, if it has a target to add."""
    pairs, start, seen = [], 0, 0  # seen: index of the last target so far
    while start + context < len(ids):
        pairs.append((ids[start : start + context], ids[start + 1 : start + context + 1]))
        seen = start + context
        start += stride
    inputs, targets = ids[start:-1][:context], ids[start + 1 :]
    if keep_tail and targets and seen < len(ids) - 1:
        missing = context - len(targets)
        pairs.append((inputs + [pad] * missing, targets + [-100] * missing))
    return pairs


@settings(max_examples=300, deadline=None)
@given(
    length=st.integers(2, 40),
    context=st.integers(1, 9),
    stride=st.integers(1, 13),
    keep_tail=st.booleans(),
    batch_size=st.integers(1, 5),
)
def test_windows_equal_slices(length, context, stride, keep_tail, batch_size):
    ids = list(range(100, 100 + length))
    expected = naive_windows(ids, context, stride, keep_tail, pad=7)
    if not expected:
        with pytest.raises(ValueError, match="too few"):
            WindowDataset(ids, context, stride, keep_tail, pad_id=7)
        return
    dataset = WindowDataset(torch.tensor(ids), context, stride, keep_tail, pad_id=7)
    assert [(x.tolist(), y.tolist()) for x, y in (dataset[i] for i in range(len(dataset)))] == expected
    batches = list(dataset.batches(batch_size))
    assert torch.cat([x for x, _ in batches]).tolist() == [x for x, _ in expected]
    assert torch.cat([y for _, y in batches]).tolist() == [y for _, y in expected]
    assert all(len(x) == batch_size for x, _ in batches[:-1])
    assert dataset.total_tokens == sum(target != -100 for _, y in expected for target in y)


def test_without_stride_every_target_is_seen_once():
    dataset = WindowDataset(range(1, 24), 5, keep_tail=True)
    targets = torch.cat([y for _, y in dataset.batches(3)]).flatten()
    assert targets[targets != -100].tolist() == list(range(2, 24))
    assert dataset.total_tokens == 22


def test_padding_that_equals_the_end_of_text_drops_no_real_end():
    end = 9
    _, targets = WindowDataset([1, 2, end, 4, end], 3, keep_tail=True, pad_id=end)[1]
    assert targets.tolist() == [end, -100, -100]


def test_windows_are_int64_whatever_the_ids_are():
    for ids in (np.arange(20, dtype=np.uint16), torch.arange(20, dtype=torch.int32), list(range(20))):
        inputs, targets = WindowDataset(ids, 6)[2]
        assert inputs.dtype == targets.dtype == torch.int64
        assert (inputs.tolist(), targets.tolist()) == ([12, 13, 14, 15, 16, 17], [13, 14, 15, 16, 17, 18])


def test_windows_count_from_the_end_and_stop_at_it():
    dataset = WindowDataset(range(23), 4, stride=3)
    assert dataset[-1][0].tolist() == dataset[len(dataset) - 1][0].tolist()
    assert len(list(dataset)) == len(dataset) == 7
    with pytest.raises(IndexError):
        dataset[7]


def test_a_limit_takes_windows_from_all_over_the_text_and_always_the_same():
    dataset = WindowDataset(range(1001), 10)
    starts = torch.cat([x for x, _ in dataset.batches(3, limit=7)])[:, 0].tolist()
    assert starts == [0, 140, 280, 420, 570, 710, 850]
    assert starts == torch.cat([x for x, _ in dataset.batches(2, limit=7)])[:, 0].tolist()
    assert sum(len(x) for x, _ in dataset.batches(64, limit=5000)) == 100


def test_a_data_loader_can_read_windows():
    loader = torch.utils.data.DataLoader(WindowDataset(range(50), 8), batch_size=3)
    assert [x.shape[0] for x, _ in loader] == [3, 3]


def test_a_batch_depends_on_seed_and_step_alone():
    ids = np.arange(10_000)
    one, two = TokenStream(ids, 11, 4, seed=3), TokenStream(ids, 11, 4, seed=3)
    late = two.batch(17)
    for step in (17, 2, 17):
        one.batch(step)
    assert all(torch.equal(a, b) for a, b in zip(one.batch(17), late, strict=True))
    assert not torch.equal(one.batch(18)[0], late[0])
    assert not torch.equal(TokenStream(ids, 11, 4, seed=4).batch(17)[0], late[0])
    assert not torch.equal(TokenStream(ids, 11, 4, seed=4).batch(16)[0], late[0])  # not their sum


def test_crops_are_pieces_of_the_text_with_targets_one_further():
    inputs, targets = TokenStream(torch.arange(500, 700), 13, 6).batch(0)
    assert inputs.shape == targets.shape == (6, 13)
    assert torch.equal(targets, inputs + 1)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.is_contiguous()
    assert targets.is_contiguous()


def test_the_first_and_last_crop_are_drawn_and_none_beyond():
    stream = TokenStream(list(range(9)), 5, 8)
    first = {int(start) for step in range(40) for start in stream.batch(step)[0][:, 0]}
    assert first == {0, 1, 2, 3}


def test_crops_fall_evenly():
    stream = TokenStream(np.arange(1003), 3, 500)
    counts = np.bincount(torch.cat([stream.batch(step)[0][:, 0] for step in range(40)]).numpy() // 100)
    assert counts.min() > 1800
    assert counts.max() < 2200


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_a_stream_from_disk_equals_one_from_memory(tmp_path, dtype):
    ids = (np.arange(3000) * 7 % 50257).astype(dtype)
    np.save(tmp_path / "ids.npy", ids)
    stream = TokenStream(np.load(tmp_path / "ids.npy", mmap_mode="r"), 21, 5, seed=1)
    for got, expected in zip(stream.batch(6), TokenStream(ids, 21, 5, seed=1).batch(6), strict=True):
        assert torch.equal(got, expected)
        assert got.dtype == torch.int64


def test_a_stream_knows_its_epoch():
    stream = TokenStream(np.arange(1000), 16, 4)
    assert (stream.tokens_per_step, stream.tokens_per_epoch) == (64, 1000)


def rows(dataset) -> list[tuple[list[int], list[int]]]:
    return [(x.tolist(), y.tolist()) for x, y in dataset]


def save(tmp_path, content) -> str:
    path = tmp_path / "data.pt"
    torch.save(content, path)
    return str(path)


def test_sequences_of_others_are_chunked_and_padded(tmp_path):
    content = [torch.arange(10, 18), torch.arange(20, 23, dtype=torch.int32), torch.arange(30, 34)]
    dataset = load_token_sequences(save(tmp_path, content), 3, pad_id=0)
    assert rows(dataset) == [
        ([10, 11, 12], [11, 12, 13]),
        ([13, 14, 15], [14, 15, 16]),
        ([16, 0, 0], [17, -100, -100]),
        ([20, 21, 0], [21, 22, -100]),
        ([30, 31, 32], [31, 32, 33]),
    ]
    assert dataset.total_tokens == 12
    assert [len(x) for x, _ in dataset.batches(2)] == [2, 2, 1]


def test_a_pad_id_that_ends_texts_keeps_every_real_end(tmp_path):
    end = 50256
    content = [torch.tensor([5, 6, end]), torch.tensor([7, end, 8, 9, end])]
    dataset = load_token_sequences(save(tmp_path, content), 4, pad_id=end)
    assert int((dataset.targets == end).sum()) == 3
    assert rows(dataset)[0] == ([5, 6, end, end], [6, end, -100, -100])


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=6), context=st.integers(2, 9))
def test_each_next_token_of_each_sequence_is_a_target_once(tmp_path_factory, lengths, context):
    sequences, start = [], 1
    for length in lengths:
        sequences.append(torch.arange(start, start + length))
        start += length
    path = save(tmp_path_factory.mktemp("pt"), sequences)
    if max(lengths) == 1:
        with pytest.raises(ValueError, match="no sequence of at least 2"):
            load_token_sequences(path, context, pad_id=0)
        return
    dataset = load_token_sequences(path, context, pad_id=0)
    got = [
        (int(x), int(y))
        for x, y in zip(dataset.inputs.flatten(), dataset.targets.flatten(), strict=True)
        if y != -100
    ]
    assert got == [(a, b) for s in sequences for a, b in pairwise(s.tolist())]


PADDED = torch.tensor([[5, 6, 7, 1, 1], [8, 9, 1, 1, 1], [1, 1, 1, 1, 1], [2, 3, 4, 5, 6]])


def test_a_batch_padded_by_others_keeps_one_end_a_row(tmp_path):
    path = save(tmp_path, {"input_ids": PADDED})
    dataset = load_token_sequences(path, 5, pad_id=1)
    assert rows(dataset) == [
        ([5, 6, 7, 1, 1], [6, 7, 1, -100, -100]),
        ([8, 9, 1, 1, 1], [9, 1, -100, -100, -100]),
        ([2, 3, 4, 5, 1], [3, 4, 5, 6, -100]),
    ]


def test_an_attention_mask_says_what_is_padding(tmp_path):
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 1, 1, 1]])
    path = save(tmp_path, [{"input_ids": PADDED, "attention_mask": mask}])
    dataset = load_token_sequences(path, 4, pad_id=1)
    assert rows(dataset) == [
        ([5, 6, 1, 1], [6, 7, -100, -100]),
        ([8, 9, 1, 1], [9, 1, 1, -100]),
        ([3, 4, 5, 1], [4, 5, 6, -100]),
    ]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: {"input_ids": t},
        lambda t: {"input_ids": [row.tolist() for row in t]},
        lambda t: [{"input_ids": t[:1]}, {"input_ids": t[1:]}],
        lambda t: [t[:1], t[1:]],
        lambda t: t,
        lambda t: list(t),
        lambda t: [row.tolist() for row in t],
    ],
)
def test_every_common_shape_of_file_gives_the_same_windows(tmp_path, wrap):
    table = torch.arange(2, 14).reshape(2, 6)
    dataset = load_token_sequences(save(tmp_path, wrap(table)), 5, pad_id=0)
    assert rows(dataset) == [([2, 3, 4, 5, 6], [3, 4, 5, 6, 7]), ([8, 9, 10, 11, 12], [9, 10, 11, 12, 13])]
