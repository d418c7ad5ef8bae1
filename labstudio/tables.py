"""Tables as text: Markdown, and aligned columns for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

HEADERS = {
    "total_steps": "total steps",
    "val_loss": "held-out loss",
    "best_val_loss": "best held-out loss",
    "best_perplexity": "best perplexity",
    "bits_per_byte": "bits per byte",
    "megabytes": "MB",
}
"""What columns and settings are called where people read them."""


def markdown_table(rows: Sequence[Mapping[str, object]]) -> str:
    """A Markdown table, a line per row; columns in order of first appearance, numbers aligned right.

    Floats are shown with four significant digits, missing values as an empty cell.
    """
    columns = list(dict.fromkeys(column for row in rows for column in row))
    if not columns:
        return ""
    numeric = {c: all(isinstance(row.get(c, 0), int | float) for row in rows) for c in columns}
    lines = [
        columns,
        ["---:" if numeric[column] else "---" for column in columns],
        *([_cell(row.get(column, "")) for column in columns] for row in rows),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", "<br>")


def aligned_table(table: pd.DataFrame) -> str:
    """The table as text: columns of numbers to the right, others to the left."""
    columns = []
    for name, values in table.items():
        cells = [HEADERS.get(str(name), str(name)), *map(cell_text, values)]
        width = max(map(len, cells))
        right = all(isinstance(value, Real) or _missing(value) for value in values)
        columns.append([cell.rjust(width) if right else cell.ljust(width) for cell in cells])
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True)) if len(table) else ""


def _missing(value: Any) -> bool:
    import pandas as pd

    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def cell_text(value: Any) -> str:
    """A value for people: digits in groups, about four of them behind the point, - for what is missing."""
    if _missing(value):
        return "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell_text, value)) or "-"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, Integral) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.3f}" if abs(value) >= 1 else f"{value:.4g}"
    text = str(value)
    return text if text.isprintable() else repr(text)
