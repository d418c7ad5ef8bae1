"""Each way of telling positions apart does what its formula says."""

from __future__ import annotations

import math

import pytest
import torch

from labkit import GPT, GPTConfig
from labkit.model import LearnedPositions, RotaryPositions, SinusoidalPositions

CONTEXT, HEADS, HEAD_DIM = 11, 3, 6


@pytest.mark.parametrize("d_model", [10, 7, 1])
def test_sinusoids_equal_the_formula(d_model: int) -> None:
    table = SinusoidalPositions(CONTEXT, d_model)(CONTEXT)
    assert table.shape == (CONTEXT, d_model)
    for p in range(CONTEXT):
        for feature in range(d_model):
            angle = p / 10000 ** (2 * (feature // 2) / d_model)
            expected = math.cos(angle) if feature % 2 else math.sin(angle)
            assert table[p, feature].item() == pytest.approx(expected, abs=1e-6)


def test_a_sinusoid_shifted_is_a_rotation_of_itself() -> None:
    table = SinusoidalPositions(CONTEXT, 10)(CONTEXT).double()
    gram = table @ table.mT  # entry (p, q) depends on p - q alone
    for shift in range(CONTEXT):
        diagonal = gram.diagonal(shift)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", [SinusoidalPositions, LearnedPositions])
def test_positions_are_the_first_rows_of_the_table(kind: type) -> None:
    positions = kind(CONTEXT, 10)
    assert torch.equal(positions(4), positions(CONTEXT)[:4])


def test_only_learned_positions_are_trained_or_saved() -> None:
    assert [tuple(p.shape) for p in LearnedPositions(CONTEXT, 10).parameters()] == [(CONTEXT, 10)]
    for fixed in (SinusoidalPositions(CONTEXT, 10), RotaryPositions(CONTEXT, HEAD_DIM)):
        assert not list(fixed.parameters())
        assert not fixed.state_dict()


def rotary() -> RotaryPositions:
    torch.set_default_dtype(torch.float64)  # the tables are built in the default dtype
    try:
        return RotaryPositions(CONTEXT, HEAD_DIM, base=50.0)
    finally:
        torch.set_default_dtype(torch.float32)


def test_rotary_turns_each_pair_as_a_complex_number() -> None:
    x = torch.randn(2, HEADS, CONTEXT, HEAD_DIM, dtype=torch.float64)
    turned = rotary()(x)
    half = HEAD_DIM // 2
    for p in range(CONTEXT):
        for i in range(half):
            angle = p * 50.0 ** (-2 * i / HEAD_DIM)
            expected = torch.complex(x[..., p, i], x[..., p, i + half]) * complex(
                math.cos(angle), math.sin(angle)
            )
            torch.testing.assert_close(turned[..., p, i], expected.real)
            torch.testing.assert_close(turned[..., p, i + half], expected.imag)


def test_rotary_dot_products_depend_on_the_distance_alone() -> None:
    q, k = torch.randn(2, HEAD_DIM, dtype=torch.float64)
    turn = rotary()
    scores = turn(q.expand(1, 1, CONTEXT, -1)) @ turn(k.expand(1, 1, CONTEXT, -1)).mT
    for distance in range(-CONTEXT + 1, CONTEXT):
        diagonal = scores[0, 0].diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    assert scores[0, 0, 3, 0] != pytest.approx(scores[0, 0, 0, 3].item())  # but before is not after


def test_each_row_can_start_at_a_position_of_its_own() -> None:
    x, starts = torch.randn(3, HEADS, 4, HEAD_DIM, dtype=torch.float64), [5, 0, 2]
    turned = rotary()(x, torch.tensor(starts))
    for row, start in enumerate(starts):
        torch.testing.assert_close(turned[row : row + 1], rotary()(x[row : row + 1], start))


@pytest.mark.parametrize(
    "starts", [torch.arange(4), torch.tensor([2]), torch.tensor(2), torch.zeros(3, 4).long()]
)
def test_starts_that_are_not_one_for_each_row_are_refused(starts: torch.Tensor) -> None:
    """For example the positions of the tokens, which would be taken for those of rows and broadcast."""
    x = torch.randn(3, HEADS, 4, HEAD_DIM, dtype=torch.float64)
    message = r"start has shape .*; expected one position for each of the 3 rows of the batch"
    with pytest.raises(ValueError, match=message):
        rotary()(x, starts)
    shape = {"vocab_size": 13, "context_length": CONTEXT, "d_model": 10, "n_layers": 1, "n_heads": 2}
    with pytest.raises(ValueError, match=message):
        GPT(GPTConfig(**shape)).embed(torch.zeros(3, 4, dtype=torch.long), starts)


@pytest.mark.parametrize("start", [-1, CONTEXT - 3, CONTEXT])
def test_positions_outside_the_context_are_refused(start: int) -> None:
    message = rf"Positions {start} to {start + 3} do not fit context_length=11; the first is 0"
    for positions in (LearnedPositions(CONTEXT, 10), SinusoidalPositions(CONTEXT, 10)):
        with pytest.raises(ValueError, match=message):
            positions(4, start)
    with pytest.raises(ValueError, match=message):
        rotary()(torch.randn(2, HEADS, 4, HEAD_DIM, dtype=torch.float64), start)


def test_rotary_keeps_lengths() -> None:
    x = torch.randn(2, HEADS, 7, HEAD_DIM, dtype=torch.float64)
    torch.testing.assert_close(rotary()(x).norm(dim=-1), x.norm(dim=-1))


def logits_of_last(positions: str, ids: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)
    shape = {"vocab_size": 13, "context_length": CONTEXT, "d_model": HEADS * HEAD_DIM, "n_layers": 1}
    model = GPT(GPTConfig(**shape, n_heads=HEADS, positions=positions)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model(ids)[:, -1]


@pytest.mark.parametrize("positions", ["learned", "sinusoidal", "rotary"])
def test_order_matters_to_the_model(positions: str) -> None:
    forth, swapped = torch.tensor([[4, 9, 2, 7]]), torch.tensor([[9, 4, 2, 7]])
    assert (logits_of_last(positions, forth) - logits_of_last(positions, swapped)).abs().max() > 1e-3


def test_without_positions_one_layer_sees_a_bag_of_tokens() -> None:
    forth, swapped = torch.tensor([[4, 9, 2, 7]]), torch.tensor([[9, 4, 2, 7]])
    torch.testing.assert_close(logits_of_last("none", forth), logits_of_last("none", swapped))


def test_embedding_scale_multiplies_tokens_and_not_positions() -> None:
    shape = {"vocab_size": 13, "context_length": CONTEXT, "d_model": 10, "n_layers": 1, "n_heads": 2}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**shape, embedding_scale=True))
    ids = torch.randint(13, (3, 7))
    expected = model.token_embedding.weight[ids] * math.sqrt(10) + model.positions.weight[:7]
    torch.testing.assert_close(model.embed(ids), expected)
