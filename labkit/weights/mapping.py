"""Between published weights and our GPT: tables of names, each read in both directions."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from labkit.config import GPTConfig
from labkit.model import GPT, RotaryPositions, SinusoidalPositions, evaluating
from labkit.text import Tokenizer

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Layout:
    """What a family of published models calls the parameters of our GPT, and how it stores them.

    names: published name to ours; {i} stands for the number of a layer.  Where one published tensor holds
    several of ours, they follow each other along its output features.
    transposed: endings of the published names that are stored as (in, out); `nn.Linear` has (out, in).
    interleaved: endings of those whose rotary pairs are neighbours, features (0, 1), (2, 3), …, as in GGUF
    files; ours are the features i and i + head_dim / 2.
    without_weights: pattern of published names that hold no weights, such as the masks in old files.
    """

    names: Mapping[str, str | tuple[str, ...]]
    transposed: tuple[str, ...] = ()
    interleaved: tuple[str, ...] = ()
    without_weights: str = ""

    def rows(self, model: GPT, *, missing_biases: bool = False) -> Iterator[tuple[str, list[str]]]:
        """Each published name that concerns this model, layer by layer, and our names in it.

        missing_biases: also those that hold biases which this model lacks.
        """
        known = {name for name, _ in model.named_parameters()}
        for theirs, ours in self.names.items():
            ours = (ours,) if isinstance(ours, str) else ours
            for i in range(model.config.n_layers if "{i}" in theirs else 1):
                here = [name.format(i=i) for name in ours]
                if known.issuperset(here) or (missing_biases and here[0].endswith("bias")):
                    yield theirs.format(i=i), here

    def operation(self, theirs: str, part: int, parts: int) -> str:
        """What is done to a published tensor to get the parameter that is this part of it."""
        steps = ["transposed"] if theirs.endswith(self.transposed) else []
        steps += [f"part {part + 1} of {parts}"] if parts > 1 else []
        steps += ["rotary pairs taken apart"] if theirs.endswith(self.interleaved) else []
        return ", ".join(steps) or "as it is"


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
    """A model from a file: in evaluation mode, on the CPU, float32."""

    model: GPT
    tokenizer: Tokenizer | None
    """None where the files hold none that labkit reads."""
    report: Report


def load_into(model: GPT, tensors: Mapping[str, Tensor], layout: Layout, source: str | Path) -> Report:
    """Give a model, as `empty_model` makes it, the published tensors, and see that it can compute with them.

    Where it can be, a parameter is a view of the published tensor.
    Raises ValueError, naming the source, for missing, unknown and ill-fitting tensors, and for numbers that
    are not finite or huge.
    """
    parameters = dict(model.named_parameters())
    assigned: list[Assigned] = []
    used: dict[str, Tensor] = {}
    missing: list[str] = []
    for theirs, ours in layout.rows(model):
        if theirs not in tensors:
            missing.append(theirs)
            continue
        published = used[theirs] = tensors[theirs]
        shape, dtype = tuple(published.shape), str(published.dtype).removeprefix("torch.")
        try:
            parts = _parts(published, theirs.endswith(layout.transposed), [len(parameters[n]) for n in ours])
            for i, (name, part) in enumerate(zip(ours, parts, strict=True)):
                if theirs.endswith(layout.interleaved):
                    part = _pairs(part, model.config.head_dim, neighbours=False)
                assign(model, name, part)  # refuses another shape
                how = layout.operation(theirs, i, len(ours))
                assigned.append(Assigned(theirs, name, shape, tuple(part.shape), dtype, how))
        except ValueError as error:
            raise ValueError(f"{source}: {theirs} does not fit. {error}") from error
    pattern = layout.without_weights
    left_out = [name for name in tensors if pattern and re.fullmatch(pattern, name)]
    unknown = [name for name in tensors if name not in used and name not in left_out]
    if missing or unknown:
        raise ValueError(
            f"{source}: is not the model that its configuration describes. "
            f"Missing: {_some(missing)}. Not known: {_some(unknown)}."
        )
    _check_numbers(model, used, source)
    return Report(assigned, left_out)


def collect(model: GPT, layout: Layout) -> dict[str, Tensor]:
    """The published tensors of a model: `load_into` backwards. A bias that the model lacks is zero."""
    parameters = {name: each.detach() for name, each in model.named_parameters()}
    tensors = {}
    for theirs, ours in layout.rows(model, missing_biases=True):
        parts = []
        for name in ours:
            if name not in parameters:
                weight = parameters[name.removesuffix("bias") + "weight"]
                parameters[name] = weight.new_zeros(len(weight))
            part = parameters[name]
            if theirs.endswith(layout.interleaved):
                part = _pairs(part, model.config.head_dim, neighbours=True)
            parts.append(part)
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)  # (out, in)
        tensors[theirs] = (tensor.mT if theirs.endswith(layout.transposed) else tensor).contiguous()
    return tensors


def _parts(published: Tensor, transposed: bool, sizes: Sequence[int]) -> Sequence[Tensor]:
    """Our tensors, of so many output features each, as views of a published one."""
    tensor = published.mT if transposed and published.ndim > 1 else published  # (out, in)
    if len(sizes) == 1:
        return [tensor]
    if tensor.ndim == 0 or len(tensor) != sum(sizes):
        shape, parts = tuple(published.shape), ", ".join(map(str, sizes))
        hint = " It is transposed: is it stored as (out, in)?" if tensor.shape[1:] == (sum(sizes),) else ""
        raise ValueError(f"A tensor of shape {shape} cannot be split into parts of {parts}.{hint}")
    return tensor.split(list(sizes))


def _pairs(tensor: Tensor, head_dim: int, *, neighbours: bool) -> Tensor:
    """Rotary pairs put side by side, or each pair's second halves gathered behind the first ones."""
    if len(tensor) % head_dim:
        return tensor  # `assign` refuses its shape
    inner = (-1, 2, head_dim // 2) if neighbours else (-1, head_dim // 2, 2)
    return tensor.unflatten(0, inner).transpose(1, 2).flatten(0, 2)


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


def described_model(fields: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str | Path) -> GPT:
    """An empty model of the configuration that a file describes.

    Raises ValueError, naming the source, for sizes that no tensor has, before a model of them is built, and
    for a configuration that cannot be.
    """
    largest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    limits = {"vocab_size": largest, "d_model": largest, "n_heads": largest, "n_layers": len(tensors)}
    limits |= {"d_ff": largest, "context_length": 2**20}
    for name, limit in limits.items():
        value = fields.get(name)
        if value is None and name != "d_ff":
            raise ValueError(f"{source}: does not say {name}.")
        if value is not None and not (type(value) is int and 1 <= value <= limit):
            raise ValueError(f"{source}: {name}={value!r} does not fit the tensors (1 to {limit:,}).")
    try:
        return empty_model(GPTConfig(**fields))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{source}: describes a model that cannot be. {error}") from error


def refuse_other_computations(source: Path, checks: Mapping[str, tuple[Any, tuple[Any, ...]]]) -> None:
    """Raise ValueError for settings of a file under which labkit would compute something else.

    checks: by name, the value found and those with which labkit computes the same.
    """
    for name, (value, allowed) in checks.items():
        if value not in allowed:
            computed = " or ".join(map(repr, allowed))
            raise ValueError(
                f"{source}: {name}={value!r}, but labkit computes {computed} only. Its predictions would be "
                "wrong, so the model is not loaded."
            )


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


_LARGEST = 1e6  # no logit or weight of a trained model comes near; one flipped bit of an exponent makes 1e37


def _check_numbers(model: GPT, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Look at every published tensor, and predict once.  Raises ValueError for numbers that make no sense.

    The tensors as they lie in the file, which is ten times as fast as views of them.
    A huge weight need not show in a prediction: the next norm scales it away, until a text meets it.
    """

    def sensible(tensor: Tensor) -> bool:
        low, high = tensor.aminmax()
        return bool(max(-low, high) < _LARGEST)  # false also for NaN

    wrong = [name for name, tensor in tensors.items() if not sensible(tensor)]
    # Two tokens: attention has something to weigh, and eight would take three times as long.
    ids = torch.arange(min(2, model.config.vocab_size, model.config.context_length))[None]
    with torch.inference_mode(), evaluating(model):
        if not wrong and sensible(model(ids)):
            return
    raise ValueError(
        f"{source}: its predictions are not finite, or huge; so are the weights {_some(wrong)}. The file is "
        "damaged, or its numbers overflowed when it was stored."
    )


def _some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) or "none") + more
