"""A model that reads through a cache says what it says when it reads everything at once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close
from variants import CONTEXT, VARIANTS, VOCAB, variant

from labkit import GPT, GPTConfig
from labkit.model import KVCache

BATCH = 3
names = st.sampled_from(sorted(VARIANTS))


def random_ids(batch: int, seq: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (batch, seq), generator=torch.Generator().manual_seed(seed))


def empty_cache(
    model: GPT, batch: int = BATCH, *, capacity: int | None = None, fixed: bool = False
) -> KVCache:
    return KVCache(model.config, batch, capacity=capacity, fixed=fixed, dtype=torch.float64)


@torch.no_grad()
def read(model: GPT, ids: Tensor, cache: KVCache, sizes: list[int]) -> Tensor:
    """Logits of ids read in pieces of these sizes."""
    return torch.cat([model(piece, cache=cache) for piece in ids.split(sizes, dim=1)], dim=1)


@given(name=names, sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5), fixed=st.booleans())
def test_any_split_into_pieces_gives_the_logits_of_the_whole(
    name: str, sizes: list[int], fixed: bool
) -> None:
    while sum(sizes) > CONTEXT:
        sizes = sizes[:-1]
    model = variant(name)
    ids, cache = random_ids(BATCH, sum(sizes)), empty_cache(model, fixed=fixed)
    with torch.no_grad():
        assert_close(read(model, ids, cache, sizes), model(ids))
    assert cache.length == sum(sizes)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("fixed", [False, True])
def test_rows_of_different_lengths_go_on_as_if_alone(name: str, fixed: bool) -> None:
    model, lengths, more = variant(name), [2, 5, 4], 4
    prompts = [random_ids(1, length, seed=length) for length in lengths]
    new = random_ids(BATCH, more, seed=9)
    padded = torch.stack([torch.nn.functional.pad(each[0], (0, 5 - each.shape[1])) for each in prompts])
    cache = empty_cache(model, fixed=fixed)
    with torch.no_grad():
        first = model(padded, cache=cache, at=torch.tensor(lengths) - 1)
        cache.trim(lengths)
        rest = read(model, new, cache, [1, 2, 1])
        for row, prompt in enumerate(prompts):
            alone = model(torch.cat([prompt, new[row : row + 1]], dim=1))[0]
            assert_close(first[row], alone[lengths[row] - 1])
            assert_close(rest[row], alone[lengths[row] :])


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("fixed", [False, True])
def test_copied_rows_go_on_as_the_rows_they_were_copied_from(name: str, fixed: bool) -> None:
    """Also of a ragged cache that has read on since, into one with another capacity, in another order."""
    model, rows = variant(name), [2, 0, 2, 1]
    ids, new = random_ids(BATCH, 4), random_ids(BATCH, 5, seed=1)
    source = empty_cache(model, capacity=9, fixed=fixed)
    target = empty_cache(model, len(rows), fixed=fixed)
    with torch.no_grad():
        model(ids, cache=source)
        source.trim([1, 4, 3])
        read(model, new[:, :2], source, [1, 1])
        read(model, random_ids(len(rows), 3, seed=5), target, [3])  # forgotten by what comes now
        target.copy_rows(source, rows)
        expected = read(model, new[:, 2:], source, [1, 1, 1])
        found = read(model, new[rows, 2:], target, [1, 1, 1])
    assert_close(found, expected[rows])


@pytest.mark.parametrize("fixed", [False, True])
def test_a_cleared_cache_is_as_good_as_a_new_one(fixed: bool) -> None:
    model = variant("rotary")
    cache = empty_cache(model, fixed=fixed)
    read(model, random_ids(BATCH, 6), cache, [4, 1, 1])
    cache.trim([1, 6, 2])
    cache.clear()
    ids = random_ids(BATCH, 5, seed=3)
    with torch.no_grad():
        assert_close(read(model, ids, cache, [2, 1, 2]), model(ids))


def test_a_fixed_cache_keeps_every_address() -> None:
    """What a captured CUDA graph needs."""
    model = variant("gpt2")
    cache = empty_cache(model, fixed=True)

    def addresses() -> list[int]:
        assert isinstance(cache.positions, Tensor)
        assert cache.hidden is not None
        states = [cache.slot, cache.positions, cache.hidden]
        return [each.data_ptr() for layer in cache.layers for each in (layer.keys, layer.values, *states)]

    before = addresses()
    source = empty_cache(model)
    read(model, random_ids(BATCH, 4), source, [4])
    source.trim([3, 1, 4])
    cache.copy_rows(source, [0, 1, 2])
    read(model, random_ids(BATCH, 2), cache, [1, 1])
    cache.clear()
    assert addresses() == before


def test_the_cache_takes_the_memory_that_its_formula_says() -> None:
    model = variant("grouped")
    cache = KVCache(model.config, 5, capacity=7)
    head_dim = model.config.d_model // 6
    assert (
        cache.nbytes == 2 * 2 * 5 * 2 * 7 * head_dim * 4
    )  # k and v, layers, rows, kv heads, slots, ., bytes


def test_one_position_of_each_row_can_be_asked_for() -> None:
    model, ids = variant("gpt2"), random_ids(BATCH, 7)
    at = torch.tensor([6, 0, 3])
    with torch.no_grad():
        assert_close(model(ids, at=at), model(ids)[torch.arange(BATCH), at])


def test_activation_checkpointing_while_training_keeps_the_cache() -> None:
    model, ids = variant("rotary", dropout=0, attention_dropout=0), random_ids(BATCH, 6)
    expected = model(ids)
    model.train().activation_checkpointing = True
    cache = empty_cache(model)
    assert_close(read(model, ids, cache, [4, 1, 1]), expected)
    assert cache.length == 6
    assert cache.layers[0].keys.abs().sum() > 0


CONFIG = GPTConfig(vocab_size=VOCAB, context_length=CONTEXT, d_model=12, n_layers=2, n_heads=2)


@pytest.mark.parametrize("capacity", [0, -1, CONTEXT + 1])
def test_a_capacity_outside_the_context_is_refused(capacity: int) -> None:
    with pytest.raises(
        ValueError, match=rf"KVCache: capacity={capacity} must be between 1 and context_length={CONTEXT}"
    ):
        KVCache(CONFIG, capacity=capacity)


def test_what_does_not_fit_is_refused_and_nothing_is_read() -> None:
    model = variant("gpt2")
    cache = empty_cache(model, capacity=5)
    with torch.no_grad():
        model(random_ids(BATCH, 4), cache=cache)
        with pytest.raises(ValueError, match=r"holds 4 tokens of at most 5; 2 more do not fit. Clear it"):
            model(random_ids(BATCH, 2), cache=cache)
        with pytest.raises(ValueError, match="made for 3 rows, not for 2"):
            model(random_ids(2, 1), cache=cache)
        with pytest.raises(ValueError, match=r"copy_rows: 2 rows of 4 tokens do not fit 3 rows"):
            cache.copy_rows(cache, [0, 1])
        with pytest.raises(ValueError, match=r"copy_rows: 3 rows of 4 tokens do not fit 3 rows of at most 2"):
            empty_cache(model, capacity=2).copy_rows(cache, [0, 1, 2])
    assert cache.length == 4


@pytest.mark.parametrize("lengths", [[1, 2], [0, 1, 2], [1, 2, 5]])
def test_lengths_that_cannot_be_are_refused(lengths: list[int]) -> None:
    model = variant("gpt2")
    cache = empty_cache(model)
    read(model, random_ids(BATCH, 4), cache, [4])
    with pytest.raises(ValueError, match=r"KVCache.trim: lengths=.* must be 3 numbers from 1 to 4"):
        cache.trim(lengths)
