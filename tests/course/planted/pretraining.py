"""Wrong answers to lesson 04's exercises."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from labcourse.solutions import solution
from planted import planted

Trained = Mapping[str, tuple[float, float]]
History = Sequence[tuple[int, float, float]]


@planted("tokenizer_winner", "the lowest perplexity")
def compares_perplexities(trained: Trained) -> tuple[str, float]:
    winner = min(trained, key=lambda name: math.exp(trained[name][0]))
    return winner, trained[winner][0] / math.log(2) / trained[winner][1]


@planted("tokenizer_winner", "a bit is ln 2 nats")
def forgets_ln_2(trained: Trained) -> tuple[str, float]:
    winner, bits = solution("tokenizer_winner")(trained)
    return winner, bits * math.log(2)


@planted("tokenizer_winner", "bits per token")
def divides_by_tokens(trained: Trained) -> tuple[str, float]:
    winner, bits = solution("tokenizer_winner")(trained)
    return winner, bits * trained[winner][1]


@planted("tokenizer_winner", "grows with the bytes of a token")
def multiplies_by_bytes(trained: Trained) -> tuple[str, float]:
    winner, _ = solution("tokenizer_winner")(trained)
    return winner, trained[winner][0] / math.log(2) * trained[winner][1]


@planted("tokenizer_winner", "the longest tokens")
def prefers_long_tokens(trained: Trained) -> tuple[str, float]:
    winner = max(trained, key=lambda name: trained[name][1])
    return winner, trained[winner][0] / math.log(2) / trained[winner][1]


@planted("tokenizer_winner", "one division by ln 2")
def multiplies_by_ln_2(trained: Trained) -> tuple[str, float]:
    winner, bits = solution("tokenizer_winner")(trained)
    return winner, bits * math.log(2) ** 2


@planted("tokenizer_winner", "Fewest bits per byte win")
def takes_the_most_bits(trained: Trained) -> tuple[str, float]:
    bits = {name: loss / math.log(2) / size for name, (loss, size) in trained.items()}
    winner = max(bits, key=lambda name: bits[name])
    return winner, bits[winner]


@planted("same_training", "What of evaluating would train?")
def thinks_that_evaluation_disturbs() -> str:
    return "CE"


@planted("same_training", "Which rate does the cosine give")
def forgets_that_the_schedule_knows_its_end() -> set[str]:
    return {"A", "B", "C", "E"}


@planted("same_training", "From which generator does `sample` draw")
def thinks_that_samples_disturb() -> list[str]:
    return ["A", "E"]


@planted("same_training", "Which rows of the batch meet which dropout?")
def thinks_that_parts_are_the_whole() -> str:
    return "A, C, D, E"


@planted("same_training", "where do a step's dropout and its crops come from?")
def thinks_that_there_is_one_generator() -> str:
    return "AC"


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def _parts(inputs: Tensor, targets: Tensor, size: int) -> list[tuple[Tensor, Tensor, float]]:
    """Each part and its share of the batch."""
    pairs = zip(inputs.split(size), targets.split(size), strict=True)
    return [(x, y, len(x) / len(inputs)) for x, y in pairs]


@planted("accumulated_gradient", "only the last part's gradient is left")
def empties_between_the_parts(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> float:
    total = 0.0
    for inputs, targets, share in _parts(x, y, size):
        model.zero_grad()
        loss = _loss(model, inputs, targets) * share
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return total


@planted("accumulated_gradient", "what is the sum of three means?")
def does_not_divide(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> float:
    model.zero_grad()
    total = 0.0
    for inputs, targets, share in _parts(x, y, size):
        loss = _loss(model, inputs, targets)
        loss.backward()
        total += loss.item() * share
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return total


@planted("accumulated_gradient", "is it divided twice?")
def divides_twice(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> float:
    total = 0.0
    model.zero_grad()
    for inputs, targets, share in _parts(x, y, size):
        loss = _loss(model, inputs, targets) * share
        loss.backward()
        total += loss.item()
    for each in model.parameters():
        each.grad = each.grad * size / len(x) if each.grad is not None else None
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return total


@planted("accumulated_gradient", "what the step before left")
def never_empties(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> float:
    total = 0.0
    for inputs, targets, share in _parts(x, y, size):
        loss = _loss(model, inputs, targets) * share
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return total


@planted("accumulated_gradient", "leave one alone")
def counts_parts_alike(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> float:
    model.zero_grad()
    parts, total = _parts(x, y, size), 0.0
    for inputs, targets, _ in parts:
        loss = _loss(model, inputs, targets) / len(parts)
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return total


@planted("accumulated_gradient", "sums of clipped parts")
def clips_before_it_is_complete(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> float:
    model.zero_grad()
    total = 0.0
    for inputs, targets, share in _parts(x, y, size):
        loss = _loss(model, inputs, targets) * share
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        total += loss.item()
    return total


@planted("accumulated_gradient", "the mean loss over all targets is")
def returns_the_sum_of_the_losses(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> float:
    model.zero_grad()
    total = 0.0
    for inputs, targets, share in _parts(x, y, size):
        loss = _loss(model, inputs, targets)
        (loss * share).backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return total


@planted("accumulated_gradient", "`loss.item()`s added up")
def returns_a_tensor(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> Tensor:
    model.zero_grad()
    total = torch.zeros(())
    for inputs, targets, share in _parts(x, y, size):
        loss = _loss(model, inputs, targets) * share
        loss.backward()
        total = total + loss.detach()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return total


@planted("accumulated_gradient", "6 sequences at once")
def takes_the_batch_whole(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> float:
    model.zero_grad()
    loss = _loss(model, x, y)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return loss.item()


@planted("accumulated_gradient", "the model is given 3 sequences at once")
def takes_the_size_for_a_number_of_parts(
    model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float
) -> float:
    model.zero_grad()
    total = 0.0
    for inputs, targets in zip(x.chunk(size), y.chunk(size), strict=True):
        loss = _loss(model, inputs, targets) * len(inputs) / len(x)
        loss.backward()
        total += loss.item()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return total


@planted("accumulated_gradient", "in memory at once")
def goes_back_when_all_parts_are_done(
    model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float
) -> float:
    model.zero_grad()
    loss = torch.stack([_loss(model, a, b) * share for a, b, share in _parts(x, y, size)]).sum()
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    return loss.item()


@planted("accumulated_gradient", "The weights have moved")
def takes_the_step_too(model: nn.Module, x: Tensor, y: Tensor, size: int, clip: float) -> float:
    model.zero_grad()
    for inputs, targets, share in _parts(x, y, size):
        (_loss(model, inputs, targets) * share).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    return _loss(model, x[:1], y[:1]).item()


def _all_tensors(part: object) -> list[Tensor]:
    if isinstance(part, Tensor):
        return [part]
    inside = part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
    return [tensor for each in inside for tensor in _all_tensors(each)]


def _state(folder: Path) -> dict[str, dict[str, object]]:
    state: dict[str, dict[str, object]] = torch.load(folder / "state.pt", weights_only=True)
    return state


@planted("optimizer_numbers", "how many tensors there are")
def counts_tensors(folder: Path) -> int:
    return len(_all_tensors(_state(folder)["optimizer"]))


@planted("optimizer_numbers", "That is arithmetic for AdamW")
def does_not_measure(folder: Path) -> int:
    from labkit.training import load_checkpoint

    return 2 * load_checkpoint(folder)[0].num_parameters()


@planted("optimizer_numbers", "more than one average")
def counts_one_of_two_averages(folder: Path) -> int:
    state = _state(folder)["optimizer"].get("state")
    moments = state.values() if isinstance(state, dict) else ()
    return sum(each["exp_avg"].numel() for each in moments)


@planted("optimizer_numbers", 'lies under "optimizer"')
def counts_the_generators_too(folder: Path) -> int:
    return sum(each.numel() for each in _all_tensors(_state(folder)))


@planted("optimizer_numbers", "dictionaries within lists")
def looks_for_one_optimizer_only(folder: Path) -> int:
    return sum(each.numel() for each in _all_tensors(_state(folder)["optimizer"].get("state")))


@planted("optimizer_numbers", "each with a state and names")
def reads_the_first_of_two_optimizers(folder: Path) -> int:
    optimizer = _state(folder)["optimizer"]
    several = optimizer.get("optimizers")
    return sum(each.numel() for each in _all_tensors(several[0] if isinstance(several, list) else optimizer))


@planted("optimizer_numbers", "these are bytes")
def counts_bytes(folder: Path) -> int:
    return sum(each.nbytes for each in _all_tensors(_state(folder)["optimizer"]))


@planted("optimizer_numbers", "the size of the file")
def weighs_the_file(folder: Path) -> int:
    return (folder / "state.pt").stat().st_size // 4


@planted("optimizer_numbers", "a state and names of its own")
def asks_muon_for_the_names_of_adamw(folder: Path) -> int:
    optimizer: Any = _state(folder)["optimizer"]
    count = 0
    for each in optimizer.get("optimizers", [optimizer]):
        for averages in each["state"].values():
            count += sum(averages[name].numel() for name in ("exp_avg", "exp_avg_sq") if name in averages)
    return count


@planted("optimizer_numbers", "Is it the file in `folder` that you read?")
def reads_another_checkpoint(folder: Path) -> int:
    return 82_894


@planted("optimizer_numbers", "Settings such as rates")
def counts_the_settings_too(folder: Path) -> int:
    def count(part: object) -> int:
        if isinstance(part, dict | list):
            return sum(map(count, part.values() if isinstance(part, dict) else part))
        return part.numel() if isinstance(part, Tensor) else int(isinstance(part, int | float))

    return count(_state(folder)["optimizer"])


@planted("early_stopping", "lowest training loss")
def watches_the_training_loss(history: History, patience: int) -> tuple[int, int]:
    return solution("early_stopping")([(step, loss, loss) for step, loss, _ in history], patience)


@planted("early_stopping", "the gap is widest")
def takes_the_widest_gap(history: History, patience: int) -> tuple[int, int]:
    widest = max(history, key=lambda row: row[2] - row[1])[0]
    return widest, widest


@planted("early_stopping", "the best weights lie behind you")
def keeps_the_last_weights(history: History, patience: int) -> tuple[int, int]:
    _, stop = solution("early_stopping")(history, patience)
    return stop, stop


@planted("early_stopping", "may be chance")
def stops_at_the_first_rise(history: History, patience: int) -> tuple[int, int]:
    return solution("early_stopping")(history, 1)


@planted("early_stopping", "not at the first")
def stops_at_the_first_of_the_bad_ones(history: History, patience: int) -> tuple[int, int]:
    best, stop = solution("early_stopping")(history, patience)
    bad = [step for step, *_ in history if best < step <= stop]
    return best, bad[0] if len(bad) == patience else stop


@planted("early_stopping", "evaluation more than the patience")
def is_one_more_patient(history: History, patience: int) -> tuple[int, int]:
    return solution("early_stopping")(history, patience + 1)


@planted("early_stopping", "After the stop there is nothing left")
def never_stops(history: History, patience: int) -> tuple[int, int]:
    return min(history, key=lambda row: row[2])[0], history[-1][0]


@planted("early_stopping", "what does a new best do to the count?")
def never_forgives(history: History, patience: int) -> tuple[int, int]:
    best, bad = history[0], 0
    for row in history[1:]:
        best, bad = (row, bad) if row[2] < best[2] else (best, bad + 1)
        if bad == patience:
            break
    return best[0], row[0]


@planted("early_stopping", "not lower than the best")
def compares_with_the_one_before(history: History, patience: int) -> tuple[int, int]:
    best, before, bad = history[0], math.inf, 0
    for row in history:
        bad = 0 if row[2] < before else bad + 1
        best, before = min(best, row, key=lambda each: each[2]), row[2]
        if bad == patience:
            break
    return best[0], row[0]


@planted("early_stopping", "equal to the best is not lower")
def takes_equal_for_better(history: History, patience: int) -> tuple[int, int]:
    best, bad = history[0], 0
    for row in history[1:]:
        best, bad = (row, 0) if row[2] <= best[2] else (best, bad + 1)
        if bad == patience:
            break
    return best[0], row[0]


@planted("early_stopping", "who stops there never sees it")
def knows_the_future(history: History, patience: int) -> tuple[int, int]:
    return min(history, key=lambda row: row[2])[0], solution("early_stopping")(history, patience)[1]


@planted("early_stopping", "when it is the first")
def begins_below_every_loss(history: History, patience: int) -> tuple[int | None, int]:
    return None, history[patience - 1][0]


@planted("early_stopping", "the first best is whatever it is")
def begins_with_ten(history: History, patience: int) -> tuple[int, int]:
    best_step, best, bad = 0, 10.0, 0
    for step, _, held_out in history:
        best_step, best, bad = (step, held_out, 0) if held_out < best else (best_step, best, bad + 1)
        if bad == patience:
            break
    return best_step, step


@planted("early_stopping", "What is its last one?")
def stops_at_the_best_if_it_never_stops(history: History, patience: int) -> tuple[int, int]:
    best, stop = solution("early_stopping")(history, patience)
    bad = sum(best < step <= stop for step, *_ in history)
    return best, stop if bad == patience else best


@planted("early_stopping", "Patience counts evaluations")
def adds_patience_to_a_step(history: History, patience: int) -> tuple[int, int]:
    best, _ = solution("early_stopping")(history, patience)
    return best, best + patience


@planted("early_stopping", "not places in the list")
def returns_places(history: History, patience: int) -> tuple[int, int]:
    best, stop = solution("early_stopping")(history, patience)
    steps = [step for step, *_ in history]
    return steps.index(best), steps.index(stop)


@planted("early_stopping", "Return steps, not losses")
def returns_losses(history: History, patience: int) -> tuple[float, float]:
    losses = {step: held_out for step, _, held_out in history}
    best, stop = solution("early_stopping")(history, patience)
    return losses[best], losses[stop]


@planted("early_stopping", "one that was worse did not count")
def counts_only_where_the_training_loss_falls(history: History, patience: int) -> tuple[int, int]:
    best, before, bad = history[0], math.inf, 0
    for row in history:
        if row[2] < best[2]:
            best, bad = row, 0
        elif row[1] < before:
            bad += 1
        before = row[1]
        if bad == patience:
            break
    return best[0], row[0]


@planted("early_stopping", "the gap is narrowest")
def watches_the_gap(history: History, patience: int) -> tuple[int, int]:
    return solution("early_stopping")(
        [(step, loss, held_out - loss) for step, loss, held_out in history], patience
    )
