"""Checks of lesson 04's exercises."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labcourse.check import Answer, expect, is_number
from labkit.config import GPTConfig, TrainConfig
from labkit.model import GPT
from labkit.text import CharTokenizer
from labkit.training import Step, Trainer, save_checkpoint

LETTERS = CharTokenizer("\nabcdefghijk")


def tokenizer_winner(answer: Answer) -> str:
    for trained in (
        {"characters": (1.90, 1.0), "pieces": (4.80, 2.94)},
        {"words": (7.00, 5.2), "bytes": (1.20, 1.0), "pieces": (4.90, 3.1)},
    ):
        pair = answer(trained)
        expect(
            isinstance(pair, tuple | list) and len(pair) == 2,
            f"Return a pair: a name and its bits per byte. This is {pair!r}.",
        )
        name, found = pair
        expect(
            str(name) in trained, f"The first of the two must be one of {', '.join(trained)}. It is {name!r}."
        )
        expect(is_number(found), f"The second of the two must be a number. It is {found!r}.")
        found = float(found)
        nats, size = trained[name]
        bits = nats / math.log(2)
        for wrong, why in {
            nats / size: "is nats per byte: a bit is ln 2 nats.",
            bits: f"is bits per token: {name} have {size} bytes a token.",
            bits * size: "grows with the bytes of a token: they share its bits among them.",
        }.items():
            expect(size == 1.0 or not math.isclose(found, wrong, rel_tol=1e-3), f"{found:.3f} {why}")
        right = {each: loss / math.log(2) / length for each, (loss, length) in trained.items()}
        if right[name] > min(right.values()):
            expect(
                nats > min(loss for loss, _ in trained.values()),
                f"{name} have the lowest loss per token, and so the lowest perplexity. But their tokens "
                f"spell {size} bytes each, so less is predicted at once. Fewest bits per byte win.",
            )
            expect(
                size < max(length for _, length in trained.values()),
                f"{name} have the longest tokens. That alone does not win: compare the losses per byte.",
            )
            expect(False, f"{name} do not need the fewest bits per byte of {', '.join(trained)}.")
        expect(
            math.isclose(found, right[name], rel_tol=1e-2),
            f"{found:.3f} are not the bits per byte of {name}: one division by ln 2, one by bytes per token?",
        )
    return "In the example of the text the winner has a perplexity of 122, the loser one of 7."


WHERE = {
    "A": "What of evaluating would train? See in `_evaluate` whether anything is drawn or any gradient kept.",
    "B": "Which rate does the cosine give to step 3 of 6, and which to step 3 of 12?",
    "C": "From which generator does `sample` draw, and what does `_train_step` draw from?",
    "D": "Look at `_backward`: the seed is set once per step. Which rows of the batch meet which dropout?",
    "E": "Look at `_backward`: where do a step's dropout and its crops come from?",
}


def _trained_weights(config: TrainConfig, *, disturbed: bool = False) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        text = torch.randint(LETTERS.vocab_size, (300,))
        shape = GPTConfig(
            vocab_size=LETTERS.vocab_size, context_length=7, d_model=12, n_layers=1, n_heads=2, dropout=0.2
        )
        trainer = Trainer(GPT(shape), text, text, config, tokenizer=LETTERS, prompt="a", device="cpu")
        steps = (event for event in trainer.events() if isinstance(event, Step))
        for _ in itertools.islice(steps, 6):
            if disturbed:
                torch.rand(100)
        return torch.cat([each.detach().flatten() for each in trainer.model.parameters()])


@cache
def _unchanged_trainings() -> set[str]:
    threads = torch.get_num_threads()
    plain = TrainConfig(max_steps=6, batch_size=6, eval_every=0, precision="fp32", threads=threads, seed=3)
    weights = _trained_weights(plain)
    trained = {
        "A": _trained_weights(replace(plain, eval_every=2)),
        "B": _trained_weights(replace(plain, max_steps=12)),
        "C": _trained_weights(replace(plain, sample_every=2, sample_tokens=4)),
        "D": _trained_weights(replace(plain, micro_batch_size=3)),
        "E": _trained_weights(plain, disturbed=True),
    }
    return {letter for letter, changed in trained.items() if torch.equal(weights, changed)}


def same_training(answer: Answer) -> str:
    letters = answer()
    expect(isinstance(letters, str | list | tuple | set), 'Return letters, such as "AB".')
    found = set("".join(map(str, letters)).upper()) - set(", ")
    expect(found <= set(WHERE), f"The letters are A to E. These are {letters!r}.")
    same = _unchanged_trainings()
    for letter, where in WHERE.items():
        seen = "the same bit for bit" if letter in same else "others"
        expect(
            (letter in found) == (letter in same),
            f"{letter}: trained here with the change and without, the weights are {seen}. {where}",
        )
    return "That is not a promise of the text: the check has trained them all."


def accumulated_gradient_stub(
    model: nn.Module, inputs: Tensor, targets: Tensor, size: int, clip: float
) -> float:
    total = 0.0
    for x, y in zip(inputs.split(size), targets.split(size), strict=True):
        model.zero_grad()
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        total += loss.item()
    return total


def accumulated_gradient(answer: Answer) -> str:
    torch.manual_seed(8)
    model = nn.Sequential(nn.Embedding(11, 5), nn.Linear(5, 11)).double()
    first = {name: each.clone() for name, each in model.state_dict().items()}
    sizes, waiting = [0], [0]  # sequences in each pass; passes that wait for their backward

    def passed(_: nn.Module, given: tuple[Tensor], logits: Tensor) -> None:
        sizes.append(len(given[0]))
        if logits.requires_grad:
            waiting.append(waiting[-1] + 1)
            logits.register_hook(lambda _: waiting.append(0))

    model.register_forward_hook(passed)

    def ask(x: Tensor, y: Tensor, size: int, clip: float) -> float:
        sizes[:], waiting[:] = [0], [0]
        loss: float = answer(model, x, y, size, clip)
        about = f"With size={size}"
        expect(max(sizes) <= size, f"{about} the model is given {max(sizes)} sequences at once.")
        expect(
            max(waiting) <= 1,
            f"{about} the activations of {max(waiting)} parts are in memory at once: when is each part's "
            "backward?",
        )
        moved = any(not torch.equal(each, first[name]) for name, each in model.state_dict().items())
        expect(not moved, "The weights have moved. The optimizer's step comes after this function.")
        return loss

    def gradient() -> Tensor:
        found = [each.grad.flatten() for each in model.parameters() if each.grad is not None]
        expect(found, "No gradient is left in the model: is zero_grad called after backward?")
        return torch.cat(found)

    def whole(x: Tensor, y: Tensor) -> tuple[float, Tensor]:
        model.zero_grad()
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        return loss.item(), gradient()

    def same_direction(one: Tensor, other: Tensor) -> bool:
        return bool(F.cosine_similarity(one, other, dim=0) > 0.9999)

    x, y = torch.randint(11, (2, 6, 7))
    (_, last), (_, right) = whole(x[-2:], y[-2:]), whole(x, y)
    model.zero_grad()
    ask(x, y, 2, 1e6)
    found = gradient()
    expect(
        not same_direction(found, last),
        "Of a batch of 6 in parts of 2 only the last part's gradient is left. What empties it, how often?",
    )
    times = (found.norm() / right.norm()).item()
    about = f"With 3 equal parts the gradient is {times:.2f} times as long as the whole batch's"
    expect(
        not (same_direction(found, right) and times > 1.01),
        f"{about}. Each part's loss is a mean over that part alone: what is the sum of three means?",
    )
    expect(not (same_direction(found, right) and times < 0.99), f"{about}: is it divided twice?")
    expect(torch.allclose(found, right), "With 3 equal parts the gradient is not that of the whole batch.")
    ask(x, y, 2, 1e6)
    expect(
        torch.allclose(gradient(), right),
        "Called a second time, it gives another gradient: what the step before left is still in there.",
    )
    x, y = torch.randint(11, (2, 7, 9))
    right_loss, right = whole(x, y)
    loss = ask(x, y, 3, 1e6)
    expect(
        torch.allclose(gradient(), right),
        "Equal parts are right now. But 7 sequences in parts of 3 leave one alone, and it must not count as "
        "much as three: what share of all targets does each part hold?",
    )
    ask(x, y, 3, 0.05)
    norm = gradient().norm().item()
    expect(math.isclose(norm, 0.05, rel_tol=1e-3), f"With clip=0.05 the gradient's norm is {norm:.3f}.")
    expect(
        torch.allclose(gradient(), 0.05 * right / right.norm(), rtol=1e-4),
        "With clip=0.05 the gradient points elsewhere: sums of clipped parts are not the clipped sum.",
    )
    expect(isinstance(loss, int | float), f"Return `loss.item()`s added up, not a {type(loss).__name__}.")
    expect(
        math.isclose(loss, right_loss, rel_tol=1e-6),
        f"The gradients are right. But the mean loss over all targets is {right_loss:.3f}, not {loss:.3f}.",
    )
    return "The Trainer weighs by targets instead of sequences, since padded ones do not count."


def _checkpoints() -> Iterator[tuple[str, Path, int]]:
    """Of two small trainings: the optimizer's name, a checkpoint and its model's number of parameters."""
    text = torch.randint(13, (200,))
    threads = torch.get_num_threads()
    adamw = TrainConfig(max_steps=1, batch_size=3, eval_every=0, precision="fp32", threads=threads)
    for config in (adamw, replace(adamw, optimizer="muon")):
        model = GPT(GPTConfig(vocab_size=13, context_length=7, d_model=12, n_layers=2, n_heads=2))
        trainer = Trainer(model, text, text, config, device="cpu")
        list(trainer.events())
        with tempfile.TemporaryDirectory() as folder:
            path = save_checkpoint(Path(folder) / "last", model, 1, state=trainer.state())
            yield config.optimizer, path, model.num_parameters()


def optimizer_numbers(answer: Answer) -> str:
    seen = {}
    for optimizer, path, parameters in _checkpoints():
        state = torch.load(path / "state.pt", weights_only=True)
        tensors = list(_tensors(state["optimizer"]))
        large, all_of_them = (sum(each.numel() for each in tensors if each.ndim >= least) for least in (1, 0))
        in_file = sum(each.numel() for each in _tensors(state))
        found = answer(path)
        expect(is_number(found), f"Return a number, not {type(found).__name__}.")
        found = round(float(found))
        about = f"For a checkpoint of {optimizer} you count {found:,} numbers: "
        expect(found != 0, about + "are there dictionaries within lists within dictionaries?")
        expect(
            found not in (len(tensors), sum(each.ndim > 0 for each in tensors)),
            about + "that is how many tensors there are. How many numbers does each hold?",
        )
        expect(
            optimizer == "muon" or found > 1.5 * parameters,
            about + f"the model has {parameters:,}, and AdamW keeps more than one average of each.",
        )
        expect(
            optimizer == "adamw" or abs(found - 2 * parameters) > 100,
            about + "twice the parameters. That is arithmetic for AdamW; measure what is in the file.",
        )
        expect(
            found not in (4 * large, 4 * all_of_them),
            about + "these are bytes. A number in float32 takes four of them.",
        )
        size = (path / "state.pt").stat().st_size
        expect(found not in (size, size // 4), about + "that is the size of the file, and more is in it.")
        expect(
            found <= in_file,
            about
            + f"all tensors of the file together hold {in_file:,}. Is it the file in `folder` that you read?",
        )
        expect(
            not all_of_them < found < all_of_them + 200,
            about + "a few more than its tensors hold. Settings such as rates are not counted.",
        )
        expect(
            found <= all_of_them,
            about + 'that is more than it remembers. Only what lies under "optimizer" belongs to it.',
        )
        expect(
            found >= large,
            about + "too few. With Muon there are two optimizers, each with a state and names of its own.",
        )
        seen[optimizer] = large / parameters
    return (
        f"AdamW keeps {seen['adamw']:.2f} numbers per parameter, Muon with AdamW {seen['muon']:.2f} in the "
        "check's small model: Muon has one average of each matrix, AdamW two of everything."
    )


def _tensors(part: object) -> Iterator[Tensor]:
    if isinstance(part, Tensor):
        yield part
    elif isinstance(part, dict | list | tuple):
        for each in part.values() if isinstance(part, dict) else part:
            yield from _tensors(each)


CURVES = {
    "5.1 4.4 4.0 4.2 4.5 4.6 5.2 4.9": (2, (20, 40)),
    "5.0 4.0 4.1 3.9 4.0 3.8 3.9 4.0": (2, (50, 70)),
    "5.0 4.0 4.5 4.2 4.6 4.3 4.7 4.4": (3, (10, 40)),
    "5.0 4.0 4.0 4.0 4.1 4.2 4.2 4.3": (2, (10, 30)),
    "5.0 4.0 4.5 4.6 4.7 4.2 3.0 2.9": (3, (10, 40)),
    "5.0 4.6 4.3 4.1 4.0 3.9 3.8 3.7": (2, (70, 70)),
    "5.0 4.8 4.6 4.4 4.2 4.0 4.1 4.2": (3, (50, 70)),
    "10.9 10.7 10.8 10.9 10.6 10.5 10.9 10.9": (2, (10, 30)),
}
"""Held-out losses every 10 steps: patience, and the right answer."""
LEARNT = (5.0, 4.0, 3.0, 2.0, 2.1, 0.8, 0.6, 0.4)
"""The training loss, which is noisy, too."""
MISTAKES: tuple[dict[str, str], ...] = (
    {
        "best None": "How low must a loss be to be the best one so far, when it is the first?",
        "best 70": "Step 70 has the lowest training loss. Who would notice overfitting by that?",
        "best 60": "There the gap is widest. A gap also grows while both losses fall.",
        "best 0": "There the gap is narrowest. It grows as soon as the model learns, while both losses fall.",
        "best 40": "When you know that it has turned, the best weights lie behind you.",
        "best 2": "Return steps, as in the first place of a triple, not places in the list.",
        "best 4.0": "Return steps, not losses.",
        "stop 22": "Patience counts evaluations, and one comes every 10 steps.",
        "stop 30": "One bad evaluation may be chance: that is what the patience is for. You stop at the last "
        "of the bad ones, not at the first.",
        "stop 50": "One evaluation more than the patience allows, or one that was worse did not count.",
        "stop 70": "After the stop there is nothing left to look at.",
    },
    {"stop 40": "The bad ones must come in a row: what does a new best do to the count?"},
    {"stop 70": "Lower than the one before is not lower than the best."},
    {"best 30": "A loss equal to the best is not lower."},
    {"best 70": "The best lies after the stop: who stops there never sees it."},
    {"stop None": "It never stops, so that is the last evaluation."},
    {"stop 50": "It never stops: only two evaluations were not lower. What is its last one?"},
    {"stop 10": "The first loss is lower than none before it, so the first best is whatever it is."},
)
"""What each wrong step shows, curve by curve."""


def early_stopping(answer: Answer) -> str:
    for (losses, (patience, right)), mistakes in zip(CURVES.items(), MISTAKES, strict=True):
        held_out = [float(each) for each in losses.split()]
        history = [(10 * i, *pair) for i, pair in enumerate(zip(LEARNT, held_out, strict=True))]
        found = answer(history, patience)
        pair = isinstance(found, tuple | list) and len(found) == 2
        expect(pair, f"Return a tuple of two steps: the best, and the one where you stop. This is {found!r}.")
        said = [f"best {found[0]}", f"stop {found[1]}"]
        why = next((mistakes[each] for each in said if each in mistakes), "Go through it by hand.")
        expect(
            tuple(found) == right,
            f"Held-out losses {losses} at steps 0 to 70, patience {patience}: {', '.join(said)}? {why}",
        )
    return "On one of the curves it stops before a far better minimum. That is the price of stopping early."
