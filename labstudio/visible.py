"""Text from a corpus, a model or a file, with hidden characters made visible."""

from __future__ import annotations

import unicodedata

from labkit.text import Tokenizer


def visible(token: str) -> str:
    """A token's text with blanks that can be seen, safe from the mathematics of figure titles."""
    return blanks(token).replace("$", r"\$")


def blanks(token: str) -> str:
    """A token's text with blanks that can be seen."""
    return token.replace(" ", "␣").replace("\n", "⏎").replace("\t", "⇥")


def token_label(tokenizer: Tokenizer, token: int) -> str:
    """A token's text with hidden characters shown (`unhidden`); bytes of half a character are \\xNN.

    An accent that has no letter to stand on is a code point too.  Blanks stay; `visible` shows those.
    """
    if token >= tokenizer.vocab_size:
        return f"id {token}"  # models may have more outputs than the tokenizer has tokens
    text = tokenizer.token_bytes(token).decode("utf-8", "backslashreplace")
    if unicodedata.category(text[0]) in {"Mn", "Me"}:
        return f"U+{ord(text[0]):04X}{unhidden(text[1:])}"
    return unhidden(text)


def unhidden(text: str) -> str:
    """A text with a code point, like U+202E, for each character that is invisible or reverses the line."""
    return "".join(f"U+{ord(each):04X}" if _is_hidden(each) else each for each in text)


def _is_hidden(character: str) -> bool:
    """Control, format (zero-width, direction), private and unassigned characters, and unusual blanks."""
    category = unicodedata.category(character)
    return character not in " \n\t" and (category[0] == "C" or category in {"Zs", "Zl", "Zp"})
