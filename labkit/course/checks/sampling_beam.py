"""Check of the beam, lesson 05's last exercise."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from labkit.course.check import Answer, Wrong, expect

Says = Callable[[Tensor], Tensor]


def beam_search(answer: Answer) -> str:
    worlds = [(_world(), [4, number % 5]) for number in range(8)]
    calls: list[Tensor] = []
    one, three = ([_beams(*world, b)[0] for world in worlds] for b in (1, 3))
    greedy = [text for _, text in one]
    alone = [_found(answer, *world, 1, calls) for world in worlds]
    multiplied = [
        _beams(*world, 1, lambda score, last: (score or 1.0) * last)[0][1] for world in worlds
    ]  # the first beginning has the score 1
    expect(
        alone != multiplied,
        "You multiply log-probabilities: two negative numbers, and the unlikeliest child wins. Probabilities "
        "multiply; their logarithms add up.",
    )
    expect(
        alone == greedy,
        "With b=1 it is not greedy's text: one beginning goes on with its likeliest child. "
        "Do the scores add up logarithms, from 0 on?",
    )
    found = [_found(answer, *world, 3, calls) for world in worlds]
    if found != [text for _, text in three]:
        expect(
            found != greedy or len(calls[0]) == 1,
            "It is greedy's text: the first step has three equal rows, and so the same child three times.",
        )
        expect(
            found != greedy,
            "It is greedy's text: are all beams' children compared, or those of one beam only?",
        )
        for search, mistake in _BEAM_MISTAKES.items():
            expect(found != [search(*world)[1] for world in worlds], mistake)
        raise Wrong(
            "With b=3 other texts win than should. Does each survivor keep the row and score of its parent?"
        )
    expect(
        max(map(len, calls)) <= 3,
        f"With b=3 it asked about {max(map(len, calls))} rows: keep only b of them.",
    )
    wide = [_found(answer, *world, 7, calls) for world in worlds]
    expect(
        wide == [_beams(*world, 7)[0][1] for world in worlds],
        "With b=7 and five tokens other texts win than should: the first step has five children, no more.",
    )
    ahead = sum(beam > each for (beam, _), (each, _) in zip(three, one, strict=True))
    return f"In {ahead} of {len(worlds)} small worlds a beam of 3 found a likelier text than greedy did."


def _world() -> Says:
    """Five tokens, whose probabilities depend on the whole text."""
    table = (1.5 * torch.randn(997, 5)).log_softmax(-1)
    return lambda rows: table[(rows * 7 ** torch.arange(rows.shape[1])).sum(1) % 997]


def _found(answer: Answer, says: Says, ids: list[int], b: int, calls: list[Tensor]) -> list[int]:
    calls.clear()

    def watched(rows: Tensor) -> Tensor:
        expect(
            isinstance(rows, Tensor) and rows.ndim == 2,
            "log_probabilities wants a tensor of ids (beams, seq).",
        )
        calls.append(rows)
        return says(rows)

    new = answer(watched, ids, 6, b)
    new = new.tolist() if isinstance(new, Tensor) else new
    whole = isinstance(new, list | tuple) and all(isinstance(each, int) for each in new)
    expect(whole, f"It returned {new!r:.60}, not a list of ids.")
    expect(len(new) == 6, f"With count=6 it returned {len(new)} ids; the prompt is no part of them.")
    return list(new)


def _beams(
    says: Says,
    ids: list[int],
    b: int,
    total: Callable[[float, float], float] = lambda score, last: score + last,
    *,
    mixed: bool = False,
) -> list[tuple[float, list[int]]]:
    """Scores and new ids of all beams, best first; with other arguments, what mistakes find."""
    beams = [(0.0, list(ids))]
    for _ in range(6):
        children = [
            (total(score, last), parent, token)
            for parent, (score, row) in enumerate(beams)
            for token, last in enumerate(says(torch.tensor([row]))[0].tolist())
        ]
        best = enumerate(sorted(children, reverse=True)[:b])
        beams = [
            (score, [*beams[place % len(beams) if mixed else parent][1], token])
            for place, (score, parent, token) in best
        ]
    return [(score, row[len(ids) :]) for score, row in beams]


def _alone_to_the_end(says: Says, ids: list[int], b: int) -> tuple[float, list[int]]:
    """The first step's b children, each continued greedily, and the best of these texts."""
    ends = []
    first = says(torch.tensor([ids]))[0]
    for token in first.topk(b).indices.tolist():
        score, new = first[token].item(), [token]
        for _ in range(5):
            said = says(torch.tensor([[*ids, *new]]))[0]
            score, new = score + said.max().item(), [*new, int(said.argmax())]
        ends.append((score, new))
    return max(ends)


_BEAM_MISTAKES: dict[Callable[[Says, list[int]], tuple[float, list[int]]], str] = {
    lambda says, ids: _beams(says, ids, 3, lambda _, last: last)[0]: (
        "Beams are ranked by their last token alone. A text is as likely as all of its tokens: "
        "their logarithms add up."
    ),
    lambda says, ids: _beams(says, ids, 3, lambda score, last: score + math.exp(last))[0]: (
        "Probabilities are added instead of their logarithms: is there an exp too many?"
    ),
    lambda says, ids: _beams(says, ids, 3, mixed=True)[0]: (
        "Tokens are appended to the wrong beginnings: bring the rows into the order of the "
        "survivors' parents first."
    ),
    lambda says, ids: _alone_to_the_end(says, ids, 3): (
        "Every beam has one child that stays. At each step the b likeliest of *all* children stay: one beam "
        "may have two of them, and another none."
    ),
    lambda says, ids: _beams(says, ids, 3)[-1]: "It returns the last of the beams, not the likeliest.",
}
