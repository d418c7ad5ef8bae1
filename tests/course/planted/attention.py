"""Wrong answers to lesson 02's exercises."""

from __future__ import annotations

import torch
from torch import Tensor

from planted import planted


@planted("equal_scores", "where is the mask")
def mean_of_everything(values: Tensor) -> Tensor:
    return values.mean(dim=0).expand(len(values), -1)


@planted("equal_scores", "That is a sum")
def running_sum(values: Tensor) -> Tensor:
    return values.cumsum(dim=0)


@planted("equal_scores", "divided by the same number")
def divides_all_rows_alike(values: Tensor) -> Tensor:
    return values.cumsum(dim=0) / len(values)


@planted("equal_scores", "divided by the same number")
def divides_by_the_features(values: Tensor) -> Tensor:
    return values.cumsum(dim=0) / values.shape[-1]


@planted("equal_scores", "sees only itself")
def leaves_itself_out(values: Tensor) -> Tensor:
    earlier = torch.arange(len(values))[:, None]
    return (values.cumsum(dim=0) - values) / earlier.clamp(min=1)


@planted("equal_scores", "each position's own value")
def looks_only_at_itself(values: Tensor) -> Tensor:
    return values * 1.0


@planted("equal_scores", "one row per position")
def mean_over_features(values: Tensor) -> Tensor:
    return values.mean(dim=-1)


@planted("attention_numbers", "are the biases in")
def forgets_the_biases(d_model: int, n_heads: int, n_kv_heads: int) -> int:
    return 2 * d_model**2 + 2 * d_model * n_kv_heads * d_model // n_heads


@planted("attention_numbers", "behind the mixing")
def forgets_the_output_layer(d_model: int, n_heads: int, n_kv_heads: int) -> int:
    kv_dim = n_kv_heads * d_model // n_heads
    return d_model * (d_model + 1) + 2 * kv_dim * (d_model + 1)


@planted("attention_numbers", "How wide are they here")
def takes_all_heads_for_keys_and_values(d_model: int, n_heads: int, n_kv_heads: int) -> int:
    return 4 * d_model * (d_model + 1)


@planted("attention_numbers", "has each head matrices of its own")
def gives_each_head_its_own_matrices(d_model: int, n_heads: int, n_kv_heads: int) -> int:
    return n_heads * 4 * d_model * (d_model + 1)


@planted("attention_numbers", "as many biases as outputs")
def gives_all_layers_the_same_bias(d_model: int, n_heads: int, n_kv_heads: int) -> int:
    kv_dim = n_kv_heads * d_model // n_heads
    return 2 * d_model * (d_model + kv_dim) + 4 * d_model


@planted("attention_numbers", "how wide is each output")
def takes_a_head_for_one_feature(d_model: int, n_heads: int, n_kv_heads: int) -> int:
    return 2 * d_model * (d_model + 1) + 2 * n_kv_heads * (d_model + 1)


@planted("attention_numbers", "not one number, the sum")
def weights_and_biases_apart(d_model: int, n_heads: int, n_kv_heads: int) -> tuple[int, int]:
    kv_dim = n_kv_heads * d_model // n_heads
    return 2 * d_model * (d_model + kv_dim), 2 * (d_model + kv_dim)


@planted("window_mask", "this one is torch.float32")
def what_is_added_to_the_scores(seq: int, window: int) -> Tensor:
    everything = torch.ones(seq, seq, dtype=torch.bool)
    return torch.zeros(seq, seq).masked_fill(everything.triu(1) | everything.tril(-window), -torch.inf)


@planted("window_mask", "on which side of the diagonal")
def counts_the_far_past_upwards(seq: int, window: int) -> Tensor:
    everything = torch.ones(seq, seq, dtype=torch.bool)
    return everything.triu(1) | everything.tril(window)


@planted("window_mask", "where does the window come in")
def the_same_for_every_window(seq: int, window: int) -> Tensor:
    everything = torch.ones(seq, seq, dtype=torch.bool)
    return everything.triu(1) | everything.tril(-1)


@planted("window_mask", "True means blocked here")
def says_what_is_visible(seq: int, window: int) -> Tensor:
    everything = torch.ones(seq, seq, dtype=torch.bool)
    return everything.tril() & everything.triu(1 - window)


@planted("window_mask", "too far back is not blocked")
def forgets_the_far_past(seq: int, window: int) -> Tensor:
    return torch.ones(seq, seq, dtype=torch.bool).triu(1)


@planted("window_mask", "position 4, which comes later")
def forgets_the_future(seq: int, window: int) -> Tensor:
    return torch.ones(seq, seq, dtype=torch.bool).tril(-window)


@planted("window_mask", "itself counts as one")
def window_without_itself(seq: int, window: int) -> Tensor:
    everything = torch.ones(seq, seq, dtype=torch.bool)
    return everything.triu(1) | everything.tril(-window - 1)


@planted("window_mask", "the wrong way round")
def exchanges_rows_and_columns(seq: int, window: int) -> Tensor:
    everything = torch.ones(seq, seq, dtype=torch.bool)
    return everything.tril(-1) | everything.triu(window)


@planted("window_mask", "the seven positions see [1, 1, 1, 1, 3, 3, 3]")
def blocks_whole_rows(seq: int, window: int) -> Tensor:
    everything = torch.ones(seq, seq, dtype=torch.bool)
    mask = everything.triu(1) | everything.tril(-window)
    mask[: window + 1] = ~torch.eye(seq, dtype=torch.bool)[: window + 1]
    return mask


@planted("repair_attention", "by which root")
def all_but_the_scale(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, n_heads, seq, head_dim = q.shape
    scores = q @ k.mT / (n_heads * head_dim) ** 0.5
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(blocked, -torch.inf).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).reshape(batch, seq, n_heads * head_dim)


@planted("repair_attention", "is exp of the number")
def all_but_the_mask(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, n_heads, seq, head_dim = q.shape
    scores = q @ k.mT / head_dim**0.5
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(blocked, 1e-10).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).reshape(batch, seq, n_heads * head_dim)


@planted("repair_attention", "is the mask one step off")
def sees_one_position_too_many(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq, head_dim = q.shape[-2:]
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(2)
    weights = (q @ k.mT / head_dim**0.5).masked_fill(blocked, -torch.inf).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@planted("repair_attention", "only after the softmax")
def masks_after_the_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq, head_dim = q.shape[-2:]
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = (q @ k.mT / head_dim**0.5).softmax(dim=-1).masked_fill(blocked, 0)
    return (weights @ v).transpose(1, 2).flatten(2)


@planted("repair_attention", "which two axes change places")
def exchanges_the_last_two_axes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, n_heads, seq, head_dim = q.shape
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = (q @ k.mT / head_dim**0.5).masked_fill(blocked, -torch.inf).softmax(dim=-1)
    return (weights @ v).mT.reshape(batch, seq, n_heads * head_dim)


@planted("repair_attention", "see nobody")
def mask_with_the_diagonal(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq, head_dim = q.shape[-2:]
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(0)
    weights = (q @ k.mT / head_dim**0.5).masked_fill(blocked, -torch.inf).softmax(dim=-1)
    return (weights @ v).transpose(1, 2).flatten(2)


@planted("repair_attention", "over which axis does the softmax run")
def softmax_over_the_queries(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq, head_dim = q.shape[-2:]
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = (q @ k.mT / head_dim**0.5).masked_fill(blocked, -torch.inf).softmax(dim=-2)
    return (weights @ v).transpose(1, 2).flatten(2)


@planted("repair_attention", "right numbers in the wrong order")
def interleaves_the_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq, head_dim = q.shape[-2:]
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = (q @ k.mT / head_dim**0.5).masked_fill(blocked, -torch.inf).softmax(dim=-1)
    return (weights @ v).permute(0, 2, 3, 1).flatten(2)


@planted("repair_attention", "with four the future does")
def all_but_the_order_of_axes(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, n_heads, seq, head_dim = q.shape
    scores = q @ k.mT / head_dim**0.5
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(blocked, -torch.inf).softmax(dim=-1)
    return (weights @ v).reshape(batch, seq, n_heads * head_dim)


@planted("repair_attention", "not (2, 7, 4 * 5)")
def keeps_the_heads_apart(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    seq, head_dim = q.shape[-2:]
    scores = q @ k.mT / head_dim**0.5
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    return scores.masked_fill(blocked, -torch.inf).softmax(dim=-1) @ v


@planted("positions_looked_at", "what is 0 * log(0)")
def plain_logarithm(weights: Tensor) -> Tensor:
    return (-(weights * weights.log()).sum(dim=-1)).exp()


@planted("positions_looked_at", "the entropy itself")
def stops_at_the_entropy(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).sum(dim=-1)


@planted("positions_looked_at", "same base")
def bits_into_exp(weights: Tensor) -> Tensor:
    return (torch.special.entr(weights).sum(dim=-1) / torch.tensor(2.0).log()).exp()


@planted("positions_looked_at", "same base")
def two_to_the_power_of_nats(weights: Tensor) -> Tensor:
    return 2 ** torch.special.entr(weights).sum(dim=-1)


@planted("positions_looked_at", "a mean where a sum should be")
def mean_instead_of_sum(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).mean(dim=-1).exp()


@planted("positions_looked_at", "raised to each term, before the sum")
def exp_before_the_sum(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).exp().sum(dim=-1)


@planted("positions_looked_at", "every weight above 0")
def counts_what_is_not_zero(weights: Tensor) -> Tensor:
    return (weights > 0).sum(dim=-1)


@planted("positions_looked_at", "is it e to the entropy")
def one_over_the_squares(weights: Tensor) -> Tensor:
    return 1 / weights.square().sum(dim=-1)


@planted("positions_looked_at", "is a minus sign missing")
def forgets_the_sign(weights: Tensor) -> Tensor:
    return (weights * weights.clamp(min=1e-12).log()).sum(dim=-1).exp()


@planted("positions_looked_at", "one number per row")
def sums_over_everything(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).sum().exp()


@planted("positions_looked_at", "is the axis fixed")
def sums_axis_one(weights: Tensor) -> Tensor:
    return torch.special.entr(weights).sum(dim=1).exp()


@planted("positions_looked_at", "what should a weight of 0 add")
def puts_nan_away_too_late(weights: Tensor) -> Tensor:
    return (-(weights * weights.log()).sum(dim=-1)).exp().nan_to_num()


@planted("positions_looked_at", "is what you add to a weight too large")
def adds_a_thousandth(weights: Tensor) -> Tensor:
    return (-(weights * (weights + 1e-3).log()).sum(dim=-1)).exp()
