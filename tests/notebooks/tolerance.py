"""A pytest plugin on top of nbval: text is compared exactly, decimals within a tolerance.

Processors sum in different orders, so the last printed place of a decimal may differ from one machine to the
next. Whole numbers may not, nor may anything that is no free-standing number: 1.2.3, 0x1f, layer0.weight.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from decimal import Decimal
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from nbval.plugin import IPyNbCell

RELATIVE = Decimal("0.001")
MAX_CLOSE = 10
SANITIZER = Path(__file__).with_name("sanitize.cfg")

DECIMAL = (
    r"(?:(?<![\w.)\]])[-+−])?(?<![\w.])"  # a sign, unless it is the dash of a range: 0.1-0.3
    r"(?:\d{1,3}(?:,\d{3})++|\d++)(?:\.\d++(?:[eE][-+]\d++)?|[eE][-+]\d++)"
    r"(?!\w*[\d_]|\.\w)"  # letters may follow, as in 1.50x; 1.2.3 and 1.5_a are no numbers
)
TOKEN = re.compile(rf"(?P<decimal>{DECIMAL})|(?P<whole>\d{{1,3}}(?:,\d{{3}})+\b|\d+\b)|\w+|.")
PICTURE = re.compile(r"(?<=\")data:image/[^\"]*|(?<=')data:image/[^']*|data:image/[^\s)>]*")


def own_tolerance(tags: Iterable[str]) -> Decimal:
    """The relative tolerance of a cell: 3 % with the tag close-3%, and 0.1 % without such a tag.

    Raises ValueError for close-0%, close-11% and whatever else begins with "close", and for two of them.
    """
    close = [tag for tag in tags if tag.lower().startswith("close")]
    if not close:
        return RELATIVE
    percent = re.fullmatch(r"close-([1-9]\d?)%", close[0])
    if len(close) > 1 or not percent or int(percent[1]) > MAX_CLOSE:
        raise ValueError(
            f"the tags {close} are no tolerance. Use one of close-1% to close-{MAX_CLOSE}%, once, "
            "where a training is behind the numbers."
        )
    return Decimal(percent[1]) / 100


def difference(committed: str, computed: str, relative: Decimal = RELATIVE) -> str:
    """What differs first, in words, with both lines; empty where the outputs agree.

    Decimals agree within one unit of the last printed place, of the coarser of the two, or within
    `relative` times the committed one. Runs of blanks count as one, and as none beside a number, because
    columns shift when a number gains a digit. Of a picture in HTML only the alternative text is compared.
    """
    lines = [PICTURE.sub("data:image", text).split("\n") for text in (committed, computed)]
    for number, (old, new) in enumerate(zip_longest(*lines), 1):
        if old is None or new is None:
            reason = f"{len(lines[0])} lines became {len(lines[1])}"
        elif old == new or not (reason := _line_difference(old, new, relative)):
            continue
        shown = ["(no line)" if line is None else line for line in (old, new)]
        return f"line {number}: {reason}\n  committed: {shown[0]}\n  computed:  {shown[1]}"
    return ""


def _line_difference(old: str, new: str, relative: Decimal) -> str:
    pairs = zip_longest(_tokens(old), _tokens(new), fillvalue=("(nothing)", None))
    for (was, was_kind), (now, now_kind) in pairs:
        if was == now:
            continue
        if not was_kind == now_kind == "decimal":
            return f"{was!r} became {now!r}"
        a, b = _value(was), _value(now)
        unit = max(_unit(a), _unit(b))
        if abs(a - b) > max(unit, relative * abs(a)):
            return f"{was} became {now}; the tolerance is {_plain(unit)} or {_plain(relative * 100)} %"
    return ""


def _tokens(line: str) -> list[tuple[str, str | None]]:
    """Numbers, each with its kind, "decimal" or "whole"; words and other characters, with None."""
    found = [(match[0], match.lastgroup) for match in TOKEN.finditer(" ".join(line.split()))]
    padded = [(" ", None), *found, (" ", None)]
    return [
        token
        for (_, before), token, (_, after) in zip(padded, found, padded[2:], strict=False)
        if token[0] != " " or not (before or after)
    ]


def _value(decimal: str) -> Decimal:
    return Decimal(decimal.replace(",", "").replace("−", "-"))


def _unit(value: Decimal) -> Decimal:
    """One unit of the last place that was printed: 0.01 for 1.50, 1e-8 for 1.2e-07."""
    return Decimal(1).scaleb(int(value.as_tuple().exponent))


def _plain(value: Decimal) -> str:
    return f"{float(value):g}"


class Output(str):
    """An output of a cell, equal to another one with which it agrees within the tolerance."""

    relative: Decimal

    def __new__(cls, text: str, relative: Decimal) -> Output:
        self = super().__new__(cls, text)
        self.relative = relative
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, str) and not difference(str(self), str(other), self.relative)

    def __ne__(self, other: object) -> bool:
        return not self == other


class TolerantCell(IPyNbCell):
    """nbval's cell, whose outputs are compared within the tolerance."""

    relative = RELATIVE

    def runtest(self) -> None:
        try:
            self.relative = own_tolerance(self.cell.metadata.get("tags", []))
        except ValueError as error:
            self.raise_cell_error(str(error))
        super().runtest()

    def sanitize(self, s: Any) -> Any:
        text = super().sanitize(s)
        return Output(text, self.relative) if isinstance(text, str) else text

    def format_output_compare(self, key: str, left: Any, right: Any) -> None:
        """nbval calls it for the first output that differs: left is the committed one."""
        if isinstance(left, str) and isinstance(right, str):
            self.comparison_traceback.append(f"{key}, {difference(str(left), str(right), self.relative)}")
        else:
            super().format_output_compare(key, left, right)


def pytest_configure(config: pytest.Config) -> None:
    config.option.nbval_sanitize_with = config.option.nbval_sanitize_with or str(SANITIZER)


def pytest_itemcollected(item: pytest.Item) -> None:
    if type(item) is IPyNbCell:
        item.__class__ = TolerantCell
