"""The chunked loss is F.cross_entropy of all logits, and so are its gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import labkit.model.loss
from labkit import GPT, GPTConfig
from labkit.model.loss import linear_cross_entropy

TOKENS, D_MODEL, VOCAB = 23, 5, 37


@pytest.fixture(autouse=True)
def chunks_of_two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """48 columns (37 filled up) of 2 rows; 23 tokens leave a last chunk of one."""
    monkeypatch.setattr(labkit.model.loss, "SMALL", 0)
    monkeypatch.setitem(labkit.model.loss.CHUNK, "cpu", 2 * 48)


def numbers(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    hidden = torch.randn(TOKENS, D_MODEL, generator=draw, dtype=torch.float64)
    weight = torch.randn(VOCAB, D_MODEL, generator=draw, dtype=torch.float64)
    targets = torch.randint(VOCAB, (TOKENS,), generator=draw)
    return hidden.to(dtype).requires_grad_(), weight.to(dtype).requires_grad_(), targets


def plain(hidden: Tensor, weight: Tensor, targets: Tensor, ignore: int = -100, how: str = "mean") -> Tensor:
    return F.cross_entropy(hidden @ weight.T, targets, ignore_index=ignore, reduction=how)


def with_gradients(loss: Callable[..., Tensor], *numbers: Any, times: float = 1.0) -> list[Tensor]:
    hidden, weight, *rest = numbers
    value = loss(hidden, weight, *rest)
    return [value, *torch.autograd.grad(value * times, [hidden, weight])]


@pytest.mark.parametrize("how", ["mean", "sum"])
@pytest.mark.parametrize("ignore", [-100, 4])
@pytest.mark.parametrize("times", [1.0, -2.5])
def test_value_and_gradients_equal_those_of_all_logits_at_once(how: str, ignore: int, times: float) -> None:
    hidden, weight, targets = numbers()
    targets[[0, 7, 8, 22]] = ignore
    ours = with_gradients(linear_cross_entropy, hidden, weight, targets, ignore, how, times=times)
    theirs = with_gradients(plain, hidden, weight, targets, ignore, how, times=times)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_gradients_pass_gradcheck() -> None:
    hidden, weight, targets = numbers()
    targets[3] = -100
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h.exp(), w.sin(), targets, -100, "sum"), (hidden, weight)
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 300), st.floats(0.01, 40), st.integers(0, 10**6))
def test_any_size_and_scale(tokens: int, vocab: int, chunk: int, scale: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden = (scale * torch.randn(tokens, 3, generator=draw)).requires_grad_()
    weight = torch.randn(vocab, 3, generator=draw, requires_grad=True)
    targets = torch.randint(vocab, (tokens,), generator=draw)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(labkit.model.loss.CHUNK, "cpu", chunk)
        ours = with_gradients(linear_cross_entropy, hidden, weight, targets)
    exact = with_gradients(plain, hidden.double(), weight.double(), targets)
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6 * max(1.0, scale))


def test_a_certain_and_a_hopeless_prediction() -> None:
    hidden = torch.tensor([[200.0], [-200.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True)
    targets = torch.tensor([0, 0])  # certain, then as wrong as can be: its probability rounds to 0
    ours = with_gradients(linear_cross_entropy, hidden, weight, targets)
    for one, other in zip(ours, with_gradients(plain, hidden, weight, targets), strict=True):
        torch.testing.assert_close(one, other)
    assert ours[0].item() == 200


@pytest.mark.parametrize("small", [0, 2**22])
def test_targets_that_are_no_tokens_are_refused(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labkit.model.loss, "SMALL", small)
    hidden, weight, targets = numbers()
    for wrong in (-1, VOCAB):
        targets[3] = wrong
        with pytest.raises(ValueError, match=r"linear_cross_entropy: targets range from .* knows 0 to 36"):
            linear_cross_entropy(hidden, weight, targets)


def test_a_number_that_is_none_is_not_hidden() -> None:
    hidden, weight, targets = numbers()
    assert linear_cross_entropy(hidden * float("nan"), weight, targets).isnan()


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_what_is_trained_gets_gradients(wanted: tuple[bool, bool]) -> None:
    hidden, weight, targets = numbers()
    trained = [each for each, want in zip((hidden, weight), wanted, strict=True) if want]
    for each, want in zip((hidden, weight), wanted, strict=True):
        each.requires_grad_(want)
    loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.requires_grad == any(wanted)
    torch.testing.assert_close(loss, plain(hidden, weight, targets))
    if trained:
        ours, theirs = (
            torch.autograd.grad(f(hidden, weight, targets), trained) for f in (linear_cross_entropy, plain)
        )
        torch.testing.assert_close(ours, theirs)


def test_without_gradients_none_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "addmm_", None)
    hidden, weight, targets = numbers()
    with torch.no_grad():
        torch.testing.assert_close(
            linear_cross_entropy(hidden, weight, targets), plain(hidden, weight, targets)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_as_good_as_the_plain_loss(dtype: torch.dtype) -> None:
    """Both are compared with float64: the error of the chunked one is no larger than the plain one's."""
    hidden, weight, targets = numbers(torch.float32)
    exact = with_gradients(plain, hidden.double(), weight.double(), targets)

    def autocast(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def computed(*values: Any) -> Tensor:
            with torch.autocast("cpu", dtype):
                return loss(*values)

        return computed

    ours = with_gradients(autocast(linear_cross_entropy), hidden, weight, targets)
    theirs = with_gradients(autocast(plain), hidden, weight, targets)
    assert [each.dtype for each in ours] == [torch.float32] * 3
    for one, other, true in zip(ours, theirs, exact, strict=True):
        error, allowed = (one - true).norm(), (other - true).norm()
        assert error <= 1.5 * allowed + 1e-6
        assert not torch.equal(one.double(), true), "nothing was computed in half precision"


def gpt(**settings: Any) -> GPT:
    torch.manual_seed(3)
    shape = {"vocab_size": VOCAB, "context_length": 11, "d_model": 12, "n_layers": 2, "n_heads": 3}
    return GPT(GPTConfig(**shape | settings))


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_learns_the_same_with_chunks_and_without(tied: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = torch.randint(VOCAB, (3, 8), generator=torch.Generator().manual_seed(1))
    chunked, whole = gpt(tie_weights=tied).double(), gpt(tie_weights=tied).double()
    chunked.loss(ids[:, :-1], ids[:, 1:]).backward()
    F.cross_entropy(whole(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    for one, other in zip(chunked.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-10, atol=1e-12)


def test_an_output_layer_of_ones_own_counts() -> None:
    ids = torch.randint(VOCAB, (3, 8), generator=torch.Generator().manual_seed(1))

    class Softcapped(GPT):
        def forward(self, *arguments: Any, **named: Any) -> Tensor:
            return 3 * (super().forward(*arguments, **named) / 3).tanh()

    biased, capped = gpt(), Softcapped(gpt().config)
    biased.head = nn.Linear(12, VOCAB)
    for model in (biased, capped):
        expected = F.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())
        torch.testing.assert_close(model.loss(ids[:, :-1], ids[:, 1:]), expected)


@pytest.mark.parametrize("size", [0, 2**40], ids=["chunks", "all at once"])
def test_logits_are_held_all_at_once_only_where_they_are_few(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(labkit.model.loss, "SMALL", size)
    monkeypatch.setitem(labkit.model.loss.CHUNK, "cpu", 4 * 48)
    hidden, weight, targets = numbers()
    rows = []
    softmax = torch.softmax
    monkeypatch.setattr(
        torch, "softmax", lambda x, *rest, **named: rows.append(len(x)) or softmax(x, *rest, **named)
    )
    linear_cross_entropy(hidden, weight, targets)
    assert rows == ([] if size else [4, 4, 4, 4, 4, 3])


def test_going_backward_twice_gives_the_same_gradients_twice() -> None:
    hidden, weight, targets = numbers()
    loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward(retain_graph=True)
    first = weight.grad.clone()
    weight.grad.mul_(0.5)  # as clipping does, in place
    hidden.grad = weight.grad = None
    loss.backward()
    assert torch.equal(weight.grad, first)


def test_the_gradient_of_the_weights_is_handed_over_and_not_copied() -> None:
    hidden, weight, targets = numbers()
    made = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda each: made.append(each.data_ptr()) or each, lambda each: each
    ):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert weight.grad.data_ptr() in made
