"""Tokenizers read from the files of published models: a folder, or a GGUF file's metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labkit.text.assets import AssetError
from labkit.text.bpe import BPETokenizer, GPT2Tokenizer, _printable_bytes
from labkit.text.published import WAY_OUT, PublishedTokenizer, UnsupportedTokenizerError
from labkit.text.tokenizer import END_OF_TEXT, FORMAT, CharTokenizer, Tokenizer, load_tokenizer

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}
LLAMA3 = {
    "type": "Split",
    "pattern": {
        "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    },
    "behavior": "Isolated",
    "invert": False,
}
CHARACTERS = LLAMA3 | {"pattern": {"Regex": r"[\s\S]"}}
PRE_TOKENIZERS: dict[str, list[dict[str, Any]]] = {
    "gpt2": [BYTE_LEVEL],
    "smollm": [DIGITS, BYTE_LEVEL],
    "llama3": [LLAMA3, BYTE_LEVEL | {"use_regex": False}],
}
GGUF_PATTERNS = {"gpt-2": "gpt2", "smollm": "smollm", "llama-bpe": "llama3"}
GPT2_FILES = ("vocab.json", "merges.txt")


def load_published_tokenizer(folder: str | Path) -> Tokenizer | None:
    """The tokenizer in a model's folder; None where there is none.

    Read are labkit's own tokenizer.json, that of the `tokenizers` library with byte-level BPE, and
    GPT-2's vocab.json with merges.txt; the end of a text and the chat template stand in
    tokenizer_config.json.  Where the vocabulary is GPT-2's own, or of a kind that labkit makes itself, the
    tokenizer is labkit's.  A text never gets tokens that are not in it: no start is added.
    Raises ValueError for damaged files, `UnsupportedTokenizerError` (a ValueError) for other kinds.
    """
    folder = Path(folder)
    if (path := folder / "tokenizer.json").is_file():
        content = _read_json(path)
        if content.get("format") == FORMAT:
            return load_tokenizer(path)
        with _named(path):
            return _read_characters(content) or _as_own(_read_tokenizer(content, folder))
    vocabulary, merges = (folder / name for name in GPT2_FILES)
    if vocabulary.is_file() and merges.is_file():
        with _named(vocabulary):
            return _as_own(_read_gpt2_files(vocabulary, merges, _settings(folder)))
    if found := [name for name in ("tokenizer.model", *GPT2_FILES) if (folder / name).is_file()]:
        raise UnsupportedTokenizerError(
            f"{folder}: has {found[0]}, but neither tokenizer.json nor {' and '.join(GPT2_FILES)}. {WAY_OUT}"
        )
    return None


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> PublishedTokenizer:
    """The tokenizer described by a GGUF file's metadata (keys tokenizer.*, values plain Python).

    Raises ValueError for metadata that is incomplete, `UnsupportedTokenizerError` for other kinds.
    """
    with _named("GGUF metadata"):
        kind, pre = metadata["tokenizer.ggml.model"], metadata.get("tokenizer.ggml.pre")
        if kind != "gpt2" or pre not in GGUF_PATTERNS:
            raise UnsupportedTokenizerError(
                f"the tokenizer is of model {kind!r} with pre {pre!r}; labkit reads model 'gpt2' with pre "
                f"{', '.join(GGUF_PATTERNS)}. {WAY_OUT}"
            )
        tokens = metadata["tokenizer.ggml.tokens"]
        types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
        if len(types) != len(tokens):
            raise ValueError(f"there are {len(tokens)} tokens, but {len(types)} token types.")
        named = {}
        for role in ("eos", "bos"):
            if (token_id := metadata.get(f"tokenizer.ggml.{role}_token_id")) is not None:
                if not 0 <= token_id < len(tokens):
                    raise ValueError(f"{role}_token_id={token_id} is outside 0 .. {len(tokens) - 1}.")
                named[role] = tokens[token_id]
        if len(set(tokens)) < len(tokens):
            raise ValueError("two of the tokens are the same.")
        control, unused = (3, 4), 5
        special = {token: i for i, token in enumerate(tokens) if types[i] in control}
        return PublishedTokenizer(
            {token: i for i, token in enumerate(tokens) if types[i] not in (*control, unused)},
            _merges(metadata["tokenizer.ggml.merges"]),
            pattern=GGUF_PATTERNS[pre],
            special=special | {token: tokens.index(token) for token in named.values()},
            **named,
            chat_template=metadata.get("tokenizer.chat_template"),
            ignore_merges=pre == "llama-bpe",
            vocab_size=len(tokens),
        )


def _read_tokenizer(content: dict[str, Any], folder: Path) -> PublishedTokenizer:
    model, pre = content["model"], content["pre_tokenizer"] or {}
    steps = pre["pretokenizers"] if pre.get("type") == "Sequence" else [pre]
    # trim_offsets concerns positions only; older files leave use_regex out
    steps = [step | {"trim_offsets": True, "use_regex": step.get("use_regex", True)}
             if step.get("type") == "ByteLevel" else step for step in steps]  # fmt: skip
    pattern = next((name for name, known in PRE_TOKENIZERS.items() if steps == known), None)
    added = content.get("added_tokens") or []
    needs = {
        f"a model of type {model.get('type')}": model.get("type", "BPE") != "BPE",
        "byte_fallback": model.get("byte_fallback"),
        "dropout": model.get("dropout"),
        "continuing_subword_prefix": model.get("continuing_subword_prefix"),
        "end_of_word_suffix": model.get("end_of_word_suffix"),
        "a normalizer": content.get("normalizer"),
        f"the pre-tokenizer {json.dumps(pre)[:200]}": pattern is None,
        "added tokens that take white space with them": any(
            t.get("lstrip") or t.get("rstrip") for t in added
        ),
        "added tokens that are whole words": any(t.get("single_word") for t in added),
    }
    if unsupported := [need for need, present in needs.items() if present]:
        raise UnsupportedTokenizerError(
            f"the tokenizer needs {', '.join(unsupported)}; labkit reads byte-level BPE cut as in "
            f"{', '.join(PRE_TOKENIZERS)}. {WAY_OUT}"
        )
    assert pattern is not None
    special: dict[str, int] = {}
    for token in added:
        if special.setdefault(token["content"], token["id"]) != token["id"]:
            raise ValueError(f"the added token {token['content']!r} has two ids.")
    return _build(model["vocab"], model["merges"], pattern, special, _settings(folder),
                  ignore_merges=bool(model.get("ignore_merges")))  # fmt: skip


def _read_gpt2_files(vocabulary: Path, merges: Path, settings: Mapping[str, Any]) -> PublishedTokenizer:
    kind = settings.get("tokenizer_class") or "GPT2Tokenizer"
    if not str(kind).startswith("GPT2Tokenizer") or settings.get("add_prefix_space"):
        raise UnsupportedTokenizerError(
            f"belongs to a {kind} with add_prefix_space={settings.get('add_prefix_space')}; without a "
            f"tokenizer.json labkit reads GPT2Tokenizer without it only. {WAY_OUT}"
        )
    lines = [line for line in _read_text(merges).split("\n") if line and not line.startswith("#version")]
    special = {token["content"]: int(i) for i, token in settings.get("added_tokens_decoder", {}).items()}
    return _build(_read_json(vocabulary), [line.rstrip("\r") for line in lines], "gpt2", special, settings)


def _build(
    vocabulary: Mapping[str, int],
    merges: Any,
    pattern: str,
    special: dict[str, int],
    settings: Mapping[str, Any],
    *,
    ignore_merges: bool = False,
) -> PublishedTokenizer:
    """A tokenizer whose end of a text is the one named, else <|endoftext|> where there is one."""
    named = {role: _token(settings.get(f"{role}_token")) for role in ("eos", "bos")}
    if named["eos"] is None and END_OF_TEXT in (*vocabulary, *special):
        named["eos"] = END_OF_TEXT
    for token in filter(None, named.values()):
        if token in vocabulary:
            special.setdefault(token, vocabulary[token])
    return PublishedTokenizer(
        vocabulary,
        _merges(merges),
        pattern=pattern,
        special=special,
        eos=named["eos"],
        bos=named["bos"] if named["bos"] in special else None,
        chat_template=settings.get("chat_template"),
        ignore_merges=ignore_merges,
    )


def _settings(folder: Path) -> dict[str, Any]:
    """What stands beside the vocabulary: names of special tokens, and the chat template as a string."""
    settings: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (path := folder / name).is_file():
            settings |= _read_json(path)
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    if (path := folder / "chat_template.jinja").is_file():
        template = _read_text(path)
    return settings | {"chat_template": template}


def _token(value: Any) -> str | None:
    text = value["content"] if isinstance(value, dict) else value
    if not isinstance(text, str | None):
        raise ValueError(f"a special token is {value!r:.60}; expected its text.")
    return text


def _merges(merges: list[Any]) -> list[tuple[str, str]]:
    pairs = [line.split(" ") if isinstance(line, str) else line for line in merges]
    for number, pair in enumerate(pairs):
        if len(pair) != 2 or not all(isinstance(piece, str) for piece in pair):
            raise ValueError(f"merge {number} is {merges[number]!r:.60}; expected two pieces, as 'a b'.")
    return [(left, right) for left, right in pairs]


def _as_own(published: PublishedTokenizer) -> Tokenizer:
    """labkit's own tokenizer where this is one, so that both have the same fingerprint."""
    only_end = dict(published.special_tokens) == {END_OF_TEXT: published.vocab_size - 1}
    if published.pattern != "gpt2" or not only_end or published.eos is None or published.chat_template:
        return published
    ids = published.vocabulary
    if [ids.get(left + right) for left, right in published.merges] != list(
        range(256, published.vocab_size - 1)
    ):
        return published
    if all(ids.get(letter) == byte for byte, letter in _printable_bytes().items()):
        return BPETokenizer((ids[left], ids[right]) for left, right in published.merges)
    try:
        gpt2 = GPT2Tokenizer()
    except AssetError:
        return published
    same = all(gpt2.token_bytes(i) == published.token_bytes(i) for i in range(256))
    same = same and gpt2.vocab_size == published.vocab_size
    same = same and all(gpt2.token_bytes(i) == published.token_bytes(i) for i in range(256, gpt2.vocab_size))
    return gpt2 if same else published


def _read_characters(content: dict[str, Any]) -> CharTokenizer | None:
    """A tokenizer of characters, as `save_published_tokenizer` writes it, or None."""
    model = content["model"]
    if model.get("type") != "WordLevel" or content.get("pre_tokenizer") != CHARACTERS:
        return None
    characters = [text for text in model["vocab"] if text != END_OF_TEXT]
    unknown = model["unk_token"] if model["unk_token"] in characters else None
    tokenizer = CharTokenizer(characters, unknown=unknown)
    if [model["vocab"].get(text) for text in (*tokenizer.characters, END_OF_TEXT)] != list(
        range(tokenizer.vocab_size)
    ):
        raise ValueError("the characters are not numbered in order with <|endoftext|> last.")
    return tokenizer


@contextmanager
def _named(source: str | Path) -> Iterator[None]:
    """Errors raised inside name the source, and are ValueErrors where the content has another form."""
    try:
        yield
    except UnsupportedTokenizerError as error:
        raise UnsupportedTokenizerError(f"{source}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{source}: is incomplete or damaged ({error!r}).") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:
        raise ValueError(f"{path}: is not text in UTF-8 ({error}).") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: is not a JSON file ({error}). Fetch it again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; expected a JSON object.")
    return content
