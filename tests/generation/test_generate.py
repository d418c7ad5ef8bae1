"""Generation predicts, draws and appends; rows of a batch live apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import nn
from variants import VARIANTS, variant

from labkit import GPT, GPTConfig, SampleConfig
from labkit.generation import decode as decoding
from labkit.generation import draw, generate, next_token_probabilities
from labkit.model import KVCache

pytestmark = pytest.mark.filterwarnings("ignore:generate. prompt . has .* tokens. the model reads the last")

VOCAB, CONTEXT = 13, 7


def gpt(**changes: Any) -> GPT:
    sizes = {"vocab_size": VOCAB, "context_length": CONTEXT, "d_model": 10, "n_layers": 2, "n_heads": 2}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**sizes | {"dropout": 0.3, "attention_dropout": 0.3} | changes))
    for parameter in model.parameters():
        if parameter.ndim == 2:
            nn.init.normal_(parameter, std=0.8)  # large, so that each position predicts something else
    return model.double().eval()


PROMPTS = [
    [3],
    [1, 4, 1, 5, 9],
    [2, 6],
    [5, 3, 5, 8, 9, 7, 9, 3, 2, 3],
]  # the last is longer than the context


def uncached(model: GPT, prompt: list[int], config: SampleConfig, seed: int) -> list[int]:
    """What generate promises, in its plainest form: the whole window is read anew for every token."""
    ids, context = list(prompt), model.config.context_length
    start = max(0, len(ids) - context)
    uniforms = torch.rand(
        config.max_new_tokens, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    for uniform in uniforms:
        if len(ids) - start > context:
            start = len(ids) - (context - context // 4)
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:]]))[0, -1]
        seen = torch.zeros_like(logits, dtype=torch.bool)
        seen[ids] = True
        ids.append(int(draw(next_token_probabilities(logits, config, seen)[None], uniform[None])))
    return ids


SETTINGS = [
    SampleConfig(max_new_tokens=29),
    SampleConfig(max_new_tokens=29, temperature=0),
    SampleConfig(max_new_tokens=29, temperature=1.7, top_k=5, top_p=0.9, min_p=0.02),
    SampleConfig(max_new_tokens=29, repetition_penalty=1.3, temperature=0),
]


@pytest.mark.parametrize("config", SETTINGS, ids=["plain", "greedy", "filters", "penalty"])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_cache_changes_no_text_of_any_kind_of_model(name: str, config: SampleConfig) -> None:
    """Far past the context of 11, alone and in a batch with texts that are longer or shorter."""
    model = variant(name)
    together = generate(model, PROMPTS, config, seed=40)
    for number, prompt in enumerate(PROMPTS):
        expected = uncached(model, prompt, config, seed=40 + number)
        assert generate(model, prompt, config, seed=40 + number).tolist() == expected
        assert together[number].tolist() == expected


def as_rows(prompt: list[int]) -> dict[str, Any]:
    """One prompt in every form that generate takes."""
    ids = torch.tensor(prompt)
    return {"list": prompt, "tensor": ids, "array": ids.numpy(), "tuple": tuple(prompt), "short": ids.int()}


@pytest.mark.parametrize("form", ["list", "tensor", "array", "tuple", "short"])
def test_one_prompt_gives_one_text(form: str) -> None:
    text = generate(gpt(), as_rows([1, 4, 1])[form], SampleConfig(max_new_tokens=5), seed=2)
    assert text.shape == (8,)
    assert text.tolist() == uncached(gpt(), [1, 4, 1], SampleConfig(max_new_tokens=5), seed=2)


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_of_ids_gives_a_batch_of_texts(batch: int) -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=5)
    ids = torch.tensor([[1, 4, 1], [5, 9, 2], [6, 5, 3]])[:batch]
    for given in (ids, ids.numpy()):
        texts = generate(model, given, config, seed=2)
        assert texts.shape == (batch, 8)
        for row, text in enumerate(texts):
            assert torch.equal(text, generate(model, ids[row], config, seed=2 + row))


@pytest.mark.parametrize("prompts", [PROMPTS[:3], [torch.tensor(each) for each in PROMPTS[:3]], [[1], [2]]])
def test_a_list_of_prompts_gives_a_list_of_texts(prompts: list[Any]) -> None:
    texts = generate(gpt(), prompts, SampleConfig(max_new_tokens=5, n=2), seed=2)
    assert isinstance(texts, list)
    assert [len(text) for text in texts] == [len(each) + 5 for each in prompts for _ in range(2)]
    others = generate(gpt(), prompts, SampleConfig(max_new_tokens=5, n=2), seed=2)
    assert [text.tolist() for text in texts] == [text.tolist() for text in others]


def test_texts_of_a_batch_that_end_early_go_on_with_the_token_that_ended_them() -> None:
    ids = torch.tensor([[3, 1], [5, 9], [7, 2]])
    config = SampleConfig(max_new_tokens=25, temperature=8, eos_id=9)
    texts, alone = generate(gpt(), ids, config, seed=3), generate(gpt(), list(ids), config, seed=3)
    lengths = [len(text) for text in alone]
    assert texts.shape == (3, max(lengths))
    assert len(set(lengths)) > 1
    for text, short in zip(texts, alone, strict=True):
        assert torch.equal(text[: len(short)], short)
        assert (text[len(short) :] == 9).all()


def test_several_texts_of_each_row_of_a_batch_stand_one_after_another() -> None:
    ids, config = torch.tensor([[3, 1], [5, 9]]), SampleConfig(max_new_tokens=4, n=3)
    texts = generate(gpt(), ids, config, seed=7)
    assert texts.shape == (6, 6)
    assert texts.tolist() == [text.tolist() for text in generate(gpt(), list(ids), config, seed=7)]


def test_settings_by_name_are_those_of_a_configuration() -> None:
    named = generate(gpt(), [3, 1], temperature=0.8, max_new_tokens=6, top_k=4, seed=5)
    config = SampleConfig(temperature=0.8, max_new_tokens=6, top_k=4)
    assert torch.equal(named, generate(gpt(), [3, 1], config, seed=5))
    changed = generate(gpt(), [3, 1], SampleConfig(max_new_tokens=6, temperature=0.8), top_k=4, seed=5)
    assert torch.equal(named, changed)


@pytest.mark.parametrize("context", [1, 2, 3, 4, 5])
def test_short_contexts_work(context: int) -> None:
    model, config = variant("gpt2", context_length=context), SampleConfig(max_new_tokens=13)
    assert generate(model, [3, 1], config, seed=5).tolist() == uncached(model, [3, 1], config, seed=5)


def test_the_newest_three_quarters_of_a_full_window_are_read_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    model, windows = variant("gpt2", context_length=9), []
    read = decoding.CachedReader.prefill
    monkeypatch.setattr(
        decoding.CachedReader,
        "prefill",
        lambda self, prompts, copies=1: windows.append(prompts[0].tolist()) or read(self, prompts, copies),
    )
    text = generate(model, [3, 1], SampleConfig(max_new_tokens=14)).tolist()
    assert windows == [text[:2], text[3:10], text[6:13]]  # 7 of 9, each time the tenth token has come


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_several_texts_of_a_prompt_share_its_reading(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, config = variant(name), SampleConfig(max_new_tokens=14, n=3)
    shapes = []
    begin = KVCache.begin
    monkeypatch.setattr(KVCache, "begin", lambda self, ids: shapes.append(ids.shape) or begin(self, ids))
    texts = generate(model, PROMPTS[:2], config, seed=7)
    assert shapes[0] == (2, 5)
    alone = SampleConfig(max_new_tokens=14)
    for number, text in enumerate(texts):
        assert text.tolist() == generate(model, PROMPTS[number // 3], alone, seed=7 + number).tolist()
    assert len({tuple(text.tolist()) for text in texts}) == 6


def test_padding_of_a_ragged_batch_does_not_reach_the_logits() -> None:
    model = gpt()
    short, long = [2, 6], [1, 4, 1, 5, 9]
    config = SampleConfig(max_new_tokens=5, temperature=0)
    alone = generate(model, short, config)
    for partner in (long, [0] * 6, [VOCAB - 1] * 7):
        assert torch.equal(generate(model, [short, partner], config)[0], alone)


def test_a_token_of_a_prompt_longer_than_the_context_is_out_of_sight() -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=4)
    seen = [5, 8, 9, 7, 9, 3, 2]
    one, two = (generate(model, [first, *seen], config)[-4:] for first in (0, 11))
    assert torch.equal(one, two)


def test_the_same_seed_gives_the_same_text_and_another_seed_another() -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=20)
    texts = [generate(model, [3], config, seed=seed).tolist() for seed in (8, 8, 9)]
    assert texts[0] == texts[1] != texts[2]


def test_a_token_is_drawn_only_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    next_tokens = decoding.next_tokens
    monkeypatch.setattr(
        decoding, "next_tokens", lambda *arguments: drawn.append(1) or next_tokens(*arguments)
    )
    steps = decoding.decode(gpt(), [torch.tensor([3])], SampleConfig(max_new_tokens=9), seed=0)
    next(steps)
    next(steps)
    assert len(drawn) == 2


def test_eos_ends_its_own_row_and_no_other() -> None:
    model = gpt()
    free = generate(model, PROMPTS, SampleConfig(max_new_tokens=25, temperature=8), seed=3)
    ended = generate(model, PROMPTS, SampleConfig(max_new_tokens=25, temperature=8, eos_id=9), seed=3)
    lengths = set()
    for prompt, long, short in zip(PROMPTS, free, ended, strict=True):
        new = long[len(prompt) :].tolist()
        expected = new[: new.index(9) + 1] if 9 in new else new
        assert short[len(prompt) :].tolist() == expected  # eos included, a 9 in the prompt ends nothing
        lengths.add(len(expected))
    assert len(lengths) > 1  # rows did end at different times


def test_generation_stops_when_every_row_has_ended_and_ended_rows_cost_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes = []
    step = decoding.CachedReader.step
    monkeypatch.setattr(
        decoding.CachedReader, "step", lambda self, tokens: sizes.append(len(tokens)) or step(self, tokens)
    )
    model = variant("gpt2", context_length=500)
    config = SampleConfig(max_new_tokens=400, temperature=8, eos_id=4)
    lengths = [len(row) - 1 for row in generate(model, [[3], [5], [7]], config)]
    assert max(lengths) < 400
    assert sizes == [sum(length > number for length in lengths) for number in range(1, max(lengths))]


def test_a_reader_of_the_steps_can_end_a_text() -> None:
    model, config = gpt(), SampleConfig(max_new_tokens=9)
    prompts = [torch.tensor(prompt) for prompt in PROMPTS[:3]]
    tokens: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for step in decoding.decode(model, prompts, config, seed=1):
        for text, token in zip(step.texts, step.tokens, strict=True):
            tokens[text].append(token)
            if text == 1 and len(tokens[1]) == 4:
                step.ended.add(1)
    whole = generate(model, PROMPTS[:3], config, seed=1)
    for text, cut in ((0, 9), (1, 4), (2, 9)):
        assert tokens[text] == whole[text][len(PROMPTS[text]) :][:cut].tolist()


def test_the_mode_of_each_module_is_restored() -> None:
    """For example a frozen block, which stays in evaluation mode while the rest is trained."""
    model = gpt().train()
    model.blocks[0].eval()
    before = {name: module.training for name, module in model.named_modules()}
    generate(model, [3, 1], max_new_tokens=2)
    assert {name: module.training for name, module in model.named_modules()} == before


@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_restored_and_dropout_is_off_meanwhile(training: bool) -> None:
    model = gpt().train(training)
    config = SampleConfig(max_new_tokens=8, temperature=0)
    expected = generate(gpt(), [3, 1], config)
    assert torch.equal(generate(model, [3, 1], config), expected)
    assert model.training == training
    steps = decoding.decode(model, [torch.tensor([3, 1])], config, seed=0)
    next(steps)
    steps.close()  # abandoned half-way
    assert model.training == training
    with pytest.raises(ValueError, match="not finite"):
        generate(_broken(model), [3])
    assert model.training == training


def test_no_one_elses_random_numbers_are_touched() -> None:
    model = gpt()
    torch.manual_seed(17)
    before = torch.get_rng_state()
    generate(model, PROMPTS, SampleConfig(max_new_tokens=5), seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_generated_ids_can_be_trained_on() -> None:
    model = gpt()
    ids = generate(model, torch.tensor([3, 1]), SampleConfig(max_new_tokens=5))
    model.loss(ids[None, :-1], ids[None, 1:]).backward()  # inference tensors would fail here
    assert model.token_embedding.weight.grad is not None


def test_the_prompt_is_not_changed() -> None:
    prompt = torch.tensor([3, 1])
    generate(gpt(), prompt, SampleConfig(max_new_tokens=5))
    assert prompt.tolist() == [3, 1]


def _broken(model: GPT) -> GPT:
    with torch.no_grad():
        model.norm.weight[0] = torch.nan
    return model


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([], r"generate: prompt 0 has shape \(0,\); expected a list of at least one token id"),
        ([[]], r"generate: prompt 0 has shape \(0,\); expected a list of at least one token id. .*eos_id"),
        ([[3], []], r"generate: prompt 1 has shape \(0,\)"),
        ([[[1, 2], [3, 4]]], r"generate: prompt 0 has shape \(2, 2\)"),
        ([[3, VOCAB]], r"ids range from 3 to 13; this model knows 0 to 12"),
        ([[-1]], r"ids range from -1 to -1"),
        ([[0.5]], r"ids are torch.float32; expected whole numbers"),
        ([[VOCAB, *[1] * 10]], r"ids range from 1 to 13; this model knows"),  # even out of sight
        (["To be"], r"generate: prompt 0 is 'To be'; expected a list of token ids. .*tokenizer.encode"),
        ([[1], ["a", "b"]], r"generate: prompt 1 is \['a', 'b'\]; expected a list of token ids"),
        ([[[1, 2], [3]]], r"generate: prompt 0 is \[\[1, 2\], \[3\]\]; expected a list of token ids"),
    ],
)
def test_prompts_that_cannot_be_continued_are_refused(prompts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        generate(gpt(), prompts)


def test_logits_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"logits are not finite .* Did the model's training diverge"):
        generate(_broken(gpt()), [3])


def test_rows_with_neighbouring_seeds_are_independent() -> None:
    """Chi-square of 20,000 pairs of draws among four tokens."""
    count = 20_000
    pairs = torch.stack([decoding._uniforms(count, seed) for seed in range(2)]).mul(4).long()
    table = (pairs[0] * 4 + pairs[1]).bincount(minlength=16).reshape(4, 4)
    assert stats.chi2_contingency(table.numpy()).pvalue > 0.001


def test_a_longer_text_begins_as_the_shorter_one() -> None:
    model = gpt()
    short, long = (generate(model, [3], SampleConfig(max_new_tokens=size), seed=6) for size in (5, 33))
    assert torch.equal(long[:6], short)


def test_half_precision_models_write() -> None:
    model = variant("rotary").bfloat16()
    text = generate(model, [3, 1], SampleConfig(max_new_tokens=20, temperature=0))
    assert len(text) == 22
