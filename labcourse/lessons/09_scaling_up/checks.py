"""Checks of lesson 09's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from labcourse.check import Answer, expect
from labkit.analysis import training_flops
from labkit.analysis.scaling import PUBLISHED, ScalingLaw
from labkit.config import GPTConfig


def training_days(answer: Answer) -> str:
    for case in ((8.5e8, 1e10, 7, 65e12, 0.35), (4.6e10, 2e12, 2048, 312e12, 0.45)):
        operations, tokens, devices, peak, mfu = case
        days = number(answer(*case), "The number of days")
        right = operations * tokens / (devices * peak * mfu) / 86_400
        said = f"For {tokens:.0e} tokens on {devices:,} devices it gives {days:.3g}."
        mistakes = {
            mfu: "That is at the full peak. Which part of it is really used?",
            mfu**2: "A device that uses less of its peak takes longer; here it is faster. Multiplied instead "
            "of divided by the MFU?",
            devices: "That is as long as one device alone would take.",
            devices**2: "More devices make it longer?",
            24: "Are those hours?",
            86_400: "Are those seconds?",
            6: "Operations per token are given. Were they taken for a number of parameters, with 6 for each?",
            3: "Operations to *train* on a token are given: forward and backward are both in them.",
            60: "That is seconds divided by the minutes of a day. How many seconds has it?",
            1_440: "Are those minutes?",
            100: "The MFU is a share, such as 0.35: is it divided by 100 once more?",
            (peak * mfu) ** 2: "a / b * c divides by b and multiplies by c: are parentheses missing?",
        }
        for factor, mistake in mistakes.items():
            expect(not close(days, right * factor), f"{said} {mistake}")
        rounded = days == round(days, 2) and abs(days - right) < 1
        expect(not rounded, f"{said} Rounded? A part of a day counts too.")
        expect(close(days, right), f"{said} Write down the units of each of the five and cancel them.")
    return "The same five numbers, turned round, check a claim: who reports days has told you their MFU."


def attention_overtakes(answer: Answer) -> str:
    for d_model, d_ff, n_layers, n_heads in ((60, 100, 5, 4), (96, 480, 2, 3), (768, 3072, 12, 12)):
        config = GPTConfig(
            vocab_size=11,
            context_length=7,
            d_model=d_model,
            d_ff=d_ff,
            n_layers=n_layers,
            n_heads=n_heads,
        )
        costs, one = training_flops(config), training_flops(config, 1)["attention scores and mixing"]
        matrices = costs["attention projections"] + costs["feed-forward"]
        right = matrices / one
        context = number(answer(d_model, d_ff, n_layers, n_heads), "The context")
        asked = f"d_model={d_model}, d_ff={d_ff}, n_layers={n_layers}, n_heads={n_heads}"
        said = f"For {asked} it gives {context:g}."
        mistakes = {
            costs["attention projections"]
            / one: "Which matrices does a block have besides attention's four?",
            costs["feed-forward"] / one: "The four matrices of attention itself multiply too.",
            right * n_layers: "More blocks have more of both. Does depth change the balance?",
            right / n_layers: "More blocks have more of both. Does depth change the balance?",
            right * n_heads: "Each head is narrower by as much as there are more of them.",
            right / n_heads: "Each head is narrower by as much as there are more of them.",
            right * 2: "Twice too long: a position costs one product for its score and one for mixing its "
            "value, over the full square.",
            right
            / 2: "Half of it: a weight costs as many operations as each of the two products of attention.",
            right * 3: "Was the backward pass counted on one side only?",
            right / 3: "Was the backward pass counted on one side only?",
            right / 6: "A weight costs 6 operations in training. Where are they?",
            right - d_ff / 2: "The feed-forward part has two matrices, one up and one down.",
            right - d_model / 2: "Attention has a fourth matrix, after the heads.",
            6 * d_model: "That would be right if d_ff were 4 times d_model. Here it is not.",
        }
        for value, mistake in mistakes.items():
            expect(close(context, right) or not close(context, value), f"{said} {mistake}")
        expect(
            close(context, right),
            f"{said} At that context scores and mixing cost {context * one / matrices:.2f} times as much as "
            "the matrices. Set 6 times the weights of a block equal to its part of the other term.",
        )
    return "4,608 positions for GPT-2, which reads 1,024: *quadratic* tells how a cost grows, not its size."


def compute_bound_square(answer: Answer) -> str:
    for peak, bandwidth, size in ((80e9, 18e9, 4), (989e12, 3.35e12, 2), (80e9, 20e9, 4), (96e9, 7.1e9, 8)):
        exact = 3 * size * peak / (2 * bandwidth)
        n = number(answer(peak, bandwidth, size), "n")
        said = f"For P={peak:.3g}, W={bandwidth:.3g} and {size} bytes a number it gives {n:g}."
        four = math.ceil(6 * peak / bandwidth)
        expect(size == 4 or n != four, f"{said} That is for numbers of 4 bytes. What is `size` here?")
        wrong = {
            exact / size: "Bandwidth counts bytes. How many are read for each number?",
            exact / 3: "Only one matrix is moved. What does a product read, and what does it write?",
            exact / 1.5: "Two factors are read. And the result?",
            2 * exact: "A product of two numbers is followed by an addition: how many operations in all?",
            exact
            / 2: "Half of it: 2 operations for each of the n * n * n products, and three matrices moved.",
            bandwidth / peak * 1.5 * size: "Upside down: the bend is at operations per byte.",
        }
        for value, mistake in wrong.items():
            alike = any(close(n, each) for each in (value, math.ceil(value), math.floor(value)))
            expect(not alike or n == math.ceil(exact), f"{said} {mistake}")
        expect(
            not close(n, exact) or n == int(n),
            f"{said} That is where both limits are equal; which whole number comes next?",
        )
        expect(
            n != math.floor(exact) or exact == int(exact),
            f"{said} Just too small: at that size the memory is still the slower one. Rounded down, or to "
            "the nearest?",
        )
        expect(
            n != math.ceil(exact) + 1,
            f"{said} One too large: is the size at which both limits are equal counted as memory-bound?",
        )
        expect(
            n == math.ceil(exact),
            f"{said} Its intensity is {2 * n / (3 * size):.1f} operations per byte, the bend lies at "
            f"{peak / bandwidth:.1f}.",
        )
    return "So an H100 idles on squares that keep a CPU busy: a faster device wants larger pieces."


def same_loss_tokens(answer: Answer) -> str:
    here = ScalingLaw(E=1.1, A=6.0, alpha=0.25, B=900.0, beta=0.6)
    cases = (
        (PUBLISHED["Besiroglu et al. (2024)"], 70e9, 1.4e12, 0.5),
        (here, 340_000, 3.2e6, 0.75),
        (here, 340_000, 3.2e6, 3.0),
        (here, 340_000, 3.2e8, 0.5),
    )
    for law, parameters, tokens, part in cases:
        given = answer(law, parameters, tokens, part)
        expect(
            not isinstance(given, complex) and not (isinstance(given, float) and math.isnan(given)),
            f"{given} is what a root of a negative number gives. What does it mean that the smaller model is "
            "above the target however much it reads?",
        )
        needed = number(given, "The number of tokens")
        left = float(law.predict(parameters, tokens)) - law.E - law.A / (part * parameters) ** law.alpha
        said = (
            f"With {part:g} of {parameters:,.0f} parameters and {tokens:,.0f} tokens it gives {needed:,.4g}."
        )
        if left <= 0:
            expect(
                needed == math.inf,
                f"{said} But with endless text that model ends above the target. Test for it first.",
            )
            continue
        right = (law.B / left) ** (1 / law.beta)
        loss = float(law.predict(part * parameters, needed)) if 0 < needed < math.inf else math.inf
        mistakes = {
            tokens: "Then it would be as good without reading more: does the term with N stay as it was?",
            tokens / part: "That spends the same operations. The question is about the same loss.",
            law.B / left: "B / D is not B / D to the power beta.",
            (law.B / left) ** law.beta: "How does one undo a power?",
            (law.B / (left + law.E))
            ** (1 / law.beta): "What even endless text leaves, E, is in the target too.",
            (law.B / left) ** (1 / law.alpha): "D has an exponent of its own. Is it alpha?",
            1 / right: "Upside down: with less left for the text, should it take more of it or less?",
            right / tokens: "That is how many times as many. How many are that?",
            right - tokens: "That is how many more. How many are it in all?",
        }
        for value, mistake in mistakes.items():
            expect(not close(needed, value), f"{said} {mistake}")
        near = 1e-4 <= abs(needed / right - 1) < 0.01
        expect(not near, f"{said} Nearly: the equation can be solved for D, without a search.")
        expect(
            abs(needed / right - 1) < 1e-4,
            f"{said} The law says {loss:.4f} nats there; asked for is {law.predict(parameters, tokens):.4f}.",
        )
    law, parameters, tokens, part = cases[0]
    left = float(law.predict(parameters, tokens)) - law.E - law.A / (part * parameters) ** law.alpha
    more = (law.B / left) ** (1 / law.beta) / tokens
    return (
        f"Half of Chinchilla's size takes {more:.1f} times its text: {more * part:.1f} times the operations "
        "to train, once, and half of them for every word that it ever writes."
    )


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
