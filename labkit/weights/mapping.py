"""Between published weights and our GPT: tables of names, each read in both directions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labkit.config import GPTConfig
from labkit.model import GPT, RotaryPositions, SinusoidalPositions
from labkit.text import Tokenizer
from labkit.weights.checks import check_numbers, some

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Rule:
    """One row of a mapping table: a published tensor, and the parameter or parameters that it becomes.

    theirs, ours: names; {i} stands for the number of a layer.  Where several of ours share the published
    tensor, it is cut along its output features, in this order.
    transpose: stored as (in, out), as GPT-2's linear layers are; `nn.Linear` has (out, in).
    interleaved: rotary pairs are neighbours, features (0, 1), (2, 3), …, as in GGUF files; ours are the
    features i and i + head_dim / 2.
    """

    theirs: str
    ours: str | tuple[str, ...]
    transpose: bool = False
    interleaved: bool = False

    def names(self, layer: int) -> tuple[str, list[str]]:
        """The published name and ours, in one layer."""
        ours = [self.ours] if isinstance(self.ours, str) else self.ours
        return self.theirs.replace("{i}", str(layer)), [name.replace("{i}", str(layer)) for name in ours]

    def to_ours(self, tensor: Tensor, sizes: Sequence[int], head_dim: int) -> list[Tensor]:
        """Our tensors of so many output features each: views of the published one, except interleaved ones.

        Raises ValueError where its output features are not as many.
        """
        shape = tuple(tensor.shape)
        tensor = tensor.mT if self.transpose and tensor.ndim > 1 else tensor
        if len(sizes) == 1:
            pieces = [tensor]
        elif tensor.ndim and len(tensor) == sum(sizes):
            pieces = list(tensor.split(list(sizes)))
        else:
            parts = ", ".join(map(str, sizes))
            hint = (
                " It is transposed: is it stored as (out, in)?" if tensor.shape[1:] == (sum(sizes),) else ""
            )
            raise ValueError(f"A tensor of shape {shape} cannot be cut into parts of {parts}.{hint}")
        return [_pairs(piece, head_dim, neighbours=False) if self.interleaved else piece for piece in pieces]

    def to_theirs(self, pieces: Sequence[Tensor], head_dim: int) -> Tensor:
        """The published tensor, contiguous, from our tensors."""
        pieces = [_pairs(p, head_dim, neighbours=True) if self.interleaved else p for p in pieces]
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return (joined.mT if self.transpose and joined.ndim > 1 else joined).contiguous()

    def operation(self, part: int) -> str:
        """What is done to the published tensor to get our tensor number `part`."""
        steps = ["transposed"] if self.transpose else []
        if not isinstance(self.ours, str):
            steps.append(f"part {part + 1} of {len(self.ours)}")
        steps += ["rotary pairs taken apart"] if self.interleaved else []
        return ", ".join(steps) or "as it is"


def _pairs(tensor: Tensor, head_dim: int, *, neighbours: bool) -> Tensor:
    """Rotary pairs put side by side, or each pair's second halves gathered behind the first ones."""
    if len(tensor) % head_dim:
        return tensor  # its shape is refused in a moment
    inner = (-1, 2, head_dim // 2) if neighbours else (-1, head_dim // 2, 2)
    return tensor.unflatten(0, inner).transpose(1, 2).flatten(0, 2)


class Assigned(NamedTuple):
    """One parameter that was loaded: from which tensor, and how."""

    published: str
    parameter: str
    published_shape: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: str
    operation: str


@dataclass(frozen=True)
class Report:
    """What a load did: every parameter, and the names in the file that hold no weights."""

    assigned: list[Assigned]
    left_out: list[str]

    def table(self) -> pd.DataFrame:
        """One row per parameter."""
        import pandas as pd

        return pd.DataFrame(self.assigned)


class LoadedModel(NamedTuple):
    """A published model: in evaluation mode, on the CPU, float32."""

    model: GPT
    tokenizer: Tokenizer | None
    """None where the files hold none that labkit reads."""
    report: Report


def empty_model(config: GPTConfig) -> GPT:
    """A GPT whose parameters are shapes only, and take no memory until `assign` gives them."""
    with torch.device("meta"), _NoInitialValues():
        model = GPT(config).eval()
    for module in model.modules():
        if isinstance(module, SinusoidalPositions | RotaryPositions):
            module.compute_tables()
    return model


class _NoInitialValues(TorchFunctionMode):
    """Shapes have no values; asking a meta tensor for random ones would import PyTorch's compiler first."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **kwargs or {})


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Make a tensor the parameter of this name: a float32 tensor itself, not a copy of it.

    Raises ValueError, saying what to look for, for an unknown name, another shape, or no floating point.
    """
    try:
        parameter = model.get_parameter(name)
    except AttributeError as error:
        names = [each for each, _ in model.named_parameters()]
        close = ", ".join(difflib.get_close_matches(name, names, n=3)) or "none"
        raise ValueError(
            f"assign: the model has no parameter {name!r}. Names close to it: {close}."
        ) from error
    expected, provided = tuple(parameter.shape), tuple(tensor.shape)
    if provided != expected:
        raise ValueError(
            f"assign: {name} has shape {expected}, but the tensor has {provided}. "
            + _hint(name, expected, provided)
        )
    if not tensor.is_floating_point():
        raise ValueError(f"assign: {name} needs floating-point numbers, but the tensor holds {tensor.dtype}.")
    value = nn.Parameter(tensor.detach().to(parameter.dtype), parameter.requires_grad)
    torch.utils.swap_tensors(parameter, value)  # in place, so that a tied head stays tied


def _hint(name: str, expected: tuple[int, ...], provided: tuple[int, ...]) -> str:
    if provided == expected[::-1]:
        return "It is transposed: is it stored as (in, out)?"
    if len(provided) == len(expected) == 2 and provided[1] == expected[1] and "blocks" not in name:
        counts = "context length" if "position" in name else "vocabulary"
        return f"It was made for another {counts}: {provided[0]:,} in place of {expected[0]:,}."
    if len(provided) != len(expected):
        return "It is another kind of tensor: were two names swapped?"
    return "It belongs to a model of another size, or two names were swapped."


def load_into(
    model: GPT,
    tensors: Mapping[str, Tensor],
    rules: Sequence[Rule],
    *,
    source: str | Path,
    without_weights: str = "",
) -> Report:
    """Give a model, as `empty_model` makes it, the published tensors, and see that it can compute with them.

    without_weights: pattern of names that hold no weights, such as masks.
    Raises ValueError, naming the source, for missing, unknown and ill-fitting tensors, and for numbers that
    are not finite or huge.
    """
    parameters = dict(model.named_parameters())
    head_dim = model.config.head_dim
    rows: list[Assigned] = []
    missing: list[str] = []
    used: set[str] = set()
    for rule, theirs, ours in _expanded(model, rules):
        used.add(theirs)
        if theirs not in tensors:
            missing.append(theirs)
            continue
        tensor = tensors[theirs]
        try:
            pieces = rule.to_ours(tensor, [len(parameters[name]) for name in ours], head_dim)
            for part, (name, piece) in enumerate(zip(ours, pieces, strict=True)):
                assign(model, name, piece)
                shapes = tuple(tensor.shape), tuple(piece.shape)
                rows.append(Assigned(theirs, name, *shapes, _dtype(tensor), rule.operation(part)))
        except ValueError as error:
            raise ValueError(f"{source}: {theirs} does not fit. {error}") from error
    left_out = [name for name in tensors if without_weights and re.fullmatch(without_weights, name)]
    unknown = [name for name in tensors if name not in used and name not in left_out]
    if missing or unknown:
        raise ValueError(
            f"{source}: is not the model that its configuration describes. "
            f"Missing: {some(missing)}. Not known: {some(unknown)}."
        )
    check_numbers(model, {name: tensors[name] for name in used}, source)
    return Report(rows, left_out)


def collect(model: GPT, rules: Sequence[Rule]) -> dict[str, Tensor]:
    """The published tensors of a model: `load_into` backwards. A bias that the model lacks is zero."""
    parameters = {name: each.detach() for name, each in model.named_parameters()}

    def ours_or_zero(name: str) -> Tensor:
        if name in parameters:
            return parameters[name]
        weight = parameters[name.removesuffix("bias") + "weight"]
        return weight.new_zeros(len(weight))

    return {
        theirs: rule.to_theirs([ours_or_zero(name) for name in ours], model.config.head_dim)
        for rule, theirs, ours in _expanded(model, rules, with_missing_biases=True)
    }


def _expanded(
    model: GPT, rules: Sequence[Rule], *, with_missing_biases: bool = False
) -> list[tuple[Rule, str, list[str]]]:
    """Every row of the table that concerns this model, once for each layer."""
    known = {name for name, _ in model.named_parameters()}
    rows = []
    for rule in rules:
        for layer in range(model.config.n_layers if "{i}" in rule.theirs else 1):
            theirs, ours = rule.names(layer)
            biases = with_missing_biases and ours[0].endswith("bias")
            if biases or known.issuperset(ours):
                rows.append((rule, theirs, ours))
    return rows


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
