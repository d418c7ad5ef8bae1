"""The whole GPT: what it refuses, what it shares, how it starts, what it costs."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from labkit import GPT, GPTConfig

BATCH, SEQ, VOCAB, CONTEXT = 3, 7, 13, 9


def gpt(**changes: Any) -> GPT:
    sizes = {"vocab_size": VOCAB, "context_length": CONTEXT, "d_model": 10, "n_layers": 2, "n_heads": 2}
    torch.manual_seed(0)
    return GPT(GPTConfig(**sizes | changes))


def random_ids(batch: int = BATCH, seq: int = SEQ) -> Tensor:
    return torch.randint(VOCAB, (batch, seq))


def test_logits_have_a_score_for_each_token_at_each_position() -> None:
    assert gpt()(random_ids()).shape == (BATCH, SEQ, VOCAB)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([1, 2, 3]), r"GPT: ids have shape \(3,\); expected \(batch, seq\). .* ids\[None\]"),
        (torch.zeros(1, 2, 3, dtype=torch.long), r"GPT: ids have shape \(1, 2, 3\)"),
        (torch.rand(1, 3), r"GPT: ids are torch.float32; expected whole numbers"),
        (torch.ones(1, 3, dtype=torch.bool), r"GPT: ids are torch.bool"),
        (torch.tensor([[1, -1]]), r"GPT: ids range from -1 to 1; this model knows 0 to 12. Was the text"),
        (torch.tensor([[VOCAB, 2]]), r"GPT: ids range from 2 to 13; this model knows 0 to 12"),
        (
            torch.zeros(2, CONTEXT + 1, dtype=torch.long),
            r"10 tokens do not fit context_length=9. Keep the last",
        ),
    ],
)
def test_ids_that_cannot_be_read_are_refused(ids: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gpt()(ids)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_full_context_and_both_ends_of_the_vocabulary_are_read(dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, VOCAB - 1] * 5])[:, :CONTEXT].to(dtype)
    assert gpt()(ids).isfinite().all()


# Loss


def test_loss_equals_cross_entropy_by_hand() -> None:
    model, ids, targets = gpt().double(), random_ids(), random_ids()
    logits = model(ids)
    log_probabilities = logits - logits.exp().sum(-1, keepdim=True).log()
    by_hand = -sum(log_probabilities[b, t, targets[b, t]] for b in range(BATCH) for t in range(SEQ))
    torch.testing.assert_close(model.loss(ids, targets), by_hand / (BATCH * SEQ))


def test_ignored_targets_do_not_count_and_the_mean_is_over_the_rest() -> None:
    model, ids, targets = gpt().double(), random_ids(), random_ids()
    targets[0, 2:] = -100
    kept = targets != -100
    expected = F.cross_entropy(model(ids)[kept], targets[kept])
    torch.testing.assert_close(model.loss(ids, targets), expected)
    other = torch.where(kept, targets, 4)
    targets[~kept] = 4
    model.loss(ids, targets, ignore_index=4)  # 4 is ignored wherever it stands, real or not
    expected = F.cross_entropy(model(ids)[other != 4], other[other != 4])
    torch.testing.assert_close(model.loss(ids, targets, ignore_index=4), expected)


def test_ignored_targets_send_no_gradient() -> None:
    model = gpt(tie_weights=False)
    ids, targets = torch.tensor([[1, 2, 3], [4, 5, 6]]), torch.tensor([[2, 3, 4], [-100, -100, -100]])
    model.loss(ids, targets).backward()
    assert model.token_embedding.weight.grad[1].abs().max() > 0
    assert model.token_embedding.weight.grad[4:7].abs().max() == 0


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.full((BATCH, SEQ), -100), "every target is ignore_index=-100; nothing to learn from"),
        (torch.zeros(BATCH, SEQ - 1, dtype=torch.long), r"ids \(3, 7\) and targets \(3, 6\) differ in shape"),
        (
            torch.arange(BATCH * SEQ).view(BATCH, SEQ) % 5 - 1,
            r"targets range from -1 to 3; this model knows 0 to 12.* A target that does not count is -100",
        ),
        (torch.full((BATCH, SEQ), VOCAB), "targets range from 13 to 13; this model knows 0 to 12"),
        (torch.zeros(BATCH, SEQ), r"targets are torch.float32; expected whole numbers \(torch.long\)"),
    ],
)
def test_targets_that_teach_nothing_are_refused(targets: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"GPT.loss: {message}"):
        gpt().loss(random_ids(), targets)


def test_targets_in_place_of_the_cache_are_refused() -> None:
    with pytest.raises(TypeError, match=r"GPT: the second argument is a Tensor, not a KVCache. For the loss"):
        gpt()(random_ids(), random_ids())


def test_the_loss_of_an_untrained_model_is_that_of_guessing() -> None:
    assert gpt(d_model=20).loss(random_ids(), random_ids()).item() == pytest.approx(math.log(VOCAB), abs=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"positions": "rotary", "d_model": 8, "norm": "rmsnorm", "activation": "swiglu", "n_kv_heads": 1},
        {"positions": "sinusoidal", "tie_weights": False, "activation": "gelu", "embedding_scale": True},
    ],
    ids=["gpt2", "modern", "sinusoidal"],
)
def test_gradients_equal_finite_differences(changes: dict[str, Any]) -> None:
    model = gpt(n_layers=1, d_ff=5, vocab_size=5, context_length=4, **changes).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    ids, targets = torch.tensor([[3, 1, 4], [1, 0, 2]]), torch.tensor([[1, 4, -100], [0, 2, 3]])
    names, values = zip(*model.named_parameters(), strict=True)

    def loss(*given: Tensor) -> Tensor:
        weights = dict(zip(names, given, strict=True))
        if model.config.tie_weights:
            weights["head.weight"] = weights["token_embedding.weight"]
        # GPT.loss seen as a function of the parameters
        logits = torch.func.functional_call(model, weights, (ids,), tie_weights=False)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)

    torch.testing.assert_close(loss(*values), model.loss(ids, targets))
    inputs = tuple(value.detach().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(loss, inputs, atol=1e-7)


# Tied weights


def test_tied_means_one_tensor_and_stays_so() -> None:
    model = gpt(tie_weights=True)

    def one_tensor(some: GPT) -> bool:
        return some.head.weight is some.token_embedding.weight and (
            some.head.weight.data_ptr() == some.token_embedding.weight.data_ptr()
        )

    assert one_tensor(model)
    before = model.head.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.loss(random_ids(), random_ids()).backward()
    optimizer.step()
    assert one_tensor(model)
    assert not torch.equal(model.head.weight, before)
    other = gpt(tie_weights=True)
    other.load_state_dict(model.state_dict())
    assert one_tensor(other)
    assert torch.equal(other.head.weight, model.head.weight)
    assert one_tensor(copy.deepcopy(model))
    assert one_tensor(model.double())


def test_a_tied_embedding_gets_gradient_from_both_its_uses() -> None:
    tied, untied = gpt(tie_weights=True), gpt(tie_weights=False)
    untied.load_state_dict(tied.state_dict())
    ids, targets = random_ids(), random_ids()
    for model in (tied, untied):
        model.loss(ids, targets).backward()
    both = untied.token_embedding.weight.grad + untied.head.weight.grad
    torch.testing.assert_close(tied.token_embedding.weight.grad, both)


def test_an_untied_head_is_a_tensor_of_its_own_and_counted() -> None:
    tied, untied = gpt(tie_weights=True), gpt(tie_weights=False)
    assert untied.head.weight.data_ptr() != untied.token_embedding.weight.data_ptr()
    assert untied.num_parameters() - tied.num_parameters() == VOCAB * 10


# Dropout


def test_evaluation_mode_has_no_dropout() -> None:
    model, plain, ids = gpt(dropout=0.5, attention_dropout=0.5), gpt(), random_ids()
    assert torch.equal(model.eval()(ids), plain(ids))
    assert not torch.equal(model.train()(ids), plain(ids))


def test_attention_dropout_alone_leaves_embeddings_and_residuals_as_they_are() -> None:
    model, ids = gpt(attention_dropout=0.5).train(), random_ids()
    assert torch.equal(model.embed(ids), model.embed(ids))
    for block in model.blocks:
        nn.init.zeros_(block.attention.out.weight)  # what attention drew no longer reaches the stream
    assert torch.equal(model(ids), model(ids))


def test_dropout_alone_leaves_attention_weights_as_they_are() -> None:
    model = gpt(dropout=0.5).train()
    x = torch.randn(BATCH, SEQ, 10)
    attention = model.blocks[0].attention
    assert torch.equal(attention(x), attention(x))
    assert not torch.equal(model.embed(random_ids()), model.embed(random_ids()))
    kept = model.embed(random_ids(batch=40)) != 0
    assert 0.4 < kept.double().mean() < 0.6


# Start


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["gelu_tanh", "swiglu"])
def test_initial_values_follow_the_table_of_the_docstring(activation: str, tied: bool) -> None:
    model = gpt(
        vocab_size=211,
        context_length=97,
        d_model=60,
        n_layers=8,
        n_heads=3,
        activation=activation,
        tie_weights=tied,
    )
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if name.endswith("bias"):
            assert values.eq(0).all(), name
        elif "norm" in name:
            assert values.eq(1).all(), name
        else:
            expected = 0.02
            if name == "positions.weight":
                expected = 0.01
            elif name.endswith(("out.weight", "down.weight")):
                expected = 0.02 / math.sqrt(2 * 8)
            # the standard deviation of n draws is off by about 1 / sqrt(2 n), their mean by 1 / sqrt(n)
            n = values.numel()
            assert values.std().item() == pytest.approx(expected, rel=5 / math.sqrt(2 * n)), name
            assert abs(values.mean().item()) < 5 * expected / math.sqrt(n), name
            # a normal distribution has 4.55 % of its mass beyond two deviations
            assert (values.abs() > 2 * expected).double().mean().item() == pytest.approx(0.0455, abs=0.015)


# Cost


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_weights": False, "d_ff": 17},
        {"positions": "rotary", "n_heads": 5, "n_kv_heads": 1, "activation": "swiglu", "norm": "rmsnorm"},
    ],
    ids=["tied", "untied", "modern"],
)
@pytest.mark.parametrize("seq", [3, 9])
def test_flops_equal_what_torch_counts(changes: dict[str, Any], seq: int) -> None:
    """With attention written out as matrix products, the formula equals the count exactly.

    The math kernel is chosen because it multiplies the full square once, as the formula counts; the fused
    kernels multiply the scores again in the backward pass, which is work done but not work needed.
    """
    model = gpt(**changes)
    ids, targets = random_ids(seq=seq), random_ids(seq=seq)
    counter = FlopCounterMode(display=False)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), counter:
        model.loss(ids, targets).backward()
    assert counter.get_total_flops() == model.flops_per_token(seq) * BATCH * seq


def test_flops_are_those_of_the_full_context_when_no_length_is_given() -> None:
    model = gpt()
    assert model.flops_per_token() == model.flops_per_token(CONTEXT) > model.flops_per_token(3)


def test_gpt2_costs_six_operations_per_weight_and_token() -> None:
    with torch.device("meta"):
        model = GPT(GPTConfig.preset("gpt2"))
    matrices = 50257 * 768 + 12 * 12 * 768**2  # head once, no positions, no norms
    assert model.flops_per_token() == 6 * matrices + 12 * 12 * 768 * 1024
