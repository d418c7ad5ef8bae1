"""Each layer while a model is trained: the size of its activations and gradients, and its dead units."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labkit.model import GPT

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = [
    "activation_rms", "attention_rms", "mlp_rms", "dead_share",
    "gradient_rms", "weight_rms", "gradient_to_weight",
]  # fmt: skip
_Square = tuple[Tensor, int]
"""A sum of squares, and of how many numbers."""


def watch_layers(model: GPT, *, every: int = 10, dead_below: float = 1e-3) -> LayerWatch:
    """Record statistics of every layer while the model is trained: a callback for `fit`.

        with watch_layers(trainer.model) as watch:
            fit(trainer, callbacks=[watch])
        watch.table()

    every: the first step is watched and then each whose number this divides.  dead_below: a hidden unit of an
    MLP is dead in a step if its activation stayed this close to 0 for every token of the batch. GELU and SiLU
    are never quite 0: with GELU, 0.001 is what an input of about -3.5 gives.

    The training is the same, bit for bit, as without: the hooks only read, in training mode alone, and are
    off between the watched steps.  Not for weights that are split among processes (fsdp); of a compiled model
    only gradients and weights are seen.
    Raises ValueError for every below 1.
    """
    if every < 1:
        raise ValueError(f"watch_layers: every={every} must be at least 1.")
    return LayerWatch(model, every, dead_below)


class LayerWatch:
    """What `watch_layers` records.  Call it with the events of a training; `close` removes all hooks."""

    def __init__(self, model: GPT, every: int, dead_below: float) -> None:
        self.model, self.every, self.dead_below = model, every, dead_below
        self.rows: list[dict[str, Any]] = []
        """One per watched step and layer, see `table`."""
        self._hooks: list[Any] = []
        self._attach()

    def __call__(self, event: Any) -> None:
        """Take an event of a training; one with a `grad_norm` is a step, whose gradients are still there."""
        if hasattr(event, "grad_norm") and self._hooks:
            self._record(event.step, event.grad_norm)
        self.close()
        if (not self.rows or (event.step + 1) % self.every == 0) and type(event).__name__ != "End":
            self._attach()

    def close(self) -> None:
        """Remove all hooks from the model; what was recorded stays."""
        while self._hooks:
            self._hooks.pop().remove()

    def __enter__(self) -> LayerWatch:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def table(self) -> pd.DataFrame:
        """A row per watched step and layer: embedding, block 0, …, norm and, if it is not tied, head.

        activation_rms: of the residual stream after the layer.  attention_rms, mlp_rms: of what each adds to
        it, before dropout.  dead_share: of the MLP's hidden units.  gradient_rms: before clipping.
        weight_rms: after the step.  gradient_to_weight: the quotient of these two.
        What a layer does not have is not a number.
        """
        import pandas as pd

        return pd.DataFrame(self.rows, columns=["step", "layer", *COLUMNS])

    def _attach(self) -> None:
        self._squares: dict[str, dict[str, list[_Square]]] = defaultdict(lambda: defaultdict(list))
        self._peaks: dict[str, list[Tensor]] = defaultdict(list)
        self._read(self.model.dropout, "embedding", "activation_rms")  # its input is the sum of embeddings
        for number, block in enumerate(self.model.blocks):
            layer = f"block {number}"
            self._read(block, layer, "activation_rms")
            self._read(block.get_submodule("attention"), layer, "attention_rms")
            self._read(block.get_submodule("mlp"), layer, "mlp_rms")
            if hasattr(block.mlp, "down"):  # an MLP of your own may have no such layer
                self._read_peaks(block.get_submodule("mlp.down"), layer)
        self._read(self.model.norm, "norm", "activation_rms")

    def _read(self, module: nn.Module, layer: str, column: str) -> None:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            if module.training:
                self._squares[layer][column].append(_square(output))

        self._hooks.append(module.register_forward_hook(hook))

    def _read_peaks(self, down: nn.Module, layer: str) -> None:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if module.training:
                hidden = arguments[0].detach().flatten(0, -2)  # (tokens, d_ff)
                self._peaks[layer].append(torch.maximum(hidden.amax(0), -hidden.amin(0)))

        self._hooks.append(down.register_forward_pre_hook(hook))

    def _record(self, step: int, grad_norm: float) -> None:
        """Add the rows of a step.  grad_norm: of all gradients, before they were clipped."""
        model = self.model
        layers: dict[str, list[nn.Module]] = {"embedding": [model.token_embedding]}
        layers["embedding"] += [model.positions] if model.positions is not None else []
        layers |= {f"block {number}": [block] for number, block in enumerate(model.blocks)}
        layers |= {"norm": [model.norm]} | ({} if model.config.tie_weights else {"head": [model.head]})
        squares = {each: _square(each.grad) for each in model.parameters() if each.grad is not None}
        clipped = math.sqrt(torch.stack([square for square, _ in squares.values()]).sum().item())
        for layer, modules in layers.items():
            row: dict[str, Any] = {"step": step, "layer": layer} | dict.fromkeys(COLUMNS, math.nan)
            for column, seen in self._squares[layer].items():
                row[column] = _root_mean(seen)
            if layer in self._peaks:
                peaks = torch.stack(self._peaks[layer]).amax(0)  # (d_ff,)
                row["dead_share"] = (peaks < self.dead_below).double().mean().item()
            weights = [each for module in modules for each in module.parameters()]
            row["weight_rms"] = _root_mean(map(_square, weights))
            trained = [squares[each] for each in weights if each in squares]
            if trained and math.isfinite(grad_norm):  # fp16 skips a step whose gradients overflowed
                row["gradient_rms"] = _root_mean(trained) * (grad_norm / clipped if clipped else 1)
            row["gradient_to_weight"] = row["gradient_rms"] / (row["weight_rms"] or math.nan)
            self.rows.append(row)


@torch.no_grad()
def _square(numbers: Tensor) -> _Square:
    """In float32 at least."""
    dtype = torch.promote_types(numbers.dtype, torch.float32)
    return torch.linalg.vector_norm(numbers, dtype=dtype) ** 2, numbers.numel()


def _root_mean(squares: Iterable[_Square]) -> float:
    """Infinite where one of the numbers is not a number."""
    sums, counts = zip(*squares, strict=True)
    value = math.sqrt(torch.stack(sums).sum().item() / sum(counts))
    return math.inf if math.isnan(value) else value
