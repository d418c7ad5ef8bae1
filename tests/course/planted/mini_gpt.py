"""Wrong answers to lesson 03's exercises."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from labkit import GPT, GPTConfig, TrainConfig, Trainer
from labkit.analysis import evaluate_loss
from labkit.text import WindowDataset
from labkit.training import Step
from planted import planted


@planted("loaded_die", "losses in nats")
def gives_the_losses() -> tuple[float, float, float]:
    return 1.498, 1.792, 2.034


@planted("loaded_die", "losses in bits")
def gives_the_losses_in_bits() -> tuple[float, float, float]:
    return 2.161, 2.585, 2.935


@planted("loaded_die", "from nats back goes e")
def takes_nats_for_bits() -> tuple[float, float, float]:
    return 2**1.498, 2**1.792, 2**2.034


@planted("loaded_die", "No perplexity is below 1")
def turns_them_upside_down() -> tuple[float, float, float]:
    return 1 / math.sqrt(20), 1 / 6, 0.13


@planted("loaded_die", "averaged 1/p over the throws")
def averages_one_over_p() -> tuple[float, float, float]:
    return 0.5 * 2 + 0.5 * 10, 6, 1 / 6 * 2 + 5 / 6 * 10


@planted("loaded_die", "averaged the probabilities")
def averages_p() -> tuple[float, float, float]:
    return 1 / (0.5 * 0.5 + 0.5 * 0.1), 6, 1 / (0.5 / 6 + 0.5 / 6)


@planted("loaded_die", "Case 2")
def judges_the_die_and_not_the_model() -> tuple[float, float, float]:
    return math.sqrt(20), math.sqrt(20), 6


@planted("loaded_die", "but the throws are others")
def perplexity_belongs_to_the_model() -> list[float]:
    return [math.sqrt(20), 6, math.sqrt(20)]


@planted("loaded_die", "but the model does not know")
def a_fair_die_has_six() -> list[float]:
    return [math.sqrt(20), 6, 6]


def _count(v: int, t: int, d: int, n: int, *, bias: int = 1, norms: int = 2, last: int = 2) -> int:
    block = 12 * d * d + bias * 9 * d + norms * 2 * d
    return v * d + t * d + n * block + last * d


@planted("gpt_parameters", "the biases: every linear layer")
def forgets_the_biases(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n, bias=0)


@planted("gpt_parameters", "one table counted once")
def counts_the_tied_table_twice(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) + v * d


@planted("gpt_parameters", "the last norm, between")
def forgets_the_last_norm(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n, last=0)


@planted("gpt_parameters", "the table of positions")
def forgets_positions(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) - t * d


@planted("gpt_parameters", "it scales and it shifts")
def one_vector_in_the_last_norm(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n, last=1)


@planted("gpt_parameters", "an attention matrix: queries")
def forgets_the_output_projection(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) - n * d * d


@planted("gpt_parameters", "the biases of the MLP")
def forgets_the_biases_of_the_mlp(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) - n * 5 * d


@planted("gpt_parameters", "a bias too long")
def gives_both_layers_of_the_mlp_a_bias_of_4d(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) + n * 3 * d


@planted("gpt_parameters", "the biases of attention are as many")
def forgets_the_biases_of_attention(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) - n * 4 * d


@planted("gpt_parameters", "it has two norms")
def one_norm_in_a_block(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n, norms=1)


@planted("gpt_parameters", "half of all the norms")
def norms_that_only_scale(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n, norms=1, last=1)


@planted("gpt_parameters", "a layer of attention")
def forgets_the_output_layer_of_attention(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) - n * (d * d + d)


@planted("gpt_parameters", "Which tensors does one block hold, of which")
def an_mlp_of_width_d(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) - n * (6 * d * d + 3 * d)


@planted("gpt_parameters", "the table of tokens")
def forgets_the_token_table(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) - v * d


@planted("gpt_parameters", "one matrix of the MLP")
def forgets_the_way_down(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) - n * 4 * d * d


@planted("gpt_parameters", "one layer of the MLP")
def gives_the_mlp_one_layer(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n) - n * (4 * d * d + d)


@planted("gpt_parameters", "the biases and the norms of all blocks")
def counts_only_matrices_in_blocks(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n, bias=0, norms=0)


@planted("gpt_parameters", "all that is no matrix")
def counts_only_matrices(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, n, bias=0, norms=0, last=0)


@planted("gpt_parameters", "all blocks but one")
def counts_one_block(v: int, t: int, d: int, n: int) -> int:
    return _count(v, t, d, 1)


@planted("gpt_batch", "very token that it reads")
def target_is_input(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    inputs = ids[starts[:, None] + torch.arange(context)]
    return inputs, inputs.clone()


@planted("gpt_batch", "the first token of its own window")
def rolls_the_other_way(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    inputs = ids[starts[:, None] + torch.arange(context)]
    return inputs, inputs.roll(-1, dims=1)


@planted("gpt_batch", "may look there: are the targets shifted the wrong way")
def targets_begin_one_earlier(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    places = starts[:, None] + torch.arange(context)
    return ids[places], ids[places - 1]


@planted("gpt_batch", "two places on")
def shifts_twice(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    places = starts[:, None] + torch.arange(context)
    return ids[places], ids[(places + 2) % len(ids)]


@planted("gpt_batch", "each input has a target")
def cuts_a_window_that_is_too_short(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    windows = ids[starts[:, None] + torch.arange(context)]
    return windows[:, :-1], windows[:, 1:]


@planted("gpt_batch", "is the right axis shifted")
def rolls_the_batch(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    inputs = ids[starts[:, None] + torch.arange(context)]
    return inputs, inputs.roll(-1, dims=0)


@planted("gpt_batch", "no longer the tokens that begin at starts")
def moves_the_inputs_instead(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    places = starts[:, None] + torch.arange(context)
    return ids[places - 1], ids[places]


@planted("reheat", "after the softmax")
def divides_the_probabilities(probabilities: Tensor, temperature: float) -> Tensor:
    return probabilities / temperature


@planted("reheat", "the sum took it out again")
def divides_and_normalises(probabilities: Tensor, temperature: float) -> Tensor:
    divided = probabilities / temperature
    return divided / divided.sum(-1, keepdim=True)


@planted("reheat", "a softmax of probabilities")
def softmax_twice(probabilities: Tensor, temperature: float) -> Tensor:
    return (probabilities / temperature).softmax(-1)


@planted("reheat", "a softmax of probabilities")
def takes_a_softmax_of_the_powers(probabilities: Tensor, temperature: float) -> Tensor:
    return probabilities.pow(1 / temperature).softmax(-1)


@planted("reheat", "are these still logarithms")
def returns_logarithms(probabilities: Tensor, temperature: float) -> Tensor:
    return (probabilities.log() / temperature).log_softmax(-1)


@planted("reheat", "logarithm to base 2")
def takes_the_logarithm_to_base_2(probabilities: Tensor, temperature: float) -> Tensor:
    return (probabilities.log2() / temperature).softmax(-1)


@planted("reheat", "the wrong way")
def multiplies_the_logits(probabilities: Tensor, temperature: float) -> Tensor:
    return (probabilities.log() * temperature).softmax(-1)


@planted("reheat", "over the wrong axis")
def forgets_to_normalise(probabilities: Tensor, temperature: float) -> Tensor:
    return probabilities ** (1 / temperature)


@planted("reheat", "was a small number added")
def adds_a_small_number(probabilities: Tensor, temperature: float) -> Tensor:
    return ((probabilities + 1e-8).log() / temperature).softmax(-1)


@planted("reheat", "what is 0 times -inf")
def nan_for_what_was_cut_off(probabilities: Tensor, temperature: float) -> Tensor:
    logits = (probabilities * probabilities.log()) / probabilities / temperature
    return logits.softmax(-1)


def _loss(model: GPT, ids: Tensor) -> float:
    windows = WindowDataset(ids, model.config.context_length)
    return evaluate_loss(model, *next(windows.batches(len(windows))))


def _trained(
    train_ids: Tensor, vocab_size: int, context: int, steps: int, batch_size: int
) -> tuple[GPT, list[Step]]:
    config = GPTConfig(vocab_size=vocab_size, context_length=context, d_model=32, n_layers=1, n_heads=4)
    settings = TrainConfig(max_steps=steps, batch_size=batch_size, learning_rate=1e-2, eval_every=0)
    trainer = Trainer(model := GPT(config), train_ids, train_ids, settings, device="cpu")
    return model, [event for event in trainer.events() if isinstance(event, Step)]


Rows = dict[int, Any]


@planted("context_race", "for that alone")
def same_batch_for_every_context(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Iterable[int], steps: int
) -> Rows:
    rows = {}
    for context in contexts:
        torch.manual_seed(0)
        model, events = _trained(train_ids, vocab_size, context, steps, 12)
        rows[context] = (events[-1].tokens, _loss(model, val_ids))
    return rows


@planted("context_race", "the loss on the training text")
def reports_the_training_loss(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Iterable[int], steps: int
) -> Rows:
    rows = {}
    for context in contexts:
        torch.manual_seed(0)
        model, events = _trained(train_ids, vocab_size, context, steps, 384 // context)
        rows[context] = (events[-1].tokens, _loss(model, train_ids))
    return rows


@planted("context_race", "were all of its tokens judged")
def judges_the_first_windows(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Iterable[int], steps: int
) -> Rows:
    rows = {}
    for context in contexts:
        torch.manual_seed(0)
        model, events = _trained(train_ids, vocab_size, context, steps, 384 // context)
        some = next(WindowDataset(val_ids, context).batches(128, limit=128))
        rows[context] = (events[-1].tokens, evaluate_loss(model, *some))
    return rows


@planted("context_race", "Batches may differ in size")
def averages_the_means_of_unequal_batches(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Iterable[int], steps: int
) -> Rows:
    rows = {}
    for context in contexts:
        torch.manual_seed(0)
        model, events = _trained(train_ids, vocab_size, context, steps, 384 // context)
        means = [evaluate_loss(model, *batch) for batch in WindowDataset(val_ids, context).batches(100)]
        rows[context] = (events[-1].tokens, sum(means) / len(means))
    return rows


@planted("context_race", "the tokens shown come first")
def turns_the_pair_around(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Sequence[int], steps: int
) -> Rows:
    return dict.fromkeys(contexts, (1.5, 384 * steps))


@planted("context_race", "is it a perplexity")
def reports_perplexities(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Iterable[int], steps: int
) -> Rows:
    rows = {}
    for context in contexts:
        torch.manual_seed(0)
        model, events = _trained(train_ids, vocab_size, context, steps, 384 // context)
        rows[context] = (events[-1].tokens, math.exp(_loss(model, val_ids)))
    return rows


@planted("context_race", "more context did not help")
def measures_before_training(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Iterable[int], steps: int
) -> Rows:
    rows = {}
    for context in contexts:
        config = GPTConfig(vocab_size=vocab_size, context_length=context, d_model=32, n_layers=1, n_heads=4)
        rows[context] = (steps * 384, _loss(GPT(config), val_ids))
    return rows


@planted("context_race", "does it see more than one")
def one_model_for_all_contexts(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Sequence[int], steps: int
) -> Rows:
    torch.manual_seed(0)
    model, events = _trained(train_ids, vocab_size, max(contexts), steps, 384 // max(contexts))
    return dict.fromkeys(contexts, (events[-1].tokens, _loss(model, val_ids)))


@planted("context_race", "begin from the same seed")
def seeds_once_before_the_loop(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Iterable[int], steps: int
) -> Rows:
    rows = {}
    torch.manual_seed(0)
    for context in contexts:
        model, events = _trained(train_ids, vocab_size, context, steps, 384 // context)
        rows[context] = (events[-1].tokens, _loss(model, val_ids))
    return rows


@planted("context_race", "Each value must be two numbers")
def leaves_out_what_was_shown(
    train_ids: Tensor, val_ids: Tensor, vocab_size: int, contexts: Iterable[int], steps: int
) -> Rows:
    return dict.fromkeys(contexts, 1.5)
