"""Text to ids: fetched assets, corpora split by document, tokenizers, and the windows a model trains on.

Names load on first use, so that `labkit fetch` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.text.assets import ASSETS, AssetError, asset_path, cache_dir, fetch, use_offline_tiktoken
    from labkit.text.bpe import BPETokenizer, GPT2Tokenizer, train_bpe
    from labkit.text.chat import encode_chat
    from labkit.text.cleaning import CorpusError
    from labkit.text.corpus import Corpus, Document, check_split
    from labkit.text.encoding import encode_folder
    from labkit.text.hf import (
        HFTokenizer,
        load_published_tokenizer,
        load_tokenizer,
        save_published_tokenizer,
        tokenizer_from_gguf,
    )
    from labkit.text.loading import build_tokenizer, load_corpus
    from labkit.text.sequences import SequenceDataset, load_token_sequences
    from labkit.text.shards import Shards, open_shards
    from labkit.text.tokenizers import END_OF_TEXT, CharTokenizer, Tokenizer, UnsupportedTokenizerError
    from labkit.text.windows import Batches, ShuffledWindows, TokenStream, WindowDataset

_HOME = {
    "assets": ("ASSETS", "AssetError", "asset_path", "cache_dir", "fetch", "use_offline_tiktoken"),
    "bpe": ("BPETokenizer", "GPT2Tokenizer", "train_bpe"),
    "chat": ("encode_chat",),
    "cleaning": ("CorpusError",),
    "corpus": ("Corpus", "Document", "check_split"),
    "encoding": ("encode_folder",),
    "hf": (
        *("HFTokenizer", "load_published_tokenizer", "load_tokenizer"),
        *("save_published_tokenizer", "tokenizer_from_gguf"),
    ),
    "loading": ("build_tokenizer", "load_corpus"),
    "sequences": ("SequenceDataset", "load_token_sequences"),
    "shards": ("Shards", "open_shards"),
    "tokenizers": ("END_OF_TEXT", "CharTokenizer", "Tokenizer", "UnsupportedTokenizerError"),
    "windows": ("Batches", "ShuffledWindows", "TokenStream", "WindowDataset"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "ASSETS",
    "END_OF_TEXT",
    "AssetError",
    "BPETokenizer",
    "Batches",
    "CharTokenizer",
    "Corpus",
    "CorpusError",
    "Document",
    "GPT2Tokenizer",
    "HFTokenizer",
    "SequenceDataset",
    "Shards",
    "ShuffledWindows",
    "TokenStream",
    "Tokenizer",
    "UnsupportedTokenizerError",
    "WindowDataset",
    "asset_path",
    "build_tokenizer",
    "cache_dir",
    "check_split",
    "encode_chat",
    "encode_folder",
    "fetch",
    "load_corpus",
    "load_published_tokenizer",
    "load_token_sequences",
    "load_tokenizer",
    "open_shards",
    "save_published_tokenizer",
    "tokenizer_from_gguf",
    "train_bpe",
    "use_offline_tiktoken",
]


def __getattr__(name: str) -> object:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"labkit.text.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'labkit.text' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
