"""Ids that were computed, and committed, before the `tokenizers` library took the place of our own merging.

That implementation ran tiktoken and was compared with the library string by string, so these ids are what
two independent programs agreed on.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiktoken

from labkit.text import (
    END_OF_TEXT,
    CharTokenizer,
    GPT2Tokenizer,
    HFTokenizer,
    Tokenizer,
    asset_path,
    load_corpus,
    load_tokenizer,
    tokenizer_from_gguf,
    train_bpe,
)
from labkit.text.published import content_of

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads(gzip.decompress((ROOT / "tests/fixtures/golden_ids.json.gz").read_bytes()))
TEXTS: list[str] = GOLDEN["texts"]


def digest_of_ids(rows: Iterable[Sequence[int]]) -> str:
    return hashlib.sha256(b"".join(np.asarray(row, "<u4").tobytes() for row in rows)).hexdigest()


def digest_of_bytes(tokenizer: Tokenizer) -> str:
    pieces = map(tokenizer.token_bytes, range(tokenizer.vocab_size))
    return hashlib.sha256(b"\0".join(pieces)).hexdigest()


def differences(tokenizer: Tokenizer, kind: str) -> list[str]:
    """The texts whose ids, with or without special tokens, are not the committed ones."""
    special: dict[str, list[int]] = GOLDEN[f"{kind} allow_special"]
    return [
        text
        for number, (text, ids) in enumerate(zip(TEXTS, GOLDEN[kind], strict=True))
        if tokenizer.encode(text) != ids
        or tokenizer.encode(text, allow_special=True) != special.get(str(number), ids)
    ]


@pytest.fixture(scope="module")
def smollm2() -> Tokenizer:
    fields = gguf.GGUFReader(asset_path("smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf").fields
    return tokenizer_from_gguf({k: f.contents() for k, f in fields.items() if k.startswith("tokenizer")})


@pytest.fixture(scope="module")
def play() -> str:
    return load_corpus("shakespeare").test[0].text


def test_smollm2_has_the_committed_ids(smollm2: Tokenizer) -> None:
    assert differences(smollm2, "smollm2") == []
    batch = smollm2.encode_batch(TEXTS)
    assert [ids.tolist() for ids in batch] == GOLDEN["smollm2"]


def test_smollm2_decodes_as_before(smollm2: Tokenizer) -> None:
    changed: dict[str, str] = GOLDEN["smollm2 decoded"]  # a few control characters have no id
    for number, (text, ids) in enumerate(zip(TEXTS, GOLDEN["smollm2"], strict=True)):
        assert smollm2.decode(ids) == changed.get(str(number), text)


def test_smollm2_has_the_committed_vocabulary(smollm2: Any, play: str) -> None:
    facts = GOLDEN["smollm2 facts"]
    assert (smollm2.vocab_size, smollm2.eos, smollm2.bos) == tuple(
        facts[key] for key in ("vocab_size", "eos", "bos")
    )
    assert dict(smollm2.special_tokens) == facts["special_tokens"]
    assert digest_of_bytes(smollm2) == facts["sha256 of token_bytes"]
    pieces = [smollm2.token_bytes(i) for i in range(smollm2.vocab_size)]
    whole = [piece.decode() for piece in pieces if piece.decode("utf-8", "ignore").encode() == piece]
    assert len(whole) > 48_000
    assert digest_of_ids(map(smollm2.encode, whole)) == facts["sha256 of the ids of every piece"]
    assert digest_of_ids([smollm2.encode(play)]) == facts["sha256 of the ids of the first play held out"]


def test_gpt2_has_the_committed_ids_and_those_of_tiktoken(play: str) -> None:
    gpt2, facts = GPT2Tokenizer(), GOLDEN["gpt2 facts"]
    assert differences(gpt2, "gpt2") == []
    assert gpt2.fingerprint == facts["fingerprint"]
    assert digest_of_bytes(gpt2) == facts["sha256 of token_bytes"]
    assert digest_of_ids([gpt2.encode(play)]) == facts["sha256 of the ids of the first play held out"]
    run_by_library = HFTokenizer(content_of(gpt2), eos=END_OF_TEXT)
    assert differences(run_by_library, "gpt2") == []
    assert digest_of_bytes(run_by_library) == facts["sha256 of token_bytes"]
    theirs = tiktoken.get_encoding("gpt2")
    assert [theirs.encode(text, disallowed_special=()) for text in TEXTS] == GOLDEN["gpt2"]


def test_tokenizers_learned_here_are_those_of_before() -> None:
    tiny, every = load_corpus("tiny"), "sha256 of the ids of all texts"
    learned = train_bpe(tiny.text(), 500, progress=False)
    shipped = load_tokenizer(ROOT / "labkit/pretrained/tokenizer.json")
    for tokenizer, facts in ((learned, GOLDEN["bpe facts"]), (shipped, GOLDEN["shipped facts"])):
        assert tokenizer.fingerprint == facts["fingerprint"]
        assert digest_of_ids(map(tokenizer.encode, TEXTS)) == facts[every]
    characters, facts = CharTokenizer.from_text(tiny.text("all")), GOLDEN["characters facts"]
    assert characters.fingerprint == facts["fingerprint"]
    assert digest_of_ids([characters.encode(tiny.text("all"))]) == facts["sha256 of the ids of the text"]


@pytest.mark.parametrize("kind", ["smollm", "llama3"])
def test_a_file_of_the_old_layout_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(GOLDEN["published files"][kind]["file"]), encoding="utf-8")
    with pytest.raises(
        ValueError, match=r"tokenizer\.json: .*but 'published'.* older version.*labkit import"
    ):
        load_tokenizer(path)
