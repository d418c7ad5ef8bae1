"""The sampling playground: settings in, distribution and text out. Its view is static/playground.js."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Generator, Mapping
from typing import Any

import torch
from torch import Tensor

from labkit.config import SampleConfig
from labkit.generation import Token, stream_tokens
from labkit.model import GPT, evaluating
from labkit.text import Tokenizer
from labstudio.figures.sampling_stages import (
    STAGES,
    SamplingStages,
    draw_counts,
    next_token_logits,
    sampling_stages,
)
from labstudio.visible import token_label
from labstudio.widgets.playground_models import Loaded, ModelChoice, Source
from labstudio.widgets.playground_traits import COLUMNS, COMMON, SETTINGS, PlaygroundTraits
from labstudio.widgets.playground_writer import ALTERNATIVES, Background, Job, Writing, write_all
from labstudio.widgets.widget_files import css, javascript

PAUSE = 0.25


class SamplingPlayground(PlaygroundTraits):
    """Every sampling setting on a slider, the distribution it makes, and the text that follows.

    model, tokenizer: what writes; without them the shipped model does.  models: more to choose from, by
    name, each a (model, tokenizer) or a function that loads them; the shipped model and the newest runs are
    always there.  prompt: what the text begins with.

    The settings can be moved from code too: `playground.temperature = 1.5`; those of the second text, shown
    when `compare` is True, end in _b. What is wrong with a value is said in `error`, and all else stays as
    it was. The first text is there at once, later ones are written in the background; the same settings and
    seed always give the same text.
    """

    _esm = javascript("playground")
    _css = css("playground")

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
        if (model is None) != (tokenizer is None):
            raise ValueError("SamplingPlayground: give a model and its tokenizer, or neither.")
        given = (model, tokenizer) if model is not None and tokenizer is not None else None
        self._choice = ModelChoice(given, models)
        self._background = Background()
        self._turn = threading.RLock()
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
        self.on_msg(self._asked)

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
        """Write anew, with what the model and the runs are by now."""
        self._choice.look_again()
        self.model_names = self._choice.names
        self._logits = None
        self._update(delay=0)

    def halt(self) -> None:
        """Stop writing and keep what there is."""
        self._background.job.stopped.set()

    def draw(self, draws: int = 1000) -> None:
        """Draw the first token so many times more, for the marks on the bars."""
        for column, (_, stages) in self._good.items():
            before = getattr(self, "counts" + column)
            seed = self._seed + before.get("draws", 0)
            found = draw_counts(stages.probabilities["filtered"], draws, seed=seed)
            new = found[stages.table["id"].tolist()].tolist()
            total = [sum(pair) for pair in zip(before.get("counts", [0] * len(new)), new, strict=True)]
            setattr(self, "counts" + column, {"draws": before.get("draws", 0) + draws, "counts": total})

    def set_state(self, sync_data: dict[str, Any]) -> None:
        """What the browser sends; never while the writing thread sets a trait."""
        with self._turn:
            super().set_state(sync_data)

    def _moved(self, change: object) -> None:
        if not self._quiet:
            self._update()

    def _asked(self, widget: object, content: dict[str, str], buffers: object) -> None:
        actions = {"write": self.write, "halt": self.halt, "draw": self.draw}
        if action := actions.get(content.get("do", "")):
            action()

    def _update(self, *, background: bool = True, delay: float = PAUSE) -> None:
        """Show what the settings make of the distribution, then write; what is wrong changes nothing."""
        problems: dict[str, ValueError] = {}
        writings: dict[str, Writing] = {}
        with self._turn, self.hold_sync():
            try:
                model, tokenizer = self._load()
                seed = self._checked_seed()
                ids, logits = self._read(model, tokenizer)
            except ValueError as error:
                self._say({"": error})
                if self._background.job.replaced:
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
            self._background.job.replace()
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
        def work(job: Job) -> None:
            failed = ""
            with evaluating(model):
                try:
                    write_all(list(writings.values()), job, lambda: self._publish(job, writings), every=PAUSE)
                except Exception as error:  # what a thread raises, nobody sees
                    failed = f"Writing failed: {error}"
                finally:
                    for writing in writings.values():
                        writing.close()
            self._publish(job, writings, done=True, failed=failed)

        self._writings = writings
        if background:
            self.writing = True
            self._background.start(work, delay=delay)
        else:
            work(Job())

    def _publish(
        self, job: Job, writings: dict[str, Writing], *, done: bool = False, failed: str = ""
    ) -> None:
        """Show the texts, unless something else is to be written; the thread never waits for a new move."""
        while not job.replaced:
            if not self._turn.acquire(timeout=0.05):
                continue
            try:
                if job.replaced:
                    return
                with self.hold_sync():
                    for column, writing in writings.items():
                        if writing.pieces or writing.finish:
                            setattr(self, "text" + column, writing.state(stopped=done))
                    self.error = failed or self.error
                    self.writing = not done
                return
            finally:
                self._turn.release()


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
