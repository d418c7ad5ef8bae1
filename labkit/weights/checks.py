"""Whether what was read can be a model: its sizes, its numbers, its tokenizer."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from labkit.model import GPT, evaluating
from labkit.text import Tokenizer


def check_sizes(shape: Mapping[str, Any], tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse sizes that no tensor has, before a model of them is built.  Raises ValueError, naming them."""
    largest = max((max(tensor.shape, default=0) for tensor in tensors.values()), default=0)
    limits = {"vocab_size": largest, "d_model": largest, "n_heads": largest, "n_layers": len(tensors)}
    limits |= {"d_ff": largest, "context_length": 2**20}
    for name, limit in limits.items():
        value = shape.get(name)
        if value is None and name != "d_ff":
            raise ValueError(f"{source}: does not say {name}.")
        if value is not None and not (type(value) is int and 1 <= value <= limit):
            raise ValueError(f"{source}: {name}={value!r} does not fit the tensors (1 to {limit:,}).")


LARGEST = 1e6
"""No logit and no weight of a trained model comes near; one flipped bit of an exponent makes 1e37."""


def check_numbers(model: GPT, tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Look at every published tensor, and predict once.  Raises ValueError for numbers that make no sense.

    tensors: those that the model was given; as they lie in the file, which is ten times as fast as views.
    A huge weight need not show in a prediction: the next norm scales it away, until a text meets it.
    """

    def sensible(tensor: Tensor) -> bool:
        low, high = tensor.aminmax()
        return bool(max(-low, high) < LARGEST)  # false also for NaN

    wrong = [name for name, tensor in tensors.items() if not sensible(tensor)]
    # Two tokens: attention has something to weigh, and eight would take three times as long.
    ids = torch.arange(min(2, model.config.vocab_size, model.config.context_length))[None]
    with torch.inference_mode(), evaluating(model):
        if not wrong and sensible(model(ids)):
            return
    raise ValueError(
        f"{source}: its predictions are not finite, or huge; so are the weights {some(wrong)}. The file is "
        "damaged, or its numbers overflowed when it was stored."
    )


def fitting_tokenizer(load: Callable[[], Tokenizer | None], model: GPT, source: Path) -> Tokenizer | None:
    """The tokenizer that `load` gives for a model; None, with a warning, where labkit has none of its kind.

    Raises ValueError, naming the source, for a damaged one, and for one with more ids than the model.
    """
    from labkit.text import UnsupportedTokenizerError

    try:
        tokenizer = load()
    except UnsupportedTokenizerError as error:
        warnings.warn(f"{source}: {error} The model is loaded without a tokenizer.", stacklevel=4)
        return None
    except ValueError as error:
        raise ValueError(f"{source}: the tokenizer is damaged. {error}") from error
    vocab_size = model.config.vocab_size
    if tokenizer is not None and tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{source}: the tokenizer has {tokenizer.vocab_size:,} ids, the model only {vocab_size:,}: they "
            "belong to different models."
        )
    return tokenizer


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return (", ".join(names[:6]) or "none") + more
