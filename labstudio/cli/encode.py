"""`labkit encode`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


def encode(
    folder: Positional[Path],
    out: Path,
    tokenizer: str = "gpt2",
    workers: int | None = None,
    shard_tokens: int = 2**24,
) -> int:
    """Turn text of any size into ids on disk, once; stopped, the same command goes on where it was.

    Args:
        folder: A folder of .txt and .md files, each a document, or one such file.
        out: Folder for the ids.
        tokenizer: gpt2, char, bpe (4,096 pieces, learned from part of the text) or a tokenizer.json.
        workers: Processes; one per CPU when not given.
        shard_tokens: Ids in one file.
    """
    from labkit.text import encode_folder

    try:
        shards, new_bytes, seconds = encode_folder(
            folder, out, tokenizer, workers=workers, shard_tokens=shard_tokens
        )
    except KeyboardInterrupt:
        print(f"Stopped. Finished shards are kept in {out}; the same command goes on.")
        return 130
    print(
        f"{len(shards.documents):,} documents, {shards.source_bytes:,} bytes of text: {len(shards):,} tokens "
        f"({shards.dtype}) in {out}"
    )
    print(f"encoded now: {new_bytes:,} bytes in {seconds:.1f} s, {new_bytes / seconds / 1e6:.1f} MB/s")
    print(f"Train on it: labkit train --corpus {out}")
    return 0
