"""Byte-level byte-pair encoding: trained on a corpus, and GPT-2's own.

A text is cut into pre-tokens by GPT-2's pattern, each pre-token into bytes, and the bytes are merged
pair by pair in the order in which training learned the pairs. No byte is unknown, so every text has
ids. Training is ours; tiktoken runs the merges.
Source: Sennrich et al. (2016); Radford et al. (2019), section 2.2.
"""

from __future__ import annotations

import heapq
import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any, Self

import numpy as np
import regex  # type: ignore[import-untyped]
import tiktoken
from tqdm.auto import tqdm

from labkit.text.assets import ASSETS, use_offline_tiktoken
from labkit.text.tokenizers import END_OF_TEXT, Tokenizer, refuse_surrogates

# GPT-2's: contractions, words, numbers and marks, each with one space before it, and runs of white
# space. The possessive ++ changes no result, it only keeps long runs from costing quadratic time.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"

Pair = tuple[int, int]


class _ByteLevelTokenizer(Tokenizer):
    """What tiktoken does, behind the interface of `Tokenizer`."""

    _encoding: tiktoken.Encoding

    def token_bytes(self, token_id: int) -> bytes:
        return self._encoding.decode_single_token_bytes(self._check_id(token_id))

    def decode(self, ids: Any) -> str:
        return self._encoding.decode(self._checked_ids(ids), errors="replace")

    def _encode(self, text: str) -> np.ndarray:
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def _encode_all(self, texts: list[str]) -> list[np.ndarray]:
        """By as many threads as there are cores: tiktoken works without Python's lock."""
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(pool.map(self._encode, texts))


class BPETokenizer(_ByteLevelTokenizer):
    """Byte-level BPE: ids 0 .. 255 are the bytes, then one id per merge, then the end of a text.

    merges: pairs of ids in the order they were learned, each of ids that exist by then.
    """

    name = "bpe"
    eos_id: int

    def __init__(self, merges: Iterable[Pair]) -> None:
        self.merges = [(int(left), int(right)) for left, right in merges]
        pieces = [bytes([byte]) for byte in range(256)]
        for number, (left, right) in enumerate(self.merges):
            if not (0 <= left < len(pieces) and 0 <= right < len(pieces)):
                raise ValueError(
                    f"bpe: merge {number} is ({left}, {right}), but only {len(pieces)} ids exist."
                )
            pieces.append(pieces[left] + pieces[right])
        ranks = {piece: rank for rank, piece in enumerate(pieces)}
        if len(ranks) < len(pieces):
            raise ValueError("bpe: two merges make the same bytes; each must make a new piece.")
        self.eos_id = len(pieces)
        self.vocab_size = len(pieces) + 1
        self._encoding = tiktoken.Encoding(
            "labkit-bpe",
            pat_str=PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: self.eos_id},
        )

    def _definition(self) -> dict[str, Any]:
        """Merges as GPT-2's files write them: "t h", with the bytes that do not print as other letters."""
        show = _printable_bytes()
        shown = ["".join(show[byte] for byte in self.token_bytes(i)) for i in range(self.eos_id)]
        return {"kind": "bpe", "merges": [f"{shown[left]} {shown[right]}" for left, right in self.merges]}

    @classmethod
    def _from_definition(cls, definition: dict[str, Any]) -> Self:
        ids = {character: byte for byte, character in _printable_bytes().items()}
        merges = []
        for line in definition["merges"]:
            left, _, right = line.partition(" ")
            merges.append((ids[left], ids[right]))
            ids[left + right] = 256 + len(merges) - 1
        return cls(merges)


class GPT2Tokenizer(_ByteLevelTokenizer):
    """GPT-2's byte-level BPE: 50,257 ids, the last one the end of a text. Needs no network."""

    name = "gpt2"
    eos_id: int

    def __init__(self) -> None:
        use_offline_tiktoken()
        self._encoding = tiktoken.get_encoding("gpt2")
        self.vocab_size = self._encoding.n_vocab
        self.eos_id = self._encoding.eot_token

    def _definition(self) -> dict[str, Any]:
        return {"kind": "gpt2", "files": ASSETS["gpt2-tokenizer"].digest}

    @classmethod
    def _from_definition(cls, definition: dict[str, Any]) -> Self:
        return cls()


def train_bpe(texts: str | Iterable[str], vocab_size: int, *, progress: bool = True) -> BPETokenizer:
    """Learn byte-level BPE: merge the most frequent pair of neighbours until vocab_size ids exist.

    texts: one text or several; no pair reaches across their borders, nor across pre-tokens.
    vocab_size: 256 bytes + the merges + 1 for the end of a text.  Of pairs equally frequent, the one
    with the lowest ids is merged. Raises ValueError where vocab_size is below 257, or the texts run out
    of pairs before it is reached.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    if vocab_size < 257:
        raise ValueError(
            f"train_bpe: vocab_size={vocab_size} is below 257 (256 bytes and the end of a text)."
        )
    counts: Counter[str] = Counter()
    cut = regex.compile(PATTERN)
    for text in texts:
        refuse_surrogates(text, "train_bpe")
        counts.update(cut.findall(text))
    # Each distinct pre-token once, with how often it occurs: some 40,000 instead of a million.
    words = [list(word.encode()) for word in counts]
    frequency = list(counts.values())
    merges = _learn_merges(words, frequency, vocab_size - 257, progress)
    if len(merges) < vocab_size - 257:
        raise ValueError(
            f"train_bpe: the text has no pair left after {len(merges)} merges. Use more text, or "
            f"vocab_size={257 + len(merges)} at most."
        )
    return BPETokenizer(merges)


def _learn_merges(words: list[list[int]], frequency: list[int], n_merges: int, progress: bool) -> list[Pair]:
    """The merges, in order. Counts are kept up to date instead of being taken again: a merge visits
    only the words that hold its pair. The heap holds old counts too; those are passed over."""
    pair_counts: dict[Pair, int] = defaultdict(int)
    where: dict[Pair, set[int]] = defaultdict(set)
    for index, word in enumerate(words):
        for pair in pairwise(word):
            pair_counts[pair] += frequency[index]
            where[pair].add(index)
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    pieces = [bytes([byte]) for byte in range(256)]
    known = set(pieces)
    merges: list[Pair] = []
    with tqdm(total=n_merges, desc="merges", disable=not progress) as bar:
        while len(merges) < n_merges and heap:
            negative, pair = heapq.heappop(heap)
            if -negative != pair_counts[pair] or not negative:
                continue
            piece = pieces[pair[0]] + pieces[pair[1]]
            if piece in known:  # never seen, but tiktoken knows pieces by their bytes, so each must be new
                continue
            new_id = len(pieces)
            pieces.append(piece)
            known.add(piece)
            merges.append(pair)
            changed = set()
            for index in where.pop(pair):
                word, times = words[index], frequency[index]
                merged = _merge(word, pair, new_id)
                if len(merged) == len(word):  # the pair was here once, and another merge took it apart
                    continue
                for old in pairwise(word):
                    pair_counts[old] -= times
                    changed.add(old)
                for new in pairwise(merged):
                    pair_counts[new] += times
                    where[new].add(index)
                    changed.add(new)
                words[index] = merged
            for other in changed:
                if pair_counts[other]:
                    heapq.heappush(heap, (-pair_counts[other], other))
            bar.update()
    return merges


def _merge(word: list[int], pair: Pair, new_id: int) -> list[int]:
    """Replace each occurrence of the pair, from the left."""
    merged, i, last = [], 0, len(word) - 1
    while i <= last:
        if i < last and word[i] == pair[0] and word[i + 1] == pair[1]:
            merged.append(new_id)
            i += 2
        else:
            merged.append(word[i])
            i += 1
    return merged


def _printable_bytes() -> dict[int, str]:
    """GPT-2's letter for every byte: itself where it prints, else one from U+0100 on (space is "Ġ")."""
    prints = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(256) if byte not in prints]
    return {byte: chr(byte) for byte in sorted(prints)} | {
        byte: chr(256 + place) for place, byte in enumerate(others)
    }
