"""Corpora: clean text, honest splits, any file of the reader's own."""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labkit.text.corpus as module
from labkit.text import (
    CharTokenizer,
    Corpus,
    CorpusError,
    Document,
    GPT2Tokenizer,
    asset_path,
    load_corpus,
)
from labkit.text.cleaning import clean_play, documents_at_paragraphs


@pytest.fixture(scope="module")
def plays() -> Corpus:
    return load_corpus("shakespeare")


def test_38_plays_are_split_by_play(plays):
    assert len(plays.documents) == 38
    assert {document.title for document in plays.val} == {"twelfth-night", "henry-v", "julius-caesar"}
    assert {document.title for document in plays.test} == {"macbeth", "the-tempest", "richard-iii"}
    assert len({document.title for document in plays.documents}) == 38
    assert next(d.group for d in plays.documents if d.title == "hamlet") == "tragedies"
    assert "public domain" in plays.licence


def test_the_plays_have_few_and_plain_characters(plays):
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    assert (
        "".join(sorted(set(plays.text("all"))))
        == "\n !\"&'(),-.0123456789:;?" + letters[:26] + "[]" + letters[26:]
    )


RESIDUE = {
    "a Markdown mark": r"[*_#\\`~<>|{}^@=]",
    "an entity": r"&\w+;",
    "white space at a line's end": r"[ \t]+$",
    "white space at a line's start": r"^[ \t]",
    "two spaces": r"  ",
    "three line ends": r"\n\n\n",
    "a bracket in brackets": r"\[[^\]]*\[",
    "a bracket that does not close": r"\[[^\]]*\n\n",
    "a bracket that did not open": r"(?:^|\])[^\[\]]*\]",
    "a letter lost to a dollar sign": r"\$",
    "a name cut in two": r"\n(?!EPILOGUE|PROLOGUE)[A-Z][A-Za-z']+\n\n[A-Z' ]+\.\n",
}


@pytest.mark.parametrize("kind", RESIDUE)
def test_no_play_has_residue(plays, kind):
    for document in plays.documents:
        found = re.search(RESIDUE[kind], document.text, flags=re.MULTILINE)
        assert not found, (document.title, document.text[max(0, found.start() - 60) : found.end() + 60])


def test_every_fix_of_the_registry_corrects_something():
    registry, _ = module._registry()
    folder = asset_path("shakespeare")
    text = "\n\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.md")))
    for pattern, replacement in registry["shakespeare"]["fixes"]:
        text, count = re.subn(pattern, replacement, text, flags=re.MULTILINE)
        assert count, pattern


def test_every_word_of_the_source_is_still_there(plays):
    """Compared without marks, spaces and capitals, all that the fixes change is a handful of words."""
    folder = asset_path("shakespeare")
    for document in plays.documents:
        raw = (folder / document.group / f"{document.title}.md").read_text(encoding="utf-8")
        letters = re.sub(r"[^a-z]", "", raw.lower().replace("&amp;", "&"))
        assert abs(len(re.sub(r"[^a-z]", "", document.text.lower())) - len(letters)) <= 10, document.title


def test_speakers_stand_as_in_a_printed_play(plays):
    hamlet = next(document.text for document in plays.documents if document.title == "hamlet")
    assert hamlet.startswith(
        "Hamlet\n\nACT I\n\nSCENE I. Elsinore. A platform before the castle.\n\n"
        "[FRANCISCO at his post. Enter to him BERNARDO]\n\nBERNARDO.\nWho's there?\n\nFRANCISCO.\n"
        "Nay, answer me: stand, and unfold yourself.\n"
    )
    everything = plays.text("all")
    assert len(re.findall(r"^[A-Z][A-Z' ,.&-]+\.$", everything, flags=re.MULTILINE)) > 30_000
    for name in (
        "RICHARD PLANTAGENET.",
        "BISHOP OF WINCHESTER.",
        "VARRO'S FIRST SERVANT.",
        "GHOST OF BUCKINGHAM.",
    ):
        assert f"\n\n{name}\n" in everything


def test_the_plays_have_their_known_size(plays):
    table = plays.summary().set_index("split")
    assert table["documents"].to_dict() == {"train": 32, "val": 3, "test": 3}
    assert table["characters"].between(370_000, 4_260_000).all()
    assert plays.fingerprint == load_corpus("shakespeare").fingerprint


@pytest.mark.parametrize(
    ("markdown", "clean"),
    [
        ("**First Witch**  \nWhen shall  \nwe", "FIRST WITCH.\nWhen shall\nwe"),
        ("_Enter KING,\nand Queen_\n\nx", "[Enter KING, and Queen]\n\nx"),
        ("_\\[Aside]_  \nNo", "[Aside]\nNo"),
        ("__\\[Sings]_", "[Sings]"),
        ("[To LUCILIUS]_  \nLove", "[To LUCILIUS]\nLove"),
        ("*[Reads.]*  \nMore", "[Reads.]\nMore"),
        ("And either _\\[ ]_  \nthe devil", "And either [...]\nthe devil"),
        ("# ROME\n\n\n\n### SCENE I. A street.", "ROME\n\nSCENE I. A street."),
        ("nay —  with threats,— ", "nay--with threats,--"),
        ("\\--Is't &amp; 1\\. trains, & c.", "--Is't & 1. trains, &c."),
        ("**ROSENCRANTZ: & GUILDENSTERN:**\nHo", "ROSENCRANTZ & GUILDENSTERN.\nHo"),
    ],
)
def test_cleaning_of_each_mark(markdown, clean):
    assert clean_play(markdown) == clean


def test_tiny_is_split_by_story_and_stands_alone():
    tiny = load_corpus("tiny")
    assert [len(tiny.train), len(tiny.val), len(tiny.test)] == [8, 2, 1]
    assert all(document.text.startswith(document.title + "\n\n") for document in tiny.documents)
    assert 6_000 < len(tiny.text("all")) < 9_000
    assert set(tiny.text("val") + tiny.text("test")) <= set(tiny.text("train"))


def test_text_joins_documents_by_a_blank_line():
    corpus = Corpus("c", train=(Document("a", "one"), Document("b", "two")), val=(Document("c", "three"),))
    assert corpus.text() == "one\n\ntwo"
    assert corpus.text("all") == "one\n\ntwo\n\nthree"
    assert corpus.text("test") == ""


def test_each_document_is_encoded_with_its_end():
    corpus = Corpus("c", train=(Document("a", "ab"), Document("b", "ba <|endoftext|>")))
    tokenizer = CharTokenizer.from_text(corpus.text())
    ids = corpus.encode(tokenizer)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [
        *tokenizer.encode("ab"),
        tokenizer.eos_id,
        *tokenizer.encode("ba <|endoftext|>"),
        tokenizer.eos_id,
    ]
    assert corpus.encode(tokenizer, "val").tolist() == []
    assert (corpus.encode(GPT2Tokenizer()) == 50256).sum() == 2


def test_the_fingerprint_tells_texts_and_splits_apart():
    one, two = Document("1", "one"), Document("2", "two")
    prints = {
        Corpus("c", (one, two)).fingerprint,
        Corpus("c", (one,), val=(two,)).fingerprint,
        Corpus("c", (one,), test=(two,)).fingerprint,
        Corpus("c", (one, Document("2", "twO"))).fingerprint,
    }
    assert len(prints) == 4
    assert Corpus("other name", (one, two)).fingerprint in prints


@pytest.mark.parametrize(
    "raw", [b"a\r\nb\r\n\r\nc", b"\xef\xbb\xbfa\nb\n\nc\n", b"a\rb\r\rc"], ids=["crlf", "bom", "cr"]
)
def test_line_ends_and_byte_order_marks_do_not_matter(tmp_path, raw):
    (tmp_path / "x.txt").write_bytes(raw)
    assert load_corpus(tmp_path / "x.txt", val_fraction=0, test_fraction=0).text() == "a\nb\n\nc"


def test_one_file_is_cut_at_paragraphs_in_order(tmp_path):
    paragraphs = [f"Paragraph {number} " + "x" * 80 for number in range(40)]
    (tmp_path / "book.md").write_text("\n\n".join(paragraphs), encoding="utf-8")
    corpus = load_corpus(str(tmp_path / "book.md"))
    assert corpus.name == "book"
    assert "\n\n".join([corpus.text("train"), corpus.text("val"), corpus.text("test")]) == "\n\n".join(
        paragraphs
    )
    assert [corpus.text(split).count("Paragraph") for split in ("train", "val", "test")] == [34, 4, 2]


@settings(max_examples=150, deadline=None)
@given(
    paragraphs=st.lists(
        st.text("ab ", min_size=1, max_size=30).map(lambda t: "x" + t.strip()), min_size=3, max_size=25
    ),
    fractions=st.sampled_from([(0.85, 0.1, 0.05), (0.5, 0.3, 0.2), (0.1, 0.1, 0.8), (0.9, 0.1)]),
)
def test_cuts_lose_nothing_and_leave_no_part_empty(paragraphs, fractions):
    parts = documents_at_paragraphs("\n\n".join(paragraphs), fractions)
    assert len(parts) == len(fractions)
    assert all(parts)
    assert "\n\n".join(parts) == "\n\n".join(paragraphs)


def folder_of(tmp_path: Path, names: list[str]) -> Path:
    for name in names:
        path = tmp_path / "texts" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"The text of {name}.\n", encoding="utf-8")
    return tmp_path / "texts"


def test_a_folder_is_split_by_file_and_passes_over_what_is_no_text(tmp_path):
    names = [f"{letter}/{number}.txt" for letter in "abc" for number in range(7)]
    folder = folder_of(tmp_path, [*names, "notes.MD", "picture.png", ".hidden.txt", ".git/x.txt"])
    corpus = load_corpus(folder)
    assert [len(corpus.train), len(corpus.val), len(corpus.test)] == [19, 2, 1]
    assert [document.title for document in corpus.documents if "/" not in document.title] == ["notes"]
    assert {document.group for document in corpus.documents} == {"", "a", "b", "c"}
    assert load_corpus(folder).fingerprint == corpus.fingerprint


def test_adding_a_file_moves_at_most_one_other(tmp_path):
    folder = folder_of(tmp_path, [f"{number}.txt" for number in range(30)])
    before = {document.title for document in load_corpus(folder).train}
    folder_of(tmp_path, ["new.txt"])
    assert len(before - {document.title for document in load_corpus(folder).train}) <= 1


def test_a_folder_of_one_file_is_cut_like_the_file(tmp_path):
    folder = folder_of(tmp_path, ["only.txt"])
    (folder / "only.txt").write_text("\n\n".join("abcdefgh"), encoding="utf-8")
    corpus = load_corpus(folder)
    assert (corpus.text("train"), corpus.text("val"), corpus.text("test")) == (
        "a\n\nb\n\nc\n\nd\n\ne\n\nf",
        "g",
        "h",
    )


def test_nothing_is_held_out_when_nothing_is_asked_for(tmp_path):
    corpus = load_corpus(folder_of(tmp_path, ["a.txt", "b.txt", "c.txt"]), val_fraction=0.4, test_fraction=0)
    assert [len(corpus.train), len(corpus.val), len(corpus.test)] == [2, 1, 0]


@pytest.fixture
def verdict(tmp_path, monkeypatch) -> str:
    """A text that stands for The Verdict in a project of its own; we are in one of its folders."""
    text = "\n\n".join(f"Paragraph {number}." for number in range(50)) + "\n"
    registry, _ = module._registry()
    registry["verdict"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    monkeypatch.setattr(module, "_registry", lambda: (registry, tmp_path))
    for folder in ("corpus", "data", "notebooks"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    return text


@pytest.mark.parametrize("place", ["corpus/the-verdict.txt", "data/the-verdict.txt"])
def test_the_verdict_is_found_where_the_reader_puts_it(place, verdict, tmp_path):
    (tmp_path / place).write_text(verdict, encoding="utf-8")
    found = load_corpus("verdict")
    assert found.licence == "public domain"
    assert found.text("train").startswith("Paragraph 0.")
    assert load_corpus(place).text("val") == found.text("val") != ""


def test_a_different_edition_at_one_place_does_not_hide_the_right_one_at_the_other(verdict, tmp_path):
    (tmp_path / "corpus" / "the-verdict.txt").write_text("Another edition.")
    with pytest.raises(CorpusError, match="another edition or was changed"):
        load_corpus("verdict")
    (tmp_path / "data" / "the-verdict.txt").write_text(verdict)
    assert load_corpus("verdict").text("train").startswith("Paragraph 0.")


def test_fractions_of_the_verdict_are_those_that_are_asked_for(verdict, tmp_path):
    (tmp_path / "data" / "the-verdict.txt").write_text(verdict)
    assert [len(load_corpus("verdict").text(split)) for split in ("train", "val", "test")] == [633, 73, 28]
    assert load_corpus("verdict", test_fraction=0).test == ()
    halves = load_corpus("verdict", val_fraction=0.2, test_fraction=0.5)
    assert [halves.text(split).count("P") for split in ("train", "val", "test")] == [16, 9, 25]


def test_a_fraction_splits_a_named_corpus_anew():
    assert [len(load_corpus("tiny").split(split)) for split in ("train", "val", "test")] == [8, 2, 1]
    anew = load_corpus("tiny", test_fraction=0.4)
    assert [len(anew.split(split)) for split in ("train", "val", "test")] == [6, 1, 4]
    assert set(anew.documents) == set(load_corpus("tiny").documents)
    assert load_corpus("tiny", val_fraction=0, test_fraction=0).val == ()
    with pytest.raises(CorpusError, match=r"test_fraction=2 must be in \[0, 1\)"):
        load_corpus("tiny", test_fraction=2)


def test_a_held_out_title_that_the_text_has_not_is_refused(monkeypatch):
    registry, root = module._registry()
    entry = registry["shakespeare"] | {"test": ["macbeth", "mcbeth"]}
    monkeypatch.setattr(module, "_registry", lambda: (registry | {"shakespeare": entry}, root))
    with pytest.raises(CorpusError, match=r"shakespeare: corpora.toml holds out mcbeth, which the text has"):
        load_corpus("shakespeare")


def test_the_registry_is_found_from_a_folder_below_the_project(tmp_path, monkeypatch):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "corpora.toml").write_text('[mine]\nfiles = ["m.txt"]\n', encoding="utf-8")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "deep" / "er")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "site" / "labkit" / "text" / "corpus.py"))
    assert list(module._registry()[0]) == ["mine"]


def test_loading_a_corpus_needs_no_torch():
    program = "from labkit.text import load_corpus; load_corpus('tiny'); import sys; "
    program += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
