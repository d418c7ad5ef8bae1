"""Before training: `labkit fetch`, `labkit encode` and `labkit doctor`."""

from __future__ import annotations

import time
from pathlib import Path

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


def encode(folder: Positional[Path], out: Path, tokenizer: str = "gpt2", workers: int | None = None) -> int:
    """Turn text of any size into ids on disk, once; stopped, the same command goes on where it was.

    Args:
        folder: A folder of .txt and .md files, each a document, or one such file.
        out: Folder for the ids.
        tokenizer: gpt2, char, bpe (4,096 pieces, learned from part of the text) or a tokenizer.json.
        workers: Threads; one per CPU when not given.
    """
    from labkit.text import encode_folder

    began = time.perf_counter()
    try:
        encoded, new_bytes = encode_folder(folder, out, tokenizer, workers=workers)
    except KeyboardInterrupt:
        print(f"Stopped. What is finished is kept in {out}; the same command goes on.")
        return 130
    seconds = time.perf_counter() - began
    print(
        f"{len(encoded.documents):,} documents, {encoded.source_bytes:,} bytes of text: "
        f"{len(encoded.ids):,} tokens ({encoded.ids.dtype}) in {out}"
    )
    print(f"encoded now: {new_bytes:,} bytes in {seconds:.1f} s, {new_bytes / seconds / 1e6:.1f} MB/s")
    print(f"Train on it: labkit train --corpus {out}")
    return 0


def doctor(
    model: OmitArgPrefixes[ModelOptions] = ModelOptions(),
    train: OmitArgPrefixes[TrainConfig] = TrainConfig(),
    data: OmitArgPrefixes[DataConfig] = DataConfig(),
) -> int:
    """Check that training would work: versions, memory, disk, text, model, causal mask."""
    from labstudio.cli.checklist import report, run_checks

    return report(run_checks(model.build(), train, data))
