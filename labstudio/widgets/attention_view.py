"""The attention explorer: what each head of a model looks at. Its view is static/attention.js."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import anywidget
import traitlets
from torch import Tensor

from labkit.analysis import AttentionSteps
from labkit.model import GPT
from labkit.text import Tokenizer
from labstudio.widgets.attention_pictures import STEPS, Reading, all_heads, given_tokens, one_head, read_text
from labstudio.widgets.playground_models import ModelChoice, Source
from labstudio.widgets.widget_files import css, javascript

VIEWS = ("matrix", "arcs", "table")


class AttentionExplorer(anywidget.AnyWidget):
    """Every head of every layer on a text of the reader's own, one of them enlarged, step by step.

    model, tokenizer: what reads; without them the shipped model does.  models: more to choose from, by name,
    each a (model, tokenizer) or a function that loads them; the shipped model and the newest runs are always
    there.  text: what is read; of a long one the end.

    All can be set from code too: `explorer.head = 2`; layers and heads count from 0.  view: matrix, arcs or
    table.  step: raw, scaled, masked or weights.  causal=False shows what the softmax would give if the same
    queries and keys were not masked.  What is wrong with a value is said in `error`, and all else stays as it
    was.

    The model reads when the text or the model is changed, and at `read`, in evaluation mode and without
    gradients. A model that another thread trains meanwhile is in evaluation mode for that moment too: no
    dropout in the step it is at. Nothing else about it changes.
    """

    _esm = javascript("attention_parts", "attention_views", "attention")
    _css = css("attention")

    model_names: traitlets.List[str] = traitlets.List().tag(sync=True)
    model_name = traitlets.Unicode().tag(sync=True)
    text = traitlets.Unicode().tag(sync=True)
    layer, head = (traitlets.Any(0).tag(sync=True) for _ in range(2))
    view = traitlets.Any(VIEWS[0]).tag(sync=True)
    step = traitlets.Any("weights").tag(sync=True)
    causal = traitlets.Any(True).tag(sync=True)
    pictures, enlarged = (traitlets.Dict().tag(sync=True) for _ in range(2))
    error, invalid, notice = (traitlets.Unicode().tag(sync=True) for _ in range(3))

    _choice: ModelChoice | None = None

    def __init__(
        self,
        model: GPT | None = None,
        tokenizer: Tokenizer | None = None,
        text: str = "A horse! a horse! my kingdom for a horse!",
        *,
        models: Mapping[str, Source] | None = None,
    ) -> None:
        if (model is None) != (tokenizer is None):
            raise ValueError("AttentionExplorer: give a model and its tokenizer, or neither.")
        given = (model, tokenizer) if model is not None and tokenizer is not None else None
        self._choice = ModelChoice(given, models)
        names = self._choice.names
        super().__init__(model_names=names, model_name=names[0], text=text)
        self._chosen = names[0]
        self._begin()

    @classmethod
    def by_hand(cls, queries: Tensor, keys: Tensor, tokens: Sequence[str]) -> AttentionExplorer:
        """An explorer of queries and keys that are given, without a model.

        queries, keys: (heads, seq, head_dim) or (layers, heads, seq, head_dim).  tokens: seq texts.
        Raises ValueError for other shapes and for numbers that are not finite.
        """
        return _ByHand(given_tokens(queries, keys, tokens))

    def __repr__(self) -> str:
        return f"AttentionExplorer({self.model_name})"

    def read(self) -> None:
        """Read the text anew, with what the model and the runs are by now."""
        with self._turn:
            self._forget()
            self._update()

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """What the browser sends, one message after the other."""
        with self._turn:
            super().set_state(sync_data)

    def _begin(self) -> None:
        self._turn = threading.RLock()
        self._reading: tuple[tuple[str, str], Reading] | None = None
        self._steps: tuple[Reading, bool, AttentionSteps] | None = None
        self._update()
        self.observe(self._moved, ["model_name", "text", "layer", "head", "view", "step", "causal"])
        self.on_msg(self._asked)

    def _moved(self, change: object) -> None:
        self._update()

    def _asked(self, widget: object, content: dict[str, str], buffers: object) -> None:
        if content.get("do") == "read":
            self.read()

    def _update(self) -> None:
        """Show what the traits ask for; what is wrong changes nothing."""
        with self._turn, self.hold_sync():
            try:
                reading = self._read()
                self._check(reading)
            except ValueError as error:
                self.error = str(error)
                named = re.match(r"(\w+)(?==|: )", self.error)
                self.invalid = named[1] if named else ""
            else:
                self.error = self.invalid = ""
                self._show(reading)

    def _read(self) -> Reading:
        """The text as the model reads it, which is kept until one of them is another."""
        assert self._choice is not None
        try:
            model, tokenizer = self._choice.load(self.model_name)
        except ValueError:
            self.model_name = self._chosen
            raise
        self._chosen = self.model_name
        key = self.model_name, self.text
        if self._reading is None or self._reading[0] != key:
            self._reading = key, read_text(model, tokenizer, self.text)
            self._fit_place(self._reading[1])
        return self._reading[1]

    def _fit_place(self, reading: Reading) -> None:
        """Where another model has fewer layers or heads than the one before, show its last ones."""
        for name, count in zip(("layer", "head"), reading.queries.shape[:2], strict=True):
            if self.enlarged and self.enlarged[name] >= count:
                setattr(self, name, count - 1)

    def _forget(self) -> None:
        self._reading = None
        if self._choice is not None:
            self._choice.look_again()
            self.model_names = self._choice.names

    def _check(self, reading: Reading) -> None:
        """Raise ValueError for a trait that cannot be shown."""
        for name, known in {"view": VIEWS, "step": tuple(STEPS), "causal": (True, False)}.items():
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name}={value!r} is not known. Choose from {', '.join(map(str, known))}.")
        for name, count in zip(("layer", "head"), reading.queries.shape[:2], strict=True):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
                raise ValueError(f"{name}={value!r} is not there: this model has {name}s 0 to {count - 1}.")

    def _show(self, reading: Reading) -> None:
        if self._steps is None or self._steps[:2] != (reading, self.causal):
            steps = reading.steps(causal=self.causal)
            self._steps = reading, self.causal, steps
            self.pictures = all_heads(reading, steps.weights) | {"causal": self.causal}
            seq = len(reading.labels)
            text = f"The text has {seq + reading.unread} tokens; the last {seq} are read and shown."
            self.notice = text if reading.unread else ""
        self.enlarged = one_head(reading, self._steps[2], self.layer, self.head)


class _ByHand(AttentionExplorer):
    """Nothing to choose and nothing to type."""

    def __init__(self, reading: Reading) -> None:
        self._given = reading
        anywidget.AnyWidget.__init__(self, model_name="by hand")
        self._begin()

    def _read(self) -> Reading:
        return self._given
