"""What the playground's Python and its browser side share: settings, which are checked here, and results."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import anywidget
import traitlets

from labkit.config import SampleConfig

COLUMNS = ("", "_b")
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
COMMON = ("model_name", "prompt", "seed", "max_new_tokens", "stop", "compare")
LONGEST = 2000


def _plain(value: Any, widget: object) -> Any:
    """NaN and infinity as words: JSON has no numbers for them."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _setting(default: Any) -> Any:
    """A trait that takes whatever is typed; what is wrong with it is said in `error`."""
    return traitlets.Any(default).tag(sync=True, to_json=_plain)


def _shown(kind: type[traitlets.TraitType[Any, Any]]) -> Any:
    """A trait that Python sets and the browser draws."""
    return kind().tag(sync=True)


class PlaygroundTraits(anywidget.AnyWidget):
    """The state of a playground; names that end in _b belong to the second text."""

    _quiet = False

    model_names, model_name = _shown(traitlets.List), _shown(traitlets.Unicode)
    vocab_size = _shown(traitlets.Int)
    prompt = _shown(traitlets.Unicode)
    seed, max_new_tokens = _setting(0), _setting(160)
    stop = _shown(traitlets.List)
    compare = _shown(traitlets.Bool)
    temperature, temperature_b = _setting(0.8), _setting(1.0)
    top_k, top_k_b = _setting(None), _setting(None)
    top_p, top_p_b = _setting(1.0), _setting(1.0)
    min_p, min_p_b = _setting(0.0), _setting(0.0)
    repetition_penalty, repetition_penalty_b = _setting(1.0), _setting(1.0)

    distribution, distribution_b = _shown(traitlets.Dict), _shown(traitlets.Dict)
    counts, counts_b = _shown(traitlets.Dict), _shown(traitlets.Dict)
    text, text_b = _shown(traitlets.Dict), _shown(traitlets.Dict)
    error, invalid, notice = (_shown(traitlets.Unicode) for _ in range(3))
    writing = _shown(traitlets.Bool)

    def _fit_vocabulary(self, vocab: int) -> None:
        """Take over the size of another model's vocabulary; a top-k that kept every token still does."""
        with self._quietly():
            for name in ("top_k", "top_k_b"):
                k = getattr(self, name)
                if k is None or k == self.vocab_size or (isinstance(k, int) and k > vocab):
                    setattr(self, name, vocab)
            self.vocab_size = vocab

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Set traits without an update for each."""
        self._quiet = True
        try:
            yield
        finally:
            self._quiet = False

    def _checked_seed(self) -> int:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**53:
            raise ValueError(f"seed={self.seed!r} must be a whole number from 0 to 2**53 - 1.")
        return self.seed

    def _config(self, column: str) -> SampleConfig:
        """The settings of a column; what keeps every token is left out.  Raises ValueError."""
        values = {name: getattr(self, name + column) for name in SETTINGS}
        config = SampleConfig(max_new_tokens=self.max_new_tokens, stop=tuple(self.stop), **values)
        if config.max_new_tokens > LONGEST:
            raise ValueError(
                f"max_new_tokens={config.max_new_tokens} is above {LONGEST}, the most shown here."
            )
        if config.top_k is not None and config.top_k > self.vocab_size:
            raise ValueError(
                f"top_k={config.top_k} is above {self.vocab_size}, the size of the vocabulary, which keeps "
                "every token."
            )
        return replace(
            config,
            top_k=None if config.top_k == self.vocab_size else config.top_k,
            top_p=None if config.top_p == 1 else config.top_p,
            min_p=None if config.min_p == 0 else config.min_p,
        )

    def _say(self, problems: dict[str, ValueError]) -> None:
        """Show what is wrong, and mark the control it is about."""
        messages = [str(error).removeprefix("SampleConfig: ") for error in problems.values()]
        self.error = " ".join(dict.fromkeys(messages))
        self.invalid = ""
        for column, error in problems.items():
            if named := re.match(r"(?:SampleConfig: )?(\w+)(?==|: )", str(error)):
                self.invalid = named[1] + (column if named[1] in SETTINGS else "")
