"""How many CPU threads a run computes with: measured when it is fresh, the same again when it goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from labkit.config import as_dict
from labkit.device import (
    autocast,
    choose_threads,
    describe_device,
    remembered_threads,
    seeded,
    set_threads,
    thread_limit,
)

if TYPE_CHECKING:
    from labkit.training.trainer import Trainer

PASS_FLOPS = 20e9
"""Work of one measured pass at most, about a quarter of a second on one core."""


def settle_threads(trainer: Trainer) -> None:
    """Choose the number of threads, unless the configuration, a resumed run or an earlier call has.

    On a CPU that one process has to itself, passes of the first batch are timed with 1, 2, 4, … threads, up
    to PyTorch's own number.  On a GPU, and where several processes share the cores, it stays as it is.
    Takes nothing from a generator, and leaves weights, gradients and modes as they are.
    """
    if trainer.threads is not None:
        return
    if trainer.device.type == "cpu" and trainer.ranks.world == 1 and thread_limit() > 1:
        set_threads(_fastest(trainer))
        trainer.threads_from = "measured"
    trainer.threads = torch.get_num_threads()


def reuse_threads(trainer: Trainer, started: dict[str, Any]) -> None:
    """Compute on with the threads of a row of environment.jsonl, since sums of other parts round otherwise.

    Not where the configuration names a number, nor where the devices or processes are others anyway.
    """
    threads, same_processes = started.get("threads"), started.get("processes") == trainer.ranks.world
    on_cpu = trainer.device.type == "cpu" and str(started.get("device")).startswith("cpu")
    if trainer.config.threads is None and on_cpu and same_processes and type(threads) is int and threads > 0:
        trainer.threads, trainer.threads_from = set_threads(threads), "as before"


def computed_on(trainer: Trainer) -> str:
    """Device, threads and where their number comes from, precision: what a run's first line says."""
    how = f" ({trainer.threads_from})" if trainer.threads_from else ""
    return f"{describe_device(trainer.device)}{how}, {trainer.precision}"


def _fastest(trainer: Trainer) -> int:
    model, context = trainer.model, trainer.model.config.context_length
    ids, _ = trainer.data.batch(0)
    tokens = max(1, int(PASS_FLOPS / model.flops_per_token()))
    ids = ids[: min(trainer.config.micro_batch_size or len(ids), max(1, tokens // context)), :tokens]
    trained = [each for each in model.parameters() if each.requires_grad]

    def compute() -> None:
        with autocast(trainer.device, trainer.precision):
            loss = model.loss(ids, ids)  # any targets take as long, and no value is looked at
        torch.autograd.grad(loss, trained, allow_unused=True)

    def choose() -> int:
        modes = [(module, module.training) for module in model.modules()]
        model.train()
        try:
            with seeded(0, trainer.device):  # dropout draws
                return choose_threads(compute, thread_limit())
        finally:
            for module, mode in modes:
                module.training = mode

    task = {"model": as_dict(model.config), "batch": list(ids.shape), "precision": trainer.precision}
    return remembered_threads(task, choose)
