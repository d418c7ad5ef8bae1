"""`labkit encode`."""

from __future__ import annotations

import time
from pathlib import Path

from tyro.conf import Positional


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
