"""Text from disk to a corpus: by the name of a registered one, or any file or folder of the reader's."""

from __future__ import annotations

import hashlib
import re
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.text.assets import asset_path
from labkit.text.cleaning import CorpusError, clean_play, documents_at_paragraphs, read_text
from labkit.text.corpus import SPLITS, Corpus, Document, check_split

if TYPE_CHECKING:
    from labkit.text.tokenizers import Tokenizer

TEXT_SUFFIXES = (".txt", ".md")
REGISTRY = Path("corpus", "corpora.toml")
_Fields = dict[str, Any]
"""The documents of each split by its name, as `Corpus` takes them."""


def load_corpus(
    name_or_path: str | Path, *, val_fraction: float = 0.1, test_fraction: float = 0.05
) -> Corpus:
    """A corpus by its name in corpora.toml, or any .txt or .md file, or a folder of them.

    A named corpus has its own split. A folder is split by document: which files are held out depends
    on their names alone, so that adding a file moves no other. A single file (and a folder with fewer
    files than splits) is cut at paragraph ends into a beginning, a middle and an end. Such a contiguous
    split leaks: names and scenes of the same text stand on both sides, so its validation loss is lower
    than on a text that is new as a whole.

    val_fraction, test_fraction: the part of the documents, or of the characters, to hold out.
    Raises CorpusError (a ValueError), naming the file and, for bad bytes, the offset.
    """
    registry, root = _registry()
    if isinstance(name_or_path, str) and name_or_path in registry:
        corpus = _named(name_or_path, registry[name_or_path], root, val_fraction, test_fraction)
    else:
        path = Path(name_or_path).expanduser()
        if not path.exists():
            raise CorpusError(
                f"load_corpus: {str(name_or_path)!r} is neither a corpus ({', '.join(registry)}) nor a path "
                "that exists."
            )
        documents = _read_documents(path)
        name = path.resolve().stem if path.is_file() else path.resolve().name
        splits = _split(documents, val_fraction, test_fraction)
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
    from labkit.text.bpe import GPT2Tokenizer, train_bpe
    from labkit.text.tokenizers import CharTokenizer

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
        if (root / REGISTRY).is_file():
            return tomllib.loads((root / REGISTRY).read_text(encoding="utf-8")), root
    return {}, here


def _named(name: str, entry: dict[str, Any], root: Path, val_fraction: float, test_fraction: float) -> Corpus:
    if "asset" in entry:
        folder = asset_path(entry["asset"])
        documents = [
            Document(Path(found.title).name, found.text, found.group) for found in _read_documents(folder)
        ]
    else:
        documents = _registered_file(name, entry, root)
    if "clean" in entry:
        documents = _clean(name, documents, entry.get("fixes", []))
    if "val" in entry:
        splits = _declared_split(name, documents, entry["val"], entry["test"])
    else:
        val_fraction = entry.get("val_fraction", val_fraction)
        splits = _split(documents, val_fraction, entry.get("test_fraction", test_fraction))
    return Corpus(name, **splits, licence=entry["licence"], source=entry["source"])


def _registered_file(name: str, entry: dict[str, Any], root: Path) -> list[Document]:
    candidates = [root / file for file in entry["files"]]
    path = next((path for path in candidates if path.is_file()), None)
    if path is None:
        raise CorpusError(
            f"{name}: not found. Put the text at {candidates[0]}"
            + "".join(f" or {other}" for other in candidates[1:])
            + f" (sha256 {entry['sha256']}). Source: {entry['source']}; {entry['licence']}."
        )
    text = read_text(path)
    found = hashlib.sha256(text.encode()).hexdigest()
    if found != entry["sha256"]:
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
    files = []
    for file in sorted(path.rglob("*")):
        hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.is_file() and file.suffix.lower() in TEXT_SUFFIXES and not hidden:
            files.append(file)
    if not files:
        raise CorpusError(f"{path}: the folder has no {' or '.join(TEXT_SUFFIXES)} file.")
    return files


def _read_documents(path: Path) -> list[Document]:
    """A file, or every .txt and .md file below a folder in order of their names."""
    files = text_files(path)
    if path.is_file():
        return [Document(path.stem, read_text(path).strip("\n"))]
    documents = []
    for file in files:
        relative = file.relative_to(path)
        group = relative.parent.as_posix()
        title = relative.with_suffix("").as_posix()
        documents.append(Document(title, read_text(file).strip("\n"), "" if group == "." else group))
    return documents


def _clean(name: str, documents: list[Document], fixes: list[list[str]]) -> list[Document]:
    """Mend the slips that corpora.toml lists, then turn Markdown into a printed page."""
    texts = [document.text for document in documents]
    for pattern, replacement in fixes:
        compiled = re.compile(pattern, re.MULTILINE)
        mended = [compiled.subn(replacement, text) for text in texts]
        if not sum(count for _, count in mended):
            raise CorpusError(f"{name}: the fix {pattern!r} in corpora.toml matches nothing.")
        texts = [text for text, _ in mended]
    cleaned = []
    for document, text in zip(documents, texts, strict=True):
        try:
            cleaned.append(Document(document.title, clean_play(text), document.group))
        except CorpusError as error:
            raise CorpusError(f"{name}: {document.title}: {error}") from error
    return cleaned


def _declared_split(name: str, documents: list[Document], val: list[str], test: list[str]) -> _Fields:
    titles = {document.title for document in documents}
    if missing := [title for title in [*val, *test] if title not in titles]:
        raise CorpusError(f"{name}: corpora.toml holds out {', '.join(missing)}, which the text has not.")
    return {
        "train": tuple(document for document in documents if document.title not in {*val, *test}),
        "val": tuple(document for document in documents if document.title in val),
        "test": tuple(document for document in documents if document.title in test),
    }


def _split(documents: list[Document], val_fraction: float, test_fraction: float) -> _Fields:
    for name, value in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= value < 1:
            raise CorpusError(f"load_corpus: {name}={value} must be in [0, 1).")
    if val_fraction + test_fraction >= 1:
        raise CorpusError(
            f"load_corpus: val_fraction={val_fraction} and test_fraction={test_fraction} "
            "leave nothing to train on."
        )
    held_out = [fraction for fraction in (val_fraction, test_fraction) if fraction]
    if len(documents) <= len(held_out):
        return _split_each(documents, val_fraction, test_fraction)
    counts = [max(1, round(len(documents) * f)) if f else 0 for f in (val_fraction, test_fraction)]
    while sum(counts) >= len(documents):
        counts[counts.index(max(counts))] -= 1
    drawn = sorted(documents, key=lambda document: hashlib.sha256(document.title.encode()).digest())
    val, test = set(drawn[: counts[0]]), set(drawn[counts[0] : sum(counts)])
    return {
        "train": tuple(document for document in documents if document not in val | test),
        "val": tuple(document for document in documents if document in val),
        "test": tuple(document for document in documents if document in test),
    }


def _split_each(documents: list[Document], val_fraction: float, test_fraction: float) -> _Fields:
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
