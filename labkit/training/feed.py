"""The batches of a training on the device that computes them, copied to a GPU while it still computes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from labkit.text import Batches


class Fed(NamedTuple):
    """One process's rows of a batch, each (rows, context_length) int64."""

    inputs: Tensor
    targets: Tensor
    host_targets: Tensor
    """The targets in the computer's own memory: to count them there is not to wait for a GPU."""


class Feed:
    """Batches by step.  On CUDA the next one can be prepared while a step computes.

    What was prepared is no state: a batch depends on its step alone, and one for another step is dropped.
    """

    def __init__(self, data: Batches, device: torch.device, rank: int = 0, world: int = 1) -> None:
        self.data, self.device, self.rank, self.world = data, device, rank, world
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._ready: tuple[int, Fed] | None = None

    def batch(self, step: int) -> Fed:
        """The batch of a step, on the device; a CPU does not wait for its copy, the GPU does."""
        if self._copies is None:
            inputs, targets = self._pick(step)
            return Fed(inputs.to(self.device), targets.to(self.device), targets)
        if self._ready is None or self._ready[0] != step:
            self.prepare(step)
        assert self._ready is not None
        batch, self._ready = self._ready[1], None
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copies)
        for tensor in (batch.inputs, batch.targets):
            tensor.record_stream(computing)  # or a later copy could take its memory while it is read
        return batch

    def prepare(self, step: int) -> None:
        """On CUDA: pick the batch of a step and start to copy it, beside what the GPU computes."""
        if self._copies is None:
            return
        # Only from pinned memory does a copy run beside the program; PyTorch gives none of it away before.
        inputs, targets = (ids.pin_memory() for ids in self._pick(step))
        with torch.cuda.stream(self._copies):
            copies = inputs.to(self.device, non_blocking=True), targets.to(self.device, non_blocking=True)
        self._ready = step, Fed(*copies, targets)

    def _pick(self, step: int) -> tuple[Tensor, Tensor]:
        return self.data.batch(step, rank=self.rank, world=self.world)
