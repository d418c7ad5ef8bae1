"""Autoregressive generation: predict, draw, append, repeat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from labkit.config import SampleConfig
from labkit.generation.filters import next_token_probabilities
from labkit.model import GPT

Prompt = Tensor | Sequence[int]


def _as_rows(model: GPT, prompts: Sequence[Prompt]) -> list[Tensor]:
    device = model.token_embedding.weight.device
    rows = []
    for number, prompt in enumerate(prompts):
        try:
            row = torch.as_tensor(prompt, device=device)
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
        for window in row.split(model.config.context_length):
            model.check_ids(window[None])
        rows.append(row.long())
    if not rows:
        raise ValueError("generate: there are no prompts; give at least one.")
    return rows


def _last_logits(model: GPT, rows: list[Tensor]) -> Tensor:
    """Logits after the last token of each row, (batch, vocab); rows may differ in length.

    Shorter rows are padded on the right: no position sees a later one, so padding changes nothing.
    """
    windows = [row[-model.config.context_length :] for row in rows]
    ids = torch.nn.utils.rnn.pad_sequence(windows, batch_first=True)
    last = torch.tensor([len(window) - 1 for window in windows], device=ids.device)
    logits = model(ids)[torch.arange(len(rows), device=ids.device), last]
    if not bool(logits.isfinite().all()):
        raise ValueError("generate: the model's logits are not finite. Did its training diverge?")
    return logits


def _draw(probabilities: Tensor, generators: list[torch.Generator]) -> list[int]:
    """One token per row, each row from its own generator.

    argmax of p / e with e ~ Exponential(1) takes token i with probability p_i (the exponential race).
    """
    noise = torch.stack(
        [torch.empty(probabilities.shape[-1]).exponential_(generator=each) for each in generators]
    )
    return (probabilities / noise.to(probabilities.device)).argmax(-1).tolist()


def _decode(model: GPT, rows: list[Tensor], config: SampleConfig, seed: int) -> Iterator[dict[int, int]]:
    """Yield, token by token, the new id of each row that has not ended (row number → id)."""
    generators = [torch.Generator().manual_seed(seed + number) for number in range(len(rows))]
    active = list(range(len(rows)))
    was_training = model.training
    model.eval()
    try:
        for _ in range(config.max_new_tokens):
            with torch.inference_mode():
                logits = _last_logits(model, [rows[number] for number in active])
                probabilities = next_token_probabilities(logits.float(), config)
                drawn = _draw(probabilities, [generators[number] for number in active])
            step = dict(zip(active, drawn, strict=True))
            for number, token in step.items():
                rows[number] = torch.cat([rows[number], rows[number].new_tensor([token])])
            yield step
            active = [number for number in active if step[number] != config.eos_id]
            if not active:
                return
    finally:
        model.train(was_training)


def generate(model: GPT, prompt_ids: Prompt, config: SampleConfig | None = None, *, seed: int = 0) -> Tensor:
    """Continue a prompt.

    prompt_ids: (seq,) token ids, at least one; a prompt longer than the context is read from its end.
    Returns (seq + new,) ids, the prompt first, on the model's device.  The same seed gives the same text.
    Raises ValueError for ids that the model cannot read.
    """
    return generate_batch(model, [prompt_ids], config, seed=seed)[0]


def generate_batch(
    model: GPT, prompts: Sequence[Prompt], config: SampleConfig | None = None, *, seed: int = 0
) -> list[Tensor]:
    """Continue several prompts at once; their lengths may differ.

    Returns a (seq + new,) tensor per prompt, which ends after config.eos_id where that was drawn.  Row i
    draws from its own generator, seeded with seed + i, so that it gets the text it would get alone.
    Raises ValueError as `generate` does.
    """
    rows = _as_rows(model, prompts)
    for _ in _decode(model, rows, config or SampleConfig(), seed):
        pass
    return rows


def stream(
    model: GPT, prompt_ids: Prompt, config: SampleConfig | None = None, *, seed: int = 0
) -> Iterator[int]:
    """Continue a prompt as `generate` does, yielding each new id as soon as it is drawn."""
    for step in _decode(model, _as_rows(model, [prompt_ids]), config or SampleConfig(), seed):
        yield step[0]
