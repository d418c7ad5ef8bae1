"""Continue prompts of token ids."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from labkit.config import SampleConfig
from labkit.generation.decoding import Prompt, decode, prompt_rows
from labkit.model import GPT


def generate(model: GPT, prompt_ids: Prompt, config: SampleConfig | None = None, *, seed: int = 0) -> Tensor:
    """Continue a prompt.

    prompt_ids: (seq,) token ids, at least one; of a prompt longer than the context the end is read.
    Returns (seq + new,) ids, the prompt first, on the model's device.  The same seed gives the same text.
    Raises ValueError for ids that the model cannot read, and for settings that need several texts (n) or a
    tokenizer (stop).
    """
    if config is not None and config.n > 1:
        raise ValueError(f"generate: returns one text; for n={config.n} call generate_batch.")
    return generate_batch(model, [prompt_ids], config, seed=seed)[0]


def generate_batch(
    model: GPT, prompts: Sequence[Prompt], config: SampleConfig | None = None, *, seed: int = 0
) -> list[Tensor]:
    """Continue several prompts at once, each config.n times; their lengths may differ.

    Returns a (seq + new,) tensor per text, which ends after config.eos_id where that was drawn; text
    i * n + j is the j-th of prompt i.  Each draws from a generator of its own, seeded with seed + i * n + j,
    so that it gets the text it would get alone.
    Raises ValueError as `generate` does.
    """
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
    return [_joined(rows[number // config.n], tokens) for number, tokens in enumerate(new)]


def _joined(prompt: Tensor, tokens: list[int]) -> Tensor:
    return torch.cat([prompt, prompt.new_tensor(tokens)])
