"""Checks of lesson 03's exercises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labcourse.check import Answer, expect, is_number
from labkit import GPT, GPTConfig


def loaded_die(answer: Answer) -> str:
    given = answer()
    expect(
        isinstance(given, Sequence | Tensor | np.ndarray) and not isinstance(given, str) and len(given) == 3,
        "Return three numbers, a perplexity for each of the three cases.",
    )
    expect(all(map(is_number, given)), "Each of the three answers must be a number.")
    right, fair, misled = (float(each) for each in given)
    entropy = 0.5 * math.log(2) + 0.5 * math.log(10)  # of the loaded die, in nats
    for unit, nats in (("nats", 1.0), ("bits", math.log(2))):
        in_unit = _close(right, entropy / nats) or _close(fair, math.log(6) / nats)
        expect(not in_unit, f"Those are losses in {unit}: how does a perplexity come from a loss?")
    expect(
        min(right, fair, misled) >= 1,
        f"No perplexity is below 1, and here is {min(right, fair, misled):.2f}: is a sign wrong, or a "
        "fraction upside down?",
    )
    expect(
        not _close(fair, 2 ** math.log(6)),
        "You took a natural logarithm of the probabilities and then a power of 2: from nats back goes e.",
    )
    expect(
        _close(fair, 6),
        f"Case 2: {fair:.2f}. This model gives every face the same probability, so its loss is the same "
        "whatever is thrown.",
    )
    expect(
        not _close(right, 6),
        "Case 1: you averaged 1/p over the throws. Average the logarithms, then take the exponential.",
    )
    expect(
        not _close(right, 1 / 0.3),
        "Case 1: you averaged the probabilities. The mean is taken of their logarithms.",
    )
    expect(
        right < 6,
        f"Case 1: {right:.2f} is more than the model that knows nothing gets, and this one knows the die.",
    )
    expect(
        _close(right, math.exp(entropy)),
        f"Case 1: {right:.2f} is not it. How large is -ln p at a six, how large at another face, and how "
        "often does each happen?",
    )
    expect(
        not _close(misled, right),
        "Case 3: the model is that of case 1, but the throws are others: how often does a six come now?",
    )
    expect(
        not _close(misled, 6),
        "Case 3: the die is fair, but the model does not know: what probability does it give to a four?",
    )
    truth = math.exp((math.log(2) + 5 * math.log(10)) / 6)
    expect(
        _close(misled, truth),
        f"Case 3: {misled:.2f} is not it. The faces come as the fair die throws them; each costs what the "
        "model of case 1 says.",
    )
    return "To be sure and wrong (case 3) costs more than to know nothing (case 2)."


def gpt_parameters(answer: Answer) -> str:
    for vocab_size, context_length, d, n_layers in ((11, 17, 6, 3), (5, 13, 4, 2), (50257, 1024, 768, 12)):
        given = answer(vocab_size, context_length, d, n_layers)
        expect(is_number(given), "Return one number.")
        true = 124_439_808 if d == 768 else _built(vocab_size, context_length, d, n_layers)
        off = round(float(given)) - true
        likely = _forgotten(vocab_size, context_length, d, n_layers).get(off)
        where = f"V={vocab_size:,}, T={context_length:,}, d={d}, L={n_layers}: {float(given):,.0f}"
        expect(likely is None, f"{where} is off by exactly {likely}.")
        expect(
            off == 0,
            f"{where} is too {'many' if off > 0 else 'few'}. Which tensors does one block hold, of which "
            "shapes?",
        )
    return "A block has 12 d² + 13 d: twice the width is four times as many, twice the depth twice as many."


def _built(vocab_size: int, context_length: int, d_model: int, n_layers: int) -> int:
    config = GPTConfig(
        vocab_size=vocab_size, context_length=context_length, d_model=d_model, n_layers=n_layers, n_heads=2
    )
    return GPT(config).num_parameters()


def _forgotten(vocab_size: int, context_length: int, d: int, n_layers: int) -> dict[int, str]:
    """What a count is off by, and what that is likely to be."""
    return {
        -vocab_size * d: "the table of tokens: one vector for each of them, used at both ends",
        vocab_size * d: "the output matrix: it is the token embedding itself, one table counted once",
        -context_length * d: "the table of positions: one vector for each place",
        -2 * d: "the last norm, between the blocks and the output",
        -d: "one of the vectors of the last norm: it scales and it shifts",
        -n_layers * 9 * d: "the biases: every linear layer of a block has one for each feature it writes",
        -n_layers * 5 * d: "the biases of the MLP: its first layer writes 4 d features, its second d",
        n_layers * 3 * d: "a bias too long: the second layer of the MLP writes d features, not 4 d",
        -n_layers * 4 * d: "4 d in each block: the biases of attention are as many, and so are its two norms",
        -n_layers * 2 * d: "2 d in each block: it has two norms, and each has two vectors",
        -(n_layers * 2 + 1) * d: "half of all the norms: each scales and shifts",
        -n_layers * 4 * d - 2 * d: "all the norms: each has two vectors",
        -n_layers * d * d: "an attention matrix: queries, keys, values, and one for the output",
        -n_layers * (d * d + d): "a layer of attention: queries, keys, values, and one for the output",
        -n_layers * 4 * d * d: "one matrix of the MLP: it has two, up to 4 d features and down again",
        -n_layers * (4 * d * d + d): "one layer of the MLP: it has two, up to 4 d features and down again",
        -n_layers * 13 * d: "the biases and the norms of all blocks",
        -n_layers * 13 * d - 2 * d: "all that is no matrix: the biases, and two vectors in each norm",
        -(n_layers - 1) * (12 * d * d + 13 * d): "all blocks but one: each has tensors of its own",
        vocab_size: "a bias of the output layer: it has none here",
    }


def gpt_batch_stub(ids: Tensor, starts: Tensor, context: int) -> tuple[Tensor, Tensor]:
    places = starts[:, None] + torch.arange(context)  # (batch, context)
    inputs = ids[places]
    targets = inputs.roll(1, dims=1)
    return inputs, targets


def gpt_batch(answer: Answer) -> str:
    ids = torch.randperm(41)  # no token twice, so that each one tells where it comes from
    for starts, context in ((torch.tensor([4, 0, 19]), 6), (torch.tensor([35, 11]), 5)):
        pair = answer(ids, starts, context)
        expect(
            isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(x, Tensor) for x in pair),
            "Return two tensors, inputs and targets.",
        )
        inputs, targets = pair
        shape = (len(starts), context)
        expect(
            inputs.shape == shape and targets.shape == shape,
            f"Inputs have shape {tuple(inputs.shape)} and targets {tuple(targets.shape)}, not both {shape}: "
            "each input has a target, the last one too.",
        )
        read = torch.stack([ids[start : start + context] for start in starts.tolist()])
        expect(torch.equal(inputs, read), "The inputs are no longer the tokens that begin at starts.")
        expect(
            not torch.equal(targets, inputs),
            "Position 3 is asked for the very token that it reads: to repeat it is enough.",
        )
        expect(
            not torch.equal(targets[:, 1:], inputs[:, :-1]),
            "Position 3 is asked for what position 2 read, and it may look there: are the targets shifted "
            "the wrong way?",
        )
        expect(
            not torch.equal(targets[:, :-2], inputs[:, 2:]),
            "Position 3 is asked for the token two places on, not the next: shifted once too often?",
        )
        expect(
            torch.equal(targets[:, :-1], inputs[:, 1:]),
            "The targets are not the tokens that follow the inputs: is the right axis shifted?",
        )
        expect(
            not torch.equal(targets[:, -1], inputs[:, 0]),
            "The last position is asked for the first token of its own window: what falls out at one end of "
            "a roll comes back at the other.",
        )
        expect(
            torch.equal(targets[:, -1], ids[starts + context]),
            "The last target of a window is not the token that follows it in the text.",
        )
    return "Nothing in the shapes could tell: only the tokens themselves show such a leak."


def reheat(answer: Answer) -> str:
    probabilities = torch.randn(3, 7).mul(2).softmax(-1)
    probabilities[0, 2] = probabilities[2, 5] = 0
    probabilities /= probabilities.sum(-1, keepdim=True)
    for temperature in (0.5, 3.0, 1.0):
        given = answer(probabilities, temperature)
        expect(isinstance(given, Tensor) and given.is_floating_point(), "Return a tensor of probabilities.")
        expect(given.shape == (3, 7), f"The shape (3, 7) became {tuple(given.shape)}: keep each place.")
        expect(not given.isnan().any(), "There is a NaN. The logarithm of 0 is -inf: what is 0 times -inf?")
        expect(not (given < 0).any(), "No probability is negative: are these still logarithms?")
        if temperature != 1:
            _reheat_mistakes(given, probabilities, temperature)
        expect(
            torch.allclose(given.sum(-1), torch.ones(3), atol=1e-4),
            "The rows do not sum to 1: is something not divided by its sum, or over the wrong axis?",
        )
        expect(
            not given[probabilities == 0].any(),
            "A token of probability 0 came back: was a small number added before the logarithm, or "
            "its -inf replaced?",
        )
        powers = probabilities.pow(1 / temperature)
        expect(
            torch.allclose(given, powers / powers.sum(-1, keepdim=True), atol=1e-5),
            f"The rows sum to 1, but at temperature {temperature} they are others. What are the logits, up "
            "to a constant, once you have the probabilities?",
        )
    return "The odds of two tokens, p/q, are raised to the power 1/temperature: their order never changes."


def _reheat_mistakes(given: Tensor, probabilities: Tensor, temperature: float) -> None:
    def is_one_of(*mistakes: Tensor) -> bool:
        return any(torch.allclose(given, each, atol=1e-5) for each in mistakes)

    divided = probabilities / temperature
    expect(
        not is_one_of(divided),
        "You divided the probabilities by the temperature, after the softmax: all of them alike, so that "
        "nothing but their sum changes.",
    )
    expect(
        not is_one_of(probabilities),
        f"At temperature {temperature} they are what they were. If you divided them all, the sum took it "
        "out again.",
    )
    expect(
        not is_one_of(divided.softmax(-1), probabilities.pow(1 / temperature).softmax(-1)),
        "You took a softmax of probabilities: they are no logits, and the result is almost flat.",
    )
    flipped = probabilities.pow(temperature)
    expect(
        not is_one_of(flipped, flipped / flipped.sum(-1, keepdim=True)),
        f"Temperature {temperature} works the wrong way: below 1 the likeliest token should gain.",
    )
    for base in (2, 10):
        powers = probabilities.pow(1 / (temperature * math.log(base)))
        expect(
            not is_one_of(powers / powers.sum(-1, keepdim=True)),
            f"A softmax raises e to its logits, and you took the logarithm to base {base}.",
        )


def _close(value: float, other: float) -> bool:
    return math.isclose(value, other, rel_tol=0.01)


def context_race(answer: Answer) -> str:
    vocab, steps, short, long = 7, 25, 1, 12
    train, held_out = _lagged(3000, vocab), _lagged(700, vocab)
    rows = _race(answer(train, held_out, vocab, (short, long), steps), short, long)
    shown, losses = ({context: row[part] for context, row in rows.items()} for part in (0, 1))
    expect(max(losses.values()) < steps, "In each pair the tokens shown come first, then the loss.")
    expect(
        shown[short] == shown[long],
        f"By your own account context {short} was shown {shown[short]:,.0f} tokens and context {long} "
        f"{shown[long]:,.0f}: the one that read more may be ahead for that alone.",
    )
    expect(
        shown[long] == 384 * steps,
        f"Each was shown {shown[long]:,.0f} tokens, and {steps} steps of 384 are {384 * steps:,}.",
    )
    blind = math.log(vocab)
    expect(
        max(losses.values()) < 1.25 * blind,
        f"{max(losses.values()):.2f} is far above ln {vocab} = {blind:.2f}, which a blind guess costs: is it "
        "a perplexity, or in bits?",
    )
    text = "On a text in which each token hangs on the one two places back,"
    expect(
        losses[short] > blind - 0.1,
        f"{text} a model that sees one token knows nothing. Yours got {losses[short]:.2f}, below "
        f"ln {vocab} = {blind:.2f}: does it see more than one?",
    )
    expect(
        losses[long] < losses[short] - 0.2,
        f"{text} more context did not help: are these the losses of models trained at the rate asked for?",
    )
    noise = torch.randint(vocab, (700,))
    unseen = _race(answer(train, noise, vocab, (long,), steps), long)[long][1]
    expect(
        unseen > blind - 0.1,
        f"On held-out ids that are pure noise you report {unseen:.2f}, and nobody gets below ln {vocab} = "
        f"{blind:.2f} there: is it the loss on the training text?",
    )
    alone = _race(answer(train, held_out, vocab, (long,), steps), long)[long][1]
    expect(
        abs(alone - losses[long]) < 5e-3,
        f"Context {long} gets {losses[long]:.3f} when it comes second and {alone:.3f} when it runs alone: "
        "does each model begin from the same seed?",
    )
    part = len(held_out) // 3  # with context 1 each token but the first is one window
    few = [
        _race(answer(train, ids, vocab, (short,), 2), short)[short][1]
        for ids in (held_out[: part + 1], held_out[part:], held_out)
    ]
    together = (part * few[0] + (len(held_out) - 1 - part) * few[1]) / (len(held_out) - 1)
    expect(
        abs(together - few[2]) < 1e-4,
        f"Two parts of a held-out text get {together:.5f} together, and the whole text {few[2]:.5f}: "
        "were all of its tokens judged, each as much as any other? Batches may differ in size.",
    )
    return "Mind one thing more: a short window has a larger share of places that have seen next to nothing."


def _lagged(length: int, vocab: int) -> Tensor:
    """Ids of which nine in ten repeat the one two places back; the others are drawn at random."""
    ids = torch.randint(vocab, (length,)).tolist()
    for place, repeats in enumerate((torch.rand(length) < 0.9).tolist()):
        if repeats and place > 1:
            ids[place] = ids[place - 2]
    return torch.tensor(ids)


def _race(rows: Any, *contexts: int) -> dict[int, tuple[float, float]]:
    expect(
        isinstance(rows, dict) and set(rows) == set(contexts),
        f"Asked for the contexts {contexts}, return a dict with just these as keys.",
    )
    for row in rows.values():
        pair = isinstance(row, tuple | list) and len(row) == 2 and all(map(is_number, row))
        expect(pair, "Each value must be two numbers: (tokens shown, held-out loss).")
    return {context: (float(shown), float(loss)) for context, (shown, loss) in rows.items()}
