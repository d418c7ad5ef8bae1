"""Wrong answers to the exercises, each a mistake that people really make."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Answer = TypeVar("Answer", bound=Callable[..., Any])


@dataclass(frozen=True)
class Planted:
    exercise: str
    answer: Callable[..., Any]
    says: str  # a part of the message that names this mistake and fits no other one


TABLE: list[Planted] = []


def planted(exercise: str, says: str) -> Callable[[Answer], Answer]:
    """Puts a wrong answer into the table: its name says the mistake."""

    def add(answer: Answer) -> Answer:
        TABLE.append(Planted(exercise, answer, says))
        return answer

    return add
