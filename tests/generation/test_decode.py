"""Reading on with a cache computes what the model does, and rows that end or stay leave each other alone."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from changed_models import Averaging
from torch import Tensor
from torch.testing import assert_close
from variants import CONTEXT, VARIANTS, VOCAB, variant

from labkit import GPT, GPTConfig, SampleConfig
from labkit.generation import draw, generate
from labkit.generation import reading as room
from labkit.generation.reading import CachedReader
from labkit.model import KVCache

PROMPTS = [torch.tensor(ids) for ids in ([3, 1, 4], [1], [5, 9, 2, 6, 5])]


def tokens(rows: int, seed: int) -> Tensor:
    return torch.randint(VOCAB, (rows,), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def steps_and_the_models(model: GPT, dtype: torch.dtype, rows: int = 3) -> tuple[Tensor, Tensor]:
    reader = CachedReader(model, CONTEXT)
    texts = PROMPTS[:rows]
    logits = [reader.prefill(texts)]
    expected = [torch.stack([model(text[None])[0, -1] for text in texts])]
    for number in range(5):
        new = tokens(len(texts), number)
        texts = [torch.cat([text, token[None]]) for text, token in zip(texts, new, strict=True)]
        logits.append(reader.step(new))
        expected.append(torch.stack([model(text[None])[0, -1] for text in texts]))
    assert logits[0].dtype == dtype
    return torch.stack(logits), torch.stack(expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_reading_on_equals_the_model(name: str) -> None:
    assert_close(*steps_and_the_models(variant(name), torch.float64))
    assert_close(*steps_and_the_models(variant(name), torch.float64, rows=1))


def test_a_row_that_is_dropped_leaves_the_others_as_they_are() -> None:
    model = variant("rotary")
    whole, fewer = CachedReader(model, CONTEXT), CachedReader(model, CONTEXT)
    with torch.no_grad():
        whole.prefill(PROMPTS)
        fewer.prefill(PROMPTS)
        for number in range(5):
            new = tokens(3, number)
            expected = whole.step(new)
            if number == 2:
                fewer.keep([0, 2])
            found = fewer.step(new if number < 2 else new[[0, 2]])
            assert_close(found, expected if number < 2 else expected[[0, 2]])


def test_weights_that_training_changes_are_those_that_the_next_text_is_written_with() -> None:
    model, config = variant("gpt2"), SampleConfig(max_new_tokens=9, temperature=0)
    before = generate(model, [3], config)
    with torch.no_grad():
        model.blocks[0].attention.query.weight.mul_(-1)
        model.head.weight.mul_(-1)
    after = generate(model, [3], config)
    assert not torch.equal(after, before)
    assert torch.equal(after, generate(variant_with(model), [3], config))


def variant_with(model: GPT) -> GPT:
    """Another model with the same weights."""
    other = GPT(model.config).double().eval()
    other.load_state_dict(model.state_dict())
    return other


def test_under_autocast_the_cache_is_in_half_precision() -> None:
    model = variant("llama").float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reader = CachedReader(model, CONTEXT)
        assert reader.prefill(PROMPTS, copies=2).shape == (6, VOCAB)
        assert reader.cache.layers[0].keys.dtype == torch.bfloat16
        assert reader.step(tokens(6, 0)).shape == (6, VOCAB)
        assert len(generate(model, [3, 1], SampleConfig(max_new_tokens=20))) == 22


def test_attention_without_a_cache_writes_too() -> None:
    model = variant("gpt2")
    model.blocks[0].attention = Averaging()
    config = SampleConfig(max_new_tokens=25, n=2, temperature=2, eos_id=4)
    found = generate(model, PROMPTS, config, seed=3)
    ids, start = PROMPTS[2].tolist(), 0
    for uniform in torch.rand(25, dtype=torch.float64, generator=torch.Generator().manual_seed(7)):
        if len(ids) - start > CONTEXT:
            start = len(ids) - 9
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:]]))[:, -1]
        ids.append(int(draw((logits / 2).softmax(-1), uniform[None])))
        if ids[-1] == 4:
            break
    assert found[4].tolist() == ids
    assert len({len(text) for text in found}) > 2


def test_a_text_that_fits_takes_no_more_cache_than_it_needs() -> None:
    model = variant("gpt2", context_length=512)
    taken = []
    original = KVCache.__init__

    def watched(self: KVCache, config: GPTConfig, batch: int = 1, **options: object) -> None:
        original(self, config, batch, **options)
        taken.append(self.capacity)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KVCache, "__init__", watched)
        generate(model, [3, 1, 4], SampleConfig(max_new_tokens=20))
    assert taken == [23]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_loop_around_a_captured_step_writes_the_same_texts(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, with the model called where a GPU would replay: rows that end stay in the batch."""
    model, config = variant(name), SampleConfig(max_new_tokens=29, temperature=2, eos_id=4, n=2)
    expected = generate(model, PROMPTS, config, seed=3)
    assert len({len(text) for text in expected}) > 2
    original = CachedReader.__init__

    def as_on_a_gpu(self: CachedReader, model: GPT, capacity: int) -> None:
        original(self, model, capacity)
        self.graph = True

    def uncaptured(model: GPT, cache: KVCache) -> Callable[[Tensor], Tensor]:
        model(torch.zeros(cache.batch, 1, dtype=torch.long), cache=cache)  # as while capturing
        cache.clear()
        return lambda new: model(new[:, None], cache=cache)[:, 0]

    monkeypatch.setattr(CachedReader, "__init__", as_on_a_gpu)
    monkeypatch.setattr(room, "capture_step", uncaptured)
    found = generate(model, PROMPTS, config, seed=3)
    assert [text.tolist() for text in found] == [text.tolist() for text in expected]


@pytest.mark.gpu
@pytest.mark.parametrize("name", VARIANTS)
def test_the_captured_step_equals_the_model_on_a_gpu(name: str) -> None:
    model = variant(name).cuda()
    config = SampleConfig(max_new_tokens=29, top_k=7, n=2)
    prompts = [prompt.cuda() for prompt in PROMPTS]
    assert CachedReader(model, CONTEXT).graph
    on_gpu = generate(model, prompts, config, seed=3)
    on_cpu = generate(model.cpu(), PROMPTS, config, seed=3)
    assert [text.tolist() for text in on_gpu] == [text.tolist() for text in on_cpu]
