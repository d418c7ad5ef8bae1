"""Each layer while a model is trained: how large its activations and gradients are, and what is dead."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from statistics import median_low
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from labkit.model import GPT

if TYPE_CHECKING:
    import pandas as pd


COLUMNS = ("activation_rms", "attention_rms", "mlp_rms", "dead_share", "gradient_rms", "weight_rms")
MANY_DEAD, LARGE, OUTLIER, SUDDEN = 0.5, 100.0, 100.0, 10.0
"""When to speak up: this share of a layer is dead; it adds this much, having read values of about 1; it is
this many times the median layer; its gradient this many times the median of the steps before."""


def watch_layers(model: GPT, *, every: int = 10, dead_below: float = 1e-3) -> LayerWatch:
    """Record statistics of every layer while the model is trained: a callback for `fit`.

        with watch_layers(trainer.model) as watch:
            fit(trainer, callbacks=[watch])
        watch.table()

    every: the first step is watched and then each whose number this divides.  dead_below: a hidden unit of an
    MLP is dead in a step if no token of its batch moved it this far from 0, in either direction. GELU and
    SiLU are never quite 0: with GELU, 0.001 is what an input of about -3.5 gives.

    The training is the same, bit for bit, as without: hooks on the layers read what passes, in training mode
    alone, and are off between the watched steps.  Not for weights that are split among processes (fsdp); of a
    compiled model only gradients and weights are seen.
    Raises ValueError for every below 1.
    """
    if every < 1:
        raise ValueError(f"watch_layers: every={every} must be at least 1.")
    return LayerWatch(model, every, dead_below)


class LayerWatch:
    """What `watch_layers` records.  Call it with the events of a training; `close` takes all hooks off."""

    def __init__(self, model: GPT, every: int, dead_below: float) -> None:
        self.model, self.every, self.dead_below = model, every, dead_below
        self.rows: list[dict[str, Any]] = []
        """One per watched step and layer, see `table`."""
        self._hooks: list[Any] = []
        self._squares: dict[tuple[str, str], list[tuple[Tensor, int]]] = {}
        self._peaks: dict[str, list[Tensor]] = {}
        self._attach()

    def __call__(self, event: Any) -> None:
        """Take an event of a training. One that says that a step has been taken finds its gradients there."""
        if hasattr(event, "grad_norm") and self._hooks:
            self._record(event.step, event.grad_norm)
        self.close()
        if (not self.rows or (event.step + 1) % self.every == 0) and type(event).__name__ != "End":
            self._attach()

    def close(self) -> None:
        """Take all hooks off the model; what was recorded stays."""
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

        return pd.DataFrame(self.rows, columns=["step", "layer", *COLUMNS, "gradient_to_weight"])

    def _attach(self) -> None:
        model = self.model
        self._squares, self._peaks = defaultdict(list), defaultdict(list)
        self._read(model.dropout, "embedding", "activation_rms")  # where embeddings come together
        for number, block in enumerate(model.blocks):
            name = f"block {number}"
            self._read(block, name, "activation_rms")
            for part in ("attention", "mlp"):
                self._read(block.get_submodule(part), name, f"{part}_rms")
            if hasattr(block.mlp, "down"):  # an MLP of your own may have no such layer
                down = block.get_submodule("mlp.down")
                self._hooks.append(down.register_forward_pre_hook(self._peaks_of(name)))
        self._read(model.norm, "norm", "activation_rms")

    def _read(self, module: nn.Module, layer: str, column: str) -> None:
        def hook(module: nn.Module, arguments: Any, output: Tensor) -> None:
            if module.training:
                self._squares[layer, column].append((_square(output), output.numel()))

        self._hooks.append(module.register_forward_hook(hook))

    def _peaks_of(self, layer: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            if module.training:
                hidden = arguments[0].detach().flatten(0, -2)  # (tokens, d_ff)
                self._peaks[layer].append(torch.maximum(hidden.amax(0), -hidden.amin(0)))

        return hook

    def _record(self, step: int, grad_norm: float) -> None:
        """Rows of a step that has been taken.  grad_norm: of all gradients, before they were clipped."""
        model = self.model
        layers: dict[str, list[nn.Module]] = {"embedding": [model.token_embedding]}
        layers["embedding"] += [model.positions] if model.positions is not None else []
        layers |= {f"block {number}": [block] for number, block in enumerate(model.blocks)}
        layers |= {"norm": [model.norm]} | ({} if model.config.tie_weights else {"head": [model.head]})
        slopes = {each: _square(each.grad) for each in model.parameters() if each.grad is not None}
        clipped = _root(slopes.values(), 1)
        for layer, modules in layers.items():
            weights = [each for module in modules for each in module.parameters()]
            trained = [each for each in weights if each in slopes]
            row: dict[str, Any] = {"step": step, "layer": layer} | dict.fromkeys(COLUMNS, math.nan)
            for (name, column), squares in self._squares.items():
                if name == layer:
                    row[column] = _root([each for each, _ in squares], sum(count for _, count in squares))
            if layer in self._peaks:
                peaks = torch.stack(self._peaks[layer]).amax(0)  # (d_ff,)
                row["dead_share"] = (peaks < self.dead_below).double().mean().item()
            row["weight_rms"] = _root(map(_square, weights), sum(each.numel() for each in weights))
            if trained and math.isfinite(grad_norm):  # else fp16 had no room for them: the step was skipped
                root = _root((slopes[each] for each in trained), sum(each.numel() for each in trained))
                row["gradient_rms"] = root * (grad_norm / clipped if clipped else 1)
            row["gradient_to_weight"] = row["gradient_rms"] / (row["weight_rms"] or math.nan)
            self.rows.append(row)

    def alarms(self) -> list[str]:
        """In plain words what looks wrong with each layer, and since when; nothing in a sound run.

        That is: attention or an MLP that adds values above 100 or 100 times those of the median block, a
        gradient 100 times that of the median block or 10 times its own median of the watched steps before,
        half of the hidden units dead.
        """
        found: dict[tuple[str, str], str] = {}
        for number, row in enumerate(self.rows):
            earlier = [each for each in self.rows[:number] if each["layer"] == row["layer"]]
            blocks = [each for each in self.rows if each["step"] == row["step"] and "block" in each["layer"]]
            for kind, words in _wrong(row, earlier, blocks):
                found.setdefault((row["layer"], kind), f"step {row['step']}, {row['layer']}: {words}")
        return list(found.values())


_ROWS = list[dict[str, Any]]


def _wrong(row: dict[str, Any], earlier: _ROWS, blocks: _ROWS) -> Iterator[tuple[str, str]]:
    """What looks wrong with one row, as kind and words.  blocks: all blocks at the same step."""
    for column, what in (("attention_rms", "attention"), ("mlp_rms", "MLP"), ("gradient_rms", "gradient")):
        value, typical = row[column], median_low([each[column] for each in blocks])
        if what != "gradient" and value > LARGE:
            yield (
                what,
                f"its {what} adds values of about {value:,.0f}, having read values of about 1: it explodes.",
            )
        elif row in blocks and value > OUTLIER * typical > 0:
            yield what, f"its {what} is {value / typical:,.0f} times that of the median block: it explodes."
        elif what == "gradient" and len(earlier) > 2:
            before = median_low([each[column] for each in earlier])
            if value > SUDDEN * before:
                yield (
                    "growth",
                    f"its gradient is {value / before:,.0f} times what it was before: it explodes.",
                )
    if row["dead_share"] >= MANY_DEAD:
        yield "dead", f"{row['dead_share']:.0%} of the hidden units of its MLP are dead: no token moved them."


@torch.no_grad()
def _square(numbers: Tensor) -> Tensor:
    """Sum of squares, in float32 at least."""
    dtype = torch.promote_types(numbers.dtype, torch.float32)
    return torch.linalg.vector_norm(numbers, dtype=dtype) ** 2


def _root(squares: Iterable[Tensor], count: int) -> float:
    """Root of the mean of so many numbers; infinite where one was not a number."""
    value = math.sqrt(torch.stack(list(squares)).sum().item() / count)
    return math.inf if math.isnan(value) else value
