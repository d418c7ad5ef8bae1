"""Batches are copied to a GPU while it computes. Its streams are played: nothing moves before it must."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from labkit import GPT, GPTConfig, TrainConfig
from labkit.text import TokenStream
from labkit.training import Step, Trainer
from labkit.training.trainer import Prefetcher

IDS = torch.from_numpy(np.random.default_rng(0).integers(0, 19, size=900))
CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Stream:
    """Work waits here until somebody needs it, as late as the order of streams allows."""

    current: Stream

    def __init__(self, device: object = None) -> None:
        self.work: list[Callable[[], object]] = []

    def wait_stream(self, other: Stream) -> None:
        self.work.append(other.finish)

    def finish(self) -> None:
        work, self.work = self.work, []
        for each in work:
            each()


class Ids:
    """Ids in the computer's memory or on the device, as far as a feed may touch them."""

    alive: ClassVar[weakref.WeakSet[Ids]] = weakref.WeakSet()

    def __init__(self, ids: torch.Tensor, pinned: bool = False, home: Stream | None = None) -> None:
        self.ids, self.pinned, self.home = ids, pinned, home
        self.readers: list[Stream] = []
        Ids.alive.add(self)

    def pin_memory(self) -> Ids:
        return Ids(self.ids.clone(), pinned=True)

    def to(self, device: torch.device, non_blocking: bool = False) -> Ids:
        assert device == CUDA
        assert non_blocking, "the program would wait for the copy"
        assert self.pinned, "only pinned memory is copied beside the program"
        copy = Ids(torch.full_like(self.ids, -1), home=Stream.current)  # what lay there before
        Stream.current.work.append(lambda: copy.ids.copy_(self.ids))
        return copy

    def record_stream(self, stream: Stream) -> None:
        self.readers.append(stream)

    def read(self) -> torch.Tensor:
        """What a kernel launched now, on the stream that computes, would see."""
        assert self.home is Stream.current or Stream.current in self.readers
        Stream.current.finish()
        return self.ids


class Picked:
    """A batch source that keeps account of what it was asked for."""

    def __init__(self) -> None:
        self.stream, self.asked = TokenStream(IDS, 7, 6, seed=3), []  # type: ignore[var-annotated]

    def batch(self, step: int, *, rank: int = 0, world: int = 1) -> tuple[Ids, Ids]:
        self.asked.append((step, rank, world))
        inputs, targets = self.stream.batch(step, rank=rank, world=world)
        return Ids(inputs), Ids(targets)


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def stream(chosen: Stream) -> Iterator[None]:
        before, Stream.current = Stream.current, chosen
        yield
        Stream.current = before

    Stream.current = Stream()
    Ids.alive.clear()
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream.current)


def feed(rank: int = 0, world: int = 1) -> tuple[Any, Any]:
    picked: Any = Picked()
    return Prefetcher(picked, CUDA, rank, world), picked


def assert_right(batch: Any, step: int, rank: int = 0, world: int = 1) -> None:
    inputs, targets = TokenStream(IDS, 7, 6, seed=3).batch(step, rank=rank, world=world)
    assert torch.equal(batch.host_targets.ids, targets)  # in host memory from the start
    assert torch.equal(batch.inputs.read(), inputs)
    assert torch.equal(batch.targets.read(), targets)


def test_every_step_computes_with_its_own_batch_prepared_or_not(fake_cuda: None) -> None:
    some, picked = feed()
    assert_right(some.batch(0), 0)
    some.prepare(1)
    assert_right(some.batch(1), 1)
    assert_right(some.batch(2), 2)
    assert [step for step, _, _ in picked.asked] == [0, 1, 2]  # each picked once


def test_a_prepared_batch_is_not_copied_before_the_gpu_needs_it_nor_waited_for(fake_cuda: None) -> None:
    some, _ = feed()
    some.prepare(4)
    assert some._copies.work  # on the side stream, not done
    batch = some.batch(4)
    assert some._copies.work  # handing it over has not waited either
    assert_right(batch, 4)


def test_a_step_that_is_repeated_or_jumped_to_gets_its_own_batch(fake_cuda: None) -> None:
    """After a failure, a resume or a load: the prepared batch is for another step."""
    some, _ = feed()
    some.batch(5)
    some.prepare(6)
    assert_right(some.batch(5), 5)
    some.prepare(6)
    assert_right(some.batch(2), 2)
    assert_right(some.batch(6), 6)


def test_a_batch_is_handed_out_once(fake_cuda: None) -> None:
    some, picked = feed()
    some.prepare(3)
    first, second = some.batch(3), some.batch(3)
    assert first.inputs is not second.inputs
    assert len(picked.asked) == 2


def test_ranks_get_their_rows(fake_cuda: None) -> None:
    for rank in range(3):
        some, picked = feed(rank, 3)
        some.prepare(1)
        assert_right(some.batch(1), 1, rank, 3)
        assert picked.asked == [(1, rank, 3)]


def test_picking_that_fails_leaves_nothing_prepared(fake_cuda: None) -> None:
    some, picked = feed()
    some.prepare(1)
    picked.stream = None
    with pytest.raises(AttributeError):
        some.prepare(2)
    picked.stream = TokenStream(IDS, 7, 6, seed=3)
    assert_right(some.batch(1), 1)
    assert_right(some.batch(2), 2)


def test_a_batch_that_nobody_wants_is_let_go(fake_cuda: None) -> None:
    some, _ = feed()
    for step in range(40, 45):
        some.prepare(step)
    some._copies.finish()
    gc.collect()
    assert len(Ids.alive) == 3  # inputs and targets there, and the targets here


def test_on_a_cpu_nothing_is_prepared() -> None:
    picked = Picked()
    some = Prefetcher(picked.stream, CPU)
    some.prepare(1)
    assert some._ready is None
    batch, (inputs, targets) = some.batch(1), picked.stream.batch(1)
    assert torch.equal(batch.inputs, inputs)
    assert torch.equal(batch.targets, targets)
    assert batch.host_targets is batch.targets  # no copy


def trainer(steps: int = 5, device: str = "cpu", **settings: Any) -> Trainer:
    torch.manual_seed(1)
    model = GPT(GPTConfig(vocab_size=19, context_length=7, d_model=12, n_layers=1, n_heads=2))
    settings = {"max_steps": steps, "eval_every": 2, "threads": 1, "precision": "fp32"} | settings
    config = TrainConfig(batch_size=6, **settings)
    return Trainer(model, IDS, IDS[:90], config, device=device)


def test_the_next_batch_is_prepared_while_a_step_computes_and_none_after_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some, happened = trainer(3), []  # type: ignore[var-annotated]

    def noted(name: str, real: Any) -> Any:
        return lambda step: happened.append((name, step, some.step)) or real(step)

    for name in ("batch", "prepare"):
        monkeypatch.setattr(some.prefetcher, name, noted(name, getattr(some.prefetcher, name)))
    list(some.events())
    assert happened == [
        ("batch", 0, 0), ("prepare", 1, 0), ("batch", 1, 1), ("prepare", 2, 1), ("batch", 2, 2),
    ]  # fmt: skip


def test_targets_are_counted_in_host_memory() -> None:
    """By what is counted there the last two sequences, a pass of their own, have no target."""
    some = trainer(micro_batch_size=4)
    batch = some.prefetcher.batch(0)
    host_targets = batch.host_targets.clone()
    host_targets[4:] = -100
    some.model.train()
    summed = some._backward(batch._replace(host_targets=host_targets))
    torch.testing.assert_close(summed, some.model.loss(batch.inputs[:4], batch.targets[:4]).detach())


def losses(some: Trainer) -> list[float]:
    return [event.loss for event in some.events() if isinstance(event, Step)]


@pytest.mark.gpu
@pytest.mark.parametrize("micro", [None, 4])
def test_training_on_a_gpu_is_the_same_with_batches_prepared_and_not(
    micro: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = losses(trainer(40, "cuda", micro_batch_size=micro))
    monkeypatch.setattr(Prefetcher, "prepare", lambda self, step: None)
    monkeypatch.setattr(Prefetcher, "batch", lambda self, step: _copied_plainly(self, step))
    assert losses(trainer(40, "cuda", micro_batch_size=micro)) == pytest.approx(prepared, rel=1e-5)


def _copied_plainly(some: Prefetcher, step: int) -> Any:
    from labkit.training.trainer import DeviceBatch

    inputs, targets = some._pick(step)
    return DeviceBatch(inputs.to(some.device), targets.to(some.device), targets)


@pytest.mark.gpu
def test_a_busy_gpu_never_sees_a_batch_half_copied() -> None:
    """Long kernels, so that copies run far ahead, and many batches, so that their memory is used again."""
    stream = TokenStream(torch.arange(10**6), 511, 64, seed=2)
    some, heavy = Prefetcher(stream, CUDA), torch.randn(4096, 4096, device="cuda")
    sums = []
    for step in range(60):
        batch = some.batch(step)
        heavy = torch.tanh(heavy @ heavy)
        sums.append(batch.inputs.sum() + 3 * batch.targets.sum())
        del batch
        some.prepare(step + 1)
    for step, total in enumerate(sums):
        inputs, targets = stream.batch(step)
        assert total.item() == int(inputs.sum() + 3 * targets.sum())


@pytest.mark.gpu
def test_a_gpu_computes_while_the_next_batch_is_copied() -> None:
    some, heavy = Prefetcher(TokenStream(IDS, 7, 6), CUDA), torch.randn(8192, 8192, device="cuda")
    some.batch(0)
    torch.cuda.synchronize()
    for _ in itertools.repeat(None, 20):
        heavy = torch.tanh(heavy @ heavy)
    computing = torch.cuda.Event()
    computing.record()
    some.prepare(1)
    assert some._copies is not None
    some._copies.synchronize()
    assert not computing.query()  # the copy is done, the products are not
