"""The logit lens reads the stream that transformers reports, with its last norm and output layer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from labkit.analysis import logit_lens
from labkit.analysis.inspect import module_inputs
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
from tests.variants import CONTEXT, VARIANTS, variant


@pytest.mark.parametrize("name", PAIRS)
def test_every_layer_reads_as_the_hidden_states_of_transformers(name: str, tmp_path: Path) -> None:
    ours, theirs = reference_pair(name, tmp_path)
    ids = some_ids(ours.config.vocab_size)
    with torch.no_grad():
        answer = theirs(ids, output_hidden_states=True)
        norm = theirs.transformer.ln_f if name.startswith("GPT-2") else theirs.model.norm
        # Their last hidden state is normed already.
        early = [theirs.lm_head(norm(stream)) for stream in answer.hidden_states[:-1]]
        expected = torch.stack([*early, theirs.lm_head(answer.hidden_states[-1])])
    lens = logit_lens(ours, ids)
    assert lens.shape == (ours.config.n_layers + 1, BATCH, SEQ, ours.config.vocab_size)
    tolerance = 1e-10 if name.startswith("GPT-2") else 1e-4  # their rotary tables are float32
    torch.testing.assert_close(lens, expected.double(), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_first_entry_knows_one_token_and_the_last_is_what_the_model_says(name: str) -> None:
    model, ids = variant(name), some_ids()
    lens = logit_lens(model, ids)
    with torch.no_grad():
        assert torch.equal(lens[-1], model(ids))
        torch.testing.assert_close(lens[0], model.head(model.norm(model.embed(ids))))


def test_a_token_that_a_known_layer_writes_is_seen_from_that_layer_on() -> None:
    model = hand_made()
    with torch.no_grad():
        # The first layer's previous-token head now writes where the output layer looks, three times as loud.
        model.blocks[0].attention.out.weight[:TOKENS, :TOKENS] = 3 * torch.eye(TOKENS)
    ids = torch.randint(TOKENS, (BATCH, POSITIONS), generator=torch.Generator().manual_seed(1))
    likeliest = logit_lens(model, ids).argmax(-1)
    assert torch.equal(likeliest[0], ids)  # the output layer is the embedding, so each token says itself
    assert torch.equal(likeliest[1][:, 1:], ids[:, :-1])
    assert torch.equal(likeliest[2][:, 1:], ids[:, :-1])


def test_reading_leaves_the_model_as_it_was() -> None:
    model, ids = variant("gpt2").train(), some_ids()
    state = torch.get_rng_state()
    lens = logit_lens(model, ids)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert not lens.requires_grad
    assert torch.equal(lens, logit_lens(model.eval(), ids))


def test_what_modules_were_given_comes_in_order_and_without_a_graph() -> None:
    model, ids = variant("gpt2"), some_ids()
    first, last = module_inputs(model, ids, [model.norm, model.blocks[0]])  # in the order of the calls
    assert torch.equal(first, model.embed(ids))
    with torch.no_grad():
        assert torch.equal(model.norm(last), model.hidden(ids))
    assert not first.requires_grad
    assert not last.requires_grad


def test_too_long_and_empty_texts_are_refused() -> None:
    model = variant("gpt2")
    with pytest.raises(ValueError, match="Keep the last ones"):
        logit_lens(model, torch.zeros(1, CONTEXT + 1, dtype=torch.long))
    with pytest.raises(ValueError, match="hold no tokens"):
        logit_lens(model, torch.zeros(1, 0, dtype=torch.long))
