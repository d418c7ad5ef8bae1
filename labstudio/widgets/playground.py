"""The sampling playground: settings in, distribution and text out. Its view is static/playground.js."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import traitlets
from torch import Tensor

from labkit.config import SampleConfig
from labkit.generation import Token, stream_tokens
from labkit.model import GPT, evaluating
from labkit.text import Tokenizer
from labstudio.figures.sampling import (
    STAGES,
    SamplingStages,
    draw_counts,
    next_token_logits,
    sampling_stages,
)
from labstudio.visible import token_label
from labstudio.widgets.base import Widget, css, javascript, shown
from labstudio.widgets.model_choice import Loaded, ModelChoice, Source
from labstudio.widgets.text_writing import ALTERNATIVES, Background, Cancellation, Writing, write_all

COLUMNS = ("", "_b")
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
COMMON = ("model_name", "prompt", "seed", "max_new_tokens", "stop", "compare")
LONGEST = 2000
PAUSE = 0.25


def _plain(value: Any, widget: object) -> Any:
    """NaN and infinity as words: JSON has no numbers for them."""
    return value if not isinstance(value, float) or math.isfinite(value) else str(value)


def _setting(default: Any) -> Any:
    """A trait that takes whatever is typed; `error` says what is wrong with it."""
    return traitlets.Any(default).tag(sync=True, to_json=_plain)


class SamplingPlayground(Widget):
    """Every sampling setting on a slider, the distribution it makes, and the text that follows.

    model, tokenizer: what writes; without them the shipped model does.  models: more to choose from, by
    name, each a (model, tokenizer) or a function that loads them; the shipped model and the newest runs are
    always there.  prompt: what the text begins with.

    The settings can be moved from code too: `playground.temperature = 1.5`; those of the second text, shown
    when `compare` is True, end in _b. `error` says what is wrong with a value, and all else stays as it
    was. The first text is there at once, later ones are written in the background; the same settings and
    seed always give the same text.
    """

    _esm = javascript("playground")
    _css = css("playground")
    _quiet = False

    model_names, model_name = shown(traitlets.List), shown(traitlets.Unicode)
    vocab_size = shown(traitlets.Int)
    prompt = shown(traitlets.Unicode)
    seed, max_new_tokens = _setting(0), _setting(160)
    stop = shown(traitlets.List)
    compare = shown(traitlets.Bool)
    temperature, temperature_b = _setting(0.8), _setting(1.0)
    top_k, top_k_b = _setting(None), _setting(None)
    top_p, top_p_b = _setting(1.0), _setting(1.0)
    min_p, min_p_b = _setting(0.0), _setting(0.0)
    repetition_penalty, repetition_penalty_b = _setting(1.0), _setting(1.0)

    distribution, distribution_b = shown(traitlets.Dict), shown(traitlets.Dict)
    counts, counts_b = shown(traitlets.Dict), shown(traitlets.Dict)
    text, text_b = shown(traitlets.Dict), shown(traitlets.Dict)
    error, invalid, notice = (shown(traitlets.Unicode) for _ in range(3))
    writing = shown(traitlets.Bool)

    def __init__(
        self,
        model: GPT | None = None,
        tokenizer: Tokenizer | None = None,
        prompt: str = "\n",
        *,
        models: Mapping[str, Source] | None = None,
        max_new_tokens: int = 160,
        seed: int = 0,
    ) -> None:
        self._choice = ModelChoice(model, tokenizer, models)
        self._background = Background()
        self._logits: tuple[tuple[object, ...], Tensor] | None = None
        self._good: dict[str, tuple[SampleConfig, SamplingStages]] = {}
        self._writings: dict[str, Writing] = {}
        self._seed = 0
        name = self._choice.names[0]
        super().__init__(
            prompt=prompt, max_new_tokens=max_new_tokens, seed=seed, model_name=name,
            model_names=self._choice.names,
        )  # fmt: skip
        self._chosen = name
        self._update(background=False)
        self.observe(self._moved, [*COMMON, *(name + column for column in COLUMNS for name in SETTINGS)])

    def __repr__(self) -> str:
        return f"SamplingPlayground({self.model_name})"

    @property
    def config(self) -> SampleConfig:
        """The settings of what is shown: the last ones that could be used."""
        return self._good[""][0] if self._good else self._config("")

    @property
    def written(self) -> str:
        """The text so far, without the prompt; of a text in the making, call `wait` first."""
        return self._writings[""].text if self._writings else ""

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the text that is being written; False when it took longer than timeout, in seconds."""
        return self._background.wait(timeout)

    def write(self) -> None:
        """Write again, with the current model and runs."""
        self._choice.look_again()
        self.model_names = self._choice.names
        self._logits = None
        self._update(delay=0)

    def halt(self) -> None:
        """Stop writing and keep the text so far."""
        self._background.cancellation.stopped.set()

    def draw(self, draws: int = 1000) -> None:
        """Draw the first token `draws` more times, for the marks on the bars."""
        for column, (_, stages) in self._good.items():
            before = getattr(self, "counts" + column)
            seed = self._seed + before.get("draws", 0)
            found = draw_counts(stages.probabilities["filtered"], draws, seed=seed)
            new = found[stages.table["id"].tolist()].tolist()
            total = [sum(pair) for pair in zip(before.get("counts", [0] * len(new)), new, strict=True)]
            setattr(self, "counts" + column, {"draws": before.get("draws", 0) + draws, "counts": total})

    def _moved(self, change: object) -> None:
        if not self._quiet:
            self._update()

    def _handle(self, content: dict[str, Any]) -> None:
        actions = {"write": self.write, "halt": self.halt, "draw": self.draw}
        if action := actions.get(content.get("do", "")):
            action()

    def _update(self, *, background: bool = True, delay: float = PAUSE) -> None:
        """Show what the settings make of the distribution, then write; what is wrong changes nothing."""
        problems: dict[str, ValueError] = {}
        writings: dict[str, Writing] = {}
        with self._lock, self.hold_sync():
            try:
                model, tokenizer = self._load()
                seed = self._checked_seed()
                ids, logits = self._read(model, tokenizer)
            except ValueError as error:
                self._say({"": error})
                if self._background.cancellation.replaced:
                    self.writing = False
                return
            if not self.compare:
                self._good.pop("_b", None)
            for column in COLUMNS if self.compare else COLUMNS[:1]:
                try:
                    config = self._config(column)
                    tokens = _tokens(model, tokenizer, self.prompt, config, seed)
                    self._show(column, config, ids, logits, tokenizer)
                    writings[column] = Writing(self.prompt, tokens, tokenizer)
                except ValueError as error:
                    problems[column] = error
            self._say(problems)
            self.notice = self._notices(len(ids), model)
            if writings:
                self._seed = seed
                self._write(model, writings, background, delay)

    def _load(self) -> Loaded:
        try:
            loaded = self._choice.load(self.model_name)
        except ValueError:
            with self._quietly():
                self.model_name = self._chosen
            raise
        self._chosen = self.model_name
        if loaded[0].config.vocab_size != self.vocab_size:
            self._fit_vocabulary(loaded[0].config.vocab_size)
        return loaded

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

    def _read(self, model: GPT, tokenizer: Tokenizer) -> tuple[list[int], Tensor]:
        """Ids of the prompt and the logits after it, which are kept until prompt or weights change."""
        if not self.prompt:
            raise ValueError("prompt='' is empty; type at least one character, for example a line break.")
        try:
            ids = tokenizer.encode(self.prompt)
        except ValueError as error:
            raise ValueError(f"prompt: {error}") from error
        key = (id(model), self.prompt, _weights_now(model))
        if self._logits is None or self._logits[0] != key:
            self._background.cancellation.replace()
            with self._background.busy:
                self._logits = key, next_token_logits(model, ids)
        return ids, self._logits[1]

    def _show(
        self, column: str, config: SampleConfig, ids: list[int], logits: Tensor, tokenizer: Tokenizer
    ) -> None:
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[ids] = True
        stages = sampling_stages(logits, config, seen)
        self._good[column] = config, stages
        shown = _distribution(stages, tokenizer)
        if shown != getattr(self, "distribution" + column):
            setattr(self, "distribution" + column, shown)
            setattr(self, "counts" + column, {})

    def _notices(self, length: int, model: GPT) -> str:
        notices = []
        if any(config.temperature == 0 for config, _ in self._good.values()):
            notices.append(
                "Temperature 0 is greedy: always the likeliest token; top-k, top-p, min-p and the seed "
                "change nothing."
            )
        if length > (context := model.config.context_length):
            notices.append(f"The prompt has {length} tokens; the model reads the last {context}.")
        return " ".join(notices)

    def _write(self, model: GPT, writings: dict[str, Writing], background: bool, delay: float) -> None:
        def work(cancellation: Cancellation) -> None:
            failed = ""
            with evaluating(model):
                try:
                    write_all(
                        list(writings.values()),
                        cancellation,
                        lambda: self._publish(cancellation, writings),
                        every=PAUSE,
                    )
                except Exception as error:  # in a thread it would go unseen
                    failed = f"Writing failed: {error}"
                finally:
                    for writing in writings.values():
                        writing.close()
            self._publish(cancellation, writings, done=True, failed=failed)

        self._writings = writings
        if background:
            self.writing = True
            self._background.start(work, delay=delay)
        else:
            work(Cancellation())

    def _publish(
        self,
        cancellation: Cancellation,
        writings: dict[str, Writing],
        *,
        done: bool = False,
        failed: str = "",
    ) -> None:
        """Show the texts, unless something else is to be written; the thread never waits for a new move."""
        while not cancellation.replaced:
            if not self._lock.acquire(timeout=0.05):
                continue
            try:
                if cancellation.replaced:
                    return
                with self.hold_sync():
                    for column, writing in writings.items():
                        if writing.pieces or writing.finish:
                            setattr(self, "text" + column, writing.state(stopped=done))
                    self.error = failed or self.error
                    self.writing = not done
                return
            finally:
                self._lock.release()


def _tokens(
    model: GPT, tokenizer: Tokenizer, prompt: str, config: SampleConfig, seed: int
) -> Generator[Token]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a prompt longer than the context: the notice says so
        alternatives = min(ALTERNATIVES, model.config.vocab_size)
        tokens = stream_tokens(model, tokenizer, [prompt], config, seed=seed, logprobs=alternatives)
    assert isinstance(tokens, Generator)
    return tokens


def _weights_now(model: GPT) -> tuple[float, ...]:
    """Sums of some numbers of each parameter. Training changes them; PyTorch's counters miss fused steps."""
    few = [
        each.detach().flatten()[:: max(1, each.numel() // 64)].float().sum() for each in model.parameters()
    ]
    return tuple(torch.stack(few).tolist())


def _distribution(stages: SamplingStages, tokenizer: Tokenizer) -> dict[str, Any]:
    """The stages as JSON: rows of the table with labels, and of the other tokens their number and sums."""
    rows = stages.table.to_dict("records")
    others = len(stages.probabilities["raw"]) - len(rows)
    sums = {stage: float(stages.table[stage].sum()) for stage in STAGES}
    return {
        "rows": [row | {"label": token_label(tokenizer, int(row["id"]))} for row in rows],
        "others": others,
        "rest": {stage: max(0.0, 1 - each) if others else 0.0 for stage, each in sums.items()},
        "entropy": stages.entropy,
        "effective": stages.effective,
        "kept": stages.kept,
    }
