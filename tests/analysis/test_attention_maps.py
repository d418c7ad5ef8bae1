"""Attention weights are those the model mixes with, and heads that do a known thing are reported as such."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from labkit.analysis import (
    attention_maps,
    attention_steps,
    head_scores,
    queries_and_keys,
    repeated_ids,
)
from tests.analysis.reference_models import (
    BATCH,
    PAIRS,
    POSITIONS,
    SEQ,
    TOKENS,
    hand_made,
    reference_pair,
    some_ids,
)
from tests.variants import CONTEXT, VARIANTS, VOCAB, variant

# Maps


@pytest.mark.parametrize("name", PAIRS)
def test_every_layer_and_head_looks_where_transformers_says(name: str, tmp_path: Path) -> None:
    ours, theirs = reference_pair(name, tmp_path)
    ids = some_ids(ours.config.vocab_size)
    with torch.no_grad():
        expected = torch.stack(theirs(ids, output_attentions=True).attentions)
    maps = attention_maps(ours, ids)
    assert maps.shape == (ours.config.n_layers, BATCH, ours.config.n_heads, SEQ, SEQ)
    tolerance = 1e-12 if name.startswith("GPT-2") else 1e-5  # their rotary tables are float32
    torch.testing.assert_close(maps, expected.double(), atol=tolerance, rtol=0)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_model_mixes_values_with_these_weights(name: str) -> None:
    model, ids = variant(name), some_ids()
    maps = attention_maps(model, ids)
    seen: list[tuple[Tensor, Tensor]] = []
    for block in model.blocks:
        block.attention.register_forward_hook(lambda module, given, made: seen.append((given[0], made)))
    with torch.no_grad():
        model(ids)
        for block, weights, (x, made) in zip(model.blocks, maps, seen, strict=True):
            v = block.attention.split_heads(block.attention.value(x))
            v = v.repeat_interleave(model.config.n_heads // v.shape[1], dim=1)
            mixed = block.attention.out((weights @ v).transpose(1, 2).flatten(2))
            torch.testing.assert_close(mixed, made)


@pytest.mark.parametrize("name", VARIANTS)
def test_nobody_looks_ahead_unless_the_mask_is_off(name: str) -> None:
    model, ids = variant(name), some_ids()
    ones = torch.ones(model.config.n_layers, BATCH, model.config.n_heads, SEQ).double()
    masked, free = attention_maps(model, ids), attention_maps(model, ids, causal=False)
    assert (masked.triu(1) == 0).all()
    torch.testing.assert_close(masked.sum(-1), ones)
    assert (free > 0).all()
    torch.testing.assert_close(free.sum(-1), ones)
    # The mask takes the future away and leaves what is left in proportion.
    left = free.tril()
    torch.testing.assert_close(masked, left / left.sum(-1, keepdim=True))


def test_steps_lead_from_dot_products_to_weights() -> None:
    queries = torch.tensor([[[1.0, 0, 2, 0], [0, 2, 0, 0], [1, 1, 1, 1]]])
    keys = torch.tensor([[[2.0, 0, 0, 0], [0, 1, 0, 3], [1, 1, 1, 0]]])
    steps = attention_steps(queries, keys)
    raw = torch.tensor([[2.0, 0, 3], [0, 2, 2], [2, 4, 3]])
    assert torch.equal(steps.raw[0], raw)
    assert torch.equal(steps.scaled[0], raw / 2)  # head_dim 4
    inf = math.inf
    assert torch.equal(steps.masked[0], torch.tensor([[1, -inf, -inf], [0, 1, -inf], [1, 2, 1.5]]))
    e = math.e
    total = e + e**2 + e**1.5
    expected = [[1, 0, 0], [1 / (1 + e), e / (1 + e), 0], [e / total, e**2 / total, e**1.5 / total]]
    torch.testing.assert_close(steps.weights[0], torch.tensor(expected))
    free = attention_steps(queries, keys, causal=False)
    assert torch.equal(free.masked, free.scaled)
    torch.testing.assert_close(free.weights, free.scaled.softmax(-1))


def test_maps_are_the_last_step_of_queries_and_keys() -> None:
    model, ids = variant("llama"), some_ids()
    queries, keys = queries_and_keys(model, ids)
    config = model.config
    assert queries.shape == keys.shape == (config.n_layers, BATCH, config.n_heads, SEQ, config.head_dim)
    # Three query heads share a key head: neighbours, as the model's kernel pairs them.
    assert torch.equal(keys[:, :, 0], keys[:, :, 1])
    assert not torch.equal(keys[:, :, 1], keys[:, :, 2])
    assert torch.equal(attention_steps(queries, keys).weights, attention_maps(model, ids))


def test_half_precision_is_computed_in_float32() -> None:
    q, k = torch.randn(2, BATCH, 4, SEQ, 8, generator=torch.Generator().manual_seed(1)).bfloat16().chunk(2)
    steps = attention_steps(q, k)
    assert steps.weights.dtype == torch.float32
    assert torch.equal(steps.raw, q.float() @ k.float().mT)


# What reading leaves behind, and what it refuses


def test_the_model_and_the_generator_stay_as_they_were() -> None:
    model, ids = variant("gpt2").train(), some_ids()
    model.blocks[0].mlp.eval()
    state = torch.get_rng_state()
    maps = attention_maps(model, ids)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not maps.requires_grad
    assert torch.equal(maps, attention_maps(model.eval(), ids))  # no dropout while reading


def test_no_hook_stays_when_reading_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    model = variant("gpt2").train()
    monkeypatch.setattr(model.blocks[1].mlp, "forward", lambda x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        attention_maps(model, some_ids())
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.zeros(1, 0, dtype=torch.long), "hold no tokens. Give a text of at least one"),
        (torch.zeros(0, 3, dtype=torch.long), "hold no tokens. Give a text of at least one"),
        (torch.zeros(2, CONTEXT + 1, dtype=torch.long), "Keep the last ones"),
        (torch.zeros(3, dtype=torch.long), "Give one sequence as ids"),
        (torch.full((1, 2), VOCAB), "another tokenizer"),
    ],
)
def test_ids_that_cannot_be_read_are_refused(ids: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention_maps(variant("gpt2"), ids)


def test_attention_of_another_make_is_refused_and_a_subclass_is_read() -> None:
    class Fused(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model, ids = variant("gpt2"), some_ids()
    expected = attention_maps(model, ids)
    original = model.blocks[1].attention
    model.blocks[1].attention = Fused()
    with pytest.raises(TypeError, match=r"The Fused of layer 1 has no query and no key and no split_heads"):
        attention_maps(model, ids)

    class Named(type(original)):  # type: ignore[misc]
        pass

    original.__class__ = Named
    model.blocks[1].attention = original
    assert torch.equal(attention_maps(model, ids), expected)


# Scores


def test_heads_that_do_a_known_thing_score_as_that() -> None:
    model = hand_made()
    ids = repeated_ids(TOKENS, TOKENS, batch=BATCH, seed=0)
    scores = head_scores(attention_maps(model, ids), ids)
    previous, first, uniform = 0, 1, 2
    t = torch.arange(1, POSITIONS).double()

    assert scores["previous_token"][0, previous] > 0.999
    assert scores["distance"][0, previous] == pytest.approx(1, abs=1e-3)
    assert scores["entropy"][0, previous] < 0.01

    assert scores["first_token"][0, first] > 0.999
    assert scores["distance"][0, first] == pytest.approx(float(t.mean()), abs=1e-3)

    assert scores["entropy"][0, uniform] == pytest.approx(float((t + 1).log2().mean()), abs=1e-12)
    assert scores["distance"][0, uniform] == pytest.approx(float((t / 2).mean()), abs=1e-12)
    assert scores["first_token"][0, uniform] == pytest.approx(float((1 / (t + 1)).mean()), abs=1e-12)

    induction, same_token = 0, 1
    # Position 0 has no previous token and takes its own, so one of eleven second looks is shared with it.
    assert scores["induction"][1, induction] == pytest.approx(1 - 0.5 / TOKENS, abs=1e-3)
    assert scores["induction"][1, same_token] < 0.01
    assert scores["induction"][1, 2] < 0.1
    assert (scores["induction"][0] < 0.1).all()  # one layer alone cannot do it
    assert (scores["previous_token"].flatten()[1:] < 0.15).all()


def test_without_the_first_layer_there_is_no_induction() -> None:
    model = hand_made()
    ids = repeated_ids(TOKENS, TOKENS, batch=BATCH, seed=0)
    with torch.no_grad():
        model.blocks[0].attention.out.weight.zero_()
    assert (head_scores(attention_maps(model, ids), ids)["induction"] < 0.1).all()


def test_scores_are_the_means_that_a_loop_over_positions_finds() -> None:
    layers, heads = 2, 5
    generator = torch.Generator().manual_seed(2)
    weights = torch.rand(layers, BATCH, heads, SEQ, SEQ, generator=generator, dtype=torch.float64).tril()
    weights /= weights.sum(-1, keepdim=True)
    ids = torch.tensor([[0, 1, 0, 1, 1, 0, 2], [3, 3, 3, 0, 3, 1, 0], [0, 1, 2, 3, 4, 5, 6]])
    scores = head_scores(weights, ids)
    for layer in range(layers):
        for head in range(heads):
            found: dict[str, list[float]] = {name: [] for name in scores}
            for row in range(BATCH):
                for t in range(1, SEQ):
                    w = weights[layer, row, head, t].tolist()
                    found["entropy"].append(-sum(each * math.log2(each) for each in w if each))
                    found["distance"].append(sum(each * (t - j) for j, each in enumerate(w)))
                    found["first_token"].append(w[0])
                    found["previous_token"].append(w[t - 1])
                    after = [j + 1 for j in range(t - 1) if ids[row, j] == ids[row, t]]
                    if after:
                        found["induction"].append(sum(w[j] for j in after))
            assert len(found["induction"]) == 7
            for name, values in found.items():
                assert float(scores[name][layer, head]) == pytest.approx(sum(values) / len(values)), name


@pytest.mark.parametrize("row", [[0, 1, 2, 3, 4], [0, 0, 1, 1, 2]])
def test_a_text_that_repeats_nothing_says_nothing_about_induction(row: list[int]) -> None:
    ids = torch.tensor([row, row, row])
    scores = head_scores(attention_maps(variant("gpt2"), ids), ids)
    assert scores["induction"].isnan().all()
    assert all(scores[name].isfinite().all() for name in scores if name != "induction")


def test_scores_need_two_tokens_and_their_own_ids() -> None:
    model, ids = variant("gpt2"), some_ids()
    maps = attention_maps(model, ids)
    with pytest.raises(ValueError, match=r"\(2, 3, 2, 7, 7\) and ids \(3, 6\) do not belong together"):
        head_scores(maps, ids[:, 1:])
    with pytest.raises(ValueError, match="do not belong together"):
        head_scores(maps[0], ids)
    with pytest.raises(ValueError, match="1 token leaves nothing to choose"):
        head_scores(maps[..., :1, :1], ids[:, :1])


def test_repeated_ids_are_different_tokens_and_then_the_same_again() -> None:
    ids = repeated_ids(37, 9, batch=BATCH, seed=1)
    assert ids.shape == (BATCH, 18)
    assert torch.equal(ids[:, :9], ids[:, 9:])
    assert all(len(set(row[:9])) == 9 for row in ids.tolist())
    assert not torch.equal(ids[0], ids[1])
    assert torch.equal(ids, repeated_ids(37, 9, batch=BATCH, seed=1))
    assert not torch.equal(ids, repeated_ids(37, 9, batch=BATCH, seed=2))
    with pytest.raises(ValueError, match="length=38 must be from 1 to vocab_size=37"):
        repeated_ids(37, 38, seed=1)
