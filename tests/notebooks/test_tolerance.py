"""Committed outputs agree within the tolerance, and nothing else does: planted changes in all of them."""

from __future__ import annotations

import itertools
import re
from decimal import Decimal
from functools import cache
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import get_sanitize_patterns
from tolerance import RELATIVE, SANITIZER, difference, own_tolerance

LESSONS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize(
    ("committed", "computed"),
    [
        ("loss 1.90", "loss 1.91"),
        ("loss 1.90", "loss 1.9"),
        ("69.4 %", "69.3 %"),
        ("perplexity 1234.5", "perplexity 1235.7"),
        ("1,234.5 s", "1,235.7 s"),
        ("|  9.99 |", "| 10.00 |"),
        ("[ 0.00, 0.51]", "[-0.00, 0.51]"),
        ("1.50x faster", "1.51x faster"),
        ("from 0.1-0.3", "from 0.1-0.4"),
        ("error 1.2e-07", "error 1.3e-07"),
        ("error 1.2e-07", "error 1e-07"),
        ("(0.95, 0.05)", "(0.96,  0.05)"),
        ("−0.25", "-0.26"),
        ("nan, inf and -inf", "nan, inf  and -inf"),
        ("<td>1.90</td>\n<td>2</td>", "<td>1.89</td>\n<td>2</td>"),
        ('<img src="data:image/png;base64,iVB" alt="A">', '<img src="data:image/png;base64,ab" alt="A">'),
        ("<img alt='2.50' src='data:image/svg+xml,<svg>1'>", "<img alt='2.51' src='data:image/svg+xml,'>"),
        ("![A](data:image/png;base64,iVB) 1", "![A](data:image/png;base64,ab) 1"),
    ],
)
def test_these_agree(committed: str, computed: str) -> None:
    assert difference(committed, computed) == ""
    assert difference(computed, committed) == ""


@pytest.mark.parametrize(
    ("committed", "computed"),
    [
        ("loss 1.90", "loss 1.92"),
        ("loss 1.90", "loss -1.90"),
        ("loss 1.90", "loss 2"),
        ("loss 1.90", "loss nan"),
        ("loss 1.90", "loss"),
        ("loss 1.90 ", "loss 1.90 1.91"),
        ("inf", "-inf"),
        ("step 100", "step 101"),
        ("12,345 tokens", "12,346 tokens"),
        ("1,234.5", "1,236.0"),
        ("1.50x", "1.50y"),
        ("1.50x", "1.52x"),
        ("1.2e-07", "1.2e-06"),
        ("1.2e-07", "1.4e-07"),
        ("torch 2.13.0", "torch 2.13.1"),
        ("1.2.3", "1.3.3"),
        ("0x1f", "0x2f"),
        ("h.1.weight", "h.2.weight"),
        ("layer0.weight", "layer1.weight"),
        ("lr_1.5", "lr_1.6"),
        ("1.50_a", "1.51_a"),
        ("a b", "ab"),
        ("a\nb", "a b"),
        ("a\nb", "a\nb\nc"),
        ("a\nb\nc", "a\nb"),
        ('<img src="data:image/png;base64,iV" alt="A">', '<img src="data:image/png;base64,iV" alt="B">'),
        ("data:text/plain,a", "data:text/plain,b"),
        ("[1., 2.]", "[1., 3.]"),
    ],
)
def test_these_differ(committed: str, computed: str) -> None:
    assert difference(committed, computed)
    assert difference(computed, committed)


def test_a_difference_names_the_number_the_tolerance_and_both_lines() -> None:
    assert difference("first\nloss 1.90 at step 3", "first\nloss 1.93 at step 3") == (
        "line 2: 1.90 became 1.93; the tolerance is 0.01 or 0.1 %\n"
        "  committed: loss 1.90 at step 3\n"
        "  computed:  loss 1.93 at step 3"
    )
    assert difference("3 words", "4 words").startswith("line 1: '3' became '4'\n")
    assert difference("like 27 tokens", "like 26.8 tokens").startswith("line 1: '27' became '26.8'\n")
    assert difference("1,234 ids", "1,235 ids").startswith("line 1: '1,234' became '1,235'\n")
    assert difference("1\n2", "1").startswith("line 2: 2 lines became 1\n")


def test_a_tag_widens_the_tolerance_of_its_cell() -> None:
    assert own_tolerance(["hide-input"]) == RELATIVE
    assert own_tolerance(["close-3%", "hide-input"]) == Decimal("0.03")
    assert own_tolerance(["close-10%"]) == Decimal("0.1")
    assert difference("loss 2.000", "loss 2.050", own_tolerance(["close-3%"])) == ""
    assert "0.001 or 3 %" in difference("loss 2.000", "loss 2.070", own_tolerance(["close-3%"]))
    assert difference("step 100", "step 101", own_tolerance(["close-3%"]))


@pytest.mark.parametrize(
    "tags", [["close-11%"], ["close-0%"], ["close-3"], ["close-0.5%"], ["Close-3%"], ["close-1%", "close-2%"]]
)
def test_other_tags_are_refused(tags: list[str]) -> None:
    with pytest.raises(ValueError, match="close-1% to close-10%"):
        own_tolerance(tags)


DECIMALS = re.compile(r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+(?:e[-+]\d+)?|e[-+]\d+)")


@cache
def compared_lines(lesson: Path) -> list[tuple[str, Decimal]]:
    """Every line that nbval compares in a lesson, wall-clock numbers masked, and its cell's tolerance."""
    masks = list(get_sanitize_patterns(SANITIZER.read_text(encoding="utf-8")))
    found = {}
    for cell in nbformat.read(lesson, as_version=4).cells:
        for output in cell.get("outputs", []):
            for kind, text in {**output, **output.get("data", {})}.items():
                if kind in ("text", "evalue") or kind.startswith("text/"):
                    for pattern, mask in masks:
                        text = re.sub(pattern, mask, text)
                    found |= dict.fromkeys(text.split("\n"), own_tolerance(cell.metadata.get("tags", [])))
    return list(found.items())


def value(decimal: str) -> Decimal:
    return Decimal(decimal.replace(",", ""))


def last_place(decimal: str) -> Decimal:
    digits, _, power = decimal.partition("e")
    return Decimal(f"1e{int(power or 0) - len(digits.partition('.')[2])}")


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_digit_of_every_committed_decimal_counts(lesson: Path) -> None:
    """Each is replaced by the nine others: beyond the tolerance that is caught, within it passes."""
    seen = {True: 0, False: 0}
    for line, relative in compared_lines(lesson):
        for match in DECIMALS.finditer(line):
            before, was, after = line[: match.start()], match[0], line[match.end() :]
            part_of_a_name = re.search(r"[\w.]$", before) or re.match(r"\w*[\d_]|\.\w", after)
            for place, digit in itertools.product(range(len(was)), "0123456789"):
                if not was[place].isdigit() or was[place] == digit:
                    continue
                now = was[:place] + digit + was[place + 1 :]
                tolerance = max(last_place(was), last_place(now), relative * value(was))
                beyond = bool(part_of_a_name) or abs(value(was) - value(now)) > tolerance
                assert bool(difference(line, before + now + after, relative)) == beyond, (line, was, now)
                seen[beyond] += 1
    assert seen[True] > 500
    assert seen[False] > 50


@pytest.mark.parametrize("lesson", LESSONS, ids=lambda path: path.stem)
def test_every_committed_word_and_whole_number_counts(lesson: Path) -> None:
    words = numbers = 0
    for line, relative in compared_lines(lesson):
        for match in re.finditer(rf"{DECIMALS.pattern}|(?P<number>\d+)|(?P<word>[^\W\d_]+)", line):
            if match["number"] or match["word"]:
                changed = str(int(match[0]) + 1) if match["number"] else f"{match[0]}x"
                planted = line[: match.start()] + changed + line[match.end() :]
                assert difference(line, planted, relative), (line, match[0], changed)
                words, numbers = words + bool(match["word"]), numbers + bool(match["number"])
    assert words > 500
    assert numbers > 20
