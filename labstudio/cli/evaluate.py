"""`labkit eval`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import Positional

from labstudio.cli.evaluation_texts import Split, Texts, choose_texts
from labstudio.cli.models import open_model
from labstudio.cli.runs import _aligned

if TYPE_CHECKING:
    from labkit.analysis.documents import DocumentScore, Progress
    from labkit.model import GPT
    from labkit.text import Tokenizer

Model = Annotated[str, tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")]
Other = Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")]
Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
Number = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Step = Annotated[str | None, tyro.conf.arg(metavar="STEP|best|latest", help_behavior_hint="")]
Part = Annotated[Split | None, tyro.conf.arg(metavar="val|test|train|all", help_behavior_hint="")]


def evaluate(
    model: Positional[Model] = "shipped",
    corpus: Text = None,
    split: Part = None,
    against: Other = None,
    stride: Number = None,
    checkpoint: Step = None,
    against_checkpoint: Step = None,
    device: Text = None,
    threads: Number = None,
) -> int:
    """Measure how well a model predicts text: loss, perplexity and bits per byte, document by document.

    Every token but the first of a document is predicted once, in windows of the model's context that slide
    over it. Perplexities compare models with the same tokenizer, bits per byte compare all.

    labkit eval first --against shipped says which of two predicts the same text better, whether by more than
    chance, and, where they share a tokenizer, at which tokens.

    Args:
        model: A run's name or folder (`labkit runs`), shipped, smollm2, a folder or file of weights, or a
            published model's name; labkit's own when not given.
        corpus: A corpus by name (shakespeare, tiny, …), or a file or folder of .txt and .md; the texts that a
            run was trained on, of which the held-out part is read, when not given.
        split: Part of the corpus. What training held out (val) when not given; all of a text of your own.
        against: Another model to compare with, on the same text.
        stride: Tokens by which windows advance; half the context when not given. Smaller is slower, and gives
            each token more of what comes before it.
        checkpoint: Checkpoint of the run; its newest when not given.
        against_checkpoint: Checkpoint of the other one; without --against, of the same run.
        device: cpu, cuda or mps; the best there is when not given.
        threads: CPU threads; when not given, one for a small model, else all cores that may be used.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"eval: threads={threads} must be at least 1.")
    sources = [(model, checkpoint)]
    if against is not None or against_checkpoint is not None:
        sources.append((against or model, against_checkpoint))

    from labkit.device import best_device, decoding_threads, set_threads

    place = best_device(device)
    opened = [_open(*source) for source in sources]
    set_threads(threads or decoding_threads(max(each.num_parameters() for each, _ in opened)))
    for each, _ in opened:
        each.to(place)
    context = opened[0][0].config.context_length
    texts = choose_texts(list(dict.fromkeys(name for name, _ in sources)), corpus, split, context)
    for note in texts.notes:
        print(f"Note: {note}", file=sys.stderr)
    names = [_short(*source) for source in sources]
    if len(opened) == 1:
        _evaluate(names[0], *opened[0], texts, stride)
    else:
        _compare(names if names[0] != names[1] else [name for name, _ in sources], opened, texts, stride)
    return 0


def _evaluate(name: str, model: GPT, tokenizer: Tokenizer, texts: Texts, stride: int | None) -> None:
    from labkit.analysis import evaluate_documents, total_score
    from labstudio.figures import scores_table

    with _bar([tokenizer], texts) as progress:
        documents = evaluate_documents(model, tokenizer, texts.documents, stride=stride, progress=progress)
        scores = list(documents)
    table = scores_table([*scores, total_score(scores)])
    print(f"{name} on {texts.name}\n\n{_aligned(table)}")
    _name_skipped(scores)


def _compare(names: list[str], opened: list[tuple[GPT, Tokenizer]], texts: Texts, stride: int | None) -> None:
    from labkit.analysis import compare_models
    from labstudio.figures import comparison_table, comparison_words, gaps_table

    (model, tokenizer), (other, other_tokenizer) = opened
    with _bar([tokenizer, other_tokenizer], texts) as progress:
        found = compare_models(
            model, other, tokenizer, texts.documents,
            other_tokenizer=other_tokenizer, stride=stride, progress=progress,
        )  # fmt: skip
    first, second = names
    table = comparison_table(found, (first, second))
    print(f"{first} against {second} on {texts.name}: bits per byte\n\n{_aligned(table)}")
    print(f"\n{comparison_words(found, (first, second))}")
    for word, gaps in (("ahead", found.ahead), ("behind", found.behind)):
        if gaps:
            print(f"\nWhere {first} is most {word} (nats for the token)\n")
            print(_aligned(gaps_table(gaps, tokenizer, (first, second))))
    _name_skipped([each.score for each in found.documents])


def _open(source: str, checkpoint: str | None) -> tuple[GPT, Tokenizer]:
    model, tokenizer = open_model(source, checkpoint)
    if tokenizer is None:
        raise ValueError(
            f"eval: {source} has no tokenizer that labkit reads. Put the model's tokenizer.json, or its "
            "vocab.json and merges.txt, beside the weights."
        )
    return model, tokenizer


def _short(source: str, checkpoint: str | None) -> str:
    name = Path(source).name or source
    return f"{name} at {checkpoint}" if checkpoint else name


@contextmanager
def _bar(tokenizers: Iterable[Tokenizer], texts: Texts) -> Iterator[Progress]:
    """A progress bar on a terminal, over the tokens that each tokenizer makes of the texts."""
    from tqdm import tqdm

    from labkit.analysis.documents import encode_document

    lengths = [len(encode_document(each, text)[0]) - 1 for each in tokenizers for text in texts.documents]
    with tqdm(total=sum(lengths), unit="token", desc="reading", leave=False, disable=None) as bar:
        yield bar.update


def _name_skipped(scores: Iterable[DocumentScore]) -> None:
    """Say on standard error which documents the totals leave out, and why."""
    from labstudio.visible import unhidden

    skipped = [score for score in scores if score.skipped]
    for score in skipped[:5]:
        print(f"Note: {unhidden(score.title)} is left out: {unhidden(score.skipped)}", file=sys.stderr)
    if len(skipped) > 5:
        print(f"Note: {len(skipped) - 5} more are left out.", file=sys.stderr)
