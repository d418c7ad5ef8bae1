"""`labkit eval`: how well models predict text that they were not trained on."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from labkit.config import DataConfig
from labstudio.cli.models import choose_device, open_with_tokenizer, run_named
from labstudio.cli.options import Number, Text
from labstudio.tables import aligned_table

if TYPE_CHECKING:
    from labkit.analysis.evaluate import DocumentScore, Progress
    from labkit.model import GPT
    from labkit.text import Document, Tokenizer

Split = Literal["val", "test", "train", "all"]
Model = Annotated[str, tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")]
Other = Annotated[str | None, tyro.conf.arg(metavar="MODEL", help_behavior_hint="")]
Step = Annotated[str | None, tyro.conf.arg(metavar="STEP|best|latest", help_behavior_hint="")]
Part = Annotated[Split | None, tyro.conf.arg(metavar="val|test|train|all", help_behavior_hint="")]

SHIPPED_WITH = DataConfig(corpus="shakespeare")
"""What the model that comes with labkit was trained on."""


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
    sources = [(model, checkpoint)]
    if against is not None or against_checkpoint is not None:
        sources.append((against or model, against_checkpoint))

    opened = [open_with_tokenizer("eval", *source) for source in sources]
    place = choose_device("eval", device, threads, max(each.num_parameters() for each, _ in opened))
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
    print(f"{name} on {texts.name}\n\n{aligned_table(table)}")
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
    print(f"{first} against {second} on {texts.name}: bits per byte\n\n{aligned_table(table)}")
    print(f"\n{comparison_words(found, (first, second))}")
    for word, gaps in (("ahead", found.ahead), ("behind", found.behind)):
        if gaps:
            print(f"\nWhere {first} is most {word} (nats for the token)\n")
            print(aligned_table(gaps_table(gaps, tokenizer, (first, second))))
    _name_skipped([each.score for each in found.documents])


def _short(source: str, checkpoint: str | None) -> str:
    name = Path(source).name or source
    return f"{name} at {checkpoint}" if checkpoint else name


@contextmanager
def _bar(tokenizers: Iterable[Tokenizer], texts: Texts) -> Iterator[Progress]:
    """A progress bar on a terminal, over the tokens that each tokenizer makes of the texts."""
    from tqdm import tqdm

    from labkit.analysis.evaluate import encode_document

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


@dataclass(frozen=True)
class Texts:
    """Documents, what to call them, and what should be known of them."""

    name: str
    documents: tuple[Document, ...]
    notes: tuple[str, ...] = ()


def choose_texts(sources: list[str], corpus: str | None, split: Split | None, context_length: int) -> Texts:
    """What to evaluate models on.

    sources: the model, and the one to compare it with.  corpus: its own texts when not given, Shakespeare
    for a model that is not a run.  split: what was held out when not given, or all of your own text.
    Raises ValueError, with the way out, where there is no such text.
    """
    own = trained_on(sources[0])
    if corpus is None and own is None and run_named(sources[0]):
        raise ValueError(
            f"eval: {sources[0]} does not say what it was trained on. Name a text: --corpus shakespeare, or "
            "the path of a file or folder."
        )
    same = own is not None and (corpus is None or _same(corpus, own.corpus))
    data = own if own and same else DataConfig(corpus=corpus or "shakespeare")
    if data.sequences:
        raise ValueError(
            f"eval: {sources[0]} was trained on prepared sequences, which have no documents. Name a text: "
            "--corpus shakespeare, or the path of a file or folder."
        )
    split = split or ("all" if not same and Path(data.corpus).exists() else "val")
    notes = [note for source in sources if (note := _note(source, data.corpus, split))]
    return Texts(f"{data.corpus} ({split})", _documents(data, split, context_length), tuple(notes))


def trained_on(source: str) -> DataConfig | None:
    """What a run or the shipped model was trained on; None where that is not known."""
    run = run_named(source)
    if run is None:
        return SHIPPED_WITH if source == "shipped" else None
    described = run.config().get("source") or {}
    try:
        return DataConfig(**described["data"]) if described else None
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{run.path / 'config.json'} is damaged, or of another version of labkit ({error}). Name a text: "
            "--corpus shakespeare, or the path of a file or folder."
        ) from error


def _documents(data: DataConfig, split: Split, context_length: int) -> tuple[Document, ...]:
    from labkit.text import is_encoded, load_corpus

    if is_encoded(data.corpus):
        return _held_out_of_ids(data.corpus, split, context_length)
    cut = {"val_fraction": 0.0, "test_fraction": 0.0} if split == "all" else {}
    groups = {"val": data.val_groups, "test": data.val_groups, "train": data.groups, "all": ()}[split]
    chosen = load_corpus(data.corpus, **cut).split(split)
    documents = tuple(each for each in chosen if not groups or each.group in groups)
    if not documents:
        kind = f" of the groups {', '.join(groups)}" if groups else ""
        raise ValueError(f"eval: {data.corpus} has no {split} texts{kind}. Choose another --split.")
    return documents


def _held_out_of_ids(folder: str, split: Split, context_length: int) -> tuple[Document, ...]:
    """The documents that training holds out of a folder made by `labkit encode`, as text again."""
    import numpy as np

    from labkit.text import Document
    from labkit.training.setup import load_data

    if split != "val":
        raise ValueError(f"eval: {folder} holds ids; of them only the held-out end is read: --split val.")
    tokenizer, _, held_out = load_data(DataConfig(corpus=folder), context_length)
    ids = np.asarray(held_out)
    ends = np.flatnonzero(ids == tokenizer.eos_id)
    texts = [tokenizer.decode(piece[piece != tokenizer.eos_id]) for piece in np.split(ids, ends)]
    return tuple(
        Document(f"held out {number}", text) for number, text in enumerate(filter(None, texts), start=1)
    )


def _same(first: str, second: str) -> bool:
    return first == second or Path(first).expanduser().resolve() == Path(second).expanduser().resolve()


def _note(source: str, corpus: str, split: Split) -> str:
    """A warning when a model may have been trained on the texts; empty otherwise."""
    own = trained_on(source)
    if own is None:
        return f"It is not known what {source} was trained on; it may have read these texts."
    if _same(own.corpus, corpus) and split in ("train", "all"):
        return f"{source} was trained on these texts. For how it does on new ones: --split val."
    return ""
