"""Wrong answers to lesson 01's exercises."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from planted import planted

Merges = Sequence[tuple[int, int]]


@planted("expensive_text", "no token is shorter than a byte")
def plain_english_nonsense() -> str:
    return "xqzjkvwq"


@planted("expensive_text", "2 bytes at most")
def letters_with_accents() -> str:
    return "ðþæœøß"


@planted("expensive_text", "has merges for some of them")
def a_script_of_three_bytes() -> str:
    return "सुप्रभात"


@planted("expensive_text", "it has met these characters often")
def everyday_emoji() -> str:
    return "🙂🙃😀😎"


@planted("expensive_text", "one lucky find")
def the_same_one_four_times() -> str:
    return "\U000131cb" * 4


@planted("expensive_text", "3 characters are fewer")
def three_of_them() -> str:
    return "\U000131cb\U00013216\U000132aa"


@planted("expensive_text", "too few bytes to cost three tokens")
def runes_with_a_space() -> str:
    return "ᚠᚢᚦᚨᚱ ᚠᚢᚦᚨᚱ"


@planted("decode", "spaces at the ends")
def strips_the_text(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return b"".join(pieces[each] for each in ids).decode(errors="replace").strip()


@planted("decode", "When is it decoded")
def each_piece_by_itself(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return "".join(pieces[i].decode(errors="replace") for i in ids)


@planted("decode", "UnicodeDecodeError")
def stops_at_half_a_character(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return b"".join(pieces[i] for i in ids).decode()


@planted("decode", "they vanish")
def hides_half_a_character(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return b"".join(pieces[i] for i in ids).decode(errors="ignore")


@planted("decode", "one sign for unreadable")
def shows_half_a_character_as_escapes(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return b"".join(pieces[i] for i in ids).decode(errors="backslashreplace")


@planted("decode", "each byte became a character of its own")
def latin_1(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return b"".join(pieces[i] for i in ids).decode("latin-1")


@planted("decode", "how Python prints bytes")
def str_of_bytes(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return str(b"".join(pieces[i] for i in ids))


@planted("decode", "how do they become a text")
def joins_and_stops(ids: Sequence[int], pieces: Sequence[bytes]) -> bytes:
    return b"".join(pieces[i] for i in ids)


@planted("decode", "an entry of pieces")
def ids_as_code_points(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return "".join(chr(i) for i in ids)


@planted("decode", "joined in order, unspaced")
def spaces_between_pieces(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return b" ".join(pieces[i] for i in ids).decode(errors="replace")


@planted("decode", "Which of all the pieces")
def joins_all_the_pieces(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    return b"".join(pieces).decode(errors="replace")


@planted("decode", "what was whole is to be seen")
def one_sign_for_the_whole_text(ids: Sequence[int], pieces: Sequence[bytes]) -> str:
    try:
        return b"".join(pieces[i] for i in ids).decode()
    except UnicodeDecodeError:
        return "�"


@planted("window_count", "starts at 0 counts as well")
def forgets_the_first(n_ids: int, context_length: int, stride: int) -> int:
    return (n_ids - context_length - 1) // stride


@planted("window_count", "what is its target")
def forgets_that_targets_need_one_more(n_ids: int, context_length: int, stride: int) -> int:
    return (n_ids - context_length) // stride + 1


@planted("window_count", "Is the tail rounded up")
def rounds_up(n_ids: int, context_length: int, stride: int) -> int:
    return math.ceil((n_ids - context_length - 1) / stride) + 1


@planted("window_count", "does a window start at the very end")
def ignores_the_context(n_ids: int, context_length: int, stride: int) -> int:
    return (n_ids - 1) // stride + 1


@planted("window_count", "a context later")
def ignores_the_stride(n_ids: int, context_length: int, stride: int) -> int:
    return (n_ids - 1) // context_length


@planted("window_count", "no part of a window")
def divides_exactly(n_ids: int, context_length: int, stride: int) -> float:
    return (n_ids - context_length - 1) / stride + 1


@planted("window_count", "too short for a context")
def goes_below_zero(n_ids: int, context_length: int, stride: int) -> int:
    return (n_ids - context_length - 1) // stride + 1


@planted("window_count", "Which way is it rounded")
def rounds_towards_zero(n_ids: int, context_length: int, stride: int) -> int:
    return max(0, int((n_ids - context_length - 1) / stride) + 1)


@planted("window_count", "Draw it")
def divides_twice(n_ids: int, context_length: int, stride: int) -> int:
    return max(0, (n_ids - 1) // stride - context_length // stride + 1)


@planted("wider_model", "What is 1/d now?")
def keeps_the_narrow_values() -> list[float]:
    return [0.20, 1.00, 0.62, 0.08]


@planted("wider_model", "is the share at d = 128")
def as_at_128() -> list[float]:
    return [0.2, 0.999, 0.906, 0.333]


@planted("wider_model", "How long are they here")
def positions_stay_8_long() -> list[float]:
    return [0.2, 0.999, 0.213, 0.333]


@planted("wider_model", "Is the factor, too")
def forgets_to_square_the_factor() -> list[float]:
    return [0.2, 0.999, 0.978, 0.333]


@planted("wider_model", "shares of the length")
def lengths_not_squared() -> list[float]:
    return [0.333, 0.972, 0.561, 0.414]


@planted("wider_model", "shares of the token")
def shares_of_the_token() -> list[float]:
    return [0.8, 0.001, 0.381, 0.667]


@planted("wider_model", "between 0 and 100")
def in_per_cent() -> list[float]:
    return [20.0, 99.9, 61.9, 33.3]


@planted("wider_model", "What becomes of their ratio")
def longer_tokens_are_heard_without_a_scale() -> list[float]:
    return [0.2, 0.9, 0.619, 0.333]


@planted("wider_model", "after the factor")
def smaller_values_are_drowned() -> list[float]:
    return [0.2, 0.999, 0.619, 0.8]


def _known(word: str, merges: Merges) -> tuple[list[int], dict[tuple[int, int], int]]:
    return list(word.encode()), {pair: new_id for new_id, pair in enumerate(merges, 256)}


@planted("repair_encoder", "was learned first")
def leftmost_first_from_the_start_each_time(word: str, merges: Merges) -> list[int]:
    ids, new_ids = _known(word, merges)
    while known := [i for i, pair in enumerate(pairwise(ids)) if pair in new_ids]:
        i = known[0]
        ids[i : i + 2] = [new_ids[ids[i], ids[i + 1]]]
    return ids


@planted("repair_encoder", "Is the later merge preferred")
def latest_first(word: str, merges: Merges) -> list[int]:
    ids, new_ids = _known(word, merges)
    while known := [pair for pair in pairwise(ids) if pair in new_ids]:
        i = list(pairwise(ids)).index(max(known, key=new_ids.__getitem__))
        ids[i : i + 2] = [new_ids[ids[i], ids[i + 1]]]
    return ids


@planted("repair_encoder", "Is the longest piece always")
def longest_piece_that_fits(word: str, merges: Merges) -> list[int]:
    pieces = {bytes([byte]): byte for byte in range(256)}
    spelled = list(pieces)
    for new_id, (left, right) in enumerate(merges, 256):
        spelled.append(spelled[left] + spelled[right])
        pieces[spelled[-1]] = new_id
    ids, rest = [], word.encode()
    while rest:
        length = max(n for n in range(1, len(rest) + 1) if rest[:n] in pieces)
        ids.append(pieces[rest[:length]])
        rest = rest[length:]
    return ids


@planted("repair_encoder", "from which side does `merge` go")
def merges_from_the_right(word: str, merges: Merges) -> list[int]:
    ids, _ = _known(word, merges)
    for new_id, pair in enumerate(merges, 256):
        i = len(ids) - 2
        while i >= 0:
            if tuple(ids[i : i + 2]) == pair:
                ids[i : i + 2] = [new_id]
            i -= 1
    return ids


@planted("repair_encoder", "is every place merged")
def merges_each_pair_once(word: str, merges: Merges) -> list[int]:
    ids, _ = _known(word, merges)
    for new_id, pair in enumerate(merges, 256):
        pairs = list(pairwise(ids))
        if pair in pairs:
            i = pairs.index(pair)
            ids[i : i + 2] = [new_id]
    return ids


@planted("repair_encoder", "one round too few")
def one_round(word: str, merges: Merges) -> list[int]:
    ids, new_ids = _known(word, merges)
    merged, i = [], 0
    while i < len(ids):
        pair = tuple(ids[i : i + 2])
        merged.append(new_ids.get(pair, ids[i]) if len(pair) == 2 else ids[i])  # type: ignore[call-overload]
        i += 2 if pair in new_ids else 1
    return merged


@planted("repair_encoder", "ids end at")
def ids_one_too_high(word: str, merges: Merges) -> list[int]:
    ids, _ = _known(word, merges)
    for new_id, pair in enumerate(merges, 257):
        while pair in (pairs := list(pairwise(ids))):
            i = pairs.index(pair)
            ids[i : i + 2] = [new_id]
    return ids


@planted("repair_encoder", "gives ids that spell")
def merges_away_a_byte(word: str, merges: Merges) -> list[int]:
    ids, _ = _known(word, merges)
    for new_id, pair in enumerate(merges, 256):
        while pair in (pairs := list(pairwise(ids))):
            i = pairs.index(pair)
            ids[i : i + 3] = [new_id]
    return ids


def _turn(rows: Tensor, angle: Tensor, signs: tuple[int, int] = (1, -1)) -> Tensor:
    sin, cos = rows[..., 0::2], rows[..., 1::2]
    moved = torch.empty_like(rows)
    moved[..., 0::2] = sin * angle.cos() + signs[0] * cos * angle.sin()
    moved[..., 1::2] = cos * angle.cos() + signs[1] * sin * angle.sin()
    return moved


def _angle(rows: Tensor, k: float) -> Tensor:
    d = rows.shape[-1]
    return k * 10000 ** (-torch.arange(0, d, 2) / d)


@planted("move_by_turning", "goes k places back")
def transposed(rows: Tensor, k: int) -> Tensor:
    return _turn(rows, _angle(rows, k), (-1, 1))


@planted("move_by_turning", "Is a sign wrong")
def both_signs_plus(rows: Tensor, k: int) -> Tensor:
    return _turn(rows, _angle(rows, k), (1, 1))


@planted("move_by_turning", "Sine and cosine have changed places")
def columns_swapped(rows: Tensor, k: int) -> Tensor:
    return _turn(rows, _angle(rows, k)).unflatten(-1, (-1, 2)).flip(-1).flatten(-2)


@planted("move_by_turning", "take radians")
def degrees(rows: Tensor, k: int) -> Tensor:
    return _turn(rows, torch.deg2rad(_angle(rows, k)))


@planted("move_by_turning", "an angle of its own")
def the_same_angle_for_all(rows: Tensor, k: int) -> Tensor:
    return _turn(rows, torch.full((rows.shape[-1] // 2,), float(k)))


@planted("move_by_turning", "compare your omega")
def exponent_without_the_two(rows: Tensor, k: int) -> Tensor:
    d = rows.shape[-1]
    return _turn(rows, k * 10000 ** (-torch.arange(d // 2) / d))


@planted("move_by_turning", "compare your omega")
def exponent_without_the_minus(rows: Tensor, k: int) -> Tensor:
    return _turn(rows, k**2 / _angle(rows, k)) if k else rows.clone()


@planted("move_by_turning", "In the table they take turns")
def sines_in_front_cosines_behind(rows: Tensor, k: int) -> Tensor:
    turned = _turn(rows, _angle(rows, k))
    return torch.cat((turned[..., 0::2], turned[..., 1::2]), dim=-1)


@planted("move_by_turning", "not told which ones")
def rows_from_position_0(rows: Tensor, k: int) -> Tensor:
    here = torch.arange(len(rows)) + k
    first = torch.outer(here, _angle(rows, 1))
    return torch.stack((first.sin(), first.cos()), dim=-1).flatten(-2)


@planted("move_by_turning", "by one place, whatever k is")
def forgets_k(rows: Tensor, k: int) -> Tensor:
    return _turn(rows, _angle(rows, float(k != 0)))


@planted("move_by_turning", "The rows changed their order")
def shifts_the_rows(rows: Tensor, k: int) -> Tensor:
    return rows.roll(-k, 0)


@planted("move_by_turning", "overwritten before it was used")
def overwrites_the_sine(rows: Tensor, k: int) -> Tensor:
    moved, angle = rows.clone(), _angle(rows, k)
    moved[..., 0::2] = moved[..., 0::2] * angle.cos() + moved[..., 1::2] * angle.sin()
    moved[..., 1::2] = moved[..., 1::2] * angle.cos() - moved[..., 0::2] * angle.sin()
    return moved


@planted("move_by_turning", "which two features are a pair")
def halves_for_pairs(rows: Tensor, k: int) -> Tensor:
    angle = _angle(rows, k)
    sin, cos = rows.chunk(2, dim=-1)
    turned = sin * angle.cos() + cos * angle.sin(), cos * angle.cos() - sin * angle.sin()
    return torch.cat(turned, dim=-1)
