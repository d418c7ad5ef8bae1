"""Raw text to clean text: decoding of files, and plays from Markdown to the look of a printed page."""

from __future__ import annotations

import re
from pathlib import Path

LEADING_BOM = b"\xef\xbb\xbf"


class CorpusError(ValueError):
    """A text or corpus cannot be used; the message names the file and says why."""


def read_text(path: str | Path, largest: int | None = None) -> str:
    """The text of a UTF-8 file, with or without a byte-order mark, its line ends turned into "\\n".

    Raises CorpusError, with the byte offset, for undecodable bytes and binary files, and for a file that is
    missing, holds no text, or has more bytes than the largest allowed.
    """
    path = Path(path)
    try:
        if largest and (size := path.stat().st_size) > largest:
            raise CorpusError(f"{path}: has {size:,} bytes, but such a file has {largest:,} at most.")
        raw = path.read_bytes()
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror or error}).") from error
    text = decode_text(raw, path)
    if not text.strip():
        raise CorpusError(f"{path}: the file is empty.")
    return text


def decode_text(raw: bytes, path: Path, start: int = 0) -> str:
    """The text of a file's bytes from offset `start` on, a byte-order mark dropped, line ends as "\\n".

    Raises CorpusError, with the byte offset in the file, for undecodable bytes and binary files.
    """
    if start == 0 and raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise CorpusError(f"{path}: byte offset 0 starts UTF-16 text. Save the file as UTF-8.")
    if (offset := raw.find(b"\0")) >= 0:
        raise CorpusError(f"{path}: byte offset {start + offset} is NUL, so this is not a text file.")
    mark = len(LEADING_BOM) if start == 0 and raw.startswith(LEADING_BOM) else 0
    try:
        text = raw[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        offset = mark + error.start
        where = f"byte offset {start + offset} (0x{raw[offset]:02x})"
        raise CorpusError(f"{path}: {where} is not UTF-8. Save the file as UTF-8.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


_SPELLINGS = [
    ("&amp;", "&"),
    ("& c", "&c"),
    ("& &c", "&c"),
    ("__\\[", "["),
    ("_\\[", "["),
    ("\\[", "["),
]


def clean_play(markdown: str) -> str:
    """A play in Markdown as a printed page.

    Headings lose their marks, speakers stand in capitals with a full stop on a line of their own,
    stage directions stand in [brackets], typographic dashes become the two hyphens that most of the
    plays use.
    """
    text = "\n".join(line.rstrip() for line in markdown.split("\n"))
    if "—" in text:  # one play has typographic dashes, the others two hyphens
        text = re.sub(r" *— *", "--", text)
    for mark, plain in _SPELLINGS:
        text = text.replace(mark, plain)
    text = re.sub(r"\[([^\]_]*)\]_", r"[\1]", text)  # _[Aside]_, its first underscore already gone
    text = re.sub(r"_([^_]+)_", _italics, text)  # _Enter KING_, over several lines
    text = re.sub(r"\*\*([^*\n]+)\*\*", _speaker, text)
    text = re.sub(r"\*([^*]+)\*", _italics, text)
    text = re.sub(r"\[\[?([^\[\]]*)\]?\]", _stage_direction, text)
    text = re.sub(r"#+ *", "", text)
    text = re.sub(r"\\([^\w\s])", r"\1", text)  # Markdown's escapes
    text = re.sub(r"  +", " ", text)
    text = "\n".join(line.strip() for line in text.split("\n"))
    return re.sub(r"\n\n\n+", "\n\n", text).strip()


def _italics(match: re.Match[str]) -> str:
    """A stage direction, unless the pair of marks spans a blank line: then they do not belong together."""
    return match[0] if "\n\n" in match[1] else f"[{match[1]}]"


def _speaker(match: re.Match[str]) -> str:
    return " ".join(match[1].upper().replace(":", "").replace("&C", "&c").split()).rstrip(".") + "."


def _stage_direction(match: re.Match[str]) -> str:
    words = " ".join(match[1].split())
    return f"[{words}]" if words else "[...]"


def documents_at_paragraphs(text: str, fractions: tuple[float, ...]) -> list[str]:
    """Cut a text into contiguous pieces at paragraph ends, as near to the fractions as paragraphs allow.

    Every piece gets at least one paragraph as long as there are enough of them.
    """
    paragraphs = [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]
    if len(paragraphs) < len(fractions):
        raise CorpusError(
            f"{len(paragraphs)} paragraph(s) cannot be split into {len(fractions)} parts; separate "
            "paragraphs by blank lines, or set val_fraction and test_fraction to 0."
        )
    total, seen, position, goal = sum(map(len, paragraphs)), 0, 0, 0.0
    ends: list[int] = []
    for part, fraction in enumerate(fractions[:-1]):
        goal += fraction * total
        least, most = (ends[-1] if ends else 0) + 1, len(paragraphs) - (len(fractions) - 1 - part)
        while position < most and (position < least or seen + len(paragraphs[position]) / 2 <= goal):
            seen += len(paragraphs[position])
            position += 1
        ends.append(position)
    starts = [0, *ends]
    return ["\n\n".join(paragraphs[a:b]) for a, b in zip(starts, [*ends, len(paragraphs)], strict=True)]
