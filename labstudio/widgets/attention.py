"""What each head of a model looks at: the explorer and a figure. The view is static/attention.js."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import traitlets
from matplotlib.figure import Figure
from torch import Tensor

from labkit.analysis import AttentionSteps, attention_steps, head_scores, queries_and_keys
from labkit.model import GPT
from labkit.text import Tokenizer
from labstudio.figures.base import heatmap, new_figure
from labstudio.visible import token_label, unhidden
from labstudio.widgets.base import Widget, css, javascript, shown
from labstudio.widgets.model_choice import ModelChoice, Source

VIEWS = ("matrix", "arcs", "table")


LONGEST = 128
STEPS = {
    "raw": "Raw scores: q·k",
    "scaled": "Scaled: divided by √head_dim",
    "masked": "Masked: no later tokens",
    "weights": "Softmax: each row adds up to 1",
}


@dataclass(frozen=True, eq=False)
class Reading:
    """Some tokens as every head of every layer sees them, on the CPU."""

    queries: Tensor
    """(layers, heads, seq, head_dim)"""
    keys: Tensor
    """(layers, heads, seq, head_dim)"""
    ids: Tensor
    """(seq,); equal where the tokens are the same."""
    labels: list[str]
    """What to call each token; hidden characters are shown."""
    unread: int = 0
    """Tokens before these that were left out."""


def read_text(model: GPT, tokenizer: Tokenizer, text: str) -> Reading:
    """What the heads see in the last tokens of a text: at most LONGEST, and no more than the context holds.

    Raises ValueError for an empty text, characters that the tokenizer does not know, numbers that are not
    finite, and attention whose queries cannot be read.
    """
    if not text:
        raise ValueError("text='' is empty; type at least one character.")
    try:
        ids = tokenizer.encode(text)
    except ValueError as error:
        raise ValueError(f"text: {error}") from error
    read = ids[-min(LONGEST, model.config.context_length) :]
    batch = torch.tensor([read], device=model.token_embedding.weight.device)
    try:
        queries, keys = queries_and_keys(model, batch)  # (layers, 1, heads, seq, head_dim)
    except TypeError as error:
        raise ValueError(str(error)) from error
    labels = [token_label(tokenizer, token) for token in read]
    return _checked(queries[:, 0], keys[:, 0], batch[0], labels, unread=len(ids) - len(read))


def given_tokens(queries: Tensor, keys: Tensor, tokens: Sequence[str]) -> Reading:
    """Queries and keys that are given, (heads, seq, head_dim) or (layers, heads, seq, head_dim).

    Raises ValueError for other shapes, numbers that are not finite, and tokens of another number.
    """
    for name, tensor in {"queries": queries, "keys": keys}.items():
        if tensor.ndim not in (3, 4) or tensor.numel() == 0:
            raise ValueError(
                f"{name} have shape {tuple(tensor.shape)}; expected (heads, seq, head_dim) or (layers, "
                "heads, seq, head_dim). Give one head as queries[None], keys[None]."
            )
    if queries.shape != keys.shape:
        raise ValueError(f"queries {tuple(queries.shape)} and keys {tuple(keys.shape)} differ in shape.")
    if not 1 <= len(tokens) == queries.shape[-2] <= LONGEST:
        raise ValueError(
            f"{len(tokens)} tokens for {queries.shape[-2]} positions: give one for each, {LONGEST} at most."
        )
    numbers = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    ids = torch.tensor([numbers[token] for token in tokens])
    if queries.ndim == 3:
        queries, keys = queries[None], keys[None]
    return _checked(queries, keys, ids, [unhidden(token) for token in tokens])


def _checked(queries: Tensor, keys: Tensor, ids: Tensor, labels: list[str], unread: int = 0) -> Reading:
    queries, keys = (tensor.detach().float().cpu() for tensor in (queries, keys))
    if not (queries.isfinite().all() and keys.isfinite().all()):
        raise ValueError("The queries or keys are not finite: there is NaN or infinity among the weights.")
    return Reading(queries, keys, ids.cpu(), labels, unread)


def all_heads(reading: Reading, weights: Tensor) -> dict[str, Any]:
    """What the browser draws of all heads at once: labels, scores by name, and a byte for each weight.

    weights: (layers, heads, seq, seq) in [0, 1]; as bytes 0 to 255, row by row.  A score that is not defined
    for this text is None.
    """
    layers, heads, seq, _ = weights.shape
    scores = head_scores(weights[:, None], reading.ids[None]) if seq > 1 else {}
    return {
        "labels": reading.labels,
        "layers": layers,
        "heads": heads,
        "scores": {name.replace("_", " "): _plain(values) for name, values in scores.items()},
        "weights": (weights * 255).round().to(torch.uint8).numpy().tobytes(),
    }


def one_head(reading: Reading, steps: AttentionSteps, layer: int, head: int) -> dict[str, Any]:
    """What the browser draws of one head: float32 bytes of its four (seq, seq) matrices, in order."""
    matrices = torch.stack([getattr(steps, name)[layer, head] for name in STEPS])  # (4, seq, seq)
    head_dim = reading.queries.shape[-1]
    return {"layer": layer, "head": head, "head_dim": head_dim, "matrices": matrices.numpy().tobytes()}


def _plain(scores: Tensor) -> list[list[float | None]]:
    """(layers, heads) as JSON, which has no NaN."""
    return [[value if math.isfinite(value) else None for value in row] for row in scores.tolist()]


def attention_figure(steps: AttentionSteps, tokens: Sequence[str]) -> Figure:
    """The four steps of one head as heat maps with a name for each token; few tokens have their numbers too.

    steps: of one head, each (seq, seq).  Raises ValueError for another shape or another number of tokens.
    """
    if steps.raw.shape != (len(tokens), len(tokens)):
        raise ValueError(
            f"attention_figure: the steps are {tuple(steps.raw.shape)} for {len(tokens)} tokens; expected "
            "(seq, seq) of one head and as many tokens."
        )
    figure = new_figure(2, rows=2, width=9, height=7.5)
    for axes, (name, title) in zip(figure.axes[:4], STEPS.items(), strict=True):
        heatmap(axes, getattr(steps, name), rows=tokens, columns=tokens, numbers=len(tokens) <= 8)
        axes.set(title=title, xlabel="looks at (key)", ylabel="token (query)")
    return figure


class AttentionExplorer(Widget):
    """Every head of every layer on any text, one of them enlarged, step by step.

    model, tokenizer: what reads; without them the shipped model does.  models: more to choose from, by name,
    each a (model, tokenizer) or a function that loads them; the shipped model and the newest runs are always
    there.  text: what is read; of a long one the end.

    All can be set from code too: `explorer.head = 2`; layers and heads count from 0.  view: matrix, arcs or
    table.  step: raw, scaled, masked or weights.  causal=False shows what the softmax would give if the same
    queries and keys were not masked.  `error` says what is wrong with a value, and all else stays as it was.

    The model reads when the text or the model is changed, and at `read`, in evaluation mode and without
    gradients. A model that another thread trains meanwhile is in evaluation mode for that moment too: no
    dropout in the step it is at. Nothing else about it changes.
    """

    _esm = javascript("attention_parts", "attention_views", "attention")
    _css = css("attention")

    model_names = shown(traitlets.List)
    model_name, text = shown(traitlets.Unicode), shown(traitlets.Unicode)
    layer, head = (traitlets.Any(0).tag(sync=True) for _ in range(2))
    view = traitlets.Any(VIEWS[0]).tag(sync=True)
    step = traitlets.Any("weights").tag(sync=True)
    causal = traitlets.Any(True).tag(sync=True)
    pictures, enlarged = (shown(traitlets.Dict) for _ in range(2))
    error, invalid, notice = (shown(traitlets.Unicode) for _ in range(3))

    _choice: ModelChoice | None = None
    _reading: tuple[tuple[str, str], Reading] | None = None
    _steps: tuple[Reading, bool, AttentionSteps] | None = None

    def __init__(
        self,
        model: GPT | None = None,
        tokenizer: Tokenizer | None = None,
        text: str = "A horse! a horse! my kingdom for a horse!",
        *,
        models: Mapping[str, Source] | None = None,
    ) -> None:
        self._choice = ModelChoice(model, tokenizer, models)
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
        """Read the text again, with the current model and runs."""
        with self._lock:
            if self._choice is not None:
                self._choice.look_again()
                self.model_names = self._choice.names
            self._reading = None
            self._update()

    def _begin(self) -> None:
        self._update()
        names = ["model_name", "text", "layer", "head", "view", "step", "causal"]
        self.observe(lambda change: self._update(), names)

    def _handle(self, content: dict[str, Any]) -> None:
        if content.get("do") == "read":
            self.read()

    def _update(self) -> None:
        """Show what the traits ask for; what is wrong changes nothing."""
        with self._lock, self.hold_sync():
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
        """The text as the model reads it, kept until the text or the model changes."""
        assert self._choice is not None
        try:
            model, tokenizer = self._choice.load(self.model_name)
        except ValueError:
            self.model_name = self._chosen
            raise
        self._chosen = self.model_name
        key = self.model_name, self.text
        if self._reading is None or self._reading[0] != key:
            reading = read_text(model, tokenizer, self.text)
            self._reading = key, reading
            # Where another model has fewer layers or heads than the one before, show its last ones.
            for name, count in zip(("layer", "head"), reading.queries.shape[:2], strict=True):
                if self.enlarged and self.enlarged[name] >= count:
                    setattr(self, name, count - 1)
        return self._reading[1]

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
            steps = attention_steps(reading.queries, reading.keys, causal=self.causal)
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
        Widget.__init__(self, model_name="by hand")
        self._begin()

    def _read(self) -> Reading:
        return self._given
