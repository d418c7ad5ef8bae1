"""Text to ids: fetched assets, corpora split by document, tokenizers, and the windows a model trains on.

Names load on first use, so that `labkit fetch` needs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from labkit.text.assets import ASSETS, AssetError, asset_path, cache_dir, fetch, use_offline_tiktoken
    from labkit.text.batches import (
        Batches,
        SequenceDataset,
        ShuffledWindows,
        TokenStream,
        WindowDataset,
        load_token_sequences,
    )
    from labkit.text.bpe import BPETokenizer, GPT2Tokenizer, train_bpe
    from labkit.text.chat import encode_chat
    from labkit.text.cleaning import CorpusError
    from labkit.text.corpus import Corpus, Document, build_tokenizer, check_split, load_corpus
    from labkit.text.encode import EncodedText, encode_folder, is_encoded
    from labkit.text.hf import HFTokenizer, load_tokenizer
    from labkit.text.published import (
        load_published_tokenizer,
        save_published_tokenizer,
        tokenizer_from_gguf,
    )
    from labkit.text.tokenizers import END_OF_TEXT, CharTokenizer, Tokenizer, UnsupportedTokenizerError

_HOME = {
    "assets": ("ASSETS", "AssetError", "asset_path", "cache_dir", "fetch", "use_offline_tiktoken"),
    "batches": (
        "Batches",
        "SequenceDataset",
        "ShuffledWindows",
        "TokenStream",
        "WindowDataset",
        "load_token_sequences",
    ),
    "bpe": ("BPETokenizer", "GPT2Tokenizer", "train_bpe"),
    "chat": ("encode_chat",),
    "cleaning": ("CorpusError",),
    "corpus": ("Corpus", "Document", "build_tokenizer", "check_split", "load_corpus"),
    "encode": ("EncodedText", "encode_folder", "is_encoded"),
    "hf": ("HFTokenizer", "load_tokenizer"),
    "published": ("load_published_tokenizer", "save_published_tokenizer", "tokenizer_from_gguf"),
    "tokenizers": ("END_OF_TEXT", "CharTokenizer", "Tokenizer", "UnsupportedTokenizerError"),
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
    "EncodedText",
    "GPT2Tokenizer",
    "HFTokenizer",
    "SequenceDataset",
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
    "is_encoded",
    "load_corpus",
    "load_published_tokenizer",
    "load_token_sequences",
    "load_tokenizer",
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
