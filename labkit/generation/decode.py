"""The loop that writes: read, draw, append, repeat, for many rows at once."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeGuard, cast, overload

import torch
from torch import Tensor, nn

from labkit.config import SampleConfig
from labkit.generation.filters import next_tokens
from labkit.generation.reading import CachedReader, UncachedReader, reader_for
from labkit.model import GPT, evaluating

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
        return _continued(model, ids, config, seed)
    if getattr(ids, "ndim", 1) == 2:
        texts = _continued(model, list(cast(Tensor, ids)), config, seed)
        filler = 0 if config.eos_id is None else config.eos_id  # a text that is shorter has ended with it
        return nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=filler)
    if config.n > 1:
        raise ValueError(
            f"generate: one prompt gives one text; for n={config.n} give a list of prompts, "
            "generate(model, [ids])."
        )
    return _continued(model, [cast(Prompt, ids)], config, seed)[0]


def _continued(model: GPT, prompts: Sequence[Prompt], config: SampleConfig, seed: int) -> list[Tensor]:
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
