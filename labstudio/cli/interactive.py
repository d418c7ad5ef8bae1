"""`labkit sample --interactive`: prompts from the keyboard, one after another."""

from __future__ import annotations

import contextlib
import shlex
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from labkit.config import SampleConfig, as_dict
from labstudio.cli.sample import write

if TYPE_CHECKING:
    from labkit.model import GPT
    from labkit.text import Tokenizer

HELP = """\
Type a text and the model continues it; an empty line begins at a line break. Ctrl-C stops the writing.
  /set NAME VALUE   change a setting: /set temperature 0.7, /set top_k none, /set stop "the end" exeunt
  /settings         show all settings
  /help             show this
  /quit             leave (so does Ctrl-D)"""


def converse(model: GPT, tokenizer: Tokenizer, settings: SampleConfig, seed: int) -> int:
    """Continue one prompt after another until the user leaves; returns the exit code.

    Each text moves the seed on, so that the same prompt gives another text the next time.
    """
    with contextlib.suppress(ImportError):  # Windows has none
        import readline  # noqa: F401 - input() edits lines and remembers them once it is imported

    print(HELP)
    while True:
        try:
            line = input("> ")
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            return 130
        except UnicodeDecodeError as error:
            print(f"labkit: what was typed is not {error.encoding} text.", file=sys.stderr)
            continue
        command, _, rest = line.strip().partition(" ")
        try:
            if command == "/quit":
                return 0
            elif command == "/help":
                print(HELP)
            elif command == "/settings":
                for name, value in (as_dict(settings) | {"seed": seed}).items():
                    print(f"  {name:<20}{_shown(value)}")
            elif command == "/set":
                settings, seed = changed(settings, seed, rest)
            elif command.startswith("/"):
                print(f"{command} is no command. /help lists them.", file=sys.stderr)
            else:
                write(model, tokenizer, line or "\n", settings, seed)
                seed += settings.n
        except BrokenPipeError:
            raise
        except (ValueError, RuntimeError, OSError) as error:
            print(f"labkit: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print()
            seed += settings.n


def changed(settings: SampleConfig, seed: int, words: str) -> tuple[SampleConfig, int]:
    """Settings and seed after `/set` with these words.  Raises ValueError for what it cannot set."""
    name, *values = shlex.split(words) or [""]
    name = name.replace("-", "_")
    known = [*as_dict(settings), "seed"]
    if name not in known:
        raise ValueError(f"/set: {name!r} is no setting. Choose from {', '.join(known)}.")
    if name == "stop":
        return replace(settings, stop=() if values == ["none"] else tuple(values)), seed
    if len(values) != 1:
        raise ValueError(
            f"/set {name}: needs one value, such as /set {name} {_shown(_value(settings, name))}."
        )
    value = _parsed(values[0])
    if name == "seed":
        if not (isinstance(value, int) and 0 <= value < 2**63):
            raise ValueError(f"/set seed: {values[0]!r} must be a whole number from 0 on.")
        return settings, value
    return replace(settings, **{name: value}), seed


def _parsed(word: str) -> Any:
    """The number that a word stands for; SampleConfig says what is wrong with any other word."""
    if word.lower() == "none":
        return None
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def _value(settings: SampleConfig, name: str) -> Any:
    return as_dict(settings).get(name, 0)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return shlex.join(value) or "none" if isinstance(value, list) else str(value)
