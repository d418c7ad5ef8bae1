"""The loop that writes: read, draw, append, repeat, for many rows at once."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeGuard, cast, overload

import torch
from torch import Tensor, nn

from labkit.config import SampleConfig
from labkit.generation.filters import next_tokens
from labkit.model import (
    GPT,
    MLP,
    Block,
    CausalSelfAttention,
    KVCache,
    LearnedPositions,
    RotaryPositions,
    SinusoidalPositions,
    evaluating,
)
from labkit.model.layers import Dropout, is_unchanged

Prompt = Tensor | Sequence[int]


@overload
def generate(
    model: GPT, ids: Prompt, config: SampleConfig | None = None, *, seed: int = 0, **settings: Any
) -> Tensor: ...


@overload
def generate(
    model: GPT, ids: Sequence[Prompt], config: SampleConfig | None = None, *, seed: int = 0, **settings: Any
) -> list[Tensor]: ...


def generate(
    model: GPT,
    ids: Prompt | Sequence[Prompt],
    config: SampleConfig | None = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> Tensor | list[Tensor]:
    """Continue one prompt of token ids, or several at once.

    ids: (seq,) or (batch, seq), at least one token; or a list of prompts, whose lengths may differ. Of a
    prompt longer than the context the end is read.
    config: how to draw; or give its fields by name: `generate(model, ids, temperature=0.8)`.
    Returns prompt and new ids, on the model's device: (seq + new,) for one prompt, (batch * n, seq + new) for
    a batch, where a text that ended before the others is filled up with config.eos_id, and for a list a list
    of (seq + new,) texts, each ending with config.eos_id where that was drawn.
    Text i * n + j is the j-th of prompt i.  It draws from a generator of its own, seeded with
    seed + i * n + j: the same seed gives the same text, in a batch as alone.
    Raises ValueError for ids that the model cannot read, and for settings that need several texts (n with one
    prompt) or a tokenizer (stop); TypeError for settings that there are not.
    """
    config = sample_config(config, settings, "generate")
    if _is_list_of_prompts(ids):
        return generate_batch(model, ids, config, seed=seed)
    if getattr(ids, "ndim", 1) == 2:
        return _stacked(generate_batch(model, list(cast(Tensor, ids)), config, seed=seed), config.eos_id)
    if config.n > 1:
        raise ValueError(
            f"generate: one prompt gives one text; for n={config.n} give a list of prompts, "
            "generate(model, [ids])."
        )
    return generate_batch(model, [cast(Prompt, ids)], config, seed=seed)[0]


def generate_batch(
    model: GPT, prompts: Sequence[Prompt], config: SampleConfig | None = None, *, seed: int = 0
) -> list[Tensor]:
    """What `generate` does with a list of prompts."""
    config = config or SampleConfig()
    if config.stop:
        raise ValueError(
            f"generate: stop={list(config.stop)} is text, and ids have none. Call complete or stream, "
            "which take a tokenizer."
        )
    rows = prompt_rows(model, prompts)
    new: list[list[int]] = [[] for _ in range(len(rows) * config.n)]
    for step in decode(model, rows, config, seed):
        for text, token in zip(step.texts, step.tokens, strict=True):
            new[text].append(token)
    prompts_of_texts = [row for row in rows for _ in range(config.n)]
    return [torch.cat([row, row.new_tensor(each)]) for row, each in zip(prompts_of_texts, new, strict=True)]


def _is_list_of_prompts(ids: Prompt | Sequence[Prompt]) -> TypeGuard[Sequence[Prompt]]:
    if not isinstance(ids, Sequence) or not len(ids):
        return False
    return getattr(ids[0], "ndim", 0) > 0 or (isinstance(ids[0], Sequence) and not isinstance(ids, str))


def _stacked(texts: list[Tensor], eos_id: int | None) -> Tensor:
    """(texts, longest); shorter ones have ended with eos_id, and go on with it."""
    return nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=0 if eos_id is None else eos_id)


def sample_config(config: SampleConfig | None, settings: dict[str, Any], caller: str) -> SampleConfig:
    """The configuration with settings given by name in it.

    Raises TypeError, naming those that there are, for a setting that there is not.
    """
    if config is not None and not isinstance(config, SampleConfig):
        raise TypeError(
            f"{caller}: config is {config!r:.60}; expected a SampleConfig. A setting can be given by its "
            "name, for example max_new_tokens=50."
        )
    known = [each.name for each in fields(SampleConfig)]
    if unknown := [name for name in settings if name not in known]:
        raise TypeError(f"{caller}: there is no setting {unknown[0]!r}. Settings: seed, {', '.join(known)}.")
    config = config or SampleConfig()
    return replace(config, **settings) if settings else config


@dataclass(frozen=True)
class Step:
    """One new token in every text that goes on."""

    texts: list[int]
    """Numbers of these texts."""
    tokens: list[int]
    """The id drawn in each."""
    logits: Tensor
    """(texts, vocab) what the model said, before any filter; valid until the next step."""
    ended: set[int] = field(default_factory=set)
    """Texts that stop here; a reader of the steps may add to it."""


def prompt_rows(model: GPT, prompts: Sequence[Prompt]) -> list[Tensor]:
    """Prompts as (seq,) tensors of ids on the model's device.

    Raises ValueError for ids that the model cannot read, empty prompts, and no prompts; warns where one is
    longer than the context.
    """
    context = model.config.context_length
    rows = []
    for number, prompt in enumerate(prompts):
        try:
            row = torch.as_tensor(prompt, device=model.token_embedding.weight.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"generate: prompt {number} is {prompt!r:.60}; expected a list of token ids. "
                "Encode text first: tokenizer.encode(text)."
            ) from error
        if row.ndim != 1 or row.numel() == 0:
            raise ValueError(
                f"generate: prompt {number} has shape {tuple(row.shape)}; expected a list of at least one "
                "token id. To start from nothing, give the tokenizer's eos_id."
            )
        for window in row.split(context):
            model.check_ids(window[None])
        if len(row) > context:
            warnings.warn(
                f"generate: prompt {number} has {len(row)} tokens; the model reads the last {context}.",
                stacklevel=4,
            )
        rows.append(row.long())
    if not rows:
        raise ValueError("generate: there are no prompts; give at least one.")
    return rows


def decode(model: GPT, prompts: Sequence[Tensor], config: SampleConfig, seed: int) -> Iterator[Step]:
    """Continue every prompt config.n times, yielding each step's tokens.

    Text i * n + j is the j-th of prompt i, and draws with a generator of its own, seeded with
    seed + i * n + j: it becomes what it would become alone.

    A text may outgrow the context. Whenever its window is full, the model reads the last three quarters of
    it anew, from position 0 on; so what it sees is never shorter than that, and the reading costs a fraction
    of what reading the window at every token would.
    """
    context, vocab = model.config.context_length, model.config.vocab_size
    if config.eos_id is not None and config.eos_id >= vocab:
        raise ValueError(
            f"SampleConfig: eos_id={config.eos_id} is outside the model's vocabulary of {vocab}."
        )
    texts = [prompt.tolist() for prompt in prompts for _ in range(config.n)]
    starts = [max(0, len(text) - context) for text in texts]  # of the window that the model sees
    draws = torch.stack([_uniforms(config.max_new_tokens, seed + text) for text in range(len(texts))], dim=1)
    batch, ended = list(range(len(texts))), set[int]()
    with evaluating(model):
        with torch.inference_mode():
            needed = max(len(text) for text in texts) + config.max_new_tokens
            reader = reader_for(model, min(needed, context))
            logits = reader.prefill([prompt[-context:] for prompt in prompts], copies=config.n)
            draws = draws.to(logits.device)
            seen = _seen(texts, logits) if config.repetition_penalty != 1 else None
        for number in range(config.max_new_tokens):
            with torch.inference_mode():
                active = [text for text in batch if text not in ended]
                if len(active) < len(batch):
                    logits = logits[[row for row, text in enumerate(batch) if text not in ended]]
                if logits.dtype.itemsize < 4:
                    logits = logits.float()
                uniforms = draws[number] if len(active) == len(texts) else draws[number, active]
                drawn = next_tokens(logits, config, uniforms, None if seen is None else seen[active])
                if seen is not None:
                    seen[active, drawn] = True
            step = Step(active, drawn.tolist(), logits)
            for text, token in zip(active, step.tokens, strict=True):
                texts[text].append(token)
                if token == config.eos_id:
                    step.ended.add(text)
            yield step
            ended |= step.ended
            if len(ended) == len(texts):
                return
            if number + 1 < config.max_new_tokens:
                with torch.inference_mode():
                    batch, logits = _read_on(reader, texts, starts, batch, ended)


def _read_on(
    reader: CachedReader | UncachedReader,
    texts: list[list[int]],
    starts: list[int],
    batch: list[int],
    ended: set[int],
) -> tuple[list[int], Tensor]:
    """Let the model read the newest token of each text; returns the texts in its batch, and their logits."""
    context = reader.model.config.context_length
    going_on = [text for text in batch if text not in ended]
    if reader.full:
        for text in going_on:
            if len(texts[text]) - starts[text] > context:
                starts[text] = len(texts[text]) - (context - context // 4)
        windows = [torch.tensor(texts[text][starts[text] :], device=reader.device) for text in going_on]
        return going_on, reader.prefill(windows)
    if len(going_on) < len(batch) and not reader.graph:  # a captured step has its number of rows fixed
        reader.keep([row for row, text in enumerate(batch) if text not in ended])
        batch = going_on
    return batch, reader.step(torch.tensor([texts[text][-1] for text in batch], device=reader.device))


def _uniforms(count: int, seed: int) -> Tensor:
    return torch.rand(count, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _seen(texts: list[list[int]], logits: Tensor) -> Tensor:
    """(texts, vocab), True for the tokens of each text."""
    seen = torch.zeros_like(logits, dtype=torch.bool)
    for row, text in enumerate(texts):
        seen[row, text] = True
    return seen


class CachedReader:
    """Logits of the next token for rows that grow: the model reads only what is new, with a key-value cache.

    On a GPU the step is a CUDA graph, captured from this very call of the model, where `can_capture` allows.
    """

    def __init__(self, model: GPT, capacity: int) -> None:
        self.model, self.capacity = model, capacity
        embedding = model.token_embedding.weight
        self.device, self.dtype = embedding.device, embedding.dtype
        if torch.is_autocast_enabled(self.device.type):
            self.dtype = torch.get_autocast_dtype(self.device.type)
        self.graph = self.device.type == "cuda" and can_capture(model)
        self._replay: Callable[[Tensor], Tensor] | None = None
        self._fixed: KVCache | None = None

    def _cache(self, rows: int, *, fixed: bool = False) -> KVCache:
        return KVCache(
            self.model.config, rows, capacity=self.capacity, fixed=fixed, device=self.device, dtype=self.dtype
        )

    @property
    def full(self) -> bool:
        """Whether the cache has no room for another token."""
        return self.cache.length == self.capacity

    def prefill(self, prompts: Sequence[Tensor], copies: int = 1) -> Tensor:
        """Read prompts, (seq,) ids each, from the start; returns (prompts * copies, vocab) logits.

        Each row that follows a prompt is kept `copies` times: the prompt is read once for all of them.
        """
        lengths = [len(prompt) for prompt in prompts]
        self.cache = self._cache(len(prompts))
        logits = _logits_at_the_ends(self.model, prompts, cache=self.cache)
        self.cache.trim(lengths)
        rows = [number for number in range(len(prompts)) for _ in range(copies)]
        if self.graph:
            self._load_graph(rows)
        elif copies > 1:
            self.keep(rows)
        return logits[rows] if copies > 1 else logits

    def _load_graph(self, rows: list[int]) -> None:
        prefilled = self.cache
        if self._fixed is None or self._fixed.batch != len(rows):
            self._fixed = self._cache(len(rows), fixed=True)
            self._replay = capture_step(self.model, self._fixed)
        self.cache = self._fixed
        self.cache.copy_rows(prefilled, rows)

    def step(self, tokens: Tensor) -> Tensor:
        """Read one more token in each row, (rows,); returns (rows, vocab) logits."""
        if self._replay is not None:
            return self._replay(tokens)
        return self.model(tokens[:, None], cache=self.cache)[:, 0]

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only, in this order."""
        remaining = self._cache(len(rows))
        remaining.copy_rows(self.cache, rows)
        self.cache = remaining


class UncachedReader:
    """The same for a model of which some part takes no cache: every step reads everything."""

    graph = False

    def __init__(self, model: GPT, capacity: int) -> None:
        self.model, self.capacity, self.device = model, capacity, model.token_embedding.weight.device

    @property
    def full(self) -> bool:
        return max(len(row) for row in self.rows) == self.capacity

    def prefill(self, prompts: Sequence[Tensor], copies: int = 1) -> Tensor:
        self.rows = [prompt for prompt in prompts for _ in range(copies)]
        return _logits_at_the_ends(self.model, self.rows)

    def step(self, tokens: Tensor) -> Tensor:
        return self.prefill(
            [torch.cat([row, token]) for row, token in zip(self.rows, tokens[:, None], strict=True)]
        )

    def keep(self, rows: list[int]) -> None:
        self.rows = [self.rows[row] for row in rows]


def _logits_at_the_ends(model: GPT, prompts: Sequence[Tensor], **cache: KVCache) -> Tensor:
    """(prompts, vocab): what follows the last token of each."""
    ids = nn.utils.rnn.pad_sequence(list(prompts), batch_first=True)
    ends = torch.tensor([len(prompt) - 1 for prompt in prompts], device=ids.device)
    if _takes(model, "at"):
        return model(ids, at=ends, **cache)
    return model(ids, **cache)[torch.arange(len(ids), device=ids.device), ends]


def _takes(module: nn.Module, argument: str) -> bool:
    return argument in inspect.signature(module.forward).parameters


def reader_for(model: GPT, capacity: int) -> CachedReader | UncachedReader:
    """With a cache where the model, its blocks and their attention take one, whatever forward they have.

    capacity: tokens that a row may grow to.
    """
    parts = [model, *model.blocks, *(getattr(block, "attention", block) for block in model.blocks)]
    if all(_takes(part, "cache") for part in parts):
        return CachedReader(model, capacity)
    return UncachedReader(model, capacity)


CAPTURED = {GPT, Block, CausalSelfAttention, MLP, LearnedPositions, SinusoidalPositions, RotaryPositions}
CAPTURED |= {nn.ModuleList, nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, Dropout}


def can_capture(model: GPT) -> bool:
    """Whether a recording of one step computes what calling the model would, every time.

    Not under autocast, and not with modules, methods or hooks that somebody else has written: what they do in
    Python would happen once, while recording.
    """
    if torch.is_autocast_enabled(model.token_embedding.weight.device.type):
        return False
    return all(type(module) in CAPTURED and is_unchanged(module) for module in model.modules())


def capture_step(model: GPT, cache: KVCache) -> Callable[[Tensor], Tensor]:
    """One decoding step as a CUDA graph: a single launch in place of hundreds.

    cache: a fixed one; what it holds is lost. The returned function reads (rows,) tokens into it and gives
    (rows, vocab) logits, which the next call overwrites.
    """
    tokens = torch.zeros(cache.batch, 1, dtype=torch.long, device=cache.slot.device)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # libraries set themselves up before capture
        for _ in range(2):
            cache.clear()
            model(tokens, cache=cache)
    torch.cuda.current_stream().wait_stream(side)
    cache.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = model(tokens, cache=cache)[:, 0]

    def step(drawn: Tensor) -> Tensor:
        tokens.copy_(drawn[:, None])
        graph.replay()
        cache.length += 1  # the rest of the cache's state is counted in the graph
        return logits

    return step
