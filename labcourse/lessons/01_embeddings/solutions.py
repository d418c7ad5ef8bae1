"""Solutions of lesson 01's exercises."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor


def expensive_text() -> str:
    """Egyptian hieroglyphs: four bytes each, and GPT-2 has no merge for any of them.

    So each costs four tokens, one per byte, which is as much as a character can cost. Three tokens per
    character are common: runes and many emoji, but also Georgian and Amharic, which millions of people write
    every day. Chinese and Hindi have three bytes per character too, but were frequent enough for some merges.
    """
    return "\U000131cb\U00013216\U000132aa\U00013171"


def decode(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    """Join first, decode once.

    A piece may be a part of a character, so no piece can be decoded by itself. What is cut at the end
    becomes `�`: it is wrong to stop with an error over a half character, and wrong to hide it.
    """
    return b"".join(pieces[i] for i in ids).decode("utf-8", errors="replace")


def window_count(n_ids: int, context_length: int, stride: int) -> int:
    """The last start is `n_ids - context_length - 1`, since the last input needs a target one place further.

    Starts are the multiples of the stride from 0 to there, and 0 is one of them: hence the `+ 1`. A text
    that is too short makes the quotient negative; `max` turns that into no window.
    """
    return max(0, (n_ids - context_length - 1) // stride + 1)


def wider_model() -> list[float]:
    """Squared length: $d \\sigma^2$ for $d$ numbers of standard deviation $\\sigma$, $d/2$ for a sinusoid.

    - Learned: $0.01^2 / (0.01^2 + 0.02^2) = 0.2$; $d$ cancels.
    - Sinusoids, $c = 1$: $\\frac12 / (\\frac12 + 0.02^2) = 0.999$; $d$ cancels again.
    - $c = \\sqrt d$: the token's part is times $d$: $\\frac12 / (\\frac12 + 768 \\cdot 0.02^2) = 0.62$.
    - With $E$ from $\\mathcal N(0, 1/d)$ that $d$ cancels too: $\\frac12 / (\\frac12 + 1) = 1/3$.
    """
    d = 768
    return [0.2, 0.5 / (0.5 + 0.02**2), 0.5 / (0.5 + d * 0.02**2), 1 / 3]


def repair_encoder(word: str, merges: Sequence[tuple[int, int]]) -> list[int]:
    """The broken one merged the pair that stood first. Training merged the pair that it had learned first.

    The two agree until pairs overlap: in *the* both `th` and `he` may be known, and only one can have the
    *h*. So each round takes, of all known pairs in the word, the one with the lowest id. That gives the same
    as one merge after the other, without trying merges that the word does not have.
    """
    ids = list(word.encode())
    new_ids = {pair: new_id for new_id, pair in enumerate(merges, 256)}
    while known := [pair for pair in pairwise(ids) if pair in new_ids]:
        pair = min(known, key=new_ids.__getitem__)
        i = list(pairwise(ids)).index(pair)
        ids[i : i + 2] = [new_ids[pair]]
    return ids


def move_by_turning(rows: Tensor, k: int) -> Tensor:
    """Going $k$ places on adds $k \\omega_i$ to the angle of pair $i$, wherever it was.

    With $\\sin(x + a) = \\sin x \\cos a + \\cos x \\sin a$ and
    $\\cos(x + a) = \\cos x \\cos a - \\sin x \\sin a$ the new pair follows from the old one alone: one need
    not know which position $x$ belongs to.
    """
    d = rows.shape[-1]
    angle = k * 10000 ** (-torch.arange(0, d, 2) / d)
    sin, cos = rows[..., 0::2], rows[..., 1::2]
    moved = torch.empty_like(rows)
    moved[..., 0::2] = sin * angle.cos() + cos * angle.sin()
    moved[..., 1::2] = cos * angle.cos() - sin * angle.sin()
    return moved
