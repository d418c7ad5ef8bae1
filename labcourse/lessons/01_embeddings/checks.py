"""Checks of lesson 01's exercises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

from labcourse.check import Answer, expect
from labkit.model import LearnedPositions, SinusoidalPositions
from labkit.text import GPT2Tokenizer, WindowDataset


def expensive_text(answer: Answer) -> str:
    text = answer()
    expect(isinstance(text, str), f"It returns {type(text).__name__}, not a text.")
    expect(not any("\ud800" <= c <= "\udfff" for c in text), "Half of a UTF-16 pair is no character.")
    expect(len(text) >= 4, f"{len(text)} characters are fewer than four.")
    expect(
        len(set(text)) >= 4,
        f"Different characters: {len(set(text))}. Four are asked for: one lucky find is not enough.",
    )
    tokens = len(GPT2Tokenizer().encode(text))
    share, widest = tokens / len(text), max(len(character.encode()) for character in text)
    cost = f"{tokens} tokens for {len(text)} characters, {share:.2f} each"
    expect(
        share >= 3 or widest >= 3,
        f"{cost}. Its characters have {widest} byte{'s' if widest > 1 else ''} at most, and no token is "
        "shorter than a byte. How many bytes does a character need at least?",
    )
    narrow = min(text, key=lambda character: len(character.encode()))
    expect(
        share >= 3 or len(narrow.encode()) >= 3,
        f"{cost}. {narrow!r} has too few bytes to cost three tokens. What does the text cost without such?",
    )
    expect(
        share >= 3,
        f"{cost}. There are enough bytes, but GPT-2 has merges for some of them: it has met these "
        "characters often. Which ones are rarer on the English web?",
    )
    return f"{cost}: of such text a context of 1,024 tokens holds {int(1024 / share)} characters."


def decode(answer: Answer) -> str:
    pieces = [bytes([byte]) for byte in range(256)] + [b"na", b"caf\xc3", b" ", b"\xa9!"]
    text = answer([99, 97, 102, 102], pieces)
    expect(not isinstance(text, bytes), "These are bytes: how do they become a text?")
    expect(isinstance(text, str), f"It returns {type(text).__name__}, not a text.")
    expect(not text.startswith(("b'", 'b"', "[")), "That is how Python prints bytes, not what they spell.")
    expect(len(text) < 99, f"Four ids give {len(text)} characters. Which of all the pieces do the ids name?")
    expect(text == "caff", f"The bytes of 'caff' give {text!r}: are the pieces joined in order, unspaced?")
    text = answer([256, 256, 258, 110], pieces)
    expect(
        text == "nana n",
        f"Pieces na, na, space, n give {text!r}. What does an id stand for: a character, or an entry of "
        "pieces?",
    )
    text = answer([258, 110, 258], pieces)
    expect(text == " n ", f"Space, n, space give {text!r}: the spaces at the ends belong to the text, too.")
    smile = "a🙂é"
    text = answer(list(smile.encode()), pieces)
    expect(
        text != smile.encode().decode("latin-1"),
        f"{smile!r} gives {text!r}: each byte became a character of its own, as if it were not UTF-8.",
    )
    expect(
        "�" not in text and text != "a",
        f"{smile!r} gives {text!r}: a character of several bytes may be spread over several tokens. When "
        "is it decoded?",
    )
    expect(text == smile, f"{smile!r} gives {text!r}.")
    expect(answer([257, 259], pieces) == "café!", "An é whose two bytes lie in two merged pieces is lost.")
    cut = answer(list("🙂".encode()[:2]), pieces)
    expect(
        cut != "",
        "Two bytes of four give an empty text: they vanish, and nobody sees that something was there.",
    )
    expect("\\" not in cut, f"Two bytes of four give {cut!r}: a reader should see one sign for unreadable.")
    expect(cut == "�", f"Two bytes of four give {cut!r} instead of the sign for what cannot be read.")
    cut = answer(list("no🙂".encode()[:4]), pieces)
    expect(cut == "no�", f"'no' and two bytes of four give {cut!r}: what was whole is to be seen as well.")
    expect(answer([], pieces) == "", "No ids give some text.")
    return "A program that shows a model's text while it is written must wait for whole characters, too."


def window_count(answer: Answer) -> str:
    def count(n_ids: int, context_length: int, stride: int) -> float:
        given = answer(n_ids, context_length, stride)
        given = given.item() if hasattr(given, "item") else given  # numbers of numpy and torch
        expect(
            isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given),
            f"It returns {given!r}, not a number.",
        )
        return float(given)

    asked = "For 1,000 ids, context 64 and stride 16"
    given = count(1000, 64, 16)
    expect(given == int(given), f"{asked} it gives {given}: there is no part of a window. Use //.")
    expect(given != 58, f"{asked} it gives 58: the window that starts at 0 counts as well.")
    expect(
        given != 60,
        f"{asked} it gives 60: the last one would reach past the end. Is the tail rounded up?",
    )
    expect(given not in (62, 63), f"{asked} it gives {given:.0f}: does a window start at the very end?")
    expect(given not in (15, 16), f"{asked} it gives {given:.0f}: does the next one start a context later?")
    expect(
        count(18, 6, 6) != 3,
        "For 18 ids, context 6 and stride 6 it gives 3. The third input would end with the last id: what "
        "is its target?",
    )
    small = list(product(range(7, 20), (3, 6), (1, 2, 4, 9)))
    for case in ((1000, 64, 16), (18, 6, 6), (20, 6, 4), (65, 64, 1), (977, 31, 7), *small):
        right = len(WindowDataset(torch.arange(case[0]), *case[1:]))
        given = count(*case)
        expect(given == right, f"For ids, context, stride = {case} it gives {given:.0f}. Draw it.")
    short = count(2, 20, 3)
    expect(short == 0, f"2 ids are too short for a context of 20, but it gives {short:.0f} windows.")
    short = count(6, 6, 4)
    expect(
        short == 0,
        f"6 ids hold an input of 6 and no target, but it gives {short:.0f}. Which way is it rounded?",
    )
    return "WindowDataset computes its length in the same way; it never lists the windows."


def _shares(d_model: int, exponent: int = 2) -> list[float]:
    """The position's share of the four inputs in Experiment 4, at another width."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(500, d_model, generator=generator)
    learned = torch.randn(64, d_model, generator=generator) * LearnedPositions(64, 3).weight.std().item()
    waves = SinusoidalPositions(64, d_model)(64)
    settings = [(learned, 1.0, 0.02), (waves, 1.0, 0.02)]
    settings += [(waves, d_model**0.5, 0.02), (waves, d_model**0.5, d_model**-0.5)]
    shares = []
    for positions, c, std in settings:
        position, token = (rows.norm(dim=1).pow(exponent).mean() for rows in (positions, c * std * numbers))
        shares.append((position / (position + token)).item())
    return shares


def wider_model(answer: Answer) -> str:
    given = answer()
    given = given.tolist() if hasattr(given, "tolist") else given  # of numpy and torch
    expect(isinstance(given, Sequence) and not isinstance(given, str), "Return four shares, in a list.")
    expect(len(given) == 4, f"It returns {len(given)} numbers, not four.")
    expect(
        all(isinstance(each, int | float) and math.isfinite(each) for each in given), "They must be numbers."
    )
    expect(all(0 <= each <= 1 for each in given), "Shares lie between 0 and 1, not between 0 and 100.")
    right = _shares(768)

    def like(others: Sequence[float]) -> bool:
        return all(abs(mine - other) < 0.02 for mine, other in zip(given, others, strict=True))

    expect(not like([1 - each for each in right]), "These are the shares of the token. ρ is the other part.")
    expect(not like(_shares(768, 1)), "These are shares of the length. ρ compares squared lengths.")
    names = ("learned", "sinusoids, c = 1", "sinusoids, c = √d", "sinusoids, c = √d, E from N(0, 1/d)")
    hints = (
        "Both tables begin with random numbers of a fixed spread, and both get longer rows. In the same way?",
        "A token has length 0.02 √d here, and a position √(d/2). What becomes of their ratio when d grows?",
        "",
        "What is the length of a row from N(0, 1/d), after the factor? Do both lengths grow alike?",
    )
    expect(
        abs(given[3] - 0.077) > 0.02,
        f"{names[3]}: {given[3]:.3f} is what one measures with the values of d = 128. What is 1/d now?",
    )
    for number, name in enumerate(names):
        if number != 2:
            seen = f"{name}: {given[number]:.3f} is not what one measures. {hints[number]}"
            expect(abs(given[number] - right[number]) < 0.02, seen)
    third = f"{names[2]}: {given[2]:.2f}"
    expect(
        abs(given[2] - 0.906) > 0.02,
        f"{third} is the share at d = 128. The factor c is √d: does its square not change?",
    )
    expect(
        abs(given[2] - 0.213) > 0.02, f"{third} is right for positions of length 8. How long are they here?"
    )
    expect(abs(given[2] - 0.978) > 0.02, f"{third} is too much: lengths are squared. Is the factor, too?")
    expect(abs(given[2] - right[2]) < 0.02, f"{third} is not what one measures. How long is a scaled token?")
    return "Only one of the four depends on the width: a scale that grows wants values that shrink."


def repair_encoder_stub(word: str, merges: Sequence[tuple[int, int]]) -> list[int]:
    ids = list(word.encode())
    new_ids = {pair: new_id for new_id, pair in enumerate(merges, 256)}
    i = 0
    while i < len(ids) - 1:
        pair = (ids[i], ids[i + 1])
        if pair in new_ids:
            ids[i : i + 2] = [new_ids[pair]]
            i = max(i - 1, 0)  # perhaps the new piece fits the one before
        else:
            i += 1
    return ids


_A, _B, _C = b"abc"
_ENCODER_CASES: tuple[tuple[str, list[tuple[int, int]], list[int], str], ...] = (
    ("abxab", [(_A, _B)], [256, 120, 256], "'ab' is known and comes twice: is every place merged?"),
    ("aaa", [(_A, _A)], [256, _A], "'aa' overlaps itself in 'aaa': from which side does `merge` go?"),
    (
        "abab",
        [(_A, _B), (256, 256)],
        [257],
        "Two new pieces are a pair again: is there one round too few?",
    ),
    (
        "abc",
        [(_A, _B), (_B, _C)],
        [256, _C],
        "'ab' was learned before 'bc', and it was 'bc' that was merged. Is the later merge preferred?",
    ),
    (
        "abc",
        [(_A, _B), (_B, _C), (_A, 257)],
        [256, _C],
        "'abc' is a piece, made of a and bc. Could it come about here, where 'ab' was learned first? Is the "
        "longest piece always the one that training made?",
    ),
    (
        "abc",
        [(_B, _C), (_A, _B)],
        [_A, 256],
        "'bc' was learned before 'ab', and it was 'ab' that was merged. Which pair goes first: the one that "
        "stands first, or the one that was learned first?",
    ),
)


def repair_encoder(answer: Answer) -> str:
    for word, merges, right, mistake in _ENCODER_CASES:
        given = answer(word, merges)
        expect(isinstance(given, list | tuple), f"It returns {type(given).__name__}, not a list of ids.")
        pieces = [bytes([byte]) for byte in range(256)]
        for left, second in merges:
            pieces.append(pieces[left] + pieces[second])
        known = all(isinstance(each, int) and 0 <= each < len(pieces) for each in given)
        expect(known, f"{word!r} gives {given}: with {len(merges)} merges ids end at {255 + len(merges)}.")
        spelled = b"".join(pieces[each] for each in given)
        expect(spelled == word.encode(), f"{word!r} gives ids that spell {spelled!r}.")
        expect(list(given) == right, f"In {word!r}: {mistake}")
    merges = [(104, 101), (32, 116), (257, 256), (116, 256), (32, 97), (97, 116), (259, 114), (258, 114)]
    for word in ("", "é", " the", "there", " theatre", "that's", " at", " hhee🙂the"):
        given = list(answer(word, merges))
        right = _in_order(word, merges)
        expect(given == right, f"{word!r} gives {given}. Apply the merges one after the other, by hand.")
    return "decode gave back every word before and after. A round trip does not test an encoder."


def _in_order(word: str, merges: Sequence[tuple[int, int]]) -> list[int]:
    ids = list(word.encode())
    for new_id, pair in enumerate(merges, 256):
        while pair in (pairs := list(pairwise(ids))):
            place = pairs.index(pair)
            ids[place : place + 2] = [new_id]
    return ids


def _turned(rows: Tensor, angles: Tensor) -> Tensor:
    """Pairs (sine, cosine) of neighbouring features, moved on by these angles."""
    sine, cosine = rows.unflatten(-1, (-1, 2)).unbind(-1)
    on = sine * angles.cos() + cosine * angles.sin(), cosine * angles.cos() - sine * angles.sin()
    return torch.stack(on, dim=-1).flatten(-2)


def move_by_turning(answer: Answer) -> str:
    table, places = SinusoidalPositions(40, 12)(40), torch.tensor([13, 9, 8, 21, 30])
    rows = table[places]  # in no order, so that nothing can be read off the neighbours

    def like(moved: Tensor, other: Tensor) -> bool:
        return torch.allclose(moved, other, atol=1e-4)

    moved, unmoved = answer(rows, 7), answer(rows, 0)
    for each in (moved, unmoved):
        expect(isinstance(each, Tensor), f"It returns {type(each).__name__}, not a tensor.")
        expect(each.shape == rows.shape, f"Rows {tuple(rows.shape)} become {tuple(each.shape)}.")
        expect(each.is_floating_point(), f"It returns numbers of type {each.dtype}.")
    moved, unmoved = moved.float(), unmoved.float()
    swapped = rows.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    expect(not like(unmoved, swapped), "Sine and cosine have changed places: which features are even?")
    halves = torch.cat((rows[:, 0::2], rows[:, 1::2]), dim=1)
    expect(
        not like(unmoved, halves),
        "All sines stand in the first half and all cosines in the second. In the table they take turns.",
    )
    expect(
        not like(unmoved, table[:5]),
        "It takes the rows for the first positions, 0, 1, 2 and so on. You are not told which ones they are.",
    )
    expect(like(unmoved, rows), "Moved by 0 places the rows are others. What are sine and cosine of 0?")
    expect(not like(moved, rows), "Nothing has moved.")
    expect(not like(moved, table[places + 1]), "It moves by one place, whatever k is.")
    expect(
        not like(moved, rows.roll(-7, 0)),
        "The rows changed their order. Each row is to be turned by itself: its neighbour may be anybody.",
    )
    expect(
        not like(moved, table[places - 7]),
        "It goes k places back instead of on: which of the two sines has the minus sign?",
    )
    omega = 10000 ** (-torch.arange(0, 12, 2) / 12)
    expect(
        not like(moved, _turned(rows, torch.deg2rad(7 * omega))),
        "It turns far too little: sin and cos take radians, and k times omega are radians.",
    )
    lengths = moved.unflatten(-1, (-1, 2)).norm(dim=-1)
    expect(
        like(lengths, torch.ones(5, 6)),
        "Some pairs have changed their length, and a turn keeps it. Is a sign wrong, or was a sine "
        "overwritten before it was used? And which two features are a pair?",
    )
    right = table[places + 7]
    expect(
        not like(moved, _turned(rows, torch.full((6,), 7.0))),
        "All pairs turn by the same angle, but each pair has an angle of its own.",
    )
    expect(
        like(moved, right) or not like(moved[:, :2], right[:, :2]),
        "The first pair is right and others are not: compare your omega with the formula, for i = 1.",
    )
    expect(like(moved, right), "These are turns, but not by k times omega. What is omega of the first pair?")
    short = SinusoidalPositions(9, 6)(9)
    expect(like(answer(short[4:6], 3), short[7:9]), "Right with 12 features and wrong with 6: is d fixed?")
    expect(like(answer(short[4:6], -3), short[1:3]), "It does not go back when k is negative.")
    return "RoPE, in lesson 07, turns queries and keys in just this way."
