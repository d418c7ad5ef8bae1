"""Looking into a model while it reads."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from labkit.model import GPT, evaluating


def module_inputs(model: GPT, ids: Tensor, modules: Iterable[nn.Module]) -> list[Tensor]:
    """What each of these modules of the model is given while it reads ids, in the order of the calls.

    ids: (batch, seq).  Read in evaluation mode and without gradients; the model stays as it was. What another
    thread, training perhaps, gives them meanwhile is left alone.
    Raises ValueError for ids that are empty or that the model cannot read.
    """
    if ids.numel() == 0:
        raise ValueError(f"ids of shape {tuple(ids.shape)} hold no tokens. Give a text of at least one.")
    inputs: list[Tensor] = []
    reader = threading.get_ident()

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if threading.get_ident() == reader:
            inputs.append(arguments[0])

    with ExitStack() as hooks, evaluating(model), torch.no_grad():
        for module in modules:
            hooks.enter_context(module.register_forward_pre_hook(keep))
        model.hidden(ids)
    return inputs
