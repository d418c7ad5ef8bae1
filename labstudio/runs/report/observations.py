"""Sentences about the results, each computed from them: what changed, by how much, and whether by chance."""

from __future__ import annotations

from typing import Any, Literal

from labstudio.runs.report.outcomes import Outcome, noise

_HOW_MEASURED = {"seed", "eval_every", "eval_windows", "checkpoint_every", "keep_last", "threads"}


def observations(outcomes: list[Outcome]) -> list[str]:
    """What the numbers say, one Markdown paragraph each."""
    chance = noise(outcomes)
    by_name = {each.name: each for each in outcomes}
    said = overall(outcomes)
    for each in outcomes:
        other = by_name.get(each.about["against"] or "")
        if other is not None:
            said.append(comparison(each, other, chance))
    said += [overfitting(each, chance) for each in outcomes]
    return [sentence for sentence in said if sentence]


def overall(outcomes: list[Outcome]) -> list[str]:
    """What chance does, how the first experiment went, and which one is best."""
    chance = noise(outcomes)
    return [_seeds(outcomes, chance), _course(outcomes[0]), *_rankings(outcomes, chance)]


def judgement(difference: float, chance: float | None) -> str:
    """Say what a difference in held-out loss is worth, next to the spread that seeds alone make."""
    size = f"{'higher' if difference > 0 else 'lower'} by {abs(difference):.3f}"
    if chance is None:
        return f"{size}; with one seed each, chance cannot be told from effect"
    times = abs(difference) / chance if chance else float("inf")
    if times <= 1:
        return f"{size}, which is within the spread of seeds ({chance:.3f}): no effect shown"
    if times <= 2:
        return f"{size}, little more than the spread of seeds ({chance:.3f}): to be confirmed with more seeds"
    return f"{size}, {times:.1f} times the spread of seeds ({chance:.3f})"


def direction(difference: float, chance: float | None) -> Literal["lower", "higher", "unclear"]:
    """Which way a difference in held-out loss points; unclear up to twice what seeds alone make."""
    if chance is None or abs(difference) <= 2 * chance:
        return "unclear"
    return "higher" if difference > 0 else "lower"


def changes(one: Outcome, other: Outcome) -> list[str]:
    """The settings in which an experiment differs from another: `learning_rate` 0.001 instead of 0.0005."""
    mine, theirs = one.about["settings"], other.about["settings"]
    new = one.config["model"] | mine["train"] | mine["data"] | {"start": _start(one)}
    old = other.config["model"] | theirs["train"] | theirs["data"] | {"start": _start(other)}
    return [
        f"`{name}` {_value(new[name])} instead of {_value(old.get(name))}"
        for name in new
        if name not in _HOW_MEASURED and new[name] != old.get(name)
    ]


def _start(outcome: Outcome) -> str:
    source = outcome.about["init_from"]
    return f"the weights of {source}" if source else "random weights"


def _value(value: Any) -> str:
    if value is None:
        return "the default"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _seeds(outcomes: list[Outcome], chance: float | None) -> str:
    repeated = [each for each in outcomes if each.spread is not None]
    if chance is None:
        return "Every experiment ran with one seed, so no difference below can be told from chance."
    spreads = "; ".join(f"{each.name} {each.spread:.3f} over {len(each.seeds)} seeds" for each in repeated)
    return (
        f"**Chance.** Runs that differ in nothing but the seed end apart: {spreads} (largest minus smallest "
        f"held-out loss). The widest, {chance:.3f}, is called the spread of seeds below; a smaller "
        "difference shows nothing."
    )


def _course(baseline: Outcome) -> str:
    curve = baseline.held_out()
    first, last = curve["val_loss"].iloc[0], curve["val_loss"].iloc[-1]
    middle = curve[curve["val_loss"] <= first - (first - last) / 2]
    text = (
        f"**{baseline.name}.** The held-out loss goes from {first:.3f} to {last:.3f} (perplexity "
        f"{baseline.perplexity:,.1f}) in {baseline.total_steps:,} steps"
    )
    if len(middle) and last < first:
        text += f"; half of that fall is done by step {int(middle['step'].iloc[0]):,}"
    gap = last - baseline.train_loss
    return f"{text}. At the end it is {abs(gap):.3f} {'above' if gap > 0 else 'below'} the training loss."


def _rankings(outcomes: list[Outcome], chance: float | None) -> list[str]:
    """The best and its follower, among experiments measured on the same text."""
    texts: dict[tuple[Any, ...], list[Outcome]] = {}
    for each in outcomes:
        texts.setdefault(each.held_out_text(), []).append(each)
    said = []
    for same in texts.values():
        if len(same) < 2:
            continue
        best, second = sorted(same, key=lambda each: each.val_loss)[:2]
        others = f"Of {', '.join(each.name for each in same)}" if len(texts) > 1 else "Of all experiments"
        said.append(
            f"**Ranking.** {others}, {best.name} ends with the lowest held-out loss, {best.val_loss:.3f}; "
            f"next is {second.name}, {judgement(second.val_loss - best.val_loss, chance)}."
        )
    return said


def comparison(one: Outcome, other: Outcome, chance: float | None) -> str:
    """What an experiment changed, and what came of it."""
    text = (
        f"**{one.name}** ({'; '.join(changes(one, other)) or 'the same settings'}): held-out loss "
        f"{one.val_loss:.3f} against {other.val_loss:.3f} of {other.name}, "
        f"{judgement(one.val_loss - other.val_loss, chance)}. Perplexity {one.perplexity:,.1f} against "
        f"{other.perplexity:,.1f}."
    )
    text += _amount(f"It has {one.parameters:,} parameters", one.parameters / other.parameters)
    text += _amount(f"It takes {one.total_steps:,} steps", one.total_steps / other.total_steps)
    text += _amount(f"It reads {one.tokens:,} tokens", one.tokens / other.tokens)
    curve = one.held_out()
    ahead = curve[(curve["val_loss"] <= other.val_loss) & (curve["step"] < one.total_steps)]
    if len(ahead) and one.val_loss < other.val_loss:
        step = int(ahead["step"].iloc[0])
        text += f" It is below the final loss of {other.name} from step {step:,} of {one.total_steps:,} on."
    if one.config["model"]["context_length"] != other.config["model"]["context_length"]:
        text += " Each is measured on windows of its own context, as it would be used."
    return text


def _amount(text: str, ratio: float) -> str:
    """The sentence with how many times as much that is, or nothing where it is the same."""
    if 0.99 < ratio < 1.01:
        return ""
    percent = f"{abs(ratio - 1):.0%} {'more' if ratio > 1 else 'fewer'}"
    return f" {text} ({f'{ratio:.1f} times as many' if ratio >= 1.995 else percent})."


def overfitting(one: Outcome, chance: float | None) -> str:
    """Whether the held-out loss rose again by more than chance; nothing where it did not."""
    curve = one.held_out()
    lowest = float(curve["val_loss"].min())
    step = int(curve["step"][curve["val_loss"] == lowest].iloc[0])
    rise = one.val_loss - lowest
    if rise <= (chance or 0.01):
        return ""
    return (
        f"**{one.name} overfits.** Its held-out loss is lowest at step {step:,} ({lowest:.3f}) and "
        f"{rise:.3f} higher at the end, where the training loss is {one.train_loss:.3f}."
    )
