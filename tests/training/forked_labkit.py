"""Runs `labkit` in forked processes, so that a start costs no import of PyTorch.

Reads one command a line (a JSON list of arguments); answers with the process id, then with its exit code.
What the commands print goes to the file named as the first argument.
"""

from __future__ import annotations

import json
import os
import sys

import torch._dynamo  # noqa: F401  # optimizers import it, which takes seconds

import labkit.generation
import labkit.training  # noqa: F401
from labstudio.cli import main


def child(arguments: list[str]) -> int:
    os.nice(5)  # who is to kill it must not come too late
    log = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    try:
        main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


for line in sys.stdin:
    if (pid := os.fork()) == 0:
        os._exit(child(json.loads(line)))
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
