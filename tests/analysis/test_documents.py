"""The loss of every token of a text, against loops that look at one token at a time."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from labkit import GPT, GPTConfig
from labkit.analysis import DocumentScore, evaluate_documents, sliding_losses, token_losses, total_score
from labkit.model.loss import CHUNK
from labkit.text import CharTokenizer, Document
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


# Sliding windows


def naive_losses(model: GPT, ids: Tensor, stride: int) -> Tensor:
    """One pass of the model per token, over exactly the window that the token belongs to."""
    context, nats = model.config.context_length, []
    for target in range(1, len(ids)):
        end = context  # of the window's inputs
        while end < target:
            end += stride
        end = min(end, len(ids) - 1)
        start = max(0, end - context)
        with torch.no_grad():
            logits = model(ids[None, start:target])[0, -1]
        nats.append(-logits.log_softmax(-1)[ids[target]])
    return torch.stack(nats)


@pytest.mark.parametrize("stride", [1, 2, 3, 5, CONTEXT - 1, CONTEXT, None])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("batch_size", [2, 16])
def test_each_token_is_predicted_from_its_own_window(name: str, stride: int | None, batch_size: int) -> None:
    model, ids = variant(name), some_ids(47)
    losses = sliding_losses(model, ids, stride=stride, batch_size=batch_size)
    expected = naive_losses(model, ids, CONTEXT // 2 if stride is None else stride)
    torch.testing.assert_close(losses, expected, rtol=1e-9, atol=1e-11)


@settings(max_examples=60)
@given(tokens=st.integers(2, 60), stride=st.integers(1, CONTEXT), batch_size=st.integers(1, 5))
def test_each_token_after_the_first_is_counted_once(tokens: int, stride: int, batch_size: int) -> None:
    """A model that knows nothing of the context: the loss of a token tells which token it was."""
    model = variant("no positions", n_layers=1)
    for part in (model.blocks[0].attention.out, model.blocks[0].mlp.down):
        nn.init.zeros_(part.weight)
        nn.init.zeros_(part.bias)
    nn.init.zeros_(model.norm.weight)
    model.config = replace(model.config, tie_weights=False)
    model.head = nn.Linear(12, VOCAB).double()
    nn.init.zeros_(model.head.weight)
    model.head.bias = nn.Parameter(torch.linspace(-2, 2, VOCAB).double())
    ids = some_ids(tokens)
    seen: list[int] = []
    losses = sliding_losses(model, ids, stride=stride, batch_size=batch_size, progress=seen.append)
    expected = -torch.linspace(-2, 2, VOCAB).double().log_softmax(0)[ids[1:]]
    torch.testing.assert_close(losses.detach(), expected)
    assert sum(seen) == tokens - 1


def test_a_small_stride_sees_more_and_a_text_within_the_context_needs_one_window() -> None:
    model = variant("gpt2")
    rows: list[tuple[int, ...]] = []
    model.token_embedding.register_forward_pre_hook(lambda module, args: rows.append(tuple(args[0].shape)))
    sliding_losses(model, some_ids(CONTEXT + 1), stride=3)
    assert rows == [(1, CONTEXT)]
    rows.clear()
    sliding_losses(model, some_ids(5), stride=3)
    assert rows == [(1, 4)]
    rows.clear()
    sliding_losses(model, some_ids(CONTEXT + 1 + 3 * 5 + 2), stride=3, batch_size=2)
    assert rows == [(1, CONTEXT), (2, CONTEXT), (2, CONTEXT), (1, CONTEXT), (1, CONTEXT)]


@pytest.mark.parametrize("stride", [0, -1, CONTEXT + 1])
def test_a_stride_that_would_leave_tokens_out_is_refused(stride: int) -> None:
    wanted = f"stride={stride} must be from 1 to the model's context_length={CONTEXT}"
    with pytest.raises(ValueError, match=wanted):
        sliding_losses(variant("gpt2"), some_ids(30), stride=stride)
    with pytest.raises(ValueError, match="1 tokens are too few; the first is not predicted"):
        sliding_losses(variant("gpt2"), some_ids(1))
    with pytest.raises(ValueError, match=r"whole numbers are needed, in one dimension"):
        sliding_losses(variant("gpt2"), some_ids(2, 7))


@pytest.mark.parametrize("stride", [2, 7])
def test_the_same_weights_in_transformers_give_the_same_losses(stride: int) -> None:
    """A loop like that of its documentation; the last window is as long as the others."""
    transformers = pytest.importorskip("transformers")
    from tests.model.test_transformers_parity import gpt2_state, randomised

    sizes = {"vocab_size": 37, "context_length": 11, "d_model": 15, "n_layers": 4, "n_heads": 3, "d_ff": 29}
    model = randomised(GPTConfig(**sizes))
    shape = {"vocab_size": 37, "n_positions": 11, "n_embd": 15, "n_layer": 4, "n_head": 3, "n_inner": 29}
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**shape)).eval()
    theirs.load_state_dict(gpt2_state(model))
    ids = torch.randint(37, (50,), generator=torch.Generator().manual_seed(2))
    total, reached = 0.0, 1
    while reached < len(ids):
        end = 12 if reached == 1 else min(reached + stride, len(ids))
        window = ids[None, max(0, end - 12) : end]
        with torch.no_grad():
            logits = theirs(window[:, :-1]).logits[0, reached - end :]
        total += nn.functional.cross_entropy(logits, ids[reached:end], reduction="sum").item()
        reached = end
    assert sliding_losses(model, ids, stride=stride).sum().item() == pytest.approx(total, rel=1e-5)


# Documents


class TwoByTwo(CharTokenizer):
    """Pairs of characters are one token: another tokenizer of the same text."""

    def _encode(self, text: str) -> np.ndarray:
        single = super()._encode(text)
        return single[::2] * len(self.characters) + single[1::2]

    def token_bytes(self, token_id: int) -> bytes:
        return b"".join(super(TwoByTwo, self).token_bytes(i) for i in divmod(token_id, len(self.characters)))


def uniform(vocab_size: int) -> GPT:
    """Every token is equally likely."""
    model = variant("gpt2", vocab_size=vocab_size)
    nn.init.zeros_(model.norm.weight)
    nn.init.zeros_(model.norm.bias)
    return model


ALPHABET = CharTokenizer("abcd")
TEXTS = [Document("one", "abcdabca"), Document("two", "ab" * 20)]


def test_scores_by_hand() -> None:
    """4 letters and an end of text, equally likely: log2(5) bits a byte, whatever the text."""
    first, second = evaluate_documents(uniform(5), ALPHABET, TEXTS)
    assert (first.title, first.tokens, first.n_bytes, first.skipped) == ("one", 7, 7, "")
    assert (second.title, second.tokens, second.n_bytes) == ("two", 39, 39)
    for score in (first, second, total_score([first, second])):
        assert score.loss == pytest.approx(math.log(5))
        assert score.perplexity == pytest.approx(5)
        assert score.bits_per_byte == pytest.approx(math.log2(5))
    assert total_score([first, second]).tokens == 46


def test_bits_per_byte_compare_tokenizers() -> None:
    """16 pairs, equally likely, cost 4 bits for 2 bytes; 4 letters alone cost 2 bits for 1: the same."""
    pairs = TwoByTwo("abcd")
    pairs.vocab_size = 16
    letters = [total_score(evaluate_documents(uniform(4), ALPHABET, TEXTS))]
    [paired] = [total_score(evaluate_documents(uniform(16), pairs, TEXTS))]
    assert (letters[0].tokens, letters[0].n_bytes) == (46, 46)
    assert (paired.tokens, paired.n_bytes) == (22, 44)
    assert letters[0].bits_per_byte == pytest.approx(2)
    assert paired.bits_per_byte == pytest.approx(2)
    assert paired.perplexity == pytest.approx(16)


def test_totals_weigh_tokens_and_bytes() -> None:
    scores = [
        DocumentScore("a", 3, 5, 6.0),
        DocumentScore("b", 1, 11, 10.0),
        DocumentScore("c", 0, 0, 0.0, "?"),
    ]
    total = total_score(scores)
    assert (total.tokens, total.n_bytes, total.loss) == (4, 16, 4.0)
    assert total.bits_per_byte == pytest.approx(16 / math.log(2) / 16)
    assert total.perplexity == pytest.approx(math.exp(4))


def test_characters_of_several_bytes_are_counted_as_bytes() -> None:
    text = "é\U0001f600aé"  # 2, 4, 1, 2 bytes; the first is not predicted
    tokenizer = CharTokenizer.from_text(text)
    [score] = evaluate_documents(uniform(tokenizer.vocab_size), tokenizer, [Document("x", text)])
    assert (score.tokens, score.n_bytes) == (3, 7)


def test_what_cannot_be_measured_says_why_and_counts_for_nothing() -> None:
    documents = [Document("empty", ""), Document("letter", "a"), Document("strange", "abç"), *TEXTS]
    scores = list(evaluate_documents(uniform(5), ALPHABET, documents))
    assert [score.tokens for score in scores] == [0, 0, 0, 7, 39]
    assert scores[0].skipped.startswith("too short: 0 of the two tokens")
    assert scores[1].skipped.startswith("too short: 1 of the two tokens")
    assert "'ç' is not in the alphabet (first at position 2)" in scores[2].skipped
    assert all(math.isnan(each) for s in scores[:3] for each in (s.loss, s.perplexity, s.bits_per_byte))
    assert total_score(scores) == total_score(scores[3:])
    with pytest.raises(ValueError, match=r"No text could be measured \(empty: too short"):
        total_score(scores[:3])
    with pytest.raises(ValueError, match="there is no document"):
        total_score([])


def test_another_models_tokenizer_is_an_error_and_no_document_that_is_left_out() -> None:
    with pytest.raises(ValueError, match="Was the text encoded with another tokenizer"):
        list(evaluate_documents(uniform(3), ALPHABET, TEXTS))


def test_documents_are_read_one_after_another_as_they_are_asked_for() -> None:
    asked: list[str] = []

    def documents() -> Iterator[Document]:
        for document in TEXTS:
            asked.append(document.title)
            yield document

    scores = evaluate_documents(uniform(5), ALPHABET, documents())
    next(scores)
    assert asked == ["one"]


@pytest.mark.parametrize("training", [True, False])
def test_evaluating_documents_leaves_no_trace(training: bool) -> None:
    model = variant("gpt2", vocab_size=5).train(training)
    before = torch.get_rng_state()
    first, second = (list(evaluate_documents(model, ALPHABET, TEXTS, stride=2)) for _ in range(2))
    assert first == second
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training == training
