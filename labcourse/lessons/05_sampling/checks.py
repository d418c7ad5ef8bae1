"""Checks of lesson 05's exercises."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from labcourse.check import Answer, Wrong, expect
from labkit.config import GPTConfig
from labkit.generation import apply_temperature, draw, min_p_filter, top_k_filter, top_p_filter
from labkit.model import GPT, KVCache


def how_many_stay(answer: Answer) -> str:
    counts = answer()
    counts = counts.tolist() if hasattr(counts, "tolist") else counts  # of NumPy or PyTorch
    numbers = isinstance(counts, tuple | list) and all(isinstance(each, int | float) for each in counts)
    expect(numbers and len(counts) == 5, "Return five whole numbers, in the order of the list.")
    z = torch.tensor([0.44, 0.24, 0.16, 0.08, 0.08]).log()
    truth = {
        "Top-k": top_k_filter(z, 4),
        "Top-p": top_p_filter(z, 0.6),
        "Min-p": min_p_filter(z, 0.3),
        "Temperature first": top_p_filter(apply_temperature(z, 0.5), 0.6),
        "Top-p first": apply_temperature(top_p_filter(z, 0.6), 0.5),
    }
    mistakes = {
        ("Top-k", 4): "is there one token in fourth place? Nothing prefers one of two equal logits.",
        ("Top-p", 1): "0.44 alone does not reach 0.6. The token that crosses the line belongs to the set.",
        ("Min-p", 1): "you compared with 0.3 itself. The line is a share of the leader's probability.",
        ("Temperature first", 2): "as many as without it? It squares, then all are divided by their sum.",
        ("Temperature first", 3): "more than without it? Below 1 the leader gains.",
        ("Top-p first", 1): "as few as in the other order? Now it sees what the model said.",
    }
    for said, (name, kept) in zip(counts, truth.items(), strict=True):
        mistake = mistakes.get((name, said), f"it does not keep {said}. Write the five numbers down.")
        expect(said == kept.isfinite().sum(), f"{name}: {mistake}")
    return "A setting found with one order does not carry over to the other."


def which_temperature(answer: Answer) -> str:
    candidates = [1.3, 0.6, 1.0, 2.5]  # the first is not an extreme
    # A text of unlikely tokens, as at a negative temperature, is likeliest at the hottest candidate.
    drawn_at = {0.6: 3, 1.0: 3, -2.0: 3, 1.3: -9, 8.0: 3}
    cases = [(*_drawn(tau, shift), candidates) for tau, shift in drawn_at.items()]
    cases.append((*_always_the_second(), candidates))
    said = [answer(*case) for case in cases]
    for each in said:
        one = isinstance(each, float) and each in candidates
        expect(one, f"It returned {each!r:.40}, not one of the candidates {candidates} itself.")
    right = [0.6, 1.0, 2.5, 1.3, 2.5, 0.6]
    for score, mistake in _TEMPERATURE_MISTAKES.items():
        wrong = [max(candidates, key=lambda tau: score(z, ids, tau)) for z, ids, _ in cases]
        expect(said == right or said != wrong, mistake)
    found = [f"{got} for {best}" for got, best in zip(said, right, strict=True) if got != best]
    expect(not found, f"It finds {', '.join(found)}. Compare the sums of the tokens' log-probabilities.")
    return "Nobody told the function how the texts were written; a few hundred tokens gave it away."


def _drawn(temperature: float, shift: float) -> tuple[Tensor, Tensor]:
    """Logits, (300, 13), around the shift, and a token drawn from each row at this temperature."""
    logits = 2 * torch.randn(300, 13) + shift
    return logits, draw((logits / temperature).softmax(-1), torch.rand(300, dtype=torch.float64))


def _always_the_second() -> tuple[Tensor, Tensor]:
    """Two tokens lead every row, and the text never takes the first: likeliest where the two share most."""
    logits = torch.randn(300, 13)
    first, second = logits.topk(2).indices.unbind(-1)
    rows = torch.arange(300)
    logits[rows, first], logits[rows, second] = 4.1, 4.0
    return logits, second


def _of(rows: Tensor, tokens: Tensor) -> Tensor:
    return rows.gather(-1, tokens[:, None])


_TEMPERATURE_MISTAKES: dict[Callable[[Tensor, Tensor, float], float], str] = {
    lambda z, ids, tau: -_of((z / tau).log_softmax(-1), ids).sum().item(): (
        "It finds the *least* likely candidate: log-probabilities are negative; the one nearest to 0 wins."
    ),
    lambda z, ids, tau: _of((z / tau).softmax(-1), ids).prod().item(): (
        "A product of hundreds of probabilities is 0 in float32 for every candidate, and the first one wins."
    ),
    lambda z, ids, tau: _of((z / tau).softmax(-1), ids).double().prod().item(): (
        "A product of hundreds of probabilities can be 0 in float64 too. Then the first candidate wins."
    ),
    lambda z, ids, tau: (
        -abs(((z / tau).softmax(-1).amax(-1).mean() - (z.argmax(-1) == ids).double().mean()).item())
    ): (
        "You count how often the likeliest token comes. Which of the others come is evidence, too: how "
        "likely is *this* text?"
    ),
    lambda z, ids, tau: _of((z / tau).softmax(-1), ids).sum().item(): (
        "You added probabilities. Those of the tokens multiply to that of the text; what adds up is their "
        "logarithms."
    ),
    lambda z, ids, tau: _of(z / tau, ids).sum().item(): (
        "Adding a number to all logits changes the verdict, and no probability. Is the softmax missing?"
    ),
    lambda z, ids, tau: _of(z.softmax(-1) / tau, ids).log().sum().item(): (
        "The coldest always wins: you divided probabilities by the temperature; such rows do not sum to 1."
    ),
    lambda z, ids, tau: _of((z.softmax(-1) / tau).softmax(-1), ids).log().sum().item(): (
        "You applied the temperature after the softmax, and then another softmax. It divides the logits."
    ),
    lambda z, ids, tau: _of((z / tau).log_softmax(0), ids).sum().item(): (
        "The softmax runs over the places of the text instead of the vocabulary: does each row sum to 1?"
    ),
}


def typical(answer: Answer) -> str:
    logits = torch.randn(5, 11) * torch.tensor([[0.3], [1.0], [2.0], [3.0], [6.0]])
    kept = {}
    for share in (0.3, 0.6, 0.9):
        filtered = answer(logits, share)
        expect(isinstance(filtered, Tensor), "It must return a tensor.")
        expect(filtered.shape == (5, 11), f"Logits (5, 11) came back as {tuple(filtered.shape)}.")
        kept[share] = filtered.isfinite()
        expect(
            torch.where(kept[share], filtered - logits, 0).abs().max() == 0,
            "What stays is another number than before: return the logits that came in, or -inf.",
        )
        expect(
            kept[share].any(-1).all(),
            "In some row nothing is left. The token that crosses the line stays, so there is always one.",
        )
        expect(
            all(
                torch.equal(answer(row[None], share).isfinite()[0], kept[share][i])
                for i, row in enumerate(logits)
            ),
            "Alone, a row keeps other tokens than among others: does a softmax, a sum or a sort run over "
            "the rows instead of the vocabulary?",
        )
    expect(not kept[0.3].all(), "Nothing is cut.")
    for distance, mistake in _TYPICAL_MISTAKES.items():
        same = all(torch.equal(kept[share], _nearest(logits, share, distance)) for share in kept)
        expect(not same, mistake)
    right = {
        share: _nearest(logits, share, lambda surprise, entropy: (surprise - entropy).abs()) for share in kept
    }
    if any(not torch.equal(kept[share], right[share]) for share in kept):
        expect(
            any(not torch.equal(kept[share].sum(-1), right[share].sum(-1)) for share in kept),
            "As many tokens stay as should, but others: are the verdicts still in sorted order? Each has to "
            "go back to the place that its token came from.",
        )
        raise Wrong(
            "The wrong tokens stay. Try it on the four of hint 1: what are entropy, distances and order?"
        )
    dropped = sum(int((~right[share].gather(-1, logits.argmax(-1, keepdim=True))).sum()) for share in kept)
    return (
        f"In {dropped} of 15 cases it dropped the likeliest token. No other filter of this lesson does that."
    )


Distance = Callable[[Tensor, Tensor], Tensor]


def _nearest(logits: Tensor, share: float, distance: Distance) -> Tensor:
    """True for the tokens that come first by a distance of (surprise, entropy) until they cover the share."""
    keep = torch.zeros_like(logits, dtype=torch.bool)
    for row, logp in enumerate(logits.log_softmax(-1)):
        covered = 0.0
        for token in distance(-logp, (logp.exp() * -logp).sum()).argsort().tolist():
            if covered < share:
                keep[row, token] = True
                covered += logp[token].exp().item()
    return keep


_TYPICAL_MISTAKES: dict[Distance, str] = {
    lambda surprise, _: surprise: (
        "This is top-p: the likeliest stay. What counts is the distance between surprise and entropy, and a "
        "distance has no sign."
    ),
    lambda surprise, entropy: -(surprise - entropy).abs(): (
        "The tokens farthest from the entropy come first: is the sort the wrong way round?"
    ),
    lambda surprise, entropy: (surprise - entropy / math.log(2)).abs(): (
        "The entropy is in bits and the surprise in nats: take the same logarithm for both."
    ),
    lambda surprise, _: (surprise - surprise.mean()).abs(): (
        "The entropy is the mean surprise *under p*: a token counts as much as it is likely."
    ),
}


def repair_cache_stub(model: GPT, ids: Tensor, count: int) -> Tensor:
    cache = KVCache(model.config, len(ids))
    model(ids, cache=cache)
    for _ in range(count):
        logits = model(ids, cache=cache)[:, -1]
        token = logits.argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], dim=1)
    return ids


def repair_cache(answer: Answer) -> str:
    model, ids, count = _sensitive_model(), torch.randint(17, (3, 5)), 9
    calls: list[tuple[Tensor, bool]] = []

    def note(_: Any, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        calls.append((given[0], any(isinstance(each, KVCache) for each in (*given, *named.values()))))

    with torch.inference_mode(), model.register_forward_pre_hook(note, with_kwargs=True):
        text = answer(model, ids, count)
    expect(isinstance(text, Tensor), "It must return a tensor of ids.")
    expect(
        text.shape == (3, 14), f"3 prompts of 5 ids and count=9 gave shape {tuple(text.shape)}, not (3, 14)."
    )
    expect(torch.equal(text[:, :5], ids), "The texts must begin with their prompts.")
    right, read = _greedy(model, ids, count), torch.cat([each for each, _ in calls], dim=1)
    if not torch.equal(text, right):
        expect(
            all(cached or each.shape[1] > 1 for each, cached in calls),
            "Some token was read alone and without the cache: the model knew nothing of the text before it.",
        )
        expect(
            any(row != text[0, 5:].tolist() for row in text[1:, 5:].tolist()),
            "All texts go on alike: is a token chosen for each row?",
        )
        expect(
            all(each.shape[1] == 1 for each, _ in calls[1:]),
            "After the prompt some call reads several tokens. What of them does the cache hold already?",
        )
        n = min(read.shape[1], 14)
        same = int((read[:, :n] == text[:, :n]).all(0).long().cumprod(0).sum())
        expect(
            same == n,
            f"Token {same + 1} that the cache gets is not token {same + 1} of the text: is one read "
            "twice, or left out?",
        )
        raise Wrong(
            "The cache gets the right tokens, but another one is written than the model finds likeliest."
        )
    expect(
        read.shape[1] <= 14,
        f"The text is right, but {read.shape[1]} tokens were read for a text of 14. What is saved?",
    )
    expect(all(cached for _, cached in calls), "The text is right, but some call was made without the cache.")
    return "No error would have told: compare with the model without a cache whenever you touch such code."


def _sensitive_model() -> GPT:
    """A random model with weights so large that its greedy text depends on all it has read."""
    model = GPT(GPTConfig(vocab_size=17, context_length=128, d_model=24, n_layers=2, n_heads=3)).eval()
    for name, weight in model.named_parameters():
        weight.data *= 12 if "attention" in name else 6
    return model


@torch.inference_mode()
def _greedy(model: GPT, ids: Tensor, count: int) -> Tensor:
    for _ in range(count):
        ids = torch.cat([ids, model(ids)[:, -1].argmax(-1, keepdim=True)], dim=1)
    return ids


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
