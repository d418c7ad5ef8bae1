"""The batches of a stored run must come back: the draws are NumPy's, to the last bit."""

import numpy as np
import pytest
import torch

from labkit.text import TokenStream, WindowDataset
from labkit.text.batches import ShuffledWindows


def test_the_crops_of_a_step_have_not_changed_since_runs_were_stored():
    stream = TokenStream(np.arange(1_500_000), 5, 3, seed=1337)
    assert stream.batch(0)[0][:, 0].tolist() == [819483, 1317148, 1090506]
    assert stream.batch(12345)[0][:, 0].tolist() == [497195, 64612, 83740]


def test_a_batch_does_not_depend_on_the_steps_before_it():
    ids = np.arange(7, 1007, dtype=np.uint16)
    orderly, jumping = TokenStream(ids, 11, 4, seed=2), TokenStream(ids, 11, 4, seed=2)
    expected = {step: orderly.batch(step) for step in range(9)}
    for step in (8, 0, 3, 2, 8, 5):
        for got, want in zip(jumping.batch(step), expected[step], strict=True):
            assert torch.equal(got, want)


def test_a_batch_is_its_callers_own():
    ids = np.arange(100, 200)
    stream = TokenStream(ids, 7, 3)
    inputs, targets = stream.batch(4)
    before = inputs.clone(), targets.clone()
    inputs.zero_(), targets.zero_()
    assert all(map(torch.equal, stream.batch(4), before))
    windows = WindowDataset(torch.from_numpy(ids), 7)
    windows[0][0].zero_(), windows[0][1].zero_()
    assert windows[0][0].tolist() == list(range(100, 107))
    assert windows[0][1].tolist() == list(range(101, 108))


def test_ranks_share_a_batch():
    stream = TokenStream(np.arange(500), 7, 6, seed=5)
    whole = stream.batch(3)
    for rank in range(3):
        for part, rows in zip(stream.batch(3, rank=rank, world=3), whole, strict=True):
            assert torch.equal(part, rows[rank::3])


def test_a_mapped_file_is_never_read_as_a_whole(tmp_path):
    """Its crops are views of the file, and shorter ones than the file are all that is copied."""
    np.arange(2000, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    mapped = np.memmap(tmp_path / "ids.bin", np.uint16, "r")
    stream = TokenStream(mapped, 11, 4, seed=1)
    assert np.shares_memory(stream._crops, mapped)
    for got, want in zip(stream.batch(2), TokenStream(np.arange(2000), 11, 4, seed=1).batch(2), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("keep_tail", [False, True])
def test_windows_are_those_cut_by_hand(keep_tail):
    ids = torch.arange(50, 105)
    dataset = WindowDataset(ids, 7, stride=5, keep_tail=keep_tail, pad_id=3)
    assert (len(dataset), dataset.total_tokens) == ((11, 74) if keep_tail else (10, 70))
    got = dataset.gather(torch.tensor([4, 0, 8, 8]))
    for row, start in enumerate((20, 0, 40, 40)):
        assert torch.equal(got[0][row], ids[start : start + 7])
        assert torch.equal(got[1][row], ids[start + 1 : start + 8])
    assert got[0].is_contiguous()
    assert got[1].is_contiguous()
    if keep_tail:
        inputs, targets = dataset.gather(torch.tensor([9, 10]))
        assert inputs.tolist() == [list(range(95, 102)), [100, 101, 102, 103, 3, 3, 3]]
        assert targets.tolist() == [list(range(96, 103)), [101, 102, 103, 104, -100, -100, -100]]


def test_shuffled_windows_follow_the_order_of_each_epoch_across_its_border():
    """Batches of 4 of 3 windows: two epochs meet in every batch, and three in none or some."""
    windows = WindowDataset(torch.arange(22), 7)
    assert len(windows) == 3
    shuffled = ShuffledWindows(windows, 4, seed=6)
    order = np.concatenate([np.random.default_rng([6, epoch]).permutation(3) for epoch in range(8)])
    for step in (0, 3, 1, 5):
        rows = order[4 * step : 4 * step + 4]
        assert (shuffled.batch(step)[0][:, 0] // 7).tolist() == rows.tolist()
        assert (shuffled.batch(step, rank=1, world=2)[0][:, 0] // 7).tolist() == rows[1::2].tolist()
