"""Which models a widget offers: the notebook's own, the shipped one, the reader's runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from labkit.model import GPT
from labkit.text import Tokenizer
from labkit.training import list_runs
from labkit.weights import load_pretrained

Loaded = tuple[GPT, Tokenizer]
Source = Loaded | Callable[[], Loaded]

GIVEN = "this notebook's model"
SHIPPED = "shipped model"
NEWEST_RUNS = 20


class ModelChoice:
    """Names of models, each loaded when it is chosen; the last one that was loaded is kept.

    model, tokenizer: the notebook's, which come first.  models: more, by name, each a (model, tokenizer) or
    a function that loads them.  Raises ValueError for a model without its tokenizer.
    """

    def __init__(
        self, model: GPT | None, tokenizer: Tokenizer | None, models: Mapping[str, Source] | None
    ) -> None:
        self._fixed: dict[str, Source] = {}
        if model is not None and tokenizer is not None:
            self._fixed[GIVEN] = model, tokenizer
        elif model is not None or tokenizer is not None:
            raise ValueError("model, tokenizer: give a model and its tokenizer, or neither.")
        self._fixed |= models or {}
        self._fixed.setdefault(SHIPPED, load_pretrained)
        self._sources: dict[str, Source] = {}
        self._last: tuple[str, Loaded] | None = None
        self.look_again()

    @property
    def names(self) -> list[str]:
        """What can be chosen."""
        return list(self._sources)

    def look_again(self) -> None:
        """Find the current runs, newest first; a run that was loaded is loaded again when next chosen."""
        runs = [run for run in reversed(list_runs()) if run.pointer("latest")][:NEWEST_RUNS]
        self._sources = self._fixed | {f"run {run.id}": run.load for run in runs}
        if self._last and self._last[0] not in self._fixed:
            self._last = None

    def load(self, name: str) -> Loaded:
        """The model of this name and its tokenizer.  Raises ValueError, whatever was wrong with it."""
        source = self._sources.get(name)
        if source is None:
            raise ValueError(f"model_name={name!r} is not known. Choose from {', '.join(self.names)}.")
        if isinstance(source, tuple):
            return source
        if self._last is None or self._last[0] != name:
            try:
                self._last = name, source()
            except Exception as error:  # the loader is the caller's
                raise ValueError(f"The model {name!r} cannot be loaded: {error}") from error
        return self._last[1]
