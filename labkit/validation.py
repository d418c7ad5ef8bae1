"""Checks that the configuration dataclasses share. Messages name the field, the value and what is allowed."""

from __future__ import annotations

import math
from types import UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints


def fail(config: object, message: str) -> NoReturn:
    """Raise ValueError with the configuration's name before the message."""
    raise ValueError(f"{type(config).__name__}: {message}")


def check_types(config: Any) -> None:
    """Reject a field whose value is not of its declared kind (a float where an int is needed, say)."""
    for name, hint in get_type_hints(type(config)).items():
        value = getattr(config, name)
        if get_origin(hint) is Literal:
            if value not in get_args(hint):
                fail(config, f"{name}={value!r} is not known. Choose from {', '.join(get_args(hint))}.")
        elif get_origin(hint) is UnionType:
            if value is not None:
                _check_value(config, name, value, get_args(hint)[0])
        else:
            _check_value(config, name, value, hint)


def _check_value(config: Any, name: str, value: Any, kind: Any) -> None:
    if kind is bool and not isinstance(value, bool):
        fail(config, f"{name}={value!r} must be True or False.")
    if kind is int and (isinstance(value, bool) or not isinstance(value, int)):
        fail(config, f"{name}={value!r} must be a whole number.")
    if kind is float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            fail(config, f"{name}={value!r} must be a number.")
        if not math.isfinite(value):
            fail(config, f"{name}={value} must be finite.")
    if kind is str and not isinstance(value, str):
        fail(config, f"{name}={value!r} must be text.")
    if kind == tuple[str, ...]:
        if isinstance(value, list):  # as JSON gives it back
            object.__setattr__(config, name, tuple(value))
        elif not isinstance(value, tuple):
            fail(config, f"{name}={value!r} must be a list of texts.")
        if wrong := [each for each in value if not isinstance(each, str) or not each]:
            fail(config, f"{name}: {wrong[0]!r} must be a text that is not empty.")


def at_least(config: Any, low: float, *names: str) -> None:
    """Reject values below `low`; None passes."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < low:
            fail(config, f"{name}={value} must be at least {low}.")


def fraction(config: Any, *names: str) -> None:
    """Reject values outside [0, 1)."""
    for name in names:
        value = getattr(config, name)
        if not 0 <= value < 1:
            fail(config, f"{name}={value} must be in [0, 1).")


def check_betas(config: Any) -> None:
    """Reject `betas` that are not two numbers in [0, 1)."""
    if isinstance(config.betas, list):  # as JSON gives them back
        object.__setattr__(config, "betas", tuple(config.betas))
    if not (
        isinstance(config.betas, tuple)
        and len(config.betas) == 2
        and all(isinstance(beta, int | float) and 0 <= beta < 1 for beta in config.betas)
    ):
        fail(config, f"betas={config.betas} must be two numbers in [0, 1).")
