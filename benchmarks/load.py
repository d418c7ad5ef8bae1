"""How long a published GPT-2 takes to load, and how much memory, against the plain way and transformers.

    python benchmarks/load.py [--size gpt2-xl] [--rounds 5]

Writes a file of random numbers in GPT-2's published layout (5.8 GiB at gpt2-xl, deleted at the end).  Each
contestant loads it in a process of its own, predicts after 8 tokens, touches every weight, and says what that
took: imports are not counted, the file is in the operating system's cache, the order changes from round to
round.  labkit's load includes the tokenizer and a trial prediction; the others' loads do not.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import resource
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from machine import OtherLoad, ratio, save
from torch import Tensor, nn

from labkit import GPT, GPTConfig
from labkit.config import as_dict
from labkit.weights import load_gpt2
from labkit.weights.gpt2 import GPT2


def with_labkit(folder: Path) -> nn.Module:
    return load_gpt2(folder).model


def the_plain_way(folder: Path) -> nn.Module:
    """Build a model, read the file, copy every tensor: what most courses show."""
    from safetensors.torch import load_file

    model = GPT(GPTConfig(**json.loads((folder / "shape.json").read_text())))
    tensors = load_file(folder / "model.safetensors")
    shapes = {name: len(each) for name, each in model.named_parameters()}
    state: dict[str, Tensor] = {}
    for theirs, ours in GPT2.rows(model):
        tensor = tensors[theirs].T if theirs.endswith(GPT2.transposed) else tensors[theirs]
        state |= dict(zip(ours, tensor.split([shapes[name] for name in ours]), strict=True))
    state["head.weight"] = state["token_embedding.weight"]
    model.load_state_dict(state)
    return model.eval()


def with_transformers(folder: Path) -> nn.Module:
    from transformers import GPT2LMHeadModel

    model: nn.Module = GPT2LMHeadModel.from_pretrained(folder)
    return model


CONTESTANTS: dict[str, Callable[[Path], nn.Module]] = {
    "labkit": with_labkit,
    "plain": the_plain_way,
    "transformers": with_transformers,
}


def measure(name: str, folder: Path) -> dict[str, float]:
    """Seconds and memory of one contestant, in this process."""
    torch.set_num_threads(1)
    if name == "transformers":
        import transformers

        transformers.GPT2LMHeadModel  # noqa: B018 - its import is lazy
    process = psutil.Process()
    before = process.memory_info().rss
    began = time.perf_counter()
    model = CONTESTANTS[name](folder)
    loaded = time.perf_counter() - began
    with torch.inference_mode():
        model(torch.arange(8)[None])
        predicted = time.perf_counter() - began
        total = sum(float(parameter.sum()) for parameter in model.parameters())
    seconds = time.perf_counter() - began
    assert math.isfinite(total)
    status = Path("/proc/self/status").read_text()
    anonymous = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "load": loaded,
        "load_and_predict": predicted,
        "load_and_touch": seconds,
        "peak_bytes": peak * 1024,
        "peak_without_imports": peak * 1024 - before,
        "anonymous_bytes": anonymous * 1024,
    }


def write_random_model(folder: Path, size: str) -> int:
    """A folder as published, written tensor by tensor; returns the bytes of the weights file."""
    config = GPTConfig.preset(size)
    d, layers = config.d_model, config.n_layers
    shapes: dict[str, tuple[int, ...]] = {
        "wte.weight": (config.vocab_size, d),
        "wpe.weight": (config.context_length, d),
    }
    for i in range(layers):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{i}.{norm}.weight": (d,), f"h.{i}.{norm}.bias": (d,)}
        for name, fan_in, fan_out in (
            ("attn.c_attn", d, 3 * d),
            ("attn.c_proj", d, d),
            ("mlp.c_fc", d, 4 * d),
            ("mlp.c_proj", 4 * d, d),
        ):
            shapes |= {f"h.{i}.{name}.weight": (fan_in, fan_out), f"h.{i}.{name}.bias": (fan_out,)}
    shapes |= {"ln_f.weight": (d,), "ln_f.bias": (d,)}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    torch.manual_seed(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            values = torch.ones(shape) if len(shape) == 1 else torch.empty(shape).normal_(std=0.02)
            file.write(values.numpy().data)
    described = {"model_type": "gpt2", "vocab_size": config.vocab_size, "n_positions": config.context_length}
    described |= {
        "n_embd": d,
        "n_layer": layers,
        "n_head": config.n_heads,
        "architectures": ["GPT2LMHeadModel"],
    }
    (folder / "config.json").write_text(json.dumps(described))
    (folder / "shape.json").write_text(json.dumps(as_dict(config)))
    return (folder / "model.safetensors").stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", default="gpt2-xl", help="gpt2, gpt2-medium, gpt2-large or gpt2-xl")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("CONTESTANT", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure[0], Path(options.measure[1]))))
        return
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in CONTESTANTS}
    with tempfile.TemporaryDirectory(prefix="labkit-load-") as scratch:
        folder = Path(scratch)
        size = write_random_model(folder, options.size)
        load = OtherLoad()
        for number in range(options.rounds + 1):  # the first one fills the cache and does not count
            for name in random.Random(number).sample(list(CONTESTANTS), len(CONTESTANTS)):
                command = [sys.executable, __file__, "--measure", name, scratch]
                environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
                done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
                if number:
                    rounds[name].append(json.loads(done.stdout.splitlines()[-1]))
        others = load.cores()
    seconds = {name: [each["load_and_touch"] for each in rounds[name]] for name in CONTESTANTS}
    table = {}
    print(f"{options.size}: {size / 2**30:.2f} GiB, {options.rounds} rounds, other load {others} cores")
    for name, measured in rounds.items():
        middle = {key: statistics.median(each[key] for each in measured) for key in measured[0]}
        table[name] = {
            "load_s": round(middle["load"], 2),
            "load_and_predict_s": round(middle["load_and_predict"], 2),
            "load_and_touch_s": round(middle["load_and_touch"], 2),
            "peak_over_file": round(middle["peak_bytes"] / size, 3),
            "peak_without_imports_over_file": round(middle["peak_without_imports"] / size, 3),
            "anonymous_over_file": round(middle["anonymous_bytes"] / size, 3),
        }
        print(f"{name:<14}" + "  ".join(f"{key} {value}" for key, value in table[name].items()))
    against = {
        f"labkit over {name}": ratio(seconds["labkit"], seconds[name]) for name in ("plain", "transformers")
    }
    print(against)
    result = {"size": options.size, "file_bytes": size, "rounds": options.rounds, "other_load_cores": others}
    save("load", result | {"contestants": table, "time": against, "torch": torch.__version__})


if __name__ == "__main__":
    main()
