"""`labkit sample`: text from a prompt, or from one prompt after another (--interactive)."""

from __future__ import annotations

import contextlib
import os
import shlex
import stat
import sys
import warnings
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import OmitArgPrefixes, Positional

from labkit.config import SampleConfig, as_dict
from labstudio.cli.models import choose_device, open_with_tokenizer
from labstudio.cli.options import File, Number, Switch, Text

if TYPE_CHECKING:
    from labkit.model import GPT
    from labkit.text import Tokenizer

RunOrFolder = Annotated[str | None, tyro.conf.arg(metavar="[RUN]", help_behavior_hint="")]

HELP = """\
Type a text and the model continues it; an empty line begins at a line break. Ctrl-C stops the writing.
  /set NAME VALUE   change a setting: /set temperature 0.7, /set top_k none, /set stop "the end" exeunt
  /settings         show all settings
  /help             show this
  /quit             leave (so does Ctrl-D)"""


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SampleConfig):
    """How text is drawn. Filters work in this order: repetition penalty, temperature, top-k, top-p, min-p."""

    def __post_init__(self) -> None:
        """Leave the checks to SampleConfig: its messages are printed without tyro's frame."""


DEFAULTS = SampleOptions()


def sample(
    run: Positional[RunOrFolder] = None,
    settings: OmitArgPrefixes[SampleOptions] = DEFAULTS,
    prompt: Text = None,
    prompt_file: File = None,
    interactive: Switch = False,
    chat: Switch = False,
    seed: int = 0,
    device: Text = None,
    threads: Number = None,
) -> int:
    """Write text with a trained model.

    The prompt comes from --prompt, from a file, or from a pipe: echo "ROMEO." | labkit sample

    Args:
        run: A run's name or folder (`labkit runs`), smollm2, a folder or file of weights, or a published
            model's name; else labkit's own model writes.
        prompt: Text to continue; a line break when there is no prompt at all.
        prompt_file: File with the text to continue, - for standard input; a last line break is left out.
        interactive: Ask for prompts, one after another; settings can be changed in between.
        chat: The prompt is a message to a model made for conversations (labkit sample smollm2 --chat); print
            the answer alone.
        seed: The same seed gives the same text; text i of --n draws with seed + i - 1.
        device: cpu, cuda or mps; the best there is when not given.
        threads: CPU threads; when not given, one for a small model, else all cores that may be used.
    """
    config = SampleConfig(**vars(settings))
    if interactive and (prompt is not None or prompt_file is not None):
        raise ValueError("sample: --interactive asks for prompts; leave --prompt and --prompt-file out.")
    if interactive and chat:
        raise ValueError("sample: --chat answers one message; leave --interactive out.")
    text = "" if interactive else prompt_text(prompt, prompt_file)
    if not 0 <= seed < 2**63:
        raise ValueError(f"sample: seed={seed} must be from 0 to {2**63 - 1}.")

    model, tokenizer = open_with_tokenizer("sample", run or "shipped")
    place = choose_device("sample", device, threads, model.num_parameters())
    model.to(place)
    try:
        if interactive:
            return converse(model, tokenizer, config, seed)
        write(model, tokenizer, text, config, seed, chat=chat)
    except BrokenPipeError:  # the reader has seen enough; this avoids a second error at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def write(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: SampleConfig, seed: int, *, chat: bool = False
) -> None:
    """Print prompt and continuation as it is written; settings.n of them one after another.

    chat: the prompt is a message, and only the answer is printed.
    All are generated together; the first unfinished one is shown as it grows.
    """
    from labkit.generation import stream_tokens
    from labkit.text import encode_chat

    begin = encode_chat(tokenizer, [{"role": "user", "content": prompt}]) if chat else prompt
    prompt = "" if chat else prompt
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        tokens = stream_tokens(model, tokenizer, [begin], settings, seed=seed)
    for warning in caught:
        message = str(warning.message).removeprefix("generate: ").replace("prompt 0", "the prompt")
        print(f"Note: {message}", file=sys.stderr)
    tokens = chain([next(tokens)], tokens)  # what is wrong is said before the prompt is shown
    waiting = ["" for _ in range(settings.n)]
    finished = [False] * settings.n
    shown = 0
    _begin(prompt, shown, settings.n, seed)
    for token in tokens:
        waiting[token.number] += token.text
        finished[token.number] = token.finish is not None
        while shown < settings.n:
            print(waiting[shown], end="", flush=True)
            waiting[shown] = ""
            if not finished[shown]:
                break
            print(flush=True)
            shown += 1
            if shown < settings.n:
                _begin(prompt, shown, settings.n, seed)


def _begin(prompt: str, number: int, n: int, seed: int) -> None:
    if n > 1:
        print(f"{'' if number == 0 else chr(10)}==> {number + 1} of {n}, seed {seed + number} <==")
    print(prompt, end="", flush=True)


def prompt_text(prompt: str | None, file: Path | None) -> str:
    """What to continue: the prompt, the file's text, or what is piped in; else a line break.

    Raises ValueError for a prompt and a file at once, and for a file that is no readable UTF-8 text.
    """
    if prompt is not None and file is not None:
        raise ValueError("sample: give --prompt or --prompt-file, not both.")
    if prompt is not None:
        return prompt
    if file is None and not _piped():
        return "\n"
    if file is None or str(file) == "-":
        return _read(sys.stdin.buffer.read(), "standard input")
    try:
        return _read(file.read_bytes(), str(file))
    except OSError as error:
        raise ValueError(f"sample: {file} cannot be read ({error.strerror}).") from error


def _read(data: bytes, source: str) -> str:
    try:
        text = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"sample: {source} is not UTF-8 text ({error}).") from error
    return text if text == "\n" else text.removesuffix("\n")


def _piped() -> bool:
    """Whether standard input is a pipe or a file, rather than a keyboard or nothing."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        mode = os.fstat(sys.stdin.fileno()).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISREG(mode)
    return False


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
            f"/set {name}: needs one value, such as /set {name} {_shown(as_dict(settings).get(name, 0))}."
        )
    value = _number(values[0])
    if name == "seed":
        if not (isinstance(value, int) and 0 <= value < 2**63):
            raise ValueError(f"/set seed: {values[0]!r} must be a whole number from 0 on.")
        return settings, value
    return replace(settings, **{name: value}), seed


def _number(word: str) -> Any:
    """The number that a word stands for; SampleConfig says what is wrong with any other word."""
    if word.lower() == "none":
        return None
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return shlex.join(value) or "none" if isinstance(value, list) else str(value)
