"""The pages beside the lessons (contents, glossary, further reading) agree with the lessons."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import pytest
from rules import FENCE, HEADING, LINK

FOLDER = Path(__file__).parents[2] / "notebooks"
LESSONS = sorted(FOLDER.glob("[0-9][0-9]_*.ipynb"))
CONTENTS, GLOSSARY, READING = (FOLDER / name for name in ("README.md", "glossary.md", "further_reading.md"))
PAGES = (CONTENTS, GLOSSARY, READING)
PICTURE = FOLDER / "lessons.svg"
SVG = "{http://www.w3.org/2000/svg}"
CITATION = re.compile(r"([^\W\d][\w'-]*)(?: et al\.| & [^\W\d][\w'-]*)?(?:, | \()((?:19|20)\d\d)\b")
ENTRY = re.compile(
    r"^- \*\*(?P<authors>[^*]+) \((?P<year>\d{4})\)\*\*, \*(?P<title>[^*]+)\*(?P<rest>.*)$", re.M
)
ARXIV = re.compile(r"https://arxiv\.org/abs/([\w./-]+\w)")


def prose(path: Path) -> str:
    """The Markdown of a page or of a notebook, without fenced code."""
    texts = [path.read_text(encoding="utf-8")]
    if path.suffix == ".ipynb":
        cells = json.loads(texts[0])["cells"]
        texts = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    return "\n\n".join(FENCE.sub("", text) for text in texts)


def headings(path: Path) -> list[tuple[int, str]]:
    return [(len(marks), title) for marks, title in HEADING.findall(prose(path))]


def anchors(path: Path) -> set[str]:
    """The ids that JupyterLab gives to headings; what it makes of a formula is not its source."""
    return {re.sub(r"[`*]", "", title).replace(" ", "-") for _, title in headings(path) if "$" not in title}


def broken_links(page: Path) -> Iterator[str]:
    for _, _, target in LINK.findall(prose(page)):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        file, _, anchor = unquote(target).partition("#")
        path = page.parent / file if file else page
        if not path.exists():
            yield f"{target}: no such file"
        elif anchor and anchor not in anchors(path):
            yield f"{target}: no such heading"


def rows(page: Path) -> dict[str, list[str]]:
    """The rows of a table of lessons, by number: the cells of each."""
    found = re.findall(r"^\| \[(\d\d) .*\|$", prose(page), re.M)
    lines = [line for line in prose(page).splitlines() if re.match(r"\| \[\d\d ", line)]
    return dict(zip(found, ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines), strict=True))


def needs() -> dict[str, set[str]]:
    """What the contents say that each lesson builds on, helpful lessons included."""
    return {number: set(re.findall(r"\d\d", row[2])) for number, row in rows(CONTENTS).items()}


def arrows(kind: str) -> set[tuple[str, str]]:
    paths = ElementTree.parse(PICTURE).getroot().iter(f"{SVG}path")
    return {
        (path.get("data-from", ""), path.get("data-to", "")) for path in paths if path.get("class") == kind
    }


def reached(steps: set[tuple[str, str]]) -> set[tuple[str, str]]:
    """From where to where the arrows lead, one after the other."""
    for _ in LESSONS:
        steps = steps | {(a, d) for a, b in steps for c, d in steps if b == c}
    return steps


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_and_headings_of_the_pages(page: Path) -> None:
    assert list(broken_links(page)) == []
    levels = [level for level, _ in headings(page)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))
    assert all(alt.strip() for bang, alt, _ in LINK.findall(prose(page)) if bang)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page, lesson = tmp_path / "page.md", tmp_path / "01_a.ipynb"
    markdown = {"cell_type": "markdown", "source": ["# One\n", "\n", "### It's `new`: *why?*\n"]}
    lesson.write_text(json.dumps({"cells": [markdown]}))
    page.write_text(
        "# Page\n\n[a](01_a.ipynb#It's-new:-why?) [b](01_a.ipynb#Old) [c](02_b.ipynb) [d](#Page) [e](#page) "
        "[f](https://example.org/none)\n\n```\n[g](none.md)\n```\n"
    )
    broken = ["01_a.ipynb#Old: no such heading", "02_b.ipynb: no such file", "#page: no such heading"]
    assert list(broken_links(page)) == broken


def test_the_contents_list_each_lesson_in_order() -> None:
    linked = [re.findall(r"\((.+?)\)", row[0]) for row in rows(CONTENTS).values()]
    assert linked == [[path.name] for path in LESSONS]
    assert list(rows(CONTENTS)) == [path.name[:2] for path in LESSONS]


def test_contents_and_project_page_say_the_same_minutes() -> None:
    project = {number: row[2] for number, row in rows(FOLDER.parent / "README.md").items()}
    assert {number: row[3] for number, row in rows(CONTENTS).items()} == project


def test_the_project_page_links_to_the_pages() -> None:
    targets = {target for _, _, target in LINK.findall(prose(FOLDER.parent / "README.md"))}
    assert targets >= {f"notebooks/{page.name}" for page in PAGES}


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_the_contents_ask_for_the_lessons_that_the_lesson_asks_for(lesson: Path) -> None:
    paragraph = re.search(r"\*\*What you need\.\*\*(.+?)\n\n", prose(lesson), re.S)
    assert paragraph
    assert needs()[lesson.name[:2]] == set(re.findall(r"\b0\d\b", paragraph[1]))


def test_the_picture_can_be_read_aloud() -> None:
    root = ElementTree.parse(PICTURE).getroot()
    assert root.get("role") == "img"
    title, description = root[0], root[1]
    assert (title.tag, description.tag) == (f"{SVG}title", f"{SVG}desc")
    assert (root.get("aria-labelledby") or "").split() == [title.get("id"), description.get("id")]
    assert (title.text or "").strip()
    assert set(re.findall(r"\d\d", description.text or "")) == {path.name[:2] for path in LESSONS}
    texts = [" ".join("".join(text.itertext()).split()) for text in root.iter(f"{SVG}text")]
    titles = [re.sub(r".*\[(.+)\].*", r"\1", row[0]) for row in rows(CONTENTS).values()]
    assert [text for text in texts if re.match(r"\d", text)] == titles


def test_the_picture_shows_what_the_table_says() -> None:
    table = {(before, after) for after, asked in needs().items() for before in asked}
    helpful = {
        (before, number)
        for number, row in rows(CONTENTS).items()
        for before in re.findall(r"\d\d", row[2].partition("helps:")[2])
    }
    assert arrows("helpful") <= helpful
    assert arrows("needed") <= table - helpful
    assert table - helpful <= reached(arrows("needed"))
    assert table <= reached(arrows("needed") | arrows("helpful"))


def terms() -> list[tuple[str, str, str]]:
    """Letter, term and text of each entry of the glossary."""
    found = []
    for section in re.split(r"^## ", prose(GLOSSARY), flags=re.M)[1:]:
        letter, *entries = re.split(r"^### ", section, flags=re.M)
        found += [(letter.strip(), *(part.strip() for part in entry.split("\n", 1))) for entry in entries]
    return found


def test_the_glossary_is_sorted_and_says_each_term_once() -> None:
    words = [re.sub(r"[^a-z0-9 ]", " ", term.casefold()).split() for _, term, _ in terms()]
    assert len(words) > 90
    assert words == sorted(words)
    assert len({tuple(each) for each in words}) == len(words)
    assert all(term[0].upper() == letter for letter, term, _ in terms())


def test_each_term_is_explained_and_leads_to_a_lesson() -> None:
    for _, term, text in terms():
        explained, arrow, place = text.partition(" → ")
        assert arrow, term
        assert explained.endswith("."), term
        assert len(explained.split()) >= 5, term
        assert re.fullmatch(r"\[(\d\d)(: .+)?\]\(\1_\w+\.ipynb(#\S+)?\)", place), term


def sections() -> dict[str, str]:
    """The parts of the further reading that belong to a lesson, by its number."""
    parts = re.split(r"^## ", prose(READING), flags=re.M)
    return {match[1]: part for part in parts if (match := re.match(r"Lesson (\d\d):", part))}


def cited(text: str) -> set[tuple[str, str]]:
    return {(name, year) for name, year in CITATION.findall(" ".join(text.split()))}


def test_citations_are_recognised() -> None:
    text = (
        "Source: Vaswani et al. (2017). (Press &\nWolf, 2017; Holtzman et al.,\n2020) (nostalgebraist, 2020)"
    )
    text += " [Hu et al., 2021](x) DeepSeek-AI, 2024. Shazeer (2019), in 2019, 1,999 and a model of 2024"
    names = {"Vaswani": "2017", "Press": "2017", "Holtzman": "2020", "nostalgebraist": "2020", "Hu": "2021"}
    names |= {"DeepSeek-AI": "2024", "Shazeer": "2019"}
    assert cited(text) == set(names.items())


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_what_a_lesson_cites_is_in_its_further_reading(lesson: Path) -> None:
    section = sections()[lesson.name[:2]]
    entries = [
        (set(re.findall(r"[\w'-]+", each["authors"])), each["year"]) for each in ENTRY.finditer(section)
    ]
    text = prose(lesson)
    missing = {
        (name, year)
        for name, year in cited(text)
        if not any(name in names and year == when for names, when in entries)
    }
    assert missing == set()
    assert set(ARXIV.findall(text)) <= set(ARXIV.findall(section))


def test_an_entry_of_the_further_reading_is_whole_and_the_same_wherever_it_stands() -> None:
    works: dict[str, tuple[str, str, tuple[str, ...]]] = {}
    lines = [line for text in sections().values() for line in text.splitlines() if line.startswith("- ")]
    for line in lines:
        entry = ENTRY.match(line)
        if entry is None:  # documentation, which has no year
            assert re.match(r"- \*\*Hugging Face\*\*, \*", line), line
            continue
        assert re.findall(r"\[arXiv:(.+?)\]", line) == ARXIV.findall(line), line
        remark = re.sub(r"\[.+?\]\(.+?\)", "", entry["rest"].partition(". ")[2])
        assert len(re.findall(r"\w+", remark)) >= 4, line
        assert remark.endswith("."), line
        work = (entry["authors"], entry["year"], tuple(ARXIV.findall(line)))
        assert works.setdefault(entry["title"], work) == work, line
    identifiers = [each for *_, found in works.values() for each in found]
    assert len(identifiers) == len(set(identifiers))
