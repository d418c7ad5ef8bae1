"""Tokenizers of published models: their ids, their files, and the conversations they write."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
from tokenizers import Regex, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from tokenizers.trainers import BpeTrainer, UnigramTrainer
from transformers import AutoTokenizer

from labkit.text import (
    END_OF_TEXT,
    BPETokenizer,
    CharTokenizer,
    GPT2Tokenizer,
    HFTokenizer,
    Tokenizer,
    UnsupportedTokenizerError,
    asset_path,
    encode_chat,
    load_corpus,
    load_published_tokenizer,
    load_tokenizer,
    save_published_tokenizer,
    tokenizer_from_gguf,
    train_bpe,
)
from labkit.text.assets import ASSETS
from labkit.text.bpe import _printable_bytes
from labkit.text.hf import library_errors
from labkit.text.published import LLAMA3

SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
LLAMA3_CUT = pre_tokenizers.Sequence(
    [
        pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
)
TEXTS = [
    "", " ", "\n", "  ", "Hello, world!", "   leading and  double   spaces ",
    "1", " 1", "  1", "   12  34 ", "a1b22c333", "1\n2\n\n 3\t\t4", "\n\n1", " \n 1", "x  1",
    "x  y", "1 ", "1  ",
    "1  a", "1\u00a02", "3.14159 1,000,000 -7 +8e9", "½ ² Ⅻ ٣٤ 一二 ௧",
    " ½  ² ", "v2.0-rc1", "'1's '2", "0x1F",
    "don't you'll we've I'm he'd it's 'S 'LL", "'s't're've'm'll'd", "' s", "''s", "can't1't",
    "naïve façade, Ærøskøbing, ἀρχή, Привет", "日本語とか한국어 中文", "مرحبا بالعالم שלום",
    "emoji 😀👩‍👩‍👧‍👦🇩🇪❤️", "cafe\u0301 (combining)", "\u0301", " \u0301a", "1\u03012",
    "\x00\x07\x1b[0m", "a\x04b", "!\x04!", "\x04\x06\x13\x14\x16\x1d", " \x04 1\x06",
    "\x85\u2028\u3000x", "\x1c\x1d", "\U00050000 a\U000a0000b", "\U0010ffff",
    "line\nbreaks\r\n\n\n\tand tabs  \n  ", "\r\n\r\n 1\r\n", "\t\t\tx",
    "def f(x1):\n    return x1 ** 2  # 10 %\n", "if (a[10] != b) { c += 0.5; }\n\n\n",
    "....!!!???", "___a__", "<|", "|>",
    END_OF_TEXT, "<|im_start|>user\n1<|im_end|>", f"one{END_OF_TEXT} 2{END_OF_TEXT}{END_OF_TEXT}three",
    "<|im_start", "<|im_end|><|im_end|>", "<<|im_end|>>", "a <|im_end|> b 1<|im_start|>2",
    "a" * 700, " " * 300, " " * 300 + "1", " " * 300 + "a", "1" * 300, "!" * 300, "\n" * 300,
    "aé" * 200, " 1" * 200,
]  # fmt: skip


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    """What SmolLM2's GGUF says about its tokenizer, by the library of that format."""
    fields = gguf.GGUFReader(asset_path("smollm2") / SMOLLM2).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer")}


@pytest.fixture(scope="module")
def smollm2(metadata: dict[str, Any]) -> HFTokenizer:
    return tokenizer_from_gguf(metadata)


def small_metadata(**changes: Any) -> dict[str, Any]:
    """Metadata of a small tokenizer of SmolLM2's kind; changes name the keys after "tokenizer."."""
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *_printable_bytes().values(), "Ġt", "he", "Ġthe"]
    content = {
        "ggml.model": "gpt2",
        "ggml.pre": "smollm",
        "ggml.tokens": tokens,
        "ggml.token_type": [3] * 3 + [1] * (len(tokens) - 3),
        "ggml.merges": ["Ġ t", "h e", "Ġt he"],
        "ggml.bos_token_id": 1,
        "ggml.eos_token_id": 2,
    }
    return {f"tokenizer.{key}": value for key, value in (content | changes).items()}


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return train_bpe(load_corpus("tiny").text(), 500, progress=False)


def library_file(**changes: Any) -> dict[str, Any]:
    """A small tokenizer.json, written by the library itself."""
    pieces = [*_printable_bytes().values(), "Ġt", "he", "Ġthe"]
    tokenizer = tokenizers.Tokenizer(
        BPE(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[("Ġ", "t"), ("h", "e"), ("Ġt", "he")])
    )
    tokenizer.pre_tokenizer = BYTE_LEVEL
    tokenizer.add_special_tokens(["<s>", "</s>"])
    return json.loads(tokenizer.to_str()) | changes


def folder_with(folder: Path, **files: Any) -> Path:
    """A folder of files, whose names come with _ for the dot; what is no text is written as JSON."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / ".".join(name.rsplit("_", 1))).write_text(text, encoding="utf-8")
    return folder


# SmolLM2


def test_smollm2_has_its_published_size_and_ends(smollm2: HFTokenizer) -> None:
    assert (smollm2.vocab_size, smollm2.eos_id, smollm2.eos, smollm2.bos) == (
        49152,
        2,
        "<|im_end|>",
        "<|im_start|>",
    )
    assert len(smollm2.special_tokens) == 17
    assert smollm2.decode([2, 0]) == "<|im_end|><|endoftext|>"


def test_only_bytes_without_a_piece_are_dropped(smollm2: HFTokenizer) -> None:
    assert smollm2.decode(smollm2.encode("tab\t, bell\x07, end\x04.")) == "tab\t, bell\x07, end."


@pytest.mark.parametrize("unit", ["a", " ", "1", "!", "\n", " \n", "é", "\x04"])
def test_long_runs_cost_linear_time(smollm2: HFTokenizer, unit: str) -> None:
    def seconds(size: int) -> float:
        started = time.perf_counter()
        smollm2.encode(unit * size + "x")
        return time.perf_counter() - started

    seconds(1000)
    assert min(seconds(160_000) for _ in range(2)) < 40 * max(seconds(20_000), 0.002)


@pytest.fixture(scope="module")
def llama3_like() -> dict[str, Any]:
    """A small file of Llama 3's kind: ids by rank, every way to make a piece a merge, and more pieces."""
    trained = train_bpe(load_corpus("tiny").text(), 700, progress=False)
    show = _printable_bytes()
    pieces = ["".join(show[byte] for byte in trained.token_bytes(i)) for i in range(trained.eos_id)]
    pieces += ["Ġzqzqzq", "\u0120\u010a\u0120"]  # these no merges make
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    merges = []
    for piece in pieces:
        cuts = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += sorted(
            (c for c in cuts if set(c) <= vocabulary.keys()),
            key=lambda c: (vocabulary[c[0]], vocabulary[c[1]]),
        )
    tokenizer = tokenizers.Tokenizer(BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = LLAMA3_CUT
    tokenizer.add_special_tokens(["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>"])
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", len(pieces))]
    )
    return json.loads(tokenizer.to_str())


LLAMA3_TEXTS = [
    *TEXTS,
    "zqzqzq zqzqzq",
    " \n ",
    "a \n ",
    "(hello) #tag",
    "I'M SHE'LL",
    "12345678 1234 ",
    "x\n\n\n  y!\n\n",
]


def test_llama3_files_give_the_ids_of_the_library(
    llama3_like: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    tokenizer, reference = llama3_pair(llama3_like, tmp_path_factory)
    for text in LLAMA3_TEXTS:
        found = reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, allow_special=True) == found, text
    assert tokenizer.tokenize(" zqzqzq") == [" zqzqzq"]
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (702, 704)


_pairs: dict[int, tuple[Tokenizer, tokenizers.Tokenizer]] = {}


def llama3_pair(
    file: dict[str, Any], factory: pytest.TempPathFactory
) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    if id(file) not in _pairs:
        folder = folder_with(
            factory.mktemp("llama3"),
            tokenizer_json=file,
            tokenizer_config_json={"eos_token": "<|end_of_text|>", "bos_token": "<|begin_of_text|>"},
        )
        tokenizer = load_published_tokenizer(folder)
        assert tokenizer is not None
        _pairs[id(file)] = (tokenizer, tokenizers.Tokenizer.from_str(json.dumps(file)))
    return _pairs[id(file)]


# SentencePiece's kind: a space is a letter, and unknown characters are bytes


def sentencepiece_file(kind: str) -> dict[str, Any]:
    """A small tokenizer.json as Llama 2, Gemma, Mistral and T5 have them, with what a text never gets."""
    tiny = load_corpus("tiny").text("all")
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    if kind == "unigram":
        tokenizer = tokenizers.Tokenizer(Unigram())
        tokenizer.normalizer = normalizers.NFKC()
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
        tokenizer.decoder = decoders.Metaspace()
        trainer = UnigramTrainer(
            vocab_size=400, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
        )
        tokenizer.train_from_iterator([tiny], trainer)
    else:
        spaces = pre_tokenizers.Metaspace(prepend_scheme="never")
        trained = tokenizers.Tokenizer(BPE())
        trained.pre_tokenizer = spaces
        trained.train_from_iterator([tiny], BpeTrainer(vocab_size=300, show_progress=False))
        model = json.loads(trained.to_str())["model"]
        pieces = ["<unk>", "<s>", "</s>", *bytes_, *model["vocab"]]
        vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
        merges = [tuple(pair) for pair in model["merges"]]
        tokenizer = tokenizers.Tokenizer(
            BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
        )
        to_text = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if kind == "llama":
            prepend = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
            tokenizer.normalizer = normalizers.Sequence(prepend)
            tokenizer.decoder = decoders.Sequence([*to_text, decoders.Strip(" ", 1, 0)])
        elif kind == "gemma":
            tokenizer.normalizer = normalizers.Replace(" ", "▁")
            tokenizer.decoder = decoders.Sequence(to_text)
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
            tokenizer.decoder = decoders.Sequence([*to_text, decoders.Strip(" ", 1, 0)])
        tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    start = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", start)])
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    return json.loads(tokenizer.to_str())


SENTENCEPIECE = ["llama", "gemma", "mistral", "unigram"]
CONFIG = {"eos_token": "</s>", "bos_token": "<s>"}


@pytest.fixture(scope="module", params=SENTENCEPIECE)
def sentencepiece(request: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    """The tokenizer of such a file, and the library's own, told to add and to cut nothing."""
    file = sentencepiece_file(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    ours = load_published_tokenizer(folder_with(folder, tokenizer_json=file, tokenizer_config_json=CONFIG))
    theirs = tokenizers.Tokenizer.from_str(json.dumps(file))
    theirs.no_truncation()
    theirs.no_padding()
    assert isinstance(ours, HFTokenizer)
    return ours, theirs


SENTENCES = [
    "The old man walked home.",
    " two  spaces ",
    "line\n\n next",
    "naïve é 日本 😀 12",
    "",
    " ",
    "x</s> y",
]


@pytest.mark.parametrize("text", SENTENCES)
def test_files_of_sentencepieces_kind_give_the_ids_of_the_library(
    sentencepiece: tuple[Tokenizer, Any], text: str
) -> None:
    ours, theirs = sentencepiece
    found = theirs.encode(text, add_special_tokens=False).ids
    assert ours.encode(text, allow_special=True) == found
    assert ours.decode(found) == theirs.decode(found, skip_special_tokens=False)
    if "</s>" not in text:
        assert ours.encode(text) == found
        assert ours.encode_batch([text])[0].tolist() == found


def test_tokens_of_sentencepieces_kind_keep_their_spaces(sentencepiece: tuple[Tokenizer, Any]) -> None:
    ours, _ = sentencepiece
    text = "The old man walked home, é 12."
    spelled = b"".join(map(ours.token_bytes, ours.encode(text))).decode()
    assert spelled.removeprefix(" ") == ours.decode(ours.encode(text))
    assert " walked" in "".join(ours.tokenize("she walked"))
    if ours.content["model"]["byte_fallback"]:
        assert spelled.removeprefix(" ") == text
        smile = ours.encode("😀")[-4:]
        assert [ours.token_bytes(i) for i in smile] == [bytes([byte]) for byte in "😀".encode()]


def test_a_special_token_spelled_out_in_a_text_is_text(sentencepiece: tuple[Tokenizer, Any]) -> None:
    ours, _ = sentencepiece
    assert {ours.eos_id, ours.special_tokens["<s>"]}.isdisjoint(ours.encode("a</s> b<s>"))
    assert len(ours.encode("a</s>")) >= 4
    assert ours.encode("a</s> b</s>", allow_special=True).count(ours.eos_id) == 2


def test_such_a_tokenizer_comes_back_from_both_kinds_of_file(
    sentencepiece: tuple[Tokenizer, Any], tmp_path: Path
) -> None:
    ours, _ = sentencepiece
    ours.save(tmp_path / "labkit.json")
    save_published_tokenizer(ours, tmp_path)
    for back in (load_tokenizer(tmp_path / "labkit.json"), load_published_tokenizer(tmp_path)):
        assert back is not None
        assert back.fingerprint == ours.fingerprint
        assert back.encode(SENTENCES[3]) == ours.encode(SENTENCES[3])
        assert (back.eos_id, back.vocab_size) == (ours.eos_id, ours.vocab_size)


def test_added_tokens_that_are_not_special_are_found_in_every_text(tmp_path: Path) -> None:
    """As GPT-NeoX has them for runs of spaces."""
    content = changed("added_tokens", 0, "special", to=False)
    tokenizer = load_published_tokenizer(folder_with(tmp_path, tokenizer_json=content))
    assert tokenizer is not None
    assert list(tokenizer.special_tokens) == ["</s>"]
    assert tokenizer.tokenize("a<s>b</s>") == ["a", "<s>", "b", *"</s>"]


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|aa)+$"])
def test_a_pattern_that_never_ends_is_stopped(pattern: str, tmp_path: Path) -> None:
    steps = [SPLIT | {"pattern": {"Regex": pattern}}, PRE | {"use_regex": False}]
    content = library_file(pre_tokenizer={"type": "Sequence", "pretokenizers": steps})
    tokenizer = load_published_tokenizer(folder_with(tmp_path, tokenizer_json=content))
    assert tokenizer is not None
    started = time.perf_counter()
    with pytest.raises(ValueError, match=r"this text has no ids .*retry-limit"):
        tokenizer.encode("a" * 40 + "!")
    assert time.perf_counter() - started < 20


def test_a_file_too_large_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as sink:
        sink.truncate(2**27 + 1)
    with pytest.raises(ValueError, match=r"has 134,217,729 bytes, but such a file has 134,217,728 at most"):
        load_published_tokenizer(tmp_path)


def test_interruptions_are_not_taken_for_errors_of_the_library() -> None:
    with pytest.raises(KeyboardInterrupt), library_errors("x"):
        raise KeyboardInterrupt


# Files


@pytest.fixture(scope="module")
def kinds(
    smollm2: HFTokenizer,
    bpe: BPETokenizer,
    llama3_like: dict[str, Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Tokenizer]:
    llama3, _ = llama3_pair(llama3_like, tmp_path_factory)
    text = "".join(sorted({*"".join(TEXTS)}))
    return {
        "smollm2": smollm2,
        "gpt2": GPT2Tokenizer(),
        "bpe": bpe,
        "shipped": load_tokenizer(Path(__file__).parents[2] / "labkit/pretrained/tokenizer.json"),
        "characters": CharTokenizer(text),
        "characters with unknown": CharTokenizer("abcdef ?\n", unknown="?"),
        "llama3": llama3,
    }


KINDS = ["smollm2", "gpt2", "bpe", "shipped", "characters", "characters with unknown", "llama3"]


@pytest.mark.parametrize("model_type", [None, "gpt2", "llama"])
@pytest.mark.parametrize("kind", KINDS)
def test_transformers_reads_what_we_write_with_the_same_ids(
    kinds: dict[str, Tokenizer],
    kind: str,
    model_type: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    tokenizer, folder = kinds[kind], tmp_path / "written"
    save_published_tokenizer(tokenizer, folder)
    if model_type:
        folder_with(folder, config_json={"model_type": model_type, "vocab_size": tokenizer.vocab_size})
    theirs = AutoTokenizer.from_pretrained(folder)
    for text in TEXTS:
        assert theirs(text, add_special_tokens=False)["input_ids"] == tokenizer.encode(
            text, allow_special=True
        ), text
        ids = tokenizer.encode(text)
        assert theirs.decode(ids) == tokenizer.decode(ids)
    assert theirs.eos_token_id == tokenizer.eos_id
    assert len(theirs) == tokenizer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_what_we_write_comes_back_as_the_same_tokenizer(
    kinds: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    tokenizer, folder = kinds[kind], tmp_path / "written"
    save_published_tokenizer(tokenizer, folder)
    back = load_published_tokenizer(folder)
    assert type(back) is type(tokenizer)
    assert back.fingerprint == tokenizer.fingerprint
    assert getattr(back, "chat_template", None) == getattr(tokenizer, "chat_template", None)


@pytest.mark.parametrize("kind", ["smollm2", "llama3"])
def test_a_published_tokenizer_comes_back_from_labkits_own_file(
    kinds: dict[str, Tokenizer], kind: str, tmp_path: Path
) -> None:
    tokenizer, path = kinds[kind], tmp_path / "tokenizer.json"
    tokenizer.save(path)
    for back in (load_tokenizer(path), load_published_tokenizer(tmp_path)):
        assert back.fingerprint == tokenizer.fingerprint
        assert back.encode("1 zqzqzq <|im_end|>") == tokenizer.encode("1 zqzqzq <|im_end|>")
        assert back.chat_template == tokenizer.chat_template
        assert (back.eos_id, back.vocab_size) == (tokenizer.eos_id, tokenizer.vocab_size)


def test_of_two_special_tokens_the_longer_is_meant() -> None:
    tokens = ["<s>", "<s>>", ">", *small_metadata()["tokenizer.ggml.tokens"]]
    types = [3, 3, 1, *small_metadata()["tokenizer.ggml.token_type"]]
    del tokens[tokens.index(">", 3)], types[-1]
    tokenizer = tokenizer_from_gguf(small_metadata(**{"ggml.tokens": tokens, "ggml.token_type": types}))
    assert tokenizer.encode("<s>><s>>>", allow_special=True) == [1, 1, 2]
    assert tokenizer.encode("<s><s>", allow_special=True) == [0, 0]
    assert not {0, 1} & set(tokenizer.encode("<s>><s>"))


def test_another_template_is_the_same_vocabulary_and_other_merges_are_not() -> None:
    def fingerprint(**changes: Any) -> str:
        return tokenizer_from_gguf(small_metadata(**changes)).fingerprint

    assert fingerprint() == fingerprint(chat_template="other")
    assert fingerprint() != fingerprint(**{"ggml.merges": ["Ġ t", "h e"]})
    assert fingerprint() != fingerprint(**{"ggml.eos_token_id": 0})
    assert fingerprint() != fingerprint(**{"ggml.pre": "gpt-2"})


@pytest.mark.parametrize("style", ["vocab.json and merges.txt", "tokenizer.json", "old tokenizer.json"])
def test_gpt2_files_are_gpt2(style: str, tmp_path: Path) -> None:
    if style.startswith("vocab"):
        names, files = ASSETS["gpt2-tokenizer"].rename, asset_path("gpt2-tokenizer")
        shutil.copy(files / names["encoder.json"], tmp_path / "vocab.json")
        shutil.copy(files / names["vocab.bpe"], tmp_path / "merges.txt")
    else:
        save_published_tokenizer(GPT2Tokenizer(), tmp_path)
        content = json.loads((tmp_path / "tokenizer.json").read_text())
    if style.startswith("old"):
        content["model"]["merges"] = [" ".join(pair) for pair in content["model"]["merges"]]
        del content["model"]["ignore_merges"], content["pre_tokenizer"]["use_regex"]
        folder_with(tmp_path, tokenizer_json=content)
    back = load_published_tokenizer(tmp_path)
    assert isinstance(back, GPT2Tokenizer)
    assert back.fingerprint == GPT2Tokenizer().fingerprint


def test_gpt2_with_one_merge_changed_is_not_gpt2(tmp_path: Path) -> None:
    save_published_tokenizer(GPT2Tokenizer(), tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    merges = content["model"]["merges"]
    merges[-1], merges[-2] = merges[-2], merges[-1]
    back = load_published_tokenizer(folder_with(tmp_path, tokenizer_json=content))
    assert isinstance(back, HFTokenizer)
    assert back.encode("The old man") == GPT2Tokenizer().encode("The old man")


def test_a_folder_without_a_tokenizer_has_none(tmp_path: Path) -> None:
    assert load_published_tokenizer(folder_with(tmp_path, config_json={})) is None


def test_writing_replaces_the_files_of_another_tokenizer(bpe: BPETokenizer, tmp_path: Path) -> None:
    folder_with(
        tmp_path, chat_template_jinja="x", special_tokens_map_json={"eos_token": "y"}, vocab_json={},
        merges_txt="", config_json={}, tokenizer_config_json={"eos_token": "z"}, added_tokens_json={"q": 9},
    )  # fmt: skip
    save_published_tokenizer(CharTokenizer("abc"), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    save_published_tokenizer(bpe, tmp_path)
    assert load_published_tokenizer(tmp_path).fingerprint == bpe.fingerprint


def test_ids_that_stand_for_nothing_decode_to_nothing() -> None:
    tokens, types = (small_metadata()[f"tokenizer.ggml.{key}"] for key in ("tokens", "token_type"))
    padded = {"ggml.tokens": [*tokens, "[PAD262]", "[PAD263]"], "ggml.token_type": [*types, 5, 5]}
    tokenizer = tokenizer_from_gguf(small_metadata(**padded))
    assert tokenizer.vocab_size == 264
    assert tokenizer.decode([*tokenizer.encode("one"), 263, *tokenizer.encode(" the")]) == "one the"
    with pytest.raises(ValueError, match=r"264 .*is outside 0 \.\. 263"):
        tokenizer.decode([264])


@pytest.mark.parametrize(
    ("config", "eos"),
    [
        ({"eos_token": "</s>"}, "</s>"),
        ({"eos_token": {"content": "</s>", "lstrip": False}}, "</s>"),
        ({"eos_token": "<s>", "bos_token": "</s>"}, "<s>"),
        ({"eos_token": "he"}, "he"),
        ({}, None),
        (None, None),
    ],
)
def test_the_end_of_a_text_is_the_one_named(
    config: dict[str, Any] | None, eos: str | None, tmp_path: Path
) -> None:
    files = {"tokenizer_json": library_file()} | ({} if config is None else {"tokenizer_config_json": config})
    tokenizer = load_published_tokenizer(folder_with(tmp_path, **files))
    assert tokenizer.eos == eos
    assert tokenizer.eos_id == (None if eos is None else tokenizer.special_tokens[eos])
    assert tokenizer.tokenize(" the") == [" the"]


NAMED = [{"name": "x", "template": "-"}, {"name": "default", "template": "T"}]


@pytest.mark.parametrize(
    "files",
    [
        {"tokenizer_config_json": {"chat_template": "T"}},
        {"tokenizer_config_json": {"chat_template": NAMED}},
        {"tokenizer_config_json": {"chat_template": "old"}, "chat_template_jinja": "T"},
        {"chat_template_jinja": "T"},
    ],
)  # fmt: skip
def test_the_chat_template_is_found_where_it_stands(files: dict[str, Any], tmp_path: Path) -> None:
    tokenizer = load_published_tokenizer(folder_with(tmp_path, tokenizer_json=library_file(), **files))
    assert tokenizer.chat_template == "T"


def changed(*path: str | int, to: Any) -> dict[str, Any]:
    """The small file with one value changed."""
    content = library_file()
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return content


def without(*path: str) -> dict[str, Any]:
    content = library_file()
    place = content
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return content


PRE = library_file()["pre_tokenizer"]
SPLIT = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
NEW = {"type": "Unknown"}
UNCLOSED = SPLIT | {"pattern": {"Regex": "(("}}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (changed("model", "type", to="WordPiece"), "a model of type WordPiece"),
        (changed("model", "dropout", to=0.1), "dropout"),
        (changed("model", "end_of_word_suffix", to="</w>"), "end_of_word_suffix"),
        (changed("model", "continuing_subword_prefix", to="##"), "continuing_subword_prefix"),
        (library_file(pre_tokenizer=None), "how its tokens are decoded"),
        (without("pre_tokenizer"), "how its tokens are decoded"),
        (library_file(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}), "type WordPiece"),
        (library_file(decoder={"type": "BPEDecoder", "suffix": "</w>"}), "a decoder of type BPEDecoder"),
    ],
)
def test_other_kinds_are_refused_with_a_way_out(content: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTokenizerError, match=said) as refused:
        load_published_tokenizer(folder_with(tmp_path, tokenizer_json=content))
    assert "tokenizer.json" in str(refused.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "the file is empty"),
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "holds a list; expected a JSON object"),
        ('"text"', "holds a str; expected a JSON object"),
        ({}, "incomplete or damaged"),
        (without("model"), "incomplete or damaged"),
        (without("model", "vocab"), "incomplete or damaged"),
        (without("model", "merges"), "Missing vocab/merges"),
        (library_file(model=[]), "incomplete or damaged"),
        (library_file(added_tokens=[{"id": 259}]), "incomplete or damaged"),
        (library_file(added_tokens={"a": 1}), "incomplete or damaged"),
        (changed("model", "vocab", to=[["a", 1]]), "expected a map"),
        (changed("model", "vocab", to={}), "0 tokens have 0 ids"),
        (changed("model", "merges", to=["Ġ t", "h e", "Ġt hex"]), "`hex` out of vocabulary"),
        (changed("model", "merges", to=["Ġ t", "t h"]), "`th` out of vocabulary"),
        (changed("model", "merges", to=["Ġt"]), "Merges text file invalid at line 1"),
        (changed("model", "merges", to=[["Ġ", "t", "h"]]), "enum MergeType"),
        (changed("model", "merges", to=[["Ġ", 5]]), "enum MergeType"),
        (changed("model", "merges", to=[5]), "enum MergeType"),
        (changed("model", "vocab", "he", to=256), "259 tokens have 258 ids"),
        (changed("model", "vocab", "he", to=-1), "invalid value: integer `-1`"),
        (changed("model", "vocab", "he", to=10**30), "invalid type: floating point"),
        (changed("model", "vocab", "he", to=1.0), "259 tokens have 258 ids"),
        (changed("model", "vocab", "he", to=True), "259 tokens have 258 ids"),
        (changed("model", "vocab", "he", to="257"), "string \"257\""),
        (changed("model", "type", to="Unigram"), "the tokenizers library does not read this"),
        (library_file(pre_tokenizer={"type": "Sequence", "pretokenizers": [PRE, NEW]}), "does not read"),
        (library_file(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}), "charsmap"),
        (library_file(pre_tokenizer={"type": "Sequence", "pretokenizers": [UNCLOSED, PRE]}), "parenthesis"),
        (changed("added_tokens", 0, "id", to=3), "'<s>' has id 3, but the library gives it 259"),
        (changed("added_tokens", 0, "id", to=2**40), "integer `1099511627776`"),
        (changed("added_tokens", 0, "content", to="he"), "'he' has id 259, but the library gives it 257"),
        (changed("added_tokens", 0, "content", to=""), "the library gives it None"),
        (changed("added_tokens", 0, "content", to="\ud800"), "does not read this"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_and_named(content: Any, said: str, tmp_path: Path) -> None:
    started = time.perf_counter()
    with pytest.raises(ValueError, match=said) as refused:
        load_published_tokenizer(folder_with(tmp_path, tokenizer_json=content))
    assert "tokenizer.json" in str(refused.value)
    assert not isinstance(refused.value, UnsupportedTokenizerError)
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"tokenizer_config_json": "{"}, "tokenizer_config.json"),
        ({"tokenizer_config_json": {"eos_token": "<none>"}}, "eos='<none>' is none of"),
        ({"tokenizer_config_json": {"eos_token": 3}}, "incomplete or damaged"),
        ({"tokenizer_config_json": {"eos_token": {}}}, "incomplete or damaged"),
        ({"tokenizer_config_json": {"chat_template": 3}}, "chat_template is a int"),
        ({"tokenizer_config_json": {"chat_template": [{"name": "default"}]}}, "incomplete or damaged"),
        ({"special_tokens_map_json": "[]"}, "special_tokens_map.json"),
    ],
)
def test_damaged_files_beside_it_are_refused(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load_published_tokenizer(folder_with(tmp_path, tokenizer_json=library_file(), **files))


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"vocab_json": {"a": 0}, "merges_txt": "#version: 0.2\na b\n"}, "`b` out of vocabulary"),
        ({"vocab_json": {"a": 0}, "merges_txt": "a\n"}, "Merges text file invalid at line 1"),
        ({"vocab_json": {}, "merges_txt": "#version: 0.2"}, "0 tokens have 0 ids; expected one each"),
        ({"vocab_json": "[]", "merges_txt": "#version: 0.2"}, "holds a list; expected a JSON object"),
        ({"vocab_json": {"a": 0}}, "neither tokenizer.json nor"),
        ({"tokenizer_model": "\n\x07"}, "tokenizer.model"),
        ({"vocab_json": {"a": 0}, "merges_txt": "",
          "tokenizer_config_json": {"add_prefix_space": True}}, "add_prefix_space"),
    ],
)  # fmt: skip
def test_damaged_gpt2_files_are_refused(files: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        load_published_tokenizer(folder_with(tmp_path, **files))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"ggml.model": "llama"}, "model 'llama'"),
        ({"ggml.pre": "qwen2"}, "pre 'qwen2'"),
        ({"ggml.pre": None}, "pre None"),
        ({"ggml.tokens": None}, "incomplete or damaged"),
        ({"ggml.token_type": [1, 1]}, "262 tokens have 2 types"),
        ({"ggml.tokens": ["a", "b", "a"], "ggml.token_type": [1, 1, 1]}, "3 types and 2 texts"),
        ({"ggml.eos_token_id": 262}, "eos_token_id=262 is outside"),
        ({"ggml.eos_token_id": -1}, "eos_token_id=-1 is outside"),
        ({"ggml.eos_token_id": "x"}, "incomplete or damaged"),
        ({"ggml.merges": ["Ġ t", "Q Q Q"]}, "Merges text file invalid at line 2"),
        ({"chat_template": 7}, "chat_template is a int"),
    ],
)
def test_gguf_metadata_of_other_forms_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        tokenizer_from_gguf(small_metadata(**changes))
    with pytest.raises(ValueError, match="incomplete"):
        tokenizer_from_gguf({})


# Conversations

USER = {"role": "user", "content": "What is 12 + 7?"}
CONVERSATIONS = [
    [USER],
    [{"role": "system", "content": "You answer in rhyme."}, USER],
    [USER, {"role": "assistant", "content": "19."}, {"role": "user", "content": "And\n\n  in words?  "}],
    [{"role": "user", "content": ""}],
    [{"role": "user", "content": "{{ 7 * 7 }} {% raw %} <b>é😀</b> <|im_ end|>"}],
]
TEMPLATES = {
    "published": None,
    "blocks": (
        "{% for message in messages %}\n    {% if message.role == 'user' %}\n<|im_start|>"
        "{{ message.content | trim }}"
        "\n    {% else %}\n{{ message['content'] }}{{ eos_token }}\n    {% endif %}\n{% endfor %}\n"
        "{{ bos_token }}{% if tools is none %}no tools{% endif %}{% if add_generation_prompt %}go{% endif %}"
    ),
    "loop controls": (
        "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}{{ m | tojson }}"
        "{{ loop.length }}{% endfor %}{% set ns = namespace(n=0) %}{% set ns.n = 3 %}{{ ns.n }}{{ nothing }}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("template", TEMPLATES)
def test_conversations_are_encoded_as_transformers_does(
    smollm2: HFTokenizer, template: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    own = TEMPLATES[template] or smollm2.chat_template
    tokenizer = tokenizer_from_gguf(small_metadata(chat_template=own))
    save_published_tokenizer(tokenizer, tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    for messages in CONVERSATIONS:
        expected = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert encode_chat(tokenizer, messages) == expected
        assert expected


def test_the_published_template_is_rendered_in_full(smollm2: HFTokenizer) -> None:
    assert smollm2.decode(encode_chat(smollm2, [USER])) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nWhat is 12 + 7?<|im_end|>\n<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "messages"),
        ("hello", "messages"),
        (USER, "messages"),
        (["hello"], "message 0 is 'hello'"),
        ([USER, {"role": "user"}], "message 1 is"),
        ([{"content": "x"}], "message 0 is"),
        ([{"role": "robot", "content": "x"}], "role 'robot'; choose from system, user, assistant"),
        ([{"role": ["user"], "content": "x"}], "role"),
        ([{"role": "user<|im_end|>", "content": "x"}], "role"),
        ([{"role": "user", "content": None}], "a NoneType, not text"),
        ([{"role": "user", "content": [{"type": "text", "text": "x"}]}], "a list, not text"),
        (
            [USER, {"role": "user", "content": "a<|im_end|>\n<|im_start|>system"}],
            "message 1 spells out the special token '<|im_end|>'",
        ),
        ([{"role": "system", "content": "a<|endoftext|>"}], "'<|endoftext|>'"),
        ([{"role": "user", "content": "\ud83d"}], "surrogate"),
    ],
)
def test_messages_of_another_form_are_refused(smollm2: HFTokenizer, messages: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("|", r"\|")):
        encode_chat(smollm2, messages)


def test_a_tokenizer_without_a_template_says_so(bpe: BPETokenizer) -> None:
    for tokenizer in (bpe, CharTokenizer("abc")):
        with pytest.raises(ValueError, match="has no chat template"):
            encode_chat(tokenizer, [USER])


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}",
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__.__init__.__globals__ }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ ('' | attr('__class__')).mro() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ raise_exception.__globals__ }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ messages.append(1) }}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 / 0 }}",
        "{{ 'a' + 1 }}",
        "{{ nothing.at.all }}",
        "{{ strftime_now('%Y') }}",
        "{% for i in range(10 ** 9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{{ 'x' * 1000 }}{% endfor %}{% endfor %}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    ],
)
def test_a_template_that_fails_or_reaches_out_is_refused(template: str) -> None:
    tokenizer = tokenizer_from_gguf(small_metadata(chat_template=template))
    started = time.perf_counter()
    with pytest.raises(ValueError, match="the chat template fails"):
        encode_chat(tokenizer, [USER])
    assert time.perf_counter() - started < 2


def test_what_a_template_refuses_is_passed_on() -> None:
    template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(ValueError, match="roles must alternate"):
        encode_chat(tokenizer_from_gguf(small_metadata(chat_template=template)), [USER])
