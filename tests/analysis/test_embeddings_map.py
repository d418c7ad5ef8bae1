"""Neighbours are those of the cosine, and the map is that of the covariance's eigenvectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from labkit.analysis import embedding_map, nearest_tokens
from tests.variants import VOCAB, variant

TOKENS, FEATURES = 17, 5


def some_table(seed: int = 0, tokens: int = TOKENS) -> Tensor:
    return torch.randn(tokens, FEATURES, generator=torch.Generator().manual_seed(seed)) + 0.4


# Neighbours


@pytest.mark.parametrize("token", [0, 6, TOKENS - 1])
def test_neighbours_are_those_of_the_largest_cosine(token: int) -> None:
    table = some_table()
    numbers = table.double().numpy()
    cosines = {
        other: numbers[token]
        @ numbers[other]
        / np.linalg.norm(numbers[token])
        / np.linalg.norm(numbers[other])
        for other in range(TOKENS)
        if other != token
    }
    best = sorted(cosines, key=lambda other: -cosines[other])
    found = nearest_tokens(table, token, k=4)
    assert [other for other, _ in found] == best[:4]
    assert [cosine for _, cosine in found] == pytest.approx([cosines[other] for other in best[:4]])
    assert [other for other, _ in nearest_tokens(table, token, k=99)] == best


def test_length_does_not_matter_and_equal_cosines_come_in_order() -> None:
    table = torch.tensor([[1.0, 0], [0, 3], [9, 0], [-1, 0], [0, 0], [2, 0]])
    found = nearest_tokens(table, 0)
    assert found == [(2, 1.0), (5, 1.0), (1, 0.0), (4, 0.0), (3, -1.0)]


def test_a_model_stands_for_its_token_embedding() -> None:
    model = variant("gpt2")
    weight = model.token_embedding.weight.detach()
    assert nearest_tokens(model, 3) == nearest_tokens(weight, 3)
    assert len(nearest_tokens(model, 3)) == 10 < VOCAB
    assert torch.equal(embedding_map(model).points[0], embedding_map(weight).points[0])


@pytest.mark.parametrize(("token", "k"), [(-1, 3), (TOKENS, 3), (2, 0)])
def test_tokens_that_are_not_there_are_refused(token: int, k: int) -> None:
    with pytest.raises(ValueError, match=f"token_id={token} must be from 0 to 16, and k={k} at least 1"):
        nearest_tokens(some_table(), token, k)


# The map


def test_the_map_is_that_of_the_covariances_eigenvectors() -> None:
    before, after = some_table(1, tokens=9), 2 * some_table(2)
    found = embedding_map(before, after)
    together = np.concatenate([before.double().numpy(), after.double().numpy()])
    values, vectors = np.linalg.eigh(np.cov(together.T))
    expected = vectors[:, np.argsort(values)[::-1][:2]].T
    expected *= np.sign([row[np.abs(row).argmax()] for row in expected])[:, None]
    centre = together.mean(0)
    for table, points, shares in zip((before, after), found.points, found.shares, strict=True):
        numbers = table.double().numpy()
        mapped = (numbers - centre) @ expected.T
        np.testing.assert_allclose(points.numpy(), mapped, atol=1e-9)
        np.testing.assert_allclose(shares.numpy(), mapped.var(0) / numbers.var(0).sum(), atol=1e-9)
    assert [points.shape for points in found.points] == [(9, 2), (TOKENS, 2)]


def test_what_lies_in_a_plane_is_mapped_without_loss() -> None:
    flat = some_table()[:, :2] * torch.tensor([1.0, 7.0])
    tilted = flat @ torch.linalg.qr(torch.randn(FEATURES, 2, generator=torch.Generator().manual_seed(3))).Q.T
    found = embedding_map(tilted)
    assert float(found.shares.sum()) == pytest.approx(1, abs=1e-6)
    assert found.shares[0, 0] > found.shares[0, 1]
    torch.testing.assert_close(torch.cdist(found.points[0], found.points[0]).float(), torch.cdist(flat, flat))


def test_the_same_embedding_looks_the_same_however_its_signs_come_out() -> None:
    table = some_table()
    once, turned = embedding_map(table), embedding_map(table.flip(0))
    torch.testing.assert_close(once.points[0], turned.points[0].flip(0))


@pytest.mark.parametrize(
    "tables",
    [[], [some_table(), torch.ones(4, FEATURES + 1)], [torch.ones(4, 1)], [torch.ones(1, FEATURES)]],
)
def test_embeddings_that_do_not_go_together_are_refused(tables: list[Tensor]) -> None:
    with pytest.raises(ValueError, match=r"embedding_map: embeddings of shapes \[.*\]. Give at least one"):
        embedding_map(*tables)


def test_an_embedding_is_a_matrix() -> None:
    with pytest.raises(ValueError, match=r"matrix \(tokens, d_model\); this one is \(5,\)"):
        nearest_tokens(torch.ones(5), 1)
