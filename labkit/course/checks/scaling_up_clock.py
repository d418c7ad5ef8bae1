"""Checks of those of lesson 09's exercises that have a clock in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from labkit.course.check import Answer, expect


def number(value: Any, what: str) -> float:
    expect(
        isinstance(value, Real) and not isinstance(value, bool),
        f"{what} is a {type(value).__name__}, not a number.",
    )
    expect(not math.isnan(value), f"{what} is NaN.")
    return float(value)


def close(given: float, wanted: float) -> bool:
    return math.isclose(given, wanted, rel_tol=1e-6)


def repair_mfu_stub(
    step: Callable[[Tensor], None],
    batches: Sequence[Tensor],
    synchronize: Callable[[], None],
    clock: Callable[[], float],
    flops_per_token: float,
    peak: float,
) -> float:
    synchronize()
    begin = clock()
    for batch in batches:
        step(batch)
    seconds = clock() - begin
    tokens = len(batches) * batches[-1].numel()
    return tokens * flops_per_token / seconds / peak


class _FakeDevice:
    """Takes orders at once and works them off in its own time; the first step also compiles."""

    def __init__(self) -> None:
        self.now, self.done, self.events = 0.0, 0.0, list[str]()
        self.seen: list[Tensor] = []

    def step(self, batch: Tensor) -> None:
        self.now += 0.001
        self.done = max(self.now, self.done) + 0.002 * batch.numel() + (not self.seen) * 0.5
        self.seen.append(batch)
        self.events.append("step")

    def synchronize(self) -> None:
        self.now = max(self.now, self.done)
        self.events.append("wait")

    def clock(self) -> float:
        self.events.append("clock")
        return self.now


def repair_mfu(answer: Answer) -> str:
    for sizes in ((4, 4, 4, 4, 2), (3, 5, 2, 6)):
        device = _FakeDevice()
        batches = [torch.zeros(rows, 7) for rows in sizes]
        given = (device.step, batches, device.synchronize, device.clock, 2e9, 2.5e12)
        mfu = number(answer(*given), "The MFU")
        _order(device.events, len(batches), mfu)
        each = [batch.numel() for batch in batches]
        idle = 0.001 / 0.002  # while the first order is given, in tokens
        right = 0.4 * sum(each[1:]) / (sum(each[1:]) + idle)
        expect(
            not close(mfu, right * sum(each) / sum(each[1:])),
            f"{mfu:.0%}: the tokens of the step that warms up are counted, its time is not.",
        )
        for last in (len(each) * each[-1], (len(each) - 1) * each[-1]):
            expect(
                not close(mfu, right * last / sum(each[1:])),
                f"{mfu:.1%}, for batches of {each} tokens. Does each have as many as the last?",
            )
        expect(
            abs(mfu - right) < 0.01 * right,
            f"Order and waiting are right now, and the MFU is {mfu:.1%} where it should not be. For how many "
            "tokens were the seconds taken?",
        )
    return "A rate that no device can reach is a gift: most wrong measurements look plausible."


def _order(events: list[str], count: int, mfu: float) -> None:
    """Steps, waiting and clock in an order that measures what it should."""
    steps = [place for place, event in enumerate(events) if event == "step"]
    clocks = [place for place, event in enumerate(events) if event == "clock"]
    expect(len(steps) == count, f"{len(steps)} steps were made for {count} batches.")
    expect(len(clocks) >= 2, f"The clock was read {len(clocks)} times: when did it begin, when did it end?")
    expect(clocks[-1] > steps[-1], "The clock was read for the last time before the last step was ordered.")
    expect(
        "wait" in events[steps[-1] : clocks[-1]],
        f"{mfu:.0%}: the clock is read when all steps were ordered. Was the device done with them?",
    )
    expect(
        clocks[0] > steps[0],
        f"{mfu:.0%}: the first step is inside the measured time. It compiles and allocates; no other does.",
    )
    expect(
        "wait" in events[steps[0] : clocks[0]],
        f"{mfu:.0%}: when the clock starts, the device is still busy with the step that warms up.",
    )
    expect(
        "wait" not in events[steps[1] : steps[-1]],
        f"{mfu:.0%}: it waits between the steps, so the device stands idle while the next one is prepared.",
    )


class _FakeMeasure:
    """Times that a disturbance makes longer, and bytes: what `measure` gives."""

    def __init__(self, table: dict[int, tuple[float, int]], slow: Callable[[int], float]) -> None:
        self.table, self.slow, self.calls = table, slow, list[int]()

    def __call__(self, rows: int) -> tuple[float, int]:
        self.calls.append(rows)
        seconds, held = self.table[rows]
        return seconds * self.slow(len(self.calls) - 1), held


_MEASURED = {64: (1.06, 65), 256: (1.0, 104), 4: (2.0, 52), 1024: (1.3, 310), 16: (1.2, 55)}


def chunk_rows(answer: Answer) -> str:
    sizes = list(_MEASURED)

    def chosen(
        slow: Callable[[int], float], table: dict[int, tuple[float, int]] = _MEASURED
    ) -> tuple[Any, list[int]]:
        measure = _FakeMeasure(table, slow)
        return answer(measure, list(table), 5), measure.calls

    rows, calls = chosen(lambda call: 1.0)
    number(rows, "The number of rows")
    expect(rows in sizes, f"It returns {rows}, and the sizes are {sizes}.")
    expect(
        len(calls) == 5 * len(sizes) and all(calls.count(size) == 5 for size in sizes),
        f"It measured {len(calls)} times: 5 tries for each of {len(sizes)} sizes were asked for.",
    )
    said = f"On a quiet machine it chooses {rows}."
    expect(rows != 256, f"{said} That is the fastest. Does one that is hardly slower hold less?")
    expect(rows != 4, f"{said} That holds least, and takes twice as long as the fastest.")
    expect(
        rows == 64,
        f"{said} It takes {_MEASURED[rows][0]:.2f} s and holds {_MEASURED[rows][1]} MB. Is none better?",
    )
    other = {32: (14.0, 90), 2: (14.5, 95), 8: (15.2, 80), 128: (20.0, 70)}
    rows, _ = chosen(lambda call: 1.0, other)
    said = f"Of sizes with seconds and bytes {other} it chooses {rows}"
    expect(rows != 2, f"{said}, which has the fewest rows. Does it hold the least?")
    expect(rows == 8, f"{said}: 10 % of what? And which of those within it holds the least?")
    rows, calls = chosen(lambda call: 9.0 if call in (0, 3, 5, 10, 20) else 1.0)
    expect(
        rows == 64,
        f"Single tries that took nine times as long make it choose {rows}. Disturbance only adds time: which "
        "of several tries has the least of it?",
    )
    rows, calls = chosen(lambda call: 3.0 if call < 12 else 1.0)
    expect(
        rows == 64,
        f"Another program ran during the first 12 of 25 tries, and it chooses {rows}. It measured in the "
        f"order {calls[:7]} and so on. In which order would a disturbance meet all sizes alike?",
    )
    return "Now give it a `measure` for `ChunkedLoss`, made of `PeakBytes` and a clock."
