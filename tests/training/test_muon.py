"""Muon moves matrices along orthogonal directions, leaves the rest to AdamW, and resumes where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from labkit import GPT, GPTConfig, TrainConfig
from labkit.training import build_optimizer, load_checkpoint, save_checkpoint
from labkit.training.checkpoint import load_state
from labkit.training.optim import POLAR_EXPRESS, Combined, Muon, orthogonalize

SIZES = {"vocab_size": 13, "context_length": 9, "d_model": 12, "n_layers": 2, "n_heads": 2}


def small_gpt() -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**SIZES))


def train(model: GPT, optimizer: Combined | torch.optim.Optimizer, steps: int) -> None:
    ids = torch.arange(21).reshape(3, 7) % 13
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(ids, (ids + 1) % 13).backward()
        optimizer.step()


SHAPES = [(5, 7, 11), (3, 11, 7), (2, 8, 6), (1, 9, 9)]


def jordan(matrices: Tensor) -> Tensor:
    """Five iterations on the matrices themselves, as Muon's first description writes them."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices / matrices.norm(dim=(-2, -1), keepdim=True)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_move_by_the_polynomials_and_vectors_stay(shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    matrices = 100 * torch.randn(shape, dtype=torch.float64)
    u, values, vt = torch.linalg.svd(matrices, full_matrices=False)
    values = values / (values**4).sum(-1, keepdim=True) ** 0.25
    for a, b, c in POLAR_EXPRESS:
        values = a * values + b * values**3 + c * values**5
    result = orthogonalize(matrices)
    assert result.shape == matrices.shape
    torch.testing.assert_close(result, u @ values.diag_embed() @ vt, atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e6])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one(shape: tuple[int, ...], scale: float) -> None:
    torch.manual_seed(2)
    u, _, vt = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    values = torch.linspace(0.08, 1, u.shape[-1])  # at least 0.03 of the bound, which is 1.5 at most
    result = torch.linalg.svdvals(orthogonalize(scale * u @ values.diag() @ vt))
    assert 0.61 < result.min() < 0.9
    assert 1.1 < result.max() < 1.39


@pytest.mark.parametrize("shape", SHAPES)
def test_a_convergent_iteration_ends_at_the_nearest_orthogonal_matrix(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    matrices = torch.randn(shape, dtype=torch.float64)
    u, _, vt = torch.linalg.svd(matrices, full_matrices=False)
    result = orthogonalize(matrices, [(15 / 8, -10 / 8, 3 / 8)] * 30)
    torch.testing.assert_close(result, u @ vt, atol=1e-6, rtol=0)


def test_a_wide_matrix_gives_what_the_tall_one_gives() -> None:
    torch.manual_seed(4)
    wide = torch.randn(3, 5, 8)
    torch.testing.assert_close(orthogonalize(wide.mT.contiguous()), orthogonalize(wide).mT)


def test_zero_stays_zero() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 4, 7)), torch.zeros(2, 4, 7))


def test_a_batch_gives_what_each_matrix_gives_alone() -> None:
    torch.manual_seed(2)
    matrices = torch.randn(4, 9, 5)
    alone = torch.cat([orthogonalize(each[None]) for each in matrices])
    torch.testing.assert_close(orthogonalize(matrices), alone)


def test_steps_equal_those_of_torch_up_to_its_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own Muon runs five iterations in bfloat16, so directions agree to about a percent."""
    monkeypatch.setattr("labkit.training.optim.orthogonalize", jordan)
    torch.manual_seed(3)
    start, gradients = torch.randn(10, 6), [torch.randn(10, 6) for _ in range(3)]
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = Muon([ours], lr=0.1)
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        mine.step()
        reference.step()
    moved, expected = (ours - start).detach(), (theirs - start).detach()
    assert (moved - expected).norm() < 0.05 * expected.norm()


def test_parameters_of_equal_shape_do_not_mix() -> None:
    torch.manual_seed(4)
    starts, gradients = torch.randn(2, 6, 4), torch.randn(2, 6, 4)
    together = [nn.Parameter(each.clone()) for each in starts]
    optimizer = Muon(together)
    for parameter, gradient in zip(together, gradients, strict=True):
        parameter.grad = gradient.clone()
    optimizer.step()
    for parameter, start, gradient in zip(together, starts, gradients, strict=True):
        alone = nn.Parameter(start.clone())
        alone.grad = gradient.clone()
        Muon([alone]).step()
        torch.testing.assert_close(parameter, alone)


def test_only_the_blocks_matrices_go_to_muon() -> None:
    model = small_gpt()
    optimizer = build_optimizer(model, TrainConfig(optimizer="muon", learning_rate=3e-3))
    assert isinstance(optimizer, Combined)
    muon, adamw = optimizer.optimizers
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    in_muon = [names[id(p)] for group in muon.param_groups for p in group["params"]]
    in_adamw = [names[id(p)] for group in adamw.param_groups for p in group["params"]]
    assert sorted(in_muon + in_adamw) == sorted(names.values())
    assert in_muon == [n for n, p in model.named_parameters() if n.startswith("blocks.") and p.ndim == 2]
    assert [group["peak"] for group in optimizer.param_groups] == [0.02, 3e-3, 3e-3]


def test_it_learns_a_sequence_by_heart() -> None:
    model = small_gpt()
    optimizer = build_optimizer(model, TrainConfig(optimizer="muon", learning_rate=5e-3))
    train(model, optimizer, 100)
    ids = torch.arange(21).reshape(3, 7) % 13
    assert model.loss(ids, (ids + 1) % 13).item() < 0.1


def test_a_saved_state_continues_bit_for_bit(tmp_path: Path) -> None:
    config = TrainConfig(optimizer="muon")
    model = small_gpt()
    optimizer = build_optimizer(model, config)
    train(model, optimizer, 3)
    save_checkpoint(tmp_path / "last", model, 3, state=optimizer.state_dict())
    train(model, optimizer, 2)
    resumed, _ = load_checkpoint(tmp_path / "last")
    resumed.train()
    continued = build_optimizer(resumed, config)
    continued.load_state_dict(load_state(tmp_path / "last"))
    train(resumed, continued, 2)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, resumed.get_parameter(name)), name


def test_muon_refuses_what_is_no_matrix() -> None:
    with pytest.raises(ValueError, match=r"shape \(5,\) are not matrices; give them to AdamW"):
        Muon([nn.Parameter(torch.zeros(5))])
