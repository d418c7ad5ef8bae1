"""How fast is a training step, and how much memory does it take, beside a plain trainer and transformers?

Each contestant lives in a process of its own, so that none profits from another's settings; they train in
turns, a few steps each, on the same shape and batches of the same size.  The plain trainer is reference.py;
transformers is its GPT-2 with its own loss, trained by the same plain loop.  labkit trains through its
Trainer, with AdamW as the others do, and with its own recipe's optimizer, Muon, to see what that costs.
Memory: the process's peak over what it held before the model was built, less 16 bytes for each parameter
(weight, gradient and two moments in float32).

    python benchmarks/train_step.py [--rounds 9] [--quick] [--device cuda]
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import psutil
import torch
from machine import BUSY, alternately, calibrate, matmul_limit, ratio, save
from reference import ReferenceGPT, Shape, build_adamw, list_built_batch, train_step
from torch import Tensor, nn

from labkit import GPT, GPTConfig, TrainConfig, Trainer
from labkit.analysis.costs import DEVICES, mfu
from labkit.training import Step

SIZES: dict[str, dict[str, Any]] = {
    "char-mini": {"preset": "char-mini", "batch": 12, "context": 64, "steps": 10},
    "nano": {"preset": "nano", "batch": 4, "context": 128, "steps": 2},
    "gpt2": {"preset": "gpt2", "batch": 16, "context": 1024, "steps": 10},  # on a GPU
}
CONTESTANTS = ("reference", "transformers", "labkit", "labkit, Muon")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--quick", action="store_true", help="3 rounds, busy or not; writes nothing")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    rounds = 3 if options.quick else options.rounds
    busy = None if options.quick else BUSY
    if busy is not None:
        calibrate()
    rows = []
    for size in ("gpt2",) if options.device == "cuda" else ("char-mini", "nano"):
        for threads in (
            (1,) if options.device == "cuda" else sorted({1, psutil.cpu_count(logical=False) or 1})
        ):
            rows.append(measure(size, threads, options.device, rounds, busy))
            print_row(rows[-1])
    if not options.quick:
        name = "train_step" if options.device == "cpu" else f"train_step_{options.device}"
        save(name, {"rows": rows, "rounds": rounds, "device": device_name(options.device)})


def measure(size: str, threads: int, device: str, rounds: int, busy: float | None) -> dict[str, Any]:
    setting = SIZES[size]
    config = model_config(setting)
    processes = {name: Contestant(name, size, threads, device) for name in CONTESTANTS}
    calls = {name: each.train for name, each in processes.items()}
    seconds = alternately(rounds, calls, busy)
    said = {name: each.end() for name, each in processes.items()}
    tokens = setting["batch"] * setting["context"] * setting["steps"]
    rate = {name: tokens / statistics.median(times) for name, times in seconds.items()}
    flops = GPT(config).flops_per_token(setting["context"])
    peak = peak_flops(config, setting, threads, device)
    beyond = {name: each["peak"] - 16 * each["parameters"] for name, each in said.items()}
    return {
        "size": size,
        "threads": threads,
        "parameters": {name: each["parameters"] for name, each in said.items()},
        "tokens_per_s": {name: round(each, 1) for name, each in rate.items()},
        "ms_per_step": {
            name: round(1e3 * statistics.median(times) / setting["steps"], 2)
            for name, times in seconds.items()
        },
        "against_reference": {name: ratio(seconds["reference"], times) for name, times in seconds.items()},
        "against_transformers": {
            name: ratio(seconds["transformers"], times) for name, times in seconds.items()
        },
        "share_of_matmul_limit": {
            name: round(mfu(each, flops, peak["large"]), 3) for name, each in rate.items()
        },
        "limits": {name: round(each / 1e9, 1) for name, each in peak.items()},
        "memory_beyond_16_bytes_mb": {name: round(each / 1e6, 1) for name, each in beyond.items()},
        "memory_against_reference": round(beyond["labkit"] / beyond["reference"], 2),
    }


class Contestant:
    """A process that trains when it is told to."""

    def __init__(self, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()
        self.pipe.recv()  # ready

    def train(self) -> None:
        self.pipe.send("train")
        self.pipe.recv()

    def end(self) -> dict[str, int]:
        self.pipe.send("end")
        said: dict[str, int] = self.pipe.recv()
        self.process.join()
        return said


def serve(pipe: Connection, name: str, size: str, threads: int, device: str) -> None:
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    if name == "transformers":
        import transformers  # noqa: F401
    warm_up = build_adamw(nn.Linear(512, 512, device=device), 1e-3)  # the libraries' own memory
    torch.randn(512, 512, device=device) @ torch.randn(512, 512, device=device)
    warm_up.step()
    before = memory(device)
    step, parameters = build(name, SIZES[size], threads, device)
    pipe.send("ready")
    while pipe.recv() == "train":
        for _ in range(SIZES[size]["steps"]):
            step()
        pipe.send("done")
    pipe.send({"peak": memory(device, peak=True) - before, "parameters": parameters})


def build(name: str, setting: dict[str, Any], threads: int, device: str) -> tuple[Callable[[], Any], int]:
    """One step of training, and how many parameters are trained."""
    config = model_config(setting)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, 1_000_000).astype(np.uint16)
    on_cuda = device == "cuda"
    if name.startswith("labkit"):
        train = TrainConfig(
            max_steps=10**6, batch_size=setting["batch"], eval_every=0, eval_windows=1, threads=threads,
            optimizer="muon" if "Muon" in name else "adamw", compile=on_cuda,
        )  # fmt: skip
        model: nn.Module = GPT(config)
        trainer = Trainer(model, ids, ids[:5000].astype(np.int64), train, device=device)  # type: ignore[arg-type]
        events = (event for event in trainer.events() if isinstance(event, Step))
        return lambda: next(events), model.num_parameters()  # type: ignore[operator]
    model = ReferenceGPT(Shape.of(config)) if name == "reference" else TheirGPT2(config)
    parameters = sum(each.numel() for each in model.parameters())
    if on_cuda:
        model = OnGPU(model.cuda())
    optimizer = build_adamw(model, 1e-3, fused=on_cuda)

    def step() -> float:
        return train_step(model, optimizer, 1e-3, list_built_batch(ids, setting["context"], setting["batch"]))

    return step, parameters


class OnGPU(nn.Module):
    """A model compiled, in bfloat16, and fed from the CPU, as careful people train."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.compiled = torch.compile(model)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast("cuda", torch.bfloat16):
            return self.compiled(ids.cuda(), targets.cuda())


class TheirGPT2(nn.Module):
    """transformers' GPT-2 of the same shape, with the loss it computes itself."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        from their_gpt2 import build_gpt2  # transformers takes seconds to import, in this process alone

        self.model = build_gpt2(config)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        return self.model(ids, labels=ids).loss  # it shifts them itself


def model_config(setting: dict[str, Any]) -> GPTConfig:
    """The exact GELU for all: GPT-2's approximation is slower everywhere."""
    return GPTConfig.preset(setting["preset"], context_length=setting["context"], activation="gelu")


def peak_flops(config: GPTConfig, setting: dict[str, Any], threads: int, device: str) -> dict[str, float]:
    """FLOP/s of matrix products: measured here on a CPU, from the maker's table on a GPU."""
    if device == "cuda":
        return {
            "large": next(each.peak_flops for name, each in DEVICES.items() if name in device_name(device))
        }
    rows, d_model = setting["batch"] * setting["context"], config.d_model
    shapes = {"feed-forward": (rows, d_model, config.ff_dim), "output": (128, d_model, config.vocab_size)}
    return {name: 1e9 * rate for name, rate in matmul_limit(threads, shapes).items()}


def print_row(row: dict[str, Any]) -> None:
    print(f"{row['size']}, {row['threads']} thread(s); limits in GFLOP/s: {row['limits']}")
    for name in CONTESTANTS:
        against = "  ".join(
            f"{each['median']:.2f}x {other} ({each['low']}-{each['high']})"
            for other in ("reference", "transformers")
            for each in [row[f"against_{other}"][name]]
        )
        print(
            f"  {name:13} {row['tokens_per_s'][name]:>9,.0f} tokens/s {row['ms_per_step'][name]:>9,.1f} ms  "
            f"{row['share_of_matmul_limit'][name]:>4.0%} of the limit  "
            f"{row['memory_beyond_16_bytes_mb'][name]:>7,.0f} MB  {against}",
            flush=True,
        )


def device_name(device: str) -> str:
    return torch.cuda.get_device_name() if device == "cuda" else device


def memory(device: str, peak: bool = False) -> int:
    """Bytes in use by this process: resident, or on the GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    if not peak:
        return psutil.Process().memory_info().rss
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
