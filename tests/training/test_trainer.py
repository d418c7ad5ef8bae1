"""The loop gives its events in order, learns, repeats itself bit for bit, and says when it diverges."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labkit import GPT, GPTConfig, TrainConfig
from labkit.analysis import evaluate_loss
from labkit.text import CharTokenizer
from labkit.training import (
    Checkpoint,
    End,
    Evaluation,
    Sample,
    Step,
    Trainer,
    TrainingDivergedError,
)

TEXT = "to be or not to be, that is the question; " * 12
TOKENIZER = CharTokenizer.from_text(TEXT)
IDS = torch.tensor(TOKENIZER.encode(TEXT))
CONTEXT, BATCH = 7, 3


def trainer(model: dict[str, Any] | None = None, **settings: Any) -> Trainer:
    sizes = {"vocab_size": TOKENIZER.vocab_size, "context_length": CONTEXT, "d_model": 10, "n_layers": 2}
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(**sizes | {"n_heads": 2, "dropout": 0.2, "attention_dropout": 0.1} | (model or {})))
    config = {"max_steps": 9, "batch_size": BATCH, "eval_windows": 5, "sample_tokens": 4, "eval_every": 0}
    config |= {"precision": "fp32"}
    return Trainer(
        gpt, IDS[:400], IDS[400:], TrainConfig(**config | settings), tokenizer=TOKENIZER, prompt="t"
    )


def losses(some: Trainer) -> list[float]:
    return [event.loss for event in some.events() if isinstance(event, Step)]


def weights(some: Trainer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in some.model.state_dict().items()}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_events_come_in_order() -> None:
    events = trainer(max_steps=5, eval_every=2, sample_every=3, checkpoint_every=2).events()
    assert [(type(event), event.step) for event in events] == [
        (Evaluation, 0),
        (Step, 1),
        (Step, 2),
        (Evaluation, 2),
        (Checkpoint, 2),
        (Step, 3),
        (Sample, 3),
        (Step, 4),
        (Evaluation, 4),
        (Checkpoint, 4),
        (Step, 5),
        (Evaluation, 5),
        (Sample, 5),
        (Checkpoint, 5),
        (End, 5),
    ]


def test_without_intervals_there_is_an_evaluation_at_both_ends_and_one_checkpoint() -> None:
    kinds = [type(event) for event in trainer(max_steps=3).events()]
    assert kinds == [Evaluation, Step, Step, Step, Evaluation, Checkpoint, End]


def test_nothing_happens_until_the_next_event_is_asked_for() -> None:
    some = trainer()
    events = some.events()
    next(events)
    before = weights(some)
    assert some.step == 0
    step = next(events)
    assert isinstance(step, Step)
    assert (some.step, step.step, step.tokens) == (1, 1, BATCH * CONTEXT)
    assert not same(weights(some), before)


def test_step_events_say_what_was_done() -> None:
    some = trainer(max_steps=40, learning_rate=3e-3, min_learning_rate=1e-4, warmup_steps=5)
    steps = [event for event in some.events() if isinstance(event, Step)]
    assert [each.learning_rate for each in steps] == [some.learning_rate(step) for step in range(40)]
    assert steps[0].learning_rate == pytest.approx(3e-3 / 5)
    assert steps[4].learning_rate == pytest.approx(3e-3)
    assert steps[-1].learning_rate == pytest.approx(1e-4)
    assert [each.tokens for each in steps] == [n * BATCH * CONTEXT for n in range(1, 41)]


def test_the_scheduled_learning_rate_reaches_every_group_of_the_optimizer() -> None:
    some = trainer(max_steps=12, warmup_steps=3)
    used = []
    some.optimizer.register_step_pre_hook(
        lambda optimizer, *_: used.append([group["lr"] for group in optimizer.param_groups])
    )
    list(some.events())
    assert used == [[some.learning_rate(step)] * 2 for step in range(12)]


def test_the_loss_of_a_step_is_the_models_on_its_batch_before_the_step() -> None:
    some = trainer(model={"dropout": 0.0, "attention_dropout": 0.0})
    inputs, targets = some.data.batch(0)
    expected = some.model.loss(inputs, targets).item()
    assert losses(some)[0] == expected


def test_training_equals_a_plain_loop() -> None:
    settings = {"learning_rate": 5e-3, "grad_clip": 0.5, "warmup_steps": 2, "weight_decay": 0.2}
    no_dropout = {"dropout": 0.0, "attention_dropout": 0.0}
    some, plain = trainer(model=no_dropout, **settings), trainer(model=no_dropout, **settings).model
    matrices = [p for p in plain.parameters() if p.ndim == 2]
    vectors = [p for p in plain.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.2}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=False)
    expected = []
    for step in range(9):
        inputs, targets = some.data.batch(step)
        loss = F.cross_entropy(plain(inputs).transpose(1, 2), targets)
        expected.append(loss.item())
        plain.zero_grad()
        loss.backward()
        norm = torch.cat([p.grad.flatten() for p in plain.parameters()]).norm()
        for parameter in plain.parameters():
            parameter.grad *= min(1.0, 0.5 / norm.item())
        for group in optimizer.param_groups:
            group["lr"] = some.learning_rate(step)
        optimizer.step()
    assert losses(some) == pytest.approx(expected, rel=1e-4)


def test_gradients_are_clipped_from_the_first_step_on() -> None:
    some = trainer(grad_clip=1e-3, warmup_steps=4)
    norms = []

    def remember(*_: object) -> None:
        grads = [p.grad for p in some.model.parameters() if p.grad is not None]
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())

    some.optimizer.register_step_pre_hook(remember)
    reported = [event.grad_norm for event in some.events() if isinstance(event, Step)]
    assert norms == pytest.approx([1e-3] * 9, rel=2e-2)
    assert min(reported) > 1e-2  # what is reported is the norm before clipping


def test_a_clip_of_zero_clips_nothing() -> None:
    assert losses(trainer(grad_clip=0.0)) == losses(trainer(grad_clip=1e6))


def test_the_loss_falls_to_a_fraction() -> None:
    some = trainer(
        model={"d_model": 20, "dropout": 0.0, "attention_dropout": 0.0}, max_steps=150, learning_rate=1e-2
    )
    held_out = [event.val_loss for event in some.events() if isinstance(event, Evaluation)]
    assert held_out[0] == pytest.approx(math.log(TOKENIZER.vocab_size), abs=0.2)
    assert held_out[-1] < 0.5 * held_out[0]


def test_the_same_seed_gives_the_same_losses_bit_for_bit_and_another_does_not() -> None:
    one, two, other = trainer(seed=4), trainer(seed=4), trainer(seed=5)
    assert losses(one) == losses(two) != losses(other)
    assert same(weights(one), weights(two))


def test_looking_changes_nothing() -> None:
    """Evaluation, samples, checkpoints and a consumer that draws random numbers leave the steps alone."""
    plain, watched = trainer(), trainer(eval_every=1, sample_every=2, checkpoint_every=3)
    expected, seen = losses(plain), []
    for event in watched.events():
        torch.rand(3)
        torch.manual_seed(99)
        watched.model.eval()
        if isinstance(event, Step):
            seen.append(event.loss)
    assert seen == expected
    assert same(weights(watched), weights(plain))


def test_training_leaves_the_global_random_numbers_alone() -> None:
    some = trainer(sample_every=2)
    before = torch.get_rng_state()
    list(some.events())
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("stop", [1, 4, 8])
def test_a_generator_left_and_taken_up_again_gives_the_same_training(stop: int) -> None:
    whole, parted = trainer(), trainer()
    expected = losses(whole)
    events = (event for event in parted.events() if isinstance(event, Step))
    first = [event.loss for event in itertools.islice(events, stop)]
    assert parted.step == stop
    assert first + losses(parted) == expected
    assert same(weights(parted), weights(whole))


def test_a_finished_trainer_has_nothing_left_to_do() -> None:
    some = trainer()
    list(some.events())
    before = weights(some)
    assert list(some.events()) == [End(9)]
    assert same(weights(some), before)


def test_dropout_differs_from_step_to_step() -> None:
    some = trainer()
    masks: list[Tensor] = []
    some.model.dropout.register_forward_hook(
        lambda module, args, output: masks.append(output == 0) if module.training else None
    )
    list(some.events())
    assert len(masks) == 9
    assert not any(torch.equal(one, two) for one, two in itertools.combinations(masks, 2))


def test_evaluation_uses_the_same_windows_spread_over_the_held_out_text() -> None:
    some = trainer(max_steps=2, eval_windows=4)
    inputs, targets = some.val_inputs, some.val_targets
    held_out = IDS[400:]
    windows = (len(held_out) - 1) // CONTEXT
    assert inputs.shape == targets.shape == (4, CONTEXT)
    for row in range(4):
        start = row * windows // 4 * CONTEXT
        assert torch.equal(inputs[row], held_out[start : start + CONTEXT])
        assert torch.equal(targets[row], held_out[start + 1 : start + CONTEXT + 1])
    first = next(some.events())
    assert isinstance(first, Evaluation)
    assert first.val_loss == evaluate_loss(some.model, inputs, targets)
    assert first.perplexity == pytest.approx(math.exp(first.val_loss))


def test_fewer_windows_than_asked_for_are_all_taken() -> None:
    some = trainer(eval_windows=10_000)
    assert len(some.val_inputs) == (len(IDS[400:]) - 1) // CONTEXT


def test_samples_start_with_the_prompt_and_have_the_length_asked_for() -> None:
    some = trainer(sample_every=3, sample_tokens=6)
    samples = [event for event in some.events() if isinstance(event, Sample)]
    assert [each.step for each in samples] == [3, 6, 9]
    for each in samples:
        assert (each.prompt, each.text[0]) == ("t", "t")
        written = each.text.replace(TOKENIZER.decode([TOKENIZER.eos_id]), "|")
        assert len(written) == 7


def test_epochs_become_steps() -> None:
    some = trainer(max_steps=None, epochs=0.5)
    assert some.total_steps == math.ceil(200 / (BATCH * CONTEXT))
    assert len(losses(some)) == some.total_steps


@pytest.mark.parametrize(("steps", "warmup"), [(9, 0), (40, 2), (5000, 100)])
def test_warmup_is_a_twentieth_of_the_steps_and_at_most_a_hundred(steps: int, warmup: int) -> None:
    assert trainer(max_steps=steps).warmup_steps == warmup


def test_a_warmup_longer_than_the_epochs_still_trains() -> None:
    some = trainer(max_steps=None, epochs=0.2, warmup_steps=50)
    assert len(losses(some)) == some.total_steps < 50


def test_frozen_parameters_stay_as_they_are() -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": TOKENIZER.vocab_size, "context_length": CONTEXT, "d_model": 10, "n_layers": 1}
    model = GPT(GPTConfig(**sizes, n_heads=2, tie_weights=False))
    model.token_embedding.weight.requires_grad_(False)
    before = model.token_embedding.weight.clone()
    some = Trainer(model, IDS[:400], IDS[400:], TrainConfig(max_steps=3, learning_rate=0.1))
    list(some.events())
    assert torch.equal(model.token_embedding.weight, before)
    assert model.head.weight.grad is not None


# Divergence


def at_step(some: Trainer, step: int, do: Callable[[], float]) -> None:
    """Multiply what the output layer reads at this training step (counted from 0) by what `do` returns."""

    def hook(module: nn.Module, args: object, output: Tensor) -> Tensor | None:
        return output * do() if module.training and some.step == step else None

    some.model.norm.register_forward_hook(hook)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_divergence_names_step_learning_rate_and_way_out(bad: float) -> None:
    some = trainer(learning_rate=6e-3, grad_clip=2.0, warmup_steps=2)
    at_step(some, 4, lambda: bad)
    with pytest.raises(TrainingDivergedError) as error:
        list(some.events())
    message = str(error.value)
    assert "diverged at step 5: loss nan" in message
    assert f"learning rate {some.learning_rate(4):.2e}" in message
    assert "The weights are those of step 4." in message
    assert "Try a learning rate of 2.0e-03, a longer warmup (now 2 steps), grad_clip=1.0 (now 2.0)" in message


def test_a_finite_loss_with_an_infinite_gradient_is_divergence_too() -> None:
    some = trainer()
    some.model.norm.weight.register_hook(lambda grad: grad * math.inf if some.step == 2 else grad)
    with pytest.raises(
        TrainingDivergedError, match=r"diverged at step 3: loss [0-9.]+, gradient norm (nan|inf)"
    ):
        list(some.events())


def test_divergence_leaves_weights_and_moments_as_before_the_step() -> None:
    some, fine = trainer(), trainer(max_steps=9)
    at_step(some, 4, lambda: math.nan)
    with pytest.raises(TrainingDivergedError):
        list(some.events())
    assert some.step == 4
    steps = (event for event in fine.events() if isinstance(event, Step))
    list(itertools.islice(steps, 4))
    assert same(weights(some), weights(fine))
    mine, theirs = (each.optimizer.state_dict()["state"] for each in (some, fine))
    assert all(torch.equal(mine[n]["exp_avg_sq"], theirs[n]["exp_avg_sq"]) for n in mine)


# What cannot be trained


@pytest.mark.parametrize(
    ("train_ids", "val_ids", "settings", "message"),
    [
        (IDS[:CONTEXT], IDS, {}, "TokenStream: 7 ids are too few for context_length=7, which needs 8"),
        (IDS, IDS[:CONTEXT], {}, "WindowDataset: 7 ids are too few for context_length=7"),
        (IDS, IDS[:0], {}, "WindowDataset: 0 ids are too few"),
        (IDS[None], IDS, {}, r"TokenStream: ids are int64 of shape \(1, \d+\); whole numbers"),
        (IDS.float(), IDS, {}, "TokenStream: ids are float32 of shape .*whole numbers"),
        (IDS, IDS, {"sample_every": 5}, "Trainer: sample_every is set, so give tokenizer="),
    ],
)
def test_what_cannot_be_trained_is_refused(
    train_ids: Tensor, val_ids: Tensor, settings: dict[str, Any], message: str
) -> None:
    model = trainer().model
    with pytest.raises(ValueError, match=message):
        Trainer(model, train_ids, val_ids, TrainConfig(**settings))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            "É\n",
            r"Trainer: samples cannot start from prompt='É\\n'. characters: '\\nÉ' are not in the alphabet",
        ),
        ("", "Trainer: prompt is empty; samples need at least one character"),
    ],
)
def test_a_prompt_that_cannot_be_read_is_refused_before_training(prompt: str, message: str) -> None:
    some = trainer()

    def ask(**settings: Any) -> Trainer:
        config = TrainConfig(max_steps=2, **settings)
        return Trainer(some.model, IDS, IDS, config, tokenizer=TOKENIZER, prompt=prompt)

    with pytest.raises(ValueError, match=message):
        ask(sample_every=2)
    ask()  # without samples the prompt is not needed


def test_ids_of_another_tokenizer_are_refused_at_the_first_step() -> None:
    some = Trainer(trainer().model, IDS + TOKENIZER.vocab_size, IDS[:50], TrainConfig(max_steps=2))
    with pytest.raises(ValueError, match="Was the text encoded with another tokenizer"):
        list(some.events())


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match=r"device 'abacus' cannot be used here .* Try 'cpu'"):
        Trainer(trainer().model, IDS, IDS, TrainConfig(), device="abacus")


@pytest.mark.gpu
def test_training_works_on_a_gpu_and_repeats_itself() -> None:
    def on_gpu() -> list[float]:
        gpt = trainer(model={"d_model": 20}).model
        config = TrainConfig(
            max_steps=60, batch_size=BATCH, learning_rate=1e-2, sample_every=30, eval_windows=5
        )
        some = Trainer(gpt, IDS[:400], IDS[400:], config, tokenizer=TOKENIZER, prompt="t", device="cuda")
        return losses(some)

    state = torch.cuda.get_rng_state()
    first, second = on_gpu(), on_gpu()
    assert first[-1] < 0.8 * first[0]
    assert first == pytest.approx(second, rel=1e-3)
    assert torch.equal(torch.cuda.get_rng_state(), state)
