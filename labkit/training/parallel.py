"""Several processes train one model together: each reads its part of every batch, and the first one writes.

torchrun starts the processes.  ddp: each holds the whole model, gradients are averaged.  fsdp: weights,
gradients and moments are split among them, and a block's weights are put together while it computes.

What is split is saved by torch.distributed.checkpoint as safetensors, which any number of processes can read;
its default format would be read with pickle.
"""

from __future__ import annotations

import os
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from labkit.config import TrainConfig
from labkit.device import best_device
from labkit.model import GPT
from labkit.text.batches import IGNORE
from labkit.training.optim import AnyOptimizer

TIMEOUT = timedelta(minutes=10)
"""How long a process waits for one that is alive and silent; one that dies is noticed at once."""


class LostProcessError(RuntimeError):
    """Another process of this training has died or stopped answering."""


class Ranks:
    """The processes that train together: one, or those that `launched` has joined.

    rank: the number of this process; 0 writes.  world: how many there are.
    `sum`, `any` and `broadcast` wait for all of them, so all have to call them, in the same order.
    """

    def __init__(self) -> None:
        joined = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if joined else 0
        self.world = dist.get_world_size() if joined else 1
        self.sharded = False
        """Whether the weights are split among the processes."""
        self._module: Any = None

    def wrap(self, model: GPT, config: TrainConfig, precision: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The model's loss; its gradients are the mean of those of all processes.

        With fsdp the model is split in place.  Raises ValueError for Muon or fp16 with fsdp.
        """
        if self.world == 1:
            return model.loss
        if config.parallel == "ddp":
            self._module = nn.parallel.DistributedDataParallel(_Loss(model))
            return self._module
        if config.optimizer == "muon":
            raise ValueError(
                "TrainConfig: optimizer='muon' needs whole matrices, and with parallel='fsdp' each process "
                "holds a part of them. Choose parallel='ddp' or optimizer='adamw'."
            )
        if precision == "fp16":
            raise ValueError(
                "TrainConfig: precision='fp16' skips steps whose gradient overflows; with parallel='fsdp' "
                "each process would see the overflow of its own part only. Choose 'bf16', or parallel='ddp'."
            )
        self._module, self.sharded = model, True
        _split(model, self.world)
        return model.loss

    def gradient_sync(self, last: bool) -> AbstractContextManager[Any]:
        """Around each forward and backward pass of a step: gradients are exchanged in the last one only."""
        if self.sharded:
            self._module.set_requires_gradient_sync(last)
        elif self.world > 1 and not last:
            return self._module.no_sync()
        return nullcontext()

    def rows(self, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Every world-th window from rank, as many for each process: the last may count no target."""
        missing = -len(inputs) % self.world
        if missing:
            inputs = torch.cat([inputs, inputs[:1].expand(missing, -1)])
            targets = F.pad(targets, (0, 0, 0, missing), value=IGNORE)
        return inputs[self.rank :: self.world], targets[self.rank :: self.world]

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        if self.world == 1:
            return value
        total = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(total)
        return total.item()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return self.sum(flag) > 0

    def broadcast(self, value: Any = None) -> Any:
        """What process 0 gives; the others give nothing."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def print(self, text: str) -> None:
        """Print once, not once per process."""
        if self.rank == 0:
            print(text)


class _Loss(nn.Module):
    """What DistributedDataParallel needs: a module whose forward is the loss."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.model.loss(ids, targets)


def _split(model: GPT, world: int) -> None:
    """Split every block's weights, then the rest, after all processes have those of process 0."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    for tensor in (*model.parameters(), *model.buffers()):
        dist.broadcast(tensor.data, 0)
    mesh = init_device_mesh(model.token_embedding.weight.device.type, (world,))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh)
        # Made here, or generation would make tensors of inference mode that training cannot use.
        module.unshard()
        module.reshard()
    register_fsdp_forward_method(model, "loss")  # which reads weights without calling the model itself


def whole(tensor: Tensor) -> Tensor:
    """A tensor that is split among the processes, put together; any other as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


@contextmanager
def launched(device: str | None = None) -> Iterator[Ranks]:
    """Join the processes that torchrun started; without torchrun this process is alone.

    Each takes the GPU of its number on its machine, or a share of the CPU.
    At the end each waits for the others.
    Raises LostProcessError in place of the error that the death of another process causes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        yield Ranks()
        return
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"device={device!r}: under torchrun give cpu or cuda; each process takes its own.")
    on_cuda = best_device(device).type == "cuda"
    if on_cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    try:
        shared, rank, world = next(rendezvous("env://", timeout=TIMEOUT))
        store = fresh_store(shared, rank, world)
        backend = "cpu:gloo,cuda:nccl" if on_cuda else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=TIMEOUT)
        yield Ranks()
        _wait_for_all()
    except RuntimeError as error:
        if is_loss(error):
            raise LostProcessError("Another process of this training has ended; it may say why.") from error
        raise
    dist.destroy_process_group()  # after an error it could wait for the others


_barriers: list[dist.Work] = []


def _wait_for_all() -> None:
    """Wait until all processes are here, and keep what gloo's threads have not let go of.

    A model keeps its process group, and so gloo's threads, until the interpreter ends.  A thread that is the
    last to hold a tensor waits for the interpreter to free it, and aborts the process if that is ending
    (Python < 3.14).  A barrier holds the operations before it, so no thread is the last while it is kept.
    """
    barrier = dist.barrier(async_op=True)
    barrier.wait()
    _barriers.append(barrier)


def fresh_store(shared: dist.Store, rank: int, world: int) -> dist.Store:
    """A part of torchrun's store that these processes alone have written to.

    torchrun keeps its store when it starts processes again, and what the dead ones wrote would be read.  So
    each process writes a name that nobody had before, the first one answers to the newest name of each with
    its own, until all have taken it.
    """
    name = uuid.uuid4().hex
    if rank:
        shared.set(f"labkit/{rank}", name)
        name_of_first = shared.get(f"labkit/{rank}/{name}").decode()
        shared.set(f"labkit/{name_of_first}/{rank}", "")
        return dist.PrefixStore(name_of_first, shared)
    for other in range(1, world):
        end = time.monotonic() + TIMEOUT.total_seconds()
        while not shared.check([f"labkit/{name}/{other}"]):
            if shared.check([f"labkit/{other}"]):
                shared.set(f"labkit/{other}/{shared.get(f'labkit/{other}').decode()}", name)
            if time.monotonic() > end:
                raise LostProcessError(f"Process {other} of {world} has not started.")
            time.sleep(0.01)
    return dist.PrefixStore(name, shared)


def is_loss(error: RuntimeError) -> bool:
    """Whether an error is what the loss of another process causes."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def launch_id() -> str | None:
    """What names one call of torchrun, the same after it has started the processes again; None without it."""
    job = os.environ.get("TORCHELASTIC_RUN_ID")
    if job != "none":  # torchrun's word where nobody named the job
        return job
    import platform

    import psutil

    agent = psutil.Process(os.getppid())
    return f"{platform.node()} {agent.pid} {agent.create_time()}"


def command() -> str:
    """How `labkit` is called here: by itself or by torchrun."""
    count = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return (
        f"torchrun --nproc-per-node {count} -m labstudio" if "TORCHELASTIC_RUN_ID" in os.environ else "labkit"
    )


def restarted() -> bool:
    """Whether torchrun has started processes again after one of this machine was lost."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


SHARDS = "shard-*.safetensors"
MOMENT = "optimizer."
"""What the names of an optimizer's tensors begin with; the parameter's name and the moment's follow."""


def write_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors to an existing folder, each process what it holds.  All processes have to call it.

    Raises OSError, in all of them, when one cannot write.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageWriter, save

    with _plain_errors():
        save(tensors, storage_writer=HuggingFaceStorageWriter(str(folder), save_distributed=True))


def read_shards(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Fill tensors, split or whole, from the safetensors files of a folder, however those are split.

    Raises OSError, naming the tensor, for one that is not there or has another shape.
    """
    from torch.distributed.checkpoint import HuggingFaceStorageReader, load

    with _plain_errors(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        load(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)


def stored_weights(folder: Path) -> set[str]:
    """The names of the weights in the safetensors files of a folder."""
    return {name for name in _stored_names(folder) if not name.startswith(MOMENT)}


def _stored_names(folder: Path) -> set[str]:
    from torch.distributed.checkpoint import HuggingFaceStorageReader

    return set(HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata)


def optimized(model: nn.Module, optimizer: AnyOptimizer) -> tuple[list[str], list[Tensor]]:
    """Names and parameters of what an optimizer trains, in its order."""
    stored = model.state_dict(keep_vars=True)  # unlike named_parameters, never what a forward pass left whole
    names = {id(each): name for name, each in reversed(stored.items())}  # of a tied head, the embedding's
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    return [names[id(each)] for each in parameters], parameters


def split_moments(state: dict[str, Any], names: list[str]) -> dict[str, Tensor]:
    """Take the moments out of an optimizer's state, in place, under the names of its parameters.

    names: those of the optimizer's parameters, in its order.
    """
    moments = {}
    for index, entries in state["state"].items():
        for key in [key for key, value in entries.items() if value.ndim]:
            moments[f"{MOMENT}{names[index]}.{key}"] = entries[key]
        state["state"][index] = {key: value for key, value in entries.items() if not value.ndim}
    return moments


def place_moments(folder: Path, state: dict[str, Any], names: list[str], parameters: list[Tensor]) -> None:
    """Make the moments in an optimizer's state, in place, those of a checkpoint, split as the parameters are.

    names, parameters: those of the optimizer, in its order.
    """
    if any(folder.glob(SHARDS)):
        moments = {}
        for stored in _stored_names(folder):
            if stored.startswith(MOMENT):
                name, key = stored.removeprefix(MOMENT).rsplit(".", 1)
                index = names.index(name)
                moments[stored] = state["state"][index][key] = torch.empty_like(parameters[index])
        read_shards(folder, moments)
    elif any(hasattr(each, "full_tensor") for each in parameters):
        for index, entries in state["state"].items():
            for key, value in entries.items():
                entries[key] = _split_as(value, parameters[index])


def _split_as(value: Tensor, parameter: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor) or not value.ndim:
        return value
    on_device = value.to(parameter.device)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """CheckpointException is no Exception: an `except Exception` would miss it."""
    from torch.distributed.checkpoint import CheckpointException

    try:
        yield
    except CheckpointException as error:
        rank, (cause, _) = next(iter(error.failures.items()))
        raise OSError(f"process {rank}: {cause}") from error
