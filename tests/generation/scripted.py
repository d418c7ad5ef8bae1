"""A real GPT that writes what it is told, and a tokenizer of any pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from labkit import GPT, GPTConfig
from labkit.text import Tokenizer


class Scripted(GPT):
    """Greedy decoding after a prompt of one token gives the ids of the script, one after another.

    Each position is a feature of its own, and the head turns feature p into the script's token p.
    """

    def __init__(self, vocab_size: int, length: int) -> None:
        shape = {"vocab_size": vocab_size, "context_length": length + 1, "d_model": length + 1}
        super().__init__(GPTConfig(**shape, n_layers=1, n_heads=1, tie_weights=False))
        with torch.no_grad():
            for parameter in [*self.blocks.parameters(), self.token_embedding.weight]:
                parameter.zero_()
            self.positions.weight.copy_(torch.eye(length + 1))
        self.eval()

    def say(self, script: Sequence[int]) -> Scripted:
        """Write these ids from now on."""
        with torch.no_grad():
            self.head.weight.zero_()
            for position, token in enumerate(script):
                self.head.weight[token, position] = 1
        return self


class Pieces(Tokenizer):
    """Id i is the i-th piece, and the last id ends a text; every text is encoded as id 0."""

    name = "pieces"

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = [*pieces, b"<|endoftext|>"]
        self.vocab_size, self.eos_id = len(self.pieces), len(pieces)

    def token_bytes(self, token_id: int) -> bytes:
        self._check_id(token_id)
        return self.pieces[token_id]

    def _encode(self, text: str) -> np.ndarray:
        return np.zeros(1, dtype=np.int64)

    def _definition(self) -> dict[str, Any]:
        return {"pieces": [piece.hex() for piece in self.pieces[:-1]]}

    @classmethod
    def _from_definition(cls, definition: dict[str, Any]) -> Pieces:
        return cls([bytes.fromhex(piece) for piece in definition["pieces"]])
