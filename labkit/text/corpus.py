"""What a corpus is: documents in three splits, with where they come from and under what terms."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from labkit.text.cleaning import CorpusError

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

    from labkit.text.tokenizers import Tokenizer

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Document:
    """One text: a play, a story, a file, or the part of a file that belongs to one split."""

    title: str
    text: str
    group: str = ""
    """What kind of document this is (the folder it lies in)."""


@dataclass(frozen=True)
class Corpus:
    """Documents in three splits, with where they come from and under what terms."""

    name: str
    train: tuple[Document, ...]
    val: tuple[Document, ...] = ()
    test: tuple[Document, ...] = ()
    licence: str = ""
    source: str = ""

    @property
    def documents(self) -> tuple[Document, ...]:
        """Every document, whatever its split."""
        return self.train + self.val + self.test

    def split(self, split: str = "train") -> tuple[Document, ...]:
        """The documents of one split ("train", "val" or "test"), or of "all"."""
        if split == "all":
            return self.documents
        if split not in SPLITS:
            raise CorpusError(
                f"{self.name}: split={split!r} is not known. Choose from train, val, test, all."
            )
        return getattr(self, split)

    def text(self, split: str = "train") -> str:
        """The documents of a split in one string, a blank line between them."""
        return "\n\n".join(document.text for document in self.split(split))

    def encode(self, tokenizer: Tokenizer, split: str = "train", groups: tuple[str, ...] = ()) -> Tensor:
        """The ids of every document, each followed by the tokenizer's end-of-text id when it has one.

        groups: only documents of these groups; of all when none is named.
        Returns shape (tokens,), int64.  Raises CorpusError for a group that the split does not have.
        """
        import numpy as np
        import torch

        chosen = self.split(split)
        if missing := set(groups) - {document.group for document in chosen}:
            known = ", ".join(sorted({document.group or "(none)" for document in chosen}))
            raise CorpusError(
                f"{self.name}: {split} has no group {', '.join(sorted(missing))}, only {known}."
            )
        texts = [document.text for document in chosen if not groups or document.group in groups]
        pieces = tokenizer.encode_batch(texts)
        if tokenizer.eos_id is not None:
            end = np.array([tokenizer.eos_id], dtype=np.int64)
            pieces = [part for piece in pieces for part in (piece, end)]
        return torch.from_numpy(np.concatenate([np.empty(0, dtype=np.int64), *pieces]))

    @cached_property
    def fingerprint(self) -> str:
        """sha256, in hex, of every split, title and text."""
        digest = hashlib.sha256()
        for split, document in self._labelled():
            for part in (split, document.title, document.text):
                digest.update(hashlib.sha256(part.encode("utf-8", "surrogatepass")).digest())
        return digest.hexdigest()

    def summary(self) -> pandas.DataFrame:
        """A table of how many documents and characters each split has."""
        import pandas as pd

        rows = [
            (name, len(self.split(name)), sum(len(document.text) for document in self.split(name)))
            for name in SPLITS
        ]
        return pd.DataFrame(rows, columns=["split", "documents", "characters"])

    def _labelled(self) -> Iterator[tuple[str, Document]]:
        for split in SPLITS:
            for document in self.split(split):
                yield split, document


def check_split(
    corpus: Corpus, *, tokenizer: Tokenizer | None = None, context_length: int | None = None
) -> None:
    """Raise CorpusError where a split cannot be trusted or is too short.

    No text may stand in two splits, or twice in one; there must be training text; and, given a
    tokenizer and a context length, each split that has documents needs one window at least.
    """
    if not corpus.train:
        raise CorpusError(f"{corpus.name}: there are no documents to train on.")
    seen: dict[str, tuple[str, str]] = {}
    for split, document in corpus._labelled():
        where = (split, document.title)
        if document.text in seen:
            other = seen[document.text]
            raise CorpusError(
                f"{corpus.name}: {document.title!r} ({split}) has the same text as {other[1]!r} "
                f"({other[0]}). Remove one of them, or what is held out has been trained on."
            )
        seen[document.text] = where
    if tokenizer is None or context_length is None:
        return
    for name in SPLITS:
        length = len(corpus.encode(tokenizer, name))
        if corpus.split(name) and length < context_length + 1:
            raise CorpusError(
                f"{corpus.name}: {name} has {length} tokens, but context_length={context_length} needs at "
                f"least {context_length + 1}. Use more text or a shorter context."
            )
