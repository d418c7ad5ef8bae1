"""The entries of a sweep in experiments_log.md: one per topic, with the parts that every entry has."""

from __future__ import annotations

from collections.abc import Iterable

from labstudio.runs.report.figures import by_topic, figure_name, with_compared
from labstudio.runs.report.observations import changes, comparison, direction, overall, overfitting
from labstudio.runs.report.outcomes import Outcome, noise, results_table
from labstudio.runs.report.sections import data_section, formatted, machine, recipe
from labstudio.runs.sweep_file import shipped_sweeps
from labstudio.tables import markdown_table

_COLUMNS = ["experiment", "seeds", "parameters", "steps", "tokens"]
_COLUMNS += ["train_loss", "val_loss", "val_loss_spread", "perplexity"]
_UNITS = (
    "Losses are in nats per token at the end, means over the seeds; the spread is the largest minus the "
    "smallest held-out loss over them. Questions, predictions and what would change our mind stand in the "
    "sweep's file; numbers, and the sentences around them, are computed from the run folders."
)


def log_entries(outcomes: list[Outcome]) -> str:
    """All entries as Markdown, headings from level 3: first the baseline, then each topic.

    An experiment without a topic has an entry of its own.
    """
    said = [_UNITS]
    for title, own in by_topic(outcomes).items():
        said.append(f"### {title if title == own[0].name else title.capitalize()}")
        said += [f"#### {name}\n\n{part}" for name, part in entry_parts(own, outcomes).items()]
    return "\n\n".join(said)


def entry_parts(own: list[Outcome], outcomes: list[Outcome]) -> dict[str, str]:
    """What some experiments of a sweep asked, how, and what came out, by the headings of the log's entries.

    Of the meanings in the sweep's file only the one is quoted that fits what came out.
    """
    return {
        "Question": _told(own, "question"),
        "Prediction": _told(own, "prediction"),
        "Setup": _setup(own, outcomes),
        "Result": _result(own, outcomes),
        "What it means": _meaning(own, outcomes),
        "What would change our mind": _told(own, "change_our_mind"),
    }


def _setup(own: list[Outcome], outcomes: list[Outcome]) -> str:
    first, said = outcomes[0], []
    if own[0] is first:
        said += [data_section(outcomes), f"{recipe(first)} {first.parameters:,} parameters; {_seeds(first)}."]
    changed = {each.name: changes(each, first) for each in own if each is not first}
    if changed:
        shared = set.intersection(*map(set, changed.values())) if len(changed) > 1 else set()
        lines = [f"all: {'; '.join(sorted(shared))}."] if shared else []
        for each in own:
            if each is not first:
                alone = [change for change in changed[each.name] if change not in shared]
                lines.append(f"**{each.name}**: {'; '.join([*alone, _seeds(each)])}.")
        said.append(_list(lines))
        where = "" if own[0] is first else machine(own)
        said.append(f"Everything else is as in {first.name}.{where}")
    names = ",".join(each.name for each in with_compared(own, outcomes))
    sweep = first.about["sweep"]
    file = sweep if sweep in shipped_sweeps() else f"{sweep}.toml"
    return "\n\n".join(said) + f" Again: `labkit sweep {file} --only {names}`"


def _result(own: list[Outcome], outcomes: list[Outcome]) -> str:
    drawn = with_compared(own, outcomes)
    table = markdown_table(formatted(results_table(drawn)[_COLUMNS]))
    ends = "; ".join(f"{each.name} {each.val_loss:.2f}" for each in drawn)
    figure = figure_name(own[0].about["topic"] or own[0].name, drawn)
    return (
        f"{table}\n\n![Training and held-out loss as training goes on. Held-out loss at the end: {ends}.]"
        f"(visualizations/{own[0].about['sweep']}/{figure})"
    )


def _meaning(own: list[Outcome], outcomes: list[Outcome]) -> str:
    chance, by_name = noise(outcomes), {each.name: each for each in outcomes}
    said = overall(outcomes) if own[0] is outcomes[0] else []
    for each in own:
        other = by_name.get(each.about["against"] or "")
        if other is not None:
            fits = direction(each.val_loss - other.val_loss, chance)
            meaning = _one_line(each.about.get(f"if_{fits}", ""))
            said.append(f"{comparison(each, other, chance)} {meaning}")
        said.append(overfitting(each, chance))
    return _list(filter(None, said)) or "It is compared with nothing: the others are measured on other text."


def _told(own: list[Outcome], field: str) -> str:
    """What the sweep's file says of each experiment, or that it does not."""
    told = {
        each.name: _one_line(each.about.get(field, "")) for each in own
    }  # older records have fewer fields
    if len(told) == 1:
        (said,) = told.values()
    else:
        said = _list(f"**{name}**: {text}" for name, text in told.items() if text)
    return said or f"The sweep's file has no `{field}`."


def _seeds(outcome: Outcome) -> str:
    return f"{'seed' if len(outcome.seeds) == 1 else 'seeds'} {', '.join(map(str, outcome.seeds))}"


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line.strip()}" for line in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())
