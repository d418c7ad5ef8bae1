"""The loss over a large vocabulary, a few rows of logits at a time."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reduction = Literal["mean", "sum"]

SMALL = 2**22
"""So few logits are held all at once: for the characters of a corpus, say, chunks would only cost time."""

CHUNK = {"cpu": 2**23, "cuda": 2**27}
"""Logits held at once: on a CPU about what its last cache takes, on a GPU enough to keep it busy."""


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, ignore_index: int = -100, reduction: Reduction = "mean"
) -> Tensor:
    """Cross-entropy of the logits `hidden @ weight.T` in nats, without ever holding all of them.

    hidden: (tokens, d_model).  weight: (vocab, d_model).  targets: (tokens,); those equal to ignore_index do
    not count.  Equal to F.cross_entropy of the logits up to rounding, and so are its gradients: each chunk's
    are computed here, while its logits are at hand, and the backward pass only scales them.
    Raises ValueError as `check_targets` does.
    Source: Hsu et al. (2024), "Liger Kernel", section 3.2; Wijmans et al. (2024), "Cut Your Losses".
    """
    check_targets(targets, len(weight), ignore_index, "linear_cross_entropy")
    if len(hidden) * len(weight) <= SMALL:
        return cross_entropy(F.linear(hidden, weight), targets, ignore_index, reduction)
    grads = torch.is_grad_enabled()
    wanted = grads and hidden.requires_grad, grads and weight.requires_grad
    loss: Tensor = _LinearCrossEntropy.apply(hidden, weight, targets, ignore_index, reduction, wanted)
    return loss


def check_targets(targets: Tensor, vocab: int, ignore_index: int, caller: str) -> None:
    """Raise ValueError for targets that are neither tokens nor ignore_index.

    On a GPU this would wait for the device at every step; there the loss itself asserts.
    """
    if targets.dtype.is_floating_point or targets.dtype == torch.bool:
        raise ValueError(f"{caller}: targets are {targets.dtype}; expected whole numbers (torch.long).")
    if targets.device.type != "cpu" or torch.compiler.is_compiling():
        return
    counted = targets[targets != ignore_index]
    if not counted.numel():
        return
    low, high = (int(limit) for limit in counted.aminmax())
    if low < 0 or high >= vocab:
        raise ValueError(
            f"{caller}: targets range from {low} to {high}; this model knows 0 to {vocab - 1}. Was "
            "the text encoded with another tokenizer? A target that does not count is "
            f"{ignore_index} (ignore_index)."
        )


def cross_entropy(
    logits: Tensor, targets: Tensor, ignore_index: int = -100, reduction: Reduction | Literal["none"] = "mean"
) -> Tensor:
    """`F.cross_entropy`, in float32 at least: under autocast logits come in half precision."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(logits, targets, ignore_index=ignore_index, reduction=reduction)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        reduction: Reduction,
        wanted: tuple[bool, bool],
    ) -> Tensor:
        device = hidden.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
        exact = torch.promote_types(dtype, torch.float32)  # exp and log need more than half precision
        counts = (targets != ignore_index).to(exact)[:, None]  # (tokens, 1)
        scale = 1 / counts.sum() if reduction == "mean" else torch.ones_like(counts.sum())
        matrix = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden) if wanted[0] else None
        grad_weight = torch.zeros_like(weight) if wanted[1] else None
        loss = torch.zeros_like(scale)
        size, buffers = _buffers(len(hidden), len(weight), dtype, exact, hidden.device)
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            x, counted = hidden[part].to(dtype), counts[part]
            y = torch.where(counted > 0, targets[part, None], 0)  # (rows, 1)
            logits, probs = _predict(x, matrix, exact, buffers)  # (rows, vocab, and columns of -inf or 0)
            # log of the sum of exp(logits): exact, since the largest probability is no smaller than 1 / vocab
            log_sum = logits.amax(-1, keepdim=True).to(exact) - probs.amax(-1, keepdim=True).log()
            loss += (counted * (log_sum - logits.gather(1, y).to(exact))).sum()
            if not any(wanted):
                continue
            probs.scatter_(1, y, probs.gather(1, y) - 1)  # the gradient of each row's loss
            slopes = probs[:, : len(weight)].to(dtype)
            if grad_hidden is not None:
                grad_hidden[part] = (slopes @ matrix) * (counted * scale)
            if grad_weight is None:
                continue
            if dtype == weight.dtype:
                grad_weight.addmm_(slopes.T, (x * (counted * scale)).to(dtype))
            else:  # scaled after the product: half precision has no room for x / count
                grad_weight += (slopes.T @ (x * counted.to(dtype))) * scale
        ctx.save_for_backward(grad_hidden, grad_weight)
        return loss * scale

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.saved_tensors
        if grad_output.device.type == "cpu" and not torch.compiler.is_compiling():
            # As almost always: handed over as they are, unless the graph is kept to go backward again.
            once = not torch._C._autograd._get_current_graph_task_keep_graph()
            if once and grad_output.item() == 1:
                return *gradients, None, None, None, None
        scaled = (None if each is None else each * grad_output for each in gradients)
        return *scaled, None, None, None, None


Buffers = tuple[Tensor, Tensor] | None


def _buffers(
    tokens: int, vocab: int, dtype: torch.dtype, exact: torch.dtype, device: torch.device
) -> tuple[int, Buffers]:
    """How many rows make a chunk, and where to put their logits and probabilities.

    The buffers' rows begin on cache lines: a product into such is 1.4 times as fast on a CPU as one into rows
    of 50,257.  The columns that fill them up hold -inf, which stands for a probability of 0.
    """
    width = -(-vocab // 16) * 16
    chunks = max(1, -(-tokens * width // CHUNK.get(device.type, CHUNK["cpu"])))
    size = max(1, -(-tokens // chunks))
    if torch.compiler.is_compiling():  # the compiler has its own
        return size, None
    logits = torch.empty(size, width, dtype=dtype, device=device)
    logits[:, vocab:] = -torch.inf
    return size, (logits, torch.empty(size, width, dtype=exact, device=device))


def _predict(x: Tensor, matrix: Tensor, exact: torch.dtype, buffers: Buffers) -> tuple[Tensor, Tensor]:
    """Logits and probabilities of some rows."""
    if buffers is None:
        logits = x @ matrix.T
        return logits, torch.softmax(logits, -1, dtype=exact)
    logits, probs = (each[: len(x)] for each in buffers)
    torch.mm(x, matrix.T, out=logits[:, : len(matrix)])
    return logits, torch.softmax(logits, -1, dtype=exact, out=probs)
