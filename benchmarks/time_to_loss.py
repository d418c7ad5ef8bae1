"""How long training takes to get as good as the reference recipe ends: `python benchmarks/time_to_loss.py`.

A GPT of 4 layers, d 128 and context 64 learns the characters of Shakespeare; three plays are held out.  The
reference is `reference.py`: 2,000 steps of 12 x 64 characters with AdamW.  Claim: the recipe that users get
as `TrainConfig.preset("fast")`, with rotary positions, comes to the held-out loss that the reference ends
with, seed by seed, in at most 0.33 of its time.  The same with learned positions and more steps; and for
AdamW with its own learning rate on either model, so that nothing is credited to Muon that these give.

Everyone has the number of threads, one or two, that its own steps are faster with.  The clock runs during
steps only, not while the loss on 512 held-out windows is measured.  Between two measurements the loss is
taken to fall on a straight line, which is never too early.  The order changes from seed to seed.
About 20 minutes; `--quick` tries it out in one or two and writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import torch
from machine import BUSY, RESULTS, OtherLoad, calibrate, save
from reference import ReferenceGPT, Shape, build_adamw, learning_rate, list_built_batch, train_step
from torch import Tensor

from labkit import GPT, GPTConfig, TrainConfig
from labkit.text import CharTokenizer, WindowDataset, load_corpus
from labkit.training import Evaluation, Step, Trainer
from labstudio.figures import COLOURS, new_figure

SEEDS = (0, 1, 2)
WINDOWS = 512
REFERENCE, FAST, ROTARY, TUNED = "reference", "fast", "fast, rotary", "AdamW, tuned"
FIGURE = RESULTS.parents[1] / "visualizations" / "time_to_loss.png"


@dataclass(frozen=True)
class Recipe:
    """How labkit trains, and which model."""

    train: TrainConfig
    model: dict[str, Any] = field(default_factory=dict)


def recipes() -> dict[str, Recipe]:
    """The recipe and tuned AdamW, each with learned and with rotary positions."""
    fast = TrainConfig.preset("fast")
    adamw = replace(TrainConfig.preset("reference"), learning_rate=5e-3, warmup_steps=None)
    rotary = {"positions": "rotary"}
    return {
        FAST: Recipe(replace(fast, max_steps=600)),
        TUNED: Recipe(replace(adamw, max_steps=1000)),
        ROTARY: Recipe(fast, rotary),
        "AdamW, tuned, rotary": Recipe(replace(adamw, max_steps=600), rotary),
    }


@dataclass
class Curve:
    """Held-out loss over steps and over the seconds that the steps alone took."""

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    other_load: float = 0.0

    def add(self, step: int, seconds: float, loss: float) -> None:
        self.steps.append(step)
        self.seconds.append(round(seconds, 3))
        self.losses.append(round(loss, 4))

    def reaches(self, target: float) -> float | None:
        """Seconds until the loss is down at the target, on a straight line between two evaluations."""
        points = list(zip(self.seconds, self.losses, strict=True))
        for (before, high), (after, low) in itertools.pairwise(points):
            if low <= target < high:
                return before + (after - before) * (high - target) / (high - low)
        return None


@cache
def data() -> tuple[CharTokenizer, Tensor, Tensor, Tensor, Tensor]:
    """Tokenizer, ids to train on, held-out ids, and the windows of those that everyone is measured on."""
    corpus = load_corpus("shakespeare")
    tokenizer = CharTokenizer.from_text(corpus.text("all"))
    train, val = corpus.encode(tokenizer, "train"), corpus.encode(tokenizer, "val")
    return tokenizer, train, val, *next(WindowDataset(val, 64).batches(WINDOWS, limit=WINDOWS))


def reference_events(seed: int, steps: int, eval_every: int) -> Iterator[tuple[int, float | None]]:
    """(step, None) after a step, (step, held-out loss) after an evaluation."""
    tokenizer, train, _, inputs, targets = data()
    torch.manual_seed(seed)
    model = ReferenceGPT(Shape(tokenizer.vocab_size))
    optimizer, characters = build_adamw(model, 1e-3), train.numpy()
    for step in range(steps + 1):
        if step % eval_every == 0 or step == steps:
            with torch.no_grad():
                parts = zip(inputs.split(64), targets.split(64), strict=True)
                yield step, statistics.fmean(model(*part).item() for part in parts)
        if step < steps:
            train_step(
                model, optimizer, learning_rate(step, steps, 1e-3), list_built_batch(characters, 64, 12)
            )
            yield step + 1, None


def labkit_events(
    recipe: Recipe, seed: int, steps: int, eval_every: int
) -> Iterator[tuple[int, float | None]]:
    """The same of labkit's Trainer."""
    tokenizer, train, val, *_ = data()
    config = replace(
        recipe.train,
        max_steps=steps,
        eval_every=eval_every,
        eval_windows=WINDOWS,
        precision="fp32",
        threads=torch.get_num_threads(),
        seed=seed,
    )
    torch.manual_seed(seed)
    model = GPT(GPTConfig.preset("char-mini", vocab_size=tokenizer.vocab_size, **recipe.model))
    for event in Trainer(model, train, val, config, device="cpu").events():
        if isinstance(event, Step):
            yield event.step, None
        elif isinstance(event, Evaluation):
            yield event.step, event.val_loss


Events = Callable[[int, int, int], Iterator[tuple[int, float | None]]]
"""From seed, steps and evaluation interval."""


def contestants() -> dict[str, tuple[Events, int, int]]:
    """By name: events, number of steps, steps between evaluations."""
    result: dict[str, tuple[Events, int, int]] = {REFERENCE: (reference_events, 2000, 100)}
    for name, recipe in recipes().items():
        assert recipe.train.max_steps
        result[name] = (partial(labkit_events, recipe), recipe.train.max_steps, 40)
    return result


def best_threads(events: Events, steps: int = 20, rounds: int = 3) -> int:
    """One or two threads, whichever takes its steps faster."""
    taken: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for threads, seconds in taken.items():
            torch.set_num_threads(threads)
            first = itertools.islice(events(0, 100, 100), steps + 1)  # one evaluation comes before them
            seconds.append(timed(first, skip=steps // 4)[1])
    return min(taken, key=lambda threads: statistics.median(taken[threads]))


def timed(events: Iterator[tuple[int, float | None]], skip: int = 0) -> tuple[Curve, float]:
    """The curve and the seconds of all steps but the first `skip`; the clock is off during evaluations."""
    curve, seconds, load = Curve(), 0.0, OtherLoad()
    began = time.perf_counter()
    for step, loss in events:
        if loss is not None:
            curve.add(step, seconds, loss)
        elif step > skip:
            seconds += time.perf_counter() - began
        began = time.perf_counter()
    curve.other_load = load.cores()
    return curve, seconds


def summarise(curves: dict[str, list[Curve]]) -> dict[str, dict[str, Any]]:
    """Of each contestant, over the seeds: median and range of the final loss, the seconds and the ratio."""
    targets = [curve.losses[-1] for curve in curves[REFERENCE]]
    whole = [curve.seconds[-1] for curve in curves[REFERENCE]]
    rows = {}
    for name, runs in curves.items():
        if name == REFERENCE:
            reached: list[float | None] = list(whole)
        else:
            reached = [run.reaches(target) for run, target in zip(runs, targets, strict=True)]
        ratios = [None if at is None else at / total for at, total in zip(reached, whole, strict=True)]
        rows[name] = {
            "steps": runs[0].steps[-1],
            "final_loss": spread([run.losses[-1] for run in runs], 4),
            "seconds": spread([run.seconds[-1] for run in runs], 1),
            "seconds_to_target": spread(reached, 1),
            "ratio": spread(ratios, 3),
            "other_load": max(run.other_load for run in runs),
        }
    return rows


def spread(values: list[float] | list[float | None], digits: int) -> dict[str, float | int | None]:
    """Median, lowest and highest; a seed that never got there counts as later than all others."""
    there = sorted(value for value in values if value is not None)
    middle = len(values) // 2
    return {
        "median": round(there[middle], digits) if middle < len(there) else None,
        "low": round(there[0], digits) if there else None,
        "high": round(there[-1], digits) if len(there) == len(values) else None,
    }


def draw(curves: dict[str, list[Curve]]) -> Any:
    """Held-out loss over seconds: one line per seed, and the loss that the reference ends with."""
    figure = new_figure(1, width=8, height=4.5)
    axes = figure.axes[0]
    shown = (REFERENCE, TUNED, FAST, ROTARY)
    for name, colour, line in zip(shown, COLOURS, ("-", "--", ":", "-."), strict=False):
        for number, curve in enumerate(curves[name]):
            label = name if number == 0 else None
            axes.plot(curve.seconds, curve.losses, line, color=colour, label=label, linewidth=1.4)
    target = statistics.median(curve.losses[-1] for curve in curves[REFERENCE])
    axes.axhline(target, color="0.4", linewidth=0.8, label=f"where the reference ends: {target:.2f}")
    axes.set(
        title="How soon is the held-out loss down?",
        xlabel="seconds of training steps",
        ylabel="nats per character",
    )
    axes.set(ylim=(target - 0.15, target + 0.9), xlim=(0, None))
    axes.legend()
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one seed, few steps, nothing written")
    quick = parser.parse_args().quick
    everyone = contestants()
    data()
    if not quick:
        calibrate()
    threads: dict[str, int] = {}
    for name in everyone:
        measured = name if name in (REFERENCE, TUNED) else FAST
        if measured not in threads:
            threads[measured] = best_threads(everyone[measured][0], *((4, 1) if quick else ()))
            print(f"{measured}: faster with {threads[measured]} thread(s)", flush=True)
        threads[name] = threads[measured]

    seeds = SEEDS[:1] if quick else SEEDS
    curves: dict[str, list[Curve]] = {name: [] for name in everyone}
    names = list(everyone)
    for seed in seeds:
        for name in names[seed:] + names[:seed]:
            events, steps, eval_every = everyone[name]
            if quick:
                steps, eval_every = steps // 50, steps // 100
            else:
                calibrate()
            torch.set_num_threads(threads[name])
            curve, _ = timed(events(seed, steps, eval_every))
            curves[name].append(curve)
            busy = f"  (busy: {curve.other_load} other cores)" if curve.other_load > BUSY else ""
            print(
                f"seed {seed}  {name:<36}{steps:>5} steps {curve.seconds[-1]:>7.1f} s  "
                f"loss {curve.losses[-1]:.3f}{busy}",
                flush=True,
            )

    rows = summarise(curves)
    print(
        f"\n{'':<36}{'steps':>6}{'final loss':>12}{'s to target':>13}{'of reference':>14}   range over seeds"
    )
    for name, row in rows.items():
        ratio = row["ratio"]
        print(
            f"{name:<36}{row['steps']:>6}{row['final_loss']['median']:>12}"
            f"{row['seconds_to_target']['median'] or 'never':>13}{ratio['median'] or '':>14}   "
            f"{ratio['low'] or 'never'} to {ratio['high'] or 'never'}"
        )
    figure = draw(curves)
    if quick:
        sys.exit()
    figure.savefig(FIGURE, dpi=110)
    kept = {name: [vars(curve) for curve in runs] for name, runs in curves.items()}
    save("time_to_loss", {"table": rows, "threads": threads, "seeds": list(seeds), "curves": kept})


if __name__ == "__main__":
    main()
