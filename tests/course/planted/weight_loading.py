"""Wrong answers to lesson 06's exercises."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from labcourse.solutions import solution
from labkit.config import GPTConfig
from labkit.model import GPT, RotaryPositions, SinusoidalPositions
from planted import planted


@planted("first_byte", "8 bytes too early")
def forgets_the_length_of_the_header(
    n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int
) -> int:
    return n + begin + size * (row * shape[1] + column)


@planted("first_byte", "From where does `begin` count")
def begins_at_the_start_of_the_file(
    n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int
) -> int:
    return begin + size * (row * shape[1] + column)


@planted("first_byte", "counted down the columns")
def column_by_column(n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int) -> int:
    return 8 + n + begin + size * (column * shape[0] + row)


@planted("first_byte", "by one byte a number")
def counts_numbers_not_bytes(
    n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int
) -> int:
    return 8 + n + begin + row * shape[1] + column


@planted("first_byte", "how many numbers has a row")
def rows_as_long_as_columns(
    n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int
) -> int:
    return 8 + n + begin + size * (row * shape[0] + column)


@planted("first_byte", "by 4 bytes a number")
def always_four_bytes(n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int) -> int:
    return 8 + n + begin + 4 * (row * shape[1] + column)


@planted("first_byte", "within a row, too")
def bytes_for_rows_alone(n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int) -> int:
    return 8 + n + begin + size * row * shape[1] + column


@planted("first_byte", "the rows before take")
def bytes_within_a_row_alone(
    n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int
) -> int:
    return 8 + n + begin + row * shape[1] + size * column


@planted("first_byte", "counted from 0")
def rows_and_columns_from_one(
    n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int
) -> int:
    return 8 + n + begin + size * ((row - 1) * shape[1] + column - 1)


@planted("first_byte", "`begin` counts bytes already")
def begin_counted_in_numbers(
    n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int
) -> int:
    return 8 + n + size * (begin + row * shape[1] + column)


@planted("first_byte", "not float")
def divides(n: int, begin: int, shape: tuple[int, int], size: int, row: int, column: int) -> float:
    return 8 + n + begin + size * (row * shape[1] + column) / 1


@planted("loading_alarms", "A: you say that `logits` rings")
def heads_have_an_order() -> dict[str, list[str]]:
    return solution("loading_alarms")() | {"A": ["logits", "round trip"]}


@planted("loading_alarms", "A: you say that `round trip` is silent")
def same_function_same_file() -> dict[str, list[str]]:
    return solution("loading_alarms")() | {"A": []}


@planted("loading_alarms", "B: you say that `logits` is silent")
def value_biases_cancel_like_those_of_keys() -> dict[str, list[str]]:
    return solution("loading_alarms")() | {"B": ["round trip"]}


@planted("loading_alarms", "C: you say that `round trip` rings")
def heads_are_in_a_tensor() -> dict[str, list[str]]:
    return solution("loading_alarms")() | {"C": ["logits", "round trip"]}


@planted("loading_alarms", "D: you say that `logits` rings")
def dropout_is_always_on() -> dict[str, list[str]]:
    return solution("loading_alarms")() | {"D": ["logits"]}


@planted("loading_alarms", "is no list of")
def one_text_in_place_of_a_list() -> dict[str, object]:
    return solution("loading_alarms")() | {"A": "round-trip"}


def _joined(parts: tuple[Tensor, ...], bias: Tensor, axis: int = 1) -> tuple[Tensor, Tensor]:
    return torch.cat([part.T for part in parts], axis), bias


def _three(rows: Tensor, n_heads: int) -> tuple[Tensor, ...]:
    return tuple(part.flatten(0, 1) for part in rows.unflatten(0, (n_heads, 3, -1)).unbind(1))


@planted("neox_to_gpt2", "turned, but still in GPT-NeoX's order")
def contiguous_thirds(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    return _joined(weight.chunk(3), bias)


@planted("neox_to_gpt2", "which changes slower")
def heads_and_parts_swapped(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    def by_part(rows: Tensor) -> Tensor:
        return rows.unflatten(0, (3, n_heads, -1)).transpose(0, 1).flatten(0, 2)

    return by_part(weight).T, by_part(bias)


@planted("neox_to_gpt2", "below each other")
def joined_along_the_wrong_axis(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    return _joined(_three(weight, n_heads), torch.cat(_three(bias, n_heads)), axis=0)


@planted("neox_to_gpt2", "one row per output")
def not_turned(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    return torch.cat(_three(weight, n_heads)), torch.cat(_three(bias, n_heads))


@planted("neox_to_gpt2", "`reshape` and `view` turn nothing")
def reshaped_in_place_of_turned(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    joined = torch.cat(_three(weight, n_heads))
    return joined.reshape(-1, len(joined)), torch.cat(_three(bias, n_heads))


@planted("neox_to_gpt2", "another one than in GPT-2")
def keys_before_queries(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    query, key, value = _three(weight, n_heads)
    return _joined((key, query, value), torch.cat(_three(bias, n_heads)))


@planted("neox_to_gpt2", "the bias is still in GPT-NeoX's order")
def bias_as_it_was(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    return _joined(_three(weight, n_heads), bias)


@planted("neox_to_gpt2", "not every third row")
def every_third_row(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    return _joined(tuple(weight[i::3] for i in range(3)), torch.cat([bias[i::3] for i in range(3)]))


@planted("neox_to_gpt2", "a head owns neighbouring columns")
def heads_interleaved(weight: Tensor, bias: Tensor, n_heads: int) -> tuple[Tensor, Tensor]:
    parts = [part.transpose(0, 1).flatten(0, 1) for part in weight.unflatten(0, (n_heads, 3, -1)).unbind(1)]
    return _joined(tuple(parts), torch.cat(_three(bias, n_heads)))


def _with_tables(config: GPTConfig) -> GPT:
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, SinusoidalPositions | RotaryPositions):
            module.compute_tables()
    return model


@planted("repair_loader", "that is no parameter")
def all_but_the_buffers(tensors: dict[str, Tensor], config: GPTConfig) -> GPT:
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    for name, tensor in tensors.items():
        model.get_parameter(name).data.copy_(tensor)
    if config.tie_weights:
        model.head.weight = model.token_embedding.weight
    return model


@planted("repair_loader", "equals the embedding but is another tensor")
def head_copied(tensors: dict[str, Tensor], config: GPTConfig) -> GPT:
    model = _with_tables(config)
    for name, tensor in tensors.items():
        model.get_parameter(name).data.copy_(tensor)
    if config.tie_weights:
        model.head.weight.data.copy_(model.token_embedding.weight)
    return model


@planted("repair_loader", "in place of the file's own head")
def head_always_shared(tensors: dict[str, Tensor], config: GPTConfig) -> GPT:
    model = _with_tables(config)
    for name, tensor in tensors.items():
        model.get_parameter(name).data.copy_(tensor)
    model.head.weight = model.token_embedding.weight
    return model


@planted("repair_loader", "the head is empty")
def head_forgotten(tensors: dict[str, Tensor], config: GPTConfig) -> GPT:
    model = _with_tables(config)
    for name, tensor in tensors.items():
        model.get_parameter(name).data.copy_(tensor)
    return model


@planted("repair_loader", "Keep the meta device")
def without_the_meta_device(tensors: dict[str, Tensor], config: GPTConfig) -> GPT:
    model = GPT(config)
    for name, tensor in tensors.items():
        model.get_parameter(name).data.copy_(tensor)
    return model


@planted("repair_loader", "is still a shape without numbers")
def never_given_memory(tensors: dict[str, Tensor], config: GPTConfig) -> GPT:
    with torch.device("meta"):
        model = GPT(config)
    for name, tensor in tensors.items():
        model.get_parameter(name).data.copy_(tensor)
    return model


@planted("repair_loader", "positions.table is still a shape")
def assigned_without_buffers(tensors: dict[str, Tensor], config: GPTConfig) -> GPT:
    with torch.device("meta"):
        model = GPT(config)
    model.load_state_dict(tensors, assign=True, strict=False)
    if config.tie_weights:
        model.head.weight = model.token_embedding.weight
    return model


Outputs = list[tuple[str, Tensor]]


def _seen(
    model: nn.Module, ids: Tensor, *, inputs: bool = False, left_behind: bool = False, top: bool = False
) -> Outputs:
    seen: Outputs = []

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        takes = inputs and name != "positions"  # which reads a length
        return lambda _, given, output: seen.append((name, given[0] if takes else output))

    modules = model.named_children() if top else model.named_modules()
    hooks = [module.register_forward_hook(remember(name)) for name, module in modules]
    with torch.no_grad():
        model(ids)
    for hook in hooks if not left_behind else []:
        hook.remove()
    return seen


def _differing(one: Outputs, other: Outputs, tolerance: float = 1e-4) -> list[str]:
    return [
        name
        for (name, left), (_, right) in zip(one, other, strict=True)
        if left.shape != right.shape or not (left - right).abs().max() <= tolerance
    ]


def _first(names: list[str]) -> str:
    return next((name for name in names if name), "")


@planted("first_difference", "which contains it")
def outermost_first(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    differing = _differing(_seen(one, ids), _seen(other, ids))
    return _first([name for name, _ in one.named_modules() if name in differing])


@planted("first_difference", "the last one that differs")
def the_last_one(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    return _first(_differing(_seen(one, ids), _seen(other, ids))[::-1])


@planted("first_difference", "Does each hook know its own name")
def every_hook_has_the_last_name(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    differing = _differing(_seen(one, ids), _seen(other, ids))
    return [name for name, _ in one.named_modules()][-1] if differing else ""


@planted("first_difference", "hooks are left behind")
def leaves_hooks(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    return _first(_differing(_seen(one, ids, left_behind=True), _seen(other, ids, left_behind=True)))


@planted("first_difference", "its *inputs* are the first")
def compares_inputs(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    return _first(_differing(_seen(one, ids, inputs=True), _seen(other, ids, inputs=True)))


@planted("first_difference", "you name norm, which runs later")
def ignores_children(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    return _first(_differing(_seen(one, ids, top=True), _seen(other, ids, top=True)))


@planted("first_difference", "blocks.2.mlp.down, which runs later")
def in_the_order_of_registration(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    left, right = dict(_seen(one, ids)), dict(_seen(other, ids))
    leaves = [name for name, module in one.named_modules() if name in left and not list(module.children())]
    return _first([name for name in leaves if not (left[name] - right[name]).abs().max() <= 1e-4])


@planted("first_difference", "it runs twice")
def keeps_one_output_of_each_module(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    left, right = dict(_seen(one, ids)), dict(_seen(other, ids))
    return _first([name for name in left if not (left[name] - right[name]).abs().max() <= 1e-4])


@planted("first_difference", "differ by a millionth")
def any_difference(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    return _first(_differing(_seen(one, ids), _seen(other, ids), tolerance=0.0))


@planted("first_difference", "`nan > 1e-4` is False")
def blind_to_nan(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    for (name, left), (_, right) in zip(_seen(one, ids), _seen(other, ids), strict=True):
        if (left - right).abs().max() > 1e-4:
            return name
    return ""


@planted("first_difference", "Do you compare outputs")
def compares_weights(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    pairs = zip(one.named_parameters(), other.named_parameters(), strict=True)
    differing = [name for (name, left), (_, right) in pairs if not (left - right).abs().max() <= 1e-4]
    return _first([name.rpartition(".")[0] for name in differing])


@planted("first_difference", "A mean would hide it")
def compares_means(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    pairs = zip(_seen(one, ids), _seen(other, ids), strict=True)
    return _first([name for (name, left), (_, right) in pairs if not (left - right).abs().mean() <= 1e-4])


@planted("first_difference", "The first model came in training mode")
def leaves_both_in_evaluation_mode(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    return _first(_differing(_seen(one.eval(), ids), _seen(other.eval(), ids)))


@planted("first_difference", "The other model came in evaluation mode")
def leaves_both_in_training_mode(one: nn.Module, other: nn.Module, ids: Tensor) -> str:
    found = _first(_differing(_seen(one.eval(), ids), _seen(other.eval(), ids)))
    one.train()
    other.train()
    return found
