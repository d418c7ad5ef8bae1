"""Before training: `labkit fetch` and `labkit doctor`."""

from __future__ import annotations

from tyro.conf import OmitArgPrefixes, Positional

from labkit.config import TokenizerName, TrainConfig
from labstudio.cli.options import ModelOptions


def fetch(names: Positional[tuple[str, ...]] = ()) -> int:
    """Fetch the course's texts, tokenizer files and published model into the cache, verify and unpack them.

    Args:
        names: Which assets; all of them when none is named.
    """
    from labkit.text import fetch as fetch_assets

    folders = fetch_assets(names or None)
    for name, path in folders.items():
        print(f"{name}: {path}")
    smollm2 = folders.get("smollm2")
    if smollm2 and not smollm2.with_name("smollm2-135m-instruct.source").is_file():
        from labkit.weights import load_llama

        load_llama("smollm2")  # unpacks it, so that no lesson has to
    return 0


def doctor(
    model: OmitArgPrefixes[ModelOptions] = ModelOptions(),
    train: OmitArgPrefixes[TrainConfig] = TrainConfig(),
    corpus: str = "shakespeare",
    tokenizer: TokenizerName = "char",
    stride: int | None = None,
) -> int:
    """Check that training would work: versions, memory, disk, text, model, causal mask.

    Args:
        corpus: Name in corpus/corpora.toml, or a path to your own text.
        tokenizer: What turns text into tokens.
        stride: Tokens between windows; the context length when not given.
    """
    from labstudio.cli.doctor import report, run_checks

    return report(run_checks(model.build(), train, corpus, tokenizer, stride))
