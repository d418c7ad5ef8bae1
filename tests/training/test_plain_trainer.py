"""All speed-ups of a training step together change its speed alone: a plain trainer gets the same losses."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import labkit.model.loss
from labkit import GPT, GPTConfig, TrainConfig
from labkit.training import Step, Trainer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import reference

VOCAB, CONTEXT = 211, 17
IDS = torch.randint(VOCAB, (3000,), generator=torch.Generator().manual_seed(2))


def plain_copy(model: GPT) -> reference.ReferenceGPT:
    """The plain model with the same weights."""
    plain = reference.ReferenceGPT(reference.Shape.of(model.config))
    ours, theirs = model.state_dict(), {}
    for name in plain.state_dict():
        if "qkv" in name:
            parts = [ours[name.replace("qkv", part)] for part in ("query", "key", "value")]
            theirs[name] = torch.cat(parts)
        elif name.startswith("tokens"):
            theirs[name] = ours["token_embedding.weight"]
        else:
            theirs[name] = ours[name.replace(".up.", ".mlp.up.").replace(".down.", ".mlp.down.")]
    with torch.no_grad():
        for name, tensor in plain.state_dict().items():
            tensor.copy_(theirs[name])
    return plain


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("micro", [None, 4])
def test_fifty_losses_are_those_of_the_plain_trainer(
    tied: bool, micro: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labkit.model.loss, "SMALL", 0)
    monkeypatch.setitem(labkit.model.loss.CHUNK, "cpu", 50 * 224)  # 50 rows of logits at a time
    torch.manual_seed(1)
    shape: dict[str, Any] = {"vocab_size": VOCAB, "context_length": CONTEXT, "d_model": 24, "n_layers": 3}
    model = GPT(GPTConfig(**shape, n_heads=2, activation="gelu", tie_weights=tied))
    plain = plain_copy(model)
    optimizer = reference.build_adamw(plain, 1e-3)
    config = TrainConfig(
        max_steps=50,
        batch_size=11,
        learning_rate=5e-3,
        micro_batch_size=micro,
        eval_every=0,
        precision="fp32",
    )
    trainer = Trainer(model, IDS, IDS[:200], config, device="cpu")
    steps = [event for event in trainer.events() if isinstance(event, Step)]
    for number, step in enumerate(steps):
        batch = trainer.data.batch(number)
        loss = reference.train_step(plain, optimizer, step.learning_rate, batch)
        assert step.loss == pytest.approx(loss, abs=1e-4)
    assert len(steps) == 50
    assert steps[-1].loss < steps[0].loss - 0.05, "nothing was learnt"


def test_the_reference_cuts_its_batches_from_the_text() -> None:
    inputs, targets = reference.list_built_batch(IDS.numpy().astype("uint16"), CONTEXT, 5)
    assert inputs.shape == targets.shape == (5, CONTEXT)
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    text = IDS.unfold(0, CONTEXT + 1, 1)
    for crop, follows in zip(inputs, targets, strict=True):
        assert (text == torch.cat([crop, follows[-1:]])).all(1).any()
