"""A corpus, documents in three splits: one that has a name, or any file or folder of the reader's own."""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from labkit.text.assets import asset_path
from labkit.text.bpe import GPT2Tokenizer, train_bpe
from labkit.text.cleaning import CorpusError, clean_play, documents_at_paragraphs, read_text
from labkit.text.tokenizers import CharTokenizer, Tokenizer

if TYPE_CHECKING:
    import pandas
    from torch import Tensor

SPLITS = ("train", "val", "test")
TEXT_SUFFIXES = (".txt", ".md")
_Splits = dict[str, tuple["Document", ...]]


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
        for split in SPLITS:
            for document in self.split(split):
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


def check_split(corpus: Corpus) -> None:
    """Raise CorpusError where there is no training text, or a text stands in two splits, or twice in one."""
    if not corpus.train:
        raise CorpusError(f"{corpus.name}: there are no documents to train on.")
    seen: dict[str, str] = {}
    for split in SPLITS:
        for document in corpus.split(split):
            title = f"{document.title!r} ({split})"
            if document.text in seen:
                raise CorpusError(
                    f"{corpus.name}: {title} has the same text as {seen[document.text]}. Remove one of them, "
                    "or what is held out has been trained on."
                )
            seen[document.text] = title


def load_corpus(
    name_or_path: str | Path, *, val_fraction: float | None = None, test_fraction: float | None = None
) -> Corpus:
    """A corpus by its name in corpora.toml, or any .txt or .md file, or a folder of them.

    A path is looked for here, then in the project's folder. A folder is split by document: which files are
    held out depends on their names alone, so that adding a file moves no other. A single file (and a folder
    with fewer files than splits) is cut at paragraph ends into a beginning, a middle and an end. Such a
    contiguous split leaks: names and scenes of the same text stand on both sides, so its validation loss is
    lower than on a text that is new as a whole. A named corpus has its own split, unless a fraction is given.

    val_fraction, test_fraction: the part of the documents, or of the characters, to hold out; 0.1 and 0.05
    when not given.
    Raises CorpusError (a ValueError), naming the file and, for bad bytes, the offset.
    """
    registry, root = _registry()
    if isinstance(name_or_path, str) and name_or_path in registry:
        corpus = _named(name_or_path, registry[name_or_path], root, val_fraction, test_fraction)
    else:
        given = Path(name_or_path).expanduser()
        path = next((path for path in (given, root / given) if path.exists()), None)
        if path is None:
            raise CorpusError(
                f"load_corpus: {str(name_or_path)!r} is neither a corpus ({', '.join(registry)}) nor a path "
                "that exists."
            )
        splits = _split(_read_documents(path), val_fraction, test_fraction)
        name = path.resolve().stem if path.is_file() else path.resolve().name
        corpus = Corpus(name, **splits, licence="unknown", source=str(name_or_path))
    check_split(corpus)
    return corpus


def corpus_names() -> list[str]:
    """The corpora that have a name."""
    return list(_registry()[0])


def build_tokenizer(name: str, corpus: Corpus) -> Tokenizer:
    """A tokenizer for a corpus: "char" (its characters), "bpe" (4,096 pieces of its training text), "gpt2".

    Raises ValueError for another name.
    """
    if name == "char":
        return CharTokenizer.from_text(corpus.text("all"))
    if name == "bpe":
        return train_bpe(corpus.text("train"), 4096)
    if name == "gpt2":
        return GPT2Tokenizer()
    raise ValueError(f"tokenizer {name!r} is not known. Choose from char, bpe, gpt2.")


def _registry() -> tuple[dict[str, dict[str, Any]], Path]:
    """The table of named corpora and the folder above corpus/: beside the package, or up from here."""
    here = Path.cwd()
    for root in (Path(__file__).resolve().parents[2], here, *here.parents):
        if (file := root / "corpus" / "corpora.toml").is_file():
            return tomllib.loads(file.read_text(encoding="utf-8")), root
    return {}, here


def _named(
    name: str, entry: dict[str, Any], root: Path, val_fraction: float | None, test_fraction: float | None
) -> Corpus:
    if "asset" in entry:
        found = _read_documents(asset_path(entry["asset"]))
        documents = [Document(Path(each.title).name, each.text, each.group) for each in found]
    else:
        documents = _registered_file(name, entry, root)
    if "clean" in entry:
        documents = [_clean(document, entry["fixes"]) for document in documents]
    if "val" in entry and val_fraction is None and test_fraction is None:
        titles = {document.title for document in documents}
        if missing := [title for title in (*entry["val"], *entry["test"]) if title not in titles]:
            raise CorpusError(f"{name}: corpora.toml holds out {', '.join(missing)}, which the text has not.")
        held_out = ([each for each in documents if each.title in entry[split]] for split in ("val", "test"))
        splits = _hold_out(documents, *held_out)
    else:
        val_fraction = entry.get("val_fraction") if val_fraction is None else val_fraction
        test_fraction = entry.get("test_fraction") if test_fraction is None else test_fraction
        splits = _split(documents, val_fraction, test_fraction)
    return Corpus(name, **splits, licence=entry["licence"], source=entry["source"])


def _registered_file(name: str, entry: dict[str, Any], root: Path) -> list[Document]:
    """The documents of the first of an entry's files that is there and is the right edition."""
    candidates = [root / file for file in entry["files"]]
    texts = {path: read_text(path) for path in candidates if path.is_file()}
    if not texts:
        raise CorpusError(
            f"{name}: not found. Put the text at {' or '.join(map(str, candidates))} "
            f"(sha256 {entry['sha256']}). Source: {entry['source']}; {entry['licence']}."
        )
    sums = {path: hashlib.sha256(text.encode()).hexdigest() for path, text in texts.items()}
    text = next((texts[path] for path, found in sums.items() if found == entry["sha256"]), None)
    if text is None:
        path, found = next(iter(sums.items()))
        raise CorpusError(
            f"{name}: {path} has sha256 {found}, expected {entry['sha256']}: it is another edition or was "
            f"changed. To train on it as it is, give the path: load_corpus({str(path)!r})."
        )
    if "separator" not in entry:
        return [Document(name, text.strip("\n"))]
    stories = [story.strip("\n") for story in text.split(entry["separator"])]
    return [Document(story.split("\n", 1)[0], story) for story in stories]


def text_files(path: Path) -> list[Path]:
    """A .txt or .md file alone, or every one below a folder in order of their names, hidden ones left out.

    Raises CorpusError for another file, and for a folder without any.
    """
    if path.is_file():
        if path.suffix.lower() not in TEXT_SUFFIXES:
            raise CorpusError(f"{path}: only {' and '.join(TEXT_SUFFIXES)} files are read as text.")
        return [path]
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.suffix.lower() in TEXT_SUFFIXES
        and file.is_file()
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    if not files:
        raise CorpusError(f"{path}: the folder has no {' or '.join(TEXT_SUFFIXES)} file.")
    return files


def _read_documents(path: Path) -> list[Document]:
    """A file, or every .txt and .md file below a folder in order of their names."""
    root = path if path.is_dir() else path.parent
    documents = []
    for file in text_files(path):
        title = file.relative_to(root).with_suffix("").as_posix()
        documents.append(Document(title, read_text(file).strip("\n"), title.rpartition("/")[0]))
    return documents


def _clean(document: Document, fixes: list[list[str]]) -> Document:
    """Correct the slips that corpora.toml lists, then turn Markdown into a printed page."""
    text = document.text
    for pattern, replacement in fixes:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    return Document(document.title, clean_play(text), document.group)


def _split(documents: list[Document], val_fraction: float | None, test_fraction: float | None) -> _Splits:
    val_fraction = 0.1 if val_fraction is None else val_fraction
    test_fraction = 0.05 if test_fraction is None else test_fraction
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise CorpusError(f"load_corpus: {name}={value} must be in [0, 1).")
    if val_fraction + test_fraction >= 1:
        raise CorpusError(
            f"load_corpus: val_fraction={val_fraction} and test_fraction={test_fraction} "
            "leave nothing to train on."
        )
    if len(documents) <= bool(val_fraction) + bool(test_fraction):
        return _split_each(documents, val_fraction, test_fraction)
    counts = [max(1, round(len(documents) * f)) if f else 0 for f in (val_fraction, test_fraction)]
    while sum(counts) >= len(documents):
        counts[counts.index(max(counts))] -= 1
    drawn = sorted(documents, key=lambda document: hashlib.sha256(document.title.encode()).digest())
    return _hold_out(documents, drawn[: counts[0]], drawn[counts[0] : sum(counts)])


def _hold_out(documents: list[Document], val: Iterable[Document], test: Iterable[Document]) -> _Splits:
    """The splits, each in the order of the documents."""
    split_of = dict.fromkeys(documents, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    return {split: tuple(each for each in documents if split_of[each] == split) for split in SPLITS}


def _split_each(documents: list[Document], val_fraction: float, test_fraction: float) -> _Splits:
    """Cut every document at paragraph ends into the parts of the three splits."""
    fractions = {"train": 1 - val_fraction - test_fraction, "val": val_fraction, "test": test_fraction}
    wanted = [split for split in SPLITS if fractions[split]]
    parts: dict[str, list[Document]] = {split: [] for split in SPLITS}
    for document in documents:
        try:
            texts = documents_at_paragraphs(document.text, tuple(fractions[split] for split in wanted))
        except CorpusError as error:
            raise CorpusError(f"{document.title}: {error}") from error
        for split, text in zip(wanted, texts, strict=True):
            parts[split].append(Document(f"{document.title} ({split})", text, document.group))
    return {split: tuple(parts[split]) for split in SPLITS}
