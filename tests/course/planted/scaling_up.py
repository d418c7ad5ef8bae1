"""Wrong answers to lesson 09's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from torch import Tensor

from labkit.analysis.scaling import ScalingLaw
from planted import planted

Measure = Callable[[int], tuple[float, int]]


@planted("training_days", "at the full peak")
def forgets_the_mfu(flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float) -> float:
    return flops_per_token * tokens / (devices * peak) / 86_400


@planted("training_days", "Multiplied instead of divided")
def multiplies_by_the_mfu(
    flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float
) -> float:
    return flops_per_token * tokens / (devices * peak) * mfu / 86_400


@planted("training_days", "one device alone")
def forgets_the_devices(
    flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float
) -> float:
    return flops_per_token * tokens / (peak * mfu) / 86_400


@planted("training_days", "Are those hours")
def gives_hours(flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float) -> float:
    return flops_per_token * tokens / (devices * peak * mfu) / 3600


@planted("training_days", "number of parameters")
def takes_operations_for_parameters(
    flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float
) -> float:
    return 6 * flops_per_token * tokens / (devices * peak * mfu) / 86_400


@planted("training_days", "forward and backward are both in")
def adds_the_backward_pass(
    flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float
) -> float:
    return 3 * flops_per_token * tokens / (devices * peak * mfu) / 86_400


@planted("attention_overtakes", "besides attention's four")
def forgets_the_feed_forward(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> int:
    return 2 * d_model


@planted("attention_overtakes", "four matrices of attention")
def forgets_the_projections(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> int:
    return d_ff


@planted("attention_overtakes", "Does depth change")
def multiplies_by_the_layers(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> int:
    return n_layers * (2 * d_model + d_ff)


@planted("attention_overtakes", "Each head is narrower")
def counts_each_head_at_full_width(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> float:
    return (2 * d_model + d_ff) / n_heads


@planted("attention_overtakes", "one for mixing")
def forgets_the_mixing(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> int:
    return 2 * (2 * d_model + d_ff)


@planted("attention_overtakes", "on one side only")
def compares_training_with_a_forward_pass(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> int:
    return 3 * (2 * d_model + d_ff)


@planted("compute_bound_square", "Bandwidth counts bytes")
def forgets_the_bytes_of_a_number(peak: float, bandwidth: float, size: int) -> int:
    return math.ceil(1.5 * peak / bandwidth)


@planted("compute_bound_square", "Only one matrix")
def moves_one_matrix(peak: float, bandwidth: float, size: int) -> int:
    return math.ceil(size * peak / (2 * bandwidth))


@planted("compute_bound_square", "And the result?")
def forgets_to_write_the_result(peak: float, bandwidth: float, size: int) -> int:
    return math.ceil(size * peak / bandwidth)


@planted("compute_bound_square", "followed by an addition")
def counts_products_without_additions(peak: float, bandwidth: float, size: int) -> int:
    return math.ceil(3 * size * peak / bandwidth)


@planted("compute_bound_square", "Rounded down")
def rounds_down(peak: float, bandwidth: float, size: int) -> int:
    return int(3 * size * peak / (2 * bandwidth))


@planted("compute_bound_square", "which whole number")
def does_not_round(peak: float, bandwidth: float, size: int) -> float:
    return 3 * size * peak / (2 * bandwidth)


@planted("compute_bound_square", "One too large")
def goes_beyond_the_bend(peak: float, bandwidth: float, size: int) -> int:
    return int(3 * size * peak / (2 * bandwidth)) + 1


@planted("repair_mfu", "Was the device done")
def waits_only_before(
    step: Callable[[Tensor], None],
    batches: Sequence[Tensor],
    synchronize: Callable[[], None],
    clock: Callable[[], float],
    flops_per_token: float,
    peak: float,
) -> float:
    step(batches[0])
    synchronize()
    begin = clock()
    for batch in batches[1:]:
        step(batch)
    seconds = clock() - begin
    return sum(batch.numel() for batch in batches[1:]) * flops_per_token / seconds / peak


@planted("repair_mfu", "inside the measured time")
def measures_the_warm_up(
    step: Callable[[Tensor], None],
    batches: Sequence[Tensor],
    synchronize: Callable[[], None],
    clock: Callable[[], float],
    flops_per_token: float,
    peak: float,
) -> float:
    synchronize()
    begin = clock()
    for batch in batches:
        step(batch)
    synchronize()
    seconds = clock() - begin
    return sum(batch.numel() for batch in batches) * flops_per_token / seconds / peak


@planted("repair_mfu", "still busy with the step")
def starts_the_clock_too_early(
    step: Callable[[Tensor], None],
    batches: Sequence[Tensor],
    synchronize: Callable[[], None],
    clock: Callable[[], float],
    flops_per_token: float,
    peak: float,
) -> float:
    step(batches[0])
    begin = clock()
    for batch in batches[1:]:
        step(batch)
    synchronize()
    seconds = clock() - begin
    return sum(batch.numel() for batch in batches[1:]) * flops_per_token / seconds / peak


@planted("repair_mfu", "stands idle")
def waits_after_each_step(
    step: Callable[[Tensor], None],
    batches: Sequence[Tensor],
    synchronize: Callable[[], None],
    clock: Callable[[], float],
    flops_per_token: float,
    peak: float,
) -> float:
    step(batches[0])
    synchronize()
    begin = clock()
    for batch in batches[1:]:
        step(batch)
        synchronize()
    seconds = clock() - begin
    return sum(batch.numel() for batch in batches[1:]) * flops_per_token / seconds / peak


@planted("repair_mfu", "as many as the last")
def takes_the_last_batch_for_all(
    step: Callable[[Tensor], None],
    batches: Sequence[Tensor],
    synchronize: Callable[[], None],
    clock: Callable[[], float],
    flops_per_token: float,
    peak: float,
) -> float:
    step(batches[0])
    synchronize()
    begin = clock()
    for batch in batches[1:]:
        step(batch)
    synchronize()
    seconds = clock() - begin
    return (len(batches) - 1) * batches[-1].numel() * flops_per_token / seconds / peak


@planted("repair_mfu", "its time is not")
def counts_tokens_of_the_warm_up(
    step: Callable[[Tensor], None],
    batches: Sequence[Tensor],
    synchronize: Callable[[], None],
    clock: Callable[[], float],
    flops_per_token: float,
    peak: float,
) -> float:
    step(batches[0])
    synchronize()
    begin = clock()
    for batch in batches[1:]:
        step(batch)
    synchronize()
    seconds = clock() - begin
    return sum(batch.numel() for batch in batches) * flops_per_token / seconds / peak


@planted("same_loss_tokens", "the same operations")
def keeps_the_operations(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    return tokens / part


@planted("same_loss_tokens", "does the term with N stay")
def forgets_that_the_model_is_smaller(
    law: ScalingLaw, parameters: float, tokens: float, part: float
) -> float:
    left = float(law.predict(parameters, tokens)) - law.E - law.A / parameters**law.alpha
    return (law.B / left) ** (1 / law.beta)


@planted("same_loss_tokens", "not B / D to the power")
def forgets_beta(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    return law.B / _left(law, parameters, tokens, part)


@planted("same_loss_tokens", "undo a power")
def raises_to_beta(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    return float((law.B / _left(law, parameters, tokens, part)) ** law.beta)


@planted("same_loss_tokens", "is in the target too")
def forgets_what_is_left_for_ever(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    left = float(law.predict(parameters, tokens)) - law.A / (part * parameters) ** law.alpha
    return float((law.B / left) ** (1 / law.beta))


@planted("same_loss_tokens", "a root of a negative number")
def believes_that_text_always_helps(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    return float.__pow__(law.B / _left(law, parameters, tokens, part), 1 / law.beta)


@planted("same_loss_tokens", "nan is what a root of a negative number")
def leaves_it_to_numpy(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    left = _left(law, parameters, tokens, part)
    return (law.B / left) ** (1 / law.beta) if left > 0 else math.nan


@planted("same_loss_tokens", "with endless text that model ends above")
def turns_an_impossible_rest_round(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    return float((law.B / abs(_left(law, parameters, tokens, part))) ** (1 / law.beta))


def _left(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    return float(law.predict(parameters, tokens)) - law.E - law.A / (part * parameters) ** law.alpha


def _chosen(seconds: dict[int, float], held: dict[int, int]) -> int:
    near = [rows for rows in seconds if seconds[rows] <= 1.1 * min(seconds.values())]
    return min(near, key=lambda rows: held[rows])


@planted("chunk_rows", "That is the fastest")
def takes_the_fastest(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    best = {rows: min(measure(rows)[0] for _ in range(tries)) for rows in sizes}
    return min(best, key=lambda rows: best[rows])


@planted("chunk_rows", "That holds least")
def takes_the_smallest(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    held = {rows: min(measure(rows)[1] for _ in range(tries)) for rows in sizes}
    return min(held, key=lambda rows: held[rows])


@planted("chunk_rows", "5 tries for each")
def measures_once(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    seen = {rows: measure(rows) for rows in sizes}
    return _chosen(
        {rows: each[0] for rows, each in seen.items()}, {rows: each[1] for rows, each in seen.items()}
    )


@planted("chunk_rows", "nine times as long")
def takes_the_mean(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    total, held = dict.fromkeys(sizes, 0.0), dict.fromkeys(sizes, 0)
    for _ in range(tries):
        for rows in sizes:
            taken, held[rows] = measure(rows)
            total[rows] += taken / tries
    return _chosen(total, held)


@planted("chunk_rows", "meet all sizes alike")
def finishes_one_size_before_the_next(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    seen = {rows: [measure(rows) for _ in range(tries)] for rows in sizes}
    best = {rows: min(taken for taken, _ in each) for rows, each in seen.items()}
    return _chosen(best, {rows: each[0][1] for rows, each in seen.items()})


@planted("chunk_rows", "10 % of what")
def adds_a_tenth_of_a_second_too_much(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    best, held = dict.fromkeys(sizes, math.inf), dict.fromkeys(sizes, 0)
    for _ in range(tries):
        for rows in sizes:
            taken, held[rows] = measure(rows)
            best[rows] = min(best[rows], taken)
    near = [rows for rows in sizes if best[rows] <= min(best.values()) + 0.09]
    return min(near, key=lambda rows: held[rows])


@planted("training_days", "minutes of a day")
def divides_by_the_minutes_of_a_day(
    flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float
) -> float:
    return flops_per_token * tokens / (devices * peak * mfu) / (24 * 60)


@planted("training_days", "Are those minutes")
def gives_minutes(flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float) -> float:
    return flops_per_token * tokens / (devices * peak * mfu) / 60


@planted("training_days", "divided by 100 once more")
def takes_the_mfu_for_percent(
    flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float
) -> float:
    return flops_per_token * tokens / (devices * peak * mfu / 100) / 86_400


@planted("training_days", "parentheses")
def leaves_out_the_parentheses(
    flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float
) -> float:
    return flops_per_token * tokens / devices * peak * mfu / 86_400


@planted("training_days", "Rounded?")
def gives_whole_days(flops_per_token: float, tokens: float, devices: int, peak: float, mfu: float) -> int:
    return math.ceil(flops_per_token * tokens / (devices * peak * mfu) / 86_400)


@planted("attention_overtakes", "costs 6 operations")
def counts_one_operation_a_weight(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> float:
    return (4 * d_model + 2 * d_ff) / 12


@planted("attention_overtakes", "one up and one down")
def counts_one_matrix_of_the_feed_forward(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> float:
    return 2 * d_model + d_ff / 2


@planted("attention_overtakes", "a fourth matrix")
def forgets_the_output_projection(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> float:
    return 1.5 * d_model + d_ff


@planted("attention_overtakes", "if d_ff were 4 times")
def takes_the_feed_forward_as_four_times_as_wide(d_model: int, d_ff: int, n_layers: int, n_heads: int) -> int:
    return 6 * d_model


@planted("compute_bound_square", "to the nearest")
def rounds_to_the_nearest(peak: float, bandwidth: float, size: int) -> int:
    return round(3 * size * peak / (2 * bandwidth))


@planted("compute_bound_square", "numbers of 4 bytes")
def takes_every_number_for_four_bytes(peak: float, bandwidth: float, size: int) -> int:
    return math.ceil(6 * peak / bandwidth)


@planted("chunk_rows", "the fewest rows")
def takes_the_fewest_rows(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    found = []
    for _ in range(tries):
        found += [(*measure(size), size) for size in sizes]
    fastest = min(found)[0]
    return min(size for seconds, _, size in found if seconds <= 1.1 * fastest)


@planted("chunk_rows", "10 % of what")
def adds_a_tenth_of_a_second(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    found = []
    for _ in range(tries):
        found += [(*measure(size), size) for size in sizes]
    fastest = min(found)[0]
    return min((held, size) for seconds, held, size in found if seconds <= fastest + 0.1)[1]


@planted("chunk_rows", "nine times as long")
def keeps_only_the_last_try(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    for _ in range(tries):
        found = {size: measure(size) for size in sizes}
    fastest = min(found.values())[0]
    return min((held, size) for size, (seconds, held) in found.items() if seconds <= 1.1 * fastest)[1]


@planted("chunk_rows", "nine times as long")
def takes_the_median_in_turns(measure: Measure, sizes: Sequence[int], tries: int) -> int:
    found = [{size: measure(size) for size in sizes} for _ in range(tries)]
    middle = {size: median(each[size][0] for each in found) for size in sizes}
    near = [size for size in sizes if middle[size] <= 1.1 * min(middle.values())]
    return min(near, key=lambda size: found[0][size][1])


@planted("same_loss_tokens", "Is it alpha")
def takes_the_root_of_the_wrong_exponent(
    law: ScalingLaw, parameters: float, tokens: float, part: float
) -> float:
    rest = law.predict(parameters, tokens) - law.E - law.A / (part * parameters) ** law.alpha
    return (law.B / rest) ** (1 / law.alpha) if rest > 0 else math.inf


@planted("same_loss_tokens", "Upside down")
def divides_the_wrong_way_round(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    rest = law.predict(parameters, tokens) - law.E - law.A / (part * parameters) ** law.alpha
    return (rest / law.B) ** (1 / law.beta) if rest > 0 else math.inf


@planted("same_loss_tokens", "how many times as many")
def gives_the_ratio(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    rest = law.predict(parameters, tokens) - law.E - law.A / (part * parameters) ** law.alpha
    return (law.B / rest) ** (1 / law.beta) / tokens if rest > 0 else math.inf


@planted("same_loss_tokens", "how many more")
def gives_the_tokens_on_top(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    rest = law.predict(parameters, tokens) - law.E - law.A / (part * parameters) ** law.alpha
    return (law.B / rest) ** (1 / law.beta) - tokens if rest > 0 else math.inf


@planted("same_loss_tokens", "without a search")
def searches_in_steps(law: ScalingLaw, parameters: float, tokens: float, part: float) -> float:
    target = law.predict(parameters, tokens)
    for step in range(4000):
        if law.predict(part * parameters, tokens * 10 ** (step / 1000)) <= target:
            return tokens * 10 ** (step / 1000)
    return math.inf
