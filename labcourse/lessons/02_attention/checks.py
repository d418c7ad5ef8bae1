"""Checks of lesson 02's exercises."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from labcourse.check import Answer, expect
from labkit.config import GPTConfig
from labkit.model import CausalSelfAttention


def equal_scores(answer: Answer) -> str:
    values = torch.tensor([[2.0, 0.0], [4.0, 6.0], [0.0, 3.0]])
    mixed = answer(values)
    expect(isinstance(mixed, Tensor), f"It returns {type(mixed).__name__}, not a tensor.")
    expect(mixed.shape == (3, 2), f"For values (3, 2) it returns {tuple(mixed.shape)}: one row per position.")
    expect(
        not torch.equal(mixed, values), "That is each position's own value: equal scores look at all it sees."
    )
    expect(
        not torch.allclose(mixed, values.mean(0).expand(3, 2)),
        "Every position gets the same mean, so position 0 knows what comes later: where is the mask?",
    )
    expect(
        not torch.allclose(mixed, values.cumsum(0)),
        "That is a sum. The weights of a row add up to 1, so how large is each one?",
    )
    expect(
        not any(torch.allclose(mixed, values.cumsum(0) / size) for size in values.shape),
        "All rows are divided by the same number. How many positions does position 0 see, and position 1?",
    )
    expect(
        torch.allclose(mixed[0], values[0]), "Position 0 sees only itself, so its row must be its own value."
    )
    longer = torch.randn(7, 5)
    right = F.scaled_dot_product_attention(torch.zeros(7, 5), torch.ones(7, 5), longer, is_causal=True)
    expect(
        torch.allclose(mixed, _uniform(values)), "Row 1 must be the mean of values 0 and 1, and nothing else."
    )
    expect(
        torch.allclose(answer(longer), right, atol=1e-5), "It is right for three positions and not for seven."
    )
    return "That is close to what an untrained head does, whatever it will learn to look at."


def _uniform(values: Tensor) -> Tensor:
    return torch.stack([values[: i + 1].mean(0) for i in range(len(values))])


def attention_numbers(answer: Answer) -> str:
    for d_model, n_heads, n_kv_heads in ((12, 3, 3), (20, 4, 4), (24, 6, 2), (40, 4, 1)):
        config = GPTConfig(
            vocab_size=10,
            context_length=4,
            d_model=d_model,
            n_layers=1,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
        )
        module = CausalSelfAttention(config)
        right = sum(each.numel() for each in module.parameters())
        biases = sum(each.numel() for name, each in module.named_parameters() if "bias" in name)
        got, shared = answer(d_model, n_heads, n_kv_heads), n_kv_heads != n_heads
        expect(
            not isinstance(got, (tuple, list, dict, str)),
            f"It returns {got!r}, not one number, the sum.",
        )
        asked = f"With d_model={d_model}, n_heads={n_heads}, n_kv_heads={n_kv_heads} you count {got}"
        expect(got != right - biases, f"{asked}: are the biases in?")
        expect(
            got != right - d_model * (d_model + 1),
            f"{asked}, one layer too few. Queries, keys, values, and what stands behind the mixing?",
        )
        expect(
            not shared or got != 4 * d_model * (d_model + 1),
            f"{asked}, as with {n_heads} heads of keys and values. How wide are they here?",
        )
        expect(
            got not in (right * n_heads, n_heads * 4 * d_model * (d_model + 1)),
            f"{asked}: has each head matrices of its own, or do all share the features of one?",
        )
        kv_dim = n_kv_heads * (d_model // n_heads)
        expect(
            not shared or got != right + 2 * (d_model - kv_dim),
            f"{asked}: a layer has as many biases as outputs. Are there {d_model} in each of the four?",
        )
        much = "too many" if got > right else "too few"
        expect(got == right, f"{asked}, {much}. Which four layers are made, and how wide is each output?")
    return "The number of query heads does not matter; the number of key and value heads does."


def window_mask(answer: Answer) -> str:
    mask = answer(7, 3)
    kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
    expect(kind == torch.bool, f"The mask must be a tensor of bool, True where blocked; this one is {kind}.")
    expect(mask.shape == (7, 7), f"For 7 positions the mask has shape {tuple(mask.shape)}, not (7, 7).")
    sees = ~mask
    expect(
        sees.diagonal().all() or not sees.triu(1).any(),
        "Position 0 is blocked from itself. True means blocked here: is the mask inverted?",
    )
    expect(sees.any(), "Everything is blocked: on which side of the diagonal does the second triangle begin?")
    expect(sees.diagonal().all(), "A position does not see itself: is one of the diagonals one step off?")
    expect(
        sees.tril(-1).any() or not sees.triu(1).any(),
        "Position 3 sees position 4 and not position 2: do rows and columns stand the wrong way round?",
    )
    expect(
        not sees.triu(1).any(),
        "Position 3 sees position 4, which comes later: is only one of the two triangles blocked?",
    )
    width = int(sees[-1].sum())
    expect(width < 7, "The last position sees everything before it: what lies too far back is not blocked.")
    wider = int((~answer(7, 4))[-1].sum())
    expect(
        width != wider,
        f"The last position sees {width} with window=3 and with window=4: where does the window come in?",
    )
    expect(
        width == 3,
        f"With window=3 a position sees {width}, and itself counts as one: is a diagonal one step off?",
    )
    counts = sees.sum(dim=1).tolist()
    expect(counts == [1, 2, 3, 3, 3, 3, 3], f"With window=3 the seven positions see {counts} positions.")
    expect(not answer(4, 9).tril().any(), "A window longer than the text blocks something that came before.")
    return "With a window of w, n positions cost about n * w scores instead of n * n."


def repair_attention_stub(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, n_heads, seq, head_dim = q.shape
    scores = q @ k.mT / (n_heads * head_dim) ** 0.5
    blocked = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(blocked, 1e-10).softmax(dim=-1)
    return (weights @ v).reshape(batch, seq, n_heads * head_dim)


def repair_attention(answer: Answer) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 5)
    mixed = answer(q, k, v)
    expect(isinstance(mixed, Tensor), f"It returns {type(mixed).__name__}, not a tensor.")
    expect(mixed.shape == (2, 7, 20), f"The output has shape {tuple(mixed.shape)}, not (2, 7, 4 * 5).")
    expect(
        not mixed.isnan().any(),
        "Some outputs are NaN: does a position see nobody, not even itself, or is a score plus infinity?",
    )
    one = q[:, :1], k[:, :1], v[:, :1]
    alone, right = answer(*one), F.scaled_dot_product_attention(*one, is_causal=True)[:, 0]
    expect(
        torch.allclose(alone, right, atol=1e-5)
        or not torch.allclose(alone.flatten().sort().values, right.flatten().sort().values, atol=1e-5),
        "With a single head the numbers are right, at wrong positions: which two axes change places?",
    )
    expect(
        not _future_leaks(answer, 1, [2]) or _future_leaks(answer, 1, [2], positions=3),
        "Position 3 sees position 4, and position 2 does not: is the mask one step off?",
    )
    expect(
        not _future_leaks(answer, 1, [2]),
        "Changing later values changes earlier outputs, with a single head already: the future leaks. What "
        "is exp of the number put in for blocked scores?",
    )
    sums = answer(*one[:2], torch.ones_like(one[2]))
    expect(
        not (torch.allclose(sums[:, -1], torch.ones(2, 5)) and (sums[:, 0] < 0.999).all()),
        "The weights of the last position add up to 1, those of the first to less: "
        "is something blocked only after the softmax?",
    )
    expect(
        not _future_leaks(answer, 1, [0, 1]),
        "Later values no longer leak, but later queries and keys do: over which axis does the softmax run?",
    )
    expect(
        not _future_leaks(answer, 4, [0, 1, 2]),
        "With one head nothing leaks, with four the future does: are features of several positions mixed "
        "when the heads are put side by side?",
    )
    right = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    expect(
        torch.allclose(mixed.sort(dim=-1).values, right.sort(dim=-1).values, atol=1e-5),
        "Nobody sees the future now, but the weights are others: by which root are the scores divided?",
    )
    expect(
        torch.allclose(mixed, right, atol=1e-5),
        "Each position has the right numbers in the wrong order: how do the heads stand side by side?",
    )


def _future_leaks(answer: Answer, n_heads: int, changed: list[int], positions: int = 4) -> bool:
    """Whether outputs of the first positions move when others of q, k, v (numbers 0 to 2) come at 4 to 6."""
    inputs = torch.randn(3, 2, n_heads, 7, 5)
    others = inputs.clone()
    others[changed, ..., 4:, :] = torch.randn(len(changed), 2, n_heads, 3, 5)
    return not torch.allclose(answer(*inputs)[:, :positions], answer(*others)[:, :positions], atol=1e-5)


def positions_looked_at(answer: Answer) -> str:
    rows = torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1], [0, 1.0, 0, 0]])
    got = answer(rows[1:3])
    expect(isinstance(got, Tensor), f"It returns {type(got).__name__}, not a tensor.")
    expect(got.shape == (2,), f"For weights (2, 4) it returns {tuple(got.shape)}: one number per row.")
    expect(not torch.equal(got, torch.tensor([4, 4])), "That counts every weight above 0, however small.")
    got = got.float()
    entropy = torch.special.entr(rows).sum(-1)
    expect(
        not torch.allclose(got, entropy[1:3]),
        "That is the entropy itself, in nats: 1.39 for four equal weights.",
    )
    for other in ((entropy[1:3] / 0.6931).exp(), 2 ** entropy[1:3]):
        expect(
            not torch.allclose(got, other, atol=1e-2),
            f"Four equal weights give {got[0]:.2f} positions: do logarithm and power have the same base?",
        )
    expect(
        not torch.allclose(got, torch.special.entr(rows[1:3]).exp().sum(-1)),
        f"Four equal weights give {got[0]:.2f} positions: is e raised to each term, before the sum?",
    )
    expect(not (got < 1).any(), "It is below 1, less than a single position: is a minus sign missing?")
    expect(
        not torch.allclose(got, (entropy[1:3] / 4).exp(), atol=1e-3),
        f"Four equal weights give {got[0]:.2f} positions: is it a mean where a sum should be?",
    )
    got = answer(rows).float()
    expect(not got.isnan().any(), "A weight of 0 gives NaN: what is 0 * log(0) in floating point?")
    expect(got.isfinite().all(), "A weight of 0 gives infinity.")
    expect(
        not 1e-3 < abs(got[1].item() - 4) < 0.2,
        f"Four equal weights give {got[1]:.3f} positions, nearly 4: is what you add to a weight too large?",
    )
    expect(
        torch.isclose(got[1], torch.tensor(4.0), atol=1e-3),
        f"Four equal weights give {got[1]:.2f} positions.",
    )
    expect(
        torch.isclose(got[0], torch.tensor(2.0), atol=1e-3),
        f"The weights 0.5, 0.5, 0, 0 give {got[0]:.2f} positions: what should a weight of 0 add to the sum?",
    )
    expect(
        torch.allclose(got, entropy.exp(), atol=1e-4),
        f"Equal weights are right, but 0.7, 0.1, 0.1, 0.1 give {got[2]:.2f}: is it e to the entropy?",
    )
    weights = torch.randn(2, 3, 5, 7).softmax(-1)
    many = answer(weights)
    expect(
        many.shape == (2, 3, 5),
        f"For weights (2, 3, 5, 7) it returns {tuple(many.shape)}: is the axis fixed?",
    )
    right = torch.special.entr(weights).sum(-1).exp()
    expect(
        torch.allclose(many.float(), right, atol=1e-4),
        "Right for a matrix, wrong with more axes: which axis is summed?",
    )
    return "Now apply it to maps: which layer is the sharper one, and what does it do in the first round?"
