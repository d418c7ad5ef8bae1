"""Texts that grow in a thread of their own, grouped into pieces that can be shown."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Generator
from typing import Any

from labkit.generation import Token
from labkit.text import Tokenizer
from labstudio.visible import token_label, unhidden

ALTERNATIVES = 5


class Writing:
    """One text in the making, as the browser draws it.

    A piece is a token, or several where only together they make a whole character: its text, how surprising
    it was (bits: minus the binary logarithm of what the model gave it before any filter), its ids, and the
    likeliest tokens there.
    """

    def __init__(self, prompt: str, tokens: Generator[Token], tokenizer: Tokenizer) -> None:
        self.prompt, self.text, self.finish = prompt, "", ""
        self.pieces: list[dict[str, Any]] = []
        self._tokens, self._tokenizer = tokens, tokenizer
        self._unshown: list[Token] = []
        self._count = 0

    def advance(self) -> None:
        """Write one more token."""
        token = next(self._tokens)
        self._count += 1
        self._unshown.append(token)
        self.text += token.text
        if token.text:
            self.pieces.append(self._piece(token.text))
            self._unshown = []
        self.finish = token.finish or ""

    def close(self) -> None:
        """Write no more; the model goes back to the mode it was in."""
        self._tokens.close()

    def state(self, *, stopped: bool = False) -> dict[str, Any]:
        """What the browser needs, ready for JSON.  finish: why it ended; empty while it goes on."""
        finish = self.finish or ("stopped" if stopped else "")
        prompt = unhidden(self.prompt)
        return {"prompt": prompt, "pieces": self.pieces[:], "count": self._count, "finish": finish}

    def _piece(self, text: str) -> dict[str, Any]:
        first = self._unshown[0]
        chance = sum(token.log_probability or 0.0 for token in self._unshown)
        return {
            "text": unhidden(text),
            "bits": round(abs(chance) / math.log(2), 4),
            "ids": [token.id for token in self._unshown],
            "others": [
                [token_label(self._tokenizer, token), round(math.exp(chance), 6)]
                for token, chance in first.alternatives
            ],
        }


class Cancellation:
    """Tells a thread to stop and show what there is, or to leave without a word."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self.replaced = False

    def replace(self) -> None:
        """Stop, and show nothing any more: something else will be written."""
        self.replaced = True
        self.stopped.set()


class Background:
    """Runs one piece of work at a time; a new one replaces that before it."""

    def __init__(self) -> None:
        self.busy = threading.Lock()
        """Held while the model writes: it cannot be in two modes, training and evaluation, at once."""
        self.cancellation = Cancellation()
        self._thread: threading.Thread | None = None

    def start(self, work: Callable[[Cancellation], None], *, delay: float = 0) -> None:
        """Run work in a thread, after `delay` seconds in which nothing else was started."""
        self.cancellation.replace()
        cancellation = self.cancellation = Cancellation()

        def run() -> None:
            if not cancellation.stopped.wait(delay) or not cancellation.replaced:
                with self.busy:
                    if not cancellation.replaced:
                        work(cancellation)

        self._thread = threading.Thread(target=run, name="playground", daemon=True)
        self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; False when it took longer than timeout, in seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()


def write_all(
    writings: list[Writing], cancellation: Cancellation, publish: Callable[[], None], *, every: float
) -> None:
    """Write texts side by side until each has ended or is cancelled; publish about every `every` seconds."""
    shown = time.monotonic()
    while not cancellation.stopped.is_set() and any(not writing.finish for writing in writings):
        for writing in writings:
            if not writing.finish:
                writing.advance()
        if time.monotonic() - shown >= every:
            publish()
            shown = time.monotonic()
