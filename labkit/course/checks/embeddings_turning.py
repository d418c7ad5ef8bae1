"""Check of the turned positions, lesson 01's last exercise."""

from __future__ import annotations

import torch
from torch import Tensor

from labkit.course.check import Answer, expect
from labkit.model import SinusoidalPositions


def _turned(rows: Tensor, angles: Tensor) -> Tensor:
    """Pairs (sine, cosine) of neighbouring features, moved on by these angles."""
    sine, cosine = rows.unflatten(-1, (-1, 2)).unbind(-1)
    on = sine * angles.cos() + cosine * angles.sin(), cosine * angles.cos() - sine * angles.sin()
    return torch.stack(on, dim=-1).flatten(-2)


def move_by_turning(answer: Answer) -> str:
    table, places = SinusoidalPositions(40, 12)(40), torch.tensor([13, 9, 8, 21, 30])
    rows = table[places]  # in no order, so that nothing can be read off the neighbours

    def like(moved: Tensor, other: Tensor) -> bool:
        return torch.allclose(moved, other, atol=1e-4)

    moved, unmoved = answer(rows, 7), answer(rows, 0)
    for each in (moved, unmoved):
        expect(isinstance(each, Tensor), f"It returns {type(each).__name__}, not a tensor.")
        expect(each.shape == rows.shape, f"Rows {tuple(rows.shape)} become {tuple(each.shape)}.")
        expect(each.is_floating_point(), f"It returns numbers of type {each.dtype}.")
    moved, unmoved = moved.float(), unmoved.float()
    swapped = rows.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    expect(not like(unmoved, swapped), "Sine and cosine have changed places: which features are even?")
    halves = torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1)
    expect(
        not like(unmoved, halves),
        "All sines stand in the first half and all cosines in the second. In the table they take turns.",
    )
    expect(
        not like(unmoved, table[:5]),
        "It takes the rows for the first positions, 0, 1, 2 and so on. You are not told which ones they are.",
    )
    expect(like(unmoved, rows), "Moved by 0 places the rows are others. What are sine and cosine of 0?")
    expect(not like(moved, rows), "Nothing has moved.")
    expect(not like(moved, table[places + 1]), "It moves by one place, whatever k is.")
    expect(
        not like(moved, rows.roll(-7, 0)),
        "The rows changed their order. Each row is to be turned by itself: its neighbour may be anybody.",
    )
    expect(
        not like(moved, table[places - 7]),
        "It goes k places back instead of on: which of the two sines has the minus sign?",
    )
    omega = 10000 ** (-torch.arange(0, 12, 2) / 12)
    expect(
        not like(moved, _turned(rows, torch.deg2rad(7 * omega))),
        "It turns far too little: sin and cos take radians, and k times omega are radians.",
    )
    lengths = moved.unflatten(-1, (-1, 2)).norm(dim=-1)
    expect(
        like(lengths, torch.ones(5, 6)),
        "Some pairs have changed their length, and a turn keeps it. Is a sign wrong, or was a sine "
        "overwritten before it was used? And which two features are a pair?",
    )
    right = table[places + 7]
    expect(
        not like(moved, _turned(rows, torch.full((6,), 7.0))),
        "All pairs turn by the same angle, but each pair has an angle of its own.",
    )
    expect(
        like(moved, right) or not like(moved[:, :2], right[:, :2]),
        "The first pair is right and others are not: compare your omega with the formula, for i = 1.",
    )
    expect(like(moved, right), "These are turns, but not by k times omega. What is omega of the first pair?")
    short = SinusoidalPositions(9, 6)(9)
    expect(like(answer(short[4:6], 3), short[7:9]), "Right with 12 features and wrong with 6: is d fixed?")
    expect(like(answer(short[4:6], -3), short[1:3]), "It does not go back when k is negative.")
    return "RoPE, in lesson 07, turns queries and keys in just this way."
