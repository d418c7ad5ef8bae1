"""`labkit sample`."""

from __future__ import annotations

import codecs
from dataclasses import replace

from tyro.conf import OmitArgPrefixes, Positional

from labkit.config import SampleConfig


def sample(
    run: Positional[str | None] = None,
    settings: OmitArgPrefixes[SampleConfig] = SampleConfig(),
    prompt: str = "\n",
    seed: int = 0,
) -> int:
    """Write text with a trained model, until it ends its text or reaches --max-new-tokens.

    Args:
        run: Name or folder of a run (`labkit runs` lists them); without it the model that comes with labkit
            writes.
        prompt: Text to continue.
        seed: The same seed gives the same text.
    """
    from labkit.generation import stream
    from labkit.training import Run
    from labkit.weights import load_pretrained

    model, tokenizer = load_pretrained() if run is None else Run.open(run).load()
    ids = tokenizer.encode(prompt)
    if settings.eos_id is None:
        settings = replace(settings, eos_id=tokenizer.eos_id)
    characters = codecs.getincrementaldecoder("utf-8")("replace")
    print(prompt, end="")
    for token in stream(model, ids, settings, seed=seed):
        if token != settings.eos_id:
            print(characters.decode(tokenizer.token_bytes(token)), end="", flush=True)
    print(characters.decode(b"", final=True))
    return 0
