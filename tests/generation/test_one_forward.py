"""What a learner changes in a model is what writes, wherever it writes, and what is trained and measured."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from changed_models import CHANGES
from torch import Tensor
from variants import VARIANTS, VOCAB, variant

from labkit import GPT, SampleConfig, TrainConfig, Trainer
from labkit.analysis import evaluate_loss, token_losses
from labkit.generation import complete, draw, generate, stream, stream_tokens
from labkit.generation.reading import can_capture
from labkit.text import CharTokenizer

TOKENIZER = CharTokenizer("abcdefghijkl")
NEW, SEED = 9, 3
CONFIG = SampleConfig(max_new_tokens=NEW)
PROMPT = "cab"


def model() -> GPT:
    return variant("gpt2", context_length=NEW + 3)


def written_plainly(model: GPT) -> list[int]:
    """The model called anew on all of the text, for every token."""
    ids = TOKENIZER.encode(PROMPT)
    for uniform in torch.rand(NEW, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED)):
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0, -1]
        ids.append(int(draw(logits.softmax(-1), uniform[None])))
    return ids


def sampled_in_training(model: GPT) -> str:
    ids = torch.arange(60) % VOCAB
    config = TrainConfig(max_steps=1, batch_size=2, sample_tokens=NEW, seed=SEED, precision="fp32")
    return Trainer(model, ids, ids, config, tokenizer=TOKENIZER, prompt=PROMPT).sample().text


def streamed_as_by_the_server(model: GPT) -> str:
    return "".join(token.text for token in stream_tokens(model, TOKENIZER, PROMPT, CONFIG, seed=SEED))


WHOLE: dict[str, Callable[[GPT], str]] = {
    "generate": lambda m: TOKENIZER.decode(generate(m, TOKENIZER.encode(PROMPT), CONFIG, seed=SEED)),
    "generate for several prompts": lambda m: TOKENIZER.decode(
        generate(m, [[1, 2], TOKENIZER.encode(PROMPT)], CONFIG, seed=SEED - 1)[1]
    ),
    "a sample in training": sampled_in_training,
}
UP_TO_THE_END: dict[str, Callable[[GPT], str]] = {
    "complete": lambda m: PROMPT + complete(m, TOKENIZER, PROMPT, CONFIG, seed=SEED)[0].text,
    "stream": lambda m: PROMPT + "".join(stream(m, TOKENIZER, PROMPT, CONFIG, seed=SEED)),
    "stream_tokens": lambda m: PROMPT + streamed_as_by_the_server(m),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_way_of_writing_uses_what_was_changed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed, before = model(), written_plainly(model())
    CHANGES[name](changed, monkeypatch)
    expected = written_plainly(changed)
    assert expected != before
    text = TOKENIZER.decode(expected)
    for way, write in WHOLE.items():
        assert write(changed) == text, way
    for way, write in UP_TO_THE_END.items():
        assert write(changed) == text.partition("<|endoftext|>")[0], way


@pytest.mark.parametrize("name", CHANGES)
def test_training_and_measuring_use_it_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = model()
    CHANGES[name](changed, monkeypatch)
    ids = torch.randint(VOCAB, (3, 8), generator=torch.Generator().manual_seed(1))
    inputs, targets = ids[:, :-1], ids[:, 1:]
    expected = F.cross_entropy(changed(inputs).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(changed.loss(inputs, targets), expected)
    assert evaluate_loss(changed, inputs, targets) == pytest.approx(expected.item())
    assert token_losses(changed, ids).mean().item() == pytest.approx(expected.item())


@pytest.mark.parametrize("name", CHANGES)
def test_a_step_is_not_captured_where_anything_is_changed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = model()
    CHANGES[name](changed, monkeypatch)
    assert not can_capture(changed)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_plain_model_is_captured_but_not_under_autocast(name: str) -> None:
    assert can_capture(variant(name))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_capture(variant(name))


def test_it_is_captured_again_when_the_change_is_undone() -> None:
    changed = model()
    hook = changed.blocks[0].register_forward_hook(lambda module, given, out: out)
    assert not can_capture(changed)
    hook.remove()
    changed.blocks[1].mlp.forward = lambda x: x
    assert not can_capture(changed)
    del changed.blocks[1].mlp.forward
    assert can_capture(changed)


def test_a_hook_sees_one_call_for_each_token() -> None:
    plain, seen = model(), []

    def watch(module: torch.nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        seen.append(out.shape[1])

    plain.blocks[0].register_forward_hook(watch)
    generate(plain, [3, 1, 4], SampleConfig(max_new_tokens=4))
    assert seen == [3, 1, 1, 1]
