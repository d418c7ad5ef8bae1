"""A checkpoint of a run, opened for the playground and the attention explorer."""

from __future__ import annotations

import re
from pathlib import Path

from labkit.text import Tokenizer, load_tokenizer
from labkit.training import Run, load_checkpoint
from labstudio.visible import unhidden
from labstudio.widgets.attention_view import AttentionExplorer
from labstudio.widgets.playground import SamplingPlayground

LINES = ("A horse! a horse! my kingdom for a horse!", "Once upon a time", "\n")
PROMPT, TEXT = 40, 60
"""Characters of the run's own last sample to begin with."""


class OpenModel:
    """The two widgets of one checkpoint.

    Raises ValueError, saying what is wrong, for a damaged checkpoint and for a run without its tokenizer.
    """

    def __init__(self, run: Run, checkpoint: Path) -> None:
        model, step = load_checkpoint(checkpoint)
        self.name = f"{unhidden(run.id)}, step {step:,}"
        tokenizer = load_tokenizer(run.path / "tokenizer.json")
        models = {self.name: (model, tokenizer)}
        texts = [*_own_texts(run), *LINES, tokenizer.decode(list(range(min(3, tokenizer.vocab_size))))]
        prompt, text = (_readable(tokenizer, [each[:length] for each in texts]) for length in (PROMPT, TEXT))
        self.playground = SamplingPlayground(models=models, prompt=prompt)
        self.explorer = AttentionExplorer(models=models, text=text)

    def close(self) -> None:
        """Stop writing, and let go of the model."""
        self.playground.halt()
        self.playground.wait()
        self.playground.close()
        self.explorer.close()


def _own_texts(run: Run) -> list[str]:
    """The longest piece of the last sample between special tokens, which a tokenizer does not read."""
    written = [f"{row.get('prompt', '')}{row.get('text', '')}" for row in run.rows("samples")[-1:]]
    return [max(re.split(r"<\|\w+\|>", text), key=len).strip("\n") for text in written]


def _readable(tokenizer: Tokenizer, texts: list[str]) -> str:
    """The first text that the tokenizer knows all characters of."""
    for text in texts:
        try:
            if tokenizer.encode(text):
                return text
        except ValueError:
            continue
    return texts[-1]
