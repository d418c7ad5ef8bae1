"""The loss of every token of a text, against loops that look at one token at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from labkit import GPT
from labkit.analysis import token_losses
from labkit.model.loss import CHUNK
from tests.variants import CONTEXT, VARIANTS, VOCAB, variant

BATCH, SEQ = 3, 8


def some_ids(*shape: int) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(4))


# Token losses


@pytest.mark.parametrize("name", VARIANTS)
def test_each_token_costs_what_the_logits_before_it_say(name: str) -> None:
    model, ids = variant(name), some_ids(BATCH, SEQ)
    log_probabilities = model(ids).detach().log_softmax(-1)
    expected = torch.tensor(
        [[-log_probabilities[b, t - 1, ids[b, t]] for t in range(1, SEQ)] for b in range(BATCH)]
    )
    losses = token_losses(model, ids)
    assert losses.shape == (BATCH, SEQ - 1)
    torch.testing.assert_close(losses, expected.double())
    torch.testing.assert_close(losses.mean(), model.loss(ids[:, :-1], ids[:, 1:]).detach())


def test_the_longest_sequence_is_one_token_longer_than_the_context() -> None:
    model = variant("gpt2")
    losses = token_losses(model, some_ids(BATCH, CONTEXT + 1))
    assert losses.shape == (BATCH, CONTEXT)
    torch.testing.assert_close(
        losses[:, : SEQ - 1], token_losses(model, some_ids(BATCH, CONTEXT + 1)[:, :SEQ])
    )
    with pytest.raises(ValueError, match=f"{CONTEXT + 1} tokens do not fit context_length={CONTEXT}"):
        token_losses(model, some_ids(BATCH, CONTEXT + 2))


def test_few_logits_are_held_at_once_and_the_losses_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = variant("llama"), some_ids(BATCH, SEQ)
    whole = token_losses(model, ids)
    monkeypatch.setitem(CHUNK, "cpu", 4 * VOCAB + 1)
    held: list[int] = []
    model.head.register_forward_hook(lambda module, args, logits: held.append(len(logits)))
    torch.testing.assert_close(token_losses(model, ids), whole, rtol=1e-12, atol=0)
    assert held == [4, 4, 4, 4, 4, 1]


def test_an_output_layer_of_your_own_counts() -> None:
    model, ids = variant("untied, exact gelu"), some_ids(BATCH, SEQ)
    model.head = nn.Linear(12, VOCAB).double()
    nn.init.normal_(model.head.bias)
    expected = model.loss(ids[:, :-1], ids[:, 1:]).detach()
    torch.testing.assert_close(token_losses(model, ids).mean(), expected)

    class Sharper(GPT):
        def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
            return 3 * super().forward(ids)

    sharper = Sharper(model.config).double().eval()
    sharper.load_state_dict(variant("untied, exact gelu").state_dict())
    expected = sharper.loss(ids[:, :-1], ids[:, 1:]).detach()
    torch.testing.assert_close(token_losses(sharper, ids).mean(), expected)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(training: bool) -> None:
    model, ids = variant("gpt2").train(training), some_ids(BATCH, SEQ)
    before = torch.get_rng_state()
    first, second = token_losses(model, ids), token_losses(model, ids)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training == training
    assert not first.requires_grad


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(BATCH, 1, dtype=torch.long), "sequences of two tokens at least"),
        (torch.zeros(BATCH, 0, dtype=torch.long), "sequences of two tokens at least"),
        (torch.zeros(5, dtype=torch.long), r"ids have shape \(4,\); expected \(batch, seq\)"),
        (torch.zeros(BATCH, 5), "ids are torch.float32; expected whole numbers"),
        (torch.tensor([[1, 2, VOCAB]]), f"ids range from 2 to {VOCAB}; this model knows 0 to"),
        (torch.tensor([[1, 2, -100]]), "ids range from -100 to 2"),
    ],
)  # fmt: skip
def test_ids_that_cannot_be_measured_are_named(ids: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        token_losses(variant("gpt2"), ids)
