"""The sections of a report, and a sweep's entries in experiments_log.md: what was done, what came out."""

from __future__ import annotations

from collections.abc import Iterable

import pandas as pd

from labstudio.runs.report.figures import by_topic, figure_name, with_compared
from labstudio.runs.report.observations import changes, comparison, direction, overall, overfitting
from labstudio.runs.report.outcomes import Outcome, noise, results_table
from labstudio.runs.sweep_file import shipped_sweeps
from labstudio.tables import markdown_table

_OPTIMIZERS = {"adamw": "AdamW", "muon": "Muon on the blocks' matrices and AdamW on the rest"}
_FORMATS = {
    **dict.fromkeys(("parameters", "steps", "tokens"), "{:,}"),
    **dict.fromkeys(("train_loss", "val_loss", "val_loss_spread", "best_val_loss"), "{:.3f}"),
    "perplexity": "{:,.1f}",
    "seconds": "{:,.0f}",
}
_COLUMNS = ["experiment", "seeds", "parameters", "steps", "tokens"]
_COLUMNS += ["train_loss", "val_loss", "val_loss_spread", "perplexity"]
_UNITS = (
    "Losses are in nats per token at the end, means over the seeds; the spread is the largest minus the "
    "smallest held-out loss over them. Questions, predictions and what would change our mind stand in the "
    "sweep's file; numbers, and the sentences around them, are computed from the run folders."
)


def model_section(outcomes: list[Outcome]) -> str:
    """The first experiment's architecture in words, and every field of its configuration."""
    model = outcomes[0].config["model"]
    norm, blocks = model["norm"], "block" if model["n_layers"] == 1 else "blocks"
    positions = "no positions" if model["positions"] == "none" else f"{model['positions']} positions"
    head = "shares the token embedding's weights" if model["tie_weights"] else "has weights of its own"
    rows = [
        {"parameter": f"`{name}`", "value": str(value)} for name, value in model.items() if value is not None
    ]
    return (
        f"A decoder-only transformer that predicts the next token: token embeddings with {positions}; "
        f"{model['n_layers']} {blocks}, each causal attention ({model['n_heads']} heads of "
        f"{model['d_model'] // model['n_heads']} features) and a feed-forward network "
        f"({model['activation']}), both behind a {norm}; a last {norm}; and an output layer that {head}. "
        f"{outcomes[0].name} has {outcomes[0].parameters:,} parameters.\n\n{markdown_table(rows)}"
    )


def data_section(outcomes: list[Outcome]) -> str:
    """What the first experiment is trained on and measured on."""
    data = outcomes[0].about["settings"]["data"]
    if data["sequences"]:
        return (
            f"Tokenised sequences from `{data['sequences']}`, cut to the context length and padded; padding "
            "is left out of the loss. The last tenth is held out."
        )
    windows = f"windows {data['stride']} tokens apart" if data["stride"] else "random crops"
    part = f"the first {data['max_tokens']:,} tokens of " if data["max_tokens"] else ""
    groups = f" ({', '.join(data['groups'])} only)" if data["groups"] else ""
    return (
        f"Training reads {windows} from {part}the training texts of the corpus `{data['corpus']}`{groups}, "
        f"in tokens of the `{data['tokenizer']}` tokenizer ({outcomes[0].config['model']['vocab_size']:,} "
        "different ones). Whole texts are held out; the held-out loss is measured on the same windows of "
        "them each time."
    )


def setup_section(outcomes: list[Outcome]) -> str:
    """How the first experiment is trained, and what each of the others changes."""
    first = outcomes[0]
    by_name = {each.name: each for each in outcomes}
    rows = []
    for each in outcomes:
        other = by_name.get(each.about["against"] or "", first)
        rows.append(
            {
                "experiment": each.name,
                "differs in": "; ".join(changes(each, other)) or "—",
                "from": other.name if other is not each else "—",
                "question": each.about["question"],
            }
        )
    return f"{recipe(first)} Everything else is as in {first.name}:\n\n{markdown_table(rows)}"


def recipe(one: Outcome) -> str:
    """How an experiment is trained, and on which machine it was."""
    train = one.about["settings"]["train"]
    batch = f"{train['batch_tokens']} tokens" if train["batch_tokens"] else f"{train['batch_size']} sequences"
    clip = f"gradients clipped at {train['grad_clip']:g}" if train["grad_clip"] else "no clipping"
    return (
        f"{_OPTIMIZERS[train['optimizer']]}, learning rate {train['learning_rate']:g} ({train['schedule']}), "
        f"betas {', '.join(map(str, train['betas']))}, weight decay {train['weight_decay']:g}, {clip}, "
        f"{batch} a step, {one.total_steps:,} steps. The loss is the mean cross-entropy over all real "
        f"targets; loss and perplexity = exp(loss) are recorded at each step.{machine([one])}"
    )


def results_section(table: pd.DataFrame, unfinished: list[str]) -> str:
    """The table of results as Markdown."""
    text = markdown_table(formatted(table))
    text += (
        "\n\nLosses in nats per token at the end, means over the seeds; the spread is the largest minus the "
        "smallest held-out loss over them. Seconds are of one run, measured while others ran beside it."
    )
    return text + (f"\n\nNot finished, so not shown: {', '.join(unfinished)}." if unfinished else "")


def figures_section(outcomes: list[Outcome]) -> str:
    """All figures, each with what it shows as its text alternative."""
    ends = "; ".join(f"{each.name} {each.val_loss:.2f}" for each in outcomes)
    perplexities = "; ".join(f"{each.name} {each.perplexity:,.0f}" for each in outcomes)
    lines = [
        f"![Training and held-out loss over tokens. Held-out loss at the end: {ends}.](loss_curves.png)",
        "![Training and held-out perplexity over tokens. Held-out perplexity at the end: "
        f"{perplexities}.](perplexity_curves.png)",
    ]
    for each in outcomes:
        first = each.held_out()["val_loss"].iloc[0]
        lines += [
            f"![{each.name}: loss per step; the held-out loss goes from {first:.2f} to {each.val_loss:.2f}.]"
            f"(loss_curve_{each.name}.png)",
            f"![{each.name}: perplexity per step; the held-out perplexity ends at {each.perplexity:,.0f}.]"
            f"(perplexity_curve_{each.name}.png)",
        ]
    return "\n\n".join(lines)


def plain(table: pd.DataFrame) -> str:
    """The table of results as plain text."""
    return pd.DataFrame(formatted(table)).to_string(index=False) + "\n"


def formatted(table: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of a table of results, rounded."""
    return [
        {
            str(name): "-" if pd.isna(value) else _FORMATS.get(str(name), "{}").format(value)
            for name, value in row.items()
        }
        for row in table.to_dict("records")
    ]


def machine(outcomes: list[Outcome]) -> str:
    """A sentence on what the experiments were computed with; nothing where that was not recorded."""
    told = [each.environment for each in outcomes if each.environment]
    where = [
        f"{each['device']}, {each['precision']}, {each['machine']}, with PyTorch {each['torch']}"
        for each in told
    ]
    return f" Computed on {'; '.join(dict.fromkeys(where))}." if where else ""


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
