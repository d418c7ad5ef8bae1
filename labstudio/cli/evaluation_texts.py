"""What `labkit eval` reads: the texts that a model was not trained on, unless others are named."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from labkit.config import DataConfig
from labstudio.cli.models import run_named

if TYPE_CHECKING:
    from labkit.text import Document

Split = Literal["val", "test", "train", "all"]
SHIPPED_WITH = DataConfig(corpus="shakespeare")
"""What the model that comes with labkit was trained on."""


@dataclass(frozen=True)
class Texts:
    """Documents, what to call them, and what should be known of them."""

    name: str
    documents: tuple[Document, ...]
    notes: tuple[str, ...] = ()


def choose_texts(sources: list[str], corpus: str | None, split: Split | None, context_length: int) -> Texts:
    """What to evaluate models on.

    sources: the model, and the one to compare it with.  corpus: its own texts when not given, Shakespeare
    for a model that is no run.  split: what is held out when not given, or all of a text of the user's own.
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
    """What to bear in mind where a model may have read the texts."""
    own = trained_on(source)
    if own is None:
        return f"It is not known what {source} was trained on; it may have read these texts."
    if _same(own.corpus, corpus) and split in ("train", "all"):
        return f"{source} was trained on these texts. For how it does on new ones: --split val."
    return ""
