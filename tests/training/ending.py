"""What test_distributed.py runs in two processes: which thread frees a tensor after `launched`."""

from __future__ import annotations

import json
import sys
import threading
import time
import weakref
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from labkit.training.parallel import launched


def main(folder: Path, times: int = 30) -> None:
    sys.setswitchinterval(100)  # gloo's threads get the interpreter only while this one waits
    models: list[nn.Module] = []
    freed_by: list[int] = []
    for _ in range(times):
        total = torch.ones(1)
        weakref.finalize(total, lambda: freed_by.append(threading.get_ident()))
        with launched("cpu") as ranks:
            models.append(nn.parallel.DistributedDataParallel(nn.Linear(3, 2)))  # keeps the threads alive
            dist.all_reduce(total)
        del total
        time.sleep(0.02)
    others = [each for each in freed_by if each != threading.get_ident()]
    (folder / f"others-{ranks.rank}.json").write_text(json.dumps(len(others)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
