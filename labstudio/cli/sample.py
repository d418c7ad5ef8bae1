"""`labkit sample`."""

from __future__ import annotations

import os
import sys
import warnings
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional

from labkit.config import SampleConfig
from labstudio.cli.models import open_model
from labstudio.cli.prompts import prompt_text

if TYPE_CHECKING:
    from labkit.model import GPT
    from labkit.text import Tokenizer

RunOrFolder = Annotated[str | None, tyro.conf.arg(metavar="[RUN]", help_behavior_hint="")]
Text = Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Number = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Switch = Annotated[bool, FlagCreatePairsOff, tyro.conf.arg(help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class SampleOptions(SampleConfig):
    """How text is drawn. Filters work in this order: repetition penalty, temperature, top-k, top-p, min-p."""

    def __post_init__(self) -> None:
        """Leave the checks to SampleConfig, whose messages need no frame."""


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
    if threads is not None and threads < 1:
        raise ValueError(f"sample: threads={threads} must be at least 1.")
    if not 0 <= seed < 2**63:
        raise ValueError(f"sample: seed={seed} must be from 0 to {2**63 - 1}.")

    from labkit.device import best_device, decoding_threads, set_threads

    place = best_device(device)
    model, tokenizer = _load(run)
    set_threads(threads or decoding_threads(model.num_parameters()))
    model.to(place)
    try:
        if interactive:
            from labstudio.cli.interactive import converse

            return converse(model, tokenizer, config, seed)
        write(model, tokenizer, text, config, seed, chat=chat)
    except BrokenPipeError:  # whoever read has seen enough; a second complaint at exit is avoided
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def write(
    model: GPT, tokenizer: Tokenizer, prompt: str, settings: SampleConfig, seed: int, *, chat: bool = False
) -> None:
    """Print prompt and continuation as it is written; settings.n of them one after another.

    chat: the prompt is a message, and only the answer is printed.
    All are written at once; the first that is not finished is shown as it grows.
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


def _load(run: str | None) -> tuple[GPT, Tokenizer]:
    model, tokenizer = open_model(run or "shipped")
    if tokenizer is None:
        raise ValueError(
            f"sample: {run} has no tokenizer that labkit reads. Put the model's tokenizer.json, or its "
            "vocab.json and merges.txt, beside the weights."
        )
    return model, tokenizer
