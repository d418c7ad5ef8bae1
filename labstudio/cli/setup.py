"""Before training: `labkit fetch` and `labkit doctor`."""

from __future__ import annotations

from tyro.conf import OmitArgPrefixes, Positional

from labkit.config import DataConfig, TrainConfig
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
    data: OmitArgPrefixes[DataConfig] = DataConfig(),
) -> int:
    """Check that training would work: versions, memory, disk, text, model, causal mask."""
    from labstudio.cli.checklist import report, run_checks

    return report(run_checks(model.build(), train, data))
