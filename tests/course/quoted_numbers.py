"""Numbers that a text quotes, and whether a file of results holds them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

_LEFT_OUT = re.compile(
    r"```.*?```|`[^`]*`|\]\([^)]*\)|\$[^$]*\$"  # code, addresses of links, formulas
    r"|\b(?:18|19|20)\d\d[a-z]?\)|\((?:18|19|20)\d\d\b"  # years of citations
    r"|\b(?:[Ll]esson|[Ss]ections?|[Ee]quations?|[Tt]ables?) \d[\d.]*|^(?:#+ )?\d+\. ",
    re.S | re.M,
)
_NUMBER = re.compile(r"(?<![\w.])[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?:\s?%)?(?![\w])")


@dataclass(frozen=True)
class Quoted:
    text: str
    value: float
    step: float  # of the last digit that is shown

    def is_like(self, number: float) -> bool:
        """Whether the number, rounded as the text rounds, is what the text says."""
        return abs(abs(number) - abs(self.value)) <= 0.5 * self.step * (1 + 1e-9) + 1e-12


def quoted(text: str) -> Iterator[Quoted]:
    """All numbers in a text but whole ones up to ten, which count things in words."""
    for match in _NUMBER.finditer(_LEFT_OUT.sub(" ", text)):
        token = match[0].rstrip(",")
        bare = token.replace(",", "").replace("−", "-").rstrip("% ")
        mantissa, _, exponent = bare.partition("e")
        _, _, decimals = mantissa.partition(".")
        scale = 0.01 if token.endswith("%") else 1.0
        value, step = float(bare) * scale, 10.0 ** (int(exponent or 0) - len(decimals)) * scale
        if decimals or exponent or scale != 1 or abs(value) > 10:
            yield Quoted(token, value, step)


def numbers_in(data: Any) -> Iterator[float]:
    """Every number in JSON, those in its texts and keys too."""
    if isinstance(data, bool):
        return
    if isinstance(data, int | float):
        yield float(data)
    elif isinstance(data, str):
        yield from (each.value for each in quoted(data))
    elif isinstance(data, dict):
        for key, value in data.items():
            yield from numbers_in(key if not re.fullmatch(r"-?\d+(\.\d+)?", key) else float(key))
            yield from numbers_in(value)
    elif isinstance(data, list):
        for value in data:
            yield from numbers_in(value)


def not_found(text: str, known: Iterable[float]) -> list[str]:
    """The numbers of a text that are in none of the results, each as the text writes it."""
    values = sorted({abs(each) for each in known})
    return [each.text for each in quoted(text) if not any(each.is_like(value) for value in values)]
