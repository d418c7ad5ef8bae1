"""Text to ids: fetched assets, corpora split by document, tokenizers, and the windows a model trains on.

The windows load on first use, so that `labkit fetch` needs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.text.assets import asset_path, fetch, use_offline_tiktoken
from labkit.text.bpe import BPETokenizer, GPT2Tokenizer, train_bpe
from labkit.text.chat import encode_chat
from labkit.text.cleaning import CorpusError
from labkit.text.corpus import Corpus, Document, build_tokenizer, load_corpus
from labkit.text.encode import EncodedText, encode_folder, is_encoded
from labkit.text.hf import HFTokenizer, load_tokenizer
from labkit.text.published import (
    load_published_tokenizer,
    save_published_tokenizer,
    tokenizer_from_gguf,
)
from labkit.text.tokenizers import END_OF_TEXT, CharTokenizer, Tokenizer, UnsupportedTokenizerError

if TYPE_CHECKING:
    from labkit.text.batches import (
        Batches,
        SequenceDataset,
        ShuffledWindows,
        TokenStream,
        WindowDataset,
        load_token_sequences,
    )

__all__ = [
    "END_OF_TEXT",
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
    if name not in __all__:
        raise AttributeError(f"module 'labkit.text' has no attribute {name!r}")
    from labkit.text import batches

    return getattr(batches, name)
